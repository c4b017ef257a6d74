"""The paper's metrics with 95 % intervals (pure, stdlib only).

Shares of problems carry Wilson's interval; differences between attempts an interval for matched pairs, since
both attempts answer the same problem. Rollouts the grader failed on, and problems the model cannot read,
are counted and left out.
"""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist

from selfcorrect.errors import NothingGraded
from selfcorrect.types import Outcome, Rollout

FEW = 20  # problems; with fewer nothing is concluded
_Z = NormalDist().inv_cdf(0.975)
RESOLVED = _Z + NormalDist().inv_cdf(0.8)  # standard errors from zero that a 95 % interval excludes it with power 80 %
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
class Passes:
    """pass@k: the share of problems that at least one of k samples solves, attempt by attempt.

    n: problems with at least k graded samples. delta: of the last attempt less the first; fixed: solved in k last
    attempts and in none of the k first ones; broken: the other way.
    """

    k: int
    n: int
    accuracy: tuple[Estimate, ...]
    delta: Estimate
    fixed: Estimate
    broken: Estimate


@dataclass(frozen=True, slots=True)
class Flow:
    """From one attempt to the next: what `Summary` has from the first to the last, as shares of all problems."""

    delta: Estimate
    fixed: Estimate
    broken: Estimate
    unchanged: Estimate


@dataclass(frozen=True, slots=True)
class Summary:
    """What an evaluation says. n counts graded problems; outcomes[a] counts attempt a+1's outcomes over all rollouts.

    delta is Accuracy@last - Accuracy@t1; fixed (i->c) and broken (c->i) are shares of all problems between
    attempt 1 and the last; fix_rate is fixed / (1 - Accuracy@t1); unchanged: the last attempt repeats the
    first one's answer. samples: of each problem; with more than one, every share is a mean over problems of the
    mean over its samples (Avg@k), and passes holds pass@k. smallest: the smallest delta that so many problems and
    samples can resolve, by the variance that was measured (resolution.py); None where nothing was. flows: from attempt
    1 to 2, from 2 to 3 and so on, over the same problems; empty where there are no more than two. rewards: the mean
    reward of each attempt, with an interval that is wide enough for all of [0, 1]; empty where each is 0 or 1.
    """

    n: int
    accuracy: tuple[Estimate, ...]
    delta: Estimate
    fixed: Estimate
    broken: Estimate
    fix_rate: Estimate
    unchanged: Estimate
    outcomes: tuple[dict[str, int], ...]
    samples: int = 1
    passes: tuple[Passes, ...] = ()
    smallest: float | None = None
    flows: tuple[Flow, ...] = ()
    rewards: tuple[Estimate, ...] = ()

    def __repr__(self) -> str:
        from selfcorrect.evaluation.told import summary_line  # which reads this module

        return f"<Summary {summary_line(self)}>"

    @property
    def earned(self) -> tuple[Estimate, ...]:
        """The mean reward of each attempt: where none is partial, its accuracy."""
        return self.rewards or self.accuracy

    @property
    def wrong_first(self) -> int:
        """How many first attempts were wrong: without one, fix_rate is not defined (its value is then 0)."""
        return round(self.n * (1 - self.accuracy[0].value)) if self.accuracy else 0


def share(hits: float, n: float) -> Estimate:
    """Hits / n with Wilson's 95 % interval; all zero where n is 0."""
    if n == 0:
        return Estimate(0.0, 0.0, 0.0)
    p = min(1.0, hits / n)
    centre = (p + _Z**2 / (2 * n)) / (1 + _Z**2 / n)
    half = _Z / (1 + _Z**2 / n) * math.sqrt(p * (1 - p) / n + _Z**2 / (4 * n**2))
    return Estimate(p, min(p, max(0.0, centre - half)), max(p, min(1.0, centre + half)))


def difference_of(values: Sequence[float], samples: int = 1, most: float = 1.0) -> Estimate:
    """The mean of one difference a problem, each a mean over `samples`, with Agresti and Min's 95 % interval for
    matched pairs: half a problem is added to each of the four cells, so that it has a width where no pair differs. It
    reaches to the mean itself, which of one problem with many samples it would miss.

    most: how large a difference can be; two deltas may be 2 apart.
    """
    n = len(values)
    if n == 0:
        return Estimate(0.0, 0.0, 0.0)
    mean, centre, half = sum(values) / n, sum(values) / (n + 2), _Z * standard_error(values, samples)
    return Estimate(mean, max(-most, min(mean, centre - half)), min(most, max(mean, centre + half)))


