"""Objectives by hand: the four (r1, r2) cases, the baseline, and what attempt 1 may depend on."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from selfcorrect.learning.batching import make_batch
from selfcorrect.learning.losses import token_loss
from selfcorrect.learning.objectives import (
    Credit,
    advantages,
    advantages_given_history,
    discount,
    multi_turn,
    single_turn,
    stage_one,
    stage_two,
)
from selfcorrect.learning.vocabulary import KLEstimator
from selfcorrect.models.head import States
from tests.support.rollouts import rollout_of_ids

#                             (r1, r2) =  (0, 0)      (0, 1)      (1, 0)      (1, 1)
CASES_BA = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
GIVEN = torch.float64


@pytest.mark.parametrize(
    ("objective", "returns_BA", "kl_coef_A"),
    [
        # Eq. 3: attempt 1 earns 0, attempt 2 earns r2; KL weights beta1 + beta2 = 0.01 + 0.1, then beta1
        (lambda r: stage_one(r, 0.01, 0.1), [[0, 0], [0, 1], [0, 0], [0, 1]], (0.11, 0.01)),
        # Eq. 4: r1, and r2 + 10 (r2 - r1): 0, 1 + 10 = 11, 0 - 10 = -10, 1 + 0 = 1
        (lambda r: stage_two(r, 0.01, 10.0), [[0, 0], [0, 11], [1, -10], [1, 1]], (0.01, 0.01)),
        # gamma = 0.5 adds half of attempt 2's 0, 11, -10, 1 to r1: 0, 5.5, 1 - 5 = -4, 1 + 0.5 = 1.5
        (lambda r: stage_two(r, 0.01, 10.0, 0.5), [[0, 0], [5.5, 11], [-4, -10], [1.5, 1]], (0.01, 0.01)),
        # Eq. 2 on attempt 1 alone, no KL on attempt 2
        (lambda r: single_turn(r, 0.01), [[0, 0], [0, 0], [1, 0], [1, 0]], (0.01, 0.0)),
        # Sec. 5: the last attempt's reward, to the last attempt
        (lambda r: multi_turn(r, 0.01, last_only=True), [[0, 0], [0, 1], [0, 0], [0, 1]], (0.01, 0.01)),
        # Eq. 1: each its own
        (lambda r: multi_turn(r, 0.01, last_only=False), [[0, 0], [0, 1], [1, 0], [1, 1]], (0.01, 0.01)),
        # gamma = 0.5: r1 + r2 / 2
        (lambda r: multi_turn(r, 0.01, last_only=False, gamma=0.5), [[0, 0], [0.5, 1], [1, 0], [1.5, 1]], (0.01, 0.01)),
    ],
)
def test_four_cases(
    objective: Callable[[Tensor], Credit], returns_BA: list[list[float]], kl_coef_A: tuple[float, ...]
) -> None:
    given_BA = CASES_BA.clone()
    credit = objective(given_BA)
    assert credit.returns_BA.tolist() == returns_BA
    assert credit.kl_coef_A == pytest.approx(kl_coef_A, abs=0)
    assert torch.equal(given_BA, CASES_BA), "the rewards given must stay as they are"


def test_three_attempts() -> None:
    rewards_BA = torch.tensor([[1.0, 0.0, 1.0]])
    # bonuses: 0 + 10 (0 - 1) = -10, 1 + 10 (1 - 0) = 11
    assert stage_two(rewards_BA, 0.01, 10.0).returns_BA.tolist() == [[1, -10, 11]]
    assert stage_one(rewards_BA, 0.01, 0.1).returns_BA.tolist() == [[0, 0, 1]]
    assert stage_one(rewards_BA, 0.01, 0.1).kl_coef_A == pytest.approx((0.11, 0.01, 0.01))
    assert multi_turn(rewards_BA, 0.01, last_only=True).returns_BA.tolist() == [[0, 0, 1]]
    # 2; 3 + 2/2 = 4 ... from the end: 8, 4 + 8/2 = 8, 2 + 8/2 = 6
    assert discount(torch.tensor([[2.0, 4.0, 8.0]]), 0.5).tolist() == [[6, 8, 8]]


def test_given_history_by_hand() -> None:
    rewards_BA = torch.tensor([[1.0, 1.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    credit = stage_two(rewards_BA, 0.01, 2.0)
    everyone = torch.ones(4, dtype=torch.bool)
    # Attempt 1: against the mean of the other three: 1 - 2/3, 1 - 2/3, 0 - 1, 1 - 2/3.
    # Attempt 2 earns 1, -2, 3, 1. Rollouts 0, 1, 3 had a right attempt 1: 1 - (-2 + 1) / 2, -2 - (1 + 1) / 2, as the first.
    # Rollout 2 has no peer: without what was known (-2 r1) all have 3, 0, 3, 3, and 3 - (3 + 0 + 3) / 3 = 1.
    found_BA = advantages_given_history(credit, rewards_BA, everyone, 4)
    assert found_BA.T.tolist() == [pytest.approx([1 / 3, 1 / 3, -1, 1 / 3]), pytest.approx([1.5, -3, 1, 1.5])]
    # Without rollout 1: attempt 1: 1 - 1/2, 0 - 1, 1 - 1/2; attempt 2: 1 - 1, 3 - (3 + 3) / 2, 1 - 1.
    found_BA = advantages_given_history(credit, rewards_BA, torch.tensor([True, False, True, True]), 4)
    assert found_BA.T.tolist() == [[0.5, 0, -1, 0.5], [0, 0, 0, 0]]
    # Alone in its group: no baseline, so no credit.
    assert not advantages_given_history(credit, rewards_BA, torch.tensor([True, False, False, False]), 4).any()


def test_given_history_looks_at_every_earlier_attempt() -> None:
    rewards_BA = torch.tensor([[1.0, 1.0, 0.0], [1.0, 0.0, 1.0], [1.0, 1.0, 1.0]])
    credit = multi_turn(rewards_BA, 0.0, last_only=False)
    found_BA = advantages_given_history(credit, rewards_BA, torch.ones(3, dtype=torch.bool), 3)
    # Attempt 3: 0 and 2 had (1, 1): 0 - 1 and 1 - 0; rollout 1 had (1, 0) alone: 1 - (0 + 1) / 2.
    assert found_BA[:, 2].tolist() == [-1, 0.5, 1]


def test_leave_one_out_by_hand() -> None:
    returns_BA = torch.tensor([[6.0, 0.0], [3.0, 1.0], [0.0, 11.0], [99.0, -99.0]])
    included_B = torch.tensor([True, True, True, False])
    found_BA = advantages(returns_BA, included_B, 4, leave_one_out=True)
    # attempt 1: 6 - (3 + 0)/2 = 4.5, 3 - (6 + 0)/2 = 0, 0 - (6 + 3)/2 = -4.5; the fourth is in no mean and earns 0
    # attempt 2: 0 - (1 + 11)/2 = -6, 1 - 11/2 = -4.5, 11 - 1/2 = 10.5
    assert found_BA.tolist() == [[4.5, -6.0], [0.0, -4.5], [-4.5, 10.5], [0.0, 0.0]]


def test_groups_do_not_mix_and_a_rollout_left_alone_earns_nothing() -> None:
    returns_BA = torch.tensor([[1.0], [0.0], [5.0], [7.0], [2.0], [2.0]])
    included_B = torch.tensor([True, True, True, False, False, False])
    # group 1: 1 - 0, 0 - 1; group 2: one left, no baseline, 0; group 3: none
    assert advantages(returns_BA, included_B, 2, leave_one_out=True).flatten().tolist() == [1, -1, 0, 0, 0, 0]
    # without a baseline the one left keeps its return
    assert advantages(returns_BA, included_B, 2, leave_one_out=False).flatten().tolist() == [1, 0, 5, 0, 0, 0]


def test_uneven_groups_are_refused() -> None:
    with pytest.raises(ValueError, match="5 rollouts do not divide into groups of 2"):
        advantages(torch.zeros(5, 2), torch.ones(5, dtype=torch.bool), 2, leave_one_out=True)


def test_normalize_std_by_hand() -> None:
    returns_BA = torch.tensor([[0.0, 0.0], [2.0, 22.0], [4.0, 44.0], [9.0, 9.0]], dtype=GIVEN)
    included_B = torch.tensor([True, True, True, False])
    found_BA = advantages(returns_BA, included_B, 4, leave_one_out=True, normalize_std=True)
    # attempt 1: leave-one-out 0 - 3, 2 - 2, 4 - 1; mean 2, sample std sqrt((4 + 0 + 4) / 2) = 2
    # attempt 2 is eleven times that throughout, and comes out the same: a factor like 1 + alpha is cancelled
    expected_BA = torch.tensor([[-1.5, -1.5], [0.0, 0.0], [1.5, 1.5], [0.0, 0.0]], dtype=GIVEN)
    torch.testing.assert_close(found_BA, expected_BA, rtol=0, atol=1e-5)


@pytest.mark.parametrize("group", [2, 3, 8, 9, 10])
@pytest.mark.parametrize("normalize_std", [False, True])
def test_a_group_of_equals_learns_nothing(group: int, normalize_std: bool) -> None:
    """All rollouts (0, 1), paid 8.8 and 11: rounding in float32 must not be blown up into an advantage."""
    returns_BA = stage_two(torch.tensor([[0.0, 1.0]] * group), 0.01, 10.0, 0.8).returns_BA
    included_B = torch.ones(group, dtype=torch.bool)
    found_BA = advantages(returns_BA, included_B, group, leave_one_out=True, normalize_std=normalize_std)
    assert found_BA.abs().max() < 1e-4


# What attempt 1's tokens may depend on: the gradient of the loss at each trained token's logits.


def token_gradients(credit: Credit, estimator: KLEstimator = "analytic") -> tuple[Tensor, Tensor]:
    """Gradients at the logits of attempt 1's and attempt 2's tokens, each [tokens, V]."""
    generator = torch.Generator().manual_seed(3)
    #                prompt  attempt 1  correction  attempt 2
    rollouts = [rollout_of_ids(((7,), (1, 2)), ((7, 7), (3, 0, 1))), rollout_of_ids(((7,), (2, 2)), ((7,), (1, 3)))]
    included_B = torch.tensor([True, True])
    advantages_BA = advantages(credit.returns_BA, included_B, 2, leave_one_out=True)
    batch = make_batch(rollouts, advantages_BA, credit.kl_coef_A, included_B)
    attempt_N = batch.attempt_BT[batch.attempt_BT > 0]
    ref_logits_NV = torch.randn(len(attempt_N), 4, generator=generator, dtype=GIVEN)
    noise_NV = torch.randn(len(attempt_N), 4, generator=generator, dtype=GIVEN)
    logits_NV = (ref_logits_NV + noise_NV).requires_grad_()
    (gradient_NV,) = torch.autograd.grad(
        token_loss(States(logits_NV), States(ref_logits_NV), batch, 1.0, estimator).loss_B.sum(), logits_NV
    )
    return gradient_NV[attempt_N == 1], gradient_NV[attempt_N == 2]


REWARDS_BA = torch.tensor([[0.0, 1.0], [1.0, 0.0]], dtype=GIVEN)
OTHER_SECOND_BA = torch.tensor([[0.0, 0.0], [1.0, 5.0]], dtype=GIVEN)


@pytest.mark.parametrize("estimator", ["analytic", "k1"])
@pytest.mark.parametrize(
    "objective",
    [
        lambda r: stage_one(r, 0.01, 0.1),
        lambda r: stage_two(r, 0.01, 10.0),
        lambda r: multi_turn(r, 0.01, last_only=True),
        lambda r: multi_turn(r, 0.01, last_only=False),
    ],
)
def test_attempt_1_does_not_depend_on_the_second_reward(
    objective: Callable[[Tensor], Credit], estimator: KLEstimator
) -> None:
    before = token_gradients(objective(REWARDS_BA), estimator)
    after = token_gradients(objective(OTHER_SECOND_BA), estimator)
    assert torch.equal(before[0], after[0])
    assert not torch.allclose(before[1], after[1])


def test_attempt_1_does_not_depend_on_alpha() -> None:
    plain = token_gradients(stage_two(REWARDS_BA, 0.01, 0.0))
    shaped = token_gradients(stage_two(REWARDS_BA, 0.01, 10.0))
    assert torch.equal(plain[0], shaped[0])
    assert not torch.allclose(plain[1], shaped[1])


@pytest.mark.parametrize("estimator", ["analytic", "k1"])
def test_the_kl_of_attempt_1_has_a_gradient_on_its_tokens(estimator: KLEstimator) -> None:
    credit = stage_one(torch.zeros(2, 2, dtype=GIVEN), 0.0, 0.1)
    assert credit.kl_coef_A == (0.1, 0.0)
    first, second = token_gradients(credit, estimator)
    assert (first.abs().max(1).values > 1e-4).all()
    assert not second.any()


def test_the_analytic_kl_of_a_single_token_does_not_depend_on_the_draw() -> None:
    """Its own term is no part of the to-go sum: adding it there would be right on average and noisier."""
    generator = torch.Generator().manual_seed(5)
    ref_logits_NV = torch.randn(2, 4, generator=generator, dtype=GIVEN)
    gradients = []
    for token in range(4):
        batch = make_batch(
            [rollout_of_ids(((7,), (token,)), ((7,), (token,)))], torch.zeros(1, 2), (0.5, 0.5), torch.tensor([True])
        )
        logits_NV = torch.zeros(2, 4, dtype=GIVEN, requires_grad=True)
        loss = token_loss(States(logits_NV), States(ref_logits_NV), batch, 1.0, "analytic").loss_B.sum()
        gradients.append(torch.autograd.grad(loss, logits_NV)[0])
    assert all(torch.equal(gradients[0], other) for other in gradients)
    assert gradients[0].abs().max() > 0.01


def test_no_reference_is_no_kl() -> None:
    rollouts = [rollout_of_ids(((7,), (1, 2)), ((7,), (3,)))]
    included_B, advantages_BA = torch.tensor([True]), torch.tensor([[2.0, -1.0]], dtype=GIVEN)
    batch = make_batch(rollouts, advantages_BA, (0.0, 0.0), included_B)
    uniform_NV = torch.zeros(3, 4, dtype=GIVEN)
    result = token_loss(States(uniform_NV), None, batch, 1.0)
    # each token costs advantage * log 4: 2 + 2 - 1 = 3 of them
    assert result.loss_B.tolist() == pytest.approx([3 * torch.log(torch.tensor(4.0, dtype=GIVEN)).item()])
    assert not result.kl_BT.any()
    same = token_loss(States(uniform_NV), States(uniform_NV + 5), replace(batch, kl_coef_BT=batch.kl_coef_BT + 1), 1.0)
    assert same.loss_B.tolist() == pytest.approx(result.loss_B.tolist())  # a shift of logits is no KL
