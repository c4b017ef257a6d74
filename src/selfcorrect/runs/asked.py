"""What a run trains on and is graded by, beyond its settings: files may change between a stop and a resume."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from selfcorrect.config import CustomConfig, SupervisedStage, TrainConfig
from selfcorrect.evaluation.evaluate import digest
from selfcorrect.models.chat import Chat
from selfcorrect.tasks.base import Task
from selfcorrect.tasks.dataset import DataTask
from selfcorrect.types import Problem

Digests = dict[str, str]


def asked_of(config: TrainConfig, task: Task, evaluated: Mapping[str, Sequence[Problem]], chat: Chat) -> Digests:
    """By what it is, a digest of its content. evaluated: problems by what they are for.

    Of a task that generates its problems, those of the first step stand for all.
    """
    drawn = list(task.train) if isinstance(task, DataTask) else task.draw(1, config.rollouts.problems_per_step, 0)
    sets = {"training": drawn, **evaluated}
    found = {f"the {name} problems, or what is asked by them": digest(rows, task, chat) for name, rows in sets.items()}
    if isinstance(config.task, CustomConfig):
        found[f"the file {Path(config.task.file).name}"] = file_digest(config.task.file)
    traces = {s.name: s.traces for s in config.stages if isinstance(s, SupervisedStage) and s.traces}
    return found | {_traces(name): file_digest(file) for name, file in traces.items()}


def changed(before: Mapping[str, str], now: Mapping[str, str], to_come: Sequence[str]) -> list[str]:
    """What differs. to_come: stages that have not begun, whose traces are free; what only one names does not count."""
    free = set(map(_traces, to_come))
    return [name for name, digest_ in before.items() if name not in free and now.get(name, digest_) != digest_]


def file_digest(file: str) -> str:
    return hashlib.sha256(Path(file).expanduser().read_bytes()).hexdigest()[:16]


def _traces(stage: str) -> str:
    return f"the traces of stage {stage}"
