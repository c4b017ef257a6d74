"""Run folder -> frozen records.

A run is read while it is being written, so what a running process leaves half done (a torn last line, a section
that is not there yet) is no error. What contradicts the documented shape is: a page with wrong numbers is worse
than no page.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from selfcorrect.config.yaml12 import load
from selfcorrect.errors import DataError
from selfcorrect.evaluation.averages import Change
from selfcorrect.evaluation.metrics import Estimate, Summary
from selfcorrect.evaluation.stored import estimate_of, is_numeric, required, summary_of
from selfcorrect.report.rollouts import RolloutSource, read_sources

BASE = "base"
_MARKS = ("metrics.jsonl", "environment.json", "evaluations", "config.yaml")


@dataclass(frozen=True, slots=True)
class External:
    """The summary over one external test file; name is the file's name without its folder."""

    name: str
    summary: Summary


@dataclass(frozen=True, slots=True)
class Wording:
    """One wording of the correction prompt; less: accuracy of its last attempt less that of another one, by name."""

    name: str
    prompt: str
    summary: Summary
    less: Mapping[str, Estimate]


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One file of evaluations/. about: task and data set; controls: by what stood in for attempt 1.

    wordings: of the correction prompt, the task's own first. against_base: less the base model's, paired over the same
    problems; assumed: the smallest delta that was expected to be resolved.
    """

    name: str
    step: int
    task: str
    about: str
    split: str
    decoding: str
    summary: Summary
    sampled: Summary | None
    controls: Mapping[str, Summary]
    external: tuple[External, ...]
    wordings: tuple[Wording, ...] = ()
    against_base: Change | None = None
    assumed: float | None = None

    @property
    def is_base(self) -> bool:
        return self.name == BASE

    @property
    def label(self) -> str:
        if self.is_base:
            return "before training"
        return f"after {self.name}" if self.step else self.name  # an evaluation without training


@dataclass(frozen=True, slots=True)
class Step:
    """One line of metrics.jsonl. series holds every numeric field, NaN where a value is missing.

    In it a plain number has length 1, a list one entry an attempt.
    """

    step: int
    stage: str
    series: Mapping[str, tuple[float, ...]]
    skipped: bool
    skip_reason: str


@dataclass(frozen=True, slots=True)
class Edited:
    """A setting that the run went on with after a step: its dotted path, and both values (None: it was not there)."""

    step: int
    field: str
    old: Any
    new: Any


@dataclass(frozen=True, slots=True)
class Run:
    """All that the page shows. notes: what was found damaged, in words for the reader.

    earlier: what the run had ended with when it was extended, as (folder, evaluation).
    """

    name: str
    config: Mapping[str, Any]
    config_text: str
    environment: Mapping[str, Any]
    steps: tuple[Step, ...]
    evaluations: tuple[Evaluation, ...]
    sources: tuple[RolloutSource, ...]
    alarms: tuple[str, ...] = ()
    notes: tuple[str, ...] = field(default=())
    changes: tuple[Edited, ...] = ()
    earlier: tuple[tuple[str, Evaluation], ...] = ()

    @property
    def repaired(self) -> str:
        """The task that first attempts are at where the task is repair; code where nothing tells."""
        task = self.config.get("task")
        of = task.get("of") if isinstance(task, dict) else None
        return str(of.get("name", "code")) if isinstance(of, dict) else "code"

    @property
    def base(self) -> Evaluation | None:
        return next((e for e in self.evaluations if e.is_base), None)

    @property
    def final(self) -> Evaluation | None:
        """The evaluation that training has reached so far; None while there is only the base."""
        return next((e for e in reversed(self.evaluations) if not e.is_base), None)

    @property
    def total_steps(self) -> int | None:
        """Steps the recipe asks for; None where it does not say."""
        stages = self.config.get("stages")
        steps = [s.get("steps") if isinstance(s, dict) else None for s in stages] if isinstance(stages, list) else []
        known = [n for n in steps if isinstance(n, int)]
        return sum(known) if known and len(known) == len(steps) else None


def load_run(folder: Path) -> Run:
    """Read a run folder, finished or not. Raises DataError where it is none, or holds what cannot be shown."""
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; give the folder that `selfcorrect train` wrote")
    if not any((folder / mark).exists() for mark in _MARKS):
        raise DataError(f"{folder} is not a run: it holds none of {', '.join(_MARKS)}; give a folder of `train`")
    notes: list[str] = []
    config_text, config = _read_config(folder / "config.yaml", notes)
    evaluations = read_evaluations(folder / "evaluations", notes)
    return Run(
        name=folder.resolve().name,
        config=config,
        config_text=config_text,
        environment=_read_object(folder / "environment.json", notes),
        steps=_read_steps(folder / "metrics.jsonl", notes),
        evaluations=evaluations,
        sources=_read_sources(folder, evaluations, notes),
        alarms=_read_alarms(folder / "alarms.jsonl"),
        notes=tuple(notes),
        changes=_read_changes(folder / "changes.jsonl"),
        earlier=tuple(
            (f"earlier/{before.name}", evaluation)
            for before in sorted((folder / "earlier").glob("step-*"))
            for evaluation in read_evaluations(before / "evaluations", notes)
        ),
    )


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None


def _read_config(path: Path, notes: list[str]) -> tuple[str, Mapping[str, Any]]:
    text = _text(path)
    try:
        data = load(text)
    except (yaml.YAMLError, ValueError, RecursionError):
        notes.append(f"{path.name} is not valid YAML; the recipe is shown as it stands.")
        data = None
    return text, data if isinstance(data, dict) else {}


def _read_object(path: Path, notes: list[str]) -> Mapping[str, Any]:
    """A JSON object; empty where the file is missing or half written."""
    text = _text(path)
    try:
        data = json.loads(text) if text else {}
    except (ValueError, RecursionError):
        notes.append(f"{path.name} is not valid JSON and was left out.")
        return {}
    return data if isinstance(data, dict) else {}


def _read_steps(path: Path, notes: list[str]) -> tuple[Step, ...]:
    """Every line that can be read, one a step: a resumed run may have written a step twice, the later one counts."""
    lines = [line for line in _text(path).splitlines() if line.strip()]
    steps: dict[int, Step] = {}
    damaged = 0
    for position, line in enumerate(lines):
        try:
            row = json.loads(line)
            step = int(row["step"])
        except (ValueError, KeyError, TypeError, RecursionError):
            damaged += position < len(lines) - 1  # the last one may still be in the writing
            continue
        steps[step] = Step(
            step=step,
            stage=str(row.get("stage", "")),
            series={key: values for key, value in row.items() if (values := _numbers(value))},
            skipped=bool(row.get("skipped", False)),
            skip_reason=str(row.get("skip_reason") or ""),
        )
    if damaged:
        notes.append(f"{damaged} damaged {'line' if damaged == 1 else 'lines'} of {path.name} left out.")
    return tuple(steps[key] for key in sorted(steps))


def _read_alarms(path: Path) -> tuple[str, ...]:
    """What the run gave alarm of, with where in training."""
    told = []
    for line in _text(path).splitlines():
        try:
            row = json.loads(line)
            told.append(f"{row['where']}, step {row['step']}: {row['alarm']}")
        except (ValueError, KeyError, TypeError, RecursionError):
            continue  # still in the writing
    return tuple(told)


def _read_changes(path: Path) -> tuple[Edited, ...]:
    found = []
    for line in _text(path).splitlines():
        try:
            row = json.loads(line)
            found.append(Edited(int(row["step"]), str(row["field"]), row.get("old"), row.get("new")))
        except (ValueError, KeyError, TypeError, RecursionError):
            continue  # still in the writing
    return tuple(found)


def _numbers(value: Any) -> tuple[float, ...]:
    """A number or a list of numbers (null: NaN) as a tuple; empty for anything else."""
    if isinstance(value, list):
        return tuple(_number(entry) for entry in value) if all(is_numeric(v) or v is None for v in value) else ()
    return (_number(value),) if is_numeric(value) else ()


def _number(value: Any) -> float:
    return float(value) if is_numeric(value) and math.isfinite(value) else math.nan


def read_evaluations(folder: Path, notes: list[str]) -> tuple[Evaluation, ...]:
    """In the order of training: base first, then by step."""
    found: list[Evaluation] = []
    for path in sorted(folder.glob("*.json")):
        try:
            data = json.loads(_text(path))
        except (ValueError, RecursionError):
            notes.append(f"evaluations/{path.name} is not valid JSON, perhaps still in the writing; left out.")
            continue
        found.append(_evaluation(data, path))
    return tuple(sorted(found, key=lambda e: (not e.is_base, e.step, e.name)))


def _evaluation(data: Any, path: Path) -> Evaluation:
    if not isinstance(data, dict):
        raise DataError(f"{path}: expected a JSON object, got {type(data).__name__}")
    sampled, controls, external = data.get("sampled"), data.get("controls") or {}, data.get("external") or []
    wordings, smallest = data.get("wordings") or [], data.get("smallest_delta")
    if not isinstance(controls, dict) or not isinstance(external, list) or not isinstance(wordings, list):
        raise DataError(f"{path}: controls must be an object, external and wordings lists")
    assumed = smallest.get("assumed") if isinstance(smallest, dict) else None
    return Evaluation(
        name=path.stem,  # by the documented layout the same as data["name"], and surely a file name
        step=int(required(data, "step", path)) if "step" in data else 0,
        task=str(data.get("task", "")),
        about=str(data.get("about") or data.get("task", "")),
        split=str(data.get("split", "")),
        decoding=str(data.get("decoding", "")),
        summary=summary_of(data.get("summary"), path, "summary"),
        sampled=summary_of(sampled, path, "sampled") if sampled else None,
        controls={str(k): summary_of(v, path, f"controls.{k}") for k, v in controls.items() if v},
        external=tuple(_external(entry, path, i) for i, entry in enumerate(external)),
        wordings=tuple(_wording(entry, path, f"wordings.{i}") for i, entry in enumerate(wordings)),
        against_base=_change(data.get("against_base"), path),
        assumed=float(assumed) if is_numeric(assumed) else None,  # type: ignore[arg-type]
    )


def _wording(entry: Any, path: Path, where: str) -> Wording:
    if not isinstance(entry, dict) or not isinstance(entry.get("less", {}), dict):
        raise DataError(f"{path}: {where} must be an object, and its less one too")
    less = {str(k): estimate_of(v, path, f"{where}.less.{k}") for k, v in entry.get("less", {}).items()}
    summary = summary_of(entry.get("summary"), path, f"{where}.summary")
    return Wording(str(entry.get("name", where)), str(entry.get("prompt", "")), summary, less)


def _change(data: Any, path: Path) -> Change | None:
    if data is None:
        return None
    if not isinstance(data, dict):
        raise DataError(f"{path}: against_base must be an object with first, last and delta")
    return Change(*(estimate_of(data.get(key), path, f"against_base.{key}") for key in ("first", "last", "delta")))


def _external(entry: Any, path: Path, index: int) -> External:
    if not isinstance(entry, dict):
        raise DataError(f"{path}: external.{index} must be an object, got {type(entry).__name__}")
    name = str(entry.get("path", f"set {index + 1}")).replace("\\", "/").rsplit("/", 1)[-1]
    return External(name, summary_of(entry.get("summary"), path, f"external.{index}.summary"))


def _read_sources(folder: Path, evaluations: tuple[Evaluation, ...], notes: list[str]) -> tuple[RolloutSource, ...]:
    """The latest evaluation first, as it is what a reader wants to see; training rollouts last."""
    kept = folder / "evaluations"
    files = [(e.label, kept / f"{e.name}.rollouts.jsonl") for e in reversed(evaluations)]
    for e in reversed(evaluations):  # the first wording is the evaluation itself
        files += [(f"{e.label}, asked as {w.name}", kept / f"{e.name}@{w.name}.rollouts.jsonl") for w in e.wordings[1:]]
    files.append(("while training", folder / "rollouts.jsonl"))
    return read_sources([(label, path) for label, path in files if path.is_file()], notes)
