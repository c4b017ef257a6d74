"""A user's data as init finds it: which columns hold question and answer, and which task they make."""

import csv
import math
import re
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal

from selfcorrect.errors import ConfigError, DataError
from selfcorrect.tasks.code import STEMS
from selfcorrect.tasks.files import Row, find_files, kind_of, read_rows
from selfcorrect.tasks.looks import looks

Kind = Literal["math", "code", "custom"]
_QUESTIONS = ("problem", "question", "prompt", "instruction", "query", "input", "task", "text")
_ANSWERS = (
    "answer", "final_answer", "gold", "target", "label", "ground_truth", "reward_model.ground_truth", "expected",
    "result", "solution", "output", "response", "completion",
)  # fmt: skip
_LOOKED_AT = 200  # rows from which columns and task are told
_MATHS = re.compile(r"[\d\\]|^[a-z]$|^\W*[-+*/=^].*$")
_WORDS = re.compile(r"(?<![a-zA-Z\\])(?!(?:sqrt|frac|text|pi|sin|cos|tan|log|exp)\b)[a-zA-Z]{4,}")  # of a language
_NUMBERS = re.compile(r"\d+(,\d+){2}")
_LONG = 200  # characters; a longer answer is a text that states one somewhere


@dataclass(frozen=True, slots=True)
class Found:
    """What a data file holds. train, test: rows; one file is divided, every tenth question held out. system: the system
    text of all its conversations; empty where there is none. without: rows left out, as they hold no answer. again:
    rows that a folder holds out whose questions are trained on. plain: whether both columns are text in every row, so
    that a folder can be read as it is.
    """

    kind: Kind
    question: str
    answer: str
    train: Sequence[Row]
    test: Sequence[Row]
    system: str = ""
    without: int = 0
    again: int = 0
    plain: bool = False


def look(data: Path, question: str | None, answer: str | None, task: Kind | None) -> Found:
    """Reads the data of `init`: a file, or a folder of train.* and test.*. Raises ConfigError and DataError."""
    data = _one_set(data)
    parts = [list(map(_flat, rows)) for rows in _rows(data)]
    first = parts[0][:_LOOKED_AT]
    columns = _columns(first)
    if task == "code" or (task is None and question is None and answer is None and _is_code(columns)):
        if _of_csv(data):
            raise ConfigError(f"--data {data}: the task code reads JSON Lines, JSON or Parquet; write the rows as one")
        return _code(data, columns, *(parts if len(parts) > 1 else _divided(parts[0], range(len(parts[0])))))
    if question is None and _is_countdown(first[0]):
        raise ConfigError(
            f"--data {data}: these are countdown's rows, whose training problems are generated; `selfcorrect recipes "
            "countdown` copies a recipe, and evaluation.external or task.data evaluates on such a file"
        )
    asked = _column(first, columns, "--question", question, _QUESTIONS)
    told = _column(first, columns, "--answer", answer, [name for name in _ANSWERS if name != asked.casefold()], asked)
    if asked == told:
        raise ConfigError(f"--answer {told}: is the column of the question, too; name another")
    _check_texts(first, asked)
    answered = [[row for row in rows if answer_of(row, told)] for rows in parts]
    if not all(answered) or sum(map(len, answered)) < 2:
        raise ConfigError(f"--answer {told}: no row to train on, or none to hold out, has one")
    left_out = sum(map(len, parts)) - sum(map(len, answered))
    if len(answered) == 1:
        answered = _divided(answered[0], [question_of(row, asked).strip() for row in answered[0]])
    known = {question_of(row, asked).strip() for row in answered[0]}
    again = sum(question_of(row, asked).strip() in known for row in answered[1])
    kind = task or _kind([row for row in first if answer_of(row, told)] or answered[0], told)
    system = _system([*answered[0], *answered[1]], asked)
    if not known or (kind == "math" and again == len(answered[1]) and len(known) == 1):
        raise ConfigError(f"--question {asked}: all rows ask the same; there is nothing to hold out")
    own = [row.fields.get(column) for rows in parts for row in rows for column in (asked, told)]
    named = not any("." in name for name in (asked, told))
    plain = data.is_dir() and not _of_csv(data) and named and all(isinstance(v, str) for v in own)
    return Found(
        kind,
        asked,
        told,
        answered[0],
        answered[1],
        system,
        left_out,
        again,
        plain,
    )


def _one_set(data: Path) -> Path:
    """Of a folder that is not divided, the file of MBPP or HumanEval, where it holds one; else the data as named."""
    if not data.is_dir() or any(_files(data).values()):
        return data
    sets = [files for name in ("mbpp", "humaneval") if len(files := find_files(data, STEMS[name])) == 1]
    return sets[0][0] if sets else data


