"""The comparison's results -> compare.html, compare.md and compare.csv."""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from selfcorrect.comparing.plan import BASE, bases, paper_table, recipes, single_turn
from selfcorrect.comparing.results import Result
from selfcorrect.config import CompareConfig
from selfcorrect.config.recipe import dump
from selfcorrect.evaluation.alarms import alarms, cut_off_at
from selfcorrect.evaluation.caution import bought, caution
from selfcorrect.evaluation.kept import write_durably
from selfcorrect.evaluation.metrics import FEW, Estimate, Summary
from selfcorrect.report.page import fill, tidy
from selfcorrect.report.paper import PAPER, SETTING, PaperRow
from selfcorrect.report.pictures import accuracy_picture
from selfcorrect.report.tables import NONE, Cell, Row, Table, paper_cells, share_cell
from selfcorrect.report.wording import TONE, capital, interval, percent, points, sign, together, with_minus

_COLUMNS = ("Accuracy@t1", "Accuracy@t2", "Δ(t1,t2)", "Δ by seed", "i→c", "c→i", "fix rate", "unchanged", "McNemar p")


def write_pages(folder: Path, config: CompareConfig, told: Mapping[str, Any], results: Sequence[Result]) -> None:
    """All three files. told: what compare.json holds."""
    labels = {**base_labels(config), **{method.name: method.label for method in config.methods}}
    table, passes = results_table(config, labels, results), passes_table(labels, results)
    environment = told["environment"]
    made = [("Command", tidy(environment["command"])), ("Started", environment["started"])]
    made += [(key.capitalize(), str(value)) for key, value in environment["versions"].items()]
    made += [(key.capitalize(), str(value)) for key, value in environment["machine"].items() if value]
    sentences = findings(labels, results, labels.get(single_turn(config) or ""))
    page = fill(
        "compare.html.jinja", name=config.name, seeds=_seeds(len(config.seeds)), n=results[0].n,
        decoding=decoding(config), headline=headline(labels, config.against, results),
        beside=standing(labels, results), findings=sentences,
        picture=accuracy_picture([(labels[r.name], _summary(r)) for r in results]), results=table, passes=passes,
        resamples=config.resamples, against=labels[config.against],
        budget=budget_table(config, labels, told["accounts"]),
        search=search_table(labels, told["search"]) if told["search"] else None, search_note=_search_note(config),
        spread=spread_table(labels, results), failed=told["failed"], made=made, recipe=tidy(dump(config)),
    )  # fmt: skip
    write_durably(folder / "compare.html", page)
    text = [f"# {config.name}", "", headline(labels, config.against, results), ""]
    text += [f"- Failed: {why}" for why in told["failed"]]
    text += [f"- {sentence}" for sentence in standing(labels, results)] + [""]
    text += [f"- {sentence}" for sentence in sentences] + ["", markdown(table)]
    if passes:
        text += ["", markdown(passes)]
    text += ["", f"Made by `{made[0][1]}`."]
    write_durably(folder / "compare.md", "\n".join(text) + "\n")
    _write_csv(folder / "compare.csv", results)


def base_labels(config: CompareConfig) -> dict[str, str]:
    """The base model's lines; each tells how it computes where there are several."""
    lines = bases(config)
    return {name: f"Base model ({each})" if len(lines) > 1 else "Base model" for each, name in lines.items()}


def decoding(config: CompareConfig) -> str:
    """How every method's evaluation was sampled, in words."""
    evaluation = next(iter(recipes(config).values())).evaluation
    if evaluation.temperature == 0:
        return "greedy"
    return f"{evaluation.samples} samples at temperature {evaluation.temperature:g} (Avg@{evaluation.samples})"


def passes_table(labels: Mapping[str, str], results: Sequence[Result]) -> Table | None:
    """pass@k of both attempts; None where there was one sample of each problem."""
    rows = []
    for result in results:
        if result.passes is not None:
            first, second, change = result.passes
            cells = (share_cell(first), share_cell(second), Cell(points(change.value), interval(change)))
            rows.append(Row(labels[result.name], _seeds(result.seeds), cells))
    k = results[0].samples
    columns = (f"pass@{k}, attempt 1", f"pass@{k}, attempt 2", "difference")
    return Table("Percent of problems.", "Method", columns, (("", tuple(rows)),)) if rows else None


