r"""The fast path of the math grader: most answers are settled here, in the trainer's process.

Only reading and comparing: a literal number becomes an exact Fraction, and a sum of simple terms such as
`\frac{1 - 2\sqrt{3}}{5} + x^2` a table from its terms to their coefficients. Powers, factorials and functions are never
computed; what is not of these forms is left to a worker (None).
"""

import re
from fractions import Fraction

from selfcorrect.grading.math_latex import AND, OR, ROW, closing_brace
from selfcorrect.grading.math_normal import Node, has_relation, last_side, split_top

MAX_DIGITS = 60
MAX_RADICAND = 10**6
MAX_TERMS = 64

Terms = dict[tuple[int, tuple[tuple[str, int], ...]], Fraction]  # (radicand, variables with powers) -> coefficient

_DIGITS = rf"\d{{1,{MAX_DIGITS}}}"
_DECIMAL = rf"(?:{_DIGITS}(?:\.(?:\d{{1,{MAX_DIGITS}}})?)?|\.{_DIGITS})"
_SIGNED = rf"[-+]?\s*{_DECIMAL}"
_NUMBER = re.compile(rf"(?P<sign>[-+])?\s*(?P<value>{_DECIMAL})(?P<percent>%)?")
_FRACTION = re.compile(
    rf"(?P<sign>[-+])?\s*(?:(?P<whole>{_DIGITS})?\s*"
    rf"\\frac\s*\{{\s*(?P<top>{_SIGNED})\s*\}}\s*\{{\s*(?P<bottom>{_SIGNED})\s*\}}"
    rf"|(?:(?P<mixed>{_DIGITS})\s)?(?P<left>{_DECIMAL})\s*/\s*(?P<right>{_DECIMAL}))(?P<percent>%)?"
)
_POWER_OF_TEN = re.compile(rf"(?P<factor>{_SIGNED})\s*(?:\\cdot|\*)\s*10\s*\^\s*\{{?\s*(?P<power>-?\d{{1,2}})\s*\}}?")
_SCIENTIFIC = re.compile(rf"(?P<factor>{_SIGNED})[eE](?P<power>[-+]?\d{{1,2}})")
_REPEATING = re.compile(r"(?P<sign>-)?(?P<whole>\d{0,20})\.(?P<fixed>\d{0,20})\\overline\s*\{?(?P<again>\d{1,20})\}?")
_BASE = re.compile(r"(?P<digits>-?[0-9A-Fa-f.]{1,60})_\{?(?P<base>\d{1,2})\}?")
_FACTOR = re.compile(
    rf"\s*(?:(?P<number>{_DECIMAL})|\\sqrt\s*\{{\s*(?P<root>\d{{1,7}})\s*\}}|"
    r"(?P<name>(?:\\(?:pi|infty|theta|alpha|beta|gamma|lambda|phi|omega)(?![A-Za-z])|[A-Z]{2,}|[A-Za-z])(?:_(?:\w|\{\w{1,3}\}))?)"
    r"(?:\^(?:(?P<power>\d)(?!\d)|\{(?P<long>\d{1,2})\}))?|(?P<frac>\\frac)\s*\{|(?P<dot>\\cdot(?![A-Za-z])|\*)|/\s*(?P<over>\d{1,9})\s*\Z)\s*"
)
_SIGN = re.compile(r"[-+]")
_STATED = re.compile(r"\\?[A-Za-z]+(?:_\w+)?(?:\([A-Za-z]\))?\s*=|[^=]*\\approx")  # `x = ...`, `f(x) = ...`
_EQUALS = re.compile("=")
_SPACE = re.compile(r"(?<![A-Za-z\d]) | (?![A-Za-z\d])")
_SPELT = re.compile(r"(?<![\\A-Za-z])(?:sqrt|frac|pi|sin|cos|tan|sec|csc|cot|log|ln|exp|inf|oo)")


