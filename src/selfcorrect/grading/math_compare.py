r"""When two answers are the same (floor 1): structure by our rules, scalars by the comparer that is handed in.

The same code runs in the trainer's process with the fast path's comparer, which may answer "cannot tell" (None), and
in a worker with math-verify's. Number of members, brackets, order and shape are therefore never left to a library.
"""

import re
from collections.abc import Callable, Iterable

from selfcorrect.grading.math_fast import compare_bases, number_of, squeeze
from selfcorrect.grading.math_normal import (
    ROW,
    Node,
    Unreadable,
    last_side,
    normalize,
    parse,
    readings,
    split_top,
    split_unit,
    word_key,
)

Scalar = Callable[[str, str], "bool | None"]

_INEQUALITY = re.compile(r"<|>|\\le(?![A-Za-z])|\\ge(?![A-Za-z])|\\ne(?![A-Za-z])")
_EQUALITY = re.compile(r"(?<![<>!])=|\\approx(?![A-Za-z])|\\simeq(?![A-Za-z])")
_APPROXIMATE = re.compile(r"\\approx(?![A-Za-z])|\\simeq(?![A-Za-z])")
_NAME = re.compile(r"[A-Za-z\\(),' _{}\d^]{1,16}")
_SAME_UNIT = {
    name: group[0]
    for group in (
        ("in", "inch", "inches"), ("ft", "foot", "feet"), ("yd", "yard", "yards"), ("mi", "mile", "miles"),
        ("mm", "millimeter", "millimeters"), ("cm", "centimeter", "centimeters", "centimetres"),
        ("m", "meter", "meters", "metre", "metres"), ("km", "kilometer", "kilometers", "kilometres"),
        ("s", "sec", "second", "seconds"), ("min", "minute", "minutes"), ("h", "hr", "hour", "hours", "hrs"),
        ("day", "days"), ("week", "weeks"), ("month", "months"), ("year", "years"), ("dollar", "dollars"),
        ("cent", "cents"), ("g", "gram", "grams"), ("kg", "kilogram", "kilograms"), ("lb", "lbs", "pound", "pounds"),
        ("oz", "ounce", "ounces"), ("degree", "degrees"), ("radian", "radians"), ("%", "percent"),
        ("mph", "mi h", "miles hour", "miles per hour"), ("kph", "kmh", "km h", "kilometers per hour"),
        ("m s", "meters second", "meters per second"), ("l", "liter", "liters", "litres"), ("ml", "milliliters"),
        ("gal", "gallon", "gallons"), ("qt", "quart", "quarts"), ("acre", "acres"), ("pint", "pints"),
    )
    for name in group
}  # fmt: skip


class BadGold(ValueError):  # noqa: N818 - says what was found
    """The reference answer cannot be read."""


def compare(gold: str, given: str, scalar: Scalar) -> bool | None:
    """Whether `given` states the answer `gold`; None where `scalar` could not tell.

    Raises BadGold where the gold answer is empty or cannot be split, Unreadable where `given` cannot be split.
    """
    left = check_gold(gold)
    right = normalize(given)
    if not right:
        return False
    if squeeze(left) == squeeze(right):
        return True
    if not _units_agree(left, right):
        return False
    return _any(_same(one, other, scalar) for one in readings(left) for other in readings(right))


def check_gold(gold: str) -> str:
    """The gold answer, normalised. Raises BadGold where it is empty or cannot be split."""
    try:
        text = normalize(gold)
        if text:
            readings(text)
    except Unreadable as error:
        raise BadGold(f"the gold answer {gold[:60]!r} cannot be read: {error}") from error
    if not text:
        raise BadGold("the gold answer is empty")
    return text


_OF_DAY = re.compile(r"[ap] ?m", re.IGNORECASE)


def _units_agree(left: str, right: str) -> bool:
    """False where both name a unit that we know, and not the same one."""
    units = [split_unit(text)[1] for text in (left, right)]
    if "" in units:
        return True
    names = [_SAME_UNIT.get(unit.partition("^")[0]) for unit in units]
    days = [_OF_DAY.fullmatch(unit) is not None for unit in units]
    if all(days):
        return units[0][0] == units[1][0]
    return _power(units[0]) == _power(units[1]) and (None in names or names[0] == names[1])


