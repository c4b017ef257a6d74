r"""The worker of the math grader: a process of its own, where math-verify reads what a model wrote.

It reads one JSON object a line from standard input, ``{"gold": ..., "given": ...}``, and writes one line for each:
``{"same": true | false, "detail": ...}``, or ``{"spent": ...}`` where the memory or the stack ran out. The gold answer
can be read: the parent has tried. Time is kept by the parent, which kills it; math-verify's own alarms are off. It ends
with its input, and on Linux with its parent.
"""

import json
import os
import re
import resource
import signal
import sys
from typing import Any

from selfcorrect.grading.judge.confine import die_with_parent
from selfcorrect.grading.math_compare import compare
from selfcorrect.grading.math_fast import fast_scalar, number_of
from selfcorrect.grading.math_latex import ROW
from selfcorrect.grading.math_normal import Unreadable

MEMORY_BYTES = 2 << 30
CPU_SECONDS = 3600  # of a worker's whole life; one answer's limit is kept by the parent
_DIGITS = 50  # of the second look at an equality that math-verify claims
_TOLERANCE = "1e-30"
_DECIMAL = re.compile(r"(?<![\d.])(\d*)\.(\d+)(?![\d.])")
_EULER = re.compile(r"(?<=\d)e(?=[+-])")  # `2e+1` is no 20
_ONE_POWER = re.compile(r"([\^_])([A-Za-z\d])")
_FUNCTION_POWER = re.compile(
    r"\\(sin|cos|tan|sec|csc|cot|log|ln)\s*\^\s*\{?(\d)\}?\s*(\\?[A-Za-z]+|\d+)(?![A-Za-z({\d])"
)

_NAME = re.compile(r"\\mathbb\s*\{?\s*[A-Z]|\\[A-Za-z]+|(?P<name>[A-Z]+|d)")
_FUNCTION_OF_ONE = re.compile(r"\\(sin|cos|tan|sec|csc|cot|log|ln)\s+([A-Za-z])(?![A-Za-z({^_\d])")  # `\sin t`


def slow_scalar(gold: str, given: str, *, fast: bool = True) -> bool:
    """Whether two scalars are equal, by math-verify, and then exactly: it rounds, and takes tiny differences for none.

    What math-verify cannot read is equal to nothing but its own text, which was compared before.
    """
    known = fast_scalar(gold, given) if fast else None
    if known is not None:
        return known
    from math_verify import verify

    left, right = _read(gold), _read(given)
    if left is None or right is None or not _agree(left, right):  # our own look first: the cheaper refusal
        return False
    return bool(verify(left, right, timeout_seconds=None, allow_set_relation_comp=True))


def to_exact(text: str) -> str:
    """LaTeX for math-verify: decimals as fractions, so that nothing is rounded on the way."""
    number = number_of(text)
    if number is not None:
        return rf"\frac{{{number.numerator}}}{{{number.denominator}}}"
    text = text.replace(ROW, r"\\")
    text = text if "\\int" in text else _NAME.sub(_own_name, text)
    text = _DECIMAL.sub(lambda match: rf"\frac{{{int(match[1] + match[2])}}}{{{10 ** len(match[2])}}}", text)
    text = _EULER.sub(r" \\cdot e ", text)
    text = _FUNCTION_POWER.sub(r"{\\\1(\3)}^{\2}", text)
    text = _FUNCTION_OF_ONE.sub(r"\\\1(\2)", text)
    return _ONE_POWER.sub(r"\1{\2}", text)


def _own_name(match: re.Match[str]) -> str:
    """Letters by their numbers: math-verify takes `Y` for `y`, points `AB` for a product, `dx` for a differential."""
    return f"n_{{{''.join(str(ord(letter)) for letter in match['name'])}}}" if match["name"] else match[0]


def _read(text: str) -> Any:
    from latex2sympy2_extended import NormalizationConfig
    from math_verify import LatexExtractionConfig, parse

    # units are off before: left to the library, the `c` of `x + c` is one
    plain = NormalizationConfig(basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="none")
    found = parse(
        f"${to_exact(text)}$",
        [LatexExtractionConfig(normalization_config=plain)],
        fallback_mode="no_fallback",
        parsing_timeout=None,
    )
    return _one_kind_of_letter(found[0]) if found else None


def _one_kind_of_letter(read: Any) -> Any:
    """math-verify calls the `i` of `1+i` another letter than that of `2i`; here one name is one letter."""
    from sympy import Symbol

    odd = {name: Symbol(name.name, real=True) for name in getattr(read, "free_symbols", ()) if not name.is_real}
    return read.xreplace(odd) if odd else read


