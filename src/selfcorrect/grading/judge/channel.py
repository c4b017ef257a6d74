"""The judge's end of a program: questions out, plain data in (floor 1; stdlib only).

Tests mostly ask every program the same. What they asked before is sent together with the program, so that all of it is
answered in one turn of the program's process; each answer still waits until the tests come to its question. Tests that
then ask something else (their questions hang on the answers) are run again, one question at a time.
"""

import builtins
import hashlib
import itertools
import secrets
from collections import deque
from collections.abc import Iterable
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
    frame,
    loads,
    write,
)

_DETAIL = 300
_AHEAD, _AHEAD_BYTES = 256, 1 << 14  # of questions sent before their turn: less than what a socket holds


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


class Channel:
    """Questions to one program, in turn. After the first breach every further question stops the tests.

    ahead: questions to send with the program. astray: whether the tests then asked another one, so that what the
    program was asked is not what they would have asked.
    """

    def __init__(self, descriptor: int, most: int, ahead: Iterable[bytes] = ()) -> None:
        self._descriptor, self._frames = descriptor, Frames(descriptor, most)
        self._sent = deque((question, _mark()) for question in ahead)
        self._objects: dict[int, Remote] = {}
        self.breach: tuple[Reason, str] | None = None
        self.astray = False
        self.asked: list[bytes] = []
        self.raised: BaseException | None = None  # what the program raised last

    def open(self, source: str, prelude: bool) -> None:
        load = dumps(["load", source, None, prelude, None])
        self._sent.appendleft((load, _mark()))
        self._send(b"".join(frame(_marked(*sent)) for sent in self._sent))
        self._answer(load)

    def ask(self, do: str, name: str, values: tuple[Any, ...] = (), named: Any = None, of: int | None = None) -> Any:
        """One call in the program's process. Raises what it raises, as a builtin kind; StoppedError where it cannot."""
        if self.breach:
            raise StoppedError
        try:
            question = _question(do, name, of, values, named)
        except TooDeepError as error:  # only what the program answered before can be that deep
            self.stop(Reason.PROTOCOL, f"the tests pass on an answer {error}")
        self.asked.append(question)
        if not self._sent:
            self._sent.append((question, _mark()))
            self._send(frame(_marked(*self._sent[0])))
        return self._answer(question)

    def _send(self, data: bytes) -> None:
        try:
            write(self._descriptor, data)
        except OSError:
            self.stop(Reason.CRASH, "the process ended before it was asked")

    def _answer(self, question: bytes) -> Any:
        """Wait, understand. An answer must repeat its question's mark, so none can be written beforehand."""
        sent, mark = self._sent.popleft()
        if sent != question:
            self.astray = True
            self.stop(Reason.GRADER_FAILED, "the tests asked something else this time")
        try:
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
        if type(contents) is not list or list(map(type, contents)) != [int, str, bool, bool]:
            raise ProtocolError("an object of the wrong form")
        number, called, true, _ = contents
        return self._objects.setdefault(number, Remote(self, number, true, printable(called)))

    def stop(self, reason: Reason, detail: str) -> NoReturn:
        self.breach = self.breach or (reason, detail)
        raise StoppedError


class _ExitError(Exception):
    """SystemExit or KeyboardInterrupt of the program: they must not look like ours."""


_SECRET, _count = secrets.token_bytes(32), itertools.count()


def _mark() -> str:
    return hashlib.blake2b(next(_count).to_bytes(8, "little"), key=_SECRET, digest_size=8).hexdigest()


def _marked(question: bytes, mark: str) -> bytes:
    return b'["%s",%s]' % (mark.encode(), question)


def _question(do: str, name: str, of: int | None, values: tuple[Any, ...], named: Any) -> bytes:
    pairs = [list(pair) for pair in named.items()] if named else []
    try:
        try:
            return dumps([do, name, of, encode(list(values), _argument), encode(pairs, _argument)])
        except ValueError:  # an integer of more digits than json writes
            exact = [encode(each, _argument, exact=True) for each in (list(values), pairs)]
            return dumps([do, name, of, *exact])
    except TooDeepError:
        raise
    except NotPlainError as error:
        raise TestsError(str(error)) from None


def _argument(value: Any) -> Any:
    if isinstance(value, Remote):
        return {"h": object.__getattribute__(value, "_number")}
    name = getattr(value, "__name__", "")
    if getattr(builtins, str(name), None) is value:  # int, len, ...
        return {"h": name}
    raise NotPlainError(f"the tests pass an argument of type {type(value).__name__}, which cannot be sent to a program")


def to_ask_ahead(asked: list[bytes]) -> list[bytes]:
    """Those questions, from the first on, that can be asked of another program before their turn.

    A question about an object of the program's (a number, in the third place or as an argument) is none of them.
    """
    taken: list[bytes] = []
    left = _AHEAD_BYTES
    for question in asked[:_AHEAD]:
        left -= len(question)
        if left < 0 or b'{"h":' in question or loads(question)[2] is not None:
            break
        taken.append(question)
    return taken


def printable(value: object) -> str:
    """For a person: short, printable, one line."""
    shown = value if type(value) is str else ""
    return "".join(c if c.isprintable() else " " for c in shown[:_DETAIL])
