"""Tensors that say they lie on "cuda:0"; their numbers lie in the machine's memory, and its kernels compute with them.

What a card refuses is refused here: tensors of two devices in one operation; a look at a number, or a copy from the
machine's memory, while a graph is recorded.
"""

from collections import Counter
from collections.abc import Sequence
from threading import get_ident
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from tests.support.card.kernels import KERNELS
from tests.support.card.memory import card

aten: Any = torch.ops.aten
CARD = torch.device("cuda", 0)
HOST = torch.device("cpu")
_CROSSES = {aten.copy_.default, aten._to_copy.default, aten.set_.source_Tensor}
# A card's tensor takes indices from the machine's memory, and moves them; the other way round it does not.
_INDEXED = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default}
_FILLS = {aten.fill_.Tensor, aten.masked_fill.Tensor, aten.masked_fill_.Tensor, aten.index_fill_.int_Tensor}
_LOOKS = {
    aten._local_scalar_dense.default, aten.nonzero.default, aten.masked_select.default, aten.equal.default,
    aten.is_nonzero.default, aten.unique_consecutive.default, aten._unique2.default, aten.repeat_interleave.Tensor,
    aten.bincount.default,
}  # fmt: skip

waits: Counter[str] = Counter()  # by kind: how often the host has waited for the card
asked_for: dict[int, tuple[torch.device, Any]] = {}  # generators by their address, kept so that no other gets it
recording: list[Any] = []  # the graph that is being recorded, if one is


def recorded_here() -> Any:
    """The graph that this thread records, if it does. Raises where another thread records one for all of them."""
    graph = recording[-1] if recording else None
    if graph is None or graph.thread == get_ident():
        return graph
    if graph.mode == "global":
        raise RuntimeError("operation not permitted when stream is capturing (in another thread)")
    return None


class OnCard(Tensor):
    """numbers: the tensor in the machine's memory that this one stands for."""

    __torch_function__: ClassVar[Any] = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls: Any, numbers: Tensor) -> "OnCard":
        made: OnCard = Tensor._make_wrapper_subclass(
            cls, numbers.shape, strides=numbers.stride(), storage_offset=numbers.storage_offset(),
            dtype=numbers.dtype, device=CARD,
        )  # fmt: skip
        made.numbers = numbers
        return made

    @property
    def numbers(self) -> Tensor:
        return self._numbers

    @numbers.setter
    def numbers(self, tensor: Tensor) -> None:
        self._block = card.of(tensor.untyped_storage())  # first: it may find no room
        self._numbers = tensor

    def __repr__(self, **_: Any) -> Any:  # type: ignore[override]
        return f"OnCard({self.numbers!r})"

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def numpy(self, **_: Any) -> Any:
        raise TypeError(
            "can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() to copy the tensor to host memory first."
        )

    def untyped_storage(self) -> Any:
        return self.numbers.untyped_storage()

    def data_ptr(self) -> int:
        return self.numbers.data_ptr()

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        if id(self) not in memo:
            copied: Tensor = OnCard(self.numbers.detach().clone())
            is_parameter = isinstance(self, torch.nn.Parameter)
            memo[id(self)] = torch.nn.Parameter(copied, self.requires_grad) if is_parameter else copied
        return memo[id(self)]  # type: ignore[no-any-return]

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        return operate(func, args, kwargs or {})

    # By these two torch tells a kind whose parameters `Module.to` swaps in place, as a card's keep their identity.
    def __tensor_flatten__(self) -> Any:
        return ["numbers"], None

    @staticmethod
    def __tensor_unflatten__(inner: Any, *_: Any) -> "OnCard":
        return OnCard(inner["numbers"])


class Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees also what no tensor of the card goes into: those that are made there, or copied to it."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        device = (kwargs or {}).get("device")
        if (device is None or device.type != "cuda") and not any(issubclass(kind, OnCard) for kind in types):
            kept = {name: value for name, value in (kwargs or {}).items() if name != "pin_memory"}
            return func(*args, **kept)  # of the machine alone: most of what a process does
        return operate(func, args, kwargs or {})


