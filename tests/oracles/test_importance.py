"""Oracle: the expectation of the loss's gradient where another distribution samples than trains, over every rollout.

The sampler is the policy with known amounts added to its logits. Expected values are written down here again, from the
definition: contexts as the sampler draws them, one token at a time from the policy, the tokens after it the sampler's.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor

from selfcorrect.learning import losses
from selfcorrect.learning.batching import Batch
from selfcorrect.learning.losses import TokenLoss, token_loss
from selfcorrect.learning.vocabulary import KLEstimator
from selfcorrect.models.head import Head, States
from tests.oracles.test_enumeration import PLANTED, TOLERANCE, batch_of_pairs, contexts_of, of_pairs, toy_named
from tests.oracles.toy import OBJECTIVES, Toy

CAPS = (math.inf, 1.2)


@cache
def sampler_of(name: str) -> Toy:
    toy = toy_named(name)
    shift_CV = torch.randn(toy.logits_CV.shape, generator=torch.Generator().manual_seed(11), dtype=torch.float64)
    return replace(toy, logits_CV=toy.logits_CV + 0.5 * shift_CV)


@cache
def sampled(name: str, objective: str) -> tuple[Batch, Tensor, Tensor]:
    """Every pair of rollouts as make_batch makes it of them, leave-one-out; contexts [B, T]; the sampler's weight [B]."""
    toy, sampler = toy_named(name), sampler_of(name)
    batch, rows = batch_of_pairs(toy, objective)
    context_BT = contexts_of(toy, batch)
    table_CV = sampler.tempered(sampler.logits_CV)
    drawn_BT = table_CV[context_BT, batch.token_ids_BT.clamp(max=toy.vocabulary - 1)] * (batch.attempt_BT > 0)
    return replace(batch, sampler_logprobs_BT=drawn_BT), context_BT, of_pairs(sampler.probabilities_B(), rows)


def expected(
    name: str, objective: str, estimator: KLEstimator, cap: float | None, loss: Callable[..., TokenLoss]
) -> Tensor:
    """By the code under test: groups of two, each pair with the sampler's probability of it [C, V]."""
    toy, (batch, context_BT, of_pair_B) = toy_named(name), sampled(name, objective)
    context_N = context_BT[batch.attempt_BT > 0]
    logits_CV = toy.logits_CV.clone().requires_grad_()
    policy = States(logits_CV[context_N], Head(torch.eye(toy.vocabulary, dtype=torch.float64)))
    reference = States(toy.ref_logits_CV[context_N])
    result = loss(policy, reference, batch, toy.temperature, estimator, cap)
    (gradient_CV,) = torch.autograd.grad((result.loss_B * of_pair_B).sum(), logits_CV)
    return -gradient_CV


@cache
def enumerated(name: str, objective: str, estimator: KLEstimator, cap: float) -> Tensor:
    """The same by hand: for each rollout and token, min(cap * mu, pi) of the token times the rest as it was sampled."""
    toy, sampler, made = toy_named(name), sampler_of(name), OBJECTIVES[objective]
    logits_CV = toy.logits_CV.clone().requires_grad_()
    log_pi_CV, log_mu_CV = toy.tempered(logits_CV), sampler.tempered(sampler.logits_CV)
    ratio_CV = log_pi_CV - toy.tempered(toy.ref_logits_CV)
    kl_C = (log_pi_CV.exp() * ratio_CV).sum(1)
    attempts = range(toy.rewards_BA.shape[1])
    beta, probability_B = made.beta(len(attempts)), sampler.probabilities_B()
    pays = [made.pay(rewards) for rewards in toy.rewards_BA.tolist()]
    earned_BA = torch.tensor(
        [[sum(made.gamma ** (k - a) * pay[k] for k in attempts[a:]) for a in attempts] for pay in pays],
        dtype=torch.float64,
    )
    baseline_A = probability_B @ earned_BA
    value = torch.zeros((), dtype=torch.float64)
    for path, whole, earned_A in zip(toy.paths_B, probability_B, earned_BA, strict=True):
        for a in attempts:
            prefix, steps = toy.context_ids(path, a), []
            for token in path[a]:
                steps.append((toy.contexts[prefix], token))
                prefix = (*prefix, token)
            for t, (context, token) in enumerate(steps):
                to_go = sum(
                    kl_C[c] if estimator == "analytic" else ratio_CV[c, v]
                    for c, v in steps[t + (estimator == "analytic") :]
                )
                paid = earned_A[a] - baseline_A[a] - beta[a] * torch.as_tensor(to_go).detach()
                log_pi, mu = log_pi_CV[context, token], log_mu_CV[context, token].exp()
                taken = torch.minimum(cap * mu, log_pi.exp()).detach()
                value = value + whole / mu * taken * log_pi * paid
                if estimator == "analytic":
                    value = value - whole * beta[a] * kl_C[context]
    (gradient_CV,) = torch.autograd.grad(value, logits_CV)
    return gradient_CV


