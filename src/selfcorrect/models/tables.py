"""Gradients of embeddings and heads, added where they lie.

Both are as large as the vocabulary, and autograd makes each anew in every backward pass before it adds it to the sum:
with tied weights four of them at once, 2.0 GiB for Qwen2.5-0.5B. Here the loss adds its tiles to the sum itself
(learning/vocabulary.py), and of embeddings on a CPU only the rows that were looked up have a gradient, which autograd
adds to it. A sum of such rows on a card has no fixed order, so embeddings stay as they are there.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from selfcorrect.models.language_model import LanguageModel


@dataclass(frozen=True, slots=True)
class InPlace:
    """What of a model has a sum to add to. head: whether its weight has (see `score`); embedding: the module, if so."""

    head: bool = False
    embedding: Any = None

    @contextmanager
    def forward(self) -> Iterator[None]:
        """A pass that a backward pass follows: the embedding's gradient has the rows that were looked up in it."""
        if self.embedding is None:
            yield
            return
        before, self.embedding.sparse = self.embedding.sparse, True
        try:
            yield
        finally:
            self.embedding.sparse = before


def begin(lm: LanguageModel, *, on_card: bool) -> InPlace:
    """What has a sum from now on, zeros where there was none: float32 weights that train and that nothing watches."""
    embedding, head = _module(lm.model.get_input_embeddings), _module(lm.model.get_output_embeddings)
    adds_head = lm.head_form is not None and _adds(head)
    adds_rows = not on_card and isinstance(embedding, nn.Embedding) and _adds(embedding)
    for module in [head] * adds_head + [embedding] * adds_rows:
        if module.weight.grad is None:
            module.weight.grad = torch.zeros_like(module.weight)
    return InPlace(adds_head, embedding if adds_rows else None)


def _module(named: Any) -> Any:
    try:
        return named()
    except (AttributeError, NotImplementedError):  # transformers' words for a model that it does not know its way in
        return None


def _adds(module: Any) -> bool:
    weight = getattr(module, "weight", None)
    if not isinstance(weight, nn.Parameter) or not weight.requires_grad or weight.dtype != torch.float32:
        return False
    return weight.is_leaf and not weight._backward_hooks and not getattr(weight, "_post_accumulate_grad_hooks", None)
