"""The run folder: everything that can be shown later is written here. docs/run_folder.md has the schema."""

import contextlib
import dataclasses
import importlib.metadata
import importlib.util
import json
import math
import os
import platform
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from selfcorrect import __version__
from selfcorrect.config import TrainConfig
from selfcorrect.config.recipe import dump
from selfcorrect.errors import CheckpointError, ConfigError
from selfcorrect.evaluation.evaluate import Evaluation
from selfcorrect.evaluation.metrics import LEFT_OUT
from selfcorrect.models.loading import pick_device, pick_dtype
from selfcorrect.types import Rollout

_VERSIONS = ("torch", "transformers", "tokenizers", "numpy")


class RunFolder:
    """Paths and writers of one run. Lines are appended whole; on resume, those past the checkpoint are cut off."""

    def __init__(self, path: Path, trackers: Sequence["Tracker"] = ()) -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"
        self._trackers = list(trackers)

    @classmethod
    def create(
        cls, path: Path, config: TrainConfig, base: str, notes: Sequence[str] = (), *, trackers: bool = True
    ) -> "RunFolder":
        """A new run folder; config.yaml last, so that its presence says that there is a run to resume.

        base: the base model's fingerprint, which a resumed run must find again. notes: what was told of task and
        model, such as how untrusted programs are confined.
        """
        (path / "evaluations").mkdir(parents=True, exist_ok=True)
        told = {**environment(config.seed), "base_model": base, "notes": list(notes)}
        told["machine"] |= arithmetic(config)
        _write_atomically(path / "environment.json", json.dumps(told, indent=1) + "\n")
        _write_atomically(path / "config.yaml", dump(config))
        return cls(path, make_trackers(path, config, 0) if trackers else ())

    @classmethod
    def reopen(cls, path: Path, config: TrainConfig, step: int, base: str) -> "RunFolder":
        """An existing run that goes on after `step`: later lines of the logs are dropped.

        Raises CheckpointError where the base model is no longer the one the run began with.
        """
        begun_with = json.loads((path / "environment.json").read_text(encoding="utf-8")).get("base_model")
        if begun_with != base:
            raise CheckpointError(
                f"model.path = {config.model.path!r} holds other weights than when {path} began ({base}, not "
                f"{begun_with}), and the KL is measured to them; put the model back, or start another run"
            )
        for name in ("metrics.jsonl", "rollouts.jsonl", "between.jsonl", "alarms.jsonl"):
            _cut(path / name, step)
        return cls(path, make_trackers(path, config, step))

    def log_step(self, row: Mapping[str, Any]) -> None:
        """One line of metrics.jsonl, and the same to every tracker."""
        _append(self.path / "metrics.jsonl", [row])
        for tracker in self._trackers:
            tracker.log(flatten(row), int(row["step"]))

    def log_rollouts(self, rollouts: Iterable[Rollout], **extra: Any) -> None:
        _append(self.path / "rollouts.jsonl", [{**rollout_row(rollout), **extra} for rollout in rollouts])

    def log_between(self, row: Mapping[str, Any]) -> None:
        """One line of between.jsonl; a resumed run may be at a step that stands there already."""
        file = self.path / "between.jsonl"
        _cut(file, int(row["step"]) - 1)
        _append(file, [row])

    def log_alarm(self, row: Mapping[str, Any]) -> None:
        """One line of alarms.jsonl, each alarm once."""
        file = self.path / "alarms.jsonl"
        if not file.exists() or json.dumps(row) not in file.read_text(encoding="utf-8").splitlines():
            _append(file, [row])

    def alarms(self) -> list[dict[str, Any]]:
        """The rows of alarms.jsonl."""
        file = self.path / "alarms.jsonl"
        return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.exists() else []

    def first_right(self, evaluation: str) -> dict[str, bool]:
        """By problem, whether attempt 1 of an evaluation was right; those that could not be graded are left out."""
        lines = (self.path / "evaluations" / f"{evaluation}.rollouts.jsonl").read_text(encoding="utf-8").splitlines()
        rows = [json.loads(line) for line in lines]
        first = {row["id"]: row["attempts"][0]["outcome"] for row in rows if row["attempts"]}
        return {name: outcome == "correct" for name, outcome in first.items() if outcome not in LEFT_OUT}

    def write_evaluation(self, name: str, evaluation: Mapping[str, Any], rollouts: Iterable[Rollout]) -> None:
        """The evaluation's JSON last, so that its presence says that all of it is there."""
        folder = self.path / "evaluations"
        folder.mkdir(exist_ok=True)
        lines = "".join(json.dumps(rollout_row(rollout)) + "\n" for rollout in rollouts)
        _write_atomically(folder / f"{name}.rollouts.jsonl", lines)
        _write_atomically(folder / f"{name}.json", json.dumps(evaluation, indent=1) + "\n")
        for tracker in self._trackers:
            tracker.log(flatten({"evaluation": evaluation["summary"]}), int(evaluation["step"]))

    def has_evaluation(self, name: str) -> bool:
        return (self.path / "evaluations" / f"{name}.json").exists()

    def read_evaluation(self, name: str) -> dict[str, Any]:
        """What write_evaluation wrote."""
        found: dict[str, Any] = json.loads((self.path / "evaluations" / f"{name}.json").read_text(encoding="utf-8"))
        return found

    def close(self) -> None:
        for tracker in self._trackers:
            with contextlib.suppress(OSError):  # a disk that is full was told of before
                tracker.close()


class Tracker:
    """A sink for flat metrics; subclasses wrap one library each."""

    def log(self, values: Mapping[str, float], step: int) -> None:
        raise AssertionError("abstract")

    def close(self) -> None:
        """Flush what is buffered."""


