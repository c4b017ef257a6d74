"""Rows from files: JSON Lines, JSON and Parquet, each also as .gz; and what a row must hold.

Every complaint is one DataError that names the file, the line (or entry), the field, and why. A file is read line by
line and no line is read beyond MAX_LINE bytes, so none can fill the memory unseen.
"""

import gzip
import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from selfcorrect.errors import DataError, first_line
from selfcorrect.tasks.looks import looks

MAX_LINE = 16 << 20  # bytes; the longest row of the public sets has 0.8 MB
MAX_JSON = 256 << 20  # bytes of a whole .json file
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class Row:
    """One row and where it stands, as "file:line"."""

    where: str
    fields: Mapping[str, Any]
    columns: bool = False  # whether the fields of its file can be renamed by task.columns

    def has(self, name: str) -> bool:
        return self.fields.get(name) is not None

    def text(self, name: str, *, empty: bool = False) -> str:
        """A text field. Raises DataError where it is missing, no text, empty (unless it may be), or holds NUL."""
        value = self._value(name)
        if not isinstance(value, str):
            raise self.wrong(name, f"must be text, got {_shown(value)}")
        if "\x00" in value:
            raise self.wrong(name, "holds a NUL character")
        if any("\ud800" <= c <= "\udfff" for c in value):
            raise self.wrong(name, "holds half a surrogate pair, which is no character")
        if not empty and not value.strip():
            raise self.wrong(name, "is empty")
        return value

    def texts(self, name: str) -> list[str]:
        """A list of texts."""
        value = self._value(name)
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise self.wrong(name, f"must be a list of texts, got {_shown(value)}")
        return [Row(self.where, {name: item}).text(name, empty=True) for item in value]

    def integer(self, name: str) -> int:
        """A whole number, as a number or as text: 12, "12", "Mbpp/12"."""
        value = self._value(name)
        if isinstance(value, int) and not isinstance(value, bool):
            return value
        last = value.rpartition("/")[2] if isinstance(value, str) else ""
        if last.isascii() and last.isdigit() and len(last) <= 12:
            return int(last)
        raise self.wrong(name, f"must be a whole number, got {_shown(value)}")

    def wrong(self, name: str, why: str) -> DataError:
        return DataError(f"{self.where}: field {name!r} {why}")

    def _value(self, name: str) -> Any:
        if name not in self.fields:
            there = ", ".join(sorted(map(str, self.fields))[:12]) or "none"
            hint = f"; if one of them is it, set task.columns.{name}=ITS_NAME" if self.columns and self.fields else ""
            raise DataError(f"{self.where}: field {name!r} is missing; the row has {there}{hint}")
        return self.fields[name]


def read_rows(path: str | Path) -> list[Row]:
    """All rows of a file. Raises DataError for whatever is wrong with it, and where it holds none."""
    file = Path(path).expanduser()
    kind = kind_of(file.name)
    if kind is None:
        raise DataError(f"{file}: not a data file by its name; expected .jsonl, .json or .parquet, also with .gz")
    read: Callable[[Path], Iterator[Row]] = {"jsonl": _json_lines, "json": _json, "parquet": _parquet}[kind]
    try:
        rows = list(read(file))
    except DataError as error:
        raise DataError(f"{error}{looks(file, kind)}") from None
    except OSError as error:
        if isinstance(error, gzip.BadGzipFile):
            raise DataError(f"{file}: not a gzip file, whatever its name says: {error}") from None
        raise DataError(f"{file}: cannot be read: {error.strerror or error}") from None
    except EOFError:
        raise DataError(f"{file}: the gzip file is cut off; copy or download it again") from None
    except zlib.error as error:
        raise DataError(f"{file}: the gzip file is damaged: {error}") from None
    if not rows:
        raise DataError(f"{file}: holds no rows")
    return rows


def renamed(rows: Iterable[Row], columns: Mapping[str, str]) -> list[Row]:
    """The rows under the field names that a task reads. columns: such a name -> the column that stands for it.

    Raises DataError where a row lacks such a column.
    """
    found = []
    for row in rows:
        taken = {name: Row(row.where, row.fields, columns=False)._value(column) for name, column in columns.items()}
        kept = {name: value for name, value in row.fields.items() if name not in columns.values()}
        found.append(Row(row.where, kept | taken, columns=True))
    return found


def kind_of(name: str) -> str | None:
    """jsonl, json or parquet by a file's name; None for any other."""
    parts = name.lower().removesuffix(".gz").split(".")
    ending = {"jsonl": "jsonl", "ndjson": "jsonl", "json": "json", "parquet": "parquet"}.get(parts[-1])
    return ending if len(parts) > 1 else None


