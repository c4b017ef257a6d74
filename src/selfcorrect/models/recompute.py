"""Gradient checkpointing: keep each layer's input alone, and run the layer again in the backward pass.

Not transformers' own switch, which acts in training mode alone and takes the key-value cache away: here the model stays
in eval mode, and shared prompts (learning/prompts.py) stay shared. Nothing is random in a forward pass, so the second
run is the first one again.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint


def layers_of(model: Any) -> list[torch.nn.Module]:
    """The layers that can be run again; none of a model whose code does not mark them."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    return [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]


@contextmanager
def standing_in(forwards: Iterable[tuple[Any, Any]]) -> Iterator[None]:
    """Modules with what stands in for their forward passes meanwhile; each is asked for as its turn comes."""
    taken: list[tuple[Any, Any]] = []
    try:
        for module, forward in forwards:
            taken.append((module, vars(module).get("forward")))
            module.forward = forward
        yield
    finally:
        for module, own in reversed(taken):
            vars(module).pop("forward", None)
            if own is not None:
                module.forward = own


@contextmanager
def recomputed(model: Any, on: bool, around: Callable[[], AbstractContextManager[None]]) -> Iterator[None]:
    """Forward passes inside keep what their layers read, and nothing else, for the backward pass (anywhere).

    around: what a forward pass stands in that torch does not bring back by itself (autocast it does).
    """

    def again(layer: Any) -> Any:
        return partial(
            checkpoint, layer.forward, use_reentrant=False, preserve_rng_state=False,
            context_fn=lambda: (nullcontext(), around()),
        )  # fmt: skip

    with standing_in((layer, again(layer)) for layer in (layers_of(model) if on else ())):
        yield
