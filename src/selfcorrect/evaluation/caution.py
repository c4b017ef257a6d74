"""When figures allow no conclusion, and when a step teaches nothing: said in words (pure).

An interval answers for chance alone. It does not know that four problems are no sample, that an attempt that was cut
off had no time to be right, that an attempt without an answer cannot be wrong in a way that another mends, or that
a model that is never right, or always, has nothing to show.
"""

from collections.abc import Iterable, Mapping, Sequence

from selfcorrect.evaluation.averages import Change
from selfcorrect.evaluation.metrics import FEW, LEFT_OUT, Estimate, Summary
from selfcorrect.types import Outcome, Rollout

RARE = 5  # problems; with fewer right (or wrong) at both attempts they sit on the floor (or under the ceiling)
MOST = 0.5  # share of attempts without a text to judge from which on accuracy says little
SOME = 0.05  # share of attempts cut off from which on a reader is told
NARROW = 0.05  # an interval within so many points of zero on both sides shows that there is no large difference


def outcome_shares(summary: Summary, outcome: Outcome) -> list[float]:
    """The share of an outcome among the graded rollouts, an entry an attempt."""
    graded = [sum(n for name, n in counts.items() if name not in LEFT_OUT) for counts in summary.outcomes]
    return [counts.get(outcome, 0) / max(1, n) for counts, n in zip(summary.outcomes, graded, strict=True)]


def caution(summary: Summary) -> str:
    """Why nothing can be concluded on self-correction from these figures; empty where something can."""
    if not summary.n or not summary.accuracy:
        return "no problem could be graded"
    if summary.n < FEW:
        were = "problem was" if summary.n == 1 else "problems were"
        return f"only {summary.n} {were} graded, too few to conclude from"
    return _without_text(summary) or _floor(summary)


def _without_text(summary: Summary) -> str:
    """Attempts that were cut off, or hold no answer, where they are most of them."""
    cut = outcome_shares(summary, Outcome.TRUNCATED)
    for which, share in (("first", cut[0]), ("last", cut[-1])) if cut else ():
        if share >= MOST:
            return f"{spaced(share)} of the {which} attempts were cut off at the token limit"
    empty = [a + b for a, b in zip(outcome_shares(summary, Outcome.NO_ANSWER), cut, strict=True)]
    if empty and empty[0] >= MOST:  # what changes at attempt 2 may then be the form alone
        return f"no answer could be read from {spaced(empty[0])} of the first attempts"
    return ""


def _floor(summary: Summary) -> str:
    right = max(round(share.value * summary.n) for share in summary.accuracy)
    wrong = max(summary.n - round(share.value * summary.n) for share in summary.accuracy)
    each = "either attempt" if len(summary.accuracy) == 2 else "any attempt"
    if right < RARE:
        return f"{right or 'no'} problem{'s' * (right > 1)} of {summary.n:,} right at {each}"
    if wrong < RARE and len(summary.accuracy) > 1:
        return f"{wrong or 'no'} problem{'s' * (wrong > 1)} of {summary.n:,} wrong at {each}: nothing to correct"
    return ""


def ungraded(outcomes: Sequence[Mapping[str, int]], rollouts: Iterable[Rollout]) -> str:
    """What to say where some have no verdict: of their graders' own trouble, or as an endpoint gave no answer.

    outcomes: counts by attempt. rollouts: some of those, in which a reason is looked for.
    """
    failed = sum(counts.get(Outcome.GRADER_FAILED, 0) for counts in outcomes)
    if not failed:
        return ""
    count = sum(sum(counts.values()) for counts in outcomes)
    attempts = (attempt for rollout in rollouts for attempt in rollout.attempts)
    why = next((each.grade.detail for each in attempts if each.grade.outcome is Outcome.GRADER_FAILED), "")
    told = f"no verdict on {failed} of {count} attempts, whose rollouts count nowhere"
    return f"{told}: {' '.join(why.split())[:200]}" if why else told


def spaced(share: float) -> str:
    """0.75 -> "75 %"."""
    return f"{100 * share:.0f} %"


def by_attempt(shares: Sequence[float]) -> str:
    """[0.75, 0.0] -> "attempt 1 75 %, attempt 2 0 %"."""
    return ", ".join(f"attempt {number} {spaced(share)}" for number, share in enumerate(shares, 1))


def cut_off(shares: Sequence[float], limit: int | None, least: float) -> str:
    """What to say where, at some attempt, at least this share was cut off; else empty. shares: an entry an attempt."""
    if max(shares, default=0.0) < least:
        return ""
    where = f" = {limit}" if limit else ""
    return (
        f"attempts were cut off at rollouts.max_new_tokens{where} ({by_attempt(shares)}): raise it; what is cut off "
        "earns nothing, whatever it says"
    )


def is_narrow(difference: Estimate) -> bool:
    """Whether an interval that includes zero is tight enough to say that there is hardly a difference."""
    return difference.low >= -NARROW and difference.high <= NARROW


def bought(change: Change, other: str) -> str:
    """What to say where delta rose above another model's while the first answer fell under its; else empty.

    change: this model less the other, paired over the same problems.
    """
    if change.delta.low <= 0 or change.first.high >= 0:
        return ""
    told = f"attempt 1 is {_lower(change.first)} than that of {other}, and delta {_points(change.delta)} points higher"
    if change.last.low > 0:
        price = spaced(min(1.0, -change.first.value / change.delta.value))
        return (
            f"{price} of the gain in delta is bought by a worse first answer: {told}; the last attempt is better by "
            f"{_points(change.last)} points"
        )
    last = "is worse too" if change.last.high < 0 else "is not measurably better"
    return (
        f"the gain in delta is bought by a worse first answer: {told}; the last attempt {last} ({_points(change.last)})"
    )


def _lower(fall: Estimate) -> str:
    return f"{-100 * fall.value:.1f} points ({-100 * fall.high:.1f} to {-100 * fall.low:.1f}) lower"


def _points(change: Estimate) -> str:
    return f"{100 * change.value:+.1f} [{100 * change.low:+.1f} to {100 * change.high:+.1f}]"