def standard_error(values: Sequence[float], samples: int = 1) -> float:
    """The standard error of the mean of one difference a problem, each a mean over `samples`.

    Two problems without a difference of their own are added, of whose samples half flip: their squares add up to one
    over `samples`. With one sample that is Agresti and Min's, and it is never zero.
    """
    m = len(values) + 2
    centre = sum(values) / m
    return math.sqrt(((sum(value**2 for value in values) + 1 / samples) / m - centre**2) / m)


def difference(new: Estimate, old: Estimate) -> Estimate:
    """Difference new - old of two independent shares, with Newcombe's interval from theirs."""
    value = new.value - old.value
    down = math.hypot(new.value - new.low, old.high - old.value)
    up = math.hypot(new.high - new.value, old.value - old.low)
    return Estimate(value, value - down, value + up)


def is_unchanged(rollout: Rollout) -> bool:
    """Whether the last attempt repeats the first one."""
    first, last = rollout.attempts[0], rollout.attempts[-1]
    return repeats((first.grade.answer, last.grade.answer), (first.completion.text, last.completion.text))


def repeats(answers: tuple[str, str], texts: tuple[str, str]) -> bool:
    """Whether a second attempt gives the first one's answer again (its text, where no answer could be read).

    Two attempts that say nothing repeat nothing.
    """
    if any(answers):
        return answers[0] == answers[1]
    return texts[0].strip() != "" and texts[0] == texts[1]


def is_graded(rollout: Rollout) -> bool:
    """Whether each of its attempts was sampled and graded, so that it counts."""
    return not any(attempt.grade.outcome in LEFT_OUT for attempt in rollout.attempts)


def grader_lives(rollouts: Sequence[Rollout]) -> bool:
    """Whether the grader gave any verdict on each attempt where it was asked: one attempt of all rollouts is graded
    together, and without it none of them counts. Verdicts of a grader that died are not worth keeping.
    """
    together = zip(*(rollout.attempts for rollout in rollouts), strict=True)
    outcomes = [{attempt.grade.outcome for attempt in attempts} for attempts in together]
    verdicts = (Outcome.CORRECT, Outcome.WRONG)
    return all(Outcome.GRADER_FAILED not in each or not each.isdisjoint(verdicts) for each in outcomes)


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
    gained = [float(b) - float(a) for a, b in zip(first, last, strict=True)]
    fixed, broken = gained.count(1.0), gained.count(-1.0)
    same = sum(map(is_unchanged, graded))
    earned = [sum(r.attempts[a].grade.reward for r in graded) for a in range(attempts)]
    return Summary(
        n=n,
        accuracy=tuple(share(sum(column), n) for column in right),
        delta=difference_of(gained),
        fixed=share(fixed, n),
        broken=share(broken, n),
        fix_rate=share(fixed, n - sum(first)),
        unchanged=share(same, n),
        outcomes=outcomes_of(rollouts),
        smallest=RESOLVED * standard_error(gained) if n and attempts > 1 else None,
        flows=flows_of(graded, attempts, summarize),
        rewards=tuple(share(total, n) for total in earned) if are_partial(graded) else (),
    )


def are_partial(graded: Sequence[Rollout]) -> bool:
    """Whether a reward lies between 0 and 1, so that accuracy does not tell what was earned."""
    return any(0 < attempt.grade.reward < 1 for rollout in graded for attempt in rollout.attempts)


def flows_of(
    graded: Sequence[Rollout], attempts: int, summary: Callable[[Sequence[Rollout]], Summary]
) -> tuple[Flow, ...]:  # fmt: skip
    """Between neighbouring attempts, where there are more than two. summary: of rollouts cut down to a pair of them."""
    if attempts < 3:
        return ()
    pairs = [
        summary([replace(rollout, attempts=rollout.attempts[place : place + 2]) for rollout in graded])
        for place in range(attempts - 1)
    ]
    return tuple(Flow(pair.delta, pair.fixed, pair.broken, pair.unchanged) for pair in pairs)


def outcomes_of(rollouts: Sequence[Rollout]) -> tuple[dict[str, int], ...]:
    """How often each attempt ended in which outcome."""
    attempts = len(rollouts[0].attempts) if rollouts else 0
    return tuple(dict(Counter(str(r.attempts[a].grade.outcome) for r in rollouts)) for a in range(attempts))