def _power(unit: str) -> int:
    """1 for a length, 2 for an area, 3 for a volume."""
    if unit.startswith(("cubic", "cu ")) or "^3" in unit or "^{3" in unit:
        return 3
    return 2 if unit.startswith(("square", "sq ")) or "^" in unit else 1


def _same(gold: Node, given: Node, scalar: Scalar) -> bool | None:
    if "words" in (gold.kind, given.kind):
        return _same_words(gold, given)
    if _is(gold, _INEQUALITY) or _is(given, _INEQUALITY):
        if _is_range(gold) and _is_range(given):
            return scalar(as_latex(gold), as_latex(given))
        return False
    if _is(given, _EQUALITY) and not _is(gold, _EQUALITY):
        return _same(gold, parse(last_side(given.text)), scalar)
    if _is(gold, _APPROXIMATE) and not _is(given, _EQUALITY):  # an inexact gold answer: either side will do
        return _any(_same(parse(side), given, scalar) for side in split_top(gold.text, _APPROXIMATE))
    if _is(gold, _EQUALITY) and not _is(given, _EQUALITY):
        name = split_top(gold.text, _EQUALITY)[0]
        return _NAME.fullmatch(name) is not None and _same(parse(last_side(gold.text)), given, scalar)
    if gold.kind != given.kind or (gold.text != given.text and gold.kind != "scalar"):
        return False
    if gold.kind == "scalar":
        return _same_scalar(gold.text, given.text, scalar)
    if len(gold.parts) != len(given.parts):
        return False
    if gold.kind in ("list", "union"):
        return _same_unordered(gold.parts, given.parts, scalar)
    return _all(_same(one, other, scalar) for one, other in zip(gold.parts, given.parts, strict=True))


def _is(node: Node, relation: re.Pattern[str]) -> bool:
    return node.kind == "scalar" and len(split_top(node.text, relation)) > 1


def _is_range(node: Node) -> bool:
    return _is(node, _INEQUALITY) or node.kind == "union" or (node.kind == "tuple" and len(node.parts) == 2)


def _same_words(gold: Node, given: Node) -> bool:
    keys = [
        node.text if node.kind == "words" else word_key(node.text)
        for node in (gold, given)
        if node.kind in ("words", "scalar") and "\\" not in node.text
    ]
    return len(keys) == 2 and keys[0] == keys[1] != ""


def _same_scalar(gold: str, given: str, scalar: Scalar) -> bool | None:
    """Where the gold answer is a literal number, so must the given one be: not a sum that is still to be done."""
    based = compare_bases(gold, given)
    if based is not None:
        return based
    value = number_of(gold)
    if value is None:
        return scalar(gold, given)
    if number_of(given) is None:
        return False
    bare_gold, bare_given = gold.rstrip("% "), given.rstrip("% ")
    if (bare_gold == gold) != (bare_given == given) and (bare_gold != gold or abs(value) >= 1):
        return _any(scalar(one, other) for one, other in ((gold, given), (bare_gold, bare_given)))
    return scalar(gold, given)


def _same_unordered(gold: tuple[Node, ...], given: tuple[Node, ...], scalar: Scalar) -> bool | None:
    """One to one in any order. Being equal is transitive, so taking the first match is no loss."""
    names = {split_top(node.text, _EQUALITY)[0].strip() for node in gold if _is(node, _EQUALITY)}
    if len(names) > 1 and not all(_is(node, _EQUALITY) for node in given):
        return False  # `x = 1, y = 2`: `1, 2` does not say which is which
    left = list(given)
    unknown = False
    for one in gold:
        for index, other in enumerate(left):
            same = _same(one, other, scalar)
            if same:
                del left[index]
                break
            unknown = unknown or same is None
        else:
            return None if unknown else False
    return True


def as_latex(node: Node) -> str:
    """The node as text again, for a comparison that no structure of ours covers."""
    if node.kind == "tuple":
        return node.text[0] + ",".join(as_latex(part) for part in node.parts) + node.text[1]
    if node.kind == "union":
        return r" \cup ".join(as_latex(part) for part in node.parts)
    return node.text.replace(ROW, r"\\")


def _all(results: Iterable[bool | None]) -> bool | None:
    unknown = False
    for result in results:
        if result is False:
            return False
        unknown = unknown or result is None
    return None if unknown else True


def _any(results: Iterable[bool | None]) -> bool | None:
    unknown = False
    for result in results:
        if result:
            return True
        unknown = unknown or result is None
    return None if unknown else False
