"""The run folder: everything that can be shown later is written here. docs/run_folder.md has the schema."""

import importlib.metadata
import json
import math
import platform
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import torch

from selfcorrect import __version__
from selfcorrect.config import TrainConfig
from selfcorrect.config.paths import USED, asked_by, own_files
from selfcorrect.config.recipe import dump
from selfcorrect.errors import CheckpointError
from selfcorrect.evaluation.averages import means
from selfcorrect.evaluation.evaluate import Evaluation
from selfcorrect.evaluation.flat import rollout_row, rollout_rows
from selfcorrect.evaluation.kept import json_line, write_durably
from selfcorrect.evaluation.metrics import Summary
from selfcorrect.evaluation.stored import read_rollouts, record_of
from selfcorrect.models.loading import pick_device, pick_dtype
from selfcorrect.runs.trackers import Trackers, make_trackers
from selfcorrect.tasks import own
from selfcorrect.types import Rollout
from selfcorrect.waiting import cores

_VERSIONS = ("torch", "transformers", "tokenizers", "numpy")


class RunFolder:
    """Paths and writers of one run. Lines are appended whole; on resume, those past the checkpoint are cut off."""

    def __init__(self, path: Path, trackers: Trackers) -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"
        self._trackers = trackers

    @classmethod
    def create(
        cls, path: Path, config: TrainConfig, base: str, notes: Sequence[str] = (), *, trackers: bool = True,
        say: Callable[[str], None] = lambda text: None, sizes: Mapping[str, Any] | None = None,
    ) -> "RunFolder":  # fmt: skip
        """A new run folder; config.yaml last, so that its presence says that there is a run to resume.

        base: the base model's fingerprint, which a resumed run must find again. notes: what was told of task and
        model, such as how untrusted programs are confined. trackers: a training run's; they are started before
        anything is written, and say is told where one fails. sizes: what `auto` came to for the model (`sizes_begun`).
        """
        told = {**environment(config.seed), "base_model": base, "notes": list(notes), "sizes": sizes or {}}
        told["machine"] |= arithmetic(config)
        path.mkdir(parents=True, exist_ok=True)
        started = make_trackers(path, config, str(told["started"]), 0, say) if trackers else Trackers()
        (path / "evaluations").mkdir(exist_ok=True)
        write_durably(path / "environment.json", json.dumps(told, indent=1) + "\n")
        _keep_own(path, config if trackers else config.model_copy(update={"stages": ()}))
        if trackers:
            write_durably(path / USED, dump(config))
        write_durably(path / "config.yaml", dump(config))
        return cls(path, started)

    @classmethod
    def reopen(
        cls, path: Path, config: TrainConfig, step: int, base: str, say: Callable[[str], None] = lambda text: None
    ) -> "RunFolder":  # fmt: skip
        """An existing run that goes on after `step`: later lines of the logs are dropped.

        Raises CheckpointError where the base model is no longer the one the run began with.
        """
        environment = read_object(path / "environment.json")
        begun_with = environment.get("base_model")
        if begun_with != base:
            raise CheckpointError(
                f"model.path = {config.model.path!r} holds other weights than when {path} began ({base}, not "
                f"{begun_with}), and the KL is measured to them; put the model back, or start another run"
            )
        trackers = make_trackers(path, config, str(environment.get("started", "")), step, say)
        for name in ("metrics.jsonl", "rollouts.jsonl", "between.jsonl", "alarms.jsonl"):
            cut(path / name, step, say)
        _keep_own(path, config)
        return cls(path, trackers)

    def log_changes(self, config: TrainConfig, rows: Iterable[Mapping[str, Any]]) -> None:
        """Settings that the run goes on with: told in changes.jsonl, and config.yaml from now on."""
        _append(self.path / "changes.jsonl", rows)
        write_durably(self.path / "config.yaml", dump(config))
        write_durably(self.path / USED, dump(config))

    def log_step(self, row: Mapping[str, Any]) -> None:
        """One line of metrics.jsonl, and the same to every tracker."""
        _append(self.path / "metrics.jsonl", [row])
        self._trackers.log(row, int(row["step"]))

    def log_rollouts(self, rollouts: Sequence[Rollout], step: int, stage: str) -> None:
        """Lines of rollouts.jsonl, and some of them to every tracker."""
        rows = [{**rollout_row(rollout), "step": step, "stage": stage} for rollout in rollouts]
        _append(self.path / "rollouts.jsonl", rows)
        self._trackers.show("rollouts", rollouts, step)

    def log_between(self, row: Mapping[str, Any]) -> None:
        """One line of between.jsonl, and the same to every tracker; a resumed run may be at a step that is there."""
        file = self.path / "between.jsonl"
        cut(file, int(row["step"]) - 1)
        _append(file, [row])
        self._trackers.log({"between": {"own": row["own"], "fixed": row["fixed"]}}, int(row["step"]))

    def has_between(self, step: int) -> bool:
        return any(row["step"] == step for row in _rows(self.path / "between.jsonl"))

    def log_alarm(self, row: Mapping[str, Any]) -> None:
        """One line of alarms.jsonl, each alarm once."""
        if row not in self.alarms():
            _append(self.path / "alarms.jsonl", [row])

    def log_evaluation_alarms(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """What an evaluation gave alarm of, in place of what one of that name did before."""
        others = [row for row in self.alarms() if not (row.get("evaluation") and row["where"] == name)]
        file, kept = self.path / "alarms.jsonl", [*others, *rows]
        if kept:
            write_durably(file, _lines(kept))
        else:
            file.unlink(missing_ok=True)

    def alarms(self) -> list[dict[str, Any]]:
        """The rows of alarms.jsonl."""
        return _rows(self.path / "alarms.jsonl")

    def steps(self, stage: str) -> list[dict[str, Any]]:
        """The rows of metrics.jsonl that a stage has so far."""
        return [row for row in _rows(self.path / "metrics.jsonl") if row["stage"] == stage]

    def means(self, evaluation: str) -> dict[str, tuple[float, float]]:
        """By problem, how often the first and the last attempt of an evaluation were right; only what was graded."""
        file = self.path / "evaluations" / f"{evaluation}.rollouts.jsonl"
        return means(read_rollouts(file, "")) if file.exists() else {}  # large files may have been removed

    def write_evaluation(self, evaluation: Evaluation) -> None:
        """The evaluation's JSON last, so that its presence says that all of it is there."""
        folder, name = self.path / "evaluations", evaluation.name
        folder.mkdir(exist_ok=True)
        told = evaluation.to_dict()
        write_durably(folder / f"{name}.rollouts.jsonl", _lines(rollout_rows(evaluation.rollouts)))
        for wording in evaluation.wordings[1:]:  # the first is the evaluation itself
            write_durably(folder / f"{name}@{wording.name}.rollouts.jsonl", _lines(rollout_rows(wording.rollouts)))
        write_durably(folder / f"{name}.json", json.dumps(told, indent=1) + "\n")
        self._trackers.log({"evaluation": told["summary"]}, evaluation.step)
        self._trackers.show("evaluation/rollouts", evaluation.rollouts, evaluation.step)

    def has_evaluation(self, name: str) -> bool:
        return (self.path / "evaluations" / f"{name}.json").exists()

    def read_summaries(self, evaluation: str) -> tuple[Summary, Summary | None]:
        """Of what write_evaluation wrote: the summary, and that of the samples where it has one. Raises UserError kinds
        where it is not there, or damaged.
        """
        file = self.path / "evaluations" / f"{evaluation}.json"
        told = read_object(file)
        sampled = told.get("sampled")
        hot = record_of(Summary, sampled, file, "sampled") if sampled else None
        return record_of(Summary, told.get("summary"), file, "summary"), hot

    def close(self) -> None:
        self._trackers.close()


def _keep_own(path: Path, config: TrainConfig) -> None:
    """Copies the Python files of the user's own which the run has not gone by yet."""
    gone_by = asked_by(path)
    for each in own_files(config):
        if each.told not in gone_by:
            own.keep(each.file, path / each.kept)


def _lines(rows: Iterable[Mapping[str, Any]]) -> str:
    return "".join(json_line(plain(row)) + "\n" for row in rows)


@cache
def version_of(package: str) -> str | None:
    """None of one that is not installed."""
    try:
        return importlib.metadata.version(package)  # which reads and parses a file of thousands of lines
    except importlib.metadata.PackageNotFoundError:
        return None


def environment(seed: int) -> dict[str, Any]:
    """What a reader needs to repeat a measurement: command, seed, versions, machine."""
    versions = {name: version_of(name) for name in _VERSIONS}
    return {
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "seed": seed,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {"python": platform.python_version(), "selfcorrect": __version__, **versions},
        "machine": {
            "processor": processor(),
            "cores": cores(),
            "threads": torch.get_num_threads(),
            "accelerator": torch.cuda.get_device_name(0) if torch.cuda.is_available() else None,
        },
    }


def sizes_begun(path: Path, config: TrainConfig) -> dict[str, Any]:
    """What `auto` came to when a run began; empty where there is none, or it began on another device.

    A card may have other memory free by now, and other sizes round in another way.
    """
    file = path / "environment.json"
    begun = read_object(file) if file.is_file() else {}
    here = environment(config.seed)["machine"] | arithmetic(config)
    same = all(begun.get("machine", {}).get(name) == here[name] for name in ("accelerator", "device"))
    return begun.get("sizes") or {} if same else {}


def arithmetic(config: TrainConfig) -> dict[str, str | None]:
    """What `auto` came to: device, and precision of the forward pass; neither where attempts come from elsewhere."""
    if config.sampler in ("recorded", "endpoint"):
        return {"device": None, "precision": None}
    device = pick_device(config.model.device)
    dtype = pick_dtype(config.model.precision, device, config.model.weights)
    return {"device": device.type, "precision": str(dtype).removeprefix("torch.")}


def _rows(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.exists() else []


def _append(file: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    text = _lines(rows)
    with file.open("a", encoding="utf-8") as stream:
        stream.write(text)


def plain(value: Any) -> Any:
    """The same with null for numbers that are not finite: JSON has none."""
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_object(file: Path) -> dict[str, Any]:
    """A JSON file of a run. Raises CheckpointError where it is not there, or damaged."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError("no JSON object")
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else f"damaged: {error}"
        raise CheckpointError(
            f"{file}: {why}; the run wrote it and needs it to go on: put it back from a copy, or begin another run"
        ) from None
    return found


def cut(file: Path, step: int, say: Callable[[str], None] = lambda text: None) -> None:
    """Keep the whole lines of steps up to `step`. A last line torn by a crash goes unsaid, others are told of."""
    if not file.exists():
        return
    kept, damaged = [], []
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
    for number, line in enumerate(lines, 1):
        try:
            if line.endswith("\n") and json.loads(line)["step"] <= step:
                kept.append(line)
        except (ValueError, KeyError, TypeError):
            damaged += [number] if number < len(lines) else []
    if damaged:
        shown = ", ".join(map(str, damaged[:3])) + (", ..." if len(damaged) > 3 else "")
        say(f"warning: {file}: {len(damaged)} lines are damaged and left out from now on (line {shown})")
    write_durably(file, "".join(kept))


def processor() -> str:
    """Its name, as the system gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def keep_evaluation(
    path: Path, config: TrainConfig, evaluation: Evaluation, notes: Sequence[str], alarm: str | None = None
) -> None:
    """A run folder that holds one evaluation and no training; `write_report` shows it, with the alarm."""
    folder = RunFolder.create(path, config, evaluation.name, notes, trackers=False)
    folder.write_evaluation(evaluation)
    if alarm:
        folder.log_alarm({"step": evaluation.step, "where": evaluation.name, "alarm": alarm})
