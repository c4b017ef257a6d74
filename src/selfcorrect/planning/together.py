"""Processes of one machine that time their shares begin every piece at once, as the phases of a step do.

Two that decode at once wait for the same memory; one that decodes while the other multiplies does not.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any

from torch import distributed

from selfcorrect.parallel.launch import launched

_PATIENCE = 30.0  # seconds to wait for a process that may have failed; then each goes on by itself
_LOOK = 0.0005  # seconds between looks
_ENDED = 1 << 40  # pieces


class Apart:
    """One process times alone."""

    def begin(self) -> None:
        """Waits until all others are about to begin the same piece."""

    def agreed(self, more: bool) -> bool:
        """What the first to ask thinks of one more round."""
        return more

    def end(self) -> None:
        """The others need not wait any longer."""


class Together(Apart):
    """Several do. store: of torch.distributed; ranks: of this machine's processes, `rank` among them."""

    def __init__(self, store: Any, rank: int, ranks: range, patience: float = _PATIENCE) -> None:
        self._store, self._patience = store, patience
        self._mine, self._others = str(rank), [str(each) for each in ranks if each != rank]
        self._rounds = 0

    def begin(self) -> None:
        reached, until = self._store.add(self._mine, 1), time.perf_counter() + self._patience
        while self._others and any(self._store.add(other, 0) < reached for other in self._others):
            if time.perf_counter() > until:
                self._others = []
            time.sleep(_LOOK)

    def agreed(self, more: bool) -> bool:
        self._rounds += 1
        return bool(self._store.compare_set(f"round {self._rounds}", "", "more" if more else "none") == b"more")

    def end(self) -> None:
        self._store.add(self._mine, _ENDED)


_TIMINGS = count(1)  # the same in every process, as all of them time the same shares


@contextmanager
def timing_together() -> Iterator[Apart]:
    """Of the first machine's processes, which are those that time (beside.py)."""
    launch, number = launched(), next(_TIMINGS)
    if launch is None or launch.beside < 2 or not (distributed.is_available() and distributed.is_initialized()):
        yield Apart()
        return
    from torch.distributed.distributed_c10d import PrefixStore, _get_default_store

    store = PrefixStore(f"timing {number}", _get_default_store())
    together = Together(store, launch.rank, range(launch.beside))
    try:
        yield together
    finally:
        together.end()
