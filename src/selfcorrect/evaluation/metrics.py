"""The paper's metrics with 95 % intervals (pure, stdlib only).

Shares of problems carry Wilson's interval; differences between attempts an interval for matched pairs, since
both attempts answer the same problem. Rollouts the grader failed on, and problems the model cannot read,
are counted and left out.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

from selfcorrect.errors import NothingGraded
from selfcorrect.types import Outcome, Rollout

_Z = NormalDist().inv_cdf(0.975)
LEFT_OUT = frozenset({Outcome.GRADER_FAILED, Outcome.UNREADABLE})
_REMEDY = {
    Outcome.GRADER_FAILED: "mend what keeps the grader from working",
    Outcome.UNREADABLE: "take a model whose tokenizer can read the task's problems",
}


@dataclass(frozen=True, slots=True)
class Estimate:
    """A share or a difference of shares, with its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Summary:
    """What an evaluation says. n counts graded problems; outcomes[a] counts attempt a+1's outcomes over all.

    delta is Accuracy@last - Accuracy@t1; fixed (i->c) and broken (c->i) are shares of all problems between
    attempt 1 and the last; fix_rate is fixed / (1 - Accuracy@t1); unchanged: the last attempt repeats the
    first one's answer.
    """

    n: int
    accuracy: tuple[Estimate, ...]
    delta: Estimate
    fixed: Estimate
    broken: Estimate
    fix_rate: Estimate
    unchanged: Estimate
    outcomes: tuple[dict[str, int], ...]

    @property
    def wrong_first(self) -> int:
        """How many first attempts were wrong: without one, fix_rate is not defined (its value is then 0)."""
        return round(self.n * (1 - self.accuracy[0].value)) if self.accuracy else 0


def share(hits: int, n: int) -> Estimate:
    """Hits / n with Wilson's 95 % interval; all zero where n is 0."""
    if n == 0:
        return Estimate(0.0, 0.0, 0.0)
    p = hits / n
    centre = (p + _Z**2 / (2 * n)) / (1 + _Z**2 / n)
    half = _Z / (1 + _Z**2 / n) * math.sqrt(p * (1 - p) / n + _Z**2 / (4 * n**2))
    return Estimate(p, max(0.0, centre - half), min(1.0, centre + half))


def paired_difference(first: Sequence[bool], second: Sequence[bool]) -> Estimate:
    """mean(second) - mean(first) over the same problems, with Agresti and Min's 95 % interval for matched pairs.

    Half a problem is added to each of the four cells, so that the interval has a width even where no pair differs.
    """
    pairs = list(zip(first, second, strict=True))
    n = len(pairs)
    if n == 0:
        return Estimate(0.0, 0.0, 0.0)
    up = sum(b and not a for a, b in pairs)
    down = sum(a and not b for a, b in pairs)
    m = n + 2
    centre = (up - down) / m
    half = _Z * math.sqrt(((up + down + 1) / m - centre**2) / m)
    return Estimate((up - down) / n, max(-1.0, centre - half), min(1.0, centre + half))


def difference(new: Estimate, old: Estimate) -> Estimate:
    """Difference new - old of two independent shares, with Newcombe's interval from theirs."""
    value = new.value - old.value
    down = math.hypot(new.value - new.low, old.high - old.value)
    up = math.hypot(new.high - new.value, old.value - old.low)
    return Estimate(value, value - down, value + up)


def is_unchanged(rollout: Rollout) -> bool:
    """Whether the last attempt gives the first one's answer again (its text, where no answer could be read).

    Two attempts that say nothing repeat nothing.
    """
    first, last = rollout.attempts[0], rollout.attempts[-1]
    if first.grade.answer or last.grade.answer:
        return first.grade.answer == last.grade.answer
    return first.completion.text.strip() != "" and first.completion.text == last.completion.text


def is_graded(rollout: Rollout) -> bool:
    """Whether each of its attempts was sampled and graded, so that it counts."""
    return not any(attempt.grade.outcome in LEFT_OUT for attempt in rollout.attempts)


def refuse_nothing_graded(rollouts: Sequence[Rollout], what: str) -> None:
    """Raises NothingGraded, with the reasons, where there are rollouts and none counts. what: the line's beginning."""
    missed = []
    for rollout in rollouts:
        left_out = [attempt.grade for attempt in rollout.attempts if attempt.grade.outcome in LEFT_OUT]
        if not left_out:
            return
        missed.append(left_out[0])
    if missed:
        reasons = []
        for outcome, count in Counter(grade.outcome for grade in missed).most_common():
            detail = Counter(grade.detail for grade in missed if grade.outcome is outcome).most_common(1)[0][0]
            reasons.append(f"{count} {outcome}" + (f" ({' '.join(detail.split())[:300]})" if detail else ""))
        remedies = " and ".join(_REMEDY[outcome] for outcome in dict.fromkeys(grade.outcome for grade in missed))
        raise NothingGraded(
            f"{what}: none of {len(missed)} problems played could be graded: {', '.join(reasons)}; {remedies}"
        )


def summarize(rollouts: Sequence[Rollout]) -> Summary:
    """Rollouts, all with the same number of attempts -> Summary."""
    attempts = len(rollouts[0].attempts) if rollouts else 0
    graded = list(filter(is_graded, rollouts))
    right = [[r.attempts[a].grade.correct for r in graded] for a in range(attempts)]
    n = len(graded)
    first, last = (right[0], right[-1]) if right else ([], [])
    fixed = sum(b and not a for a, b in zip(first, last, strict=True))
    broken = sum(a and not b for a, b in zip(first, last, strict=True))
    same = sum(map(is_unchanged, graded))
    return Summary(
        n=n,
        accuracy=tuple(share(sum(column), n) for column in right),
        delta=paired_difference(first, last),
        fixed=share(fixed, n),
        broken=share(broken, n),
        fix_rate=share(fixed, n - sum(first)),
        unchanged=share(same, n),
        outcomes=tuple(dict(Counter(str(r.attempts[a].grade.outcome) for r in rollouts)) for a in range(attempts)),
    )


def summary_of(row: Mapping[str, Any]) -> Summary:
    """A Summary from the plain values that `dataclasses.asdict` made of it."""
    single = {name: Estimate(**row[name]) for name in ("delta", "fixed", "broken", "fix_rate", "unchanged")}
    accuracy = tuple(Estimate(**value) for value in row["accuracy"])
    return Summary(n=row["n"], accuracy=accuracy, outcomes=tuple(row["outcomes"]), **single)
