r"""Whether a right answer is the problem's own words: boxing a piece of the statement is no work.

An answer that stands in the problem where the gold answer does not is refused: the expression to be worked out, the
inequality to be solved, the fraction to be reduced, the equation whose last side happens to be right. It is recognised
in another order, with other spaces and brackets, and with additions that change nothing (`+0`, `\cdot 1`).
"""

import re
from collections.abc import Iterator
from fractions import Fraction
from functools import lru_cache
from math import gcd
from typing import NamedTuple

from selfcorrect.grading.math_fast import number_of, squeeze, terms_of
from selfcorrect.grading.math_latex import AND, OR, clean
from selfcorrect.grading.math_normal import Unreadable, closes_at_end, normalize, readings, split_top
from selfcorrect.grading.math_units import split_unit

MAX_PIECE = 2000  # characters of a statement's formula that is looked at
_FORMULA = re.compile(
    r"\\\$|\$\$(.+?)\$\$|\$((?:[^$\\]|\\.)+)\$|\\\[(.+?)\\\]|\\\((.+?)\\\)|\\begin\{(?:align|equation|gather)\*?\}(.+?)\\end",
    re.DOTALL,
)
_DRAWING = re.compile(r"\[asy\].*?(?:\[/asy\]|\Z)", re.DOTALL)
_PLAIN = re.compile(  # a formula in plain words: 14/21, 54 * 46, sqrt(720)
    r"(?:\\[A-Za-z]+|sqrt|\d[\d.,]*|[-+*/^=<>(){}\[\]_%!\u00d7\u00f7\u2212\u221a]|(?<![A-Za-z'])[A-Za-z](?![A-Za-z'])|\s)+"
)
_JOINT = re.compile(rf"[,;{OR}{AND}]|\\text\s*\{{[^{{}}]*\}}|\\q?quad|\\\\|&|\ue000")
_COMMA = re.compile("[,;]")
_RELATION = re.compile(r"=|\\approx(?![A-Za-z])|<|>|\\(?:le|ge|ne|in|equiv)(?![A-Za-z])")
_EQUALITY = re.compile(r"=|\\approx(?![A-Za-z])")
_NUMBER = re.compile(
    r"\d*\.\d*\\overline\s*\{?\s*\d+\s*\}?|(?:(?<!\d)\d+\s*)?\\frac\s*\{\s*\d+\s*\}\s*\{\s*\d+\s*\}%?|\d+\s*/\s*\d+%?|(?:\d+(?:\.\d+)?|\.\d+)%?"
)
_TOKEN = re.compile(r"\\[A-Za-z]+|\d+(?:\.\d+)?|\.\d+|[A-Za-z]|[-!|%<>=:]")
_NEUTRAL = re.compile(
    r"(?<![\d.}^_])1\s*(?:\\cdot(?![A-Za-z])|\*)\s*|\s*(?:\\cdot(?![A-Za-z])|\*)\s*1(?![\d.])|[-+]\s*0(?!\s*[\d.A-Za-z\\({^_])|(?<![\d.^_])0\s*\+"
    r"|/\s*1(?![\d.])|\^\s*(?:1(?!\d)|\{\s*1\s*\})"
)
_SILENT = frozenset((r"\cdot", r"\frac", r"\text", r"\left", r"\right", r"\displaystyle"))
_ROOT = re.compile(r"\^\s*\{?\s*(?:\\frac\s*\{\s*1\s*\}\s*\{\s*2\s*\}|1\s*/\s*2|0?\.5)\s*\}?")
_OPERATION = re.compile(r"[-+*/^!|(]|\\(?!text|pi(?![A-Za-z])|infty)[A-Za-z]+|\d[A-Za-z]|[A-Za-z]{2}")
_CONVERTED = re.compile(
    r"express|write|convert|simplif|reduc|lowest|simplest|fraction|decimal|percent|evaluate|compute|calculate|mixed",
    re.IGNORECASE,
)

Key = tuple[str, ...]


