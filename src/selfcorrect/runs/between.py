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
        own, fixed = self._play(None), self._play(self._first_attempts())
        return {"step": trainer.progress.step, "stage": trainer.stage.name, "own": own, "fixed": fixed}

    def _play(self, given: Sequence[Completion | None] | None) -> dict[str, Any]:
        trainer = self._trainer
        attempts = trainer.config.rollouts.attempts
        rollouts = trainer.ranks.play(
            self._problems, trainer.task, trainer.sampler, trainer.lm.chat, self._params, attempts, given=given
        )
        refuse_nothing_graded(rollouts, f"evaluation after step {trainer.progress.step}")
        return asdict(summarize(rollouts))

    def _first_attempts(self) -> list[Completion | None]:
        """The base model's greedy first attempts, sampled once: greedy, so a resumed run finds the same ones."""
        if self._firsts is None:
            trainer = self._trainer
            assert trainer.base_sampler
            trainer.base_sampler.load_weights(trainer.reference.model)
            contexts = [trainer.lm.chat.first_prompt(problem.prompt) for problem in self._problems]
            readable = [row for row, problem in enumerate(self._problems) if trainer.lm.chat.readable(problem.prompt)]
            sampled = trainer.ranks.sample(trainer.base_sampler, [contexts[row] for row in readable], self._params)
            self._firsts = [None] * len(contexts)
            for row, completion in zip(readable, sampled, strict=True):
                self._firsts[row] = completion
        return self._firsts
