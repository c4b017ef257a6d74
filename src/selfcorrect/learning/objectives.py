"""Rewards -> Credit -> advantages: every objective as a pure function.

Axes: B rollouts (a problem's G rollouts stand together), A attempts. The KL terms are not in the returns:
they depend on tokens, and losses.py adds them inside each attempt's return with the coefficients given here.

Every attempt is credited with its own reward only (App. A.2, gamma = 0), so attempt 1's gradient depends
neither on later rewards nor on alpha. With gamma > 0 an attempt is also paid for what follows it.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Credit:
    """What each attempt is paid, before KL, and what its KL to the reference costs.

    returns_BA: the payments; kl_coef_A: weight of each attempt's KL; known_BA: the part of each return that was
    fixed before the attempt began (the bonus's -alpha * r_{a-1}): no credit to the attempt, only noise.
    """

    returns_BA: Tensor
    kl_coef_A: tuple[float, ...]
    known_BA: Tensor | None = None


def stage_one(rewards_BA: Tensor, beta1: float, beta2: float) -> Credit:
    """Eq. 3: attempt 1 earns nothing and is held by beta1 + beta2; later attempts earn their reward.

    The paper has two attempts; with more, each later one earns its own reward.
    """
    returns_BA = rewards_BA.clone()
    returns_BA[:, 0] = 0
    return Credit(returns_BA, (beta1 + beta2, *[beta1] * (rewards_BA.shape[1] - 1)))


def stage_two(rewards_BA: Tensor, beta1: float, alpha: float, gamma: float = 0.0) -> Credit:
    """Eq. 4 with the bonus: attempt a >= 2 earns r_a + alpha * (r_a - r_{a-1}); attempt 1 earns r_1."""
    shaped_BA = rewards_BA.clone()
    shaped_BA[:, 1:] += alpha * (rewards_BA[:, 1:] - rewards_BA[:, :-1])
    known_BA = torch.nn.functional.pad(-alpha * rewards_BA[:, :-1], (1, 0))
    return Credit(discount(shaped_BA, gamma), (beta1,) * rewards_BA.shape[1], known_BA)


def annealed(rewards_BA: Tensor, beta1: float, beta2: float, alpha: float, share: float) -> Credit:
    """Between the stages: (1 - share) of Stage I's credit and `share` of Stage II's (the paper's outlook, Sec. 7)."""
    one, two = stage_one(rewards_BA, beta1, beta2), stage_two(rewards_BA, beta1, alpha)
    assert two.known_BA is not None
    kl_coef_A = tuple((1 - share) * a + share * b for a, b in zip(one.kl_coef_A, two.kl_coef_A, strict=True))
    return Credit((1 - share) * one.returns_BA + share * two.returns_BA, kl_coef_A, share * two.known_BA)


def single_turn(rewards_BA: Tensor, beta1: float) -> Credit:
    """Eq. 2 on attempt 1 alone; later attempts, where played, earn nothing and carry no KL."""
    returns_BA = torch.zeros_like(rewards_BA)
    returns_BA[:, 0] = rewards_BA[:, 0]
    return Credit(returns_BA, (beta1, *[0.0] * (rewards_BA.shape[1] - 1)))


def multi_turn(rewards_BA: Tensor, beta1: float, *, last_only: bool, gamma: float = 0.0) -> Credit:
    """Eq. 1 without shaping: the last attempt alone earns its reward (Sec. 5), or every attempt its own."""
    returns_BA = rewards_BA.clone()
    if last_only:
        returns_BA[:, :-1] = 0
    return Credit(discount(returns_BA, gamma), (beta1,) * rewards_BA.shape[1])


def discount(returns_BA: Tensor, gamma: float) -> Tensor:
    """R_a = sum over k >= a of gamma^(k-a) * r_k; gamma = 0 leaves every attempt its own."""
    discounted_BA = returns_BA.clone()
    for attempt in range(returns_BA.shape[1] - 2, -1, -1):
        discounted_BA[:, attempt] += gamma * discounted_BA[:, attempt + 1]
    return discounted_BA


def advantages(
    returns_BA: Tensor, included_B: Tensor, group: int, *, leave_one_out: bool, normalize_std: bool = False
) -> Tensor:
    """Returns - baseline, per attempt [B, A]; 0 for rollouts that are not included.

    leave_one_out: the baseline of a rollout is the mean return of the other included rollouts of its problem
    (unbiased: it does not depend on the rollout itself). A rollout left alone in its group gets advantage 0.
    normalize_std: divide by the group's standard deviation per attempt; cancels most of alpha, so off by default.
    """
    if len(returns_BA) % group:
        raise ValueError(f"{len(returns_BA)} rollouts do not divide into groups of {group}")
    # float64: in float32 a group of equal returns may leave rounding, which normalising would blow up.
    returns_NGA = returns_BA.double().reshape(-1, group, returns_BA.shape[1])
    weight_NG1 = included_B.reshape(-1, group, 1).double()
    if not leave_one_out:
        return (returns_NGA * weight_NG1).reshape_as(returns_BA).to(returns_BA.dtype)
    count_N11 = weight_NG1.sum(1, keepdim=True)
    total_N1A = (returns_NGA * weight_NG1).sum(1, keepdim=True)
    others_NGA = (total_N1A - returns_NGA) / (count_N11 - 1).clamp(min=1)
    advantages_NGA = (returns_NGA - others_NGA) * weight_NG1 * (count_N11 > 1)
    if normalize_std:
        mean_N1A = total_N1A / count_N11.clamp(min=1)
        variance_N1A = ((returns_NGA - mean_N1A) ** 2 * weight_NG1).sum(1, keepdim=True) / (count_N11 - 1).clamp(min=1)
        advantages_NGA = advantages_NGA / (variance_N1A.sqrt() + 1e-6)
    return advantages_NGA.reshape_as(returns_BA).to(returns_BA.dtype)


def advantages_given_history(credit: Credit, rewards_BA: Tensor, included_B: Tensor, group: int) -> Tensor:
    """Returns - baseline [B, A], the baseline of attempt a taken from rollouts with the same earlier rewards.

    Attempts 2 of a group answer different contexts: after a right first attempt the question is whether to keep
    it, after a wrong one whether it can be mended. So attempt a of a rollout is compared with the other included
    rollouts of its problem whose attempts 1..a-1 earned the same; where there is none, with all others, each without
    the part of its return that was known beforehand. Both depend only on the context and on other rollouts, so the
    gradient stays exact in expectation, and the bonus adds none of its alpha-fold noise.
    """
    known_BA = torch.zeros_like(credit.returns_BA) if credit.known_BA is None else credit.known_BA
    shape_NGA = (-1, group, rewards_BA.shape[1])
    returns_NGA = credit.returns_BA.double().reshape(shape_NGA)
    fresh_NGA = returns_NGA - known_BA.double().reshape(shape_NGA)
    rewards_NGA = rewards_BA.reshape(shape_NGA)
    included_NG = included_B.reshape(-1, group)
    # peer_NGG[n, i, j]: rollout j may stand in the baseline of rollout i.
    peer_NGG = included_NG[:, None, :] & ~torch.eye(group, dtype=torch.bool)
    alike_NGG = peer_NGG.clone()
    columns = []
    for attempt in range(rewards_BA.shape[1]):
        if attempt:
            earlier_NG = rewards_NGA[:, :, attempt - 1]
            alike_NGG &= earlier_NG[:, :, None] == earlier_NG[:, None, :]
        returns_NG, fresh_NG = returns_NGA[:, :, attempt], fresh_NGA[:, :, attempt]
        compared_NG = torch.where(
            alike_NGG.any(2), returns_NG - _mean_over(alike_NGG, returns_NG), fresh_NG - _mean_over(peer_NGG, fresh_NG)
        )
        columns.append(compared_NG * included_NG * peer_NGG.any(2))
    return torch.stack(columns, dim=2).reshape_as(rewards_BA).to(rewards_BA.dtype)


def _mean_over(peer_NGG: Tensor, values_NG: Tensor) -> Tensor:
    """For each rollout the mean value of its peers; 0 where it has none."""
    return (peer_NGG * values_NG[:, None, :]).sum(2) / peer_NGG.sum(2).clamp(min=1)
