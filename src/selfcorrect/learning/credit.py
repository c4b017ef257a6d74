"""What a recipe names, applied to rewards: its objective and its baseline. Axes: B rollouts, A attempts."""

from torch import Tensor

from selfcorrect.config import AlgorithmConfig, Annealed, MultiTurn, SingleTurn, StageBase, StageOne, StageTwo
from selfcorrect.learning import objectives
from selfcorrect.learning.objectives import Credit
from selfcorrect.learning.record import Progress

_ROUNDING = 1e-9  # what a mean of equal rewards may leave, and no reward that counts


def credit_of(stage: StageBase, rewards_BA: Tensor, progress: Progress | None = None) -> Credit:
    """The objective a recipe's stage names, applied to rewards. progress: where the stage stands."""
    at = progress or Progress()
    match stage:
        case StageOne():
            return objectives.stage_one(rewards_BA, stage.beta1, stage.beta2 if at.beta2 is None else at.beta2)
        case StageTwo():
            return objectives.stage_two(rewards_BA, stage.beta1, stage.alpha, stage.gamma)
        case Annealed():
            done = at.stage_step / stage.steps
            share = min(1.0, max(0.0, (done - stage.begin) / max(1e-9, stage.end - stage.begin)))
            return objectives.annealed(rewards_BA, stage.beta1, stage.beta2, stage.alpha, share)
        case SingleTurn():
            return objectives.single_turn(rewards_BA, stage.beta1)
        case MultiTurn():
            last_only = stage.rewarded == "last"
            return objectives.multi_turn(rewards_BA, stage.beta1, last_only=last_only, gamma=stage.gamma)
        case _:
            raise AssertionError(f"no objective for {type(stage).__name__}")


def advantages_of(
    algorithm: AlgorithmConfig, credit: Credit, rewards_BA: Tensor, included_B: Tensor, group: int
) -> Tensor:
    """The baseline a recipe names, applied to credit: what each attempt is weighed with [B, A].

    rewards_BA: of all attempts; included_B: which rollouts count, the others get 0. The rollouts of a problem stand
    together, `group` of them. Eq. 2 subtracts a baseline; the paper does not say which.
    """
    if algorithm.baseline == "leave_one_out_given_history":
        return objectives.advantages_given_history(credit, rewards_BA, included_B, group)
    leave_one_out = algorithm.baseline == "leave_one_out"
    return objectives.advantages(
        credit.returns_BA, included_B, group, leave_one_out=leave_one_out, normalize_std=algorithm.normalize_std
    )


def equal_groups(advantages_BA: Tensor, sampled_BA: Tensor, included_B: Tensor, group: int) -> float | None:
    """The share of problems at which no sampled attempt has an advantage, as all earned the same: they teach nothing.

    sampled_BA: which attempts train; those that were given do not, whatever they earned. Of the problems that have an
    included rollout; None where none has.
    """
    flat_N = ((advantages_BA.abs() < _ROUNDING) | ~sampled_BA).reshape(-1, group * advantages_BA.shape[1]).all(1)
    counted_N = included_B.reshape(-1, group).any(1)
    return float(flat_N[counted_N].float().mean()) if counted_N.any() else None
