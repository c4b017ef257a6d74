"""Oracle: the expected gradient of the estimator, over every rollout there is, is the exact gradient of the objective.

The real code path (objectives -> advantages -> Batch -> token_loss) runs over all pairs of rollouts (a group of two),
each weighted by its probability, and is held to toy.exact_gradient at 1e-12. Each bug planted at the end must break it.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor

from selfcorrect.config import STAGE_KINDS, OwnObjective, RLStage
from selfcorrect.learning import losses
from selfcorrect.learning.batching import Batch, make_batch, micro_batches
from selfcorrect.learning.credit import credit_of
from selfcorrect.learning.losses import TokenLoss, token_loss
from selfcorrect.learning.objectives import Credit, advantages, advantages_given_history
from selfcorrect.learning.record import Progress
from selfcorrect.learning.vocabulary import KLEstimator
from selfcorrect.models.head import Head, States
from tests.oracles.toy import ALPHA, OBJECTIVES, Objective, Toy, exact_gradient, make_toy, stage

TOLERANCE = 1e-12
PLANTED = 1e-3  # a planted bug must miss by at least this: nine orders of magnitude above the tolerance
TOYS: dict[str, Callable[[], Toy]] = {
    "tempered": lambda: make_toy(3, 2, 2, temperature=0.7),
    "real_rewards": lambda: make_toy(3, 2, 2, real_rewards=True),
    "3attempts": lambda: make_toy(2, 1, 3, temperature=0.7),
    "ends_early_pad_is_eos": lambda: make_toy(3, 2, 2, temperature=1.3, eos=0),
    "3attempts_end_early": lambda: make_toy(2, 2, 3, eos=1),
}
toy_named = cache(lambda name: TOYS[name]())
probabilities = cache(lambda name: toy_named(name).probabilities_B())
exact = cache(lambda toy, objective: exact_gradient(toy_named(toy), OBJECTIVES[objective]))


@dataclass(frozen=True)
class Pipeline:
    """The code under test, with a place to plant a bug at each joint."""

    credit: Callable[[Credit], Credit] = lambda credit: credit
    advantages: Callable[..., Tensor] = advantages
    given_history: Callable[..., Tensor] = advantages_given_history
    batch: Callable[[Batch], Batch] = lambda batch: batch
    loss: Callable[..., TokenLoss] = token_loss
    loss_temperature: float | None = None


@cache
def context_rows(name: str) -> tuple[Batch, Tensor]:
    """make_batch over every rollout once, nothing credited, and the context row before each of its tokens [B, T]."""
    toy = toy_named(name)
    rollouts, included_B = toy.rollouts(), torch.ones(len(toy.paths_B), dtype=torch.bool)
    base = make_batch(rollouts, torch.zeros_like(toy.rewards_BA), [0.0] * toy.rewards_BA.shape[1], included_B)
    return base, contexts_of(toy, base)


def contexts_of(toy: Toy, batch: Batch) -> Tensor:
    """The context row before each token of a batch [B, T]."""
    foreign, ids = len(toy.contexts), batch.token_ids_BT.tolist()
    return torch.tensor([[toy.contexts.get(tuple(row[:t]), foreign) for t in range(len(row))] for row in ids])


def all_pairs(count: int) -> Tensor:
    """Row indices of every ordered pair, the two of a pair next to each other [2 * count^2]."""
    return torch.cartesian_prod(torch.arange(count), torch.arange(count)).flatten()


def of_pairs(probability_B: Tensor, rows: Tensor) -> Tensor:
    """The weight of each rollout of these pairs: its pair's probability, half for either."""
    return probability_B[rows].reshape(-1, 2).prod(1).repeat_interleave(2) / 2


def gradient_of(
    toy: Toy,
    batch: Batch,
    context_BT: Tensor,
    weight_B: Tensor,
    estimator: KLEstimator,
    *,
    pipeline: Pipeline = Pipeline(),
) -> Tensor:
    """-d/d logits of the weighted loss: the direction in which the update moves the policy [C, V]."""
    logits_CV = toy.logits_CV.clone().requires_grad_()
    context_N = context_BT[batch.attempt_BT > 0]
    temperature = pipeline.loss_temperature or toy.temperature
    # One of the two as hidden states under a head, so that the oracle goes through both ways to logits.
    policy = States(logits_CV[context_N], Head(torch.eye(toy.vocabulary, dtype=torch.float64)))
    reference = States(toy.ref_logits_CV[context_N])
    result = pipeline.loss(policy, reference, batch, temperature, estimator)
    (gradient_CV,) = torch.autograd.grad((result.loss_B * weight_B).sum(), logits_CV)
    return -gradient_CV


