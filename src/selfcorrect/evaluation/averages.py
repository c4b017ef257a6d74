"""k samples of every problem: Avg@k and pass@k with intervals over problems (numpy).

The problem is the unit. Its samples give its mean, and pass@k by the unbiased estimator of Chen et al. (2021,
arXiv 2107.03374, eq. 1); a bootstrap draws problems, each with all its samples, and the same draws serve every
statistic, so differences are paired. Rollouts that could not be graded leave their problem with fewer samples.

Axes: A attempts, P problems, R resamples.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from selfcorrect.evaluation.metrics import (
    FEW,
    RESOLVED,
    Estimate,
    Passes,
    Summary,
    are_partial,
    difference_of,
    flows_of,
    is_graded,
    is_unchanged,
    outcomes_of,
    share,
    standard_error,
    summarize,
)
from selfcorrect.evaluation.resampling import Table, bootstrap, draws, ratio, weighted_mean
from selfcorrect.types import Rollout

RESAMPLES = 2000
_WIDTH = 1e-9  # shares that are closer are the same


@dataclass(frozen=True, slots=True)
class Tally:
    """Counts of a problem's graded samples. either_P: right at the first attempt or at the last; reward_AP: sums."""

    ids: tuple[str, ...]
    n_P: Table
    right_AP: Table
    fixed_P: Table
    broken_P: Table
    either_P: Table
    same_P: Table
    reward_AP: Table


@dataclass(frozen=True, slots=True)
class Change:
    """One evaluation less another, over the same problems: accuracy of the first and the last attempt, and delta."""

    first: Estimate
    last: Estimate
    delta: Estimate


def tally(rollouts: Iterable[Rollout]) -> Tally:
    """Counts of the graded ones by problem, in the order in which they come."""
    graded = list(filter(is_graded, rollouts))
    places = {name: place for place, name in enumerate(dict.fromkeys(rollout.problem.id for rollout in graded))}
    attempts = max((len(rollout.attempts) for rollout in graded), default=0)
    n_P, right_AP = np.zeros(len(places)), np.zeros((attempts, len(places)))
    fixed_P, broken_P, either_P, same_P = (np.zeros(len(places)) for _ in range(4))
    reward_AP = np.zeros_like(right_AP)
    for rollout in graded:
        grades = [attempt.grade for attempt in rollout.attempts]
        place, first, last = places[rollout.problem.id], grades[0].correct, grades[-1].correct
        n_P[place] += 1
        right_AP[:, place] += [grade.correct for grade in grades]
        fixed_P[place] += last and not first
        broken_P[place] += first and not last
        either_P[place] += first or last
        same_P[place] += is_unchanged(rollout)
        reward_AP[:, place] += [grade.reward for grade in grades]
    return Tally(tuple(places), n_P, right_AP, fixed_P, broken_P, either_P, same_P, reward_AP)


def summary_over(rollouts: Sequence[Rollout], samples: int) -> Summary:
    """Rollouts, `samples` of each problem -> Summary: Avg@k and pass@k; of one sample what `summarize` says."""
    graded = list(filter(is_graded, rollouts))
    if samples == 1 or not graded:
        return replace(summarize(rollouts), samples=samples)
    counts, attempts = tally(graded), len(rollouts[0].attempts)
    n, drawn_RP = len(counts.ids), draws(len(counts.ids), RESAMPLES, seed=0)
    first_P, last_P = (counts.right_AP[place] / counts.n_P for place in (0, -1))
    fixed_P = counts.fixed_P / counts.n_P
    delta_P, rate = last_P - first_P, rate_over(fixed_P, 1 - first_P, drawn_RP)
    return Summary(
        n=n,
        accuracy=tuple(share_over(right_P / counts.n_P, drawn_RP) for right_P in counts.right_AP),
        delta=difference_over(delta_P, drawn_RP, samples),
        fixed=share_over(fixed_P, drawn_RP),
        broken=share_over(counts.broken_P / counts.n_P, drawn_RP),
        fix_rate=share(0, 0) if math.isnan(rate.value) else rate,
        unchanged=share_over(counts.same_P / counts.n_P, drawn_RP),
        outcomes=outcomes_of(rollouts),
        samples=samples,
        passes=tuple(passes(counts, k, drawn_RP) for k in budgets(samples)),
        smallest=RESOLVED * standard_error(delta_P.tolist(), samples) if attempts > 1 else None,
        flows=flows_of(graded, attempts, lambda pair: summary_over(pair, samples)),
        rewards=tuple(share_over(reward_P / counts.n_P, drawn_RP) for reward_P in counts.reward_AP)
        if are_partial(graded)
        else (),
    )


def budgets(samples: int) -> list[int]:
    """2, 4, 8, ... below `samples`, and `samples`; pass@1 is Avg@k."""
    return [*(2**power for power in range(1, samples.bit_length()) if 2**power < samples), samples]


