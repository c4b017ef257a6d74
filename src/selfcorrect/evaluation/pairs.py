"""Two evaluations of the same problems: the figures of each, and what they differ by, problem by problem (numpy)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from selfcorrect.evaluation.averages import Tally, budgets, paired, pass_table, samples_of, summary_over, tally
from selfcorrect.evaluation.metrics import Estimate, Summary, is_graded
from selfcorrect.evaluation.resampling import Table
from selfcorrect.types import Rollout


@dataclass(frozen=True, slots=True)
class Pair:
    """A figure of evaluation a and of b, and b's less a's with its paired interval; all are shares or differences."""

    a: Estimate
    b: Estimate
    less: Estimate


def pairs(a: Sequence[Rollout], b: Sequence[Rollout], samples: int) -> tuple[Summary, Summary, dict[str, Pair]]:
    """The summaries over the problems that both could grade, and every figure by its name.

    a, b: `samples` rollouts of every problem each, all of the same number of attempts. The intervals are those of an
    evaluation (averages.py): of one sample, matched pairs; of more, a bootstrap that draws problems.
    """
    both = _graded(a) & _graded(b)
    ours, theirs = ([rollout for rollout in side if rollout.problem.id in both] for side in (a, b))
    summaries = summary_over(ours, samples), summary_over(theirs, samples)
    if not both:
        return *summaries, {}
    partial = any(summary.rewards for summary in summaries)
    told = [_estimates(summary, partial) for summary in summaries]
    values = [_values(tally(samples_of(side)), samples) for side in (ours, theirs)]
    found = {}
    for name in told[0]:
        most = 2.0 if name == "delta" else 1.0
        less = paired(values[0][name], values[1][name], single=samples == 1, most=most)
        assert less is not None
        found[name] = Pair(told[0][name], told[1][name], less)
    return *summaries, found


def _graded(rollouts: Sequence[Rollout]) -> set[str]:
    return {rollout.problem.id for rollout in rollouts if is_graded(rollout)}


def _estimates(summary: Summary, partial: bool) -> dict[str, Estimate]:
    found = {f"Accuracy@t{number}": value for number, value in enumerate(summary.accuracy, 1)}
    if len(summary.accuracy) > 1:
        found |= {"delta": summary.delta, "i->c": summary.fixed, "c->i": summary.broken, "unchanged": summary.unchanged}
    if partial:
        found |= {f"reward@t{number}": value for number, value in enumerate(summary.earned, 1)}
    for each in summary.passes[-1:]:
        found |= {f"pass@{each.k}, t{number}": value for number, value in enumerate(each.accuracy, 1)}
    return found


def _values(counts: Tally, samples: int) -> dict[str, Mapping[str, float]]:
    """The same figures, each by problem."""
    right_AP, n_P = counts.right_AP, counts.n_P
    found: dict[str, Table] = {f"Accuracy@t{number}": right_P / n_P for number, right_P in enumerate(right_AP, 1)}
    found |= {
        "delta": (right_AP[-1] - right_AP[0]) / n_P, "i->c": counts.fixed_P / n_P, "c->i": counts.broken_P / n_P,
        "unchanged": counts.same_P / n_P,
    }  # fmt: skip
    found |= {f"reward@t{number}": reward_P / n_P for number, reward_P in enumerate(counts.reward_AP, 1)}
    if samples > 1:
        k = budgets(samples)[-1]
        found |= {f"pass@{k}, t{number}": pass_table(n_P, right_P, k) for number, right_P in enumerate(right_AP, 1)}
    return {name: dict(zip(counts.ids, values_P.tolist(), strict=True)) for name, values_P in found.items()}
