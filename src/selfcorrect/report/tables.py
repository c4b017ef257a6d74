"""The page's tables as plain cells (pure): what is shown, already rounded and worded."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from selfcorrect.evaluation.caution import caution
from selfcorrect.evaluation.evaluate import Evaluation
from selfcorrect.evaluation.metrics import Estimate, Summary
from selfcorrect.evaluation.told import CONTROLS
from selfcorrect.report.paper import PAPER, SETTING, PaperRow, fix_rate, setting_of
from selfcorrect.report.wording import TONE, capital, interval, percent, points, sign

NONE = "\N{EM DASH}"


@dataclass(frozen=True, slots=True)
class Cell:
    """A number and, in smaller type, its interval. tone: good, even or bad where the number is a verdict."""

    main: str
    small: str = ""
    tone: str = ""


@dataclass(frozen=True, slots=True)
class Row:
    label: str
    note: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True, slots=True)
class Table:
    """columns without the first, which holds the row labels. groups: (heading, rows); an empty heading is not shown."""

    caption: str
    first: str
    columns: tuple[str, ...]
    groups: tuple[tuple[str, tuple[Row, ...]], ...]


def share_cell(estimate: Estimate) -> Cell:
    if math.isnan(estimate.value):
        return Cell(NONE)
    return Cell(percent(estimate.value), f"{percent(estimate.low)}\N{EN DASH}{percent(estimate.high)}")


def delta_cell(estimate: Estimate, *, tells: bool = True) -> Cell:
    """tells: whether the figure allows a verdict."""
    tone = TONE[sign(estimate)] if tells else ""
    return Cell(points(estimate.value), interval(estimate), tone)


def summary_cells(summary: Summary, attempts: int) -> tuple[Cell, ...]:
    """Accuracy of every attempt, delta, i->c, c->i, fix rate, unchanged, n."""
    missing = Cell(NONE)
    if summary.n == 0:
        return (*(missing for _ in range(attempts + 5)), Cell("0"))
    accuracy = [share_cell(e) for e in summary.accuracy]
    accuracy += [missing] * (attempts - len(accuracy))
    changes: tuple[Cell, ...] = (missing,) * 5
    if len(summary.accuracy) > 1:
        changes = (
            delta_cell(summary.delta, tells=not caution(summary)),
            share_cell(summary.fixed), share_cell(summary.broken),
            share_cell(summary.fix_rate) if summary.wrong_first else missing, share_cell(summary.unchanged),
        )  # fmt: skip
    return (*accuracy, *changes, Cell(f"{summary.n:,}"))


def summary_columns(attempts: int) -> tuple[str, ...]:
    names = tuple(f"Accuracy@t{a}" for a in range(1, attempts + 1))
    changes = (f"Δ(t1,t{attempts})", "i→c", "c→i", "fix rate", "unchanged", "n")
    return (*names, *changes)


def most_attempts(summaries: Sequence[Summary]) -> int:
    return max([2, *(len(s.accuracy) for s in summaries)])


def results_table(evaluations: Sequence[Evaluation], repaired: str) -> Table:
    """Every evaluation, and the paper's two rows beneath, marked as the paper's. repaired: see `setting_of`."""
    attempts = most_attempts([e.summary for e in evaluations])
    rows = tuple(Row(capital(e.label), _where(e), summary_cells(e.summary, attempts)) for e in evaluations)
    setting = setting_of(evaluations[0].task, repaired)
    n = Cell({"math": "500", "humaneval": "164"}[setting])
    gap = (Cell(NONE),) * (attempts - 2)
    paper = []
    for key in ("base", "score"):
        first, second, *rest = paper_cells(PAPER[setting][key])
        paper.append(Row(PAPER[setting][key].label, "", (first, second, *gap, *rest, Cell(NONE), n)))
    heading = f"The paper's own numbers: another model and task ({SETTING[setting]})"
    most = max(e.summary.samples for e in evaluations)
    caption = "Percent of problems; beneath each number its 95 % interval, where it is known."
    if most > 1:
        caption = (
            f"Percent, Avg@{most}: the mean over problems of each one's mean over {most} samples; beneath each number "
            "its 95 % interval by a bootstrap over problems (Wilson's, or that of matched pairs, where fewer than 20 "
            "problems tell or all are alike)."
        )
    return Table(caption, "Evaluation", summary_columns(attempts), (("", rows), (heading, tuple(paper))))


def earlier_table(earlier: Sequence[tuple[str, Evaluation]]) -> Table | None:
    """What a run had ended with before it was extended."""
    found = [(e, f"{_where(e)}, {at}", e.summary) for at, e in earlier]
    caption = "What the run had ended with before it was extended; percent of problems with 95 % intervals."
    return _summaries(caption, found) if found else None


def changes_table(changes: Sequence[Mapping[str, Any]], shown: Callable[[Any], str]) -> Table | None:
    """The settings that a run went on with; the recipe is the one it has now."""
    rows = []
    for each in changes:
        both = [Cell(NONE if each[when] is None else shown(each[when])) for when in ("old", "new")]
        rows.append(Row(each["field"], "", (Cell(f"{each['step']:,}"), *both)))
    caption = "Changed on the way; the recipe below is the one the run has now."
    return Table(caption, "Setting", ("after step", "before", "from then on"), (("", tuple(rows)),)) if rows else None


def paper_cells(row: PaperRow) -> tuple[Cell, ...]:
    """Accuracy@t1 and @t2, delta, i->c, c->i, fix rate: the paper's, without intervals, as it gives none."""
    shares = (row.fixed, row.broken, fix_rate(row))
    told = [Cell(NONE if value is None else percent(value / 100)) for value in shares]
    return (Cell(percent(row.t1 / 100)), Cell(percent(row.t2 / 100)), Cell(points(row.delta / 100)), *told)