def _rows(data: Path) -> list[list[Row]]:
    """The rows of a file; or those to train on and those to hold out, of a folder."""
    if not data.exists():
        raise ConfigError(
            f"--data {data}: no such file or folder (of a data set on the hub: save it with to_json, or name it in a "
            "recipe as task.hub)"
        )
    if data.is_dir():
        files = _files(data)
        if missing := [split for split, found in files.items() if not found]:
            there = sorted(file.name for file in data.iterdir() if kind_of(file.name) or file.suffix.lower() == ".csv")
            raise ConfigError(
                f"--data {data}: the folder holds no {missing[0]}.jsonl (nor .json, .parquet or .csv)"
                + (f"; name one of {_listed(there)} to have it divided" if there else "")
            )
        return [[row for file in files[split] for row in _read(file)] for split in ("train", "test")]
    if kind_of(data.name) is None and data.suffix.lower() != ".csv":
        raise ConfigError(f"--data {data}: not a data file by its name; expected .jsonl, .json, .csv or .parquet")
    rows = _read(data)
    if len(rows) < 2:
        count = "one row" if rows else "no rows"
        raise ConfigError(f"--data {data}: holds {count}; some are needed to train on and some to hold out")
    return [rows]


def _divided(rows: Sequence[Row], questions: Sequence[object]) -> list[list[Row]]:
    """Those to train on, and to hold out every tenth question with all its rows. questions: of each row.

    In place of a question with more than a tenth of all rows, one of the nine before it is held out.
    """
    count = Counter(questions)
    distinct, step = list(count), min(10, len(count))
    held = set()
    for end in range(step, len(distinct) + 1, step):
        ten = distinct[end - step : end][::-1]
        held.add(next((asked for asked in ten if 10 * count[asked] <= len(rows)), min(ten, key=lambda q: count[q])))
    return [
        [row for row, asked in zip(rows, questions, strict=True) if (asked in held) is out] for out in (False, True)
    ]


def _read(data: Path) -> list[Row]:
    return list(read_rows(data)) if kind_of(data.name) else _csv(data)


def _files(folder: Path) -> dict[str, list[Path]]:
    """A folder's files by split: of the kinds that tasks read, else CSV."""
    csvs = {file.name.lower(): [file] for file in folder.iterdir() if file.is_file()}
    return {split: find_files(folder, (split,)) or csvs.get(f"{split}.csv", []) for split in ("train", "test")}


def _of_csv(data: Path) -> bool:
    """Whether rows come from CSV, which tasks do not read themselves."""
    read = [file for files in _files(data).values() for file in files] if data.is_dir() else [data]
    return any(kind_of(file.name) is None for file in read)


def _csv(data: Path) -> list[Row]:
    """Rows of a file whose first line names the columns. Raises DataError."""
    try:
        with data.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            names = reader.fieldnames or []
            if names and (kind := looks(data, "csv")):
                raise DataError(f"{data}: not a CSV file{kind}")
            if again := sorted({name for name in names if names.count(name) > 1}):
                raise DataError(f"{data}: two columns are called {again[0]!r}; rename one")
            if len(names) == 1 and (other := next((mark for mark in ";\t|" if mark in names[0]), None)):
                raise DataError(f"{data}: its fields are apart by {other!r}; a CSV file has commas between them")
            rows = [Row(f"{data}:{reader.line_num}", fields) for fields in reader]
    except (csv.Error, UnicodeDecodeError) as error:
        raise DataError(f"{data}: not a CSV file that can be read: {error}{looks(data, 'csv')}") from None
    for row in rows:
        if None in row.fields or None in row.fields.values():
            raise DataError(f"{row.where}: has another number of fields than the first line, which names the columns")
    return rows


def _flat(row: Row) -> Row:
    """With what stands inside of mappings too, as reward_model.ground_truth."""
    inside = {
        f"{name}.{key}": value
        for name, fields in row.fields.items()
        if isinstance(fields, Mapping)
        for key, value in fields.items()
    }
    return Row(row.where, {**inside, **row.fields})


def _columns(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(str(name) for row in rows for name in row.fields))


def _is_countdown(row: Row) -> bool:
    numbers = row.fields.get("input")
    return {"nums", "target"} <= set(row.fields) or (isinstance(numbers, str) and bool(_NUMBERS.fullmatch(numbers)))


def _is_code(columns: Sequence[str]) -> bool:
    return "test_list" in columns or {"test", "entry_point"} <= set(columns)


def _code(data: Path, columns: Sequence[str], train: Sequence[Row], test: Sequence[Row]) -> Found:
    if not _is_code(columns):
        raise ConfigError(
            f"--data {data}: the task code reads MBPP's columns (task_id, text, code, test_list) or HumanEval's "
            f"(task_id, prompt, entry_point, canonical_solution, test), and this has {_listed(columns)}; --task custom "
            "writes a task of your own"
        )
    return Found("code", "text" if "text" in columns else "prompt", "", train, test)


