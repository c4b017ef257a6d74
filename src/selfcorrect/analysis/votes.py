"""Majority votes over sampled solutions (Fig. 1 right): K attempts, each corrected, against 2K attempts.

Every budget draws its solutions from what was sampled once: first attempts, and a correction of the first half of them.

Axes: P problems, N solutions of a problem, C its distinct answers, R resamples.
"""

import contextlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from selfcorrect.analysis.charts import Series, line_chart
from selfcorrect.analysis.figure import Figure
from selfcorrect.evaluation.metrics import Estimate
from selfcorrect.grading.math_fast import canonical, squeeze
from selfcorrect.grading.math_normal import Unreadable, normalize, parse


@dataclass(frozen=True, slots=True)
class Pool:
    """All solutions of one problem: (answer, right) of first attempts, and of the corrections of the first half."""

    id: str
    first: tuple[tuple[str, bool], ...]
    corrected: tuple[tuple[str, bool], ...]


@dataclass(frozen=True, slots=True)
class Point:
    """Accuracy of the majority at one budget of solutions."""

    budget: int
    parallel: Estimate
    corrected: Estimate
    gain: Estimate


def read_pools(file: Path) -> list[Pool]:
    """The pools of a file, each problem once; a line that a crash left torn is left out."""
    found: dict[str, Pool] = {}
    for line in file.read_text(encoding="utf-8").splitlines() if file.exists() else ():
        with contextlib.suppress(ValueError, TypeError):
            pool = pool_of(json.loads(line))
            found[pool.id] = pool
    return list(found.values())


def pool_of(line: Sequence[Any]) -> Pool:
    """From what `sample_pools` kept."""
    name, *solutions = line
    return Pool(name, *(tuple((answer, right) for answer, right in column) for column in solutions))


def votable(pools: Sequence[Pool]) -> list[Pool]:
    """Those with a first attempt and a correction that could be graded."""
    return [pool for pool in pools if pool.first and pool.corrected]


def vote_key(task: str, answer: str) -> str:
    """What two attempts must share to vote for the same: math answers as the grader normalises them."""
    if task != "math" or not answer:
        return squeeze(answer)
    try:
        return canonical(parse(normalize(answer)))
    except Unreadable:
        return squeeze(answer)


def budgets_up_to(most: int) -> list[int]:
    """2, 4, 8, ... up to `most`."""
    return [2**power for power in range(1, most.bit_length()) if 2**power <= most]


def scaling(pools: Sequence[Pool], budgets: Sequence[int], resamples: int = 400) -> list[Point]:
    """Accuracy of the majority vote by budget; 95 % intervals over problems and over which samples were drawn.

    At budget 2K: 2K first attempts; or the corrections of K, whose K first attempts are paid for but do not vote.
    """
    rng = np.random.default_rng(0)
    first = [_codes(pool.first) for pool in pools]
    corrected = [_codes(pool.corrected) for pool in pools]
    points = []
    for budget in budgets:
        parallel_RP = np.stack([_votes(codes, budget, resamples, rng) for codes in first], 1)
        corrected_RP = np.stack([_votes(codes, budget // 2, resamples, rng) for codes in corrected], 1)
        places_RP = rng.integers(0, len(pools), (resamples, len(pools)))
        ways = (parallel_RP, corrected_RP, corrected_RP - parallel_RP)
        points.append(Point(budget, *(_estimate(way_RP, places_RP) for way_RP in ways)))
    return points


def _codes(solutions: Sequence[tuple[str, bool]]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Answers as numbers [N] (-1: no answer, no vote), and by number whether the answer is right."""
    index: dict[str, int] = {}
    right: list[float] = []
    codes = []
    for answer, correct in solutions:
        if answer and answer not in index:
            index[answer] = len(index)
            right.append(float(correct))
        codes.append(index.get(answer, -1))
    return np.array(codes), np.array(right)


def _votes(
    solutions: tuple[NDArray[np.int64], NDArray[np.float64]], voters: int, resamples: int, rng: np.random.Generator
) -> NDArray[np.float64]:
    """[R] how right the majority of `voters` drawn solutions is: among answers that tie, the share that is right."""
    codes_N, right_C = solutions
    if not len(right_C):
        return np.zeros(resamples)
    order_RN = rng.random((resamples, len(codes_N))).argsort(1)[:, :voters]
    counts_RC = (codes_N[order_RN][:, :, None] == np.arange(len(right_C))).sum(1)
    top_RC = (counts_RC == counts_RC.max(1, keepdims=True)) & (counts_RC > 0)
    votes_R: NDArray[np.float64] = (top_RC * right_C).sum(1) / np.maximum(top_RC.sum(1), 1)
    return votes_R


def _estimate(values_RP: NDArray[np.float64], places_RP: NDArray[np.int64]) -> Estimate:
    means_R = np.take_along_axis(values_RP, places_RP, 1).mean(1)
    low, high = np.quantile(means_R, [0.025, 0.975])
    return Estimate(float(values_RP.mean()), float(low), float(high))


def scale_figure(points: Sequence[Point], n: int, temperature: float) -> Figure:
    """Fig. 1 right: accuracy of the majority against the number of solutions sampled."""
    named = (("parallel", "2K in parallel", "c1"), ("corrected", "K in parallel, each corrected once", "c2"))
    series = []
    for field, name, colour in named:
        series.append(Series(name, colour, [(p.budget, *_percent(getattr(p, field))) for p in points]))
    rows = [
        {"budget": p.budget, "way": field, "accuracy": e.value, "low": e.low, "high": e.high}
        for p in points for field in ("parallel", "corrected", "gain") for e in [getattr(p, field)]
    ]  # fmt: skip
    title = "More solutions, or corrected ones"
    caption = (
        f"Majority vote over normalised answers on n = {n:,} problems, temperature {temperature:g}, by the number of "
        "solutions sampled in all (first attempts and corrections); bands: 95 % intervals by resampling."
    )
    svg = line_chart(title, "solutions sampled", "% right", series, powers_of_two=True)
    return Figure("scaling", title, caption, svg, rows)


def _percent(estimate: Estimate) -> tuple[float, float, float]:
    return 100 * estimate.value, 100 * estimate.low, 100 * estimate.high
