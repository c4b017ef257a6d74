"""Avg@k and pass@k against enumeration; intervals and the smallest delta against the variance they stand for."""

import json
import math
import random
from dataclasses import asdict, replace
from itertools import combinations
from pathlib import Path
from statistics import fmean, stdev

import numpy as np
import pytest

from selfcorrect.comparing.results import Answers
from selfcorrect.comparing.results import summarize as line
from selfcorrect.evaluation.averages import (
    Change,
    budgets,
    change,
    means,
    paired,
    pass_at,
    passes,
    rate_over,
    summary_over,
    tally,
)
from selfcorrect.evaluation.caution import bought
from selfcorrect.evaluation.metrics import RESOLVED, Estimate, Summary, difference_of, summarize
from selfcorrect.evaluation.pairs import pairs
from selfcorrect.evaluation.resampling import draws
from selfcorrect.evaluation.resolution import after, assumed, before
from selfcorrect.evaluation.stored import record_of
from selfcorrect.evaluation.told import summary_line
from selfcorrect.types import Outcome, Problem, Rollout
from tests.support.rollouts import graded


def rollout(name: str, *right: bool | None) -> Rollout:
    """None: the grader failed on it."""
    outcomes = [Outcome.GRADER_FAILED if r is None else Outcome.CORRECT if r else Outcome.WRONG for r in right]
    return replace(graded(*outcomes), problem=Problem(name, "t", "", {}))


def random_rollouts(problems: int, samples: int, seed: int, attempts: int = 2) -> list[Rollout]:
    """Sample by sample, as an evaluation plays them; every problem has a chance of its own."""
    rng = random.Random(seed)
    chance = [rng.random() for _ in range(problems)]
    return [
        rollout(f"p{p}", *(rng.random() < chance[p] for _ in range(attempts)))
        for _ in range(samples)
        for p in range(problems)
    ]


@pytest.mark.parametrize("samples", [1, 3])
def test_flows_from_attempt_to_attempt(samples: int) -> None:
    """By hand over problems, with a rollout that was not graded left out of all; they add up to the whole delta."""
    rollouts = random_rollouts(40, samples, 5, attempts=3)
    whole = summary_over([*rollouts, *(rollout(f"bad{n}", True, False, None) for n in range(samples))], samples)
    right = [[attempt.grade.correct for attempt in each.attempts] for each in rollouts]
    for place, flow in enumerate(whole.flows):
        pairs = [(each[place], each[place + 1]) for each in right]
        assert flow.fixed.value == pytest.approx(fmean(b and not a for a, b in pairs))
        assert flow.broken.value == pytest.approx(fmean(a and not b for a, b in pairs))
        assert flow.delta.low < flow.fixed.value - flow.broken.value < flow.delta.high
    assert sum(flow.delta.value for flow in whole.flows) == pytest.approx(whole.delta.value)
    assert len(whole.flows) == 2
    assert summary_over(random_rollouts(5, samples, 1), samples).flows == ()
    read = record_of(Summary, json.loads(json.dumps(asdict(whole))), Path("e.json"), "summary")
    assert read.flows == whole.flows


@pytest.mark.parametrize("samples", [1, 3])
def test_rewards_in_parts(samples: int) -> None:
    """Means over problems, by hand; none where accuracy is the mean reward. Of two evaluations the difference is paired."""
    whole = random_rollouts(40, samples, 7)
    parts = [in_part(each, 0.25) for each in whole]
    bad = [rollout("bad", True, None)] * samples
    found = summary_over([*bad, *parts], samples)
    by_hand = [fmean(each.attempts[a].grade.reward for each in parts) for a in range(2)]
    assert [each.value for each in found.rewards] == pytest.approx(by_hand)
    assert all(
        right.value < each.low < each.value < each.high
        for right, each in zip(found.accuracy, found.rewards, strict=True)
    )
    assert record_of(Summary, json.loads(json.dumps(asdict(found))), Path("e.json"), "summary").rewards == found.rewards
    assert f"reward t1 {by_hand[0]:.3f} t2 {by_hand[1]:.3f}" in summary_line(found)
    plain = summary_over(whole, samples)
    assert (plain.rewards, plain.earned) == ((), plain.accuracy)
    assert "reward" not in summary_line(plain)
    _, _, figures = pairs(whole, parts, samples)
    less = [figures[f"reward@t{a}"].less for a in (1, 2)]
    assert [each.value for each in less] == pytest.approx(
        [e - a.value for e, a in zip(by_hand, plain.accuracy, strict=True)]
    )
    assert all(each.low > 0 for each in less)


