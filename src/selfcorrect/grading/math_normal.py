r"""Answers to math problems in one way of writing, and their outer structure (floor 1): strings in, strings out.

`normalize` removes what does not change an answer's meaning: layout commands, units behind a number, dollar signs,
thousands separators, `\text` around a word. `parse` splits it at its outermost level: a list, a pair or interval, a
union, a matrix, words, or one scalar. Nothing is computed; every step costs time linear in a string of bounded length.
"""

import re
from fractions import Fraction
from typing import NamedTuple

MAX_ANSWER = 600  # characters of one answer; longer ones are not read (the longest gold of MATH has 159)
MAX_DEPTH = 30  # nested brackets
MAX_ITEMS = 64  # members of a list

ROW = "\ue000"  # stands for two backslashes, the end of a row in LaTeX

_SYMBOLS = str.maketrans(
    {
        "\u2212": "-", "\u2013": "-", "\u2014": "-", "\u2010": "-", "\u00d7": r"\cdot ", "\u00b7": r"\cdot ",
        "\u22c5": r"\cdot ", "\u00f7": "/", "\u2215": "/", "\u2044": "/", "\u00b0": r"^\circ ", "\u03c0": r"\pi ",
        "\u221e": r"\infty ", "\u2264": r"\le ", "\u2265": r"\ge ", "\u2260": r"\ne ", "\u222a": r"\cup ",
        "\u2208": r"\in ", "\u2248": r"\approx ", "\u00b1": r"\pm ", "\u03b8": r"\theta ", "\u221a": r"\sqrt ",
        "\u00a0": " ", "\u2009": " ", "\u202f": " ", "\u200b": "", ROW: "", "\u20ac": "", "\u00a3": "",
        "\u201c": '"', "\u201d": '"', "\u00b2": "^{2}", "\u00b3": "^{3}", "\uff05": "%",
        "\u2205": r"\emptyset ", "\u03b1": r"\alpha ",
    }
)  # fmt: skip
_COMMANDS = r"(?:d|t|c)?frac|sqrt|pi|infty|left|right|text|begin|end|pm|le|ge|leq|geq|cdot|times|cup|theta|boxed|circ"
_REWRITE: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern), by)
    for pattern, by in (
        (r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]", ""),
        (rf"(?<!\\)\\\\(?=(?:{_COMMANDS})(?![A-Za-z]))", r"\\"),  # a text that doubles its backslashes
        (r"\\\\\\\\", r"\\\\"),
        (r"\\\\(?:\[[-\d. a-z]{1,8}\])?", ROW),  # \\ and \\[2ex]
        (r"(?<=\d)(?:\{,\}|\\!?,\\!|,\\!|\\,)(?=\d{3}(?!\d))", ""),  # 10{,}000 and its kin
        (r"\\(?:left|right|[bB]igg?[lr]?|displaystyle|textstyle|limits|nolimits|strut)(?![A-Za-z])\.?", ""),
        (r"\\[hv]?phantom\s*(?:\{[^{}]*\})?|\A\s*\\approx(?![A-Za-z])", ""),
        (r"\\[!]", ""),
        (r"\\(?:[,;:> ]|q?quad(?![A-Za-z]))|~|[\t\r\n]", " "),
        (r"\\(?:dfrac|tfrac|cfrac)(?![A-Za-z])", r"\\frac"),
        (r"\\(?:leqslant|leq)(?![A-Za-z])|<=", r"\\le "),
        (r"\\(?:geqslant|geq)(?![A-Za-z])|>=", r"\\ge "),
        (r"\\neq(?![A-Za-z])|!=", r"\\ne "),
        (r"\\lt(?![A-Za-z])", "<"),
        (r"\\gt(?![A-Za-z])", ">"),
        (r"\\times(?![A-Za-z])", r"\\cdot "),
        (r"\\(?:varnothing|O)(?![A-Za-z])", r"\\emptyset "),
        (r"\\lbrace(?![A-Za-z])", r"\\{"),
        (r"\\rbrace(?![A-Za-z])", r"\\}"),
        (r"\\(?:textbf|textrm|textit|textnormal|textsf|mbox|hbox|mathrm|mathbf|mathit|mathsf|rm)"
         r"(?=\s*\{)", r"\\text"),
        (r"\\text\s+\{", r"\\text{"),
        (r"\\text\{([^{}A-Za-z]*)\}", r" \1 "),
        (r"\\text\{\s*([A-Za-z])\s*\}", r" \1 "),
        (r"(?<=\d)\s*\^\s*(?:\{\s*\\circ\s*\}|\\circ)\s*\Z", r"\\text{ degrees}"),
        (r"\A\s*(-?)\s*\\?\$\s*([\d,.]+)\s*\Z", r"\1\2\\text{ dollars}"),
        (r"\s*\^\s*(?:\{\s*\\circ\s*\}|\\circ(?![A-Za-z]))|\\degrees?(?![A-Za-z])", ""),
        (r"\\?\$", ""),
        (r"\\(?=%)", ""),
        (r"\\text\{\s*(,?)\s*(?:and|or)\s*\}|\b(?:and|or)\b(?!\})", " , "),
        (r"\\text\{\s*(?:,|;)\s*(?:and|or)?\s*\}", " , "),
        (r"\\sqrt\s*(\d)(?!\d)", r"\\sqrt{\1}"),
        (r"\\sqrt\s+(\d+)", r"\\sqrt{\1}"),
        (r"\\sqrt\s*([a-z])(?![a-z])", r"\\sqrt{\1}"),
        (r"\\frac\s*(\d)\s*(\d)", r"\\frac{\1}{\2}"),
        (r"\\frac\s*(\d)\s*\{", r"\\frac{\1}{"),
        (r"(\\frac\s*\{[^{}]*\})\s*(\d|[a-z])(?![a-z])", r"\1{\2}"),
        (r"\\frac\s*\\pi\s*(\d)", r"\\frac{\\pi}{\1}"),
        (r"([\^_])\{(\w)\}", r"\1\2"),
        (r"\\(?:ldots|dots|cdots)(?![A-Za-z])", "..."),
    )
)  # fmt: skip
_SPACES = re.compile(r"\s+")
_TEXT = re.compile(r"\\text\{([^{}]*)\}")
_UNIT = re.compile(
    r"(?:\s*\\text\{(?P<text>[^{}]*)\}|(?<=[\d})])\s*(?P<plain>[A-Za-z][A-Za-z. ]{0,40}?)|(?<=\d)\s*(?P<pct>%))"
    r"\s*(?P<power>\^\{?[23]\}?)?\s*\Z"
)
_WORD = re.compile(r"[A-Za-z]+")
_PLAIN_WORDS = re.compile(r"[A-Za-z]{2,}(?:[ '-][A-Za-z]+)*")
_CLOCK = re.compile(r"\d+(?:\s*:\s*\d+)+\s*(?:[ap]\s*\.?\s*m\.?)?", re.IGNORECASE)  # a time of day, or a ratio
_OF_DAY = re.compile(r"[ap]\s*\.?\s*m\.?", re.IGNORECASE)
_VARIABLE = re.compile(r"\s*\\?[A-Za-z]+\s*")
_NOT_UNITS = frozenset(
    _WORD.findall(
        "and or not but times plus minus over million billion trillion thousand hundred dozen percent if when where for"
        " is are to than less more choose mod base undefined sqrt frac solution solutions both either about around"
        " millions billions trillions thousands hundreds dozens lakh lakhs crore crores half halves third thirds"
        " quarter quarters fourth fourths fifth fifths sixth sixths eighth eighths tenth tenths hundredth hundredths"
        " thousandth thousandths millionth millionths squared cubed factorial factorials double triple twice thrice"
        " negative positive below above zero one two three no none never wrong incorrect false except without"
    )
)
_UNITS = frozenset(
    _WORD.findall(
        "cm mm m km nm in inch inches ft feet foot yd yard yards mile miles mi kg g mg gram grams lb lbs pound pounds"
        " oz ounce ounces second seconds sec s minute minutes min hour hours hr hrs h day days week weeks month months"
        " year years degree degrees dollar dollars cent cents unit units square sq cubic cu liter liters l ml mph kph"
        " per meter meters metre metres way ways"
    )
)
_PERCENT = re.compile(r"\s*\\?(?:%|\\text\{\s*percent\s*\}|\bpercent\b)\s*\Z")
_FUNCTIONS = frozenset(
    _WORD.findall("sin cos tan sec csc cot log ln arcsin arccos arctan exp max min gcd lcm deg det sqrt")
)

