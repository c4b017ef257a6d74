"""Grading of countdown answers by parsing: exact integers, never `eval`.

An answer is the text of its steps, one a line, each ``a op b = c`` with op one of + - * /, with or without backticks
around it; results may be negative on the way. Lines without an equals sign are remarks and pass unread; every line with
one must be a step. The answer is right if every step is true in exact arithmetic, every given number and every result
but the last is used exactly once, and the last result is the target. A step may use only what is still on the table.
"""

import re
from collections import Counter
from collections.abc import Sequence

from selfcorrect.types import Grade, Outcome

MAX_CHARS = 4096
MAX_DIGITS = 12  # bounds the integers, so no answer can make the arithmetic slow
_INTEGER = rf"-?\d{{1,{MAX_DIGITS}}}"
_STEP = re.compile(rf"\s*({_INTEGER})\s*([-+*/])\s*({_INTEGER})\s*=\s*({_INTEGER})\s*", re.ASCII)


def _result(left: int, operator: str, right: int) -> int | None:
    """`left operator right` in exact integers; None where division is by zero or leaves a rest."""
    if operator == "/":
        return left // right if right and left % right == 0 else None
    return {"+": left + right, "-": left - right, "*": left * right}[operator]


def grade_countdown(text: str, numbers: Sequence[int], target: int) -> Grade:
    """Grade the steps in `text`; reward 1.0 for a right answer, else 0.0. Never raises on any text.

    The grade's answer is the steps themselves, white space folded, so that two attempts can be compared.
    """
    if len(text) > MAX_CHARS:
        return Grade(Outcome.WRONG, 0.0, "", f"longer than {MAX_CHARS} characters")
    lines = [line for line in text.splitlines() if "=" in line]
    steps = [_STEP.fullmatch(line.strip().strip("`")) for line in lines]
    if not lines or not any(steps):
        return Grade(Outcome.NO_ANSWER, 0.0, "", "no step of the form a op b = c")
    written = "; ".join(" ".join(line.replace("`", " ").split()) for line in lines)
    table = Counter(numbers)
    result = 0
    for line, step in zip(lines, steps, strict=True):
        if step is None:
            return Grade(Outcome.WRONG, 0.0, written, f"not a step: {line.strip()[:60]!r}")
        left, operator, right, result = int(step[1]), step[2], int(step[3]), int(step[4])
        for operand in (left, right):
            if table[operand] == 0:
                detail = f"{operand} is not available in {step[0].strip()!r}"
                return Grade(Outcome.WRONG, 0.0, written, detail)
            table[operand] -= 1
        if _result(left, operator, right) != result:
            return Grade(Outcome.WRONG, 0.0, written, f"{step[0].strip()!r} is false")
        table[result] += 1
    if result != target:
        return Grade(Outcome.WRONG, 0.0, written, f"ends in {result}, not in {target}")
    if table.total() > 1:
        return Grade(Outcome.WRONG, 0.0, written, "a number was not used")
    return Grade(Outcome.CORRECT, 1.0, written)