def stem_of(name: str) -> str:
    """A file's name without .gz and the ending of its kind."""
    plain = name[:-3] if name.lower().endswith(".gz") else name
    return plain.rpartition(".")[0]


def find_files(folder: Path, names: Sequence[str]) -> list[Path]:
    """The folder's data files with one of these stems, or of the hub's form STEM-00000-of-00002; may be empty.

    Raises DataError where a stem is there in several kinds: which one counts could only be guessed.
    """
    files = sorted(file for file in folder.iterdir() if file.is_file() and kind_of(file.name))
    for name in names:
        exact = [file for file in files if stem_of(file.name).lower() == name.lower()]
        if len(exact) > 1:
            raise DataError(f"{folder}: holds {' and '.join(file.name for file in exact)}; keep one of them")
        parts = [file for file in files if stem_of(file.name).lower().startswith(f"{name.lower()}-0")]
        if exact or parts:
            return exact or parts
    return []


def unique(rows: Iterable[Row], key: Callable[[Row], object], field: str) -> list[Row]:
    """The rows, no two of which have the same key. Raises DataError that names both places."""
    seen: dict[object, str] = {}
    kept = []
    for row in rows:
        name = key(row)
        try:
            again = name in seen
        except TypeError:  # a list, or an object
            raise row.wrong(field, f"must be text or a number, got {_shown(name)}") from None
        if again:
            raise row.wrong(field, f"= {_shown(name)} stands at {seen[name]} already")
        seen[name] = row.where
        kept.append(row)
    return kept


def _open(file: Path) -> IO[bytes]:
    return gzip.open(file, "rb") if file.name.lower().endswith(".gz") else file.open("rb")  # type: ignore[return-value]


def _json_lines(file: Path) -> Iterator[Row]:
    with _open(file) as stream:
        number = 0
        while line := stream.readline(MAX_LINE + 1):
            number += 1
            where = f"{file}:{number}"
            if len(line) > MAX_LINE:
                raise DataError(f"{where}: the line is longer than {MAX_LINE >> 20} MB; is it JSON Lines?")
            text = _text(line.removeprefix(_BOM) if number == 1 else line, where)
            if text.strip():
                yield Row(where, _object(_parse(text, where), where))


def _json(file: Path) -> Iterator[Row]:
    """An array of objects."""
    with _open(file) as stream:
        content = stream.read(MAX_JSON + 1)
    if len(content) > MAX_JSON:
        raise DataError(f"{file}: larger than {MAX_JSON >> 20} MB; write it as JSON Lines (.jsonl)")
    text = _text(content.removeprefix(_BOM), str(file))
    if not text.strip():
        return
    value = _parse(text, str(file))
    if not isinstance(value, list):
        raise DataError(f"{file}: expected a JSON array of objects, got {_shown(value)}; one object a line is .jsonl")
    for number, item in enumerate(value, 1):
        where = f"{file}: entry {number}"
        yield Row(where, _object(item, where))


def _parquet(file: Path) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    try:
        with _open(file) as stream:
            table = pyarrow.parquet.read_table(pyarrow.BufferReader(stream.read()))
        items = table.to_pylist()
    except (pyarrow.ArrowException, ValueError) as error:
        raise DataError(f"{file}: not a Parquet file that can be read: {first_line(error)}") from None
    for number, item in enumerate(items, 1):
        yield Row(f"{file}: row {number}", item)


def _text(line: bytes, where: str) -> str:
    if b"\x00" in line:
        raise DataError(f"{where}: holds a NUL byte; the file is damaged, or not UTF-8 text")
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{where}: not UTF-8 text: {error.reason} at byte {error.start + 1} of the line; write the file as UTF-8"
        ) from None


def _parse(text: str, where: str) -> Any:
    try:
        return json.loads(text.rstrip())  # a line's own end is no second line of it
    except json.JSONDecodeError as error:
        place = f" at column {error.colno}" if error.lineno == 1 else f" at line {error.lineno}"
        if error.msg == "Extra data" and error.lineno > 1:
            place += "; a file with an object a line is JSON Lines, and is to be called .jsonl"
        raise DataError(f"{where}: not valid JSON: {error.msg.removesuffix(' at')}{place}") from None
    except (ValueError, RecursionError) as error:  # numbers of 5,000 digits; brackets 100,000 deep
        raise DataError(f"{where}: not valid JSON: {error}") from None


def _object(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise DataError(f"{where}: expected a JSON object, got {type(value).__name__}")
    return value


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
