"""What the files of evaluations/ hold, read back: a Summary from its plain values, and graded rollouts."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from selfcorrect.errors import DataError
from selfcorrect.evaluation.metrics import Estimate, Flow, Passes, Summary
from selfcorrect.tasks.files import read_rows
from selfcorrect.types import Attempt, Completion, FinishReason, Grade, Outcome, Problem, Rollout


def summary_of(data: Any, path: Path, where: str) -> Summary:
    """Raises DataError where it is none. where: its place in the file."""
    if not isinstance(data, dict):
        raise DataError(f"{path}: {where} is missing or not an object")
    accuracy, outcomes = data.get("accuracy"), data.get("outcomes") or []
    if not isinstance(accuracy, list):
        raise DataError(f"{path}: {where}.accuracy must be a list, one estimate an attempt")
    if not isinstance(outcomes, list) or not all(isinstance(o, dict) for o in outcomes):
        raise DataError(f"{path}: {where}.outcomes must be a list of counts, one object an attempt")
    return Summary(
        n=int(required(data, "n", path, where)),
        accuracy=tuple(estimate_of(e, path, f"{where}.accuracy.{i}") for i, e in enumerate(accuracy)),
        delta=estimate_of(data.get("delta"), path, f"{where}.delta"),
        fixed=estimate_of(data.get("fixed"), path, f"{where}.fixed"),
        broken=estimate_of(data.get("broken"), path, f"{where}.broken"),
        fix_rate=estimate_of(data.get("fix_rate"), path, f"{where}.fix_rate"),
        unchanged=estimate_of(data.get("unchanged"), path, f"{where}.unchanged"),
        outcomes=tuple({str(k): int(v) for k, v in counts.items() if is_numeric(v)} for counts in outcomes),
        samples=int(required(data, "samples", path, where)) if "samples" in data else 1,
        passes=tuple(_passes_of(e, path, f"{where}.passes.{i}") for i, e in enumerate(data.get("passes") or ())),
        smallest=float(data["smallest"]) if is_numeric(data.get("smallest")) else None,
        flows=tuple(_flow_of(e, path, f"{where}.flows.{i}") for i, e in enumerate(data.get("flows") or ())),
        rewards=tuple(estimate_of(e, path, f"{where}.rewards.{i}") for i, e in enumerate(data.get("rewards") or ())),
    )


def _flow_of(data: Any, path: Path, where: str) -> Flow:
    told = data if isinstance(data, dict) else {}
    names = ("delta", "fixed", "broken", "unchanged")
    return Flow(*(estimate_of(told.get(name), path, f"{where}.{name}") for name in names))


def _passes_of(data: Any, path: Path, where: str) -> Passes:
    if not isinstance(data, dict) or not isinstance(data.get("accuracy"), list):
        raise DataError(f"{path}: {where} must be an object whose accuracy is a list")
    accuracy = tuple(estimate_of(e, path, f"{where}.accuracy.{i}") for i, e in enumerate(data["accuracy"]))
    rest = (estimate_of(data.get(key), path, f"{where}.{key}") for key in ("delta", "fixed", "broken"))
    return Passes(int(required(data, "k", path, where)), int(required(data, "n", path, where)), accuracy, *rest)


def estimate_of(data: Any, path: Path, where: str) -> Estimate:
    if not isinstance(data, dict):
        raise DataError(f"{path}: {where} must be an object with value, low and high")
    return Estimate(*(required(data, key, path, where) for key in ("value", "low", "high")))


def read_rollouts(file: Path, task: str) -> list[Rollout]:
    """Every line of NAME.rollouts.jsonl: texts and grades, without token ids. task: the name of the problems' task.

    Raises DataError with file and line where one is no graded rollout, or has other attempts than the first.
    """
    found: list[Rollout] = []
    for row in read_rows(file):
        try:
            attempts = tuple(_attempt_of(each) for each in row.fields["attempts"])
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


def _attempt_of(data: Any) -> Attempt:
    grade = Grade(Outcome(data["outcome"]), float(data["reward"]), str(data["answer"]), str(data["detail"]))
    end: FinishReason = "length" if grade.outcome is Outcome.TRUNCATED else "stop"
    return Attempt((), Completion((), (), str(data["text"]), end), grade, feedback=str(data.get("feedback", "")))


def required(data: Mapping[str, Any], key: str, path: Path, where: str = "") -> float:
    value = data.get(key)
    if not is_numeric(value) or not math.isfinite(value):  # type: ignore[arg-type]
        raise DataError(f"{path}: {f'{where}.{key}'.lstrip('.')} must be a finite number, got {value!r}")
    return float(value)  # type: ignore[arg-type]


def is_numeric(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
