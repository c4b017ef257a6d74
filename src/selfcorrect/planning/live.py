"""How many bytes of tensors are alive, and the most that there were: of real tensors or of fake ones."""

import weakref
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Live(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the storages that operations inside make. What one operation takes and gives back within itself, it does
    not see. now, peak: bytes; peaks: of the windows between marks.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self._window = 0
        self.peaks: list[int] = []
        self._known: dict[int, Any] = {}

    @property
    def peak(self) -> int:
        return max([*self.peaks, self._window])

    def mark(self) -> None:
        """Here a window ends, and the next one begins."""
        self.peaks.append(self._window)
        self._window = self.now

    def restart(self) -> None:
        """What was before does not count for the peak."""
        self.peaks, self._window = [], self.now

    def known(self, tensors: Any) -> None:
        """These were there before: they do not count."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            self._known[storage._cdata] = storage

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(made):
            if isinstance(leaf, Tensor) and leaf.layout == torch.strided:  # of sparse ones, their parts are seen
                self._count(leaf.untyped_storage())
        return made

    def _count(self, storage: Any) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._known or not size:
            return

        def gone(_: Any) -> None:
            del self._known[key]
            self.now -= size

        self._known[key] = weakref.ref(storage, gone)
        self.now += size
        self._window = max(self._window, self.now)