class _Statement(NamedTuple):
    """What stands in a problem: pieces as they are written, their tokens, the sides of relations, and numbers."""

    exact: set[str]
    keys: set[Key]
    relations: set[frozenset[Key]]
    numbers: set[str]
    formulas: list[str]  # longest first


def copied(problem: str, ours: str, theirs: str) -> str:
    """What `theirs`, of the value of the gold answer `ours`, copies from `problem`; "" for nothing. Both normalised."""
    if squeeze(_bare(ours)) == squeeze(_bare(theirs)):
        return ""
    told = _statement(problem)
    theirs = _undressed(theirs)
    if _relation_copied(told, ours, theirs):
        return "copies a relation of the problem"
    if _is_copy(told, problem, ours, split_top(theirs, _EQUALITY)[-1] if len(_sides(ours)) == 1 else theirs):
        return "copies an expression of the problem"
    mine = set(map(_key, _members(ours)))
    parts = [part for part in _members(theirs) if number_of(part) is None and _key(part) not in mine]
    return "copies an expression of the problem" if any(_stands(told, part) for part in parts) else ""


def dressings(problem: str, gold: str, given: str) -> tuple[str, ...]:
    """`given` and its members with `Q` for a formula of the problem that the gold answer does not hold.

    Where one of these is worth Q whatever Q is, the formula is the whole answer and the rest is its dress.
    """
    if not problem:
        return ()
    try:
        ours, theirs = squeeze(normalize(gold)), split_top(_undressed(normalize(given)), _EQUALITY)[-1]
        parts = [squeeze(part) for part in (theirs, *_members(theirs))]
    except Unreadable:
        return ()
    own = _key(ours)
    held = [formula for formula in _statement(problem).formulas if formula not in ours and formula in "\n".join(parts)]
    found = [part.replace(formula, "(Q)") for formula in held[:8] if _key(formula) != own for part in parts]
    return tuple(dict.fromkeys(rest for rest in found if "(Q)" in rest))


def _relation_copied(told: _Statement, gold: str, given: str) -> bool:
    """Whether a relation of the problem is the given one, a part of it (`x = 3a = 12`), or its last two sides."""
    equal = split_top(given, _EQUALITY)
    last = "=".join(equal[-2:])
    found = {sides for text in (given, last, *equal) if len(sides := _sides(text)) > 1} - {_sides(gold)}
    return any(sides <= relation for sides in found for relation in told.relations)


def _undressed(text: str) -> str:
    """Without parentheses around it all, and without additions that change nothing."""
    for _ in range(4):
        text = _NEUTRAL.sub(" ", text).strip(" ,;.")
        if text[:2] + text[-2:] == r"\{\}":  # a set of one
            text = f"({text[2:-2]})"
        if (
            not (text[:1] + text[-1:] in ("()", "{}") and closes_at_end(text))
            or len(split_top(text[1:-1].rstrip(" ,;."), _COMMA)) > 1
        ):
            break
        text = text[1:-1]
    return text


def _is_copy(told: _Statement, problem: str, gold: str, given: str) -> bool:
    gold, given = _bare(gold), _bare(given)
    if _key(gold) == _key(given):
        return False
    if number_of(given) is None:
        return _stands(told, given) and not (_OPERATION.search(gold) and squeeze(gold) in told.exact)
    ours, theirs = _literal(gold), _literal(given)
    if (
        ours.rstrip("%") == theirs.rstrip("%")  # the sign is only the unit of a percentage
        or theirs not in told.numbers
        or number_of(gold) is None
        or (ours in told.numbers and not ours.isdigit())
    ):
        return False
    return _unreduced(given) or _CONVERTED.search(problem) is not None


def _stands(told: _Statement, text: str) -> bool:
    """Whether an expression stands in the problem, as it is or with additions that change nothing."""
    if _OPERATION.search(text) is None and not _RELATION.search(text):
        return False
    if _key(text) in told.keys:
        return True
    tight = squeeze(text)
    for formula in told.formulas:
        if formula in tight:
            rest = re.sub(r"[({]\s*Q\s*[)}]", " Q ", tight.replace(formula, " Q "))
            if terms_of(rest) == {(1, (("Q", 1),)): Fraction(1)}:
                return True
    return False


