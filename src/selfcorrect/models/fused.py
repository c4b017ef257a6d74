"""Small operations as kernels of their own, by torch.compile: norms, gated units, and what the loss does with a tile.

A pass of a small model on a GPU spends much of its time on moving numbers between products of matrices: of a tile of
logits alone some 200 bytes a number pass through its memory, operation by operation, and 20 fused (reckoned, not
measured on a card). Whole layers are not compiled: attention of packed rows and shared prompts are code of our own that
would break them apart, and a layer's number would compile each anew. These parts compile once for all layers and
lengths (tests/unit/test_fused.py counts).
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from functools import cache, partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from selfcorrect.errors import first_line
from selfcorrect.models.language_model import LanguageModel
from selfcorrect.models.recompute import layers_of, standing_in

_F = TypeVar("_F", bound=Callable[..., Any])
_now: ContextVar[bool] = ContextVar("fused", default=False)
_VARIANTS = 64  # of one function, by precision, temperature and the like
backend = "inductor"  # tests take one that compiles nothing


@contextmanager
def fused(on: bool, *models: Any) -> Iterator[None]:
    """Passes of these models inside are fused, their backward passes too, which have to end inside; and `fusible`
    functions called inside.
    """
    parts = [part for model in dict.fromkeys(models) for part in parts_of(model)] if on else []
    token = _now.set(on)
    # Runs one after another in a process may differ in more than lengths, each of which compiles anew.
    limit = torch._dynamo.config.patch(recompile_limit=_VARIANTS) if on else nullcontext()
    try:
        with standing_in((part, partial(_compiled(type(part).forward, whole=False), part)) for part in parts), limit:
            yield
    finally:
        _now.reset(token)


def fusible(function: _F) -> _F:
    """The function as it is to be called now: it computes with tensors alone, and may use up what it is given."""
    return _compiled(function, whole=True) if _now.get() else function


def parts_of(model: nn.Module) -> list[nn.Module]:
    """Norms and gated units written out in Python within the layers, that nothing else has hold of."""
    return [
        module
        for layer in layers_of(model)
        for module in layer.modules()
        if type(module).__name__.endswith(("Norm", "MLP"))
        and not type(module).__module__.startswith("torch.")
        and "forward" not in vars(module)
    ]


def hindrance(lm: LanguageModel) -> str:
    """Why updates of this model cannot be fused in this process, in words; empty where they can.

    A pass of a few tokens is tried, and what it compiles is of use to the update. Weights that go from the machine's
    memory to a card in shards are not there yet: then a norm is.
    """
    ids_1T = torch.arange(5, device=lm.device)[None] % lm.model.config.get_text_config().vocab_size
    try:
        with fused(True, lm.model):
            if next(lm.model.parameters()).device.type == lm.device.type:
                lm.states(ids_1T, None, use_cache=False)
            else:
                fusible(_normed)(ids_1T.float())
    except Exception as error:  # noqa: BLE001 - compilers fail in their own ways: none there, too old, no room
        return f"{type(error).__name__}: {first_line(error)}"
    return ""


def _normed(states: Tensor) -> Tensor:
    return states * states.square().mean(-1, keepdim=True).rsqrt()


@cache
def _compiled(function: Callable[..., Any], *, whole: bool) -> Any:
    """whole: fail where a part of it cannot be compiled, rather than run that part as it is."""
    return torch.compile(function, dynamic=True, fullgraph=whole, backend=backend, options=_options())


def _options() -> dict[str, Any] | None:
    """Kernels are chosen by rules and not by timing, so that a run that goes on rounds as it did before."""
    if backend != "inductor":
        return None
    from torch._inductor import config

    return {"deterministic": True} if hasattr(config, "deterministic") else None
