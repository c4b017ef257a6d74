"""What runs in the confined process: load an untrusted program, answer calls (stdlib only).

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
    Frames,
    NotPlainError,
    decode,
    dumps,
    encode,
    loads,
    write_frame,
)

_MOST = 1 << 28  # bytes of a request; the judge's own messages need no caution


def serve(channel: int) -> None:
    """Answer one request after the other, the first of which loads the program, until the judge hangs up."""
    frames, session = Frames(channel, _MOST), _Session()
    while (request := frames.read()) is not None:
        write_frame(channel, session.answer(*loads(request)))


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
    source = "def f(x, y):\n    return [x, (y, {'a': {1}})]\n"
    for _ in range(40):
        session = _Session()
        session.answer("", ["load", source, None, True])
        session.answer("", loads(dumps(["call", "f", None, [[1, [2.5, "x"]], []]])))
    sys.modules.pop("solution")


class _Session:
    """The loaded program, and those of its objects that the judge knows by number."""

    def __init__(self) -> None:
        self._module = types.ModuleType("solution")
        self._objects: list[Any] = []
        self._numbers: dict[int, int] = {}  # by id: an object that is sent twice is one object

    def answer(self, mark: str, request: list[Any]) -> bytes:
        """What comes back, as text with the question's mark."""
        try:
            return dumps([mark, "ok", encode(self._do(*request), self._object)])
        except EndlessError:
            return dumps([mark, "endless", None])
        except NotPlainError as error:
            return dumps([mark, "unreadable", str(error)])
        except BaseException as error:  # noqa: BLE001 - whatever the program raises is its answer
            return _raised(mark, error)

    def _do(self, do: str, name: str, of: int | None, given: Any) -> Any:
        """`load` a program's source (given: whether with the prelude); `call`, `get` or `set` a name of it; `await`."""
        if do == "load":
            return self._load(name, given)
        values, named = decode(given, self._known)
        owner = self._module if of is None else self._objects[of]
        if do == "set":
            return setattr(owner, name, values[0])
        if do == "await":
            import asyncio  # at hand: a program whose text says `async` is in the larger process

            return asyncio.run(owner)
        if of is None and name not in owner.__dict__:
            raise NameError(f"name {name!r} is not defined")
        found = getattr(owner, name)
        return found(*values, **dict(named)) if do == "call" else found

    def _load(self, source: str, prelude: bool) -> None:
        sys.modules["solution"] = self._module
        names = self._module.__dict__
        names["__builtins__"] = _with_prelude if prelude else _BUILTINS
        exec(compile(source.removeprefix("\ufeff"), "<solution>", "exec", dont_inherit=True), names)

    def _known(self, name: Any) -> Any:
        """An object the judge holds by number, or a builtin by name."""
        return getattr(builtins, name) if isinstance(name, str) else self._objects[name]

    def _object(self, value: Any) -> Any:
        number = self._numbers.setdefault(id(value), len(self._objects))
        if number == len(self._objects):
            self._objects.append(value)
        return {"o": [number, type(value).__name__[:80], bool(value)]}


def _raised(mark: str, error: BaseException) -> bytes:
    """The nearest builtin kind of an exception, and its text."""
    kinds = [kind.__name__ for kind in type(error).__mro__ if getattr(builtins, kind.__name__, None) is kind]
    try:
        text = str(error)[:300]
    except BaseException:  # noqa: BLE001 - a program's own __str__
        text = ""
    return dumps([mark, "raised", [kinds[0] if kinds else "Exception", type(error).__name__[:80], text]])
