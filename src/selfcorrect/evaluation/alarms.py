"""Two ways to look better than one is, and steps that teach nothing (pure): told in words.

Sandbagging: attempt 1 falls under the base model's, so that attempt 2 has more to mend. Copying: attempt 2 repeats
attempt 1 on most problems and more often than the base model's did, and gains nothing by it. Nothing is learned where
attempts are cut off, where all rollouts of a problem earn the same, and where the gradient is zero.
"""

import math
from collections import deque
from collections.abc import Sequence
from statistics import fmean, stdev

from selfcorrect.evaluation.averages import Change
from selfcorrect.evaluation.caution import MOST, bought, by_attempt, caution, cut_off, outcome_shares, spaced
from selfcorrect.evaluation.metrics import FEW, Estimate, Summary, difference
from selfcorrect.types import Outcome

COPIES = 0.7  # share of unchanged answers from which on it may be called copying
WINDOW = 20  # steps; an alarm while training speaks of their mean
CUT = 0.25  # share of an attempt's rollouts that are cut off from which on it is said; of one step alone, twice that
EQUAL = 0.9  # share of problems whose rollouts all earn the same, over WINDOW steps, from which on it is said


def alarms(summary: Summary, base: Summary, change: Change | None = None) -> list[str]:
    """What an evaluation gives cause to say, held against the base model's on the same problems.

    change: this one less the base model's, paired; without it the two count as independent, which is more careful.
    """
    if min(summary.n, base.n) < FEW or not (summary.accuracy and base.accuracy):
        return []
    told = []
    first, before = summary.accuracy[0], base.accuracy[0]
    fallen = change.first if change else difference(first, before)
    if fallen.high < 0:
        told.append(
            f"sandbagging: attempt 1 is right on {first.value:.1%}, the base model's on {before.value:.1%} "
            f"({_interval(fallen)} points); a weaker first attempt makes correction look better than it is"
        )
    if change and (price := bought(change, "the base model")):
        told.append(f"bought: {price}")
    copies = len(summary.accuracy) > 1 and _copies(summary.unchanged, base.unchanged) and summary.delta.low <= 0
    if copies and not caution(summary):  # where all is right, or all is cut off, there was nothing to gain
        told.append(
            f"copying: the last attempt repeats the first on {summary.unchanged.value:.1%}, the base model's on "
            f"{base.unchanged.value:.1%}, and the gain of {100 * summary.delta.value:+.1f} points is not above zero"
        )
    return told


def cut_off_at(summary: Summary, limit: int | None) -> list[str]:
    """What to say of an evaluation of which much was cut off, at `limit` tokens where that is known."""
    return _kind("cut off", cut_off(outcome_shares(summary, Outcome.TRUNCATED), limit, CUT))


def unread(summary: Summary) -> list[str]:
    """What to say of an evaluation of which much, though not cut off, states no answer in the form that is read."""
    shares = outcome_shares(summary, Outcome.NO_ANSWER)
    if max(shares, default=0.0) < MOST:
        return []
    return [
        f"no answer: none could be read from many attempts ({by_attempt(shares)}): see whether the prompt "
        "asks for the form that is graded (`selfcorrect check` shows it), and what they say instead"
    ]