def results_table(config: CompareConfig, labels: Mapping[str, str], results: Sequence[Result]) -> Table:
    """Ours, and beneath it the paper's rows of the same methods, marked as theirs, where it has the task."""
    rows = tuple(Row(labels[r.name], _note(r), _cells(r)) for r in results)
    columns = (*_COLUMNS, f"t2 against {labels[config.against]}", *(["repair"] if config.repair else []))
    groups = [("", rows)]
    if shown := paper_table(config):
        name, same = shown
        wanted = {BASE: BASE, **{method.name: method.paper for method in config.methods}}
        theirs = [PAPER[name][key] for result in results if (key := wanted.get(result.name)) in PAPER[name]]
        heading = f"The paper's own numbers, not ours, of another model{'' if same else ' and task'}: {SETTING[name]}"
        groups.append((heading, tuple(Row(row.label, "", _paper_cells(row, config.repair)) for row in theirs)))
    return Table("Percent of problems.", "Method", columns, tuple(groups))


def spread_table(labels: Mapping[str, str], results: Sequence[Result]) -> Table:
    """The lowest and the highest seed of every number."""
    names = ("t1", "t2", "delta", "fixed", "broken", "fix_rate", "unchanged")
    rows = []
    for result in results:
        ends = [result.spread[name] for name in names]
        cells = tuple(Cell(NONE if math.isnan(low) else f"{percent(low)} to {percent(high)}") for low, high in ends)
        rows.append(Row(labels[result.name], "", cells))
    return Table("Percent of problems.", "Method", (*_COLUMNS[:3], *_COLUMNS[4:8]), (("", tuple(rows)),))


def _seeds(count: int) -> str:
    return f"{count} {'seed' if count == 1 else 'seeds'}"


def _note(result: Result) -> str:
    """How many seeds, and what the columns have no place for."""
    told = _seeds(result.seeds)
    if result.last is None:
        return told
    last = share_cell(result.last)
    return f"{told}; last attempt {last.main} % [{last.small}]"


def _cells(result: Result) -> tuple[Cell, ...]:
    low, high = result.spread["delta"]
    spread = f"{points(low)} to {points(high)}" if result.seeds > 1 else NONE
    shares = (result.fixed, result.broken, result.fix_rate, result.unchanged)
    tone = "" if caution(_summary(result)) else TONE[result.moved]
    return (
        share_cell(result.t1), share_cell(result.t2),
        Cell(points(result.delta.value), interval(result.delta), tone), Cell(spread),
        *(share_cell(share) for share in shares), Cell(_p_value(result.mcnemar)),
        _gain_cell(result),
        *([] if result.repair is None else [share_cell(result.repair)]),
    )  # fmt: skip


def _gain_cell(result: Result) -> Cell:
    """Coloured only where the interval and every seed agree."""
    if result.gain is None:
        return Cell(NONE)
    low, high = result.spread["gain"]
    seeds = f"; seeds {points(low)} to {points(high)}" if result.seeds > 1 else ""
    return Cell(points(result.gain.value), interval(result.gain) + seeds, TONE[result.verdict])


def _paper_cells(row: PaperRow, repair: object) -> tuple[Cell, ...]:
    first, second, delta, *rest = paper_cells(row)
    last = [] if repair is None else [Cell(NONE if row.repair is None else percent(row.repair / 100))]
    return (first, second, delta, Cell(NONE), *rest, *[Cell(NONE)] * 3, *last)


def _p_value(p: float | None) -> str:
    if p is None:
        return NONE
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def headline(labels: Mapping[str, str], against: str, results: Sequence[Result]) -> str:
    """Whether the method that all are compared with gains by its second attempt."""
    main = next(result for result in results if result.name == against)
    if told := caution(_summary(main)):
        return f"Whether {labels[against]} gains by its second attempt cannot be concluded: {told}."
    what = {
        1: f"gains {percent(main.delta.value)} points by its second attempt",
        0: "does not measurably gain by its second attempt",
        -1: f"loses {percent(-main.delta.value)} points by its second attempt",
    }[main.moved]
    return together(f"{labels[against]} {what} ({interval(main.delta)}{_seeds_apart(main)}).")