def in_part(of: Rollout, reward: float) -> Rollout:
    """Whose wrong attempts earn something."""
    grades = [each.grade if each.grade.correct else replace(each.grade, reward=reward) for each in of.attempts]
    return replace(of, attempts=tuple(replace(a, grade=g) for a, g in zip(of.attempts, grades, strict=True)))


@pytest.mark.parametrize("n", range(1, 8))
def test_pass_at_k_is_the_share_of_all_choices(n: int) -> None:
    for right in range(n + 1):
        flags = [place < right for place in range(n)]
        for k in range(1, n + 1):
            expected = fmean(any(chosen) for chosen in combinations(flags, k))
            assert pass_at(n, right, k) == pytest.approx(expected, abs=1e-15)
        assert math.isnan(pass_at(n, right, n + 1))


@pytest.mark.parametrize("attempts", [2, 3])
def test_passes_by_enumeration(attempts: int) -> None:
    """Of all choices of k samples: solved by attempt, fixed, broken, and their difference."""
    rollouts = random_rollouts(6, 5, seed=1, attempts=attempts)
    counts = tally(rollouts)
    for k in budgets(5):
        found = passes(counts, k, draws(6, 50, seed=0))
        by_problem = {name: [r for r in rollouts if r.problem.id == name] for name in counts.ids}
        chosen = [combo for group in by_problem.values() for combo in combinations(group, k)]
        solved = [[any(r.attempts[a].grade.correct for r in combo) for combo in chosen] for a in range(attempts)]
        assert [e.value for e in found.accuracy] == pytest.approx([fmean(column) for column in solved])
        assert found.fixed.value == pytest.approx(
            fmean(b and not a for a, b in zip(solved[0], solved[-1], strict=True))
        )
        assert found.broken.value == pytest.approx(
            fmean(a and not b for a, b in zip(solved[0], solved[-1], strict=True))
        )
        assert found.delta.value == pytest.approx(found.fixed.value - found.broken.value)
    assert (budgets(2), budgets(5), budgets(8)) == ([2], [2, 4, 5], [2, 4, 8])


def test_a_mean_over_samples_by_hand() -> None:
    """p: of four samples two are right at first, three at last; q: one could not be graded and is left out."""
    p = [(True, True), (True, False), (False, True), (False, True)]
    q: list[tuple[bool | None, bool]] = [(False, True), (False, False), (None, True), (True, True)]
    mixed = [rollout(name, *pair) for pairs in zip(p, q, strict=True) for name, pair in zip("pq", pairs, strict=True)]
    found = summary_over(mixed, 4)
    assert (found.n, found.samples, len(found.passes)) == (2, 4, 2)
    assert [e.value for e in found.accuracy] == pytest.approx([(2 / 4 + 1 / 3) / 2, (3 / 4 + 2 / 3) / 2])
    assert found.fixed.value == pytest.approx((2 / 4 + 1 / 3) / 2)
    assert found.broken.value == pytest.approx((1 / 4 + 0) / 2)
    assert found.fix_rate.value == pytest.approx((2 / 4 + 1 / 3) / (2 / 4 + 2 / 3))
    assert [each.n for each in found.passes] == [2, 1]  # pass@4 of p alone
    assert found.outcomes[0] == {"correct": 3, "wrong": 4, "grader_failed": 1}
    assert summary_over(mixed[:2], 1) == summarize(mixed[:2])
    assert summary_over([rollout("p", None, None)] * 3, 3).n == 0


