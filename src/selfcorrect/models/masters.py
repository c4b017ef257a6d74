"""Float32 masters of weights that are stored in bfloat16: what the optimiser moves.

A step of 1e-6 on a bfloat16 weight of 0.1 would be rounded away. The masters keep it; the weights are their roundings.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor


class Masters:
    """by_name: float32 leaves, by the model's name for the weight. Gradients of the weights are added up in theirs.

    exact: those of a model that is trained elsewhere, as they are now.
    """

    def __init__(self, model: Any, exact: Mapping[str, Tensor] | None = None) -> None:
        self._weights: dict[str, Tensor] = {
            name: parameter
            for name, parameter in model.named_parameters()
            if parameter.requires_grad and parameter.dtype.itemsize < torch.float32.itemsize
        }
        self._hooks: list[Any] = []
        if exact is not None:
            self.by_name = {name: exact[name] for name in self._weights}
            return
        self.by_name = {
            name: w.detach().to(torch.float32, copy=True).requires_grad_() for name, w in self._weights.items()
        }
        for name, weight in self._weights.items():
            collect = partial(_collect, self.by_name[name])
            self._hooks.append(weight.register_post_accumulate_grad_hook(collect))  # type: ignore[no-untyped-call]

    def let_go(self) -> None:
        """The weights train no more here: no gradient is collected, and nothing is held beside them."""
        for hook in self._hooks:
            hook.remove()
        self._hooks, self._weights, self.by_name = [], {}, {}

    @torch.no_grad()
    def hand_out(self) -> None:
        """The weights become the roundings of their masters."""
        for name, weight in self._weights.items():
            weight.copy_(self.by_name[name])

    @torch.no_grad()
    def take(self, name: str, tensor: Tensor) -> None:
        """A master's new value, where there is one of that name; `hand_out` then passes it on."""
        if name in self.by_name:
            self.by_name[name].copy_(tensor)

    def of(self, tensor: Tensor) -> Tensor | None:
        """The master of a weight, tied or not."""
        for name, weight in self._weights.items():
            if weight.data_ptr() == tensor.data_ptr():
                return self.by_name[name]
        return None


def _collect(master: Tensor, weight: Tensor) -> None:
    assert weight.grad is not None
    if master.grad is None:
        master.grad = weight.grad.float()
    else:
        master.grad += weight.grad
    weight.grad = None