class Watch:
    """The same while training: means over the last WINDOW steps, against the base model's sampled evaluation.

    What is said begins with its kind and a colon, so that whoever hears it can tell each kind once.
    """

    def __init__(self, base: Summary | None) -> None:
        self._base = base if base and base.n >= FEW and len(base.accuracy) > 1 else None
        self.stage_started()

    def stage_started(self) -> None:
        """Forget the steps seen."""
        self._first: deque[float] = deque(maxlen=WINDOW)
        self._delta: deque[float] = deque(maxlen=WINDOW)
        self._unchanged: deque[float] = deque(maxlen=WINDOW)

    def step(self, first: float, delta: float, unchanged: float) -> list[str]:
        """After a step: accuracy of attempt 1, delta, and the share of unchanged answers."""
        for column, value in ((self._first, first), (self._delta, delta), (self._unchanged, unchanged)):
            column.append(value)
        if not self._base or len(self._first) < WINDOW:
            return []
        told, base = [], self._base
        now = _mean(self._first)
        if now.high < base.accuracy[0].low:
            told.append(
                f"sandbagging: over the last {WINDOW} steps attempt 1 is right on {now.value:.1%} of the rollouts, "
                f"the base model's on {base.accuracy[0].value:.1%}"
            )
        same = _mean(self._unchanged)
        if _copies(same, base.unchanged) and _mean(self._delta).low <= 0:
            told.append(
                f"copying: over the last {WINDOW} steps the last attempt repeats the first on {same.value:.1%} of the "
                f"rollouts, the base model's on {base.unchanged.value:.1%}, without a gain"
            )
        return told


class Lessons:
    """Whether steps teach anything, said in the same form. limit: rollouts.max_new_tokens."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self.stage_started()

    def stage_started(self) -> None:
        """Forget the steps seen."""
        self._cut: deque[Sequence[float]] = deque(maxlen=WINDOW)
        self._equal: deque[float] = deque(maxlen=WINDOW)
        self._skipped = 0

    def step(
        self, rewards: Sequence[float], truncated: Sequence[float], equal: float | None, grad_norm: float | None,
        skipped: str,
    ) -> list[str]:  # fmt: skip
        """After a step. rewards, truncated: means by attempt; equal: the share of problems whose rollouts all earn the
        same, None where none was graded; skipped: why the update was, if it was.
        """
        told = []
        self._skipped = self._skipped + 1 if skipped else 0
        if self._skipped == 2:
            told.append(
                f"skipped: two steps in a row left the weights as they were, as {skipped}; where that goes on, begin "
                "again with a lower learning_rate of this stage"
            )
        still = "the gradient of this step is exactly zero" if grad_norm == 0 and not skipped else ""
        if still and equal != 1:  # equal rewards are why it is, and one alarm tells of both
            told.append(f"no gradient: {still}: nothing at all is learned from it")
        if truncated:
            self._cut.append(truncated)
            told += _kind("cut off", cut_off(truncated, self._limit, 2 * CUT))
            if len(self._cut) == WINDOW:
                means = [fmean(column) for column in zip(*self._cut, strict=True)]
                told += _kind(f"cut off over {WINDOW} steps", cut_off(means, self._limit, CUT))
        if equal is not None:
            self._equal.append(equal)
            told += _kind("equal rewards", "; ".join(filter(None, (_all_equal(rewards), still))) if equal == 1 else "")
            if len(self._equal) == WINDOW and fmean(self._equal) >= EQUAL:
                told.append(
                    f"equal rewards over {WINDOW} steps: at {spaced(fmean(self._equal))} of the problems all rollouts "
                    "earn the same, and nothing can be learned from those"
                )
        return told


def _all_equal(rewards: Sequence[float]) -> str:
    if all(reward == 0 for reward in rewards):
        return (
            "all rewards of this step equal: nothing to learn; no attempt was right: easier problems, more "
            "rollouts.rollouts_per_problem or a longer rollouts.max_new_tokens may change that"
        )
    if all(reward == 1 for reward in rewards):
        return "all rewards of this step equal: nothing to learn; every attempt was right: the problems are too easy"
    return "at every problem of this step all rollouts earn the same: nothing to learn"


def _kind(kind: str, told: str) -> list[str]:
    return [f"{kind}: {told}"] if told else []


def _copies(unchanged: Estimate, before: Estimate) -> bool:
    return unchanged.value >= COPIES and unchanged.low > before.high


def _mean(values: deque[float]) -> Estimate:
    """The mean of the steps' values with a 95 % interval from their spread."""
    mean, half = fmean(values), 1.96 * stdev(values) / math.sqrt(len(values))
    return Estimate(mean, mean - half, mean + half)


def _interval(change: Estimate) -> str:
    return f"{100 * change.low:+.1f} to {100 * change.high:+.1f}"
