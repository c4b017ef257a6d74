"""The two kinds of charts that the analyses draw (pure): lines with intervals, and histograms."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from selfcorrect.analysis.svg import Scale, drawing, element, line, number, text, ticks

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 460.0, 280.0, 46.0, 12.0, 58.0, 40.0


@dataclass(frozen=True, slots=True)
class Series:
    """Points (x, y, low, high); low and high may be NaN where no interval is known."""

    name: str
    colour: str
    points: Sequence[tuple[float, float, float, float]]


def line_chart(
    label: str, x_label: str, y_label: str, series: Sequence[Series], *, powers_of_two: bool = False
) -> Markup:
    """Lines with their 95 % bands. powers_of_two: x on a logarithmic axis, ticks at the points themselves."""
    xs = sorted({p[0] for s in series for p in s.points})
    values = [v for s in series for p in s.points for v in p[1:] if not math.isnan(v)]
    low, high = min(values), max(values)
    y_ticks = ticks(low, high if high > low else low + 1)
    place = math.log2 if powers_of_two else float
    x = Scale(place(xs[0]), max(place(xs[-1]), place(xs[0]) + 1e-9), LEFT, WIDTH - RIGHT)
    y = Scale(y_ticks[0], y_ticks[-1], HEIGHT - BOTTOM, TOP)
    x_ticks = xs if powers_of_two or len(xs) <= 10 else [t for t in ticks(xs[0], xs[-1], 5) if xs[0] <= t <= xs[-1]]
    marks = _frame(y, y_ticks, x_label, y_label)
    marks += [text(x(place(t)), HEIGHT - BOTTOM + 16, f"{t:g}", "num", "middle") for t in x_ticks]
    for s in series:
        marks += _band(s, x, y, place)
    for s in series:
        points = [(x(place(p[0])), y(p[1])) for p in s.points if not math.isnan(p[1])]
        path = "L".join(f"{a:.1f} {b:.1f}" for a, b in points)
        marks.append(element("path", d=f"M{path}", class_=f"s {s.colour}"))
        if len(points) <= 24:
            marks += [element("circle", cx=a, cy=b, r=3.0, class_=f"dot {s.colour}") for a, b in points]
    marks += _legend([(s.name, s.colour) for s in series])
    said = "; ".join(f"{s.name}: " + ", ".join(f"{p[0]:g} → {p[1]:.3g}" for p in s.points[-3:]) for s in series)
    return drawing(WIDTH, HEIGHT, f"{label}. {said}", marks, class_="figure")


def histogram(
    label: str, x_label: str, bins: Sequence[float], shares: Sequence[tuple[str, str, Sequence[float]]]
) -> Markup:
    """Shares by bin for several series, side by side; bins: the edges, one more than shares."""
    top = max((v for _, _, values in shares for v in values), default=0.0)
    y_ticks = ticks(0.0, max(1.0, 100 * top))
    x = Scale(bins[0], bins[-1], LEFT, WIDTH - RIGHT)
    y = Scale(y_ticks[0], y_ticks[-1], HEIGHT - BOTTOM, TOP)
    marks = _frame(y, y_ticks, x_label, "% of pairs")
    for edge in bins[:: max(1, (len(bins) - 1) // 10)]:
        marks.append(text(x(edge), HEIGHT - BOTTOM + 16, f"{edge:.2g}", "num", "middle"))
    width = (x(bins[1]) - x(bins[0])) * 0.86 / len(shares)
    for place, (_, colour, values) in enumerate(shares):
        for left, value in zip(bins, values, strict=False):
            height = y(0.0) - y(100 * value)
            at = x(left) + (x(bins[1]) - x(bins[0])) * 0.07 + place * width
            marks.append(element("rect", x=at, y=y(100 * value), width=width, height=height, class_=f"bar {colour}"))
    marks += _legend([(name, colour) for name, colour, _ in shares])
    said = "; ".join(f"{name}: {100 * values[0]:.0f} % in the first bin" for name, _, values in shares)
    return drawing(WIDTH, HEIGHT, f"{label}. {said}", marks, class_="figure")


def _frame(y: Scale, y_ticks: Sequence[float], x_label: str, y_label: str) -> list[Markup]:
    spacing = y_ticks[1] - y_ticks[0]
    marks = [text(0, TOP - 12, y_label, "muted"), text(WIDTH - RIGHT, HEIGHT - 6, x_label, "muted", "end")]
    for value in y_ticks:
        marks.append(line(LEFT, y(value), WIDTH - RIGHT, y(value), "zero" if abs(value) < 1e-12 else "grid"))
        marks.append(text(LEFT - 6, y(value) + 4, number(value, spacing), "num", "end"))
    return marks


def _band(series: Series, x: Scale, y: Scale, place: Callable[[float], float]) -> list[Markup]:
    known = [p for p in series.points if not (math.isnan(p[2]) or math.isnan(p[3]))]
    if len(known) < 2:
        return []
    there = [f"{x(place(p[0])):.1f} {y(p[3]):.1f}" for p in known]
    back = [f"{x(place(p[0])):.1f} {y(p[2]):.1f}" for p in reversed(known)]
    return [element("path", d=f"M{'L'.join([*there, *back])}Z", class_=f"band {series.colour}")]


def _legend(entries: Sequence[tuple[str, str]]) -> list[Markup]:
    """Names in one or two rows above the drawing."""
    marks, at, row = [], 0.0, 12.0
    for name, colour in entries:
        if not name:
            continue
        wide = 22 + 6.4 * len(name)
        if at and at + wide > WIDTH:
            at, row = 0.0, row + 17
        marks.append(element("rect", x=at, y=row - 8, width=10.0, height=8.0, class_=f"key {colour}"))
        marks.append(text(at + 15, row, name))
        at += wide + 8
    return marks