@pytest.mark.parametrize("cap", CAPS)
@pytest.mark.parametrize("estimator", ["analytic", "k1"])
@pytest.mark.parametrize(
    ("name", "objective"),
    [
        ("3attempts", "stage_one"),
        ("3attempts", "stage_two_gamma"),
        ("ends_early_pad_is_eos", "stage_two_gamma"),
        pytest.param("ends_early_pad_is_eos", "stage_one", marks=pytest.mark.nightly),
    ],
)
def test_expected_gradient_under_another_sampler(name: str, objective: str, estimator: KLEstimator, cap: float) -> None:
    found = expected(name, objective, estimator, cap, token_loss)
    torch.testing.assert_close(found, enumerated(name, objective, estimator, cap), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("estimator", ["analytic", "k1"])
@pytest.mark.parametrize("objective", ["stage_one", "stage_two"])
def test_attempts_of_one_token_are_exact_without_a_cap(objective: str, estimator: KLEstimator) -> None:
    """There a token's weight is the attempt's: autograd through what each attempt earns, contexts as sampled."""
    toy, sampler, made = toy_named("3attempts"), sampler_of("3attempts"), OBJECTIVES[objective]
    logits_CV = toy.logits_CV.clone().requires_grad_()
    tables = toy.tempered(logits_CV), toy.tempered(toy.ref_logits_CV), sampler.tempered(sampler.logits_CV)
    attempts, value = range(3), torch.zeros((), dtype=torch.float64)
    for path, rewards in zip(toy.paths_B, toy.rewards_BA.tolist(), strict=True):
        for a, (pay, beta) in enumerate(zip(made.pay(rewards), made.beta(3), strict=True)):
            log_pi, log_ref, _ = (toy.logprob(table, path, a) for table in tables)
            others = torch.stack([toy.logprob(tables[2], path, b) for b in attempts if b != a]).sum().exp()
            value = value + others * log_pi.exp() * (pay - beta * (log_pi - log_ref))
    (exact_CV,) = torch.autograd.grad(value, logits_CV)
    found = expected("3attempts", objective, estimator, math.inf, token_loss)
    torch.testing.assert_close(found, exact_CV, rtol=0, atol=TOLERANCE)


def without(*arguments: Any) -> TokenLoss:
    policy, reference, batch, temperature, estimator, _ = arguments
    return token_loss(policy, reference, batch, temperature, estimator, None)


def with_weight(weight: Callable[[Tensor, Tensor, float], Tensor]) -> Callable[..., TokenLoss]:
    def loss(*arguments: Any) -> TokenLoss:
        with patch.object(losses, "importance", weight):
            return token_loss(*arguments)

    return loss


def kl_weighed_too(
    policy: States, reference: States, batch: Any, temperature: float, estimator: KLEstimator, cap: float
) -> TokenLoss:
    plain = token_loss(policy, reference, batch, temperature, estimator, cap)
    weight_BT = (plain.logprobs_BT - batch.sampler_logprobs_BT).exp().clamp(max=cap)
    with_kl = replace(batch, advantages_BT=torch.zeros_like(batch.advantages_BT))
    bare = token_loss(
        policy, reference, replace(with_kl, kl_coef_BT=batch.kl_coef_BT * (weight_BT - 1)), temperature, estimator
    )
    return replace(plain, loss_B=plain.loss_B + bare.loss_B)


PLANTS: dict[str, Callable[..., TokenLoss]] = {
    "left out": without,
    "upside down": with_weight(lambda pi, mu, cap: (mu - pi.detach()).exp().clamp(max=cap)),
    "with a gradient": with_weight(lambda pi, mu, cap: (pi - mu).exp().clamp(max=cap)),
    "from below": with_weight(lambda pi, mu, cap: (pi.detach() - mu).exp().clamp(min=min(cap, 1.0))),
    "on the KL too": kl_weighed_too,
}  # fmt: skip


@pytest.mark.parametrize("cap", CAPS)
@pytest.mark.parametrize("bug", PLANTS)
def test_planted_bug_is_seen(bug: str, cap: float) -> None:
    found = expected("ends_early_pad_is_eos", "stage_two", "analytic", cap, PLANTS[bug])
    exact_CV = enumerated("ends_early_pad_is_eos", "stage_two", "analytic", cap)
    assert (found - exact_CV).abs().max() > PLANTED
