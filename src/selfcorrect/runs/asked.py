"""What a run trains on and is graded by, beyond its settings: files may change between a stop and a resume."""

import hashlib
import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from selfcorrect.config import CustomConfig, TrainConfig
from selfcorrect.config.paths import ASKED, TASK_FILE
from selfcorrect.errors import CheckpointError
from selfcorrect.evaluation.evaluate import digest
from selfcorrect.evaluation.kept import write_durably
from selfcorrect.models.chat import Chat
from selfcorrect.runs.folder import read_object
from selfcorrect.tasks.base import Task
from selfcorrect.tasks.dataset import DataTask
from selfcorrect.tasks.own import digest_of
from selfcorrect.types import Problem


def asked_of(
    config: TrainConfig, task: Task, evaluated: Sequence[tuple[str, Sequence[Problem]]], chat: Chat
) -> dict[str, str]:  # fmt: skip
    """By what it is, a digest of its content. evaluated: problems by what they are for.

    Of a task that generates its problems, those of the first step stand for all.
    """
    drawn = list(task.train) if isinstance(task, DataTask) else task.draw(1, config.rollouts.problems_per_step, 0)
    found: dict[str, str] = {}
    for name, problems in [("training", drawn), *evaluated]:
        again = f" ({len(found)})" if f"the {name} problems" in found else ""  # two files of one name
        # What asks for a second attempt is a setting, or in the task's file; drawn at random, it differs each time.
        found[f"the {name} problems{again}"] = digest(problems, None, chat)
    if isinstance(config.task, CustomConfig):
        found[TASK_FILE] = digest_of(config.task.file)
    return found


def check_asked(folder: Path, now: Mapping[str, str]) -> None:
    """Keeps with a run what it has not gone by before. Raises CheckpointError where that was something else."""
    file = folder / ASKED
    before = read_object(file) if file.exists() else {}
    if other := [name for name, told in before.items() if now.get(name, told) != told]:
        raise CheckpointError(
            f"{' and '.join(other)} changed since the run in {folder} began: its steps and evaluations so far were "
            "made with what was there; put it back, or begin another run: `selfcorrect train "
            f"{shlex.quote(str(folder / 'config.yaml'))} name=NEW`"
        )
    if now.keys() - before.keys():
        write_durably(file, json.dumps({**before, **now}, indent=1) + "\n")


def file_digest(file: str) -> str:
    return hashlib.sha256(Path(file).read_bytes()).hexdigest()[:16]
