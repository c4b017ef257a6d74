"""The one token loss: REINFORCE with the KL to the reference inside each attempt's return (Eq. 2-4).

Axes: B rollouts, T tokens of a sequence, N trained tokens in row-major order of `attempt_BT > 0`.

For attempt a with return R_a, baseline folded into the advantage, and KL weight beta_a, the gradient estimated is
    grad E_{y_a ~ pi(.|x_a)} [ R_a - beta_a * sum_t log pi(y_t|s_t) / pi_ref(y_t|s_t) ]     for contexts x_a as sampled
Two estimators of the KL part, both exact in expectation (tests/oracles/test_enumeration.py):
  k1        the log-ratio of each sampled token, summed to go, is subtracted from the advantage
  analytic  KL(pi(.|s_t) || pi_ref(.|s_t)) over the vocabulary: its gradient at s_t directly, and its value at later
            tokens of the attempt, to go, subtracted from the advantage. Lower variance; needs both full softmaxes.
Differentiating k1, k2 or k3 as a loss, or leaving out the to-go part, is not the gradient of the KL.

Both distributions are taken at the sampling temperature: that is the policy that acted.

An engine of its own samples from a distribution mu that differs from pi by rounding. Then every score d log pi(y_t|s_t)
is weighed by min(cap, pi(y_t|s_t) / mu(y_t|s_t)), held fixed: truncated importance sampling (Ionides 2008), a token at
a time as in IMPALA (Espeholt et al. 2018). The product over an attempt would be exact for contexts as sampled, but its
variance grows with the length; the weight of a token is exact to first order in the gap, the states before and the
tokens after it being mu's. It weighs the advantage and the KL to go, which ride on a sampled token, and not the
analytic KL at the state itself, which no sampled token enters.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from selfcorrect.learning.batching import Batch
from selfcorrect.learning.vocabulary import KLEstimator, score
from selfcorrect.models.head import States


@dataclass(frozen=True, slots=True)
class TokenLoss:
    """loss_B: each rollout's summed token loss, differentiable. Detached: kl_BT, logprobs_BT (0 where untrained)."""

    loss_B: Tensor
    kl_BT: Tensor
    logprobs_BT: Tensor


def token_loss(
    policy: States,
    reference: States | None,
    batch: Batch,
    temperature: float,
    estimator: KLEstimator = "analytic",
    cap: float | None = None,
    *,
    in_place: bool = False,
) -> TokenLoss:
    """Loss of every rollout; the caller sums and divides by the whole step's count of rollouts.

    policy: what the trained tokens are predicted from (at the position before each); reference the same of the
    reference model, or None where every KL weight is 0. cap: of importance weights; None leaves them out.
    in_place: see `score`.
    """
    trained_BT = batch.attempt_BT > 0
    ids_N = batch.token_ids_BT[trained_BT]
    logprobs_N, kl_N = score(policy, reference, ids_N, temperature, estimator, in_place=in_place)
    weights_N = batch.advantages_BT[trained_BT].to(logprobs_N.dtype)
    coef_N = batch.kl_coef_BT[trained_BT].to(logprobs_N.dtype)
    if reference is None:
        assert not coef_N.any(), "a KL weight without a reference would be dropped in silence"
    else:
        to_go_N = to_go(_scatter(kl_N.detach(), trained_BT), batch.attempt_BT)[trained_BT]
        # k1's own term depends on the sampled token; the analytic one does not and has its own gradient.
        later_N = to_go_N - kl_N.detach() if estimator == "analytic" else to_go_N
        weights_N = weights_N - coef_N * later_N
    if cap is not None:
        weights_N = weights_N * importance(logprobs_N, batch.sampler_logprobs_BT[trained_BT], cap)
    loss_N = -logprobs_N * weights_N
    if estimator == "analytic":
        loss_N = loss_N + coef_N * kl_N
    return TokenLoss(
        loss_B=_scatter(loss_N, trained_BT).sum(1),
        kl_BT=_scatter(kl_N.detach(), trained_BT),
        logprobs_BT=_scatter(logprobs_N.detach(), trained_BT),
    )


def importance(logprobs_N: Tensor, sampler_logprobs_N: Tensor, cap: float) -> Tensor:
    """min(cap, pi / mu) of each token, without gradient."""
    return (logprobs_N.detach() - sampler_logprobs_N).exp().clamp(max=cap)


def to_go(values_BT: Tensor, attempt_BT: Tensor) -> Tensor:
    """Sum of each token's value and those after it within the same attempt [B, T]; 0 where attempt is 0."""
    result_BT = torch.zeros_like(values_BT)
    for attempt in range(1, int(attempt_BT.max()) + 1):
        mine_BT = attempt_BT == attempt
        summed_BT = (values_BT * mine_BT).flip(1).cumsum(1).flip(1)
        result_BT = torch.where(mine_BT, summed_BT, result_BT)
    return result_BT


def _scatter(values_N: Tensor, where_BT: Tensor) -> Tensor:
    return torch.zeros(where_BT.shape, dtype=values_N.dtype, device=values_N.device).masked_scatter(where_BT, values_N)