def operate(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """One operation, by the machine's own kernel."""
    flat, spec = tree_flatten((args, kwargs))
    tensors = [leaf for leaf in flat if isinstance(leaf, Tensor)]
    there = [leaf for leaf in tensors if isinstance(leaf, OnCard)]
    named = next((leaf for leaf in flat if isinstance(leaf, torch.device)), None)
    target = named or (CARD if there else HOST)
    if not there and target.type != "cuda":
        return func(*args, **{name: value for name, value in kwargs.items() if name != "pin_memory"})
    _refuse_two_devices(func, args, tensors, there)
    graph = recorded_here()
    for drawn, _ in (asked_for[key] for leaf in flat if (key := getattr(leaf, "_cdata", None)) in asked_for):
        if drawn.type != target.type:
            raise RuntimeError(f"Expected a '{target.type}' device type for generator but found '{drawn.type}'")
    _wait(func, args, tensors, there, target)
    inner = [_inside(leaf) for leaf in flat]
    inner_args, inner_kwargs = tree_unflatten(inner, spec)
    inner_kwargs.pop("pin_memory", None)
    call = KERNELS.get(str(func), func)
    if graph:
        graph.before(func, inner)
    made = call(*inner_args, **inner_kwargs)
    if graph:
        graph.after(lambda: call(*inner_args, **inner_kwargs), made, inner)
    return _outside(func, args, kwargs, made, target)


def _refuse_two_devices(func: Any, args: Any, tensors: list[Tensor], there: Sequence[Tensor]) -> None:
    """A single number may come from anywhere, where each of the other side is taken with it."""
    indices = args[1] if func in _INDEXED and isinstance(args[0], OnCard) else []
    elsewhere = [tensor for tensor in tensors if not isinstance(tensor, OnCard)]
    others = [one for one in elsewhere if not any(one is index for index in indices)]
    single = torch.Tag.pointwise in func.tags or func in _FILLS | _INDEXED
    if not there or func in _CROSSES or all(single and one.dim() == 0 for one in others):
        return
    raise RuntimeError(
        f"Expected all tensors to be on the same device, but {func} was given {others[0].device} and {CARD}"
    )


def _wait(func: Any, args: Any, tensors: list[Tensor], there: Sequence[Tensor], target: torch.device) -> None:
    kind = ""
    if func in _LOOKS and there:
        kind = "look"
    elif func is aten.copy_.default and len({isinstance(tensor, OnCard) for tensor in args[:2]}) == 2:
        kind = "fetch" if isinstance(args[1], OnCard) else "send"
    elif func is aten._to_copy.default and isinstance(args[0], OnCard) != (target.type == "cuda"):
        kind = "send" if target.type == "cuda" else "fetch"
    elif func in _INDEXED and there:
        known = [index for index in args[1] if index is not None]
        by_mask = any(index.dtype in (torch.bool, torch.uint8) for index in known)
        kind = "look" if by_mask else "" if all(isinstance(index, OnCard) for index in known) else "send"
    if kind:
        waits[kind] += 1
        if recorded_here():
            raise RuntimeError(f"operation not permitted when stream is capturing ({kind}: {func})")


def _inside(leaf: Any) -> Any:
    if isinstance(leaf, OnCard):
        return leaf.numbers
    return HOST if isinstance(leaf, torch.device) and leaf.type == "cuda" else leaf


def _on_card(leaf: Any) -> Any:
    return OnCard(leaf) if type(leaf) is Tensor else leaf


def _outside(func: Any, args: Any, kwargs: dict[str, Any], made: Any, target: torch.device) -> Any:
    """What the machine's kernel made as the card's tensors; what was written to is given back itself."""
    schema = func._schema
    named = {argument.name: value for argument, value in zip(schema.arguments, args, strict=False)} | kwargs
    written = {
        next(iter(argument.alias_info.before_set)): named[argument.name]
        for argument in schema.arguments
        if argument.alias_info
        and argument.alias_info.is_write
        and argument.alias_info.before_set
        and argument.name in named
    }
    several = isinstance(made, (tuple, list)) and len(schema.returns) > 1
    values = list(made) if several else [made]
    for number, (value, returned) in enumerate(zip(values, schema.returns, strict=False)):
        alias = returned.alias_info
        if alias and alias.is_write:
            values[number] = written[next(iter(alias.before_set))]
        elif target.type == "cuda":
            values[number] = OnCard(value) if type(value) is Tensor else tree_map(_on_card, value)
    return tuple(values) if several else values[0] if schema.returns else None
