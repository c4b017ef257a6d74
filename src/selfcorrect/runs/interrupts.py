"""One process at a time in a run folder; and what Ctrl-C does to it."""

import dataclasses
import fcntl
import signal
import types
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from selfcorrect.errors import ConfigError


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """Holds the run folder against other processes; the lock goes with the process, however it ends."""
    path.mkdir(parents=True, exist_ok=True)
    with (path / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(
                f"{path} is being trained by another process; wait for it, or choose another name"
            ) from None
        yield


@dataclasses.dataclass
class Stop:
    """Set by the first Ctrl-C; `now` says that a second one, or one outside a step, need not wait."""

    asked: bool = False
    now: bool = False


@contextmanager
def interruptible() -> Iterator[Stop]:
    """The first Ctrl-C lets the step under way end; outside a step, and the second time, it stops at once."""
    stop = Stop(now=True)

    def handle(signum: int, frame: types.FrameType | None) -> None:
        if stop.now or stop.asked:
            raise KeyboardInterrupt
        stop.asked = True

    try:
        before = signal.signal(signal.SIGINT, handle)
    except ValueError:  # not in the main thread: the caller handles its own interrupts
        yield stop
        return
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)
