"""Linear layers for decoding on a CPU: copies of their weights, laid out as oneDNN's kernels read them.

A decoding step multiplies a few rows with every weight, and takes as long as those are read. As they lie in the model,
x W^T of four to fifty rows reads them at a third to a half of the memory's speed; laid out for the kernel, at up to
twice that. In float32 a copy holds its LoRA adapter too, W + BA, so that decoding does not multiply with each by itself
(in bfloat16 the sum would be rounded away). Copies are made for a call and given back after it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from selfcorrect.models import products
from selfcorrect.models.adapters import OFF
from selfcorrect.models.language_model import LanguageModel
from selfcorrect.models.recompute import standing_in
from selfcorrect.models.sizing import free_memory_of_machine

LEAST = 1 << 20  # numbers of a weight: smaller ones gained nothing when measured, where MKL is fast (docs/log.md)
LEAST_ADAPTED = 1 << 16  # of one that its adapter is added to
_ROWS = 64  # laid out for so many, fewer and more are as fast
_FEW = 2  # so many or fewer rows read a float32 weight at full speed as it lies, where MKL is fast


@contextmanager
def prepacked(lm: LanguageModel) -> Iterator[None]:
    """Meanwhile the model's large linear layers read copies of their weights as they are now.

    Where the recipe has none of them (model.sampling_copies), torch has no oneDNN, its product is not the layer's up to
    rounding, or less than twice the copies' memory is free, all stays as it is.
    """
    layers = _layers(lm) if lm.copies and products.works(lm.compute_dtype) else []
    if sum(layer.base.weight.numel() for layer in layers) * lm.compute_dtype.itemsize > free_memory_of_machine() / 2:
        layers = []
    with standing_in((layer.module, layer.forward(lm.compute_dtype)) for layer in layers):
        yield


def least(dtype: torch.dtype) -> int:
    """Numbers of a weight that is laid out for a forward pass of this precision."""
    return products.LEAST if dtype == torch.float32 and products.faster() else LEAST


@dataclass(frozen=True, slots=True)
class _Layer:
    """module: what the model calls, the linear layer itself or PEFT's layer around it, of which `adapter` is on."""

    module: Any
    base: nn.Linear
    adapter: str = OFF

    def forward(self, dtype: torch.dtype) -> partial[Tensor]:
        """What stands in for the module's own, with the weights as they are now."""
        own = weight = self.base.weight.detach()
        if self.adapter != OFF:
            weight = own + self.module.get_delta_weight(self.adapter).detach()
        bias = None if self.base.bias is None else self.base.bias.detach().to(dtype)
        if weight.numel() < least(dtype):
            return partial(linear, weight=weight, bias=bias)
        # A sum of both would have to be kept beside its copy.
        lies = weight is own and dtype == torch.float32 and not products.faster()
        return partial(_forward, laid_out(weight.to(dtype)), own if lies else None, bias)


def _layers(lm: LanguageModel) -> list[_Layer]:
    """Those that gain. Subclasses (quantised ones), and what something else has hold of, stay as they are."""
    exact = lm.compute_dtype == torch.float32
    wrapped = _adapted(lm) if exact else []
    inside = {id(layer.base) for layer in wrapped}
    every: list[Any] = [module for module in lm.model.modules() if id(module) not in inside]
    plain = [_Layer(module, module) for module in every if _fits(module, least(lm.compute_dtype))]
    return [layer for layer in [*wrapped, *plain] if not exact or layer.base.weight.dtype == torch.float32]


def _adapted(lm: LanguageModel) -> list[_Layer]:
    if lm.adapters is None:
        return []
    from peft.tuners.lora import Linear

    every: list[Any] = [module for module in lm.model.modules() if type(module) is Linear]
    found = [_Layer(module, module.base_layer, lm.view) for module in every]
    return [layer for layer in found if _fits(layer.base, LEAST_ADAPTED) and "forward" not in vars(layer.module)]


def _fits(module: Any, numbers: int) -> bool:
    return type(module) is nn.Linear and not products.held(module) and module.weight.numel() >= numbers


def laid_out(weight_OI: Tensor) -> Tensor:
    """A copy, as oneDNN's kernels read it; opaque to everything else."""
    laid: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight_OI, _ROWS)
    return laid


def _forward(weight: Tensor, plain_OI: Tensor | None, bias_O: Tensor | None, x: Tensor) -> Tensor:
    if plain_OI is not None and x.numel() <= _FEW * x.shape[-1]:
        return linear(x, plain_OI, bias_O)
    return products.by_onednn(x.to(weight.dtype), weight, bias_O)
