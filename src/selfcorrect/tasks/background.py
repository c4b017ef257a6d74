"""Work in daemon threads: the process ends without waiting for them, whatever they do (stdlib only).

concurrent.futures joins the threads of its pools when the process ends, so a call that never returns would keep it for
ever. A thread cannot be ended from outside either: a call that takes too long is left to itself.
"""

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future
from typing import Any

PATIENCE = 10.0  # seconds of a call after which it is first told of


class Background(Executor):
    """One thread that does what it is given, in order."""

    def __init__(self, name: str) -> None:
        self._work: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._serve, name=name, daemon=True)
        self._thread.start()

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        self._work.put((future, lambda: fn(*args, **kwargs)))
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        with contextlib.suppress(queue.Empty):  # which the thread may make it at any time
            while cancel_futures:
                if (given := self._work.get_nowait()) is not None:
                    given[0].cancel()
        self._work.put(None)
        if wait:
            self._thread.join()

    def _serve(self) -> None:
        while (given := self._work.get()) is not None:
            future, work = given
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(work())
            except BaseException as error:  # noqa: BLE001 - whoever asks for the result is told
                future.set_exception(error)


class Overdue:
    """Stands for the result of a call that took too long."""


class Timed:
    """One function over many items, each call for at most `seconds`, in `workers` threads. One batch at a time."""

    def __init__(
        self, call: Callable[[Any], Any], workers: int, seconds: float, slow: Callable[[Any, float], None],
        overdue: Callable[[Any], None],
    ) -> None:  # fmt: skip
        """slow(item, s): told that a call is under way for s seconds; the next one told of takes twice as many.

        overdue(item): told of each call that is given up; what it raises ends the batch.
        """
        self.seconds, self._call, self._workers = seconds, call, workers
        self._slow, self._overdue, self._patience = slow, overdue, PATIENCE
        self._given_up: list[threading.Thread] = []
        self._batch: _Batch | None = None

    @property
    def running(self) -> int:
        """Calls that were given up and have not come back yet."""
        self._given_up = [thread for thread in self._given_up if thread.is_alive()]
        return len(self._given_up)

    def over(self, items: Sequence[Any]) -> list[Any] | None:
        """Results in order: what a call gave, the exception that it raised, or Overdue. None where it was stopped."""
        batch = self._batch = _Batch(self._call, items)
        with batch.changed:
            try:
                for _ in range(min(self._workers, len(items))):
                    batch.start()
                while len(batch.found) < len(items) and not batch.stopped:
                    batch.changed.wait(self._look(batch))
            finally:
                batch.stopped = True
        done = len(batch.found) == len(items)
        return [batch.found[place] for place in range(len(items))] if done else None

    def stop(self) -> None:
        """The batch under way begins no more calls, and whoever waits for it waits no longer."""
        if self._batch is not None:
            with self._batch.changed:
                self._batch.stopped = True
                self._batch.changed.notify_all()

    def _look(self, batch: "_Batch") -> float:
        """Gives up what takes too long, tells of what takes long; gives the seconds until either may be next."""
        now = time.monotonic()
        nexts = [self.seconds, self._patience]  # of calls that begin meanwhile
        for place, (began, thread) in list(batch.under_way.items()):
            item, spent = batch.items[place], now - began
            if spent >= self.seconds:
                del batch.under_way[place]
                batch.found[place] = Overdue()
                self._given_up.append(thread)
                self._overdue(item)
                batch.start()
                continue
            if spent >= self._patience:
                self._slow(item, spent)
                self._patience *= 2
            nexts.append(min(self._patience, self.seconds) - spent)
        return max(0.0, min(nexts))


class _Batch:
    """found, under_way: by place, results, and when a call began in which thread. Guarded by `changed`."""

    def __init__(self, call: Callable[[Any], Any], items: Sequence[Any]) -> None:
        self.changed = threading.Condition()
        self.items, self._call, self._next, self.stopped = items, call, 0, False
        self.found: dict[int, Any] = {}
        self.under_way: dict[int, tuple[float, threading.Thread]] = {}

    def start(self) -> None:
        threading.Thread(target=self._work, name="grade", daemon=True).start()

    def _work(self) -> None:
        while True:
            with self.changed:
                if self.stopped or self._next == len(self.items):
                    return
                place, self._next = self._next, self._next + 1
                self.under_way[place] = time.monotonic(), threading.current_thread()
            try:
                result = self._call(self.items[place])
            except BaseException as error:  # noqa: BLE001 - it is a result
                result = error
            with self.changed:
                if self.under_way.pop(place, None) is None:
                    return  # given up: another thread goes on in its place
                self.found[place] = result
                if len(self.found) == len(self.items):
                    self.changed.notify_all()
