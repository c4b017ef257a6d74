"""Our side: the `train_step` of a run, on a task that serves the benchmark's problems."""

import time
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal

from workload import (
    ADAM_BETAS,
    CORRECTION,
    KL_WEIGHT,
    LEARNING_RATE,
    MAX_GRAD_NORM,
    SEED,
    TEMPERATURE,
    Clock,
    StepTiming,
    Work,
    solved,
)

from selfcorrect.config import ModelConfig, OptimizerConfig, RolloutConfig, StageTwo, TrainConfig
from selfcorrect.learning.training import Trainer
from selfcorrect.models.head import States
from selfcorrect.models.language_model import LanguageModel
from selfcorrect.models.loading import load_model
from selfcorrect.runs.checks import fitted
from selfcorrect.samplers.transformers import TransformersSampler
from selfcorrect.types import Completion, Grade, Outcome, Problem, SamplingParams


class OurSide:
    """selfcorrect's Trainer on Stage II, with a KL to the reference inside each attempt's return."""

    name = "selfcorrect"

    def __init__(
        self, model_folder: Path, steps: int, work: Work, micro_batch: int | Literal["auto"] = "auto",
        tuning: Literal["full", "lora"] = "full", *, lean: bool = False,
    ) -> None:  # fmt: skip
        """lean: with the settings that take the least memory, at the price of time."""
        self._clock = Clock()
        config = _config(model_folder, steps, work, 2 if lean else micro_batch, tuning, lean=lean)
        lm = load_model(config.model)
        task = _Task(self._clock, work)
        config, _ = fitted(config, lm, task)  # what a run's `auto` comes to
        reference, sampler = _TimedReference(lm.frozen_copy(), self._clock), _TimedSampler(lm, self._clock)
        self._trainer = Trainer(config, lm, reference, sampler, task)
        self.micro_batch = config.optimizer.rows
        self.chat = lm.chat

    def step(self) -> StepTiming:
        start = time.perf_counter()
        with self._clock.part("step"):
            result = self._trainer.train_step()
        seconds = time.perf_counter() - start
        assert not result.skipped, result.skip_reason
        parts = self._clock.read(seconds)
        # "step" is all that is in no other part: the update without the reference's share, and some bookkeeping.
        parts["policy"] = result.seconds_by_part["update"] - parts["reference"]
        parts["other"] += parts.pop("step") - parts["policy"]
        return StepTiming(result.sampled_tokens, seconds, parts)


def _config(
    model_folder: Path, steps: int, work: Work, micro_batch: int | Literal["auto"], tuning: Literal["full", "lora"],
    *, lean: bool,
) -> TrainConfig:  # fmt: skip
    return TrainConfig(
        seed=SEED,
        model=ModelConfig(
            path=str(model_folder), device="cpu", precision="float32", tuning=tuning, sampling_copies=not lean
        ),
        rollouts=RolloutConfig(
            problems_per_step=work.problems,
            rollouts_per_problem=work.rollouts_per_problem,
            attempts=2,
            temperature=TEMPERATURE,
            max_new_tokens=work.max_new_tokens,
        ),
        stages=(
            StageTwo(name="stage2", objective="stage2", steps=steps, learning_rate=LEARNING_RATE, beta1=KL_WEIGHT),
        ),
        optimizer=OptimizerConfig(
            betas=ADAM_BETAS,
            warmup_steps=0,
            max_grad_norm=MAX_GRAD_NORM,
            micro_batch=micro_batch,
            gradient_checkpointing=True if lean else "auto",
        ),
    )


class _Task:
    """The benchmark's problems, the same ones every step; grades on the clock."""

    name = "benchmark"
    notes: tuple[str, ...] = ()

    def __init__(self, clock: Clock, work: Work) -> None:
        self._clock = clock
        self._problems = [Problem(f"{self.name}-{i}", self.name, text, {}) for i, text in enumerate(work.prompts())]

    def draw(self, step: int, count: int, seed: int) -> list[Problem]:
        return self._problems[:count]

    def held_out(self, count: int) -> list[Problem]:
        return self._problems[:count]

    def longest(self) -> Problem:
        return max(self._problems, key=lambda problem: len(problem.prompt))

    def load(self, path: str) -> list[Problem]:
        raise NotImplementedError("the benchmark reads no files")

    def parse(self, text: str) -> Problem:
        raise NotImplementedError("the benchmark's problems are fixed")

    def correction_prompt(self, problem: Problem) -> str:
        return CORRECTION

    def reworded(self, problem: Problem, template: str) -> str:
        return template

    def grade(self, answers: Sequence[tuple[Problem, str]]) -> list[Grade]:
        with self._clock.part("grading"):
            rights = [solved(text) for _, text in answers]
            return [Grade(Outcome.CORRECT if right else Outcome.WRONG, float(right)) for right in rights]

    def close(self) -> None:
        """Nothing to end."""


class _TimedSampler(TransformersSampler):
    """The transformers sampler on the clock."""

    def __init__(self, lm: LanguageModel, clock: Clock) -> None:
        super().__init__(lm)
        self._clock = clock

    def sample(self, prompts: Sequence[tuple[int, ...]], params: SamplingParams) -> list[Completion]:
        with self._clock.part("sampling"):
            return super().sample(prompts, params)


class _TimedReference(LanguageModel):
    """A frozen reference model on the clock."""

    def __init__(self, lm: LanguageModel, clock: Clock) -> None:
        super().__init__(*(getattr(lm, field.name) for field in fields(lm)))
        self._clock = clock

    def states(self, *args: Any, **kwargs: Any) -> States:
        with self._clock.part("reference"):
            return super().states(*args, **kwargs)
