"""Run folder -> frozen records.

A run is read while it is being written, so what a running process leaves half done (a torn last line, a section
that is not there yet) is no error. What contradicts the documented shape is: a page with wrong numbers is worse
than no page.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml

from selfcorrect.analysis.read import json_lines, json_object, text_of
from selfcorrect.config.yaml12 import load
from selfcorrect.errors import DataError
from selfcorrect.evaluation.averages import Change
from selfcorrect.evaluation.evaluate import Evaluation, Wording
from selfcorrect.evaluation.metrics import Estimate, Summary
from selfcorrect.evaluation.stored import record_of
from selfcorrect.report.rollouts import RolloutSource, read_sources

_Record = TypeVar("_Record")
_MARKS = ("metrics.jsonl", "environment.json", "evaluations", "config.yaml")


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
class Run:
    """All that the page shows. notes: what was found damaged, in words for the reader.

    changes: settings that the run went on with after a step, as changes.jsonl has them (null: it was not there).
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
    notes: tuple[str, ...] = ()
    changes: tuple[Mapping[str, Any], ...] = ()
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
        alarms=tuple(
            f"{row['where']}, step {row['step']}: {row['alarm']}"
            for row in _read_rows(folder / "alarms.jsonl", "where", "alarm")
        ),
        notes=tuple(notes),
        changes=tuple(_read_rows(folder / "changes.jsonl", "field", "old", "new")),
        earlier=tuple(
            (f"earlier/{before.name}", evaluation)
            for before in sorted((folder / "earlier").glob("step-*"))
            for evaluation in read_evaluations(before / "evaluations", notes)
        ),
    )


def _read_config(path: Path, notes: list[str]) -> tuple[str, Mapping[str, Any]]:
    text = text_of(path)
    try:
        data = load(text)
    except (yaml.YAMLError, ValueError, RecursionError):
        notes.append(f"{path.name} is not valid YAML; the recipe is shown as it stands.")
        data = None
    return text, data if isinstance(data, dict) else {}


def _read_object(path: Path, notes: list[str]) -> Mapping[str, Any]:
    """A JSON object; empty where the file is missing or half written."""
    found = json_object(path)
    if not found and text_of(path):
        notes.append(f"{path.name} holds no JSON object and was left out.")
    return found


def _read_rows(path: Path, *fields: str) -> list[dict[str, Any]]:
    """The lines of a log with a step that have these fields; a damaged one is left out."""
    return [row for row in json_lines(path) if type(row.get("step")) is int and row.keys() >= {*fields}]


def _read_steps(path: Path, notes: list[str]) -> tuple[Step, ...]:
    """Every line that can be read, one a step: a resumed run may have written a step twice, the later one counts."""
    lines = [line for line in text_of(path).splitlines() if line.strip()]
    steps: dict[int, Step] = {}
    damaged = 0
    for position, line in enumerate(lines):
        try:
            row = json.loads(line)
            step = row["step"]
            if type(step) is not int:
                raise TypeError(step)
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


def _numbers(value: Any) -> tuple[float, ...]:
    """A number or a list of numbers (null: NaN) as a tuple; empty for anything else."""
    entries = value if isinstance(value, list) else [value]
    if value is None or any(isinstance(v, bool) or not isinstance(v, int | float | None) for v in entries):
        return ()
    return tuple(math.nan if v is None or not math.isfinite(v) else float(v) for v in entries)


def read_evaluations(folder: Path, notes: list[str]) -> tuple[Evaluation, ...]:
    """In the order of training, base first, then by step; without rollouts, which have files of their own."""
    found: list[Evaluation] = []
    for path in sorted(folder.glob("*.json")):
        if data := json_object(path):
            found.append(_evaluation(data, path))
        else:
            notes.append(f"evaluations/{path.name} holds no JSON object, perhaps still in the writing; left out.")
    return tuple(sorted(found, key=lambda e: (not e.is_base, e.step, e.name)))


def _evaluation(data: Mapping[str, Any], path: Path) -> Evaluation:
    def read(kind: type[_Record], value: Any, where: str) -> _Record:
        return record_of(kind, value, path, where)

    sampled, against_base = data.get("sampled"), data.get("against_base")
    external, wordings = (read(list[dict[Any, Any]], data.get(key) or [], key) for key in ("external", "wordings"))
    assumed = read(dict[Any, Any], data.get("smallest_delta") or {}, "smallest_delta").get("assumed")
    return Evaluation(
        name=path.stem,  # by the documented layout the same as data["name"], and surely a file name
        step=read(int, data.get("step", 0), "step"),
        task=str(data.get("task", "")),
        about=str(data.get("about") or data.get("task", "")),
        split=str(data.get("split", "")),
        decoding=str(data.get("decoding", "")),
        seconds=read(float, data.get("seconds", 0.0), "seconds"),
        summary=read(Summary, data.get("summary"), "summary"),
        rollouts=(),
        sampled=read(Summary, sampled, "sampled") if sampled else None,
        controls=read(dict[Any, Summary], data.get("controls") or {}, "controls"),
        external=tuple(
            (str(each.get("path")), read(Summary, each.get("summary"), f"external.{place}.summary"))
            for place, each in enumerate(external)
        ),
        wordings=tuple(
            Wording(
                str(each.get("name")), str(each.get("prompt")),
                read(Summary, each.get("summary"), f"wordings.{place}.summary"), (),
                read(dict[Any, Estimate], each.get("less"), f"wordings.{place}.less"),
            )
            for place, each in enumerate(wordings)
        ),
        against_base=read(Change, against_base, "against_base") if against_base else None,
        assumed=None if assumed is None else read(float, assumed, "smallest_delta.assumed"),
    )  # fmt: skip


def _read_sources(folder: Path, evaluations: tuple[Evaluation, ...], notes: list[str]) -> tuple[RolloutSource, ...]:
    """The latest evaluation first, as it is what a reader wants to see; training rollouts last."""
    kept = folder / "evaluations"
    files = [(e.label, kept / f"{e.name}.rollouts.jsonl") for e in reversed(evaluations)]
    for e in reversed(evaluations):  # the first wording is the evaluation itself
        files += [(f"{e.label}, asked as {w.name}", kept / f"{e.name}@{w.name}.rollouts.jsonl") for w in e.wordings[1:]]
    files.append(("while training", folder / "rollouts.jsonl"))
    return read_sources([(label, path) for label, path in files if path.is_file()], notes)
