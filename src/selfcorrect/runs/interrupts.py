"""One process at a time in a run folder; and what Ctrl-C and SIGTERM do to it."""

import contextlib
import fcntl
import os
import queue
import signal
import socket
import threading
import time
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from selfcorrect.errors import ConfigError, TrainingInterrupted, UserError

LOCK = ".lock"
CONVERTED = 5.0  # seconds after an interrupt in which an error may be what became of it
_OF_C = (ValueError, RuntimeError, SystemError)
SAME_PRESS = 1.0  # seconds in which a second Ctrl-C is the first one again: launchers pass on what a terminal sends too


@contextmanager
def alone(path: Path, instead: str = ", or choose another name") -> Iterator[None]:
    """Holds the run folder against other processes; the lock goes with the process, however it ends.

    Folders that were made for the lock alone go again where no run came of them. instead: what else to do than wait.
    """
    new = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    lock = path / LOCK
    try:
        with lock.open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ConfigError(f"{path} is being written by another process; wait for it{instead}") from None
            yield
    finally:
        if new and [file.name for file in path.iterdir()] == [lock.name]:
            lock.unlink()
            with contextlib.suppress(OSError):  # another run may have come beside it
                for folder in new:
                    folder.rmdir()


class Stop:
    """asked: the step under way is to be the last. now: outside a step, where a signal need not wait.

    raised: a signal has broken into what was going on.
    waits: of several processes, which stop together when they next meet (parallel/ranks.py).
    unsaved: steps done since the last checkpoint, which go with the step under way. lost: what went, in words.
    """

    def __init__(self) -> None:
        self.asked, self.now, self.waits, self.raised = False, True, False, False
        self.unsaved, self.lost = 0, ""
        self.signal: int = signal.SIGINT
        self._since = 0.0
        self._heard: float | None = None  # when the first signal came in a step
        self._again = False  # a second Ctrl-C came while the first still waited
        self._notices: queue.SimpleQueue[str | None] = queue.SimpleQueue()  # its put may be called in a signal handler

    def handle(self, signum: int, frame: types.FrameType | None) -> None:
        """The first signal lets the step end, and says so; a second Ctrl-C does not wait. SIGTERM loses no step."""
        goes_on = self.waits or not self.now
        same = time.monotonic() - self._since < SAME_PRESS and (self.raised or not self._again)
        if self.asked and (same or (signum == signal.SIGTERM and goes_on)):
            return
        again, self.asked, self.signal, self._since = self.asked or self._again, True, signum, time.monotonic()
        if again or not goes_on:
            self.raised = True
            raise KeyboardInterrupt
        if not self.now:
            self._notice()

    def hear(self, signum: int) -> None:
        """As a signal comes, in a thread: torch's backward pass may keep `handle` waiting for minutes, and bring it one
        signal then for all that came of a kind.
        """
        if self.now:
            return
        if self._heard is None:
            self._heard = time.monotonic()
            self._notice()
        elif signum == signal.SIGINT and time.monotonic() - self._heard >= SAME_PRESS:
            self._again = True

    def _notice(self) -> None:
        more = f" and the {self.unsaved} before it" if self.unsaved else ""
        self._notices.put(f"stopping after this step (Ctrl-C again to stop now, losing it{more})")

    @contextmanager
    def told_apart(self) -> Iterator[None]:
        """Code in C makes an error of its own of an interrupt (torch's reading of files, a ValueError): that is one.

        What the disk says while something is saved all the same is not.
        """
        try:
            yield
        except (UserError, OSError):
            raise
        except Exception as error:
            if self.raised and time.monotonic() - self._since < CONVERTED and isinstance(error, _OF_C):
                raise KeyboardInterrupt from error
            raise

    def tell(self, say: Callable[[str], None]) -> None:
        """Says, once, what signals bring: a handler itself must not touch the terminal. Until `done`."""
        told = False
        while (notice := self._notices.get()) is not None:
            if not told:
                say(notice)
            told = True

    def done(self) -> None:
        self._notices.put(None)


@contextmanager
def interruptible(say: Callable[[str], None]) -> Iterator[Stop]:
    """Ctrl-C and SIGTERM let the step under way end; outside a step they stop at once, by KeyboardInterrupt."""
    stop = Stop()
    teller = threading.Thread(target=stop.tell, args=(say,), daemon=True)
    teller.start()
    try:
        with _handled(stop), _heard(stop):
            yield stop
    finally:
        stop.done()
        teller.join()


@contextmanager
def _heard(stop: Stop) -> Iterator[None]:
    """Signals reach `stop.hear` too; not outside the main thread, nor where someone else is woken by them."""
    heard, written = socket.socketpair()
    written.setblocking(False)
    try:
        before = signal.set_wakeup_fd(written.fileno(), warn_on_full_buffer=False)
    except ValueError:
        before = None
    if before != -1:
        if before is not None:
            signal.set_wakeup_fd(before)
        heard.close()
        written.close()
        yield
        return
    maker, listener = os.getpid(), threading.Thread(target=_listen, args=(heard, stop), daemon=True)
    _written.add(written.fileno())
    listener.start()
    try:
        yield
    finally:
        try:
            _hear_no_more()
        finally:
            _hear_no_more()  # where a Ctrl-C broke into the first: nothing is to be written to what is closed
            if os.getpid() == maker:  # a child that was forked here would end its parent's hearing
                written.send(_END)  # closing would not do: a child may have it open
                listener.join()
        heard.close()
        written.close()


_written: set[int] = set()  # what signals are written to: one file at the most, of this process
_END = b"\0"  # no signal has this number


def _listen(heard: socket.socket, stop: Stop) -> None:
    while (came := heard.recv(1)) not in (_END, b""):  # nothing: closed without a word
        if signal.getsignal(came[0]) == stop.handle:
            stop.hear(came[0])


def _hear_no_more() -> None:
    """In a child too, whose signals are not its parent's; what someone else has set since stays."""
    with contextlib.suppress(ValueError):  # a child of another thread's
        if _written and (now := signal.set_wakeup_fd(-1)) not in _written:
            signal.set_wakeup_fd(now)
    _written.clear()


os.register_at_fork(after_in_child=_hear_no_more)


@dataclass
class Stopped:
    """What a user is told when the work is stopped."""

    told: Callable[[], str] = lambda: "nothing was done yet"


@contextmanager
def stoppable() -> Iterator[Stopped]:
    """Ctrl-C and SIGTERM end the block as TrainingInterrupted with what `told` says by then; what is kept stays."""
    stop, stopped = Stop(), Stopped()
    try:
        with _handled(stop), stop.told_apart():
            yield stopped
    except KeyboardInterrupt:
        raise TrainingInterrupted(f"stopped; {stopped.told()}", 128 + stop.signal) from None


@contextmanager
def _handled(stop: Stop) -> Iterator[None]:
    """Ctrl-C and SIGTERM go to `stop`; not outside the main thread, where the caller handles its own."""
    before = {}
    try:
        with contextlib.suppress(ValueError):
            for signum in (signal.SIGINT, signal.SIGTERM):
                before[signum] = signal.signal(signum, stop.handle)
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