def rewards_table(evaluations: Sequence[Evaluation]) -> Table | None:
    """What each attempt earned, where a reward is partial and accuracy does not tell."""
    if not any(e.summary.rewards for e in evaluations):
        return None
    attempts = most_attempts([e.summary for e in evaluations])
    rows = []
    for e in evaluations:
        cells = [Cell(f"{r.value:.3f}", f"{r.low:.3f}\N{EN DASH}{r.high:.3f}") for r in e.summary.earned]
        rows.append(Row(capital(e.label), _where(e), (*cells, *[Cell(NONE)] * (attempts - len(cells)))))
    caption = "Mean reward of each attempt, from 0 to 1, which training goes by, with 95 % intervals."
    return Table(caption, "Evaluation", tuple(f"attempt {a}" for a in range(1, attempts + 1)), (("", tuple(rows)),))


def flows_table(evaluations: Sequence[Evaluation]) -> Table | None:
    """What each attempt did to the one before, where there are more than two."""
    groups = []
    for evaluation in evaluations:
        rows = []
        for place, flow in enumerate(evaluation.summary.flows, 1):
            shares = (share_cell(e) for e in (flow.fixed, flow.broken, flow.unchanged))
            cells = (delta_cell(flow.delta, tells=not caution(evaluation.summary)), *shares)
            rows.append(Row(f"Attempt {place} to {place + 1}", "", cells))
        groups += [(capital(evaluation.label), tuple(rows))] if rows else []
    caption = "From each attempt to the next; percent of problems with 95 % intervals."
    return Table(caption, "Attempts", ("Δ", "i→c", "c→i", "unchanged"), tuple(groups)) if groups else None


def passes_table(evaluations: Sequence[Evaluation]) -> Table | None:
    """pass@k of every evaluation with more than one sample of each problem."""
    found = [e for e in evaluations if e.summary.passes]
    if not found:
        return None
    attempts = most_attempts([e.summary for e in found])
    groups = []
    for evaluation in found:
        rows = []
        for each in evaluation.summary.passes:
            accuracy = [share_cell(e) for e in each.accuracy]
            accuracy += [Cell(NONE)] * (attempts - len(accuracy))
            changes = (delta_cell(each.delta, tells=False), share_cell(each.fixed), share_cell(each.broken))
            rows.append(Row(f"pass@{each.k}", "", (*accuracy, *changes, Cell(f"{each.n:,}"))))
        groups.append((capital(evaluation.label), tuple(rows)))
    columns = (*(f"attempt {a}" for a in range(1, attempts + 1)), "difference", "i→c", "c→i", "n")
    caption = (
        "Percent of problems that at least one of k samples solves (unbiased, from all samples), with 95 % intervals "
        "over problems. i→c: in none of k first attempts, but in one of the k last ones."
    )
    return Table(caption, "Samples", columns, tuple(groups))


def wordings_table(evaluations: Sequence[Evaluation]) -> Table | None:
    """Wordings of the correction prompt side by side; the latest evaluation first."""
    found = [e for e in reversed(evaluations) if e.wordings and e.summary.n]
    if not found:
        return None
    names = list(dict.fromkeys(w.name for e in found for w in e.wordings))
    last = max(len(e.summary.accuracy) for e in found)
    groups = []
    for evaluation in found:
        rows = []
        for wording in evaluation.wordings:
            s = wording.summary
            cells = [share_cell(s.accuracy[-1]), delta_cell(s.delta, tells=not caution(s))]
            cells += [share_cell(e) for e in (s.fixed, s.broken, s.unchanged)]
            cells += [
                delta_cell(wording.less[name], tells=not caution(s)) if name in wording.less else Cell(NONE)
                for name in names
            ]
            rows.append(Row(wording.name, wording.prompt, tuple(cells)))
        groups.append((capital(evaluation.label), tuple(rows)))
    caption = (
        "Percent of problems with 95 % intervals, all after the same first attempts. Against another wording: the "
        f"difference of Accuracy@t{last}, which is that of Δ too, paired over problems."
    )
    columns = (f"Accuracy@t{last}", f"Δ(t1,t{last})", "i→c", "c→i", "unchanged", *(f"against {name}" for name in names))
    return Table(caption, "Correction prompt", columns, tuple(groups))


