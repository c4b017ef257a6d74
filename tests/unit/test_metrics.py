"""Metrics against scipy and against hand-made rollouts."""

import math
import random

import pytest

from selfcorrect.evaluation.averages import summary_over
from selfcorrect.evaluation.metrics import Estimate, difference_of, grader_lives, share, summarize
from selfcorrect.evaluation.told import estimate_text
from selfcorrect.report.tables import summary_cells
from selfcorrect.runs.display import summary_lines
from selfcorrect.types import Outcome, Rollout
from tests.support.rollouts import graded

CORRECT, WRONG, TRUNCATED = Outcome.CORRECT, Outcome.WRONG, Outcome.TRUNCATED
Z = 1.959963984540054


@pytest.mark.parametrize(("hits", "n"), [(0, 1), (1, 1), (0, 7), (7, 7), (3, 10), (1, 2000), (1999, 2000), (617, 1319)])
def test_share_is_wilson(hits: int, n: int) -> None:
    from scipy.stats import binomtest

    reference = binomtest(hits, n).proportion_ci(confidence_level=0.95, method="wilson")
    found = share(hits, n)
    assert found.value == hits / n
    assert (found.low, found.high) == pytest.approx((reference.low, reference.high), abs=1e-12)


@pytest.mark.parametrize("n", [1, 3, 7, 30, 500, 1000, 1319, 2000])
def test_a_share_lies_within_its_interval(n: int) -> None:
    assert share(0, n).low == 0.0
    assert share(n, n).high == 1.0
    for hits in range(n + 1):
        found = share(hits, n)
        assert 0 <= found.low <= found.value <= found.high <= 1


def paired(first: list[bool], second: list[bool]) -> Estimate:
    return difference_of([float(b) - float(a) for a, b in zip(first, second, strict=True)])


def test_paired_difference_by_hand() -> None:
    # One pair goes up twice, one down once; half a problem in each of the four cells: (2 - 1) / 7 and (2 + 1 + 1) / 7.
    found = paired([False, True, True, False, False], [True, True, False, True, False])
    half = Z * math.sqrt((4 / 7 - (1 / 7) ** 2) / 7)
    assert (found.value, found.low, found.high) == pytest.approx((0.2, 1 / 7 - half, 1 / 7 + half))
    copied = paired([True, False] * 50, [True, False] * 50)
    assert copied.value == 0
    assert -0.03 < copied.low < 0 < copied.high < 0.03


def test_paired_difference_covers_the_truth() -> None:
    """Of 1,000 draws of 200 problems with 6 % fixed and 2 % broken, about 95 % of the intervals hold 4 %."""
    rng = random.Random(0)
    held = 0
    for _ in range(1000):
        draws = [rng.random() for _ in range(200)]
        found = paired([0.06 < u < 0.5 for u in draws], [u < 0.48 for u in draws])
        held += found.low <= 0.04 <= found.high
    assert 0.93 < held / 1000 < 0.975


def test_summary_leaves_out_what_was_not_graded_and_counts_it() -> None:
    rollouts = [
        graded(WRONG, CORRECT),  # fixed
        graded(CORRECT, WRONG),  # broken
        graded(CORRECT, CORRECT, texts=["same", "same"]),
        graded(WRONG, TRUNCATED),
        graded(Outcome.NO_ANSWER, WRONG, texts=["?", "?"]),
        graded(CORRECT, Outcome.GRADER_FAILED),  # left out, though attempt 1 was graded
        graded(Outcome.GRADER_FAILED, CORRECT),
        graded(Outcome.UNREADABLE, Outcome.UNREADABLE, texts=["", ""]),
    ]
    found = summarize(rollouts)
    assert found.n == 5
    assert [accuracy.value for accuracy in found.accuracy] == [2 / 5, 2 / 5]
    assert (found.delta.value, found.fixed.value, found.broken.value) == (0, 1 / 5, 1 / 5)
    assert found.fix_rate == share(1, 3)  # of the three wrong at attempt 1
    assert found.unchanged.value == 2 / 5
    assert found.outcomes == (
        {"wrong": 2, "correct": 3, "no_answer": 1, "grader_failed": 1, "unreadable": 1},
        {"correct": 3, "wrong": 2, "truncated": 1, "grader_failed": 1, "unreadable": 1},
    )