def number_of(text: str) -> Fraction | None:
    """The exact value of a literal number: integer, decimal, fraction, mixed number, percentage, `a \\cdot 10^{b}`."""
    text = text.strip()
    while text.startswith("{") and text.endswith("}") and text.count("{") == 1:
        text = text[1:-1].strip()
    match = _NUMBER.fullmatch(text)
    if match:
        return _signed(match["sign"], Fraction(_full(match["value"])), match["percent"])
    match = _FRACTION.fullmatch(text)
    if match:
        top, bottom = (_fraction(match["top"] or match["left"]), _fraction(match["bottom"] or match["right"]))
        whole = match["whole"] or match["mixed"]
        if bottom == 0 or (whole and (top < 0 or bottom < 0)):
            return None
        return _signed(match["sign"], Fraction(whole or 0) + top / bottom, match["percent"])
    match = _POWER_OF_TEN.fullmatch(text) or _SCIENTIFIC.fullmatch(text)
    if match:
        return _fraction(match["factor"]) * Fraction(10) ** int(match["power"])
    match = _REPEATING.fullmatch(text)
    if match:
        fixed, again = match["fixed"], match["again"]
        first = f"0{match['whole']}{fixed}"
        value = Fraction(int(first + again) - int(first))
        return _signed(match["sign"], value / (10 ** len(fixed) * (10 ** len(again) - 1)), None)
    return None


def _full(digits: str) -> str:
    return f"{digits}0" if digits.endswith(".") else digits


def _fraction(text: str) -> Fraction:
    return Fraction(_full(text.replace(" ", "")))


def _signed(sign: str | None, value: Fraction, percent: str | None) -> Fraction:
    value = value / 100 if percent else value
    return -value if sign == "-" else value


def terms_of(text: str, depth: int = 0) -> Terms | None:
    """A sum of simple terms as a table; None for everything else. Equal tables mean equal values, and the reverse."""
    number = number_of(text) if "%" not in text else None
    if number is not None:
        return {(1, ()): number} if number else {}
    signs = None if _SPELT.search(text) else outer_signs(text)
    if signs is None or len(signs) > MAX_TERMS:
        return None
    total: Terms = {}
    for sign, term in signs:
        product = _product(term, depth)
        if product is None:
            return None
        for key, value in product.items():
            total[key] = total.get(key, Fraction(0)) + sign * value
    return {key: value for key, value in total.items() if value}


def outer_signs(text: str) -> list[tuple[int, str]] | None:
    """(sign, term) of a sum; None where a sign has no term."""
    pieces = split_top(text, _SIGN)
    found, position, sign = [], 0, 1
    for index, piece in enumerate(pieces):
        if piece.strip():
            found.append((sign, piece))
        elif index:
            return None
        position += len(piece)
        sign = -1 if text[position : position + 1] == "-" else 1
        position += 1
    return found or None


def _product(term: str, depth: int) -> Terms | None:
    result: Terms | None = {(1, ()): Fraction(1)}
    position, before = 0, ""
    while position < len(term):
        match = _FACTOR.match(term, position)
        if not match:
            return None
        position = match.end()
        if match["dot"]:
            if before in ("", "dot"):
                return None
            before = "dot"
            continue
        if match["over"]:
            factor: Terms | None = {(1, ()): Fraction(1, int(match["over"]))} if before and int(match["over"]) else None
        elif match["number"]:
            if before not in ("", "dot"):  # `x2`, `2 3`: not a product anyone writes
                return None
            factor = {(1, ()): Fraction(_full(match["number"]))}
            before = "number"
        elif match["frac"]:
            if before == "number":  # `2\frac{1}{3}` is a mixed number, `2\frac{x}{3}` a product: left to the worker
                return None
            factor, position = _quotient(term, position, depth)
            before = "frac"
        else:
            factor, before = _symbol(match), "symbol"
        result = _times(result, factor)
        if result is None:  # what follows would be read in vain, and nested fractions at every depth anew
            return None
    return None if before in ("", "dot") else result


def _symbol(match: re.Match[str]) -> Terms | None:
    if match["root"]:
        outside, inside = _square_free(int(match["root"]))
        return {(inside, ()): Fraction(outside)} if outside else {}
    power = int(match["power"] or match["long"] or 1)
    if (match["name"] == "i" and power > 1) or power == 0:
        return None
    return {(1, ((match["name"], power),)): Fraction(1)}


def _square_free(number: int) -> tuple[int, int]:
    """(a, b) with number = a^2 b and b without square factors; (0, 1) for zero. At most 1000 divisions."""
    if number == 0:
        return 0, 1
    outside, divisor = 1, 2
    while divisor * divisor <= number and divisor <= 1000:
        while number % (divisor * divisor) == 0:
            number //= divisor * divisor
            outside *= divisor
        divisor += 1
    return outside, number


