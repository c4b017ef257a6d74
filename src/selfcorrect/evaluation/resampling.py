"""Statistics over problems and seeds (numpy): paired bootstrap, McNemar's exact test.

Axes: S seeds, P problems, R resamples. Resampling draws problems, and every seed's answers to a drawn problem with it:
an interval then says what other problems would have given, for the seeds that were run.
"""

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from selfcorrect.evaluation.metrics import Estimate

Table = NDArray[np.float64]


def mean_over_seeds(values_SP: Table) -> Table:
    """[P] mean over the seeds that have the problem (not NaN); NaN where none has."""
    known_SP = ~np.isnan(values_SP)
    total_P = np.where(known_SP, values_SP, 0.0).sum(0)
    count_P = known_SP.sum(0)
    mean_P: Table = np.divide(total_P, count_P, out=np.full(values_SP.shape[1], np.nan), where=count_P > 0)
    return mean_P


def draws(problems: int, resamples: int, seed: int) -> Table:
    """How often each resample holds each problem [R, P]; the same draws pair every statistic that is made with them."""
    rng = np.random.default_rng(seed)
    return rng.multinomial(problems, np.full(problems, 1 / problems), size=resamples).astype(np.float64)


def bootstrap(statistic: Callable[[Table], Table], counts_RP: Table) -> Estimate:
    """A statistic of weighted problems ([R, P] weights -> [R] values) with its 95 % percentile interval.

    NaN where it is not defined, like a fix rate with nothing to fix.
    """
    value = float(statistic(np.ones((1, counts_RP.shape[1])))[0])
    values_R = statistic(counts_RP)
    known_R = values_R[~np.isnan(values_R)]
    low, high = np.quantile(known_R, [0.025, 0.975]) if len(known_R) else (math.nan, math.nan)
    return Estimate(value, float(low), float(high))


def weighted_mean(values_P: Table) -> Callable[[Table], Table]:
    """The mean over problems, those without a value left out."""
    known_P = (~np.isnan(values_P)).astype(np.float64)
    filled_P = np.where(known_P > 0, values_P, 0.0)

    def statistic(weights_RP: Table) -> Table:
        return np.asarray((weights_RP @ filled_P) / np.maximum(weights_RP @ known_P, 1e-12))

    return statistic


def ratio(top_P: Table, bottom_P: Table) -> Callable[[Table], Table]:
    """Mean of `top` over mean of `bottom`, like the fix rate; NaN where the bottom is zero."""
    top, bottom = weighted_mean(top_P), weighted_mean(bottom_P)

    def statistic(weights_RP: Table) -> Table:
        below_R = bottom(weights_RP)
        ratio_R: Table = np.divide(top(weights_RP), below_R, out=np.full(len(below_R), np.nan), where=below_R > 0)
        return ratio_R

    return statistic


def mcnemar(up: int, down: int) -> float:
    """Two-sided exact p-value that so many pairs changed one way and so many the other, under even odds."""
    changed = up + down
    smaller = min(up, down)
    logs = [math.lgamma(changed + 1) - math.lgamma(k + 1) - math.lgamma(changed - k + 1) for k in range(smaller + 1)]
    tail = sum(math.exp(value - changed * math.log(2)) for value in logs)
    return min(1.0, 2 * tail)