Part = tuple["Node", ...]


class Node(NamedTuple):
    r"""One level of an answer.

    kind: "scalar" (text), "words" (text), "list" (unordered: `1,2` or `\{1,2\}`), "tuple" (ordered, with its brackets
    in text, such as "(]"), "union" of parts, "matrix" (text "p" or "v" and "ROWSxCOLUMNS", parts row by row).
    """

    kind: str
    text: str = ""
    parts: Part = ()


class Unreadable(ValueError):  # noqa: N818 - says what was found
    """An answer that cannot be split: too long, too deep, or with brackets that do not match."""


def normalize(answer: str) -> str:
    """`answer` in one way of writing. Raises Unreadable where it is too long, or nested too deeply."""
    if len(answer) > MAX_ANSWER:
        raise Unreadable(f"longer than {MAX_ANSWER} characters")
    text = answer.translate(_SYMBOLS).replace("\\(", " ").replace("\\)", " ")
    if text.lstrip().startswith("\\["):
        text = text.replace("\\[", " ").replace("\\]", " ")
    text = text if text.rstrip().endswith("...") else text.rstrip(".,;: ")  # before `$` becomes a word behind it
    for pattern, by in _REWRITE:
        text = pattern.sub(by, text)
    text = _SPACES.sub(" ", text).strip().strip("*").lstrip(",;: ")
    text = text if text.endswith("...") else text.rstrip(".,;: ")  # a list that goes on is another list
    _check_brackets(text)
    boxed = re.fullmatch(r"\\boxed\s*\{(.*)\}", text)
    text = boxed[1].strip() if boxed else text
    return text[1:-1].strip() if text.startswith("{") and _closes(text) == len(text) - 1 else text


