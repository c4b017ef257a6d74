"""What autocast computes in float32 on a card and not on a processor: there activations take twice the room."""

from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

# Of torch's list for CUDA (aten/src/ATen/autocast_mode.h: fp32, fp32_set_opt_dtype, fp32_append_dtype) those that
# models are made of.
_IN_FLOAT32 = {
    "pow", "__pow__", "__rpow__", "exp", "expm1", "log", "log1p", "rsqrt", "reciprocal", "softplus", "layer_norm",
    "group_norm", "logsumexp", "softmax", "log_softmax", "sum", "prod", "cumsum", "cumprod", "norm",
}  # fmt: skip


class CardsCasts(TorchFunctionMode):
    """On a processor's tensors, inside of its autocast."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = kwargs or {}
        if getattr(func, "__name__", "") in _IN_FLOAT32 and torch.is_autocast_enabled("cpu") and not given.get("dtype"):
            args, given = tree_map(_widened, (args, given))
        return func(*args, **given)


def _widened(value: Any) -> Any:
    half = isinstance(value, Tensor) and value.dtype in (torch.bfloat16, torch.float16)
    return value.float() if half else value
