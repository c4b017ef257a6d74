"""Products of float32 matrices by oneDNN, on processors where torch's own take twice the time.

torch multiplies float32 matrices on a CPU by MKL, which takes AVX-512 on Intel's processors alone: on AMD's it reaches
half of what oneDNN does, in the forward pass and both products of the backward pass (docs/log.md). Which of the two
multiplies follows from the processor, never from a clock, as a run that goes on has to round as it did before.
"""

import os
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils._python_dispatch import _disable_current_modes

LEAST = 1 << 16  # numbers of a weight: smaller ones gain little, or lose
_WORK = 1 << 21  # multiplications: the same
# oneDNN compiles a kernel for each shape, and keeps 1,024: as packed rows have ever new lengths, those of a run held a
# gigabyte (docs/log.md). A micro-batch's are used again in every layer, and seldom after it.
_KERNELS = "ONEDNN_PRIMITIVE_CACHE_CAPACITY"


def serve(model: nn.Module) -> None:
    """The model's large linear layers multiply by oneDNN from now on, where that is faster. The numbers are the same up
    to rounding; subclasses (quantised layers) stay as they are.
    """
    if not faster():
        return
    every: list[Any] = [*model.modules()]
    for module in every:
        large = type(module) is nn.Linear and module.weight.numel() >= LEAST and module.weight.device.type == "cpu"
        if large and "forward" not in vars(module):
            module.forward = partial(_of_layer, module)


def held(module: nn.Module) -> bool:
    """Whether something else has hold of a module's forward pass."""
    own = vars(module).get("forward")
    return own is not None and getattr(own, "func", None) is not _of_layer


def product(x: Tensor, weight_OI: Tensor, bias_O: Tensor | None = None) -> Tensor:
    """Linear layer's: x W^T + b [..., O], of x [..., I]."""
    if not fits(x, weight_OI):
        return nn.functional.linear(x, weight_OI, bias_O)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, weight_OI, bias_O)):
        return _Product.apply(x, weight_OI, bias_O)  # type: ignore[no-any-return,no-untyped-call]
    return by_onednn(x, weight_OI.detach(), None if bias_O is None else bias_O.detach())


def by_onednn(x: Tensor, weight_OI: Tensor, bias_O: Tensor | None = None) -> Tensor:
    """The same without gradients. weight_OI: in any layout, that of `_reorder_linear_weight` too."""
    found: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight_OI, bias_O, "none", [], "")
    return found


def _of_layer(module: nn.Linear, x: Tensor) -> Tensor:
    return product(x, module.weight, module.bias)


def fits(x: Tensor, weight_OI: Tensor) -> bool:
    """Whether oneDNN multiplies these, sooner than torch's own would."""
    single = x.dtype == weight_OI.dtype == torch.float32 and x.device.type == "cpu"
    large = weight_OI.numel() >= LEAST and x.numel() * len(weight_OI) >= _WORK
    return single and large and faster() and not torch.is_autocast_enabled("cpu")


class _Product(torch.autograd.Function):
    """(x, weight_OI, bias_O) -> x W^T + b."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_OI: Tensor, bias_O: Tensor | None) -> Tensor:
        of_x, of_weight, _ = ctx.needs_input_grad
        ctx.save_for_backward(x if of_weight else None, weight_OI if of_x else None)
        return by_onednn(x, weight_OI, bias_O)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, weight_OI = ctx.saved_tensors
        g_NO = g.reshape(-1, g.shape[-1])
        d_x = None if weight_OI is None else by_onednn(g_NO, weight_OI.t()).view(*g.shape[:-1], weight_OI.shape[1])
        d_weight_OI = None if x is None else _across(g_NO, x.reshape(-1, x.shape[-1]))
        return d_x, d_weight_OI, g_NO.sum(0) if ctx.needs_input_grad[2] else None


def _across(g_NO: Tensor, x_NI: Tensor) -> Tensor:
    """g^T x [O, I]. The left side is laid out anew first: x, where that spares more than a product that lies across
    costs.
    """
    (rows, outer), inner = g_NO.shape, x_NI.shape[1]
    if rows * (outer - inner) > outer * inner:
        return by_onednn(x_NI.t(), g_NO.t()).t()
    return by_onednn(g_NO.t(), x_NI.t())


@cache
def faster() -> bool:
    """Whether this processor is one of those, and a small product comes out right. Of kernels 64 are kept then, unless
    the environment says how many.
    """
    wide = torch.backends.cpu.get_cpu_capability().startswith("AVX512")
    by_mkl: bool = torch.backends.mkl.is_available()  # type: ignore[no-untyped-call]
    if not (wide and by_mkl and _vendor() == "AuthenticAMD"):
        return False
    os.environ.setdefault(_KERNELS, "64")  # read as oneDNN multiplies for the first time
    return works(torch.float32)


def _vendor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("vendor_id")), "")


@cache
def works(dtype: torch.dtype) -> bool:
    """Whether this torch has oneDNN's product of linear layers, and a small one comes out right on this machine."""
    if dtype not in (torch.float32, torch.bfloat16):
        return False
    names = ("_reorder_linear_weight", "_linear_pointwise")
    built: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    if not built or not all(hasattr(torch.ops.mkldnn, name) for name in names):
        return False
    with _disable_current_modes():  # a plan may ask first, on tensors without numbers, and the answer is kept
        return _comes_out_right(dtype)


def _comes_out_right(dtype: torch.dtype) -> bool:
    weight_OI = torch.linspace(-1, 1, 96 * 32).sin().view(96, 32).to(dtype)
    x_NI = torch.linspace(-2, 2, 5 * 32).cos().view(5, 32).to(dtype)
    theirs = x_NI.float() @ weight_OI.float().T
    try:
        laid = torch.ops.mkldnn._reorder_linear_weight(weight_OI, len(x_NI))
        mine = [by_onednn(x_NI, weight).float() for weight in (laid, weight_OI, weight_OI.t().contiguous().t())]
    except (RuntimeError, NotImplementedError):
        return False
    allowed = (1e-5 if dtype == torch.float32 else 1e-2) * theirs.norm()
    return all(bool((each - theirs).norm() <= allowed) for each in mine)
