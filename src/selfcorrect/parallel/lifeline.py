"""A socket between rank 0 and every other process: one that is gone is known by name at once, whatever others wait for.

The kernel closes a dead process's sockets, so nothing depends on clocks, and a slow process is never taken for a dead
one. A host that vanishes is noticed by TCP's own probes. A word is a line of JSON:

    {"rank": 1, "token": ..., "about": "pid 7 on host"}   to rank 0, once
    {"ended": "why" or null}                              this process ends by itself; null: no other waits for it
    {"lost": 1, "text": ..., "died": true or false}       from rank 0: what became of another one
"""

import contextlib
import errno
import json
import os
import secrets
import socket
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from selfcorrect.errors import ConfigError, first_line
from selfcorrect.parallel.launch import Launch

GRACE = 20.0  # seconds in which a process that hears of a loss can end by itself; launchers kill after 30
_JOINING = 120.0  # seconds
_SILENT = 25  # seconds after which a host that answers nothing counts as gone
_UNREACHABLE = {errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EHOSTDOWN, errno.ENETDOWN}


@dataclass(frozen=True, slots=True)
class Loss:
    """A rank that is no more. died: it said nothing."""

    rank: int
    text: str
    died: bool

    def __str__(self) -> str:
        return f"rank {self.rank} {self.text}"


class Lifeline:
    """loss: the first rank that was lost. saved: what is kept of the run, in words, for a last line. agreed: whether
    what was raised last was raised on all ranks, so that none waits for another in vain.
    """

    def __init__(self, launch: Launch, from_first: Callable[[Any], Any]) -> None:
        """from_first: gives every rank the value of rank 0. Raises ConfigError where another cannot be reached."""
        self.rank, self._local = launch.rank, launch.local
        self.loss: Loss | None = None
        self.agreed = False
        self.saved: Callable[[], str] = lambda: "nothing was done yet"
        self._closed, self._lock, self._heard = False, threading.Lock(), threading.Event()
        self._lines: dict[int, socket.socket] = {}
        self._about: dict[int, str] = {}
        try:
            if self.rank == 0:
                self._accept(launch.size, from_first)
            else:
                self._connect(launch.address, from_first)
        except OSError as error:
            others = [f"rank {rank}" for rank in range(1, launch.size) if rank not in self._lines]
            missing = f"rank 0 at {launch.address}" if self.rank else " and ".join(others)
            raise ConfigError(
                f"rank {self.rank} of {launch.size} has no line to {missing} ({first_line(error)}); hosts of a run "
                "reach each other at any port above 1023: see to the firewall between them, and to MASTER_ADDR"
            ) from error
        for other, line in self._lines.items():
            threading.Thread(target=self._listen, args=(other, line), daemon=True, name=f"rank {other}").start()

    def _accept(self, size: int, from_first: Callable[[Any], Any]) -> None:
        both = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if both else socket.AF_INET
        token = secrets.token_hex(16)
        with socket.create_server(("", 0), family=family, backlog=size, dualstack_ipv6=both) as server:
            server.settimeout(_JOINING)
            from_first((server.getsockname()[1], token))
            while len(self._lines) < size - 1:
                line, _ = server.accept()
                line.settimeout(5.0)
                with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # a stranger's
                    told = json.loads(line.recv(1024))
                    if secrets.compare_digest(str(told["token"]), token):
                        self._lines[int(told["rank"])], self._about[int(told["rank"])] = line, str(told["about"])
                        _keep_alive(line)
                        continue
                line.close()

    def _connect(self, address: str, from_first: Callable[[Any], Any]) -> None:
        port, token = from_first(None)
        line = socket.create_connection((address, port), timeout=_JOINING)
        _keep_alive(line)
        about = f"pid {os.getpid()} on {socket.gethostname()}"
        self._lines[0], self._about[0] = line, f"on {address}"
        self._send(0, {"rank": self.rank, "token": token, "about": about})

    def _listen(self, other: int, line: socket.socket) -> None:
        ended, how = False, "died without a word: killed, or out of memory"
        try:
            for text in line.makefile("r", encoding="utf-8"):
                word = json.loads(text)
                if "lost" in word:
                    self._lose(Loss(word["lost"], word["text"], word["died"]))
                else:
                    ended = True
                    if word["ended"]:
                        self._lose(Loss(other, f"({self._about[other]}) ended: {word['ended']}", died=False))
        except OSError as error:
            if error.errno in _UNREACHABLE:
                how = f"cannot be reached any more: its host is down, or the network between ({error.strerror})"
        except (ValueError, KeyError):
            pass
        if not ended:
            self._lose(Loss(other, f"({self._about[other]}) {how}", died=True))

    def _lose(self, loss: Loss) -> None:
        with self._lock:
            if self._closed or self.loss is not None:
                return
            self.loss = loss
        self._heard.set()
        for other in self._lines if self.rank == 0 else ():
            self._send(other, {"lost": loss.rank, "text": loss.text, "died": loss.died})
        last = threading.Timer(GRACE, self._give_up)
        last.daemon = True
        last.start()

    def _give_up(self) -> None:
        """The main thread waits for a process that is gone, and nothing in it can be told so."""
        if not self._closed:
            if self.speaks:
                sys.stderr.write(f"error: {self.loss}; {self.saved()}\n")
                sys.stderr.flush()
            os._exit(2)

    @property
    def speaks(self) -> bool:
        """Whether this process tells the user: rank 0; where that died, the next one, and one on each other host."""
        first_died = self.loss is not None and self.loss.rank == 0 and self.loss.died
        return self.rank == 0 or (first_died and (self.rank == 1 or self._local == 0))

    def wait(self, seconds: float) -> Loss | None:
        """The loss, once it is known; None where none is known by then."""
        self._heard.wait(seconds)
        return self.loss

    def end(self, why: str | None) -> None:
        """Say that this process ends; why: where others would wait for it in vain."""
        with self._lock:
            self._closed = True
        for other, line in self._lines.items():
            self._send(other, {"ended": why})
            with contextlib.suppress(OSError):
                line.shutdown(socket.SHUT_WR)

    def _send(self, other: int, word: dict[str, Any]) -> None:
        with contextlib.suppress(OSError):
            self._lines[other].sendall((json.dumps(word) + "\n").encode())


def _keep_alive(line: socket.socket) -> None:
    """A peer that is silent for 10 seconds is probed, and given up after 15 more; so is one that takes nothing."""
    line.settimeout(None)
    line.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    probes = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3, "TCP_USER_TIMEOUT": 1000 * _SILENT}
    for name, value in probes.items():
        if hasattr(socket, name):
            line.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