def _agree(left: Any, right: Any) -> bool:
    """The second look: exact for relations and sets, to fifty digits at two points for expressions."""
    from sympy import Eq, MatrixBase, Set, simplify
    from sympy.core.relational import Relational

    if (
        isinstance(left, (Set, Relational))
        or isinstance(right, (Set, Relational))
        or _is_chain(left)
        or _is_chain(right)
    ):
        if isinstance(left, Eq) and isinstance(right, Eq):
            ratio = simplify((left.lhs - left.rhs) / (right.lhs - right.rhs))
            return bool(ratio.is_number and ratio.is_finite and ratio != 0)
        if isinstance(left, Eq) or isinstance(right, Eq):
            return False
        one, other = _as_set(left), _as_set(right)
        if one is None or other is None:
            return _same_inequality(left, right)
        return bool(one == other)
    if isinstance(left, MatrixBase) or isinstance(right, MatrixBase):
        return (
            isinstance(right, MatrixBase)
            and isinstance(left, MatrixBase)
            and bool(simplify(left - right).is_zero_matrix)
        )
    if _is_infinite(left) != _is_infinite(right):  # sympy takes an infinite difference for none at all
        return False
    return all(_agree_at(left, right, start) for start in (17, 29))


def _is_infinite(value: Any) -> bool:
    from sympy import S

    return bool(value.has(S.Infinity, S.NegativeInfinity, S.ComplexInfinity, S.NaN))


def _is_chain(value: Any) -> bool:
    from latex2sympy2_extended.logic import And

    return isinstance(value, And)


def _as_set(value: Any) -> Any:
    """The real numbers that a set, an inequality in one variable or a chain of those describes; None otherwise."""
    from sympy import Intersection, Set

    if isinstance(value, Set):
        return value
    if len(value.free_symbols) != 1:
        return None
    parts = value._unsorted_args if _is_chain(value) else (value,)
    return Intersection(*(part.as_set() for part in parts))


def _same_inequality(left: Any, right: Any) -> bool:
    from sympy import Eq, simplify
    from sympy.core.relational import Relational

    if not (isinstance(left, Relational) and isinstance(right, Relational)) or isinstance(left, Eq):
        return False
    if type(left) is not type(right):
        right = right.reversed
    ratio = simplify((left.lhs - left.rhs) / (right.lhs - right.rhs))
    return type(left) is type(right) and bool(ratio.is_number and ratio.is_positive)


def _agree_at(left: Any, right: Any, start: int) -> bool:
    from sympy import N, Rational, simplify

    names = sorted(left.free_symbols | right.free_symbols, key=str)
    point = {name: Rational(start + 6 * index, 11 + 2 * index) for index, name in enumerate(names)}
    one, other = (N(value.subs(point).doit(), _DIGITS) for value in (left, right))
    if not (one.is_number and other.is_number):
        return bool(simplify(left - right) == 0)
    if not (one.is_finite and other.is_finite):
        return one.is_finite == other.is_finite and bool(one == other)
    size = max(abs(one), abs(other))
    difference = abs(one - other)
    return bool(difference == 0 or difference <= size * N(_TOLERANCE) or getattr(difference, "_prec", 0) == 1)


def _is_dress(rest: str) -> bool:
    """Whether a text around `Q` is worth Q: at two points above zero, so a root of a square and a modulus are too."""
    try:
        formula, whole = _read("Q"), _read(rest)
        return whole is not None and all(_agree_at(formula, whole, start) for start in (17, 29))
    except Exception:  # noqa: BLE001 - sympy's, on a model's text: it is no dress that we can tell
        return False


def judge(job: dict[str, Any]) -> dict[str, Any]:
    """One comparison, whatever the texts hold."""
    try:
        units = frozenset(job["units"])
        same = compare(job["gold"], job["given"], lambda gold, given: slow_scalar(gold, given, fast=job["fast"]), units)
    except Unreadable as error:
        return {"same": False, "detail": str(error)}
    except (MemoryError, RecursionError) as error:
        return {"spent": f"{type(error).__name__} in the worker"}
    except Exception as error:  # noqa: BLE001 - sympy raises what it likes on a model's text; the gold was read before
        return {"same": False, "detail": f"{type(error).__name__} while comparing"}
    dressed = bool(same) and any(map(_is_dress, job["dressings"]))
    return {"same": bool(same), "detail": "", "dressed": dressed}


def _confine(parent: int) -> None:
    """Limits on the worker itself, and its end with the parent's."""
    die_with_parent(parent)
    limits = [(resource.RLIMIT_AS, MEMORY_BYTES), (resource.RLIMIT_CPU, CPU_SECONDS)]
    limits += [(resource.RLIMIT_CORE, 0), (resource.RLIMIT_FSIZE, 0)]  # no core dump, no byte into any file
    for kind, bound in limits:
        _, hard = resource.getrlimit(kind)
        within = bound if hard == resource.RLIM_INFINITY else min(bound, hard)
        try:
            resource.setrlimit(kind, (within, within))
        except (ValueError, OSError):  # macOS refuses RLIMIT_AS
            continue


def main(parent: int) -> None:
    """Answer until the input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # ctrl-C is the parent's to handle
    _confine(parent)
    output = os.fdopen(os.dup(1), "w", encoding="ascii")
    os.dup2(2, 1)  # nothing that a library prints can look like a reply
    try:
        slow_scalar("x+1", "1+x", fast=False)  # imports, and the parser's tables
        ready: dict[str, Any] = {"ready": True}
    except ImportError as error:
        ready = {"ready": False, "detail": f"{error}; install it with: pip install math-verify"}
    print(json.dumps(ready), file=output, flush=True)
    for line in sys.stdin:
        print(json.dumps(judge(json.loads(line))), file=output, flush=True)
