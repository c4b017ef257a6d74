"""What a run folder, or a file of graded attempts, holds: rollouts for the analyses, and flat records for tables."""

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from selfcorrect.config.paths import at_home
from selfcorrect.errors import DataError
from selfcorrect.evaluation.flat import flat, flat_rollout
from selfcorrect.evaluation.metrics import is_graded
from selfcorrect.evaluation.stored import attempt_of
from selfcorrect.tasks import files
from selfcorrect.types import Outcome, Problem, Rollout

_LOGS = {"steps": "metrics.jsonl", "alarms": "alarms.jsonl"}
_NO_ROLLOUT = (ValueError, KeyError, TypeError, AttributeError)
_ANY = Problem("", "", "", {})  # figures need the attempts alone


def read_graded(file: Path) -> list[Rollout]:
    """Every rollout of a file of graded attempts that could be graded; all have the same number of attempts.

    Raises DataError with file and line where one cannot be read.
    """
    found: list[Rollout] = []
    for row in files.read_rows(file):
        try:
            read = _read(row.fields)
            if found and len(read.attempts) != len(found[0].attempts):
                raise ValueError(f"{len(read.attempts)} attempts, where the first line has {len(found[0].attempts)}")
        except _NO_ROLLOUT as error:
            raise DataError(
                f"{row.where}: expected a rollout with attempts, each with text and outcome "
                f"({', '.join(Outcome)}): {error!r}; "
                "`selfcorrect evaluate RECIPE sampler=recorded recorded=FILE` makes a run folder of recorded attempts"
            ) from None
        found.append(read)
    return list(filter(is_graded, found))


def logged(file: Path) -> list[tuple[Rollout, dict[str, Any]]]:
    """Every graded rollout that a run keeps, with its whole line; stages may play different numbers of attempts.

    The file may still be written, so lines that cannot be read are left out.
    """
    found = []
    for row in json_lines(file):
        with contextlib.suppress(*_NO_ROLLOUT):
            if is_graded(read := _read(row)):
                found.append((read, row))
    return found


def _read(row: Mapping[str, Any]) -> Rollout:
    attempts = tuple(map(attempt_of, row["attempts"]))
    if not attempts:
        raise ValueError("no attempts")
    return Rollout(_ANY, attempts)


def evaluations(run: Path) -> dict[str, dict[str, Any]]:
    """What the files of evaluations/ hold, base first, then in the order of training; none that is half written."""
    found = {file.stem: told for file in (run / "evaluations").glob("*.json") if (told := json_object(file))}
    steps = {name: step if isinstance(step := told.get("step"), int) else 0 for name, told in found.items()}
    return {name: found[name] for name in sorted(found, key=lambda name: (name != "base", steps[name], name))}


def evaluated(run: Path) -> dict[str, list[Rollout]]:
    """The rollouts of every evaluation in that order; of each problem its first sample."""
    files = {name: run / "evaluations" / f"{name}.rollouts.jsonl" for name in evaluations(run)}
    return {
        name: [rollout for rollout, line in logged(file) if line.get("sample", 1) == 1]
        for name, file in files.items()
        if file.exists()
    }


def text_of(file: Path) -> str:
    """Empty where it is not there. Raises DataError where it cannot be read."""
    try:
        return file.read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, NotADirectoryError):
        return ""
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {error.strerror}") from None


def json_lines(file: Path) -> list[dict[str, Any]]:
    """The whole lines of a log that may still be written; none where it is not there."""
    found = []
    for line in text_of(file).split("\n"):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue  # torn
        if isinstance(row, dict):
            found.append(row)
    return found


def json_object(file: Path) -> dict[str, Any]:
    """A JSON object; empty where there is none, or it is not whole."""
    try:
        found = json.loads(text_of(file))
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def records(run: str | Path, of: str = "steps") -> list[dict[str, Any]]:
    """Flat records of a run folder, which may still be written (docs/run_folder.md says what the fields are).

    of: steps (a record a training step, rewards/t1, rewards/t2, ...), evaluations (a record each, base first,
    summary/accuracy/t1/value, ...), alarms, rollouts (those that training kept, t1/text, t1/outcome, ...), or the name
    of an evaluation (NAME@WORDING of another wording), for its rollouts. Raises DataError where there is no such thing.
    """
    folder = at_home(run, "run")
    if not (folder / "config.yaml").is_file():
        raise DataError(f"run = {str(run)!r} is no run folder (no config.yaml in it); name one, like runs/mine")
    if of in _LOGS:
        return [flat(row) for row in json_lines(folder / _LOGS[of])]
    found = evaluations(folder)
    if of == "evaluations":
        return [flat(told) for told in found.values()]
    file = folder / "rollouts.jsonl" if of == "rollouts" else folder / "evaluations" / f"{of}.rollouts.jsonl"
    if of != "rollouts" and not file.is_file():
        known = ", ".join([*_LOGS, "evaluations", "rollouts", *found])
        raise DataError(f"of = {of!r}: {folder} has no evaluation of that name; there are {known}")
    return [flat_rollout(row) for row in json_lines(file)]