class TensorBoard(Tracker):
    def __init__(self, path: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(str(path), purge_step=step + 1 if step else None)

    def log(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class WandbLike(Tracker):
    """wandb, and trackio, which has the same interface. A run that goes on goes on there too, under its identity."""

    def __init__(self, library: str, path: Path, config: Mapping[str, Any]) -> None:
        started = json.loads((path / "environment.json").read_text(encoding="utf-8"))["started"]
        identity = f"{path.name}-{''.join(filter(str.isalnum, started))}"
        naming = {"name": path.name, "id": identity, "dir": str(path)} if library == "wandb" else {"name": identity}
        self._library: Any = importlib.import_module(library)
        self._library.init(project="selfcorrect", config=dict(config), resume="allow", **naming)

    def log(self, values: Mapping[str, float], step: int) -> None:
        self._library.log(dict(values), step=step)

    def close(self) -> None:
        self._library.finish()


def tracker_names(config: TrainConfig) -> tuple[str, ...]:
    """The recipe's trackers; tensorboard by default where it is installed. Raises ConfigError for a missing one."""
    wanted = config.log.trackers
    if wanted is None:
        return ("tensorboard",) if importlib.util.find_spec("tensorboard") else ()
    for name in wanted:
        if importlib.util.find_spec(name) is None:
            raise ConfigError(f"log.trackers names {name}, which is not installed; pip install 'selfcorrect[{name}]'")
    return wanted


def make_trackers(path: Path, config: TrainConfig, step: int) -> list[Tracker]:
    """Trackers of a run that goes on after `step`. Raises ConfigError as tracker_names does."""
    trackers: list[Tracker] = []
    for name in tracker_names(config):
        if name == "tensorboard":
            trackers.append(TensorBoard(path / "tensorboard", step))
        else:
            trackers.append(WandbLike(name, path, config.model_dump(mode="json")))
    return trackers


def rollout_row(rollout: Rollout) -> dict[str, Any]:
    """A rollout as a plain row: texts and grades, no token ids."""
    return {
        "id": rollout.problem.id,
        "prompt": rollout.problem.prompt,
        "reference": dict(rollout.problem.reference),
        "attempts": [
            {
                "text": attempt.completion.text,
                **dataclasses.asdict(attempt.grade),
                **({"feedback": attempt.feedback} if attempt.feedback else {}),
            }
            for attempt in rollout.attempts
        ],
    }


def environment(seed: int) -> dict[str, Any]:
    """What a reader needs to repeat a measurement: command, seed, versions, machine."""
    versions = {name: importlib.metadata.version(name) for name in _VERSIONS}
    return {
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "seed": seed,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {"python": platform.python_version(), "selfcorrect": __version__, **versions},
        "machine": {
            "processor": _processor(),
            "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
            "threads": torch.get_num_threads(),
            "accelerator": torch.cuda.get_device_name(0) if torch.cuda.is_available() else None,
        },
    }


def arithmetic(config: TrainConfig) -> dict[str, str | None]:
    """What `auto` came to: device, and precision of the forward pass; neither where attempts were recorded."""
    if config.sampler == "recorded":
        return {"device": None, "precision": None}
    device = pick_device(config.model.device)
    return {"device": device.type, "precision": str(pick_dtype(config.model.precision, device)).removeprefix("torch.")}


def flatten(row: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """Nested numbers -> {"rewards/t1": 0.4, ...}; texts and nulls are left out."""
    flat: dict[str, float] = {}
    for key, value in row.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{name}/")
        elif isinstance(value, list | tuple):
            flat |= flatten({f"t{i}": item for i, item in enumerate(value, 1)}, f"{name}/")
        elif isinstance(value, int | float) and math.isfinite(value):
            flat[name] = float(value)
    return flat


def _append(file: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    text = "".join(json.dumps(plain(row), allow_nan=False) + "\n" for row in rows)
    with file.open("a", encoding="utf-8") as stream:
        stream.write(text)


def plain(value: Any) -> Any:
    """The same with null for numbers that are not finite: JSON has none."""
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _cut(file: Path, step: int) -> None:
    """Keep the whole lines of steps up to `step`; a line torn by a crash goes too."""
    if not file.exists():
        return
    kept = []
    for line in file.read_text(encoding="utf-8").splitlines(keepends=True):
        try:
            if line.endswith("\n") and json.loads(line)["step"] <= step:
                kept.append(line)
        except (json.JSONDecodeError, KeyError):
            continue
    _write_atomically(file, "".join(kept))


def _write_atomically(file: Path, text: str) -> None:
    temporary = file.with_name(f".{file.name}.tmp")
    with temporary.open("w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(file)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def evaluation_row(evaluation: Evaluation) -> dict[str, Any]:
    """An evaluation as docs/run_folder.md has it, without its rollouts."""
    return {
        "name": evaluation.name,
        "step": evaluation.step,
        "task": evaluation.task,
        "split": evaluation.split,
        "decoding": evaluation.decoding,
        "seconds": evaluation.seconds,
        "summary": asdict(evaluation.summary),
        "sampled": asdict(evaluation.sampled) if evaluation.sampled else None,
        "controls": {name: asdict(summary) for name, summary in evaluation.controls},
        "external": [{"path": name, "summary": asdict(summary)} for name, summary in evaluation.external],
    }


def keep_evaluation(path: Path, config: TrainConfig, evaluation: Evaluation, notes: Sequence[str]) -> None:
    """A run folder that holds one evaluation and no training; `write_report` shows it."""
    if (path / "config.yaml").exists():
        raise ConfigError(f"{path} already holds a run; choose another name=..., or --output")
    folder = RunFolder.create(path, config, evaluation.name, notes, trackers=False)
    folder.write_evaluation(evaluation.name, evaluation_row(evaluation), evaluation.rollouts)
