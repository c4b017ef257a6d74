r"""Whether an answer is worked out: equal in value is not enough where only the work is left to do.

Three questions, all answered by reading alone: is arithmetic left that the gold answer has done (`work_left`), is the
answer in the form that the problem asks for (`other_form`), and is it copied from the problem (math_copy.py).
"""

import re
from math import gcd, isqrt

from selfcorrect.grading.math_fast import number_of, outer_signs, terms_of
from selfcorrect.grading.math_normal import split_top

_COMMAND = re.compile(r"\\[A-Za-z]+")
_LETTER = re.compile(r"[A-Za-z]")
_FUNCTION = re.compile(
    r"\\(?:arc)?(sin|cos|tan|sec|csc|cot)h?(?![A-Za-z])|\\(ln|log|lg|exp|binom|sum|prod|int|lim|gcd|lcm|det|max|min|lfloor"
    r"|lceil|deg|sgn)(?![A-Za-z])|(!|\||\\bmod|\\pmod)"
)
_ALIKE = {"ln": "log", "lg": "log"}
_WHOLE_POWER = re.compile(r"(?<![A-Za-z])[\d)}]\s*\^\s*(?:\d|\{\s*\d+\s*\})|(?<![A-Za-z\\])i\s*\^")
_LITERAL_PRODUCT = re.compile(r"\d\s*(?:\\cdot(?![A-Za-z])|\*)\s*(?!10\s*\^)\d|\d\s*\)\s*\(\s*\d")
_SUM = re.compile(r"[-+]")
_REDUCE = re.compile(r"\b(?:simplif|reduce|lowest terms|simplest)", re.IGNORECASE)
_EXPAND = re.compile(r"\bexpand|\bmultiply out", re.IGNORECASE)
_FACTOR = re.compile(r"\bfactor(?:i[sz]e)?\b(?! of)\s+(?:the|completely|over|\$|\\)|\bfully factor", re.IGNORECASE)
_RADICAND = re.compile(r"\\sqrt\s*\{\s*(\d{1,9})\s*\}")
_RATIO = re.compile(r"(?:\\frac\s*\{\s*(\d{1,30})\s*\}\s*\{\s*(\d{1,30})\s*\}|(\d{1,30})\s*/\s*(\d{1,30}))")


def work_left(gold: str, given: str) -> bool:
    """Whether `given` leaves arithmetic to do that `gold`, no literal number, has done.

    Like terms that are not combined count for every gold answer; sums, products and powers of numbers, functions and
    products of sums only where it holds no variable, and none of the kind.
    """
    if _terms_apart(given) > _terms_apart(gold):
        return True
    if not _is_constant(gold):
        return False
    if _functions(given) - _functions(gold):
        return True
    if any(pattern.search(given) and not pattern.search(gold) for pattern in (_WHOLE_POWER, _LITERAL_PRODUCT)):
        return True
    return any(count(given) > count(gold) for count in (_number_sums, _sum_factors))


def other_form(problem: str, gold: str, given: str) -> str:
    """Why `given`, equal to `gold` in value, has not the form that the problem asks for; "" where it has.

    The gold answer must have that form itself, and a text without the words for it asks for none.
    """
    if _REDUCE.search(problem) and _reducible(given) and not _reducible(gold):
        return "can be simplified"
    if _EXPAND.search(problem) and terms_of(gold) is not None and _sum_in_product(given):
        return "is not expanded"
    if _FACTOR.search(problem) and _is_product(gold) and not _is_product(given):
        return "is not factored"
    return ""


def _reducible(text: str) -> bool:
    """A fraction of two integers with a common divisor, or a square under a root."""
    roots = [int(digits) for digits in _RADICAND.findall(text)]
    ratios = [[int(digits) for digits in match if digits] for match in _RATIO.findall(text)]
    return any(gcd(*ratio) > 1 for ratio in ratios) or any(
        root > 1 and root % (square * square) == 0 for root in roots for square in range(2, min(isqrt(root), 1000) + 1)
    )


def _sum_in_product(text: str) -> bool:
    return any(_is_sum(group) for group in re.findall(r"\(([^()]*)\)", text.strip()))


def _is_product(text: str) -> bool:
    signs = outer_signs(text)
    return signs is not None and len(signs) == 1 and "(" in text


def _is_constant(text: str) -> bool:
    letters = set(_LETTER.findall(_COMMAND.sub(" ", text)))
    return letters <= {"i", "e"} and not re.search(
        r"\\(?:theta|alpha|beta|gamma|lambda|phi|omega|mathbf|text|vec)", text
    )


def _functions(text: str) -> set[str]:
    names = {next(group for group in match.groups() if group) for match in _FUNCTION.finditer(text)}
    return {_ALIKE.get(name, name) for name in names}


def _terms_apart(text: str) -> int:
    """How many terms of a sum could be combined with another, where the sum can be read."""
    table = terms_of(text)
    signs = outer_signs(text)
    return 0 if table is None or signs is None else max(0, len(signs) - max(1, len(table)))


def _number_sums(text: str) -> int:
    """Sums, at any depth, in which two terms are literal numbers."""
    return sum(
        sum(number_of(term) is not None for term in split_top(group, _SUM) if term.strip()) > 1
        for group in _groups(text)
    )


def _sum_factors(text: str) -> int:
    """Sums in parentheses; one may stand for a factor taken out, two are a product to be done."""
    count = sum(_is_sum(group) for group in re.findall(r"\(([^()]*)\)", text))
    return count if count > 1 else 0


def _is_sum(text: str) -> bool:
    return len([term for term in split_top(text, _SUM) if term.strip()]) > 1


def _groups(text: str) -> list[str]:
    """The text, and what stands in each pair of brackets of it."""
    found, stack = [text], []
    for place, character in enumerate(text):
        if character in "([{":
            stack.append(place)
        elif character in ")]}" and stack:
            found.append(text[stack.pop() + 1 : place])
    return found
