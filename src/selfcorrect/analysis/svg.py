"""Building inline SVG as text (pure). Every attribute and every piece of text is escaped here, once.

Colours never appear in the drawings: marks carry class names, and page.css gives them colours for both themes.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

SIZE = 11.5  # of text, in the drawing's units; drawings are made for about their own size on screen


def element(name: str, *children: Markup, **attributes: object) -> Markup:
    """An SVG element. `class_` gives class, underscores become hyphens, floats are cut to two places."""
    parts = [Markup("<"), Markup(name)]
    for key, value in attributes.items():
        shown = f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)
        parts.append(Markup(' {}="{}"').format(key.rstrip("_").replace("_", "-"), shown))
    return Markup("").join([*parts, Markup(">"), *children, Markup("</"), Markup(name), Markup(">")])


def text(x: float, y: float, content: str, class_: str = "", anchor: str = "start") -> Markup:
    return element("text", escape(content), x=x, y=y, class_=f"t {class_}".strip(), text_anchor=anchor)


def line(x1: float, y1: float, x2: float, y2: float, class_: str) -> Markup:
    return element("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=class_)


def drawing(width: float, height: float, label: str, children: Iterable[Markup], **attributes: object) -> Markup:
    """The outer svg: scales with its column, and carries its content in words for a screen reader."""
    return element(
        "svg",
        *children,
        viewBox=f"0 0 {width:g} {height:g}",
        width=f"{width:g}",
        height=f"{height:g}",
        role="img",
        aria_label=label,
        **attributes,
    )


def attempt_class(index: int, attempts: int, prefix: str) -> str:
    """The colour of attempt `index` (0, 1, ...): one of four, or, of more attempts, a step of a sequential scale."""
    if attempts <= 4:
        return f"{prefix}{index + 1}"
    return f"seq q{round(9 * index / (attempts - 1))}"


@dataclass(frozen=True, slots=True)
class Scale:
    """A linear map from data [low, high] to drawing units [start, end]."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        span = (self.high - self.low) or 1.0
        return self.start + (value - self.low) / span * (self.end - self.start)


def ticks(low: float, high: float, wanted: int = 4) -> list[float]:
    """About `wanted` round numbers that cover [low, high]; the first and last reach over its ends."""
    span = (high - low) or abs(high) or 1.0
    raw = span / max(1, wanted)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [k * step for k in range(first, max(last, first + 1) + 1)]  # two at least, also for one value


def number(value: float, spacing: float = 0.0) -> str:
    """A tick label with as many places as the spacing of the ticks needs: 21000 -> "21k"."""
    if value == 0 or abs(value) < 1e-12:
        return "0"
    if abs(value) >= 10_000:
        return f"{value / 1000:g}k".replace("-", "\N{MINUS SIGN}")
    if spacing and abs(value) >= 1e-4:
        # A step of 0.25 needs two places, though its power of ten has one.
        places = max(0, -math.floor(math.log10(spacing) + 1e-9))
        places += abs(round(spacing, places) - spacing) > spacing * 1e-6
        return f"{value:.{places}f}".replace("-", "\N{MINUS SIGN}")
    return f"{value:.3g}".replace("-", "\N{MINUS SIGN}")


def spread(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Positions near the wanted ones (ascending), at least `gap` apart, inside [low, high] if they fit."""
    placed: list[float] = []
    for value in wanted:
        placed.append(max(value, placed[-1] + gap if placed else low))
    limit = high
    for index in range(len(placed) - 1, -1, -1):
        placed[index] = min(placed[index], limit)
        limit = placed[index] - gap
    return placed
