"""Curves over training as SVG (pure): the raw values faint, their mean over nearby steps on top."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from markupsafe import Markup

from selfcorrect.analysis.svg import SIZE, Scale, drawing, element, line, number, text, ticks
from selfcorrect.report.load import Step

WIDTH, LEFT, RIGHT, TOP, BOTTOM = 360.0, 42.0, 8.0, 38.0, 34.0
_SMALL = 0.01  # labels of less have four places or more
_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
MAX_POINTS = 240  # of one line; more would only make the page heavier

Value = Callable[[Step], float]


@dataclass(frozen=True, slots=True)
class Line:
    """One quantity: its name in the legend, its colour class, and how to read it from a step."""

    name: str
    colour: str
    value: Value


@dataclass(frozen=True, slots=True)
class Curve:
    """A finished chart and what stands around it."""

    title: str
    lines: tuple[Line, ...]
    svg: Markup


def reader(key: str, index: int = 0, scale: float = 1.0) -> Value:
    """How to read one entry of a metric; NaN where a step lacks it."""

    def value(step: Step) -> float:
        entries = step.series.get(key, ())
        return entries[index] * scale if index < len(entries) else math.nan

    return value


def window(steps: int) -> int:
    """How many steps one point of the smooth line is the mean of; odd, so that it is centred."""
    return max(1, steps // 25) | 1


def smooth(values: Sequence[float], stages: Sequence[str], width: int) -> list[float]:
    """The mean over `width` steps around each step, of the same stage: a stage's start is never blurred."""
    half = width // 2
    result = []
    for i, stage in enumerate(stages):
        near = range(max(0, i - half), min(len(values), i + half + 1))
        known = [values[j] for j in near if stages[j] == stage and not math.isnan(values[j])]
        result.append(sum(known) / len(known) if known else math.nan)
    return result


def boundaries(steps: Sequence[Step]) -> list[tuple[int, str]]:
    """The first step of every stage, with its name."""
    return [(s.step, s.stage) for i, s in enumerate(steps) if i == 0 or steps[i - 1].stage != s.stage]


def curve(title: str, unit: str, lines: Sequence[Line], steps: Sequence[Step], height: float = 222.0) -> Curve | None:
    """The chart of these lines; None where no step has any of them. Lines without values are left out.

    Where all values are small, the axis counts a power of ten of the unit, so that its labels are short.
    """
    series = {ln: [ln.value(s) for s in steps] for ln in lines}
    present = tuple(ln for ln in lines if any(not math.isnan(v) for v in series[ln]))
    if not present:
        return None
    stages = [s.stage for s in steps]
    smoothed = {ln: smooth(series[ln], stages, window(len(steps))) for ln in present}
    y_ticks = _range([v for ln in present for v in series[ln]], [v for ln in present for v in smoothed[ln]])
    if power := _power(max(map(abs, y_ticks))):
        larger = [replace(ln, value=_times(ln.value, 10.0**power)) for ln in present]
        return curve(title, f"{unit} \N{MULTIPLICATION SIGN} 10{str(-power).translate(_RAISED)}", larger, steps, height)
    x = Scale(steps[0].step, max(steps[-1].step, steps[0].step + 1), LEFT, WIDTH - RIGHT)
    y = Scale(y_ticks[0], y_ticks[-1], height - BOTTOM, TOP)
    children = [*_axes(x, y, y_ticks, unit, height), *_stages(boundaries(steps), x, height)]
    numbers = [s.step for s in steps]
    for ln in present:
        children += _path(_thin(numbers, series[ln], stages), x, y, f"raw {ln.colour}")
    for ln in present:
        children += _path(_thin(numbers, smoothed[ln], stages), x, y, f"smooth {ln.colour}", name=ln.name)
    svg = drawing(WIDTH, height, _in_words(title, unit, present, smoothed), children, **_domain(x, y))
    return Curve(title, present, svg)


def _power(most: float) -> int:
    """3, 6, ...: of ten, that brings the largest value to an axis between 1 and 1,000; 0 where it can stay."""
    return 0 if most >= _SMALL else 3 * math.ceil(-math.log10(most) / 3)


def _times(value: Value, factor: float) -> Value:
    return lambda step: value(step) * factor


