"""Evaluation: problems -> play (greedy) -> grade -> summarize. Imports no training code.

Two controls ask whether attempt 2 reads attempt 1: before attempt 2 is written, attempt 1 is replaced by the
attempt of another problem (`swapped`), or by another one at the same problem, sampled at temperature 1
(`independent`).
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from selfcorrect.config import SelfRefineConfig, TrainConfig
from selfcorrect.errors import ConfigError
from selfcorrect.evaluation.metrics import Summary, refuse_nothing_graded, summarize
from selfcorrect.models.chat import Chat
from selfcorrect.rollout import play
from selfcorrect.samplers.base import Sampler
from selfcorrect.seeds import derive_seed
from selfcorrect.tasks.base import Task
from selfcorrect.types import Problem, Rollout, SamplingParams


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One evaluation of one model. rollouts: the greedy ones; external: (file name, summary) pairs."""

    name: str
    step: int
    task: str
    seconds: float
    summary: Summary
    rollouts: tuple[Rollout, ...]
    sampled: Summary | None = None
    controls: tuple[tuple[str, Summary], ...] = ()
    external: tuple[tuple[str, Summary], ...] = ()
    decoding: str = "greedy"
    split: str = "test"


@dataclass(frozen=True, slots=True)
class Evaluator:
    """What stays the same from evaluation to evaluation: the task, the held-out problems, the limits."""

    task: Task
    problems: Sequence[Problem]
    attempts: int
    max_new_tokens: int
    seed: int
    controls: bool = True
    external: Sequence[tuple[str, Sequence[Problem]]] = ()
    decoding: str = "greedy"
    split: str = "test"
    refine: SelfRefineConfig | None = None

    def run(self, name: str, step: int, sampler: Sampler, chat: Chat) -> Evaluation:
        """Evaluate what `sampler` now samples from. The problems and draws are the same at every call.

        Raises NothingGraded where not one problem could be sampled and graded.
        """
        began = time.monotonic()

        def rollouts(
            problems: Sequence[Problem], temperature: float, given: Sequence[Rollout] | None = None
        ) -> list[Rollout]:
            params = SamplingParams(temperature, self.max_new_tokens, derive_seed(self.seed, "evaluate"))
            first = [rollout.attempts[0].completion for rollout in given] if given else None
            found = play(problems, self.task, sampler, chat, params, self.attempts, given=first, refine=self.refine)
            refuse_nothing_graded(found, f"evaluation {name}")
            return found

        greedy = rollouts(self.problems, 0.0)
        sampled = rollouts(self.problems, 1.0) if self.controls else []
        controls = []
        if self.controls:
            shifted = [*greedy[1:], *greedy[:1]]
            controls.append(("swapped", summarize(rollouts(self.problems, 0.0, shifted))))
            if any(problem.first_attempt is None for problem in self.problems):  # recorded ones have no other draw
                controls.append(("independent", summarize(rollouts(self.problems, 0.0, sampled))))
        external = [(label, summarize(rollouts(problems, 0.0))) for label, problems in self.external]
        return Evaluation(
            name=name,
            step=step,
            task=self.task.name,
            seconds=time.monotonic() - began,
            summary=summarize(greedy),
            rollouts=tuple(greedy),
            sampled=summarize(sampled) if sampled else None,
            controls=tuple(controls),
            external=tuple(external),
            decoding=self.decoding,
            split=self.split,
        )


def load_external(task: Task, paths: Sequence[str]) -> list[tuple[str, list[Problem]]]:
    """Each file's name and problems. Raises DataError with file and line."""
    return [(Path(path).name, task.load(path)) for path in paths]


def evaluated_problems(config: TrainConfig, task: Task) -> list[Problem]:
    """Those of `evaluation`: held out, or training problems (of step 0, each once)."""
    count, offset = config.evaluation.problems, config.evaluation.offset
    if config.evaluation.split == "train":
        return list({problem.id: problem for problem in task.draw(0, count, 0)}.values())
    left_out = {problem.id for problem in task.held_out(offset)} if offset else set()
    found = [problem for problem in task.held_out(offset + count) if problem.id not in left_out]
    if not found:
        raise ConfigError(
            f"evaluation.offset = {offset} leaves none of the {len(left_out)} held-out problems; lower it"
        )
    return found