def expected_gradient(
    name: str,
    objective: Objective,
    estimator: KLEstimator = "analytic",
    *,
    baseline: str = "leave_one_out",
    pipeline: Pipeline | None = None,
) -> Tensor:
    """The estimator's expectation over all groups of two rollouts."""
    pipeline, toy = pipeline or Pipeline(), toy_named(name)
    base, context_BT = context_rows(name)
    rows, probability_B = all_pairs(len(toy.paths_B)), probabilities(name)
    credit = pipeline.credit(objective.credit(toy.rewards_BA[rows]))
    included_B = torch.ones(len(rows), dtype=torch.bool)
    if baseline == "given_history":
        advantages_BA = pipeline.given_history(credit, toy.rewards_BA[rows], included_B, 2)
    else:
        leave_one_out = baseline == "leave_one_out"
        advantages_BA = pipeline.advantages(credit.returns_BA, included_B, 2, leave_one_out=leave_one_out)
    # Written out here rather than by make_batch: column 0 of each table stands for "not sampled".
    attempt_BT = base.attempt_BT[rows]
    coef_A = torch.tensor([0.0, *credit.kl_coef_A], dtype=torch.float64)
    paid_BA = torch.cat([torch.zeros(len(rows), 1, dtype=torch.float64), advantages_BA], dim=1)
    batch = Batch(
        token_ids_BT=base.token_ids_BT[rows],
        length_B=base.length_B[rows],
        attempt_BT=attempt_BT,
        advantages_BT=torch.take_along_dim(paid_BA, attempt_BT, 1),
        kl_coef_BT=coef_A[attempt_BT],
        sampler_logprobs_BT=base.sampler_logprobs_BT[rows],
    )
    of_pair_B = of_pairs(probability_B, rows)
    return gradient_of(toy, pipeline.batch(batch), context_BT[rows], of_pair_B, estimator, pipeline=pipeline)


BOTH: tuple[KLEstimator, ...] = ("analytic", "k1")
BASELINES = "leave_one_out", "given_history", "none"


def by_day(day: bool) -> Any:
    return () if day else pytest.mark.nightly