def _column(
    rows: Sequence[Row], columns: Sequence[str], option: str, given: str | None, usual: Sequence[str],
    besides: str | None = None,
) -> str:  # fmt: skip
    """The column that was named, or the first of the usual names that is there. besides: one that is taken."""
    if given is not None:
        if given not in columns:
            shown = given if given.isprintable() else ascii(given)
            raise ConfigError(f"{option} {shown}: the data has no such column; it has {_listed(columns)}")
        if any("\ud800" <= character <= "\udfff" for character in given):
            raise ConfigError(
                f"{option} {given!a}: holds half of a surrogate pair, which is no text; rename the column"
            )
        return given
    by_name = {name.strip().casefold(): name for name in reversed(columns)}
    found = [by_name[name] for name in usual if name in by_name]
    filled = [name for name in found if any(row.has(name) for row in rows)]
    if found and not filled:
        raise ConfigError(f"{option}: the column {found[0]} holds nothing; name another of {_listed(columns)}")
    if not filled:
        if {"messages", "conversation", "conversations"} & set(by_name):
            raise ConfigError(
                f"{option}: rows of whole conversations do not say which turn is the reference; write a column for the "
                "question and one for the answer"
            )
        others = [name for name in columns if name != besides]
        if not others or len(columns) == 1:
            lacks = "the answers are missing" if besides else "questions and answers are two columns"
            raise ConfigError(f"{option}: there is only the column {columns[0]!r}; {lacks}")
        raise ConfigError(f"{option}: no column goes by a usual name; name one of {_listed(others)}")
    return filled[0]


def _check_texts(rows: Sequence[Row], column: str) -> None:
    for row in rows:
        if not question_of(row, column).strip():
            raise row.wrong(column, "is empty")


def question_of(row: Row, column: str) -> str:
    """The question's text; of a conversation, its one user turn. Raises DataError."""
    value = row.fields.get(column)
    if isinstance(value, list):
        asked = [turn.get("content") for turn in value if isinstance(turn, Mapping) and turn.get("role") == "user"]
        others = [turn for turn in value if not isinstance(turn, Mapping) or turn.get("role") not in ("user", "system")]
        if len(asked) != 1 or others or not isinstance(asked[0], str):
            raise row.wrong(column, "must be text, or a conversation of one user turn (after a system turn or none)")
        return _turn(row, column, asked[0])
    return row.text(column)


def _turn(row: Row, column: str, text: str) -> str:
    """A turn's text, checked as any text is. Raises DataError."""
    return Row(row.where, {column: text}).text(column, empty=True)


def answer_of(row: Row, column: str) -> str:
    """The answer as text; a number as it is written; empty where there is none (NaN included). Raises DataError."""
    value = row.fields.get(column)
    if value is None or (isinstance(value, str) and not value.strip()):
        return ""
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal):
        return row.text(column)
    if not isinstance(value, int) and not math.isfinite(value):  # a whole number may have more digits than a float
        if math.isnan(value):  # how tables write what is missing
            return ""
        raise row.wrong(column, f"is {value}, which is no number to answer with")
    return str(value)


def _system(rows: Sequence[Row], column: str) -> str:
    """Raises DataError where conversations have system turns that differ."""
    found: dict[str, Row] = {}
    for row in rows:
        turns = row.fields.get(column)
        texts: list[Any] = [
            turn.get("content") for turn in turns if isinstance(turn, Mapping) and turn.get("role") == "system"
        ] if isinstance(turns, list) else []  # fmt: skip
        if len(texts) > 1 or not all(isinstance(text, str) for text in texts):
            raise row.wrong(column, "must be text, or a conversation with one system turn at most, which is text")
        found.setdefault(_turn(row, column, texts[0]) if texts else "", row)
    if len(found) > 1:
        raise list(found.values())[1].wrong(column, "has another system turn than the rows before; one serves all here")
    return next(iter(found), "")


def _kind(rows: Sequence[Row], answer: str) -> Kind:
    """Task math where answers are numbers, formulas, or solutions that state one; custom for other short texts."""
    texts = [answer_of(row, answer) for row in rows]
    stated = sum(states_answer(text) for text in texts)
    if 2 * stated > len(texts):
        return "math"
    if statistics.median(map(len, texts)) > _LONG:
        raise ConfigError(
            f"--answer {answer}: its texts are long and state no answer (a line `#### ANSWER`, or \\boxed{{ANSWER}}); "
            "name the column that holds the answer alone, or write a task of your own (docs/tasks.md)"
        )
    maths = sum(bool(_MATHS.search(text.strip()) and ("\\" in text or not _WORDS.search(text))) for text in texts)
    return "math" if 10 * maths >= 9 * len(texts) else "custom"


def states_answer(text: str) -> bool:
    """Whether a text states its answer as GSM8K's or MATH's solutions do."""
    return "####" in text or "\\boxed" in text


def _listed(columns: Sequence[str]) -> str:
    return ", ".join(sorted(columns)[:20]) or "none"