def test_the_problem_is_the_unit() -> None:
    """The interval is that of the problems' means; the same sample eight times over is worth no more than once."""
    rollouts = random_rollouts(400, 4, seed=2)
    found = summary_over(rollouts, 4)
    deltas = [last - first for first, last in means(rollouts).values()]
    half = 1.96 * stdev(deltas) / math.sqrt(len(deltas))
    assert found.delta.value == pytest.approx(fmean(deltas))
    assert (found.delta.high - found.delta.low) / 2 == pytest.approx(half, rel=0.05)
    assert found.smallest == pytest.approx(RESOLVED * half / 1.96, rel=0.02)
    once = summarize(rollouts[:400])
    copied = summary_over(rollouts[:400] * 8, 8)
    assert copied.delta.value == once.delta.value
    assert copied.delta.high - copied.delta.low == pytest.approx(once.delta.high - once.delta.low, rel=0.06)
    assert copied.accuracy[0].high - copied.accuracy[0].low == pytest.approx(2 * 1.96 * math.sqrt(once.accuracy[0].value * (1 - once.accuracy[0].value) / 400), rel=0.06)  # fmt: skip


@pytest.mark.parametrize("problems", [1, 2, 3, 19, 20, 50])
@pytest.mark.parametrize(
    "pairs", [[(0, 0)], [(1, 1)], [(0, 1)], [(1, 0)], [(0, 1), (0, 0)], [(0, 1), (1, 1), (1, 0), (0, 1)]]
)
def test_problems_that_all_fare_alike_are_no_certainty(problems: int, pairs: list[tuple[int, int]]) -> None:
    """Each problem has the same samples: a bootstrap over problems has no width, however few they are."""
    rollouts = [rollout(f"p{p}", *map(bool, pair)) for pair in pairs * 3 for p in range(problems)]
    found = summary_over(rollouts, 3 * len(pairs))
    assert found.smallest
    last = found.passes[-1]
    shares = [*found.accuracy, found.fixed, found.broken, found.unchanged, *last.accuracy, last.fixed, last.broken]
    for estimate in [*shares, found.delta, last.delta, *([found.fix_rate] if found.wrong_first else [])]:
        assert estimate.low - 1e-9 <= estimate.value <= estimate.high + 1e-9
        assert estimate.high - estimate.low > 0.9 / (problems + 2)
    if problems < 3:
        assert found.delta.low <= 0 <= found.delta.high


def test_a_few_problems_are_not_surer_than_matched_pairs() -> None:
    """Of two problems, both better by chance, a bootstrap knows only better ones."""
    pairs = [("p", False, True), ("q", False, True), ("p", False, True), ("q", True, True)]
    found = summary_over([rollout(*each) for each in pairs], 2)
    assert found.delta.low < 0 < found.delta.value == 0.75 < found.delta.high
    assert (found.fix_rate.value, found.fix_rate.high) == (1.0, 1.0)
    assert found.fix_rate.low < 0.5


def test_a_rate_of_three_problems_is_not_surer_for_the_others() -> None:
    """27 of 30 had nothing to fix; of the three others all are fixed half the time but one."""
    wrong_P, fixed_P = np.zeros(30), np.zeros(30)
    wrong_P[:3], fixed_P[:3] = 1.0, (0.5, 0.5, 0.25)
    alone = rate_over(fixed_P[:3], wrong_P[:3], draws(3, 400, seed=0))
    found = rate_over(fixed_P, wrong_P, draws(30, 400, seed=0))
    assert (found.value, found.low, found.high) == pytest.approx((alone.value, alone.low, alone.high))
    assert found.high - found.low > 0.7


def test_a_difference_is_no_surer_than_the_side_with_fewer_seeds() -> None:
    """A method of five seeds against a base model of one, and the other way round: all twelve problems alike."""
    one, five = np.ones((1, 12)), np.ones((5, 12))
    base, method = (
        Answers(tuple(range(len(right))), tuple("abcdefghijkl"), right, right, 0 * right, 0 * right, right, None, ())
        for right in (one, five)
    )
    for of, other in ((method, base), (base, method)):
        gain = line("x", of, None, other, 100).gain
        assert gain is not None
        assert gain.high == -gain.low == difference_of([0.0] * 12).high


@pytest.mark.parametrize(("problems", "samples"), [(200, 1), (500, 8), (300, 4)])
def test_a_delta_of_the_smallest_size_is_found_four_times_of_five(problems: int, samples: int) -> None:
    """Problems as they are assumed: 8 % of answers flip, what a problem gains spreads by 10 points; and that delta."""
    rng, wanted = np.random.default_rng(0), assumed(problems, samples)
    found = 0
    for _ in range(400):
        active_P = rng.random(problems) < 0.16
        lean_P = np.where(rng.random(problems) < 0.5, 0.125, -0.125)
        up_P, down_P = (active_P * (0.25 + lean_P + wanted / 0.32), active_P * (0.25 - lean_P - wanted / 0.32))
        draw_KP = rng.random((samples, problems))
        delta_P = ((draw_KP < up_P).astype(float) - (draw_KP > 1 - down_P)).mean(0)
        found += difference_of(delta_P.tolist(), samples).low > 0
    assert 0.73 < found / 400 < 0.88


