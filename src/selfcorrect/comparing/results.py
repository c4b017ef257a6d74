"""Finished runs -> the numbers of the table.

Axes: S seeds, P problems. Every run evaluated the same problems; those that a run could not grade are NaN in it. With
more than one sample of a problem, its values are means over those.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

import numpy as np

from selfcorrect.analysis.read import evaluations
from selfcorrect.errors import DataError
from selfcorrect.evaluation.averages import Change, difference_over, pass_table, rate_over, share_over, tally
from selfcorrect.evaluation.metrics import RESOLVED, Estimate, is_graded, standard_error
from selfcorrect.evaluation.resampling import Table, draws, mcnemar, mean_over_seeds
from selfcorrect.evaluation.stored import read_rollouts
from selfcorrect.types import Rollout


@dataclass(frozen=True, slots=True)
class Answers:
    """One method on all seeds: right at attempt 1 and 2, fixed and broken between them, and whether attempt 2 repeats
    attempt 1; NaN where nothing was graded.

    later_SP: right at the last attempt, where there are more than two. outcomes: counts of attempt 1's and attempt 2's
    over all rollouts. seeds: of each row; None for the base model.
    samples: of each problem; passes_SP: pass@samples of attempt 1 and 2, where there are more than one.
    """

    seeds: tuple[int | None, ...]
    ids: tuple[str, ...]
    first_SP: Table
    second_SP: Table
    fixed_SP: Table
    broken_SP: Table
    same_SP: Table
    later_SP: Table | None
    outcomes: tuple[dict[str, int], ...]
    samples: int = 1
    passes_SP: tuple[Table, Table] | None = None


@dataclass(frozen=True, slots=True)
class Result:
    """A line of the table. Estimates carry intervals over problems (averages.py); spread: lowest and highest seed's.

    mcnemar: the largest p-value of any seed, attempt 2 against attempt 1; None of more samples than one, which are not
    independent. gain: Accuracy@t2 less that of the method that all are compared with, on the same problems; None for
    that one itself. against_base, against_single: less the base model's, and less that of the method that trains single
    attempts by RL, paired; None for those themselves, or where there is none. passes: pass@samples of attempt 1 and 2.
    smallest: the smallest delta that can be resolved, by the variance over problems that was measured. base: the base
    model's line that the method began with, itself for that one; None where no run evaluated it. outcomes: counts of
    attempt 1's and attempt 2's over all seeds.
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
    mcnemar: float | None
    gain: Estimate | None
    gain_delta: Estimate | None
    against_base: Change | None
    against_single: Change | None
    last: Estimate | None
    outcomes: tuple[dict[str, int], ...]
    repair: Estimate | None = None
    samples: int = 1
    passes: tuple[Estimate, Estimate, Estimate] | None = None
    smallest: float | None = None
    base: str | None = None

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
    rollouts = [_read(run, evaluation) for run in runs.values()]
    asked = [Counter(rollout.problem.id for rollout in each) for each in rollouts]
    ids = list(ids or asked[0])
    for run, names in zip(runs.values(), asked, strict=True):
        if set(names) != set(ids):
            raise DataError(f"{run}: was evaluated on other problems than the others, so they cannot be compared")
    samples = {max(names.values()) for names in asked}
    if len(samples) > 1:
        named = ", ".join(map(str, sorted(samples)))
        raise DataError(f"{next(iter(runs.values()))}: and others were evaluated with {named} samples of each problem")
    k = samples.pop()
    first, second, fixed, broken, same, later, *passes = np.stack([_values(each, ids, k) for each in rollouts], axis=1)
    ends = [
        Counter(str(rollout.attempts[a].grade.outcome) for rollout in chain(*rollouts) if len(rollout.attempts) > a)
        for a in (0, 1)
    ]
    return Answers(
        tuple(runs), tuple(ids), first, second, fixed, broken, same, None if np.isnan(later).all() else later,
        tuple(map(dict, ends)), k, (passes[0], passes[1]) if k > 1 else None,
    )  # fmt: skip


def _read(run: Path, evaluation: str | None) -> list[Rollout]:
    """The rollouts as they were kept."""
    name = evaluation or next(reversed(evaluations(run)), None)
    file = run / "evaluations" / f"{name}.rollouts.jsonl"
    if not file.exists():
        raise DataError(f"{run}: holds no evaluation {evaluation or ''}".rstrip())
    return read_rollouts(file, "")


