"""What a run samples and how often it updates, from its settings alone."""

from dataclasses import dataclass

from selfcorrect.config import PairSFT, RepairConfig, RLStage, SingleTurn, Star, SupervisedStage, TrainConfig


@dataclass(frozen=True, slots=True)
class Account:
    """Sampled completions (one an attempt), and gradient updates."""

    completions: int
    updates: int

    def __add__(self, other: "Account") -> "Account":
        return Account(self.completions + other.completions, self.updates + other.updates)


def account(config: TrainConfig) -> Account:
    """The account of a whole run; evaluation is not counted."""
    return sum((_stage(config, index) for index in range(len(config.stages))), Account(0, 0))


def evaluated(config: TrainConfig, evaluations: int) -> int:
    """Completions that so many evaluations sample: with every wording, and with controls three kinds more.

    Of data sets with fewer problems than the recipe asks for, it is more than that.
    """
    evaluation, attempts = config.evaluation, config.rollouts.attempts
    first = 0 if isinstance(config.task, RepairConfig) else 1  # whether attempt 1 is sampled
    controls = attempts - 1 + first + 2 * (attempts - 1) if evaluation.controls else 0  # of two of them it is given
    each = attempts - 1 + first + len(evaluation.correction_prompts) * (attempts - 1)
    return evaluations * evaluation.problems * (evaluation.samples * each + controls)


def _stage(config: TrainConfig, index: int) -> Account:
    stage, rollouts = config.stages[index], config.rollouts
    if isinstance(stage, RLStage):
        attempts = 1 if isinstance(stage, SingleTurn) else rollouts.attempts
        attempts -= isinstance(config.task, RepairConfig)  # whose attempt 1 is read
        rows = rollouts.problems_per_step * rollouts.rollouts_per_problem
        return Account(stage.steps * rows * attempts, stage.steps)
    assert isinstance(stage, SupervisedStage)
    if stage.traces:
        return Account(0, stage.steps)
    rows = stage.collect * rollouts.rollouts_per_problem
    collections = stage.iterations if isinstance(stage, Star) else 1
    return Account(rows * collections * (1 if isinstance(stage, PairSFT) else 2), stage.steps)
