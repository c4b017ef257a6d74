"""What the card's memory holds: the storages of its tensors, as torch's caching allocator counts them.

A storage counts once, however many tensors see it, from the first of them to the end of the last, in whole blocks of
512 bytes. What one operation takes and gives back within itself, the context, and what is lost between blocks are not
seen. While a graph is recorded, what is made lies in the graph's pool, whose fullest moment stays taken as long as one
of its graphs lives, even where no tensor of it does.
"""

import os
from dataclasses import dataclass, field
from threading import RLock, local
from typing import Any
from weakref import WeakSet, WeakValueDictionary

import torch

from selfcorrect.planning.hardware import CONTEXT_BYTES

BLOCK = 512
GIB = 2**30
_lock = RLock()  # a tensor may end in any thread
_here = local()  # what only this thread knows


@dataclass(eq=False)
class Account:
    """Bytes that are taken, and the most that were. kept: what the allocator would still hold of it."""

    now: int = 0
    most: int = 0
    kept: int = 0

    def take(self, size: int) -> None:
        self.now += size
        self.most, self.kept = max(self.most, self.now), max(self.kept, self.now)


class Block:
    """A storage's place. It ends with the last tensor that has it."""

    def __init__(self, account: Account, size: int) -> None:
        self._account, self._size = account, size
        account.take(size)

    def __del__(self) -> None:
        with _lock:
            self._account.now -= self._size


@dataclass
class Memory:
    """total: bytes that the card has, the context's among them; peak: the most at once since `restart`."""

    total: int
    peak: int = 0
    plain: Account = field(default_factory=Account)
    pools: WeakSet[Account] = field(default_factory=WeakSet)
    _blocks: WeakValueDictionary[int, Block] = field(default_factory=WeakValueDictionary)
    _peak_kept: int = 0

    @property
    def recording(self) -> Account | None:
        """The pool of the graph that this thread records."""
        return getattr(_here, "recording", None)

    @recording.setter
    def recording(self, pool: Account | None) -> None:
        _here.recording = pool

    @property
    def now(self) -> int:
        return self.plain.now + sum(pool.now for pool in self.pools)

    @property
    def reserved(self) -> int:
        """With what has been freed and kept since `empty`, and all of the graphs' pools."""
        return self.plain.kept + sum(pool.kept for pool in self.pools)

    @property
    def peak_reserved(self) -> int:
        return max(self._peak_kept, self.reserved)

    @property
    def free(self) -> int:
        return int(self.total - CONTEXT_BYTES - self.reserved)

    def of(self, storage: Any) -> Block | None:
        """The place of a storage; raises OutOfMemoryError where there is none left for it."""
        size = -(-storage.nbytes() // BLOCK) * BLOCK
        if not size:
            return None
        with _lock:
            block = self._blocks.get(storage._cdata)
            if block is None:
                account = self.recording or self.plain
                self._refuse(size, account)
                block = self._blocks[storage._cdata] = Block(account, size)
                self.peak = max(self.peak, self.now)
                self._peak_kept = self.peak_reserved
            return block

    def _refuse(self, size: int, account: Account) -> None:
        """What is freed and kept makes room; what graphs may need again does not."""
        held = self.plain.now + sum(pool.kept for pool in self.pools)
        more = max(0, account.now + size - account.kept) if account is self.recording else size
        if held + more > self.total - CONTEXT_BYTES:
            raise torch.OutOfMemoryError(
                f"CUDA out of memory. Tried to allocate {size / 2**20:.2f} MiB. GPU 0 has a total capacity of "
                f"{self.total / GIB:.2f} GiB of which {(self.total - CONTEXT_BYTES - held) / GIB:.2f} GiB is free."
            )

    def pool(self) -> Account:
        made = Account()
        self.pools.add(made)
        return made

    def empty(self) -> None:
        """What has been freed goes back to the card."""
        self.plain.kept = self.plain.now

    def restart(self) -> None:
        """Peaks count from here."""
        self.peak, self._peak_kept = self.now, self.reserved


# CARD_GIB: of this card; of an RTX 4090, as its name says, where it is not set.
card = Memory(int(float(os.environ.get("CARD_GIB", "24")) * GIB))
