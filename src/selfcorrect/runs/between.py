"""Small evaluations while training: is attempt 2 better after fixed first attempts, or its own (Fig. 5)?"""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from selfcorrect.evaluation.metrics import refuse_nothing_graded, summarize
from selfcorrect.learning.training import Trainer
from selfcorrect.seeds import derive_seed
from selfcorrect.types import Completion, Problem, SamplingParams


class Between:
    """Greedy evaluations on the same few problems, with the model's own first attempts and with the base model's."""

    def __init__(self, trainer: Trainer, problems: Sequence[Problem]) -> None:
        self._trainer, self._problems = trainer, problems
        rollouts = trainer.config.rollouts
        self._params = SamplingParams(0.0, rollouts.max_new_tokens, derive_seed(trainer.config.seed, "between"))
        self._firsts: list[Completion | None] | None = None

    def row(self) -> dict[str, Any]:
        """A line of between.jsonl: step, stage, and both summaries."""
        trainer = self._trainer
        trainer.sampler.load_weights(trainer.lm.model)
        own = self._play(None)
        if self._firsts is None:  # greedy, so a resumed run finds the same ones
            self._firsts = trainer.base_attempts(self._problems, self._params)
        fixed = self._play(self._firsts)
        trainer.rest()
        return {"step": trainer.progress.step, "stage": trainer.stage.name, "own": own, "fixed": fixed}

    def _play(self, given: Sequence[Completion | None] | None) -> dict[str, Any]:
        trainer = self._trainer
        attempts = trainer.config.rollouts.attempts
        rollouts = trainer.ranks.play(
            self._problems, trainer.task, trainer.sampler, trainer.lm.chat, self._params, attempts, given=given
        )
        refuse_nothing_graded(rollouts, f"evaluation after step {trainer.progress.step}")
        return asdict(summarize(rollouts))