@pytest.mark.parametrize(
    ("name", "objective", "estimator", "baseline"),
    [  # by day each two of them in all ways, and each objective on each toy with both estimators
        pytest.param(name, objective, estimator, baseline, marks=by_day((t + o + e) % len(BASELINES) == b))
        for t, name in enumerate(TOYS)
        for o, objective in enumerate(OBJECTIVES)
        for e, estimator in enumerate(BOTH)
        for b, baseline in enumerate(BASELINES)
    ],
)
def test_expected_gradient_is_exact(name: str, objective: str, estimator: KLEstimator, baseline: str) -> None:
    found = expected_gradient(name, OBJECTIVES[objective], estimator, baseline=baseline)
    torch.testing.assert_close(found, exact(name, objective), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize(
    ("name", "objective", "estimator"),
    [
        pytest.param(name, objective, estimator, marks=by_day((t + o + e) % len(BOTH) == 0))
        for t, name in enumerate(["tempered", "ends_early_pad_is_eos", "3attempts_end_early"])
        for o, objective in enumerate(OBJECTIVES)
        for e, estimator in enumerate(BOTH)
    ],
)
def test_make_batch_and_micro_batches_enumerate_too(name: str, objective: str, estimator: KLEstimator) -> None:
    toy = toy_named(name)
    pieces = list(micro_batches(weighted_batch(toy, objective), 10))
    found = sum((piece_gradient(toy, piece, estimator) for piece in pieces), start=torch.zeros_like(toy.logits_CV))
    assert len(pieces) == -(-len(toy.paths_B) // 10)
    torch.testing.assert_close(found, exact(name, objective), rtol=0, atol=TOLERANCE)


def weighted_batch(toy: Toy, objective: str) -> Batch:
    """Every rollout once, no baseline; its probability rides on its advantage and KL weight, in which the loss is linear."""
    credit = OBJECTIVES[objective].credit(toy.rewards_BA)
    included_B = torch.ones(len(toy.paths_B), dtype=torch.bool)
    advantages_BA = advantages(credit.returns_BA, included_B, 1, leave_one_out=False)
    batch = make_batch(toy.rollouts(), advantages_BA, credit.kl_coef_A, included_B)
    weight_B1 = toy.probabilities_B()[:, None]
    return replace(batch, advantages_BT=batch.advantages_BT * weight_B1, kl_coef_BT=batch.kl_coef_BT * weight_B1)


def piece_gradient(toy: Toy, piece: Batch, estimator: KLEstimator, divide: bool = False) -> Tensor:
    rows = len(piece.length_B)
    weight_B = torch.ones(rows, dtype=torch.float64) / (rows if divide else 1)
    return gradient_of(toy, piece, contexts_of(toy, piece), weight_B, estimator)


def batch_of_pairs(toy: Toy, objective: str) -> tuple[Batch, Tensor]:
    """make_batch over every ordered pair, leave-one-out; and which rollout each row is."""
    rows, rollouts = all_pairs(len(toy.paths_B)), toy.rollouts()
    credit = OBJECTIVES[objective].credit(toy.rewards_BA[rows])
    included_B = torch.ones(len(rows), dtype=torch.bool)
    advantages_BA = advantages(credit.returns_BA, included_B, 2, leave_one_out=True)
    return make_batch([rollouts[row] for row in rows], advantages_BA, credit.kl_coef_A, included_B), rows


def test_make_batch_over_all_pairs() -> None:
    """make_batch builds the very rows that the vectorised batch above stands for."""
    name, toy = "ends_early_pad_is_eos", toy_named("ends_early_pad_is_eos")
    batch, rows = batch_of_pairs(toy, "stage_two")
    found = gradient_of(toy, batch, context_rows(name)[1][rows], of_pairs(probabilities(name), rows), "analytic")
    torch.testing.assert_close(found, exact(name, "stage_two"), rtol=0, atol=TOLERANCE)


def test_every_objective_has_an_oracle() -> None:
    rl = {kind for kind in STAGE_KINDS.values() if issubclass(kind, RLStage)}
    assert {type(objective.stage) for objective in OBJECTIVES.values()} == rl - {OwnObjective}, "tests/oracles/toy.py"


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_steps_that_count_for_the_credit_are_one(objective: str) -> None:
    """A stage whose credit depends on how many steps it has says so, as a run that goes on may not change them then."""
    short, rewards_BA = OBJECTIVES[objective].stage, toy_named("tempered").rewards_BA
    paid = [
        [credit_of(stage, rewards_BA, Progress(stage_step=step)).returns_BA.tolist() for step in (3, 9)]
        for stage in (short, short.model_copy(update={"steps": 20}))
    ]
    assert (paid[0] == paid[1]) != bool(short.steps_are_one)


def test_full_return_is_the_gradient_of_eq_1_without_any_held_distribution() -> None:
    """Checks the oracle itself: gamma = 1 and no KL is plain REINFORCE, so autograd through E[r_1 + r_2] must agree."""
    toy = toy_named("tempered")
    logits_CV = toy.logits_CV.clone().requires_grad_()
    value = (replace(toy, logits_CV=logits_CV).probabilities_B() * toy.rewards_BA.sum(1)).sum()
    (plain_CV,) = torch.autograd.grad(value, logits_CV)
    all_paid = stage("multi_turn", rewarded="all", gamma=1.0, beta1=0.0)
    whole = Objective(all_paid, list, lambda a: [0.0] * a, gamma=1.0)
    torch.testing.assert_close(exact_gradient(toy, whole), plain_CV, rtol=0, atol=TOLERANCE)
    torch.testing.assert_close(expected_gradient("tempered", whole), plain_CV, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("leave_one_out", [True, False], ids=["leave_one_out", "none"])
def test_a_rollout_the_grader_failed_on_leaves_no_trace(leave_one_out: bool) -> None:
    """Groups of three whose last is not included, with an absurd reward: same expectation as the pair alone."""
    name = "tempered"

    def of_three(returns_BA: Tensor, included_B: Tensor, group: int, *, leave_one_out: bool) -> Tensor:
        pairs_NGA = returns_BA.reshape(-1, group, returns_BA.shape[1])
        triples_NGA = torch.cat([pairs_NGA, torch.full_like(pairs_NGA[:, :1], 1e3)], dim=1)
        kept_NG = torch.tensor([[True, True, False]]).expand(len(triples_NGA), -1)
        found_BA = advantages(triples_NGA.flatten(0, 1), kept_NG.flatten(), group + 1, leave_one_out=leave_one_out)
        found_NGA = found_BA.reshape_as(triples_NGA)
        assert not found_NGA[:, 2].any()
        return found_NGA[:, :2].flatten(0, 1)

    pipeline = Pipeline(advantages=of_three)
    baseline = "leave_one_out" if leave_one_out else "none"
    found = expected_gradient(name, OBJECTIVES["stage_two"], baseline=baseline, pipeline=pipeline)
    torch.testing.assert_close(found, exact(name, "stage_two"), rtol=0, atol=TOLERANCE)


# Planted bugs. Each is a variant of one joint of the pipeline; the oracle must turn red.


def one_scalar(credit: Credit) -> Credit:
    return replace(credit, returns_BA=credit.returns_BA.sum(1, keepdim=True).expand_as(credit.returns_BA))


def bonus_on_attempt_1(credit: Credit, gamma: float) -> Credit:
    """Stage II alone: r_1 and r_2 read back from the returns, then alpha * (r_2 - r_1) paid to attempt 1 as well."""
    first_B, second_B = credit.returns_BA.unbind(1)
    r1_B = first_B - gamma * second_B
    r2_B = (second_B + ALPHA * r1_B) / (1 + ALPHA)
    return replace(credit, returns_BA=torch.stack([first_B + ALPHA * (r2_B - r1_B), second_B], dim=1))


def no_kl_on_attempt_1(credit: Credit) -> Credit:
    return replace(credit, kl_coef_A=(0.0, *credit.kl_coef_A[1:]))


def own_reward_in_the_baseline(returns_BA: Tensor, included_B: Tensor, group: int, *, leave_one_out: bool) -> Tensor:
    returns_NGA = returns_BA.reshape(-1, group, returns_BA.shape[1])
    return (returns_NGA - returns_NGA.mean(1, keepdim=True)).reshape_as(returns_BA)


def history_with_own_reward(credit: Credit, rewards_BA: Tensor, included_B: Tensor, group: int) -> Tensor:
    """Peers chosen by the attempt's own reward too: the baseline then depends on what it judges."""
    return advantages_given_history(credit, rewards_BA.roll(-1, dims=1), included_B, group)


def test_own_reward_in_the_history_is_seen() -> None:
    pipeline, objective = Pipeline(given_history=history_with_own_reward), OBJECTIVES["stage_two"]
    found = expected_gradient("tempered", objective, baseline="given_history", pipeline=pipeline)
    assert (found - exact("tempered", "stage_two")).abs().max() > 1e-3


def trains_padding(batch: Batch) -> Batch:
    column_T = torch.arange(batch.token_ids_BT.shape[1])
    padding_BT = column_T >= batch.length_B[:, None]
    last_B1 = batch.length_B[:, None] - 1
    filled = {
        field: torch.where(padding_BT, getattr(batch, field).gather(1, last_B1), getattr(batch, field))
        for field in ("attempt_BT", "advantages_BT", "kl_coef_BT")
    }
    return replace(batch, **filled)


def mask_from_pad_id(batch: Batch) -> Batch:
    return replace(batch, attempt_BT=batch.attempt_BT * (batch.token_ids_BT != 0))


def no_to_go(*arguments: Any) -> TokenLoss:
    with patch.object(losses, "to_go", lambda values_BT, attempt_BT: values_BT):
        return token_loss(*arguments)


def kl_passed_back(*arguments: Any) -> TokenLoss:
    """To-go sums that do not stop at the end of the attempt."""
    with patch.object(losses, "to_go", lambda values_BT, attempt_BT: values_BT.flip(1).cumsum(1).flip(1)):
        return token_loss(*arguments)


def k_as_a_loss(
    of_ratio: Callable[[Tensor], Tensor],
    policy: States,
    reference: States,
    batch: Batch,
    temperature: float,
    _: KLEstimator,
) -> TokenLoss:
    """The KL estimate of each sampled token, differentiated where it stands. of_ratio: log pi - log pi_ref -> estimate."""
    plain = token_loss(policy, None, replace(batch, kl_coef_BT=torch.zeros_like(batch.kl_coef_BT)), temperature)
    trained_BT = batch.attempt_BT > 0
    token_N1 = batch.token_ids_BT[trained_BT][:, None]
    logits = policy.hidden_ND, reference.hidden_ND  # the policy's head is the identity
    both = [(logits_NV / temperature).log_softmax(-1).gather(1, token_N1)[:, 0] for logits_NV in logits]
    penalty_N = batch.kl_coef_BT[trained_BT] * of_ratio(both[0] - both[1])
    penalty_BT = torch.zeros(trained_BT.shape, dtype=torch.float64).masked_scatter(trained_BT, penalty_N)
    return replace(plain, loss_B=plain.loss_B + penalty_BT.sum(1))


EVERY = tuple(OBJECTIVES)
# single_turn is left out where nothing changes: r_1 is a constant to attempt 2, whose padding weighs nothing either.
PAYS_LATER = tuple(name for name in OBJECTIVES if name != "single_turn")
Plant = tuple[Pipeline, str, tuple[KLEstimator, ...], tuple[str, ...]]
PLANTS: dict[str, Plant] = {
    "one scalar for both attempts": (Pipeline(credit=one_scalar), "tempered", BOTH, PAYS_LATER),
    "alpha's bonus on attempt 1": (
        Pipeline(credit=partial(bonus_on_attempt_1, gamma=0.0)),
        "tempered",
        BOTH,
        ("stage_two",),
    ),
    "alpha's bonus on attempt 1, gamma": (
        Pipeline(credit=partial(bonus_on_attempt_1, gamma=0.8)),
        "tempered",
        BOTH,
        ("stage_two_gamma",),
    ),
    "no KL on attempt 1": (Pipeline(credit=no_kl_on_attempt_1), "tempered", BOTH, EVERY),
    "own reward in the baseline": (Pipeline(advantages=own_reward_in_the_baseline), "tempered", ("analytic",), EVERY),
    "padding trained": (Pipeline(batch=trains_padding), "ends_early_pad_is_eos", BOTH, PAYS_LATER),
    "mask from the pad id": (Pipeline(batch=mask_from_pad_id), "ends_early_pad_is_eos", BOTH, EVERY),
    "temperature not in the loss": (Pipeline(loss_temperature=1.0), "tempered", BOTH, EVERY),
    "KL without its to-go part": (Pipeline(loss=no_to_go), "tempered", BOTH, EVERY),
    "KL passed back to attempt 1": (Pipeline(loss=kl_passed_back), "tempered", BOTH, EVERY),
    "k1 as a loss": (Pipeline(loss=partial(k_as_a_loss, lambda d: d)), "tempered", ("k1",), EVERY),
    "k2 as a loss": (Pipeline(loss=partial(k_as_a_loss, lambda d: d**2 / 2)), "tempered", ("k1",), EVERY),
    "k3 as a loss": (Pipeline(loss=partial(k_as_a_loss, lambda d: (-d).exp() - 1 + d)), "tempered", ("k1",), EVERY),
}


@pytest.mark.parametrize(
    ("pipeline", "name", "estimator", "objective", "baseline"),
    [
        pytest.param(
            pipeline,
            name,
            estimator,
            objective,
            baseline,
            id=f"{bug}-{estimator}-{objective}-{baseline}",
            marks=by_day(objective == objectives[0]),
        )
        for bug, (pipeline, name, estimators, objectives) in PLANTS.items()
        for estimator in estimators
        for objective in objectives
        for baseline in (["leave_one_out"] if "baseline" in bug else ["leave_one_out", "given_history"])
    ],
)
def test_planted_bug_is_seen(
    pipeline: Pipeline, name: str, estimator: KLEstimator, objective: str, baseline: str
) -> None:
    found = expected_gradient(name, OBJECTIVES[objective], estimator, baseline=baseline, pipeline=pipeline)
    assert (found - exact(name, objective)).abs().max() > PLANTED


@pytest.mark.parametrize(("objective", "estimator"), [("stage_one", "analytic"), ("stage_two_gamma", "k1")])
def test_planted_division_by_the_micro_batch_is_seen(objective: str, estimator: KLEstimator) -> None:
    """81 rollouts in pieces of 10 leave one alone in the last piece: its weight must not grow tenfold."""
    toy, batch = toy_named("tempered"), weighted_batch(toy_named("tempered"), objective)
    rows = len(batch.token_ids_BT)

    def accumulated(size: int, divide: bool) -> Tensor:
        pieces = list(micro_batches(batch, size))
        total_CV = torch.stack([piece_gradient(toy, piece, estimator, divide) for piece in pieces]).sum(0)
        return total_CV * rows / len(pieces) if divide else total_CV

    exact_CV = exact("tempered", objective)
    torch.testing.assert_close(accumulated(10, divide=False), exact_CV, rtol=0, atol=TOLERANCE)
    assert (accumulated(10, divide=True) - exact_CV).abs().max() > PLANTED
    torch.testing.assert_close(accumulated(27, divide=True), exact_CV, rtol=0, atol=TOLERANCE)  # even pieces hide it
