"""Gradients of embeddings and heads, added where they lie.

Both are as large as the vocabulary, and autograd makes each anew in every backward pass before it adds it to the sum:
with tied weights three of them at once, 1.6 GiB for Qwen2.5-0.5B. Here the loss adds its tiles to the sum itself
(learning/vocabulary.py), and of embeddings on a CPU only the rows that were looked up have a gradient, which autograd
adds to it. A sum of such rows on a card has no fixed order, so embeddings stay as they are there.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


def begin(model: Any) -> bool:
    """Embedding and head have a sum to add to from now on, zeros where there was none. False where one of them trains
    in another way than as a float32 weight that nothing watches; then nothing has changed.
    """
    modules = (model.get_input_embeddings(), model.get_output_embeddings())
    found = {id(w): w for w in (getattr(module, "weight", None) for module in modules) if w is not None}
    if not all(_adds(weight) for weight in found.values()):
        return False
    for weight in found.values():
        if weight.grad is None:
            weight.grad = torch.zeros_like(weight)
    return True


def _adds(weight: Any) -> bool:
    plain = type(weight) is nn.Parameter and weight.is_leaf and weight.requires_grad and weight.dtype == torch.float32
    return plain and not weight._backward_hooks and not getattr(weight, "_post_accumulate_grad_hooks", None)


@contextmanager
def rows_alone(model: Any) -> Iterator[None]:
    """Of a forward pass, after `begin`: embeddings' gradients have the rows that were looked up."""
    embedding = model.get_input_embeddings()
    if not isinstance(embedding, nn.Embedding):
        yield
        return
    before, embedding.sparse = embedding.sparse, True
    try:
        yield
    finally:
        embedding.sparse = before