def sampled_table(evaluations: Sequence[Evaluation]) -> Table | None:
    found = [(e, "", e.sampled) for e in evaluations if e.sampled]
    caption = "The same problems with every attempt sampled at temperature 1; percent."
    return _summaries(caption, found) if found else None


def _summaries(caption: str, found: Sequence[tuple[Evaluation, str, Summary]]) -> Table:
    """A row a summary, under its evaluation's name and a note."""
    attempts = most_attempts([s for _, _, s in found])
    rows = tuple(Row(capital(e.label), note, summary_cells(s, attempts)) for e, note, s in found)
    return Table(caption, "Evaluation", summary_columns(attempts), (("", rows),))


def outcome_table(evaluations: Sequence[Evaluation]) -> Table | None:
    """How often each attempt ended in which outcome, as counts."""
    return _outcomes("Outcomes of every attempt, counted over all samples.", [(e, e.summary) for e in evaluations])


def _outcomes(caption: str, found: Sequence[tuple[Evaluation, Summary]]) -> Table | None:
    names = list(dict.fromkeys(name for _, s in found for counts in s.outcomes for name in counts))
    if not names:
        return None
    groups = []
    for evaluation, summary in found:
        rows = tuple(
            Row(f"Attempt {a}", "", tuple(Cell(f"{counts.get(name, 0):,}") for name in names))
            for a, counts in enumerate(summary.outcomes, 1)
        )
        groups.append((capital(evaluation.label), rows))
    return Table(caption, "Attempt", tuple(name.replace("_", " ") for name in names), tuple(groups))


def control_table(evaluations: Sequence[Evaluation]) -> Table | None:
    """The final evaluation first; per evaluation, what attempt 2 was shown as attempt 1."""
    found = [e for e in reversed(evaluations) if e.controls and e.summary.n]
    if not found:
        return None
    notes = {"independent": "same problem, sampled anew", "swapped": "swapped in"}
    groups = []
    for evaluation in found:
        rows = [Row("Its own attempt 1", "as evaluated", _control_cells(evaluation.summary))]
        rows += [
            Row(capital(what), notes[name], _control_cells(evaluation.controls[name]))
            for name, what in CONTROLS.items()
            if name in evaluation.controls
        ]
        groups.append((capital(evaluation.label), tuple(rows)))
    last = max(len(e.summary.accuracy) for e in found)
    return Table(
        "Percent of problems with 95 % intervals. Fixed and broken count from the attempt shown to the last one.",
        "Attempt shown",
        ("Accuracy of it", f"Accuracy@t{last}", "fixed", "broken", "repeated", "n"),
        tuple(groups),
    )


def _control_cells(summary: Summary) -> tuple[Cell, ...]:
    if not summary.n or not summary.accuracy:
        return (*(Cell(NONE) for _ in range(5)), Cell("0"))
    shares = (summary.accuracy[0], summary.accuracy[-1], summary.fixed, summary.broken, summary.unchanged)
    return (*(share_cell(e) for e in shares), Cell(f"{summary.n:,}"))


@dataclass(frozen=True, slots=True)
class ExternalSet:
    """One external test file over all evaluations."""

    name: str
    results: Table
    outcomes: Table | None


def external_sets(evaluations: Sequence[Evaluation]) -> tuple[ExternalSet, ...]:
    """A set for every external file, in the order they first appear."""
    names = list(dict.fromkeys(name for e in evaluations for name, _ in e.external))
    sets = []
    for name in names:
        found = [(e, s) for e in evaluations for of, s in e.external if of == name]
        attempts = most_attempts([s for _, s in found])
        rows = tuple(
            Row(capital(e.label), "", (*summary_cells(s, attempts), Cell(f"{_count(s, 'unreadable'):,}")))
            for e, s in found
        )
        columns = (*summary_columns(attempts), "unreadable")
        caption = (
            "Percent of the graded problems (n) with 95 % intervals. Unreadable: problems that the model's tokenizer "
            "cannot read; they were not attempted and are left out of n."
        )
        results = Table(caption, "Evaluation", columns, (("", rows),))
        sets.append(ExternalSet(name, results, _outcomes("Outcomes of every attempt, in problems.", found)))
    return tuple(sets)


def _count(summary: Summary, outcome: str) -> int:
    return summary.outcomes[0].get(outcome, 0) if summary.outcomes else 0


def _where(evaluation: Evaluation) -> str:
    """Base stands at step 0 already by its name; the others say where in training they were made."""
    return "" if evaluation.is_base else f"step {evaluation.step:,}"