def _values(rollouts: Sequence[Rollout], ids: Sequence[str], k: int) -> Table:
    """Means over a problem's graded samples [8, P]: right at 1 and at 2, fixed, broken, second the same as the first,
    right at the last of more than two, and pass@k of attempt 1 and 2. NaN where nothing was graded.
    """
    graded = [rollout for rollout in rollouts if is_graded(rollout) and len(rollout.attempts) > 1]
    values_VP = np.full((8, len(ids)), np.nan)
    if graded:
        whole = tally(graded)
        two = tally(replace(rollout, attempts=rollout.attempts[:2]) for rollout in graded)
        last_P = whole.right_AP[-1] if len(whole.right_AP) > 2 else np.full(len(two.n_P), np.nan)
        counts_VP = np.stack([*two.right_AP, two.fixed_P, two.broken_P, two.same_P, last_P])
        passes_VP = [pass_table(two.n_P, right_P, k) for right_P in two.right_AP]
        place = {name: number for number, name in enumerate(ids)}
        values_VP[:, [place[name] for name in two.ids]] = [*(counts_VP / two.n_P), *passes_VP]
    return values_VP


def summarize(
    name: str, answers: Answers, base: Answers | None, against: Answers, resamples: int,
    repair: Answers | None = None, single: Answers | None = None,
) -> Result:  # fmt: skip
    """The line of a method. against: the answers it is paired with; repair: those to the repair task, if any; single:
    those of the method that trains single attempts, if there is one.
    """
    first_SP, second_SP = answers.first_SP, answers.second_SP
    fixed_SP, broken_SP, delta_SP = answers.fixed_SP, answers.broken_SP, second_SP - first_SP
    counts_RP = draws(first_SP.shape[1], resamples, seed=0)

    def mean(values_SP: Table) -> Estimate:
        return share_over(mean_over_seeds(values_SP), counts_RP)

    def less(ours_SP: Table, theirs_SP: Table, most: float = 1.0) -> Estimate:
        drawn = answers.samples * min(len(ours_SP), len(theirs_SP))  # no surer than the side with fewer
        return difference_over(mean_over_seeds(ours_SP) - mean_over_seeds(theirs_SP), counts_RP, drawn, most)

    def change(other: Answers | None) -> Change | None:
        if other is None or other is answers:
            return None
        theirs_SP = other.second_SP - other.first_SP
        return Change(less(first_SP, other.first_SP), less(second_SP, other.second_SP), less(delta_SP, theirs_SP, 2.0))

    fix_rate = rate_over(mean_over_seeds(fixed_SP), mean_over_seeds(1 - first_SP), counts_RP)
    by_seed = {
        "t1": first_SP, "t2": second_SP, "delta": delta_SP, "fixed": fixed_SP, "broken": broken_SP,
        "unchanged": answers.same_SP,
    }  # fmt: skip
    ends = {key: _ends(np.nanmean(values_SP, 1)) for key, values_SP in by_seed.items()}
    ends["fix_rate"] = _ends(_rates(np.nanmean(fixed_SP, 1), np.nanmean(1 - first_SP, 1)))
    ends["gain"] = _ends(_seed_by_seed(answers, against))
    towards = change(against)
    delta_P = mean_over_seeds(delta_SP)
    return Result(
        name=name, seeds=len(first_SP), n=int((~np.isnan(first_SP)).all(0).sum()), t1=mean(first_SP),
        t2=mean(second_SP), delta=less(second_SP, first_SP), fixed=mean(fixed_SP), broken=mean(broken_SP),
        fix_rate=fix_rate, unchanged=mean(answers.same_SP), spread=ends,
        mcnemar=_worst_p(first_SP, second_SP) if answers.samples == 1 else None,
        gain=towards.last if towards else None, gain_delta=towards.delta if towards else None,
        against_base=change(base), against_single=change(single),
        last=None if answers.later_SP is None else mean(answers.later_SP), outcomes=answers.outcomes,
        repair=None if repair is None else _repaired(repair, resamples),
        samples=answers.samples, passes=_pass_means(answers, counts_RP),
        smallest=RESOLVED * standard_error(delta_P[~np.isnan(delta_P)].tolist(), answers.samples * len(first_SP)),
    )  # fmt: skip


def _pass_means(answers: Answers, counts_RP: Table) -> tuple[Estimate, Estimate, Estimate] | None:
    """pass@k of attempt 1, of attempt 2, and their difference."""
    if answers.passes_SP is None:
        return None
    first_P, second_P = map(mean_over_seeds, answers.passes_SP)
    change = difference_over(second_P - first_P, counts_RP, len(answers.seeds))
    return share_over(first_P, counts_RP), share_over(second_P, counts_RP), change


def _seed_by_seed(ours: Answers, theirs: Answers) -> Table:
    """Accuracy@t2 less the other method's on the problems that both have, for every seed that both have; without such,
    for every pair of seeds.
    """
    found = [dict(zip(each.seeds, each.second_SP, strict=True)) for each in (ours, theirs)]
    common = [seed for seed in ours.seeds if seed in found[1]]
    pairs = [(seed, seed) for seed in common] or [(a, b) for a in ours.seeds for b in theirs.seeds]
    return np.array([np.nanmean(found[0][a] - found[1][b]) for a, b in pairs])


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
    return share_over(mean_over_seeds(answers.second_SP), draws(answers.second_SP.shape[1], resamples, seed=0))
