"""Two evaluations of the same problems: the figures of each, and what they differ by, problem by problem (numpy)."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from selfcorrect.evaluation.averages import Tally, paired, pass_table, summary_over, tally
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
    first, second = summary_over(ours, samples), summary_over(theirs, samples)
    if not both:
        return first, second, {}
    partial, found = bool(first.rewards or second.rewards), dict[str, Pair]()
    others = _figures(second, tally(theirs), partial)
    for name, (figure, values) in _figures(first, tally(ours), partial).items():
        other, other_values = others[name]
        less = paired(values, other_values, single=samples == 1, most=2.0 if name == "delta" else 1.0)
        assert less is not None
        found[name] = Pair(figure, other, less)
    return first, second, found


def _graded(rollouts: Sequence[Rollout]) -> set[str]:
    return {rollout.problem.id for rollout in rollouts if is_graded(rollout)}


def _figures(summary: Summary, counts: Tally, partial: bool) -> dict[str, tuple[Estimate, dict[str, float]]]:
    """Every figure with its value at each problem. partial: whether rewards are told too."""
    n_P, right_AP = counts.n_P, counts.right_AP
    found = _by_attempt("Accuracy@t", summary.accuracy, right_AP / n_P)
    if len(summary.accuracy) > 1:
        found += [
            ("delta", summary.delta, (right_AP[-1] - right_AP[0]) / n_P), ("i->c", summary.fixed, counts.fixed_P / n_P),
            ("c->i", summary.broken, counts.broken_P / n_P), ("unchanged", summary.unchanged, counts.same_P / n_P),
        ]  # fmt: skip
    if partial:
        found += _by_attempt("reward@t", summary.earned, counts.reward_AP / n_P)
    for each in summary.passes[-1:]:
        solved_AP = (pass_table(n_P, right_P, each.k) for right_P in right_AP)
        found += _by_attempt(f"pass@{each.k}, t", each.accuracy, solved_AP)
    return {name: (figure, dict(zip(counts.ids, of_P.tolist(), strict=True))) for name, figure, of_P in found}


def _by_attempt(
    name: str, figures: Sequence[Estimate], values_AP: Iterable[Table]
) -> list[tuple[str, Estimate, Table]]:  # fmt: skip
    both = zip(figures, values_AP, strict=True)
    return [(f"{name}{number}", figure, values_P) for number, (figure, values_P) in enumerate(both, 1)]
