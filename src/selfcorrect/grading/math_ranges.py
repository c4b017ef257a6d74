r"""Solved inequalities as intervals: `x<2 \text{ or } x>5` is `(-\infty,2) \cup (5,\infty)`.

Only what is solved is read: one variable alone, its bounds without it. `2x+1>5` is no answer where a set is asked for.
"""

import re
from fractions import Fraction
from itertools import pairwise

from selfcorrect.grading.math_fast import number_of
from selfcorrect.grading.math_normal import Node, split_top

INEQUALITY = re.compile(r"<|>|\\le(?![A-Za-z])|\\ge(?![A-Za-z])|\\ne(?![A-Za-z])")
_NAME = re.compile(r"\\?[A-Za-z]+(?:_\{?\w+\}?)?(?:\([A-Za-z]\))?")
_UP = {"<": "(", r"\le": "["}  # bound < x: how the interval opens
_DOWN = {">": "(", r"\ge": "["}
_CLOSED = {"(": ")", "[": "]"}
_MINUS, _PLUS = Node("scalar", r"-\infty"), Node("scalar", r"\infty")


def is_inequality(node: Node) -> bool:
    """Whether a relation other than equality stands outside every bracket."""
    return node.kind == "scalar" and len(split_top(node.text, INEQUALITY)) > 1


def has_inequality(node: Node) -> bool:
    """The same of the node or of a member of the list or union that it is."""
    return is_inequality(node) or (node.kind in ("list", "union") and any(map(is_inequality, node.parts)))


def is_set(node: Node) -> bool:
    r"""Whether the node can be a set of real numbers: an interval, a union, `\mathbb{R}`, or solved inequalities."""
    return (
        node.kind == "union"
        or (node.kind == "tuple" and len(node.parts) == 2)
        or (node.kind == "scalar" and node.text == r"\mathbb{R}")
        or bool(has_inequality(node) and ranges(node))
    )


def variable(node: Node) -> str:
    """The variable of solved inequalities; "" for an interval, which has none."""
    if is_inequality(node):
        found = _solved(node.text)
        return found[0] if found else ""
    names = {variable(part) for part in node.parts} - {""} if node.kind in ("list", "union") else set()
    return min(names, default="")


def ranges(node: Node) -> list[Node]:
    """The intervals or unions that a node can mean: none where it is no solved set; two for `x>2, x<5`."""
    if is_inequality(node):
        found = _solved(node.text)
        return [found[1]] if found else []
    if node.kind == "scalar" and node.text == r"\mathbb{R}":
        return [_interval("(", _MINUS, _PLUS, ")")]
    if node.kind == "tuple" and len(node.parts) == 2:
        return [node]
    if node.kind == "union" or (node.kind == "list" and (node.text == "or" or any(map(is_inequality, node.parts)))):
        if len({variable(part) for part in node.parts} - {""}) > 1:
            return []
        parts = [ranges(part) if part.kind in ("scalar", "tuple") else [] for part in node.parts]
        if not all(parts):
            return [node] if node.kind == "union" and not has_inequality(node) else []
        flat = [piece for (part,) in parts for piece in (part.parts if part.kind == "union" else (part,))]
        joined = [Node("union", "", tuple(flat))] if node.text != "and" else []
        return joined + (_common(node) if node.kind == "list" and node.text != "or" else [])
    return []


def _interval(opens: str, low: Node, high: Node, closes: str) -> Node:
    return Node("tuple", opens + closes, (low, high))


def _solved(text: str) -> tuple[str, Node] | None:
    """Variable and range of `x < 2`, `2 > x`, `1 < x \\le 3`, `x \\ne 2`."""
    sides = [side.strip() for side in split_top(text, INEQUALITY)]
    signs = _signs(text, sides)
    names = [side for side in sides if _NAME.fullmatch(side) and side != r"\infty"]
    if len(sides) == 2 and names:
        if sides[0] != names[0]:
            sides, signs = sides[::-1], [_turned(signs[0])]
        name, bound = sides[0], Node("scalar", sides[1])
        if not _is_bound(sides[1]):
            return None
        if signs[0] == r"\ne":
            return name, Node("union", "", (_interval("(", _MINUS, bound, ")"), _interval("(", bound, _PLUS, ")")))
        if signs[0] in _UP:  # x < bound
            return name, _interval("(", _MINUS, bound, _CLOSED[_UP[signs[0]]])
        return name, _interval(_DOWN[signs[0]], bound, _PLUS, ")")
    if len(sides) != 3 or not _NAME.fullmatch(sides[1]) or not all(map(_is_bound, sides[::2])):
        return None
    if all(sign in _DOWN for sign in signs):
        sides, signs = sides[::-1], [_turned(sign) for sign in reversed(signs)]
    if not all(sign in _UP for sign in signs):
        return None
    low, high = (Node("scalar", side) for side in sides[::2])
    return sides[1], _interval(_UP[signs[0]], low, high, _CLOSED[_UP[signs[1]]])


def _signs(text: str, sides: list[str]) -> list[str]:
    found, position = [], 0
    for side in sides[:-1]:
        match = INEQUALITY.search(text, text.index(side, position) + len(side)) if side else INEQUALITY.search(text)
        if match:
            found.append(match[0])
            position = match.end()
    return found


def _turned(sign: str) -> str:
    return {"<": ">", ">": "<", r"\le": r"\ge", r"\ge": r"\le"}.get(sign, sign)


def _is_bound(side: str) -> bool:
    """Whether a side is there, and holds no variable."""
    return side != "" and re.search(r"(?<![\\A-Za-z])[A-Za-z]", re.sub(r"\\[A-Za-z]+", " ", side)) is None


def _common(node: Node) -> list[Node]:
    r"""What all of `x>2, x<5` or `x \ne 2, x \ne 3` hold: two rays, or numbers that are left out."""
    solved = [found for part in node.parts if is_inequality(part) and (found := _solved(part.text))]
    if len(solved) != len(node.parts):
        return []
    spans = [span for _, span in solved]
    if all(span.kind == "union" for span in spans):
        points: list[tuple[Fraction, Node]] = []
        for span in spans:
            value = number_of(span.parts[1].parts[0].text)
            if value is None:
                return []
            points.append((value, span.parts[1].parts[0]))
        edges = [_MINUS, *(bound for _, bound in sorted(points, key=lambda point: point[0])), _PLUS]
        return [Node("union", "", tuple(_interval("(", *pair, ")") for pair in pairwise(edges)))]
    low = [span for span in spans if span.kind == "tuple" and span.parts[1] == _PLUS and span.parts[0] != _MINUS]
    high = [span for span in spans if span.kind == "tuple" and span.parts[0] == _MINUS and span.parts[1] != _PLUS]
    if len(low) == len(high) == 1 and len(spans) == 2:
        return [_interval(low[0].text[0], low[0].parts[0], high[0].parts[1], high[0].text[1])]
    return []
