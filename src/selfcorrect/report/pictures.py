"""The picture of evaluations as SVG (pure): accuracy by attempt."""

from collections.abc import Sequence

from markupsafe import Markup

from selfcorrect.analysis.svg import Scale, drawing, element, line, text, ticks
from selfcorrect.evaluation.metrics import Summary
from selfcorrect.report.wording import percent, points


def accuracy_picture(rows: Sequence[tuple[str, Summary]]) -> Markup:
    """One row an evaluation: a mark for each attempt with its 95 % interval, and the way from first to last."""
    width, left, right, row = 400.0, 6.0, 394.0, 58.0
    estimates = [estimate for _, summary in rows for estimate in summary.accuracy]
    tick = ticks(100 * min(e.low for e in estimates), 100 * max(e.high for e in estimates), 5)
    x = Scale(tick[0] / 100, tick[-1] / 100, left + 8, right - 8)
    bottom = row * len(rows) + 8
    children: list[Markup] = []
    for value in tick:
        children.append(line(x(value / 100), 4, x(value / 100), bottom, "grid"))
        children.append(text(x(value / 100), bottom + 16, f"{value:g}", "num", "middle"))
    children.append(text(right, bottom + 34, "% of problems right", "muted", "end"))
    for index, (label, summary) in enumerate(rows):
        children += _accuracy_row(label, summary, x, row * index + 16, width)
    said = "; ".join(f"{label}: {_path_in_words(summary)}" for label, summary in rows)
    return drawing(width, bottom + 38, f"Accuracy by attempt. {said}", children, class_="accuracy")


def _path_in_words(summary: Summary) -> str:
    return " → ".join(percent(e.value) for e in summary.accuracy) + " %"


def _accuracy_row(label: str, summary: Summary, x: Scale, top: float, width: float) -> list[Markup]:
    y = top + 22
    first, last = x(summary.accuracy[0].value), x(summary.accuracy[-1].value)
    marks = [
        element("rect", x=0.0, y=top - 11, width=width, height=15.0, class_="halo"),
        text(0, top, label if len(label) <= 28 else f"{label[:27]}…", "strong"),
        text(width, top, f"{_path_in_words(summary)}  ({points(summary.delta.value)})", "num", "end"),
    ]
    if abs(last - first) > 12:
        marks.append(line(first, y, last, y, "way"))
        tip = last + (-9 if last > first else 9)
        back = tip + (-6 if last > first else 6)
        marks.append(element("path", d=f"M{tip:.1f} {y}L{back:.1f} {y - 4}L{back:.1f} {y + 4}Z", class_="tip"))
    for index, estimate in enumerate(summary.accuracy):
        marks.append(line(x(estimate.low), y, x(estimate.high), y, f"whisker a{min(4, index + 1)}"))
    for index, estimate in enumerate(summary.accuracy):
        marks.append(element("circle", cx=x(estimate.value), cy=y, r=5.5, class_=f"dot a{min(4, index + 1)}"))
    return marks
