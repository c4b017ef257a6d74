"""Where the answers go: right or wrong, the same answer or another, from attempt 1 to the last."""

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from selfcorrect.analysis.figure import Figure
from selfcorrect.analysis.svg import drawing, element, spread, text
from selfcorrect.evaluation.metrics import is_unchanged
from selfcorrect.types import Rollout

_TOP, _HEIGHT, _GAP, _X0, _X1, _BAR = 34.0, 210.0, 16.0, 82.0, 270.0, 8.0


@dataclass(frozen=True, slots=True)
class Stream:
    """Answers that go the same way. kind: its colour; same: whether the answer stays."""

    key: str
    name: str
    kind: str
    same: bool
    count: int


def streams(rollouts: Sequence[Rollout]) -> tuple[Stream, ...]:
    """The six ways; every rollout takes one. A right answer that is written another way counts as another."""
    kinds = (
        ("right_same", "stays right, same answer", "kept_right", True, True, True),
        ("right_other", "stays right, another answer", "kept_right", True, True, False),
        ("fixed", "wrong to right", "fixed", False, True, False),
        ("broken", "right to wrong", "broken", True, False, False),
        ("wrong_other", "stays wrong, another answer", "kept_wrong", False, False, False),
        ("wrong_same", "stays wrong, same answer", "kept_wrong", False, False, True),
    )
    went = [(r.attempts[0].grade.correct, r.attempts[-1].grade.correct, is_unchanged(r)) for r in rollouts]
    found = []
    for key, name, kind, first, last, same in kinds:
        count = sum((a, b) == (first, last) and (first != last or stays == same) for a, b, stays in went)
        found.append(Stream(key, name, kind, same, count))
    return tuple(found)


def flow_figure(label: str, rollouts: Sequence[Rollout], name: str = "flow") -> Figure | None:
    """The picture and its numbers; None where there is one attempt only."""
    rollouts = [each for each in rollouts if len(each.attempts) > 1]
    if not rollouts:
        return None
    found, n = streams(rollouts), len(rollouts)
    numbers = [{"stream": s.key, "count": s.count, "share": s.count / n} for s in found]
    caption = (
        f"n = {n:,} problems, from attempt 1 (left) to attempt {len(rollouts[0].attempts)} (right). "
        "Faint: the answer stays the same."
    )
    return Figure(name, f"Where the answers go: {label}", caption, flow_drawing(label, found), numbers)


def flow_drawing(label: str, found: Sequence[Stream]) -> Markup:
    """Ribbons whose height is a stream's share; right answers above, wrong ones below."""
    n = max(1, sum(s.count for s in found))
    share = {s.key: s.count / n for s in found}
    left = _stack(share, (("right_same", "right_other", "broken"), ("fixed", "wrong_other", "wrong_same")))
    right = _stack(share, (("right_same", "right_other", "fixed"), ("broken", "wrong_other", "wrong_same")))
    marks = [text(_X0 + _BAR, 14, "attempt 1", "muted", "end"), text(_X1 - _BAR, 14, "last attempt", "muted")]
    order = ("right_same", "wrong_same", "right_other", "wrong_other", "broken", "fixed")  # the changes on top
    by_key = {s.key: s for s in found}
    for key in order:
        stream = by_key[key]
        marks.append(
            _ribbon(left[key], right[key], share[key] * _HEIGHT, f"{stream.kind}{' same' if stream.same else ''}")
        )
    marks += _nodes(share)
    listed = sorted(found, key=lambda s: right[s.key])
    middles = [right[s.key] + share[s.key] * _HEIGHT / 2 for s in listed]
    for y, want, stream in zip(spread(middles, 34, _TOP, _TOP + _HEIGHT + _GAP), middles, listed, strict=True):
        marks.append(element("path", d=f"M{_X1 + 2:.1f} {want:.1f}L{_X1 + 14:.1f} {y:.1f}", class_="leader"))
        marks.append(text(_X1 + 18, y + 1, f"{100 * share[stream.key]:.1f} %", "strong"))
        marks.append(text(_X1 + 18, y + 15, f"{stream.name} · {stream.count:,}", "muted"))
    said = ", ".join(f"{s.name} {100 * share[s.key]:.1f} % ({s.count})" for s in found)
    return drawing(500, _TOP + _HEIGHT + _GAP + 26, f"Flow of answers, {label}: {said}", marks, class_="flow")


def _stack(share: dict[str, float], groups: Sequence[Sequence[str]]) -> dict[str, float]:
    """The upper edge of every stream on one side."""
    edges, y = {}, _TOP
    for group in groups:
        for key in group:
            edges[key] = y
            y += share[key] * _HEIGHT
        y += _GAP
    return edges


def _nodes(share: dict[str, float]) -> list[Markup]:
    kept = share["right_same"] + share["right_other"]
    marks = []
    for x, right in ((_X0, kept + share["broken"]), (_X1 - _BAR, kept + share["fixed"])):
        marks.append(element("rect", x=x, y=_TOP, width=_BAR, height=right * _HEIGHT, class_="node right"))
        low = _TOP + right * _HEIGHT + _GAP
        marks.append(element("rect", x=x, y=low, width=_BAR, height=(1 - right) * _HEIGHT, class_="node wrong"))
    first = kept + share["broken"]
    wanted = [_TOP + first * _HEIGHT / 2, _TOP + first * _HEIGHT + _GAP + (1 - first) * _HEIGHT / 2]
    placed = spread(wanted, 34, _TOP + 6, _TOP + _HEIGHT + _GAP)
    for y, name, value in zip(placed, ("right", "wrong"), (first, 1 - first), strict=True):
        marks += [text(_X0 - 8, y, name, "strong", "end"), text(_X0 - 8, y + 14, f"{100 * value:.1f} %", "num", "end")]
    return marks


def _ribbon(y0: float, y1: float, thick: float, kind: str) -> Markup:
    x0, x1 = _X0 + _BAR, _X1 - _BAR
    middle = (x0 + x1) / 2
    path = (
        f"M{x0:.1f} {y0:.1f}C{middle:.1f} {y0:.1f} {middle:.1f} {y1:.1f} {x1:.1f} {y1:.1f}V{y1 + thick:.1f}"
        f"C{middle:.1f} {y1 + thick:.1f} {middle:.1f} {y0 + thick:.1f} {x0:.1f} {y0 + thick:.1f}Z"
    )
    return element("path", d=path, class_=f"ribbon {kind}")