def _quotient(term: str, position: int, depth: int) -> tuple[Terms | None, int]:
    """`{top}{bottom}` from just behind the first brace; the bottom must be one term."""
    top_end = closing_brace(term, position)
    bottom_start = term.find("{", top_end)
    if depth >= 2 or top_end < 0 or bottom_start < 0 or term[top_end + 1 : bottom_start].strip():
        return None, position
    bottom_end = closing_brace(term, bottom_start + 1)
    if bottom_end < 0:
        return None, position
    top, bottom = terms_of(term[position:top_end], depth + 1), terms_of(term[bottom_start + 1 : bottom_end], depth + 1)
    if top is None or bottom is None or len(bottom) != 1:
        return None, position
    ((root, names), value) = next(iter(bottom.items()))
    if any(name == "i" for name, _ in names):
        return None, position
    inverse: Terms = {(root, tuple((name, -power) for name, power in names)): 1 / (value * root)}
    return _times(top, inverse), bottom_end + 1


def _times(left: Terms | None, right: Terms | None) -> Terms | None:
    if left is None or right is None or (len(left) > 1 and len(right) > 1):
        return None
    product: Terms = {}
    for (root_a, names_a), a in left.items():
        for (root_b, names_b), b in right.items():
            if root_a * root_b > MAX_RADICAND:
                return None
            outside, inside = _square_free(root_a * root_b)
            powers: dict[str, int] = dict(names_a)
            for name, power in names_b:
                if name == "i" and "i" in powers:
                    return None
                powers[name] = powers.get(name, 0) + power
            names = tuple(sorted((name, power) for name, power in powers.items() if power))
            product[inside, names] = product.get((inside, names), Fraction(0)) + a * b * outside
    return product


def fast_scalar(gold: str, given: str) -> bool | None:
    """Whether two scalars without a base below are equal; None where this file cannot tell."""
    if squeeze(gold) == squeeze(given):
        return True
    numbers = number_of(gold), number_of(given)
    if None not in numbers:
        return numbers[0] == numbers[1]
    if "=" in gold and "=" in given:
        return _same_equation(gold, given)
    left, right = terms_of(gold), terms_of(given)
    return None if left is None or right is None else left == right


def _same_equation(gold: str, given: str) -> bool | None:
    """Whether two equations between sums of simple terms are multiples of each other."""
    tables = []
    for text in (gold, given):
        sides = [terms_of(side) for side in split_top(text, _EQUALS)]
        if len(sides) != 2 or sides[0] is None or sides[1] is None:
            return None
        left, right = sides[0], sides[1]
        keys = left.keys() | right.keys()
        table = {key: left.get(key, Fraction(0)) - right.get(key, Fraction(0)) for key in keys}
        tables.append({key: value for key, value in table.items() if value})
    one, other = tables
    if not one or one.keys() != other.keys():
        return False
    return len({other[key] / value for key, value in one.items()}) == 1


def compare_bases(gold: str, given: str) -> bool | None:
    """Numbers with their base below, `2516_8`: digits and base must agree; the gold answer's base may be left out."""
    left, right = _BASE.fullmatch(gold), _BASE.fullmatch(given)
    if left and right:
        return (left["digits"].lstrip("0"), left["base"]) == (right["digits"].lstrip("0"), right["base"])
    if left:
        return left["digits"] == given
    if right and number_of(gold) is not None:
        return right["digits"] == gold and right["base"] == "10"
    return None


def squeeze(text: str) -> str:
    """`text` without its spaces, but for those that part two digits."""
    return _SPACE.sub("", text)


def canonical(node: Node) -> str:
    """A string that is the same for answers that the fast path knows to be equal."""
    if node.kind == "words":
        return node.text
    if node.kind == "scalar":
        text = (last_side(node.text) or node.text) if _STATED.match(node.text) else node.text
        number = number_of(text)
        if number is not None:
            return str(number)
        terms = terms_of(text) if not has_relation(text) else None
        if terms is None:
            return squeeze(text).replace(ROW, "\\\\").replace(OR, "or").replace(AND, "and")
        return " + ".join(_written(key, value) for key, value in sorted(terms.items())) or "0"
    parts = [canonical(part) for part in node.parts]
    if node.kind == "list":
        return "{" + ", ".join(sorted(parts)) + "}"
    if node.kind == "union":
        return " U ".join(sorted(parts))
    opening, closing = (node.text[0], node.text[1]) if node.kind == "tuple" else (f"matrix {node.text} (", ")")
    return opening + ", ".join(parts) + closing


def _written(key: tuple[int, tuple[tuple[str, int], ...]], value: Fraction) -> str:
    root, names = key
    factors = [f"sqrt({root})"] if root > 1 else []
    factors += [name if power == 1 else f"{name}^{power}" for name, power in names]
    if value == 1 and factors:
        return "*".join(factors)
    return "*".join([str(value), *factors])