def standing(labels: Mapping[str, str], results: Sequence[Result]) -> list[str]:
    """How the others stand to it by Accuracy@t2, by their paired intervals."""
    others = [(labels[r.name], r.verdict) for r in results if r.gain is not None and r.n >= FEW]
    groups = (
        ("Accuracy@t2 below it, by the interval and in every seed", [name for name, verdict in others if verdict < 0]),
        ("no difference shown", [name for name, verdict in others if not verdict]),
        ("above it, by the interval and in every seed", [name for name, verdict in others if verdict > 0]),
    )
    return [f"{capital(what)}: {'; '.join(names)}." for what, names in groups if names]


def findings(labels: Mapping[str, str], results: Sequence[Result], single: str | None = None) -> list[str]:
    """One sentence a method, called what its interval says. single: the label of the one that trains single attempts.

    Attempt 1 is held against the base model's and against that one's.
    """
    lines = {result.name: result for result in results}
    return [
        together(f"{labels[r.name]}: {_in_words(r)}{_alarms(r, lines.get(r.base or ''))}{_guard(r, single)}.")
        for r in results
    ]


def _guard(result: Result, single: str | None) -> str:
    """Attempt 1 against that of single-turn RL, and what a gain in delta was bought with."""
    change = result.against_single
    if change is None or single is None or caution(_summary(result)):
        return ""
    where = {1: "above", 0: "not measurably different from", -1: "under"}[sign(change.first)]
    told = f"; attempt 1 is {where} that of {single} ({points(change.first.value)} points, {interval(change.first)})"
    price = bought(change, single)
    return told + (f"; {with_minus(price)}" if price else "")


def _in_words(result: Result) -> str:
    moved = f"{percent(result.t1.value)} % to {percent(result.t2.value)} %"
    if told := caution(_summary(result)):
        return f"{moved}; nothing can be concluded: {told}"
    why = "includes zero" if sign(result.delta) == 0 else f"does not{_seeds_apart(result)}"
    return {
        1: f"the second attempt gains, {moved} ({interval(result.delta)} points)",
        0: f"no measurable change, {moved}; the interval ({interval(result.delta)} points) {why}",
        -1: f"the second attempt harms, {moved} ({interval(result.delta)} points)",
    }[result.moved]


def _seeds_apart(result: Result) -> str:
    """Where the interval over problems has a sign that not every seed has."""
    low, high = result.spread["delta"]
    return f"; but by seed {points(low)} to {points(high)}" if sign(result.delta) and not result.moved else ""


def _alarms(result: Result, base: Result | None) -> str:
    """What was cut off; sandbagging and collapse to copying, as a run's report has them."""
    found = cut_off_at(_summary(result), None)
    if base is not None and base is not result:
        found += alarms(_summary(result), _summary(base), result.against_base)
    return "".join(f"; {with_minus(told)}" for told in found)


def budget_table(config: CompareConfig, labels: Mapping[str, str], accounts: Mapping[str, Mapping[str, int]]) -> Table:
    """What each method uses of the budget."""
    allowed = config.budget
    rows = []
    for name, cost in accounts.items():
        less = cost["completions"] < allowed.completions or cost["updates"] < allowed.updates
        used = (Cell(f"{cost['completions']:,}"), Cell(f"{cost['updates']:,}"), Cell("needs fewer" if less else "all"))
        rows.append(Row(labels[name], "", used))
    caption = (
        f"Of {allowed.completions:,} sampled completions and {allowed.updates:,} updates a run"
        f"{'; search not counted' if config.search else ''}."
    )
    return Table(caption, "Method", ("Sampled completions", "Updates", "Of the budget"), (("", tuple(rows)),))


