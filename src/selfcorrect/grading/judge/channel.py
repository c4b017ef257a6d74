"""The judge's end of a program: questions out, plain data in (stdlib only).

One question at a time: a program that held the later ones too could read answers out of their arguments.
"""

import builtins
import collections.abc
import hashlib
import itertools
import secrets
from collections.abc import Generator
from typing import Any, NoReturn

from selfcorrect.grading.judge.verdict import Reason
from selfcorrect.grading.judge.wire import (
    Frames,
    NotPlainError,
    ProtocolError,
    TooDeepError,
    decode,
    dumps,
    encode,
    loads,
    write_frame,
)

REPLY_BYTES = 1 << 24  # of an answer, at most
_DETAIL = 300


class StoppedError(BaseException):
    """The program can answer no more. Not an Exception, so that no test's `except` takes it for its own."""


class TestsError(Exception):
    """The tests themselves cannot be run: the data set's fault, not the program's."""


class Remote:
    """An object that lives in the program's process. It equals nothing here but itself."""

    __slots__ = ("_called", "_channel", "_number", "_true")

    def __init__(self, channel: "Channel", number: int, true: bool, called: str) -> None:
        for name, value in (("_channel", channel), ("_number", number), ("_true", true), ("_called", called)):
            object.__setattr__(self, name, value)

    def __bool__(self) -> bool:
        return bool(self._true)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(f"{self._called} object of the program has no {name} here")
        return self._channel.ask("get", name, of=self._number)

    def __setattr__(self, name: str, value: Any) -> None:
        self._channel.ask("set", name, (value,), of=self._number)

    def __call__(self, *values: Any, **named: Any) -> Any:
        return self._channel.ask("call", "__call__", values, named, of=self._number)


class RemoteCoroutine(Remote):
    """What an `async def` of the program gives. Awaited here, it runs there, from beginning to end."""

    __slots__ = ()

    def __await__(self) -> Generator[None, None, Any]:
        return self._run()
        yield

    def send(self, value: Any) -> NoReturn:
        raise StopIteration(self._run())

    def throw(self, *error: Any) -> NoReturn:
        raise error[-1] if isinstance(error[-1], BaseException) else error[0]

    def close(self) -> None:
        """It has not begun, or it is done."""

    def _run(self) -> Any:
        return self._channel.ask("await", "", of=self._number)


collections.abc.Coroutine.register(RemoteCoroutine)


class Channel:
    """Questions to one program, in turn. After the first breach every further question stops the tests."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor, self._frames = descriptor, Frames(descriptor, REPLY_BYTES)
        self._objects: dict[int, Remote] = {}
        self.breach: tuple[Reason, str] | None = None
        self.asked = 0
        self.raised: BaseException | None = None  # what the program raised last

    def open(self, source: str, prelude: bool) -> None:
        self._exchange(dumps(["load", source, None, prelude]))

    def ask(self, do: str, name: str, values: tuple[Any, ...] = (), named: Any = None, of: int | None = None) -> Any:
        """One call in the program's process. Raises what it raises, as a builtin kind; StoppedError where it cannot."""
        if self.breach:
            raise StoppedError
        self.asked += 1
        pairs = [list(pair) for pair in named.items()] if named else []
        try:
            question = dumps([do, name, of, encode([list(values), pairs], _argument)])
        except TooDeepError as error:  # only what the program answered before can be that deep
            self.stop(Reason.PROTOCOL, f"the tests pass on an answer {error}")
        except NotPlainError as error:
            raise TestsError(str(error)) from None
        return self._exchange(question)

    def _exchange(self, question: bytes) -> Any:
        """Send, wait, understand. An answer must repeat its question's mark, so none can be written beforehand."""
        mark = _mark()
        try:
            write_frame(self._descriptor, b'["%s",%s]' % (mark.encode(), question))
            answer = self._frames.read()
        except OSError:
            answer = None
        except ProtocolError as error:
            self.stop(Reason.PROTOCOL, str(error))
        if answer is None:
            self.stop(Reason.CRASH, "the process ended before it had answered")
        try:
            return self._understand(loads(answer), mark)
        except ProtocolError as error:
            self.stop(Reason.PROTOCOL, str(error))

    def _understand(self, answer: Any, mark: str) -> Any:
        if type(answer) is not list or len(answer) != 3:
            raise ProtocolError("an answer of the wrong form")
        told, kind, contents = answer
        if told != mark:
            raise ProtocolError("an answer that was not asked for")
        match kind:
            case "ok":
                return decode(contents, self._remote)
            case "raised":
                self._raise(contents)
            case "endless":
                self.stop(Reason.TIMEOUT, "the answer is an iterator without end")
            case "unreadable":
                raise ProtocolError(f"the answer cannot be read: {printable(contents)}")
        raise ProtocolError("an answer of unknown kind")

    def _raise(self, contents: Any) -> NoReturn:
        if type(contents) is not list or list(map(type, contents)) != [str, str, str]:
            raise ProtocolError("an exception of the wrong form")
        kind = getattr(builtins, contents[0], None)
        if not (isinstance(kind, type) and issubclass(kind, BaseException)):
            raise ProtocolError("an exception of unknown kind")
        text = printable(f"{contents[1]}: {contents[2]}" if contents[2] else contents[1])
        if issubclass(kind, MemoryError):
            self.stop(Reason.MEMORY, text)
        if not issubclass(kind, Exception):
            kind = _ExitError  # it would end this process
        elif issubclass(kind, StopIteration | StopAsyncIteration | UnicodeError):
            kind = RuntimeError  # it would end a test's loop as if all were well; or needs more than a text
        try:
            self.raised = kind(text)
        except TypeError:  # a kind that needs more than a text, such as ExceptionGroup
            self.raised = RuntimeError(text)
        raise self.raised

    def _remote(self, contents: Any) -> Remote:
        if type(contents) is not list or list(map(type, contents)) != [int, str, bool]:
            raise ProtocolError("an object of the wrong form")
        number, called, true = contents
        if number not in self._objects:
            kind = RemoteCoroutine if called == "coroutine" else Remote
            self._objects[number] = kind(self, number, true, printable(called))
        return self._objects[number]

    def stop(self, reason: Reason, detail: str) -> NoReturn:
        self.breach = self.breach or (reason, detail)
        raise StoppedError


class _ExitError(Exception):
    """SystemExit or KeyboardInterrupt of the program: they must not look like ours."""


_SECRET, _count = secrets.token_bytes(32), itertools.count()


def _mark() -> str:
    return hashlib.blake2b(next(_count).to_bytes(8, "little"), key=_SECRET, digest_size=8).hexdigest()


def _argument(value: Any) -> Any:
    if isinstance(value, Remote):
        return {"h": object.__getattribute__(value, "_number")}
    name = getattr(value, "__name__", "")
    if getattr(builtins, str(name), None) is value:  # int, len, ...
        return {"h": name}
    raise NotPlainError(f"the tests pass an argument of type {type(value).__name__}, which cannot be sent to a program")


def printable(value: object) -> str:
    """For a person: short, printable, one line."""
    shown = value if type(value) is str else ""
    return "".join(c if c.isprintable() else " " for c in shown[:_DETAIL])
