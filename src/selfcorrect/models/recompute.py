"""Gradient checkpointing: keep each layer's input alone, and run the layer again in the backward pass.

Not transformers' own switch, which acts in training mode alone and takes the key-value cache away: here the model stays
in eval mode, and shared prompts (learning/prompts.py) stay shared. Nothing is random in a forward pass, so the second
run is the first one again.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint


def layers_of(model: Any) -> list[torch.nn.Module]:
    """The layers that can be run again; none of a model whose code does not mark them."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    return [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]


@contextmanager
def recomputed(model: Any, on: bool) -> Iterator[None]:
    """Forward passes inside keep what their layers read, and nothing else, for the backward pass (anywhere)."""
    layers = layers_of(model) if on else []
    before = [layer.__dict__.get("forward") for layer in layers]
    for layer in layers:
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False, preserve_rng_state=False)
    try:
        yield
    finally:
        for layer, forward in zip(layers, before, strict=True):
            if forward is None:
                del layer.forward
            else:
                layer.forward = forward
