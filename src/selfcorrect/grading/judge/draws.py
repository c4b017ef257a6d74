"""Where random numbers come from in the judge's process, which the kernel gives none (stdlib only).

From a key that no program ever sees: one that repeats the tests' draws, or works their generator's state out of the
arguments it is given, learns nothing.
"""

import hashlib
import itertools
import os
import random
import struct
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from selfcorrect.grading.judge.preload import expose, replace_entropy

_WORDS = struct.Struct("<256I")


def hide() -> None:
    """In the judge's process, once: what tests draw without a seed of their own comes from the key of `start`.

    A seed that the tests themselves write down is part of them, like an expected value, and gives what Python gives.
    One taken from the clock, which a program can read too, does not.
    """
    replace_entropy(_entropy.draw)
    generator = _Draws()
    random.Random = _Draws  # type: ignore[misc]
    expose(generator)
    if "numpy" in sys.modules:
        _hide_numpy(sys.modules["numpy"].random)


def _hide_numpy(numpy: Any) -> None:
    seeded, default = numpy.seed, numpy.default_rng

    class RandomState(numpy.RandomState):  # type: ignore[misc]
        def __init__(self, seed: Any = None) -> None:
            super().__init__(_philox(numpy) if _unknown(seed) else seed)

        seed = __init__  # as a Philox it could not be given one

    def seed(seed: Any = None) -> None:
        numpy.set_bit_generator(_philox(numpy) if _unknown(seed) else numpy.MT19937())
        if not _unknown(seed):
            seeded(seed)

    def default_rng(seed: Any = None) -> Any:
        return default(_philox(numpy) if _unknown(seed) else seed)

    numpy.RandomState, numpy.seed, numpy.default_rng = RandomState, seed, default_rng


def start(key: bytes) -> None:
    """Before each program: draws that hang on the key alone."""
    _entropy.start(key)
    random.seed()
    if "numpy" in sys.modules:
        numpy = sys.modules["numpy"].random
        numpy.set_bit_generator(_philox(numpy))


def _philox(numpy: Any) -> Any:
    """The nearest of numpy's to a generator that cannot be foretold from what it gave."""
    return numpy.Philox(key=int.from_bytes(os.urandom(16), "little"))


def _unknown(seed: Any) -> bool:
    return seed is None or _of_the_clock(seed)


class _Entropy:
    """Bytes that only the holder of the key can foretell, in place of the kernel's."""

    def __init__(self) -> None:
        self.start(b"")

    def start(self, key: bytes) -> None:
        self._key, self._count = key, itertools.count()

    def bound_to(self, seed: float) -> bytes:
        return self._key + repr(seed).encode()

    def draw(self, size: int) -> bytes:
        return hashlib.shake_256(self._key + next(self._count).to_bytes(8, "little")).digest(size)


_entropy = _Entropy()


class _Draws(random.Random):
    """Python's generator where it is given a seed; else a stream that cannot be foretold from what it gave before."""

    def seed(self, a: Any = None, version: int = 2) -> None:
        self._start(os.urandom(32)) if a is None else self._given(a, version)

    def _start(self, key: bytes) -> None:
        self._word: Callable[[], int] | None = _words(key).__next__
        self.gauss_next = None

    def _given(self, a: Any, version: int) -> None:
        if _of_the_clock(a):
            return self._start(_entropy.bound_to(a))
        self._word = None
        return super().seed(a, version)

    def random(self) -> float:
        if self._word is None:
            return super().random()
        return ((self._word() >> 5) * 67108864 + (self._word() >> 6)) / 9007199254740992

    def getrandbits(self, k: int, /) -> int:
        if self._word is None:
            return super().getrandbits(k)
        if 0 < k <= 32:
            return self._word() >> (32 - k)
        if k < 0:
            raise ValueError("number of bits must be non-negative")
        whole = 0
        for _ in range(-(-k // 32)):
            whole = whole << 32 | self._word()
        return whole >> (-k % 32)

    def getstate(self) -> tuple[Any, ...]:
        if self._word is None:
            return super().getstate()
        key = os.urandom(32)
        self._start(key)
        return (key,)

    def setstate(self, state: tuple[Any, ...]) -> None:
        if len(state) == 1:
            return self._start(state[0])
        self._word = None
        return super().setstate(state)


def _of_the_clock(seed: Any) -> bool:
    """Any fraction; a whole number within a day of the time in seconds, in milli-, micro- or nanoseconds, or within an
    hour of the time since the start in nanoseconds; and this process's number, which a program can guess as well.
    """
    if not isinstance(seed, int):
        return isinstance(seed, float)
    now = time.time()
    near = any(abs(seed - now * unit) < 86_400 * unit for unit in (1, 10**3, 10**6, 10**9))
    return near or 10**9 < seed < time.monotonic_ns() + 10**9 < seed + 36 * 10**11 or seed == os.getpid()


def _words(key: bytes) -> Iterator[int]:
    """Numbers of 32 bits without end."""
    for count in itertools.count():
        yield from _WORDS.unpack(hashlib.shake_256(key + count.to_bytes(8, "little")).digest(_WORDS.size))
