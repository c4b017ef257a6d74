"""Where a run stands, and what a step did: the rows of metrics.jsonl. Axes: A attempts."""

import time
from dataclasses import dataclass, field
from math import nan
from typing import Any

from torch import Tensor

from selfcorrect.types import Rollout


@dataclass(slots=True)
class Progress:
    """Where a run stands: all that a checkpoint needs beside weights and optimiser."""

    stage: int = 0  # index into config.stages
    stage_step: int = 0  # steps done in this stage
    step: int = 0  # steps done in the run
    smoothed_reward: float | None = None
    best_reward: float | None = None  # highest smoothed reward at a checkpoint of this stage
    bad_in_a_row: int = 0
    skipped: int = 0
    beta2: float | None = None  # where the stage adapts it


@dataclass(slots=True, kw_only=True)
class StepResult:
    """What one step did; a row of metrics.jsonl. Lists have one entry an attempt; kl in nats an attempt.

    Rewards, accuracy, delta, fixed, broken and unchanged are over rollouts whose first attempt the policy wrote, where
    there are any; all but rewards take an attempt that earned a part as wrong, like evaluations. completions: how many
    were sampled for this step; recorded attempts were not. equal_groups: the share of problems at which all sampled
    attempts earned the same, so that none has an advantage; None where no rollout counts. longest: the longest
    rollout's tokens, prompts included. A supervised step leaves empty what it has not.
    """

    step: int
    stage: str
    stage_step: int
    rewards: list[float] = field(default_factory=list)
    accuracy: list[float] = field(default_factory=list)
    smoothed_reward: float = nan
    delta: float = nan
    fixed: float = nan
    broken: float = nan
    unchanged: float = nan
    kl: list[float] = field(default_factory=list)
    entropy: list[float] = field(default_factory=list)
    loss: float
    grad_norm: float
    learning_rate: float
    sampler_gap: float = nan
    completions: int
    sampled_tokens: int = 0
    tokens_per_second: float = nan
    seconds: float
    seconds_by_part: dict[str, float]
    grader_failed: int = 0
    truncated: list[float] = field(default_factory=list)
    skipped: bool
    skip_reason: str
    beta2: float | None = None
    equal_groups: float | None = None
    longest: int = 0
    rollouts: list[Rollout] = field(default_factory=list, repr=False)

    def row(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__dataclass_fields__ if name != "rollouts"}


@dataclass(slots=True)
class Update:
    """What the gradient step saw. Sums over the included rollouts, by attempt; rows_A: how many train the attempt."""

    loss: float
    grad_norm: float
    kl_A: Tensor
    neg_logprob_A: Tensor
    gap_A: Tensor
    tokens_A: Tensor
    rows_A: Tensor
    skip_reason: str

    @property
    def mean_kl_A(self) -> Tensor:
        return self.kl_A / self.rows_A.clamp(min=1)


class Clock:
    """Seconds by part of a step."""

    def __init__(self) -> None:
        self._began = self._last = time.perf_counter()
        self.parts: dict[str, float] = {}

    def lap(self, part: str) -> None:
        now = time.perf_counter()
        self.parts[part] = self.parts.get(part, 0.0) + now - self._last
        self._last = now

    def move(self, part: str, other: str, seconds: float) -> None:
        """Count `seconds` of one part as another's."""
        self.parts[part] -= seconds
        self.parts[other] = self.parts.get(other, 0.0) + seconds

    @property
    def total(self) -> float:
        return self._last - self._began
