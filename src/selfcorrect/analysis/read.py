"""What the analyses read: the attempts that a run folder, or a file of graded attempts, holds."""

import contextlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selfcorrect.errors import DataError
from selfcorrect.evaluation.metrics import LEFT_OUT, repeats
from selfcorrect.tasks import files

_NO_ROLLOUT = (ValueError, KeyError, TypeError, AttributeError)


@dataclass(frozen=True, slots=True)
class Row:
    """One rollout: texts, whether each attempt is right, and the answers that were read."""

    texts: tuple[str, ...]
    right: tuple[bool, ...]
    answers: tuple[str, ...]

    def same(self, first: int, second: int) -> bool:
        """Whether of two attempts (0, 1, ...) the second repeats the first."""
        return repeats((self.answers[first], self.answers[second]), (self.texts[first], self.texts[second]))


def read_rows(file: Path) -> list[Row]:
    """Every rollout of a file of graded attempts that could be graded; all have the same number of attempts.

    Raises DataError with file and line where one cannot be read.
    """
    found: list[Row] = []
    for row in files.read_rows(file):
        try:
            read = _read(row.fields)
            if found and read and len(read.texts) != len(found[0].texts):
                raise ValueError(f"{len(read.texts)} attempts, where the first line has {len(found[0].texts)}")
        except _NO_ROLLOUT as error:
            raise DataError(
                f"{row.where}: expected a rollout with attempts, each with text and outcome: {error!r}; "
                "`selfcorrect evaluate RECIPE sampler=recorded recorded=FILE` makes a run folder of recorded attempts"
            ) from None
        found += [read] if read else []
    return found


def logged_rows(file: Path) -> list[tuple[Row, dict[str, Any]]]:
    """Every graded rollout that a run keeps, with its whole line; stages may play different numbers of attempts.

    The file may still be written, so lines that cannot be read are left out.
    """
    found = []
    for row in json_lines(file):
        with contextlib.suppress(*_NO_ROLLOUT):
            if read := _read(row):
                found.append((read, row))
    return found


def _read(row: Mapping[str, Any]) -> Row | None:
    """None where the grader failed on an attempt, or none could be made."""
    attempts = row["attempts"]
    if not attempts:
        raise ValueError("no attempts")
    outcomes = [str(attempt["outcome"]) for attempt in attempts]
    texts = tuple(str(attempt["text"]) for attempt in attempts)
    answers = tuple(str(attempt.get("answer", "")) for attempt in attempts)
    if any(outcome in LEFT_OUT for outcome in outcomes):
        return None
    return Row(texts, tuple(outcome == "correct" for outcome in outcomes), answers)


def evaluations(run: Path) -> dict[str, list[Row]]:
    """The rollouts of every evaluation, base first, then in the order of training; of each problem its first sample."""
    found = []
    for file in (run / "evaluations").glob("*.json"):
        rollouts = file.with_name(f"{file.stem}.rollouts.jsonl")
        try:
            step = int(json.loads(file.read_text(encoding="utf-8")).get("step", 0))
        except (ValueError, AttributeError, TypeError):
            continue  # still in the writing
        if rollouts.exists():
            found.append((file.stem != "base", step, file.stem, rollouts))
    return {
        name: [row for row, line in logged_rows(file) if line.get("sample", 1) == 1]
        for _, _, name, file in sorted(found)
    }


def json_lines(file: Path) -> list[dict[str, Any]]:
    """The whole lines of a log that may still be written; none where it is not there."""
    try:
        lines = file.read_text(encoding="utf-8", errors="replace").split("\n")
    except FileNotFoundError:
        return []
    found = []
    for line in lines:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue  # torn
        if isinstance(row, dict):
            found.append(row)
    return found
