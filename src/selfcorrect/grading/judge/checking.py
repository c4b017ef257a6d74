"""The judge's process: runs a data set's tests, and asks the program's process at each call (floor 1; stdlib only).

Here are the tests and the expected values; the program is a socket at whose other end plain data comes from. The
supervisor above keeps time and memory, because data can be built to stall whoever reads it.
"""

import ast
import builtins
import hashlib
import itertools
import json
import os
import re
import secrets
import socket
import sys
from functools import lru_cache
from types import CodeType
from typing import Any, NoReturn

from selfcorrect.grading.judge.preload import seed
from selfcorrect.grading.judge.verdict import Reason
from selfcorrect.grading.judge.wire import (
    NotPlainError,
    ProtocolError,
    TooDeepError,
    decode,
    dumps,
    encode,
    loads,
    read_exactly,
    read_frame,
    write_frame,
)

_DETAIL = 300
_DEFINED = re.compile(r"^(?:def|class)[ \t]+(\w+)", re.MULTILINE)
_MODULES = frozenset({"collections", "copy", "datetime", "itertools", "math", "random", "re", "string", "sys"})


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
    """Questions to one program, in turn. After the first breach every further question stops the tests."""

    def __init__(self, descriptor: int, most: int) -> None:
        self._descriptor, self._most = descriptor, most
        self._objects: dict[int, Remote] = {}
        self.breach: tuple[Reason, str] | None = None
        self.asked = 0
        self.raised: BaseException | None = None  # what the program raised last

    def open(self, source: str, prelude: bool) -> None:
        self._exchange({"source": source, "prelude": prelude})

    def ask(self, do: str, name: str, values: tuple[Any, ...] = (), named: Any = None, of: int | None = None) -> Any:
        """One call in the program's process. Raises what it raises, as a builtin kind; StoppedError where it cannot."""
        self.asked += 1
        return self._exchange({"do": do, "name": name, "of": of, "arguments": (values, named or {})})

    def _exchange(self, request: dict[str, Any]) -> Any:
        """Send, wait, understand. An answer must repeat its question's mark, so none can be written beforehand."""
        if self.breach:
            raise StoppedError
        mark = _mark()
        try:
            write_frame(self._descriptor, _request({**request, "mark": mark}))
            answer = read_frame(self._descriptor, self._most)
        except OSError:
            answer = None
        except TooDeepError as error:  # only what the program answered before can be that deep
            self.stop(Reason.PROTOCOL, f"the tests pass on an answer {error}")
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
                raise ProtocolError(f"the answer cannot be read: {_text(contents)}")
        raise ProtocolError("an answer of unknown kind")

    def _raise(self, contents: Any) -> NoReturn:
        if type(contents) is not list or list(map(type, contents)) != [str, str, str]:
            raise ProtocolError("an exception of the wrong form")
        kind = getattr(builtins, contents[0], None)
        if not (isinstance(kind, type) and issubclass(kind, BaseException)):
            raise ProtocolError("an exception of unknown kind")
        text = _text(f"{contents[1]}: {contents[2]}" if contents[2] else contents[1])
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
        return self._objects.setdefault(number, Remote(self, number, true, _text(called)))

    def stop(self, reason: Reason, detail: str) -> NoReturn:
        self.breach = self.breach or (reason, detail)
        raise StoppedError


class _ExitError(Exception):
    """SystemExit or KeyboardInterrupt of the program: they must not look like ours."""


_SECRET, _count = secrets.token_bytes(32), itertools.count()


def _mark() -> str:
    return hashlib.blake2b(next(_count).to_bytes(8, "little"), key=_SECRET, digest_size=8).hexdigest()


def _request(request: dict[str, Any]) -> bytes:
    if "arguments" not in request:
        return dumps(request)
    arguments = request["arguments"]
    try:
        try:
            return dumps({**request, "arguments": encode(arguments, _argument)})
        except ValueError:  # an integer of more digits than json writes
            return dumps({**request, "arguments": encode(arguments, _argument, exact=True)})
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