def _bare(text: str) -> str:
    bare, unit = split_unit(text)
    return bare + ("%" if unit == "%" else "")


def _members(text: str) -> list[str]:
    """The scalars of a list, a tuple, a union or a matrix; nothing of a single scalar."""
    found, nodes = [], [*readings(text)[-1].parts]
    while nodes:
        node = nodes.pop()
        nodes.extend(node.parts)
        found += [node.text] if node.kind == "scalar" else []
    return found


def _sides(text: str) -> frozenset[Key]:
    """Each side of a relation outside brackets, with the relation's kind; a text without one has one side."""
    kinds = {"=" if match in ("=", r"\approx") else "<" for match in _RELATION.findall(text)}
    return frozenset((*sorted(kinds), *_key(side)) for side in split_top(text, _RELATION) if side.strip())


def _key(text: str) -> Key:
    """The tokens of an expression in any order, without brackets, plus and product signs."""
    tokens = _TOKEN.findall(_ROOT.sub(r" \\sqrt ", re.sub(r"\\text\{[^{}]*\}", " ", text)))
    return tuple(sorted(_digits(token) for token in tokens if token not in _SILENT))


def _digits(token: str) -> str:
    if "." in token:
        return (token.rstrip("0").rstrip(".") if token[0] != "." else f"0{token.rstrip('0')}") or "0"
    return token.lstrip("0") or "0" if token.isdigit() else token


def _literal(text: str) -> str:
    """A literal number as it is written: `7/2`, `3.5` and `3 1/2` are three."""
    if "overline" in text:
        return re.sub(r"\\overline|[{}\s]", lambda match: "~" if match[0][0] == "\\" else "", text).lstrip("0")
    numbers = re.findall(r"\d+(?:\.\d+)?|\.\d+", text)
    return (
        ("-" if text.lstrip().startswith("-") else "") + "/".join(map(_digits, numbers)) + ("%" if "%" in text else "")
    )


def _unreduced(text: str) -> bool:
    numbers = [int(digits) for digits in re.findall(r"\d+", text)]
    return "." not in text and len(numbers) == 2 and gcd(*numbers) > 1


@lru_cache(maxsize=4096)
def _statement(problem: str) -> _Statement:
    told, formulas = _Statement(set(), set(), set(), set(), []), set[str]()
    for formula in _formulas(_DRAWING.sub(" ", problem)):
        told.numbers.update(_literal(number) for number in _NUMBER.findall(formula))
        for piece in {formula, *split_top(formula, _JOINT)}:
            pieces = split_top(piece, _RELATION)
            if len(pieces) > 1:
                told.relations.add(_sides(piece))
            for side in {piece, *pieces}:
                text = _bare(side.strip(" .,;:?"))
                if text:
                    told.exact.add(squeeze(text))
                    told.keys.add(_key(text))
                    if len(text) > 2 and _OPERATION.search(text):
                        formulas.add(squeeze(text))
    return told._replace(formulas=sorted(formulas, key=lambda formula: (-len(formula), formula)))


def _formulas(problem: str) -> Iterator[str]:
    """The formulas of a statement and what looks like one in its plain words, cleaned."""
    prose = []
    position = 0
    for match in _FORMULA.finditer(problem):
        prose.append(problem[position : match.start()])
        position = match.end()
        inside = next((group for group in match.groups() if group is not None), "")
        if inside and len(inside) <= MAX_PIECE:
            yield clean(inside)
    prose.append(problem[position:])
    for run in _PLAIN.findall(" \n.".join(prose).replace("sqrt", r"\sqrt")):
        if re.search(r"\d|[=<>]", run) and len(run) <= MAX_PIECE:
            yield clean(run)
