"""What runs in the confined process: load an untrusted program, answer calls (floor 1; stdlib only).

Nothing here is a defence: the program shares this process and may change all of it. What leaves the process is data,
and the judge takes it as no more than that.
"""

import builtins
import sys
import types
from typing import Any

from selfcorrect.grading.judge.preload import PRELUDE
from selfcorrect.grading.judge.wire import (
    EndlessError,
    NotPlainError,
    decode,
    dumps,
    encode,
    loads,
    read_frame,
    write_frame,
)

_MOST = 1 << 28  # bytes of a request; the judge's own messages need no caution


def serve(channel: int) -> None:
    """Load the program that the first message holds, then answer calls until the judge hangs up."""
    first = read_frame(channel, _MOST)
    if first is None:
        return
    session, request = _Session(), loads(first)
    answer = session.load(**request)
    while True:
        write_frame(channel, answer)
        following = read_frame(channel, _MOST)
        if following is None:
            return
        answer = session.answer(**loads(following))


_BUILTINS = dict(vars(builtins))
_with_prelude: dict[str, Any] = {}


def prepare() -> None:
    """Before the forks: what every program starts with, and every path of this file run warm.

    The interpreter rewrites code that it runs often; done here, a forked process need not copy those pages. The
    prelude's names are given as builtins are, by one reference instead of sixty.
    """
    names: dict[str, Any] = {}
    exec(PRELUDE, names)
    _with_prelude.update({**_BUILTINS, **{name: value for name, value in names.items() if name != "__builtins__"}})
    request = {"do": "call", "name": "f", "of": None, "arguments": {"t": [{"t": [1, [2.5, "x"]]}, {"d": []}]}}
    for _ in range(40):
        session = _Session()
        session.load("", "def f(x, y):\n    return [x, (y, {'a': {1}})]\n", prelude=True)
        session.answer("", **loads(dumps(request)))
    sys.modules.pop("solution")


class _Session:
    """The loaded program, and those of its objects that the judge knows by number."""

    def __init__(self) -> None:
        self._module = types.ModuleType("solution")
        self._objects: list[Any] = []

    def load(self, mark: str, source: str, prelude: bool) -> bytes:
        sys.modules["solution"] = self._module
        names = self._module.__dict__
        try:
            names["__builtins__"] = _with_prelude if prelude else _BUILTINS
            exec(compile(source.removeprefix("\ufeff"), "<solution>", "exec", dont_inherit=True), names)
        except BaseException as error:  # noqa: BLE001 - whatever the program raises is its answer
            return _raised(mark, error)
        return dumps([mark, "ok", None])

    def answer(self, mark: str, **request: Any) -> bytes:
        try:
            value = self._do(**request)
            try:
                return dumps([mark, "ok", encode(value, self._object)])
            except ValueError:  # an integer of more digits than json writes
                return dumps([mark, "ok", encode(value, self._object, exact=True)])
        except EndlessError:
            return dumps([mark, "endless", None])
        except NotPlainError as error:
            return dumps([mark, "unreadable", str(error)])
        except BaseException as error:  # noqa: BLE001 - as above
            return _raised(mark, error)

    def _do(self, do: str, name: str, arguments: Any, of: int | None = None) -> Any:
        values, named = decode(arguments, self._known)
        owner = self._module if of is None else self._objects[of]
        if do == "set":
            return setattr(owner, name, values[0])
        if of is None and name not in owner.__dict__:
            raise NameError(f"name {name!r} is not defined")
        found = getattr(owner, name)
        return found(*values, **named) if do == "call" else found

    def _known(self, name: Any) -> Any:
        """An object the judge holds by number, or a builtin by name."""
        return getattr(builtins, name) if isinstance(name, str) else self._objects[name]

    def _object(self, value: Any) -> Any:
        self._objects.append(value)
        return {"o": [len(self._objects) - 1, type(value).__name__[:80], bool(value), callable(value)]}


def _raised(mark: str, error: BaseException) -> bytes:
    """The nearest builtin kind of an exception, and its text."""
    kinds = [kind.__name__ for kind in type(error).__mro__ if getattr(builtins, kind.__name__, None) is kind]
    try:
        text = str(error)[:300]
    except BaseException:  # noqa: BLE001 - a program's own __str__
        text = ""
    return dumps([mark, "raised", [kinds[0] if kinds else "Exception", type(error).__name__[:80], text]])
