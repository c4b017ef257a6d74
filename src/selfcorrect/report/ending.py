"""How a run ends on the screen: its evaluations side by side."""

from collections.abc import Sequence
from pathlib import Path

from selfcorrect.evaluation.caution import caution
from selfcorrect.evaluation.metrics import Flow, Summary
from selfcorrect.report.load import Evaluation, read_evaluations


def ending(run: Path) -> list[str]:
    """A line an evaluation that a run folder holds, in the order of training; none where there are fewer than two."""
    kept = [each for each in read_evaluations(run / "evaluations", []) if len(each.summary.accuracy) > 1]
    return _table(kept) if len(kept) > 1 else []


def _table(evaluations: Sequence[Evaluation]) -> list[str]:
    attempts = max(len(each.summary.accuracy) for each in evaluations)
    accuracies = [f"Accuracy@t{attempt}" for attempt in range(1, attempts + 1)]
    rows = [["", *accuracies, "delta [95 %]", "i->c", "c->i"]]
    for each in evaluations:
        rows += [_cells(each, attempts), *_flows(each.summary, attempts)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows]
    about = f"percent of n = {evaluations[-1].summary.n:,} problems"
    told = caution(evaluations[-1].summary)
    return [*lines, f"{about}; nothing can be concluded: {told}" if told else about]


def _cells(evaluation: Evaluation, attempts: int) -> list[str]:
    summary = evaluation.summary
    right = [f"{100 * each.value:.1f}" for each in summary.accuracy]
    return [evaluation.label, *right, *[""] * (attempts - len(right)), *_change(summary)]


def _flows(summary: Summary, attempts: int) -> list[list[str]]:
    """Rows beneath an evaluation of more than two attempts: what each does to the one before."""
    empty = [""] * attempts
    return [[f"  t{place} -> t{place + 1}", *empty, *_change(flow)] for place, flow in enumerate(summary.flows, 1)]


def _change(of: Summary | Flow) -> list[str]:
    delta = [100 * value for value in (of.delta.value, of.delta.low, of.delta.high)]
    flows = [f"{100 * each.value:.1f}" for each in (of.fixed, of.broken)]
    return [f"{delta[0]:+.1f} [{delta[1]:+.1f}, {delta[2]:+.1f}]", *flows]