def _in_words(title: str, unit: str, lines: Sequence[Line], smoothed: dict[Line, list[float]]) -> str:
    ends = []
    for ln in lines:
        known = [v for v in smoothed[ln] if not math.isnan(v)]
        ends.append(f"{ln.name} goes from {number(known[0])} to {number(known[-1])}")
    return f"{title}, {unit}: {'; '.join(ends)}"


def _domain(x: Scale, y: Scale) -> dict[str, str]:
    """What page.js needs to turn a place in the drawing back into values."""
    return {
        "class_": "curve",
        "data_x": f"{x.low} {x.high} {x.start} {x.end}",
        "data_y": f"{y.low} {y.high} {y.start} {y.end}",
    }


def _range(raw: Sequence[float], smoothed: Sequence[float]) -> list[float]:
    """Ticks over the smooth lines and nearly all raw values: one wild step must not flatten the curve."""
    known = sorted(v for v in raw if not math.isnan(v))
    cut = len(known) // 200
    seen = known[cut : len(known) - cut] + [v for v in smoothed if not math.isnan(v)]
    low, high = min(seen), max(seen)
    if high == low:
        low, high = min(low, 0.0), (high or 1.0)
    elif 0 < low < 0.4 * high:
        low = 0.0
    return ticks(low, high)


def _axes(x: Scale, y: Scale, y_ticks: Sequence[float], unit: str, height: float) -> list[Markup]:
    spacing = y_ticks[1] - y_ticks[0]
    marks = [text(0, 10, unit, "muted")]
    for value in y_ticks:
        marks.append(line(LEFT, y(value), WIDTH - RIGHT, y(value), "zero" if abs(value) < 1e-12 else "grid"))
        marks.append(text(LEFT - 6, y(value) + 4, number(value, spacing), "num", "end"))
    for value in ticks(x.low, x.high, 4):
        if x.low <= value <= x.high and value == int(value):
            marks.append(text(x(value), height - BOTTOM + 16, f"{int(value):,}", "num", "middle"))
    marks.append(text(WIDTH - RIGHT, height - 3, "training step", "muted", "end"))
    return marks


def _stages(starts: Sequence[tuple[int, str]], x: Scale, height: float) -> list[Markup]:
    marks: list[Markup] = []
    ends = [step for step, _ in starts[1:]] + [x.high]
    for (start, name), end in zip(starts, ends, strict=True):
        room = int((x(end) - x(start)) / (SIZE * 0.56))
        if start > x.low:
            marks.append(line(x(start), TOP - 14, x(start), height - BOTTOM, "stage"))
        label = name if len(name) <= room else f"{name[: room - 1]}…"
        if room >= 4:
            marks.append(text(x(start) + (4 if start > x.low else 0), TOP - 6, label, "stage-name"))
    return marks


def _thin(steps: Sequence[int], values: Sequence[float], stages: Sequence[str]) -> list[list[tuple[float, float]]]:
    """Runs of points: means of neighbouring steps so that a line stays light; broken at gaps and at stage bounds."""
    size = math.ceil(len(steps) / MAX_POINTS)
    runs: list[list[tuple[float, float]]] = [[]]
    bin_: list[tuple[float, float]] = []

    def close() -> None:
        if bin_:
            runs[-1].append((sum(p[0] for p in bin_) / len(bin_), sum(p[1] for p in bin_) / len(bin_)))
            bin_.clear()

    for i, (step, value) in enumerate(zip(steps, values, strict=True)):
        if math.isnan(value) or (i and stages[i] != stages[i - 1]):
            close()
            runs.append([])
        if not math.isnan(value):
            bin_.append((step, value))
            if len(bin_) >= size:
                close()
    close()
    return [run for run in runs if run]


def _path(runs: list[list[tuple[float, float]]], x: Scale, y: Scale, class_: str, name: str = "") -> list[Markup]:
    """One path for all runs; values outside the axis are drawn at its edge."""
    low, high = sorted((y.start, y.end))
    parts = []
    for run in runs:
        dots = [f"{x(a):.1f} {min(high, max(low, y(b))):.1f}" for a, b in run]
        parts.append(f"M{'L'.join(dots if len(dots) > 1 else dots * 2)}")
    extra = {"data_name": name} if name else {}
    return [element("path", d="".join(parts), class_=class_, **extra)] if parts else []
