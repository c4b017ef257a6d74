"""How far the runs of a comparison are, and how long all of it takes, from what they have sampled."""

import time
from collections.abc import Sequence
from contextlib import suppress

from selfcorrect.analysis.read import json_lines
from selfcorrect.comparing.budget import account, evaluated
from selfcorrect.comparing.plan import Job
from selfcorrect.config import TrainConfig
from selfcorrect.errors import DataError

LOOK = 5.0  # seconds between looks for the first completions
FIRST, AGAIN = 60.0, 600.0  # from then to the first estimate, and between those while no run ends


def sampled_by(job: Job) -> int:
    """Completions, a measure of the time it takes: its own stages' and evaluations', without what it takes over."""
    mine = _own(job)
    return account(mine).completions + evaluated(mine, len(mine.stages) + _evaluates_base(job))


def sampled_so_far(job: Job) -> int:
    """Completions of a run under way that its folder tells of; what it takes over is not counted."""
    mine = _own(job)
    stages = [stage.name for stage in mine.stages]
    rows = [row for row in json_lines(job.path / "metrics.jsonl") if row.get("stage") in stages]
    trained: int = sum(row.get("completions", 0) for row in rows)
    names = [*stages, *(["base"] if _evaluates_base(job) else [])]
    folder = job.path / "evaluations"
    ended = [name for name in names if (folder / f"{name}.json").exists()]
    kept = sum(len(json_lines(folder / "kept" / f"{name}.jsonl")) for name in names if name not in ended)
    return trained + evaluated(mine, len(ended)) + kept * mine.rollouts.attempts


def _own(job: Job) -> TrainConfig:
    return job.config.model_copy(update={"stages": job.config.stages[1:]}) if job.shared else job.config


def _evaluates_base(job: Job) -> bool:
    return not (job.trains and (job.shared or job.base))


class Pace:
    """todo: the completions that all runs will sample. Their speed is measured from the first ones seen on."""

    def __init__(self, todo: int) -> None:
        self._todo, self._ended = todo, 0
        self._looked, self._wait = time.monotonic(), LOOK
        self._first = (self._looked, 0)  # when completions were first seen, and how many

    def ended(self, job: Job, running: Sequence[Job]) -> float:
        """A run is over; returns the seconds that are left for all that are to come."""
        self._ended += sampled_by(job)
        self._looked, self._wait = time.monotonic(), AGAIN
        return self._left(self._sampled(running)) or 0.0

    def due(self, running: Sequence[Job]) -> float | None:
        """The seconds left by what those under way have sampled, where it is time to tell; None where it is not."""
        now = time.monotonic()
        if now - self._looked < self._wait:
            return None
        self._looked, sampled = now, self._sampled(running)
        if not self._first[1]:
            self._first, self._wait = (now, sampled), FIRST if sampled else LOOK
            return None
        left = self._left(sampled)
        self._wait = LOOK if left is None else AGAIN
        return left

    def _sampled(self, running: Sequence[Job]) -> int:
        sampled = self._ended
        for job in running:
            with suppress(DataError):  # a disk that fails for a moment: an estimate ends no comparison
                sampled += min(sampled_so_far(job), sampled_by(job))
        return sampled

    def _left(self, sampled: int) -> float | None:
        began, before = self._first
        if sampled <= before:
            return None
        return (time.monotonic() - began) / (sampled - before) * max(0, self._todo - sampled)
