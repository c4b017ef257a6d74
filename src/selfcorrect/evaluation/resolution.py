"""The smallest delta that n problems with k samples each can resolve (pure, stdlib only).

A difference is resolved where its 95 % interval excludes zero with a power of 80 %: it must be 1.96 + 0.84 standard
errors from zero. A problem's delta, as a mean over its k samples, varies by what the problem itself is worth (between)
and by chance (within / k), so

    smallest = 2.80 * sqrt((between + within / k) / n)

Before anything is measured both are assumed: that FLIPS of all answers change between right and wrong from the first
attempt to the last (as often up as down, so that this is the variance of a single one), and that what single problems
gain or lose in expectation has the standard deviation BETWEEN. Afterwards both are in the problems' own spread.
"""

import math

from selfcorrect.evaluation.metrics import RESOLVED, Summary

FLIPS = 0.08
BETWEEN = 0.1


def assumed(problems: int, samples: int) -> float:
    """The smallest delta (a share) by the assumed variance."""
    between = BETWEEN**2
    return RESOLVED * math.sqrt((between + (FLIPS - between) / samples) / problems)


def before(problems: int, samples: int) -> str:
    """What can be resolved, before anything is sampled."""
    each = f"{problems:,} problems" + (f" x {samples} samples" if samples > 1 else "")
    told = (
        f"{each} can resolve a delta of {100 * assumed(problems, samples):.1f} points or more (95 %, power 80 %), "
        f"assuming that {FLIPS:.0%} of answers flip between right and wrong and that what a problem gains spreads by "
        f"{100 * BETWEEN:.0f} points"
    )
    if samples == 1:
        told += f"; with evaluation.samples=8 (and a temperature) {100 * assumed(problems, 8):.1f}"
    return told


def after(summary: Summary) -> str:
    """The same from the measured variance; empty where there is none."""
    if summary.smallest is None:
        return ""
    each = f"{summary.n:,} problems" + (f" x {summary.samples} samples" if summary.samples > 1 else "")
    flips = summary.fixed.value + summary.broken.value
    return (
        f"{each} resolve a delta of {100 * summary.smallest:.1f} points or more (95 %, power 80 %), by the variance "
        f"measured ({100 * flips:.1f} % of answers flipped)"
    )
