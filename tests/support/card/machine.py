"""What torch.cuda tells of the card, and its graphs."""

import threading
from collections.abc import Callable
from contextlib import contextmanager
from functools import cache
from types import SimpleNamespace
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from tests.support.card import attention
from tests.support.card.memory import Account, card
from tests.support.card.tensors import OnCard, Operations, asked_for, recorded_here, recording

_lasting: list[Any] = []


class Graph:
    """Operations recorded without being run: what they wrote to is as it was before, what they made is not filled."""

    def __init__(self) -> None:
        self._steps: list[tuple[Callable[[], Any], list[Tensor], list[Tensor]]] = []
        self._kept: dict[int, tuple[Tensor, Tensor]] = {}
        self._made: list[Tensor] = []
        self._pieces: set[int] = set()
        self.pool: Account | None = None
        self.thread, self.mode = 0, "global"

    def before(self, func: Any, inner: list[Any]) -> None:
        if not any(a.alias_info and a.alias_info.is_write for a in func._schema.arguments):
            return
        for tensor in (leaf for leaf in inner if isinstance(leaf, Tensor)):
            piece = tensor.untyped_storage()
            if piece.data_ptr() not in self._pieces and piece.data_ptr() not in self._kept:
                whole = torch.empty(0, dtype=torch.uint8).set_(piece)
                self._kept[piece.data_ptr()] = (whole, whole.clone())

    def after(self, again: Callable[[], Any], made: Any, inner: list[Any]) -> None:
        old = {leaf.untyped_storage().data_ptr() for leaf in inner if isinstance(leaf, Tensor)}
        outputs = [leaf for leaf in tree_leaves(made) if isinstance(leaf, Tensor)]
        new = [leaf for leaf in outputs if leaf.untyped_storage().data_ptr() not in old]
        self._pieces |= {leaf.untyped_storage().data_ptr() for leaf in new}
        self._made += new
        if new or not outputs or any(leaf is one for leaf in outputs for one in inner):
            self._steps.append((again, outputs, new))

    def end(self) -> None:
        for whole, before in self._kept.values():
            whole.copy_(before)
        self._kept = {}
        for tensor in self._made:
            if tensor.is_floating_point():
                tensor.fill_(float("nan"))

    def replay(self) -> None:
        for again, outputs, new in self._steps:
            results = [leaf for leaf in tree_leaves(again()) if isinstance(leaf, Tensor)]
            for output, result in zip(outputs, results, strict=True):
                if any(output is one for one in new):
                    output.copy_(result)


class Generator(torch.Generator):
    """The machine's, of which it is known what device it was asked for."""

    def __new__(cls, device: Any = "cpu") -> Any:
        made: Any = torch._C.Generator()
        asked_for[made._cdata] = (torch.device(device), made)
        return made


@contextmanager
def graph(recorded: Graph, pool: Any = None, capture_error_mode: str = "global") -> Any:
    recorded.thread, recorded.mode = threading.get_ident(), capture_error_mode
    recording.append(recorded)
    card.recording = recorded.pool = pool or card.pool()
    try:
        yield
    finally:
        recording.pop()
        card.recording = None
        recorded.end()


def plug_in() -> None:
    """From here on this process has a card."""
    cuda: Any = torch.cuda
    about = SimpleNamespace(
        name="NVIDIA GeForce RTX 4090", total_memory=card.total, major=9, minor=0, multi_processor_count=8
    )
    for name in ("_lazy_init", "set_device", "synchronize", "set_stream", "manual_seed", "manual_seed_all", "init"):
        setattr(cuda, name, _tells(None))
    told: dict[str, Any] = {
        "is_available": True, "device_count": 1, "current_device": 0, "get_device_properties": about,
        "get_device_name": about.name, "get_device_capability": (9, 0),
        "is_bf16_supported": True, "current_stream": None, "default_stream": None, "is_initialized": True,
    }  # fmt: skip
    for name, value in told.items():
        setattr(cuda, name, _tells(value))
    at_work: dict[str, Callable[[], Any]] = {
        "mem_get_info": lambda: (card.free, card.total), "memory_allocated": lambda: card.now,
        "max_memory_allocated": lambda: card.peak, "memory_reserved": lambda: card.reserved,
        "max_memory_reserved": lambda: card.peak_reserved, "reset_peak_memory_stats": card.restart,
        "empty_cache": card.empty, "graph_pool_handle": card.pool,
        "is_current_stream_capturing": lambda: bool(recorded_here()),
    }  # fmt: skip
    for name, call in at_work.items():
        setattr(cuda, name, lambda *_, call=call, **__: call())
    cuda.CUDAGraph, cuda.graph = Graph, graph
    cuda.get_rng_state, cuda.set_rng_state = (
        lambda *_: torch.get_rng_state(),
        lambda state, *_: torch.set_rng_state(state),
    )
    torch.Generator = Generator  # type: ignore[misc]
    torch._C._cuda_getCurrentRawStream = _tells(0)  # asked for as bitsandbytes is imported
    torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(..., device="cuda") moves what it made where it is seen
    _lasting.append(attention.plug_in())
    _let_parameters_move()
    _in_every_thread()
    operations: Any = Operations
    operations().__enter__()


def _tells(value: Any) -> Callable[..., Any]:
    return lambda *_, **__: value


def _let_parameters_move() -> None:
    """`parameter.data = other`, where one of the two is the card's, as a card has it; and memory that is pinned."""
    tensor: Any = torch.Tensor
    inherited: Any = torch._C.TensorBase.data

    def put(self: Tensor, value: Tensor) -> None:
        if isinstance(self, OnCard) != isinstance(value, OnCard):
            made = torch.nn.Parameter(value, self.requires_grad) if isinstance(self, torch.nn.Parameter) else value
            torch.utils.swap_tensors(self, made)  # type: ignore[no-untyped-call]
            return
        inherited.__set__(self, value)
        if isinstance(self, OnCard) and isinstance(value, OnCard):
            self.numbers = value.numbers

    def subclass(cls: Any, data: Tensor, requires_grad: bool = False, **kwargs: Any) -> Tensor:
        if not isinstance(data, OnCard) or issubclass(cls, OnCard):
            return plain(cls, data, requires_grad, **kwargs)  # type: ignore[no-any-return]
        made: Tensor = OnCard.__new__(_of_both(cls), data.numbers)
        return made.requires_grad_(requires_grad)

    plain = tensor._make_subclass
    tensor._make_subclass = staticmethod(subclass)
    tensor.data = property(inherited.__get__, put)
    tensor.pin_memory = lambda self, *_: self.clone()  # pinned memory is the machine's too


@cache
def _of_both(kind: Any) -> Any:
    """The card's tensors of another kind, such as 4-bit weights."""
    return type(kind.__name__, (kind, OnCard), {})


def _in_every_thread() -> None:
    run, operations = threading.Thread.run, cast("Any", Operations)

    def with_card(self: threading.Thread) -> None:
        with operations():
            run(self)

    threading.Thread.run = with_card  # type: ignore[method-assign]
