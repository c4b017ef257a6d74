r"""Answers to math problems in one way of writing, and their outer structure: strings in, strings out.

`normalize` removes what does not change an answer's meaning: layout commands, dollar signs, thousands separators,
`\text` around a word. `parse` splits it at its outermost level: a list, a pair or interval, a union, a matrix, words,
or one scalar, of which it takes off the unit behind. Nothing is computed; every step costs time linear in a string of
bounded length.
"""

import re
from fractions import Fraction
from functools import lru_cache
from typing import NamedTuple

from selfcorrect.grading.math_latex import AND, OR, ROW, clean, closing_brace
from selfcorrect.grading.math_units import spelt_number, split_unit, written

MAX_ANSWER = 600  # characters of one answer; longer ones are not read (the longest gold of MATH has 159)
MAX_DEPTH = 30  # nested brackets
MAX_ITEMS = 64  # members of a list

_TEXT = re.compile(r"\\text\{([^{}]*)\}")
_WORD = re.compile(r"[A-Za-z]+")
_PLAIN_WORDS = re.compile(r"[A-Za-z]{2,}(?:[ '-][A-Za-z]+)*")
_CLOCK = re.compile(r"\d+(?:\s*:\s*\d+)+\s*(?:[ap]\s*\.?\s*m\.?)?", re.IGNORECASE)  # a time of day, or a ratio
_VARIABLE = re.compile(r"\s*\\?[A-Za-z]+\s*")
_FUNCTIONS = frozenset(
    _WORD.findall("sin cos tan sec csc cot log ln arcsin arccos arctan exp max min gcd lcm deg det sqrt")
)

_SHORT = frozenset(
    _WORD.findall(
        "no yes on up off odd one two six ten tie all any red"
        " tan dog cat cow pig hen boy man men dad mom son may jan feb"
        " mar apr jun jul aug sep oct nov dec sun mon tue wed thu"
        " fri sat act art bus car cup day ear eye far fat few fox"
        " fun hat hot ice jar key leg low net new not now nut old"
        " our out own pen pet pie pot rat raw row saw sea set sky"
        " ski team tea toe top toy use van war was way wet who why win won zoo true both"
    )
)

Part = tuple["Node", ...]


class Node(NamedTuple):
    r"""One level of an answer.

    kind: "scalar" (text), "words" (text), "list" (unordered: `1,2` or `\{1,2\}`), "tuple" (ordered, with its brackets
    in text, such as "(]"), "union" of parts, "matrix" (text "p" or "v" and "ROWSxCOLUMNS", parts row by row). The text
    of a list says what joins its members: "or", "and", or "" for commas.
    """

    kind: str
    text: str = ""
    parts: Part = ()


class Unreadable(ValueError):  # noqa: N818 - says what was found
    """An answer that cannot be split: too long, too deep, or with brackets that do not match."""


@lru_cache(maxsize=16_384)
def normalize(answer: str) -> str:
    """`answer` in one way of writing. Raises Unreadable where it is too long, or nested too deeply."""
    if len(answer) > MAX_ANSWER:
        raise Unreadable(f"longer than {MAX_ANSWER} characters")
    text = clean(answer)
    _check_brackets(text)
    boxed = re.fullmatch(r"\\(?:boxed|fbox)\s*\{(.*)\}", text)
    text = boxed[1].strip() if boxed else text
    text = text[1:-1].strip() if text.startswith("{") and closing_brace(text, 1) == len(text) - 1 else text
    spelt = (
        spelt_number(_TEXT.sub(r"\1", text).replace(AND, "and")) if text[-1:].isalpha() or text[-1:] == "}" else None
    )
    return text if spelt is None else written(spelt)


def _check_brackets(text: str) -> None:
    depth = 0
    for character in text:
        if character in "([{":
            depth += 1
            if depth > MAX_DEPTH:
                raise Unreadable(f"nested deeper than {MAX_DEPTH} brackets")
        elif character in ")]}":
            depth -= 1
            if depth < 0:
                raise Unreadable("brackets do not match")
    if depth:
        raise Unreadable("brackets do not match")


