"""The two pictures of an evaluation as SVG (floor 5; pure): accuracy by attempt, and the flow of answers."""

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from selfcorrect.metrics import Summary
from selfcorrect.report.svg import Scale, drawing, element, line, spread, text, ticks
from selfcorrect.report.wording import percent, points


@dataclass(frozen=True, slots=True)
class Band:
    """One stream of answers from attempt 1 to the last: its colour class, name, share and count."""

    kind: str
    name: str
    share: float
    count: int


def bands(summary: Summary) -> tuple[Band, ...]:
    """The four streams, from the summary alone: what is not fixed or broken stayed as it was."""
    first = summary.accuracy[0].value
    shares = {
        "kept_right": ("stays right", first - summary.broken.value),
        "fixed": ("wrong to right", summary.fixed.value),
        "broken": ("right to wrong", summary.broken.value),
        "kept_wrong": ("stays wrong", 1 - first - summary.fixed.value),
    }
    return tuple(
        Band(kind, name, max(0.0, share), max(0, round(share * summary.n))) for kind, (name, share) in shares.items()
    )


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


def flow_picture(label: str, summary: Summary) -> Markup:
    """Answers right and wrong at attempt 1 (left), where they are at the last attempt (right)."""
    width, top, scale, gap = 360.0, 30.0, 162.0, 14.0  # scale: the height of all answers
    x0, x1, bar = 74.0, 226.0, 7.0
    share = {band.kind: band.share for band in bands(summary)}
    right_first, right_last = share["kept_right"] + share["broken"], share["kept_right"] + share["fixed"]
    wrong_first, wrong_last = top + right_first * scale + gap, top + right_last * scale + gap
    starts = {
        "kept_right": (top, top),
        "broken": (top + share["kept_right"] * scale, wrong_last),
        "fixed": (wrong_first, top + share["kept_right"] * scale),
        "kept_wrong": (wrong_first + share["fixed"] * scale, wrong_last + share["broken"] * scale),
    }
    children = [
        text(x0 + bar, 12, "attempt 1", "muted", "end"),
        text(x1 - bar, 12, f"attempt {len(summary.accuracy)}", "muted"),
    ]
    for kind in ("kept_right", "kept_wrong", "broken", "fixed"):  # the changes on top, as they are the point
        children.append(_ribbon((x0 + bar, x1 - bar), starts[kind], share[kind] * scale, kind))
    nodes = ((right_first, right_last, top, top), (1 - right_first, 1 - right_last, wrong_first, wrong_last))
    for (first, last, y_first, y_last), name in zip(nodes, ("right", "wrong"), strict=True):
        children.append(element("rect", x=x0, y=y_first, width=bar, height=first * scale, class_=f"node {name}"))
        children.append(element("rect", x=x1 - bar, y=y_last, width=bar, height=last * scale, class_=f"node {name}"))
    middles = spread([y + n * scale / 2 - 2 for n, _, y, _ in nodes], 34, top + 4, top + scale + gap - 8)
    for middle, (first, *_), name in zip(middles, nodes, ("right", "wrong"), strict=True):
        children += [
            text(x0 - 8, middle, name, "strong", "end"),
            text(x0 - 8, middle + 14, f"{percent(first)} %", "num", "end"),
        ]
    wanted = [starts[band.kind][1] + band.share * scale / 2 + 1 for band in bands(summary)]
    children += _flow_labels(summary, wanted, x1, top + 6, top + scale + gap - 10)
    said = ", ".join(f"{band.name} {percent(band.share)} % ({band.count})" for band in bands(summary))
    return drawing(width, top + scale + gap + 12, f"Flow of answers, {label}: {said}", children, class_="flow")


def _flow_labels(summary: Summary, wanted: Sequence[float], x: float, low: float, high: float) -> list[Markup]:
    """Names, shares and counts to the right, each beside its ribbon's end, pushed apart where they would touch."""
    marks: list[Markup] = []
    for y, want, band in zip(spread(wanted, 33, low, high), wanted, bands(summary), strict=True):
        marks.append(element("path", d=f"M{x + 2:.1f} {want - 1:.1f}L{x + 12:.1f} {y + 1:.1f}", class_="leader"))
        marks.append(text(x + 16, y, f"{percent(band.share)} %", f"strong of-{band.kind}"))
        marks.append(text(x + 16, y + 14, f"{band.name} · {band.count:,}", "muted"))
    return marks


def _ribbon(x: tuple[float, float], y: tuple[float, float], thick: float, kind: str) -> Markup:
    (x0, x1), (y0, y1) = x, y
    middle = (x0 + x1) / 2
    path = (
        f"M{x0:.1f} {y0:.1f}C{middle:.1f} {y0:.1f} {middle:.1f} {y1:.1f} {x1:.1f} {y1:.1f}"
        f"V{y1 + thick:.1f}C{middle:.1f} {y1 + thick:.1f} {middle:.1f} {y0 + thick:.1f} {x0:.1f} {y0 + thick:.1f}Z"
    )
    return element("path", d=path, class_=f"ribbon {kind}")
