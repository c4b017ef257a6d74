"""Finished work, kept as it is done, so that a process that was stopped or killed goes on (stdlib only).

    FILE.json     the settings the work is done with
    FILE.jsonl    one line a finished problem, in the order in which they are worked on

Work goes in chunks that always hold the same problems; a chunk whose lines are not all there is done again, so what
comes out is the same to the bit, however often the process was stopped.
"""

import fcntl
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from selfcorrect.errors import ConfigError

_SHOWN = 60  # characters of a value in a refusal


class Kept:
    """The lines of one piece of work. A context: it holds `file` against other processes.

    file: FILE.jsonl. settings: everything the lines depend on. key: of a line, what it is about. Raises ConfigError
    where `file` holds work with other settings, or with settings that nobody knows, or another process writes it.
    """

    def __init__(
        self, file: Path, settings: Mapping[str, Any], key: Callable[[Any], Any], way_out: str, grows: str = "",
        afresh: Callable[[str], None] | None = None,
    ) -> None:  # fmt: skip
        """way_out: what a user can do where the settings differ. grows: the dotted name of a whole number among the
        settings that may be raised: the work there is then the beginning of the work to do. afresh: told why work is
        of other settings, which is then dropped instead of refused.
        """
        self.file, self.settings_file = file, file.with_suffix(".json")
        self._key = key
        file.parent.mkdir(parents=True, exist_ok=True)
        self._lock = file.open("ab")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.close()
            raise ConfigError(
                f"{file} is being written by another process; wait for it, or name another output"
            ) from None
        try:
            self._begin(json.loads(json.dumps(settings)), way_out, grows, afresh)
        except BaseException:
            self._lock.close()
            raise

    def _begin(self, settings: Any, way_out: str, grows: str, afresh: Callable[[str], None] | None) -> None:
        told = _read(self.settings_file)
        if told != settings and not (told is not None and _only_grown(told, settings, grows)):
            if why := self._refused(told, settings):
                if afresh is None:
                    raise ConfigError(f"{why}; {way_out}")
                afresh(why)
            os.truncate(self.file, 0)
        if told != settings:
            write_durably(self.settings_file, json.dumps(settings, indent=1) + "\n")
        self._ahead = list(_lines(self.file))  # (where the line ends in the file, what it holds)
        self._end = self._done = 0
        self._waiting: list[Any] = []

    def _refused(self, told: Any, settings: Any) -> str:
        """Why what is there may be other work, which may have taken hours; empty where nothing was begun."""
        if told is not None:
            return f"{self.file}: {differences(told, settings)}"
        if self.settings_file.exists():
            return f"{self.settings_file}: cannot be read, and holds the settings that {self.file} was begun with"
        if b"\n" in self.file.read_bytes():
            return f"{self.file}: holds work, and {self.settings_file} with the settings it was begun with is missing"
        return ""

    @property
    def count(self) -> int:
        """How many lines are on disk."""
        return self._done + len(self._ahead)

    def take(self, keys: Sequence[Any]) -> list[Any] | None:
        """The lines of the next chunk; None where they are not all there, and what there is of it is cut off."""
        found, rest = self._ahead[: len(keys)], self._ahead[len(keys) :]
        if len(found) == len(keys) and all(self._is(line, key) for (_, line), key in zip(found, keys, strict=True)):
            self._ahead, self._done = rest, self._done + len(found)
            self._end = found[-1][0] if found else self._end
            return [line for _, line in found]
        self._ahead = []
        os.truncate(self.file, self._end)
        return None

    def add(self, lines: Sequence[Any], *, graded: bool = True) -> None:
        """Put a chunk's lines on disk, after those that waited for it.

        graded: False where nothing of the chunk could be graded: a dead grader's verdicts are not worth keeping, so
        they wait for a chunk that shows it alive.
        """
        lines = self._waiting = [*self._waiting, *lines]
        if not graded:
            return
        self._waiting = []
        text = "".join(json.dumps(line) + "\n" for line in lines).encode()
        with self.file.open("ab") as out:
            out.write(text)
            out.flush()
            os.fsync(out.fileno())
        self._end, self._done = self._end + len(text), self._done + len(lines)

    def remove(self) -> None:
        """Once what it was for is written."""
        self.file.unlink(missing_ok=True)
        self.settings_file.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lock.close()

    def _is(self, line: Any, key: Any) -> bool:
        try:
            return bool(self._key(line) == key)
        except (LookupError, TypeError):
            return False


def begun_with(file: Path, name: str) -> Any:
    """A setting of the work that `file` (FILE.jsonl) holds; None where there is none."""
    told = _read(file.with_suffix(".json"))
    return told.get(name) if isinstance(told, dict) else None


def _only_grown(before: Any, now: Any, name: str) -> bool:
    """Whether one number is higher, and nothing else differs."""
    old, new = dict(flat(before)), dict(flat(now))
    least, most = old.pop(name, None), new.pop(name, None)
    return isinstance(least, int) and isinstance(most, int) and least < most and old == new


def differences(before: Any, now: Any) -> str:
    """The settings that differ, with both values."""
    old, new = dict(flat(before)), dict(flat(now))
    changed = [name for name in {**new, **old} if old.get(name, _ABSENT) != new.get(name, _ABSENT)]
    told = [f"{name} is {_shown(new.get(name, _ABSENT))}, but was {_shown(old.get(name, _ABSENT))}" for name in changed]
    more = f" (and {len(told) - 3} more settings)" if len(told) > 3 else ""
    return f"begun with other settings: {', '.join(told[:3])}{more}"


_NO_TEXT = re.compile(r"[\ud800-\udfff\x85\u2028\u2029]")  # no bytes in UTF-8, or the end of a line to some readers


def json_line(value: Any) -> str:
    """JSON in the letters of its texts, whatever their script, for files that people read; escaped where it cannot be.

    Raises ValueError for numbers that are not finite, which JSON has not.
    """
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    return json.dumps(value) if _NO_TEXT.search(text) else text


def write_durably(file: Path, text: str) -> None:
    """Whole or not at all, also when the power fails."""
    temporary = file.with_name(f".{file.name}.tmp")
    with temporary.open("w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(file)
    folder = os.open(file.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def flat(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted path and value of each setting; lists and empty sections are values."""
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from flat(item, f"{name}.{key}" if name else key)
    else:
        yield name, value


_ABSENT = object()


def _shown(value: object) -> str:
    text = "not set" if value is _ABSENT else json.dumps(value)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…"


def _read(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _lines(file: Path) -> Iterator[tuple[int, Any]]:
    """Lines up to the first that is not whole, each with the place where it ends."""
    end = 0
    for line in file.read_bytes().splitlines(keepends=True):
        end += len(line)
        try:
            if not line.endswith(b"\n"):
                return
            yield end, json.loads(line)
        except ValueError:
            return