def test_what_is_left_out_is_told_by_its_outcome() -> None:
    rollouts = [graded(CORRECT, WRONG)] * 4
    few = "nothing can be concluded: only 1 problem was graded, too few to conclude from"
    assert summary_lines(summary_over(rollouts, 4))[-2:] == ["n = 1; 95 % intervals in brackets", few]
    rollouts += [graded(CORRECT, Outcome.GRADER_FAILED), graded(Outcome.UNREADABLE, Outcome.UNREADABLE)]
    told = (
        "n = 1 (left out: rollouts with attempts that are 1 grader_failed and 2 unreadable); 95 % intervals in brackets"
    )
    assert summary_lines(summary_over(rollouts, 6))[-2:] == [told, few]


def test_three_attempts_compare_the_first_with_the_last() -> None:
    rollouts = [
        graded(WRONG, CORRECT, WRONG, texts=["a", "b", "a"]),
        graded(WRONG, WRONG, CORRECT),
        graded(CORRECT, WRONG, CORRECT),
        graded(CORRECT, CORRECT, WRONG),
        graded(WRONG, WRONG, CORRECT),
    ]
    found = summarize(rollouts)
    assert [accuracy.value for accuracy in found.accuracy] == [2 / 5, 2 / 5, 3 / 5]
    assert found.delta.value == pytest.approx(1 / 5)
    assert (found.fixed.value, found.broken.value, found.fix_rate.value) == (2 / 5, 1 / 5, 2 / 3)
    assert found.unchanged.value == 1 / 5


def test_two_attempts_that_say_nothing_repeat_nothing() -> None:
    pairs = [graded(WRONG, WRONG, texts=[text, text]) for text in ("?", " ", "")]
    assert [summarize([pair]).unchanged.value for pair in pairs] == [1, 0, 0]
    assert summary_over(pairs[:2], 2).unchanged.value == 1 / 2  # two samples of a problem


@pytest.mark.parametrize(
    ("outcomes", "lives"),
    [
        (["grader_failed", "grader_failed"], False),
        (["grader_failed", "truncated"], False),
        (["unreadable", "grader_failed", "no_answer"], False),
        (["grader_failed", "wrong"], True),
        (["truncated", "unreadable"], True),
        (["grader_failed wrong", "grader_failed correct"], False),
        (["grader_failed wrong", "wrong grader_failed"], True),
    ],
)
def test_whether_the_grader_lives(outcomes: list[str], lives: bool) -> None:
    """Whatever else ended the attempts beside; a rollout's attempts are each graded together with those of the others."""
    assert grader_lives([graded(*map(Outcome, each.split())) for each in outcomes]) is lives


def test_nothing_has_no_minus_sign() -> None:
    assert estimate_text(Estimate(-0.0004, -0.0006, 0.0), signed=True) == "+0.0% [-0.1, +0.0]"


@pytest.mark.parametrize("rollouts", [[], [graded(Outcome.GRADER_FAILED, CORRECT)]])
def test_nothing_graded_gives_zeros(rollouts: list[Rollout]) -> None:
    found = summarize(rollouts)
    nothing = Estimate(0.0, 0.0, 0.0)
    assert found.n == 0
    assert set(found.accuracy) <= {nothing}
    assert [found.delta, found.fixed, found.broken, found.fix_rate, found.unchanged] == [nothing] * 5


def test_one_attempt() -> None:
    found = summarize([graded(CORRECT), graded(WRONG)])
    assert [accuracy.value for accuracy in found.accuracy] == [0.5]
    assert (found.delta.value, found.fixed.value, found.unchanged.value) == (0, 0, 1)


@pytest.mark.parametrize(
    ("firsts", "told"),
    [("cc", "\N{EN DASH}"), ("c", "\N{EN DASH}"), ("cw", "0.0% [0.0, 79.3]"), ("w", "0.0% [0.0, 79.3]")],
)
def test_a_fix_rate_of_nothing_to_fix_is_no_number(firsts: str, told: str) -> None:
    outcomes = {"c": (CORRECT, CORRECT), "w": (WRONG, WRONG)}
    summary = summarize([graded(*outcomes[first]) for first in firsts])
    assert summary.wrong_first == firsts.count("w")
    (line,) = [line for line in summary_lines(summary) if line.startswith("fix rate")]
    assert line.split(maxsplit=2)[2] == told
    cell = summary_cells(summary, 2)[5]
    assert (cell.main == "\N{EM DASH}") is (told == "\N{EN DASH}")