def pass_at(samples: int, right: int, k: int) -> float:
    """The chance that k of these samples, drawn without replacement, hold a right one; NaN where there are fewer."""
    return 1 - math.comb(samples - right, k) / math.comb(samples, k) if samples >= k else math.nan


def pass_table(n_P: Table, right_P: Table, k: int) -> Table:
    """pass@k of every problem [P], from counts of its samples and of the right ones."""
    return np.array([pass_at(int(n), int(c), k) for n, c in zip(n_P, right_P, strict=True)])


def passes(counts: Tally, k: int, drawn_RP: Table) -> Passes:
    """pass@k of every attempt. What k samples fix: no first attempt right, but a last one; by inclusion, exact."""
    attempt_AP = [pass_table(counts.n_P, right_P, k) for right_P in counts.right_AP]
    either_P = pass_table(counts.n_P, counts.either_P, k)
    return Passes(
        k=k,
        n=int((counts.n_P >= k).sum()),
        accuracy=tuple(share_over(values_P, drawn_RP) for values_P in attempt_AP),
        delta=difference_over(attempt_AP[-1] - attempt_AP[0], drawn_RP),
        fixed=share_over(either_P - attempt_AP[0], drawn_RP),
        broken=share_over(either_P - attempt_AP[-1], drawn_RP),
    )


def paired(
    before: Mapping[str, float], now: Mapping[str, float], *, single: bool, most: float = 1.0
) -> Estimate | None:
    """The mean of now - before over the problems that both have; None where they share none.

    Values are a problem's mean over its samples. single: whether both have one sample of each problem; the interval
    is then that of matched pairs, else a bootstrap's. (Not to be read off the values: which of the two it is would
    hang on what was found.) most: as in difference_of.
    """
    values = [now[name] - before[name] for name in now if name in before]
    if not values:
        return None
    if single:
        return difference_of(values, most=most)
    return difference_over(np.array(values), draws(len(values), RESAMPLES, seed=0), most=most)


def means(rollouts: Iterable[Rollout]) -> dict[str, tuple[float, float]]:
    """By problem, how often its first and its last attempt are right, of what could be graded."""
    counts = tally(rollouts)
    both_2P = counts.right_AP[[0, -1]] / counts.n_P if counts.ids else np.zeros((2, 0))
    return dict(zip(counts.ids, zip(*both_2P.tolist(), strict=True), strict=True))


def change(
    before: Mapping[str, tuple[float, float]], now: Mapping[str, tuple[float, float]], *, single: bool
) -> Change | None:
    """`now` less `before` (means by problem), paired; None where they share no problem. single: as in `paired`."""

    def less(value: Callable[[tuple[float, float]], float], most: float = 1.0) -> Estimate | None:
        of_before, of_now = ({name: value(of) for name, of in side.items()} for side in (before, now))
        return paired(of_before, of_now, single=single, most=most)

    first, last, delta = less(lambda of: of[0]), less(lambda of: of[1]), less(lambda of: of[1] - of[0], 2.0)
    return Change(first, last, delta) if first and last and delta else None


def share_over(values_P: Table, drawn_RP: Table) -> Estimate:
    """A mean of shares, one a problem; Wilson's interval stands where a bootstrap's would be too narrow."""
    known_P = _known(values_P)
    if _tells(known_P):
        return bootstrap(weighted_mean(values_P), drawn_RP)
    return share(float(known_P.sum()), len(known_P))


def difference_over(values_P: Table, drawn_RP: Table, samples: int = 1, most: float = 1.0) -> Estimate:
    """A mean of differences, one a problem; that of matched pairs stands where a bootstrap's would be too narrow."""
    known_P = _known(values_P)
    if _tells(known_P):
        return bootstrap(weighted_mean(values_P), drawn_RP)
    return difference_of(known_P.tolist(), samples, most)


def rate_over(top_P: Table, bottom_P: Table, drawn_RP: Table) -> Estimate:
    """The mean of `top` over that of `bottom`, like the fix rate; NaN where the bottom is zero."""
    found, known_P = bootstrap(ratio(top_P, bottom_P), drawn_RP), _known(bottom_P)
    to_fix = int((known_P > 0).sum())  # the others weigh nothing
    if math.isnan(found.value) or (to_fix >= FEW and found.high - found.low > _WIDTH):
        return found
    below = max(1.0, float(known_P.sum()))
    return share(found.value * below, below)


def _known(values_P: Table) -> Table:
    known_P: Table = values_P[~np.isnan(values_P)]
    return known_P


def _tells(known_P: Table) -> bool:
    """Whether a bootstrap over these problems has the width it should: it draws only what was seen, so that few, or
    such as are all the same, look surer than they are.
    """
    return len(known_P) >= FEW and float(np.ptp(known_P)) > _WIDTH
