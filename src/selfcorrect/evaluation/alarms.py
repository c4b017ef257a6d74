"""Two ways to look better than one is (pure): sandbagging and collapse to copying, told in words.

Sandbagging: attempt 1 falls under the base model's, so that attempt 2 has more to mend. Copying: attempt 2 repeats
attempt 1 on most problems and more often than the base model's did, and gains nothing by it.
"""

import math
from collections import deque
from collections.abc import Mapping, Sequence
from statistics import fmean, stdev

from selfcorrect.evaluation.metrics import LEFT_OUT, Estimate, Summary, difference, paired_difference
from selfcorrect.types import Rollout

COPIES = 0.7  # share of unchanged answers from which on it may be called copying
WINDOW = 20  # steps; an alarm while training speaks of their mean


def first_change(rollouts: Sequence[Rollout], base_right: Mapping[str, bool]) -> Estimate | None:
    """Attempt 1 now against the base model's, problem by problem; None where they share none."""
    graded = [r for r in rollouts if not any(a.grade.outcome in LEFT_OUT for a in r.attempts)]
    both = [(base_right[r.problem.id], r.attempts[0].grade.correct) for r in graded if r.problem.id in base_right]
    return paired_difference([before for before, _ in both], [now for _, now in both]) if both else None


def alarms(summary: Summary, base: Summary, change: Estimate | None = None) -> list[str]:
    """What an evaluation gives cause to say, held against the base model's on the same problems.

    change: Accuracy@t1 less the base model's, paired; without it the two count as independent, which is more careful.
    """
    if not (summary.n and base.n and summary.accuracy and base.accuracy):
        return []
    told = []
    first, before = summary.accuracy[0], base.accuracy[0]
    change = change or difference(first, before)
    if change.high < 0:
        told.append(
            f"sandbagging: attempt 1 is right on {first.value:.1%}, the base model's on {before.value:.1%} "
            f"({_interval(change)} points); a weaker first attempt makes correction look better than it is"
        )
    if len(summary.accuracy) > 1 and _copies(summary.unchanged, base.unchanged) and summary.delta.low <= 0:
        told.append(
            f"copying: the last attempt repeats the first on {summary.unchanged.value:.1%}, the base model's on "
            f"{base.unchanged.value:.1%}, and the gain of {100 * summary.delta.value:+.1f} points is not above zero"
        )
    return told


class Watch:
    """The same while training: means over the last WINDOW steps, against the base model's sampled evaluation.

    Each alarm is told once; `stage_started` lets it be told again.
    """

    def __init__(self, base: Summary | None) -> None:
        self._base = base if base and base.n and len(base.accuracy) > 1 else None
        self.stage_started()

    def stage_started(self) -> None:
        """Forget the steps seen."""
        self._first: deque[float] = deque(maxlen=WINDOW)
        self._delta: deque[float] = deque(maxlen=WINDOW)
        self._unchanged: deque[float] = deque(maxlen=WINDOW)
        self._told: set[str] = set()

    def step(self, first: float, delta: float, unchanged: float) -> list[str]:
        """After a step: mean reward of attempt 1, delta, and the share of unchanged answers."""
        for column, value in ((self._first, first), (self._delta, delta), (self._unchanged, unchanged)):
            column.append(value)
        if not self._base or len(self._first) < WINDOW:
            return []
        told, base = [], self._base
        now = _mean(self._first)
        if now.high < base.accuracy[0].low and "sandbagging" not in self._told:
            self._told.add("sandbagging")
            told.append(
                f"sandbagging: over the last {WINDOW} steps attempt 1 is right on {now.value:.1%} of the rollouts, "
                f"the base model's on {base.accuracy[0].value:.1%}"
            )
        same = _mean(self._unchanged)
        if _copies(same, base.unchanged) and _mean(self._delta).low <= 0 and "copying" not in self._told:
            self._told.add("copying")
            told.append(
                f"copying: over the last {WINDOW} steps the last attempt repeats the first on {same.value:.1%} of the "
                f"rollouts, the base model's on {base.unchanged.value:.1%}, without a gain"
            )
        return told


def _copies(unchanged: Estimate, before: Estimate) -> bool:
    return unchanged.value >= COPIES and unchanged.low > before.high


def _mean(values: deque[float]) -> Estimate:
    """The mean of the steps' values with a 95 % interval from their spread."""
    mean, half = fmean(values), 1.96 * stdev(values) / math.sqrt(len(values))
    return Estimate(mean, mean - half, mean + half)


def _interval(change: Estimate) -> str:
    return f"{100 * change.low:+.1f} to {100 * change.high:+.1f}"
