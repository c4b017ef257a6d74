"""Parts of a measurement on a card: each has its seconds, and leaves what it found until then, however it ends."""

import gc
import json
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO

import torch

Found = dict[str, Any]
Part = Callable[[Found], None]  # puts what it finds into the dict as it goes


class OutOfTimeError(BaseException):
    """A part has used up its seconds. No Exception: code that takes those for a model's own would go on."""


def run_parts(parts: list[tuple[str, float, Part]], end: float, out: TextIO) -> None:
    """One after the other, as far as the time goes: a line of each. parts: name, seconds at the most, what it does."""
    for name, seconds, part in parts:
        line = {"part": name, **attempt(part, min(seconds, end - time.monotonic()))}
        for file in (out, None):
            print(json.dumps(line), file=file, flush=True)
        release()


def attempt(part: Part, seconds: float) -> Found:
    """What the part found, and in a word why no more; always with the seconds it took."""
    start, found = time.monotonic(), Found()
    try:
        with limited(seconds):
            part(found)
    except OutOfTimeError:
        found |= {"stopped": "time", "limit_seconds": round(max(0.0, seconds))}
    except Exception as error:  # noqa: BLE001 - the parts after it still have something to say
        found["failed"] = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:200]}"
    return {**found, "seconds": round(time.monotonic() - start, 1)}


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Raises OutOfTimeError inside, once the seconds are over."""

    def stop(*_: Any) -> None:
        raise OutOfTimeError

    if seconds <= 0:
        raise OutOfTimeError
    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def release() -> None:
    """What nothing holds any more goes back to the card, trainers in circles too; peaks count from here."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def peak_gigabytes() -> float | None:
    return torch.cuda.max_memory_allocated() / 1e9 if torch.cuda.is_available() else None
