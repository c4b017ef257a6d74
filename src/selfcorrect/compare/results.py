"""Finished runs -> the numbers of the table.

Axes: S seeds, P problems. Every run evaluated the same problems; those that a run could not grade are NaN in it.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from selfcorrect.errors import DataError
from selfcorrect.evaluation.metrics import LEFT_OUT, Estimate
from selfcorrect.evaluation.resampling import Table, bootstrap, draws, mcnemar, mean_over_seeds, ratio, weighted_mean


@dataclass(frozen=True, slots=True)
class Answers:
    """One method on all seeds: right at attempt 1 and 2, and whether attempt 2 repeats attempt 1; 0, 1 or NaN.

    later_SP: right at the last attempt, where there are more than two. seeds: of each row; None for the base model.
    """

    seeds: tuple[int | None, ...]
    ids: tuple[str, ...]
    first_SP: Table
    second_SP: Table
    same_SP: Table
    later_SP: Table | None


@dataclass(frozen=True, slots=True)
class Result:
    """A line of the table. Estimates carry bootstrap intervals over problems; spread: the lowest and highest seed's.

    mcnemar: the largest p-value of any seed, attempt 2 against attempt 1. gain: Accuracy@t2 less that of the method
    that all are compared with, on the same problems; None for that one itself. first_change: Accuracy@t1 less the base
    model's, paired.
    """

    name: str
    seeds: int
    n: int
    t1: Estimate
    t2: Estimate
    delta: Estimate
    fixed: Estimate
    broken: Estimate
    fix_rate: Estimate
    unchanged: Estimate
    spread: dict[str, tuple[float, float]]
    mcnemar: float
    gain: Estimate | None
    gain_delta: Estimate | None
    first_change: Estimate | None
    last: Estimate | None
    repair: Estimate | None = None

    @property
    def moved(self) -> int:
        """-1, 0 or 1: attempt 2 under or over attempt 1, where interval and every seed say so."""
        low, high = self.spread["delta"]
        return (self.delta.low > 0 and low > 0) - (self.delta.high < 0 and high < 0)

    @property
    def verdict(self) -> int:
        """-1, 0 or 1: Accuracy@t2 under or over the other's, where interval and every seed say so."""
        if self.gain is None:
            return 0
        low, high = self.spread["gain"]
        return (self.gain.low > 0 and low > 0) - (self.gain.high < 0 and high < 0)


def read_answers(
    runs: Mapping[int | None, Path], evaluation: str | None = None, ids: Sequence[str] | None = None
) -> Answers:
    """The named evaluation of every seed's run, by default the last one, in the order of `ids` (else of the first run).

    Raises DataError where one is missing, or answers other problems.
    """
    tables = [_read(run, evaluation) for run in runs.values()]
    ids = list(ids or tables[0])
    for run, table in zip(runs.values(), tables, strict=True):
        if set(table) != set(ids):
            raise DataError(f"{run}: was evaluated on other problems than the others, so they cannot be compared")
    cube = np.array([[table[name] for name in ids] for table in tables], dtype=np.float64)
    more = not np.isnan(cube[..., 3]).all()
    return Answers(tuple(runs), tuple(ids), cube[..., 0], cube[..., 1], cube[..., 2], cube[..., 3] if more else None)