def _closes(text: str) -> int:
    """Where the brace that `text` begins with is closed."""
    depth = 0
    for place, character in enumerate(text):
        depth += (character == "{") - (character == "}")
        if not depth:
            return place
    return -1


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


_COMMA = re.compile(r"[,;]")
_CUP = re.compile(r"\\cup(?![A-Za-z])")
_IN = re.compile(r"\\in(?![A-Za-z])")
_EQUALS = re.compile(r"(?<![<>!])=")
_APPROX = re.compile(r"\\approx(?![A-Za-z])|\\simeq(?![A-Za-z])")
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
        return _unordered(items)
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
    if text.startswith("\\{") and text.endswith("\\}") and _closes_at_end(text[1:]):
        return _unordered(_split(text[2:-2], _COMMA)) if text[2:-2].strip() else Node("list")
    if not text or text[0] not in "([" or text[-1] not in ")]" or not _closes_at_end(text):
        return None
    items = _split(text[1:-1], _COMMA)
    if len(items) > 1:
        return Node("tuple", text[0] + text[-1], tuple(parse(item) for item in items))
    if text[0] + text[-1] == "()" and items:
        return parse(items[0])
    return Node("tuple", text[0] + text[-1], tuple(parse(item) for item in items))


def _closes_at_end(text: str) -> bool:
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
    plain = text.strip("\"'` ")
    is_word = bool(_PLAIN_WORDS.fullmatch(plain)) and (
        max(map(len, _WORD.findall(plain))) > 3 and not _FUNCTIONS & set(_WORD.findall(plain))
    )
    if not (whole and _WORD.search(whole[1])) and not is_word:
        return ""
    return word_key(stripped)


def word_key(text: str) -> str:
    """Words for comparing: lower case, without spaces, quotes, full stops and parentheses."""
    return re.sub(r"[\s.,'\"`()]", "", text).lower()


def split_unit(text: str) -> tuple[str, str]:
    r"""A number and the unit behind it: `45 \text{ units}^2` is `45` and `units`; a percent sign is the unit `%`."""
    percent = _PERCENT.search(text)
    if percent and percent.start() > 0:
        return text[: percent.start()].strip(), "%"
    match = _UNIT.search(text)
    if not match or match.start() == 0:
        return text, ""
    unit = (match["text"] or match["plain"] or "").strip()
    words = _WORD.findall(unit.lower())
    if not words or re.search(r"\d", unit) or any(word in _NOT_UNITS for word in words):
        return text, ""
    scales = {"M", "K", "B", "E"} & set(_WORD.findall(unit))  # `6 M` is six million, not six metres
    if (scales or any(len(word) == 1 and word not in _UNITS for word in words)) and not _OF_DAY.fullmatch(
        unit
    ):  # `6 M`, `6 k`
        return text, ""
    if not re.search(r"\d", text[: match.start()]):
        return text, ""
    spaced = text[match.start() : match.start() + 1] == " "
    if match["plain"] and not all(word in _UNITS or (spaced and len(word) > 3) for word in words):
        return text, ""
    return text[: match.start()].strip(), re.sub(r"\W+", " ", unit).strip().lower() + (match["power"] or "")


def last_side(text: str) -> str:
    """What an answer such as `x = 2 + 3 = 5` states: its last side; of `a \\approx b` the exact side."""
    exact = split_top(text, _APPROX)[0]
    return split_top(exact, _EQUALS)[-1].strip()


def has_relation(text: str) -> bool:
    """Whether `=`, an inequality or a colon stands outside every bracket."""
    return len(split_top(text, _RELATION)) > 1