def judge(descriptor: int, job: dict[str, Any]) -> tuple[Reason, str]:
    """Run the job's checks against the program at `descriptor`."""
    channel = Channel(descriptor, job["reply_bytes"])
    seed()
    try:
        channel.open(job["source"], job["prelude"])
        _run(channel, job["checks"])
    except StoppedError:
        pass
    except TestsError as error:
        return Reason.GRADER_FAILED, _text(str(error))
    except SystemExit:
        return channel.breach or (Reason.GRADER_FAILED, "the tests end the process")
    except MemoryError:
        return Reason.MEMORY, "the answer needs more memory than the judge may have"
    except Exception as error:  # noqa: BLE001 - the tests' own failure is the outcome
        return channel.breach or _failure(channel, error)
    return channel.breach or (Reason.PASSED, "")


def _failure(channel: Channel, error: Exception) -> tuple[Reason, str]:
    if error is channel.raised:
        return Reason.EXCEPTION, str(error)
    if isinstance(error, AssertionError):
        text = error.args[0] if error.args and type(error.args[0]) is str else ""
        return Reason.WRONG_ANSWER, _text(f"a test does not hold{': ' if text else ''}{text}")
    return Reason.WRONG_ANSWER, _text(f"the tests cannot use the answer: {type(error).__name__}")


def _run(channel: Channel, checks: dict[str, Any]) -> None:
    """Raises what the tests raise. Tests that never call the program prove nothing: TestsError."""
    remote = {checks["entry_point"]} if checks["entry_point"] else set(_DEFINED.findall(checks["reference"]))
    try:
        _execute(channel, checks, remote)
    except TestsError:
        raise
    except Exception:
        if channel.asked:
            raise
    if channel.asked or channel.breach:
        return
    _execute(channel, checks, _called_first(checks["code"]))  # a function may bear a builtin's name
    if not channel.asked:
        raise TestsError("the tests never call the program")


def _execute(channel: Channel, checks: dict[str, Any], remote: set[str]) -> None:
    names = _Names(channel, remote)
    exec(_compiled(checks["helpers"]), names)
    for name in remote:
        names[name] = _function(channel, name)  # a prompt's stub gives way to the program's function
    exec(_compiled(checks["setup"]), names)
    exec(_compiled(checks["code"]), names)
    if checks["entry_point"]:
        if not callable(dict.get(names, "check")):
            raise TestsError("entry_point is given, but the tests define no check(candidate)")
        names["check"](names[checks["entry_point"]])


class _Names(dict[str, Any]):
    """The tests' globals. A name that neither they nor Python define is a common module's, or the program's."""

    def __init__(self, channel: Channel, remote: set[str]) -> None:
        super().__init__(__name__="checks")
        self._channel, self._remote = channel, remote

    def __missing__(self, name: str) -> Any:
        if name.startswith("__") or (name not in self._remote and hasattr(builtins, name)):
            raise KeyError(name)
        if name in _MODULES and name not in self._remote:
            return sys.modules[name]
        return _function(self._channel, name)


def _function(channel: Channel, name: str) -> Any:
    def call(*values: Any, **named: Any) -> Any:
        return channel.ask("call", name, values, named)

    call.__name__ = call.__qualname__ = name
    return call


@lru_cache(maxsize=4096)
def _compiled(text: str) -> CodeType:
    try:
        return compile(text, "<tests>", "exec", dont_inherit=True)
    except (SyntaxError, ValueError, RecursionError) as error:
        raise TestsError(f"the tests cannot be compiled: {error}") from None


def _called_first(code: str) -> set[str]:
    """The function under test, where its name is a builtin's and nothing else tells so."""
    asserts = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Assert)]
    calls = [node.func for test in asserts[:1] for node in ast.walk(test) if isinstance(node, ast.Call)]
    return {calls[0].id} if calls and isinstance(calls[0], ast.Name) else set()


def _text(value: object) -> str:
    """For a person: short, printable, one line."""
    text = value if type(value) is str else ""
    return "".join(c if c.isprintable() else " " for c in text[:_DETAIL])


def serve(control: socket.socket) -> None:
    """Job after job until the supervisor hangs up: a JSON frame with a descriptor in, reason and detail out."""
    while True:
        header, descriptors, _, _ = socket.recv_fds(control, 4, 1)
        if len(header) < 4 or not descriptors:
            return
        [descriptor] = descriptors
        text = read_exactly(control.fileno(), int.from_bytes(header, "little"))
        if text is None:
            return
        job = json.loads(text)
        try:
            reason, detail = judge(descriptor, job)
        finally:
            os.close(descriptor)
        write_frame(control.fileno(), dumps([reason, detail]))
