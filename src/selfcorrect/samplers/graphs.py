"""Static shapes and CUDA graphs: a step of decoding takes the card's time, not that of launching a thousand kernels."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from selfcorrect.samplers.ahead import CARD, PROCESSOR, Cost


@dataclass(frozen=True, slots=True)
class Shapes:
    """Which shapes a step may have, and how many steps go by between two looks at which lanes have ended.

    A processor takes the shapes as they are and looks every time. A graph is recorded for each shape, so on a card
    they are few: widths in steps of 256 slots, and two numbers of lanes to each power of two.
    refill: lanes are filled again, or closed up, when this share of them has ended: copying must pay for itself.
    cost: by which a step takes several tokens of a row.
    """

    fixed: bool
    every: int
    refill: float = 0.25
    cost: Cost = PROCESSOR

    def lanes(self, count: int) -> int:
        if not self.fixed:
            return count
        power = 1 << max(3, (count - 1).bit_length())
        return 3 * power // 4 if count <= 3 * power // 4 and power > 8 else power

    def width(self, slots: int) -> int:
        return -(-slots // 256) * 256 if self.fixed else slots


AS_THEY_ARE, FIXED = Shapes(fixed=False, every=1, refill=0.125), Shapes(fixed=True, every=16, cost=CARD)


def record(step: Callable[[], None], pool: Any) -> Callable[[], None]:
    """A CUDA graph of the step, which is not run meanwhile; returns what plays it."""
    graph = torch.cuda.CUDAGraph()
    # A weight that autocast casts and keeps while recording would stand in the graph's memory, not yet filled.
    kept, stream = torch.is_autocast_cache_enabled(), torch.cuda.current_stream()
    torch.set_autocast_cache_enabled(False)
    try:
        # Of this thread alone: in another one a user's grader may have a model on the card, which takes memory there.
        with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
            step()
    finally:
        torch.set_autocast_cache_enabled(kept)
        torch.cuda.set_stream(stream)  # one that fails leaves its own behind
    play: Callable[[], None] = graph.replay
    return play


@dataclass(slots=True)
class Graphs:
    """Steps by whose they are and their shape: the first of a kind runs as it is, and is recorded for all that follow.

    All graphs share one pool of memory: they never run at once, and nothing of one is read after the next has begun.
    """

    tell: Callable[[str], None]
    recorder: Callable[[Callable[[], None], Any], Callable[[], None]] | None = record
    make_pool: Callable[[], Any] = torch.cuda.graph_pool_handle
    pool: Any = None
    _recorded: dict[tuple[Any, ...], Callable[[], None]] = field(default_factory=dict)

    def run(self, key: tuple[Any, ...], step: Callable[[], None]) -> None:
        """One step; key: whose, and its shape. A model that cannot be recorded is told of once, and runs as it is."""
        if key in self._recorded:
            self._recorded[key]()
            return
        step()
        if self.recorder is None:
            return
        try:
            if self.pool is None:
                self.pool = self.make_pool()
            self._recorded[key] = self.recorder(step, self.pool)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # noqa: BLE001 - models fail here in their own ways; all of them still run
            self.recorder = None
            first = str(error).strip().partition("\n")[0]
            self.tell(f"sampling goes without CUDA graphs, slower: this model's step cannot be recorded ({first})")

    def forget(self, whose: Any = None) -> None:
        """What was recorded, of one or of all, reads memory that is no longer the model's.

        A pool whose graphs are gone takes no new ones.
        """
        self._recorded = {key: play for key, play in self._recorded.items() if whose not in (None, key[0])}
        if not self._recorded:
            self.pool = None