def test_what_can_be_resolved_is_said() -> None:
    assert assumed(500, 1) == pytest.approx(0.0354, abs=1e-4)  # one greedy pass over MATH-500 cannot show two points
    assert assumed(500, 32) < 0.015 < assumed(500, 4)
    assert before(500, 1).startswith(
        "500 problems can resolve a delta of 3.5 points or more (95 %, power 80 %), assuming"
    )
    assert "with evaluation.samples=8" in before(500, 1)
    assert before(500, 8).startswith("500 problems x 8 samples can resolve a delta of 1.7 points")
    found = summary_over(random_rollouts(100, 4, seed=3), 4)
    assert after(found).startswith(
        f"100 problems x 4 samples resolve a delta of {100 * (found.smallest or 0):.1f} points"
    )
    assert after(summarize([rollout("p", True)])) == ""


def test_differences_are_paired_by_problem() -> None:
    """Problems that one side lacks do not count; single answers have the interval of matched pairs."""
    single = paired({"a": 1.0, "b": 0.0, "c": 1.0}, {"a": 0.0, "b": 0.0, "z": 1.0}, single=True)
    assert single == difference_of([-1.0, 0.0])
    rng = np.random.default_rng(1)
    base = {f"p{n}": float(value) for n, value in enumerate(rng.random(300))}
    near = paired(base, {name: base[name] + 0.01 + 0.001 * (n % 2) for n, name in enumerate(base)}, single=False)
    assert near is not None
    assert (near.low, near.value, near.high) == pytest.approx((0.0105,) * 3, abs=1e-4)  # as independent ones: +-4.6
    assert paired(base, {"z": 1.0}, single=False) is None
    assert change({}, {"p": (1.0, 0.0)}, single=True) is None
    before, now = (
        {"a": (0.0, 1.0), "b": (1.0, 0.0), "c": (0.0, 0.0)},
        {"a": (0.0, 0.0), "b": (0.0, 0.0), "c": (0.0, 1.0)},
    )
    changed = change(before, now, single=True)
    assert changed is not None
    far = change(dict.fromkeys("abc", (1.0, 0.0)), dict.fromkeys("abc", (0.0, 1.0)), single=True)
    assert far is not None
    assert far.delta.low < far.delta.value == 2.0 == far.delta.high
    assert changed.delta == difference_of(
        [-1.0, 1.0, 1.0], most=2.0
    )  # delta too, whose values may be -1, or all 0 and 1
    assert means([rollout("p", True, False), rollout("p", False, False), rollout("p", None, True)]) == {"p": (0.5, 0.0)}


UP, DOWN, EVEN = Estimate(0.03, 0.02, 0.04), Estimate(-0.03, -0.04, -0.02), Estimate(0.0, -0.01, 0.01)


@pytest.mark.parametrize(
    ("first", "last", "delta", "told"),
    [
        (DOWN, EVEN, UP, "the gain in delta is bought by a worse first answer: attempt 1 is 3.0 points (2.0 to 4.0) "
         "lower than that of B, and delta +3.0 [+2.0 to +4.0] points higher; the last attempt is not measurably better"),
        (DOWN, DOWN, UP, "the last attempt is worse too"),
        (DOWN, UP, Estimate(0.06, 0.04, 0.08), "50 % of the gain in delta is bought by a worse first answer"),
        (EVEN, UP, UP, ""),  # a gain of its own
        (UP, UP, UP, ""),
        (DOWN, DOWN, EVEN, ""),  # worse, but no gain in delta was bought
        (DOWN, EVEN, DOWN, ""),
    ],
)  # fmt: skip
def test_a_gain_that_is_bought_is_called_that(first: Estimate, last: Estimate, delta: Estimate, told: str) -> None:
    found = bought(Change(first, last, delta), "B")
    assert told in found
    assert bool(found) == bool(told)
