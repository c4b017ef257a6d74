r"""When two answers are the same: structure by our rules, scalars by the comparer that is handed in.

The same code runs in the trainer's process with the fast path's comparer, which may answer "cannot tell" (None), and
in a worker with math-verify's. Number of members, brackets, order and shape are therefore never left to a library.
"""

import re
from collections.abc import Callable, Iterable

from selfcorrect.grading.math_fast import compare_bases, number_of, squeeze
from selfcorrect.grading.math_form import work_left
from selfcorrect.grading.math_normal import (
    APPROX,
    MAX_ANSWER,
    Node,
    Unreadable,
    last_side,
    normalize,
    parse,
    readings,
    split_top,
    word_key,
)
from selfcorrect.grading.math_ranges import has_inequality, is_inequality, is_set, ranges, variable
from selfcorrect.grading.math_units import generic, gold_units, split_unit, units_agree

Scalar = Callable[[str, str], "bool | None"]

_EQUALITY = re.compile(r"(?<![<>!])=|\\approx(?![A-Za-z])|\\simeq(?![A-Za-z])")
_NAME = re.compile(r"[A-Za-z\\(),' _{}\d^]{1,16}")
_BARE_NAME = re.compile(r"\\?[A-Za-z]+(?:_\{?\w+\}?)?(?:\([A-Za-z\d]\))?|\\(?:angle|overline)\s*\{?\s*[A-Z]+\s*\}?")
_LONE_UNIT = re.compile(r"(?:(?<=[\d}])|(?<=\d/)|(?<=\d /)) ([mgshlL]) ?(\^[23])?\Z")  # `5 m`, `5/ m ^2`


class BadGold(ValueError):  # noqa: N818 - says what was found
    """The reference answer cannot be read."""


def compare(gold: str, given: str, scalar: Scalar, units: frozenset[str] = frozenset()) -> bool | None:
    """Whether `given` states the answer `gold`; None where `scalar` could not tell.

    units: words that the problem counts (asked_units).
    Raises BadGold where the gold answer is empty or cannot be split, Unreadable where `given` cannot be split.
    """
    named = gold_units(gold)
    if not re.search(r"[A-Za-z]", re.sub(r"\\[A-Za-z]+", "", gold)):
        named |= units  # `7 million` is never 7 where the gold answer itself says million
    left = check_gold(generic(gold, named))
    if len(given) > MAX_ANSWER:  # before a regular expression sees it
        raise Unreadable(f"longer than {MAX_ANSWER} characters")
    right = normalize(generic(given, named))
    if not re.search(r"[A-Za-z]", left):
        right = _LONE_UNIT.sub(r"\\text{\1}\2", right)
    if not right:
        return False
    if squeeze(left) == squeeze(right):
        return True
    if not units_agree(split_unit(left)[1], split_unit(right)[1]):
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


def _same(gold: Node, given: Node, scalar: Scalar) -> bool | None:
    if _is(given, _EQUALITY) and not _is(gold, _EQUALITY) and not is_inequality(given):
        return _any(_same(gold, side, scalar) for side in _stated(given.text, gold))
    if "words" in (gold.kind, given.kind):
        return _same_words(gold, given)
    if has_inequality(gold) or has_inequality(given) or (is_set(gold) and gold.kind != given.kind):
        return _same_range(gold, given, scalar)
    if _is(gold, APPROX) and not _is(given, _EQUALITY):  # an inexact gold answer: either side will do
        return _any(_same(parse(side), given, scalar) for side in split_top(gold.text, APPROX))
    if _is(gold, _EQUALITY) and not _is(given, _EQUALITY):
        name = split_top(gold.text, _EQUALITY)[0]
        return _NAME.fullmatch(name) is not None and _same(parse(last_side(gold.text)), given, scalar)
    return _same_parts(gold, given, scalar)


def _stated(text: str, gold: Node) -> list[Node]:
    r"""What an equality states where no equality is asked for: its last side, of `\approx` the exact one.

    Where the exact side is a name (`x \approx 14.3`), or the gold answer is a decimal and the exact side is still to be
    worked out (`\sqrt{205} \approx 14.3`), it is the rounded one.
    """
    rounded = split_top(text, APPROX)
    exact = parse(last_side(text))
    if len(rounded) > 1:
        inexact = "." in gold.text and number_of(gold.text) is not None and number_of(exact.text) is None
        if _BARE_NAME.fullmatch(exact.text) or (exact.kind == "scalar" and inexact):
            return [parse(rounded[-1])]
    return [exact]


def _is(node: Node, relation: re.Pattern[str]) -> bool:
    return node.kind == "scalar" and len(split_top(node.text, relation)) > 1


def _same_range(gold: Node, given: Node, scalar: Scalar) -> bool | None:
    """Sets of numbers: solved inequalities count as intervals; what is not solved equals only another such relation."""
    if is_inequality(gold) and not ranges(gold):
        return is_inequality(given) and scalar(gold.text, given.text)
    ours, theirs = ranges(gold), ranges(given)
    if not ours or not theirs:
        both = gold.kind == given.kind == "list" and has_inequality(gold) and has_inequality(given)
        return both and _same_parts(gold, given, scalar)
    if "" not in (variable(gold), variable(given)) and variable(gold) != variable(given):
        return False
    return _any(_same_parts(one, other, scalar) for one in ours for other in theirs)


def _same_parts(gold: Node, given: Node, scalar: Scalar) -> bool | None:
    if gold.kind != given.kind or (gold.text != given.text and gold.kind not in ("scalar", "list")):
        return False
    if gold.kind == "scalar":
        return _same_scalar(gold.text, given.text, scalar)
    if len(gold.parts) != len(given.parts):
        return False
    if gold.kind in ("list", "union"):
        return _same_unordered(gold.parts, given.parts, scalar)
    return _all(_same(one, other, scalar) for one, other in zip(gold.parts, given.parts, strict=True))


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
        return not work_left(gold, given) and scalar(gold, given)
    if number_of(given) is None:
        return False
    bare_gold, bare_given = gold.rstrip("% "), given.rstrip("% ")
    if bare_given != given and bare_gold == gold and abs(value) > 1:
        return scalar(gold, bare_given)  # `12%` names a unit; `1200%` is another way of writing that nobody asks for
    if (bare_gold == gold) != (bare_given == given) and (bare_gold != gold or abs(value) == 1):
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