def search_table(labels: Mapping[str, str], trials: Sequence[Mapping[str, Any]]) -> Table:
    """Every trial's accuracy; the best of a method, of equal ones the first, is marked."""
    pairs = list(dict.fromkeys((t["learning_rate"], t["beta1"]) for t in trials))
    pairs.sort(key=lambda pair: (pair[1] is None, pair))
    rows = []
    for name in dict.fromkeys(t["method"] for t in trials):
        found = {(t["learning_rate"], t["beta1"]): t["accuracy"] for t in trials if t["method"] == name}
        known = {pair: Estimate(**accuracy) for pair, accuracy in found.items() if accuracy is not None}
        first = max(known, key=lambda pair: known[pair].value) if known else None
        cells = [
            replace(share_cell(known[pair]), tone="good" if pair == first else "")
            if pair in known
            else Cell("failed" if pair in found else NONE)
            for pair in pairs
        ]
        equal = sum(each.value == known[first].value for each in known.values()) if first else 0
        rows.append(Row(labels[name], f"{equal} equal, the first taken" if equal > 1 else "", tuple(cells)))
    columns = [f"rate times {rate:g}" + ("" if beta1 is None else f", β1 {beta1:g}") for rate, beta1 in pairs]
    return Table(
        "Accuracy of the last attempt, percent, with 95 % intervals.", "Method", tuple(columns), (("", tuple(rows)),)
    )


def _search_note(config: CompareConfig) -> str:
    search = config.search
    if not search:
        return ""
    return (
        f"Every trained method was tried with the same settings, on {search.share:.0%} of its steps and one seed "
        f"({search.seed}) that the table does not use; judged on {search.problems:,} training problems. The best, "
        "marked (of equal ones the first), was taken for all seeds. The last attempt counts, also for a method that "
        "trains the first alone, or more than two. A finite data set's training problems are trained on as well."
    )


def _summary(result: Result) -> Summary:
    """As the picture, cautions and alarms want it."""
    return Summary(
        result.n, (result.t1, result.t2), result.delta, result.fixed, result.broken, result.fix_rate,
        result.unchanged, result.outcomes, result.samples, smallest=result.smallest,
    )  # fmt: skip


def markdown(table: Table) -> str:
    """The table as GitHub shows it; intervals stand in brackets."""
    lines = [f"| {' | '.join((table.first, *table.columns))} |", f"|{'---|' * (len(table.columns) + 1)}"]
    for heading, rows in table.groups:
        if heading:
            lines.append(f"| *{heading}* |{' |' * len(table.columns)}")
        for row in rows:
            cells = [f"{cell.main} [{cell.small}]" if cell.small else cell.main for cell in row.cells]
            lines.append(f"| {' | '.join((row.label, *cells))} |")
    return "\n".join(lines)


def _write_csv(file: Path, results: Sequence[Result]) -> None:
    names = ("t1", "t2", "delta", "fixed", "broken", "fix_rate", "unchanged", "gain", "gain_delta", "last", "repair")
    parts = ("", "_low", "_high")
    columns = [f"{name}{part}" for name in names for part in parts]
    spreads = ("t1", "t2", "delta", "fixed", "broken", "fix_rate", "unchanged", "gain")
    rest = [f"{name}_{end}" for name in spreads for end in ("lowest_seed", "highest_seed")] + ["mcnemar_p"]
    beside = ("pass_t1", "pass_t2", "pass_delta", "t1_less_base", "t1_less_single")
    more = ["samples", *(f"{name}{part}" for name in beside for part in parts)]
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(["method", "seeds", "n", *columns, *rest, *more])
    for r in results:
        numbers = [part for name in names for part in _parts(getattr(r, name))]
        ends = [value for name in spreads for value in r.spread[name]]
        firsts = [r.against_base and r.against_base.first, r.against_single and r.against_single.first]
        tail = [part for each in (*(r.passes or (None,) * 3), *firsts) for part in _parts(each)]
        mcnemar = "" if r.mcnemar is None else r.mcnemar
        writer.writerow([r.name, r.seeds, r.n, *numbers, *ends, mcnemar, r.samples, *tail])
    write_durably(file, out.getvalue())


def _parts(estimate: Estimate | None) -> tuple[object, ...]:
    return ("", "", "") if estimate is None else (estimate.value, estimate.low, estimate.high)