def split_top(text: str, separators: re.Pattern[str]) -> list[str]:
    """`text` split where a separator stands outside every bracket."""
    parts, depth, start, position = [], 0, 0, 0
    while position < len(text):
        character = text[position]
        if character in "([{":
            depth += 1
        elif character in ")]}":
            depth -= 1
        elif depth == 0:
            match = separators.match(text, position)
            if match:
                parts.append(text[start:position])
                position = start = match.end()
                continue
        position += 1
    return [*parts, text[start:]]


_COMMA = re.compile(rf"[,;{OR}{AND}]")
_CUP = re.compile(r"\\cup(?![A-Za-z])")
_IN = re.compile(r"\\in(?![A-Za-z])")
_EQUALS = re.compile(r"(?<![<>!])=")
APPROX = re.compile(r"\\approx(?![A-Za-z])|\\simeq(?![A-Za-z])")
_RELATION = re.compile(r"=|<|>|\\le(?![A-Za-z])|\\ge(?![A-Za-z])|\\ne(?![A-Za-z])|\\equiv|:")
_RATIO = r"[-+]?\s*(?:\\frac\s*\{\s*-?\d{1,9}\s*\}\s*\{\s*\d{1,9}\s*\}|\d{1,9}(?:\s*/\s*\d{1,9})?)"
_MATRIX = re.compile(
    rf"(?P<factor>{_RATIO}|-|)\s*(?:\\cdot)?\s*\\begin\{{(?P<kind>p|b|v|B|V)?(?:matrix|array)\}}(?:\{{[clr| ]*\}})?"
    r"(?P<body>.*)\\end\{[pbvBV]?(?:matrix|array)\}"
)
_THOUSANDS = re.compile(r"-?\d{1,3}(?:,\d{3})+(?:\.\d+)?")
_ROW = re.compile(ROW)
_CELL = re.compile("&")
_PM = re.compile(r"\\pm(?![A-Za-z])")


def readings(text: str) -> list[Node]:
    """What a normalised answer can mean: usually one thing; `1,234` is a number, and a list of two."""
    bare, unit = split_unit(text)
    if _THOUSANDS.fullmatch(bare):
        number = Node("scalar", bare.replace(",", "") + ("%" if unit == "%" else ""))
        return [number, parse(text)]
    return [parse(text)]


def parse(text: str) -> Node:
    """The outermost structure of a normalised answer. Raises Unreadable for lists of too many members."""
    text = text.strip()
    words = as_words(text)
    if words:
        return Node("words", words)
    inside = split_top(text, _IN)
    if len(inside) == 2 and _VARIABLE.fullmatch(inside[0]):
        text = inside[1].strip()
    matrix = _MATRIX.fullmatch(text)
    if matrix and "\\begin" not in matrix["body"]:
        return _matrix(matrix["kind"] or "", matrix["body"], matrix["factor"])
    items = _split(text, _COMMA)
    if len(items) > 1:
        node = _unordered(items)
        joined = {mark for mark in (OR, AND) if len(split_top(text, re.compile(mark))) > 1}
        return node._replace(text="or" if joined == {OR} else "and" if joined else "") if node.kind == "list" else node
    union = _split(text, _CUP)
    if len(union) > 1:
        return Node("union", "", tuple(parse(part) for part in union))
    return _bracketed(text) or _scalar(text)


def _split(text: str, separator: re.Pattern[str]) -> list[str]:
    parts = [part for part in (piece.strip() for piece in split_top(text, separator)) if part]
    if len(parts) > MAX_ITEMS:
        raise Unreadable(f"a list of more than {MAX_ITEMS} members")
    return parts


def _unordered(items: list[str]) -> Node:
    """A list without order; `a \\pm b` stands for two members. A list of one is its member."""
    parts: list[Node] = []
    for item in items:
        node = parse(item)
        parts.extend(node.parts if node.kind == "list" else (node,))
    return parts[0] if len(parts) == 1 else Node("list", "", tuple(parts))


def _bracketed(text: str) -> Node | None:
    r"""`(..)`, `[..)`, `\{..\}` around the whole text; None where the first bracket closes earlier."""
    if text.startswith("\\{") and text.endswith("\\}") and closes_at_end(text[1:]):
        return _unordered(_split(text[2:-2], _COMMA)) if text[2:-2].strip() else Node("list")
    if not text or text[0] not in "([" or text[-1] not in ")]" or not closes_at_end(text):
        return None
    items = _split(text[1:-1], _COMMA)
    if text[0] + text[-1] == "()" and len(items) == 1:
        return parse(items[0])
    return Node("tuple", text[0] + text[-1], tuple(parse(item) for item in items))


