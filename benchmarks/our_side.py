"""Our side: the `train_step` of a run, on a task that serves the benchmark's problems."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from torch import Tensor
from workload import (
    ADAM_BETAS,
    CORRECTION,
    KL_WEIGHT,
    LEARNING_RATE,
    MAX_GRAD_NORM,
    MAX_NEW_TOKENS,
    PROBLEMS,
    ROLLOUTS_PER_PROBLEM,
    SEED,
    TEMPERATURE,
    Clock,
    StepTiming,
    prompts,
    solved,
)

from selfcorrect.config import ModelConfig, OptimizerConfig, RolloutConfig, StageTwo, TrainConfig
from selfcorrect.learning.training import Trainer
from selfcorrect.models.loading import LanguageModel, load_model
from selfcorrect.samplers.transformers import TransformersSampler
from selfcorrect.tasks.base import Split
from selfcorrect.types import Completion, Grade, Outcome, Problem, SamplingParams

MICRO_BATCH = 8  # rows in one forward: the fastest of 4, 8, 16 and 32 here


class OurSide:
    """selfcorrect's Trainer on Stage II, with a KL to the reference inside each attempt's return."""

    name = "selfcorrect"

    def __init__(self, model_folder: Path, steps: int, micro_batch: int = MICRO_BATCH) -> None:
        self._clock = Clock()
        config = _config(model_folder, steps, micro_batch)
        lm = load_model(config.model)
        self._trainer = Trainer(
            config,
            lm,
            _TimedReference(lm.frozen_copy(), self._clock),
            _TimedSampler(lm, self._clock),
            _Task(self._clock),
        )
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


def _config(model_folder: Path, steps: int, micro_batch: int) -> TrainConfig:
    return TrainConfig(
        seed=SEED,
        model=ModelConfig(path=str(model_folder), device="cpu", precision="float32"),
        rollouts=RolloutConfig(
            problems_per_step=PROBLEMS,
            rollouts_per_problem=ROLLOUTS_PER_PROBLEM,
            attempts=2,
            temperature=TEMPERATURE,
            max_new_tokens=MAX_NEW_TOKENS,
        ),
        stages=(
            StageTwo(name="stage2", objective="stage2", steps=steps, learning_rate=LEARNING_RATE, beta1=KL_WEIGHT),
        ),
        optimizer=OptimizerConfig(
            betas=ADAM_BETAS, warmup_steps=0, max_grad_norm=MAX_GRAD_NORM, micro_batch=micro_batch
        ),
    )


class _Task:
    """The benchmark's problems, the same ones every step; grades on the clock."""

    name = "benchmark"

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def problems(self, split: Split, seed: int) -> Iterator[Problem]:
        return (Problem(f"{self.name}-{i}", self.name, text, {}) for i, text in enumerate(prompts()))

    def load(self, path: str) -> list[Problem]:
        raise NotImplementedError("the benchmark reads no files")

    def parse(self, text: str) -> Problem:
        return Problem(f"{self.name}-typed", self.name, text, {})

    def correction_prompt(self, problem: Problem) -> str:
        return CORRECTION

    def grade(self, problem: Problem, text: str) -> Grade:
        with self._clock.part("grading"):
            right = solved(text)
            return Grade(Outcome.CORRECT if right else Outcome.WRONG, float(right))


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

    def logits(self, *args: Any, **kwargs: Any) -> Tensor:
        with self._clock.part("reference"):
            return super().logits(*args, **kwargs)
