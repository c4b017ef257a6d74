"""The judge's process: runs a data set's tests, and asks the program's process at each call (stdlib only).

Here are the tests and the expected values; the program is a socket at whose other end plain data comes from. The
supervisor above keeps time and memory, because data can be built to stall whoever reads it.
"""

import ast
import asyncio
import builtins
import gc
import json
import os
import re
import socket
import struct
import sys
from functools import lru_cache
from types import CodeType
from typing import Any

from selfcorrect.grading.judge import draws
from selfcorrect.grading.judge.channel import Channel, StoppedError, TestsError, printable
from selfcorrect.grading.judge.verdict import Reason
from selfcorrect.grading.judge.wire import dumps, write_frame

LENGTH = struct.Struct("<I")  # of a job
_DEFINED = re.compile(r"^(?:def|class)[ \t]+(\w+)", re.MULTILINE)
_MODULES = frozenset({"collections", "copy", "datetime", "itertools", "math", "random", "re", "string", "sys"})


def judge(descriptor: int, job: dict[str, Any]) -> tuple[Reason, str]:
    """Run the job's checks against the program at `descriptor`."""
    channel = Channel(descriptor)
    draws.start(bytes.fromhex(job["draws"]))
    asyncio.set_event_loop_policy(None)  # a loop that other tests set is not these tests'
    outcome = _outcome(channel, job)
    channel.raised = None  # it holds the tests' frames, and those hold it
    return outcome


def _outcome(channel: Channel, job: dict[str, Any]) -> tuple[Reason, str]:
    try:
        channel.open(job["source"], job["prelude"])
        _run(channel, _read(job["checks"]))
    except StoppedError:
        pass
    except TestsError as error:
        return Reason.GRADER_FAILED, printable(str(error))
    except SystemExit as error:
        if channel.asked and error.code not in (None, 0):  # how scripts say that a test does not hold
            return channel.breach or (Reason.WRONG_ANSWER, "the tests ended with a status other than 0")
        return channel.breach or (Reason.GRADER_FAILED, "the tests end the process")
    except MemoryError:
        return Reason.MEMORY, "the answer needs more memory than the judge may have"
    except Exception as error:  # noqa: BLE001 - the tests' own failure is the outcome
        return channel.breach or _failure(channel, error)
    return channel.breach or (Reason.PASSED, "")


@lru_cache(maxsize=4096)
def _read(checks: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(checks)
    return found


def _failure(channel: Channel, error: Exception) -> tuple[Reason, str]:
    if error is channel.raised:
        return Reason.EXCEPTION, str(error)
    if isinstance(error, AssertionError):
        text = error.args[0] if error.args and type(error.args[0]) is str else ""
        return Reason.WRONG_ANSWER, printable(f"a test does not hold{': ' if text else ''}{text}")
    return Reason.WRONG_ANSWER, printable(f"the tests cannot use the answer: {type(error).__name__}")


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


def serve(control: socket.socket) -> None:
    """Until the supervisor hangs up: LENGTH, a job as JSON and a descriptor in, reason and detail out."""
    gc.collect()
    gc.freeze()
    while True:
        data, descriptors, _, _ = socket.recv_fds(control, 1 << 16, 1)
        if len(data) < LENGTH.size or not descriptors:
            return
        (length,) = LENGTH.unpack_from(data)
        parts, missing = [data[LENGTH.size :]], length - (len(data) - LENGTH.size)
        while missing > 0:
            parts.append(os.read(control.fileno(), min(missing, 1 << 20)))
            if not parts[-1]:
                return
            missing -= len(parts[-1])
        try:
            answer = judge(descriptors[0], json.loads(b"".join(parts)))
        finally:
            os.close(descriptors[0])
        write_frame(control.fileno(), dumps(answer))
        gc.collect()  # what the tests left in cycles, large answers too, must not weigh on the next program
