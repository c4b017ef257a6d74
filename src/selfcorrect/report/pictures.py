"""The picture of evaluations as SVG (pure): accuracy by attempt."""

from collections.abc import Sequence

from markupsafe import Markup

from selfcorrect.analysis.svg import Scale, attempt_class, drawing, element, line, text, ticks
from selfcorrect.evaluation.metrics import Summary
from selfcorrect.report.wording import percent, points

_SIDE_BY_SIDE = 4  # attempts on one line; more have a line each, with its number
_LANE = 13.0
_LETTER, _FIGURE = 7.2, 6.4  # width of a letter of a label, and of a character of its numbers


def accuracy_picture(rows: Sequence[tuple[str, Summary]]) -> Markup:
    """One row an evaluation: a mark for each attempt with its 95 % interval, and the way from first to last."""
    width, right = 400.0, 394.0
    estimates = [estimate for _, summary in rows for estimate in summary.accuracy]
    most = _most([summary for _, summary in rows])
    left = 6.0 if most <= _SIDE_BY_SIDE else 20.0
    tick = ticks(100 * min(e.low for e in estimates), 100 * max(e.high for e in estimates), 5)
    x = Scale(tick[0] / 100, tick[-1] / 100, left + 8, right - 8)
    tops, bottom = [], 8.0
    for _, summary in rows:
        tops.append(bottom + 8)
        bottom += _height(summary)
    children: list[Markup] = []
    for value in tick:
        children.append(line(x(value / 100), 4, x(value / 100), bottom, "grid"))
        children.append(text(x(value / 100), bottom + 16, f"{value:g}", "num", "middle"))
    children.append(text(right, bottom + 34, "% of problems right", "muted", "end"))
    for top, (label, summary) in zip(tops, rows, strict=True):
        children += _accuracy_row(label, summary, x, top, width, most)
    said = "; ".join(f"{label}: {_path_in_words(summary)}" for label, summary in rows)
    return drawing(width, bottom + 38, f"Accuracy by attempt. {said}", children, class_="accuracy")


def attempt_colours(summaries: Sequence[Summary]) -> list[str]:
    """The class of every attempt's colour, for a key."""
    most = _most(summaries)
    return [attempt_class(index, most, "a") for index in range(most)]


def _most(summaries: Sequence[Summary]) -> int:
    return max((len(summary.accuracy) for summary in summaries), default=0)


def _height(summary: Summary) -> float:
    attempts = len(summary.accuracy)
    return 58.0 if attempts <= _SIDE_BY_SIDE else 34.0 + _LANE * attempts


def _path_in_words(summary: Summary) -> str:
    return " → ".join(percent(e.value) for e in summary.accuracy) + " %"


def _accuracy_row(label: str, summary: Summary, x: Scale, top: float, width: float, most: int) -> list[Markup]:
    attempts = len(summary.accuracy)
    many = attempts > _SIDE_BY_SIDE
    ends = f"{percent(summary.accuracy[0].value)} → … → {percent(summary.accuracy[-1].value)} %"
    told = f"{ends if many else _path_in_words(summary)}  ({points(summary.delta.value)})"
    room = int((width - _FIGURE * len(told)) / _LETTER) - 1
    marks = [
        element("rect", x=0.0, y=top - 11, width=width, height=15.0, class_="halo"),
        text(0, top, label if len(label) <= room else f"{label[: room - 1]}…", "strong"),
        text(width, top, told, "num", "end"),
    ]
    if not many:
        marks += _way(x(summary.accuracy[0].value), x(summary.accuracy[-1].value), top + 22)
    places = [top + (18 + _LANE * index if many else 22) for index in range(attempts)]
    for index, estimate in enumerate(summary.accuracy):
        colour = attempt_class(index, most, "a")
        marks.append(line(x(estimate.low), places[index], x(estimate.high), places[index], f"whisker {colour}"))
    for index, estimate in enumerate(summary.accuracy):
        colour, y = attempt_class(index, most, "a"), places[index]
        marks.append(element("circle", cx=x(estimate.value), cy=y, r=4.5 if many else 5.5, class_=f"dot {colour}"))
        if many:
            marks.append(text(0, y + 4, str(index + 1), "num"))
    return marks


def _way(first: float, last: float, y: float) -> list[Markup]:
    """An arrow from the first attempt to the last, where there is room for one."""
    if abs(last - first) <= 12:
        return []
    tip = last + (-9 if last > first else 9)
    back = tip + (-6 if last > first else 6)
    arrow = element("path", d=f"M{tip:.1f} {y}L{back:.1f} {y - 4}L{back:.1f} {y + 4}Z", class_="tip")
    return [line(first, y, last, y, "way"), arrow]
