"""What happens while training: Fig. 5 and Fig. 6, and accuracy over many attempts (Fig. 8)."""

import math
from collections.abc import Mapping, Sequence
from statistics import stdev
from typing import Any

from selfcorrect.analysis.charts import Series, line_chart
from selfcorrect.analysis.figure import Figure
from selfcorrect.analysis.svg import attempt_class
from selfcorrect.evaluation.metrics import share
from selfcorrect.types import Rollout

_WIDTH = 10  # steps that a point of a curve is the mean of


def fixed_figure(rows: Sequence[Mapping[str, Any]]) -> Figure | None:
    """Fig. 5: Accuracy@t2 after the model's own first attempts, and after the base model's, over training.

    rows: the lines of between.jsonl.
    """
    if not rows:
        return None
    last = [(row["step"], row["own"]["accuracy"][-1], row["fixed"]["accuracy"][-1]) for row in rows]
    own = [(s, 100 * a["value"], 100 * a["low"], 100 * a["high"]) for s, a, _ in last]
    fixed = [(s, 100 * b["value"], 100 * b["low"], 100 * b["high"]) for s, _, b in last]
    series = [Series("its own first attempts", "c2", own), Series("the base model's first attempts", "c1", fixed)]
    numbers = [
        {"step": step, "first_attempts": kind, "accuracy_last": e["value"], "low": e["low"], "high": e["high"]}
        for step, a, b in last for kind, e in (("own", a), ("base", b))
    ]  # fmt: skip
    caption = (
        f"Greedy accuracy of the last attempt on n = {rows[0]['own']['n']:,} held-out problems, after first attempts "
        "of the model's own and after those that the base model wrote; bands: 95 % intervals."
    )
    title = "Correcting its own and fixed first attempts"
    return Figure("first_attempts", title, caption, line_chart(title, "training step", "% right", series), numbers)


def progress_figures(steps: Sequence[Mapping[str, Any]]) -> list[Figure]:
    """Fig. 6: training accuracy of each attempt, and how often the answer changes; means over 10 steps."""
    rows = [row for row in steps if row.get("accuracy")]
    if len(rows) < 2:
        return []
    rows = [row for row in rows if len(row["accuracy"]) == len(rows[-1]["accuracy"])]
    attempts = len(rows[-1]["accuracy"])
    accuracy = [
        Series(
            f"attempt {a + 1}",
            attempt_class(a, attempts, "c"),
            _smooth([(r["step"], 100 * r["accuracy"][a]) for r in rows]),
        )
        for a in range(attempts)
    ]
    numbers = [
        {"step": r["step"], "stage": r["stage"], **{f"accuracy_t{a + 1}": r["accuracy"][a] for a in range(attempts)},
         "changed": 1 - r["unchanged"]}
        for r in rows
    ]  # fmt: skip
    n = "the rollouts of a training step, sampled; each point the mean of 10 steps, bands: twice its standard error"
    title = "Training accuracy of each attempt"
    figures = [
        Figure(
            "training_accuracy",
            title,
            f"% right of {n}.",
            line_chart(title, "training step", "% right", accuracy),
            numbers,
        )
    ]
    if attempts > 1:
        changed = [Series("changed", "c3", _smooth([(r["step"], 100 * (1 - r["unchanged"])) for r in rows]))]
        title = "How often the last attempt changes the answer"
        drawn = line_chart(title, "training step", "% changed", changed)
        figures.append(Figure("training_changed", title, f"% of changed answers among {n}.", drawn, numbers))
    return figures


def _smooth(points: Sequence[tuple[float, float]]) -> list[tuple[float, float, float, float]]:
    """Means of `_WIDTH` points each, with twice their standard error."""
    smoothed = []
    for start in range(0, len(points), _WIDTH):
        part = points[start : start + _WIDTH]
        ys = [y for _, y in part]
        mean = sum(ys) / len(ys)
        half = 2 * stdev(ys) / math.sqrt(len(ys)) if len(ys) > 2 else math.nan
        smoothed.append((sum(x for x, _ in part) / len(part), mean, mean - half, mean + half))
    return smoothed


def attempts_figure(groups: Mapping[str, Sequence[Rollout]]) -> Figure | None:
    """Fig. 8: accuracy at each of many attempts; None where no evaluation has more than two."""
    series, numbers = [], []
    for colour, (label, rollouts) in zip(("c1", "c2", "c3", "c4"), groups.items(), strict=False):
        n, attempts = len(rollouts), len(rollouts[0].attempts) if rollouts else 0
        estimates = [share(sum(each.attempts[a].grade.correct for each in rollouts), n) for a in range(attempts)]
        points = [(a + 1, 100 * e.value, 100 * e.low, 100 * e.high) for a, e in enumerate(estimates)]
        series.append(Series(f"{label} (n = {n:,})", colour, points))
        numbers += [
            {"group": label, "attempt": a + 1, "accuracy": e.value, "low": e.low, "high": e.high, "n": n}
            for a, e in enumerate(estimates)
        ]
    if not any(len(s.points) > 2 for s in series):
        return None
    title = "Accuracy at every attempt"
    drawn = line_chart(title, "attempt", "% right", [s for s in series if s.points])
    return Figure(
        "attempts",
        title,
        "Accuracy at each attempt in a run's evaluations (of every problem the first sample); bands: 95 % intervals.",
        drawn,
        numbers,
    )
