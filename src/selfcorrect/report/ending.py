"""How a run ends on the screen: its evaluations side by side."""

from collections.abc import Sequence
from pathlib import Path

from selfcorrect.evaluation.caution import caution
from selfcorrect.evaluation.evaluate import Evaluation
from selfcorrect.evaluation.metrics import Flow, Summary
from selfcorrect.evaluation.told import estimate_text
from selfcorrect.report.load import read_evaluations


def ending(run: Path) -> list[str]:
    """A line an evaluation that a run folder holds, in the order of training; none where there are fewer than two."""
    kept = [each for each in read_evaluations(run / "evaluations", []) if len(each.summary.accuracy) > 1]
    return _table(kept) if len(kept) > 1 else []


def _table(evaluations: Sequence[Evaluation]) -> list[str]:
    attempts = max(len(each.summary.accuracy) for each in evaluations)
    figures = ["Accuracy", "reward"] if any(each.summary.rewards for each in evaluations) else ["Accuracy"]
    names = [f"{figure}@t{attempt}" for figure in figures for attempt in range(1, attempts + 1)]
    rows = [["", *names, "delta [95 %]", "i->c", "c->i"]]
    for each in evaluations:
        rows += [_cells(each, attempts, len(figures)), *_flows(each.summary, len(names))]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows]
    about = f"percent of n = {evaluations[-1].summary.n:,} problems"
    about += "; reward: the mean" if figures[1:] else ""
    told = caution(evaluations[-1].summary)
    return [*lines, f"{about}; nothing can be concluded: {told}" if told else about]


def _cells(evaluation: Evaluation, attempts: int, figures: int) -> list[str]:
    summary = evaluation.summary
    told = [f"{100 * each.value:.1f}" for each in summary.accuracy], [f"{each.value:.3f}" for each in summary.earned]
    cells = [cell for column in told[:figures] for cell in [*column, *[""] * (attempts - len(column))]]
    return [evaluation.label, *cells, *_change(summary)]


def _flows(summary: Summary, columns: int) -> list[list[str]]:
    """Rows beneath an evaluation of more than two attempts: what each does to the one before."""
    empty = [""] * columns
    return [[f"  t{place} -> t{place + 1}", *empty, *_change(flow)] for place, flow in enumerate(summary.flows, 1)]


def _change(of: Summary | Flow) -> list[str]:
    return [
        estimate_text(of.delta, signed=True, unit=""),
        *(f"{100 * each.value:.1f}" for each in (of.fixed, of.broken)),
    ]