def _read(run: Path, evaluation: str | None) -> dict[str, list[float]]:
    found = sorted((run / "evaluations").glob("*.json"), key=lambda file: json.loads(file.read_text())["step"])
    named = run / "evaluations" / f"{evaluation}.json" if evaluation else (found[-1] if found else None)
    if named is None or not named.exists():
        raise DataError(f"{run}: holds no evaluation {evaluation or ''}".rstrip())
    lines = named.with_name(f"{named.stem}.rollouts.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    return {row["id"]: _flags(row["attempts"]) for row in rows}


def _flags(attempts: Sequence[dict[str, Any]]) -> list[float]:
    """Right at 1, right at 2, second the same as the first, right at the last of more than two."""
    if any(attempt["outcome"] in LEFT_OUT for attempt in attempts) or len(attempts) < 2:
        return [float("nan")] * 4
    first, second, last = attempts[0], attempts[1], attempts[-1]
    key = "answer" if first["answer"] or second["answer"] else "text"
    right = [float(attempt["outcome"] == "correct") for attempt in (first, second, last)]
    return [right[0], right[1], float(first[key] == second[key]), right[2] if len(attempts) > 2 else float("nan")]


def summarize(
    name: str, answers: Answers, base: Answers, against: Answers, resamples: int, repair: Answers | None = None
) -> Result:
    """The line of a method. against: the answers it is paired with; repair: those to the repair task, if any."""
    first_SP, second_SP = answers.first_SP, answers.second_SP
    counts_RP = draws(first_SP.shape[1], resamples, seed=0)

    def mean(values_SP: Table) -> Estimate:
        return bootstrap(weighted_mean(mean_over_seeds(values_SP)), counts_RP)

    def less(ours_SP: Table, theirs_SP: Table) -> Estimate:
        return bootstrap(weighted_mean(mean_over_seeds(ours_SP) - mean_over_seeds(theirs_SP)), counts_RP)

    fixed_SP, broken_SP, delta_SP = (1 - first_SP) * second_SP, first_SP * (1 - second_SP), second_SP - first_SP
    paired = against is not answers
    rate = ratio(mean_over_seeds(fixed_SP), mean_over_seeds(1 - first_SP))
    by_seed = {
        "t1": first_SP, "t2": second_SP, "delta": delta_SP, "fixed": fixed_SP, "broken": broken_SP,
        "unchanged": answers.same_SP,
    }  # fmt: skip
    spread = {key: _ends(np.nanmean(values_SP, 1)) for key, values_SP in by_seed.items()}
    spread["fix_rate"] = _ends(_rates(np.nanmean(fixed_SP, 1), np.nanmean(1 - first_SP, 1)))
    spread["gain"] = _ends(_seed_by_seed(answers, against))
    return Result(
        name=name, seeds=len(first_SP), n=int((~np.isnan(first_SP)).all(0).sum()), t1=mean(first_SP),
        t2=mean(second_SP), delta=mean(delta_SP), fixed=mean(fixed_SP), broken=mean(broken_SP),
        fix_rate=bootstrap(rate, counts_RP), unchanged=mean(answers.same_SP), spread=spread,
        mcnemar=_worst_p(first_SP, second_SP),
        gain=less(second_SP, against.second_SP) if paired else None,
        gain_delta=less(delta_SP, against.second_SP - against.first_SP) if paired else None,
        first_change=less(first_SP, base.first_SP) if base is not answers else None,
        last=None if answers.later_SP is None else mean(answers.later_SP),
        repair=None if repair is None else _repaired(repair, resamples),
    )  # fmt: skip


def _seed_by_seed(ours: Answers, theirs: Answers) -> Table:
    """Accuracy@t2 less the other method's, for every seed that both have; without such, for every pair of seeds."""
    found = [dict(zip(each.seeds, np.nanmean(each.second_SP, 1), strict=True)) for each in (ours, theirs)]
    common = [seed for seed in ours.seeds if seed in found[1]]
    pairs = [(seed, seed) for seed in common] or [(a, b) for a in ours.seeds for b in theirs.seeds]
    return np.array([found[0][a] - found[1][b] for a, b in pairs])


def _rates(top_S: Table, bottom_S: Table) -> Table:
    """Seeds without a wrong first attempt have no fix rate; NaN where none has."""
    return top_S[bottom_S > 0] / bottom_S[bottom_S > 0] if (bottom_S > 0).any() else np.array([np.nan])


def _ends(values_S: Table) -> tuple[float, float]:
    return float(values_S.min()), float(values_S.max())


def _worst_p(first_SP: Table, second_SP: Table) -> float:
    return max(
        mcnemar(int(np.nansum((1 - a) * b)), int(np.nansum(a * (1 - b))))
        for a, b in zip(first_SP, second_SP, strict=True)
    )


def _repaired(answers: Answers, resamples: int) -> Estimate:
    """Accuracy of the attempt that follows a recorded wrong one."""
    counts_RP = draws(answers.second_SP.shape[1], resamples, seed=0)
    return bootstrap(weighted_mean(mean_over_seeds(answers.second_SP)), counts_RP)
