"""Linear layers for the few rows of a decoding step, in float32 on a CPU with MKL.

There x W^T of some eight to fifty rows reads W at a third of the memory's speed, and the same product taken as
(W x^T)^T at up to two and a half times that (docs/log.md); below and above the first is the better one. A head is left
alone: turning its long rows costs what is gained.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

AVAILABLE: bool = torch.backends.mkl.is_available()  # type: ignore[no-untyped-call]
_ROWS = range(8, 49)
_LEAST, _LONGEST = 1 << 18, 1 << 15  # numbers of a weight at least, and of an output row at most


@contextmanager
def few_rows(model: Any) -> Iterator[None]:
    """Meanwhile the model's linear layers take the better product. The model computes in float32, on a CPU."""
    taken = [module for module in model.modules() if _fits(module)] if AVAILABLE else []
    for module in taken:
        module.forward = partial(_forward, module)
    try:
        yield
    finally:
        for module in taken:
            del module.forward


def _fits(module: nn.Module) -> bool:
    if type(module) is not nn.Linear or "forward" in module.__dict__:
        return False
    weight = module.weight
    return weight.dtype == torch.float32 and weight.numel() >= _LEAST and len(weight) <= _LONGEST


def _forward(module: nn.Linear, x: Tensor) -> Tensor:
    if x.numel() // x.shape[-1] not in _ROWS:
        return nn.functional.linear(x, module.weight, module.bias)
    product_ON = module.weight @ x.flatten(0, -2).T
    if module.bias is not None:
        product_ON += module.bias[:, None]
    return product_ON.T.reshape(*x.shape[:-1], -1).contiguous()