def closes_at_end(text: str) -> bool:
    depth = 0
    for position, character in enumerate(text):
        if character in "([{":
            depth += 1
        elif character in ")]}":
            depth -= 1
            if depth == 0:
                return position == len(text) - 1
    return False


def _matrix(kind: str, body: str, factor: str) -> Node:
    rows = [[cell.strip() for cell in split_top(row, _CELL)] for row in split_top(body, _ROW) if row.strip()]
    if not rows or len({len(row) for row in rows}) != 1 or len(rows) * len(rows[0]) > MAX_ITEMS:
        raise Unreadable("a matrix whose rows differ in length, or that is too large")
    parts = tuple(_scalar(_scaled(factor.strip(), cell)) for row in rows for cell in row)
    return Node("matrix", f"{'v' if kind in ('v', 'V') else 'p'}{len(rows)}x{len(rows[0])}", parts)


def _scaled(factor: str, cell: str) -> str:
    """A cell of `factor` times a matrix, where both are plain ratios."""
    if not factor:
        return cell
    one, other = _ratio(factor if factor != "-" else "-1"), _ratio(cell)
    return str(one * other) if one is not None and other is not None else f"{factor}({cell})"


def _ratio(text: str) -> Fraction | None:
    digits = re.findall(r"\d+", text)
    if not re.fullmatch(_RATIO, text) or (len(digits) == 2 and int(digits[1]) == 0):
        return None
    value = Fraction(int(digits[0]), int(digits[1]) if len(digits) == 2 else 1)
    return -value if text.count("-") % 2 else value


def _scalar(text: str) -> Node:
    bare, unit = split_unit(text)
    bare, unit = (text, "") if unit and as_words(bare) else (bare, unit)  # `Bob \text{ cm}` is not Bob
    signs = _PM.findall(bare)
    if len(signs) == 1 and "\\mp" not in bare:
        parts = tuple(Node("scalar", _PM.sub(sign, bare).strip()) for sign in (" + ", " - "))
        return Node("list", "", parts)
    return Node("scalar", bare + ("%" if unit == "%" else ""))


def as_words(text: str) -> str:
    r"""Words and labels such as `\text{Evelyn}` or `8:34 p.m.` in lower case, without punctuation; "" for math."""
    stripped = _TEXT.sub(r" \1 ", text)
    if _CLOCK.fullmatch(stripped.strip()):
        return word_key(stripped)
    whole = _TEXT.fullmatch(text) or _TEXT.fullmatch(text.strip("()\"' "))
    if not (whole and _WORD.search(whole[1])) and not _is_word(text.strip("\"'` ")):
        return ""
    return word_key(stripped)


def _is_word(plain: str) -> bool:
    """`north`, `no`, `Bob` or the points `ABC`, and not a product of variables such as `ab` or `wxyz`."""
    words = _WORD.findall(plain)
    if not _PLAIN_WORDS.fullmatch(plain) or _FUNCTIONS & set(words):
        return False
    longest = max(words, key=len)
    letters = sorted(map(ord, longest))
    if letters == list(range(letters[0], letters[0] + len(letters))) and longest.islower() and longest not in _SHORT:
        return False  # `abcd`, `pqrs`: variables come in the order of the alphabet
    return len(longest) > 3 or longest.isupper() or plain.lower() in _SHORT or (plain.istitle() and len(plain) > 2)


def word_key(text: str) -> str:
    """Words for comparing: lower case, without spaces, quotes, full stops and parentheses."""
    return re.sub(rf"[\s.,'\"`(){OR}{AND}]", "", text).lower()


def last_side(text: str) -> str:
    """What an answer such as `x = 2 + 3 = 5` states: its last side; of `a \\approx b` the exact side."""
    exact = split_top(text, APPROX)[0]
    return split_top(exact, _EQUALS)[-1].strip()


def has_relation(text: str) -> bool:
    """Whether `=`, an inequality or a colon stands outside every bracket."""
    return len(split_top(text, _RELATION)) > 1
