"""What the files of evaluations/ hold, read back: records of numbers from their plain values, and graded rollouts."""

import json
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ConfigDict, TypeAdapter, ValidationError

from selfcorrect.errors import DataError
from selfcorrect.tasks.files import read_rows
from selfcorrect.types import Attempt, Completion, FinishReason, Grade, Outcome, Problem, Rollout

_Record = TypeVar("_Record")


def record_of(kind: type[_Record], data: Any, path: Path, where: str) -> _Record:
    """A Summary, an Estimate, a Change or a number, from JSON's values. where: its place in the file.

    Raises DataError where a field is missing, of another kind ("0.5" and true are no numbers), or no finite number.
    """
    # As JSON: its lists are tuples, its objects dataclasses, to a strict reader too. Names may hold half a character.
    text = json.dumps([data], ensure_ascii=False).encode("utf-8", "replace")
    try:
        found: _Record = _reader(kind).validate_json(text, strict=True)[0]  # type: ignore[arg-type]
    except ValidationError as error:
        wrong = error.errors()[0]
        place = ".".join(map(str, (where, *wrong["loc"][1:])))
        told = f"= {wrong['input']!r:.60}: {wrong['msg'][0].lower()}{wrong['msg'][1:]}"
        why = "is missing" if wrong["type"] == "missing" else told
        raise DataError(f"{path}: {place} {why}") from None
    return found


@cache
def _reader(kind: type) -> TypeAdapter[Any]:
    # In a tuple: pydantic takes no settings beside a dataclass, but those of what holds it go for it.
    return TypeAdapter(tuple[kind], config=ConfigDict(allow_inf_nan=False))  # type: ignore[valid-type]


def read_rollouts(file: Path, task: str) -> list[Rollout]:
    """Every line of NAME.rollouts.jsonl: texts and grades, without token ids. task: the name of the problems' task.

    Raises DataError with file and line where one is no graded rollout, or has other attempts than the first.
    """
    found: list[Rollout] = []
    for row in read_rows(file):
        try:
            attempts = tuple(attempt_of(each) for each in row.fields["attempts"])
            problem = Problem(str(row.fields["id"]), task, str(row.fields["prompt"]), dict(row.fields["reference"]))
            if not attempts or len(attempts) != len((found[0] if found else Rollout(problem, attempts)).attempts):
                raise ValueError(f"{len(attempts)} attempts")
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{row.where}: expected a rollout as docs/run_folder.md has it, with the same number of attempts as "
                f"the others: {error!r}"
            ) from None
        found.append(Rollout(problem, attempts))
    return found


def attempt_of(data: Any) -> Attempt:
    """Text and grade of one attempt; without the rest of a grade (or null), where another program gave the outcome.

    Raises ValueError, KeyError or TypeError where it is none.
    """
    told = {key: value for key, value in dict(data).items() if value is not None}
    outcome = Outcome(told["outcome"])
    reward = told.get("reward", float(outcome is Outcome.CORRECT))
    if type(reward) not in (int, float) or not 0 <= reward <= 1:
        raise ValueError(f"reward = {reward!r:.60} is no number from 0 to 1")
    answer, detail, feedback = (str(told.get(key, "")) for key in ("answer", "detail", "feedback"))
    end: FinishReason = "length" if outcome is Outcome.TRUNCATED else "stop"
    completion = Completion((), (), str(told["text"]), end)
    return Attempt((), completion, Grade(outcome, float(reward), answer, detail), feedback=feedback)
