"""asyncio without the kernel's help: an event loop that a confined process may run (stdlib only).

The usual loop asks for a socket pair and for epoll, which are refused. Without files and sockets there is nothing to
watch but the clock and other threads, so this one waits for those alone.
"""

import asyncio
import threading
from typing import Any


class ClockLoop(asyncio.BaseEventLoop):
    """Timers, tasks and threads. What needs a descriptor raises NotImplementedError or PermissionError."""

    def __init__(self) -> None:
        super().__init__()
        self._selector = _Waiter()

    def _process_events(self, event_list: Any) -> None:
        """There are none."""

    def _write_to_self(self) -> None:
        self._selector.woken.set()


class _Waiter:
    """What the base class asks for events."""

    def __init__(self) -> None:
        self.woken = threading.Event()

    def select(self, timeout: float | None = None) -> list[Any]:
        self.woken.wait(timeout)
        self.woken.clear()
        return []


def install() -> None:
    """asyncio.run, new_event_loop and the like take this loop from now on."""
    type(asyncio.get_event_loop_policy())._loop_factory = ClockLoop  # type: ignore[attr-defined]
