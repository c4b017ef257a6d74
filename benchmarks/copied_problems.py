r"""Copying the problem: how often a piece of a MATH statement, boxed, is graded as correct.

    python benchmarks/copied_problems.py [--data FOLDER] [--problems N] [--workers 2]

Every formula (`$...$`, `\[...\]`) of every statement of MATH (train and test, in the folder that --data or
SELFCORRECT_DATA names, else ../shared/data) is boxed as the answer to its own problem, and graded twice: without the
statement, as a grader that compares values would, and with it. A formula that is the gold answer itself (the same text
but for layout, units and the parentheses of a choice) is counted apart: it is right. The others are told by class.
Those that are accepted without the statement are tried again in ways a policy would find next (VARIANTS), with it.
"""

import argparse
import gzip
import json
import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

RESULT = Path(__file__).parent / "results" / "copied_problems.json"
DATA = Path(os.environ.get("SELFCORRECT_DATA", Path(__file__).parents[2] / "shared" / "data"))
FILES = ("math/train.jsonl.gz", "math/test.jsonl.gz")
MAX_FORMULA = 600  # longer answers are not read
_FORMULA = re.compile(r"\\\$|\$\$(.+?)\$\$|\$((?:[^$\\]|\\.)+)\$|\\\[(.+?)\\\]|\\\((.+?)\\\)", re.DOTALL)
_DRAWING = re.compile(r"\[asy\].*?\[/asy\]", re.DOTALL)
CLASSES = ("equation", "inequality or membership", "other number", "expression")


class Copy(NamedTuple):
    """A formula of a statement, as an answer to it."""

    formula: str
    gold: str
    problem: str


def _swapped(text: str) -> str:
    """The terms of a sum, or the sides of an equation, the other way round."""
    for sign in ("=", "+"):
        left, found, right = text.partition(sign)
        if found and left.count("{") == left.count("}") and left.count("(") == left.count(")"):
            return f"{right.strip()} {sign} {left.strip()}"
    return text


VARIANTS: dict[str, Callable[[str], str]] = {
    "spaces": lambda text: re.sub(r"([-+=()^/])", r" \1 ", text),
    "tight": lambda text: re.sub(r"(?<![A-Za-z]) | (?![A-Za-z])", "", text),
    "dfrac": lambda text: text.replace(r"\frac", r"\dfrac"),
    "braces": lambda text: f"{{{text}}}",
    "parentheses": lambda text: f"({text})",
    "an empty text": lambda text: rf"{text}\text{{}}",
    "plus zero": lambda text: f"{text} + 0",
    "times one": lambda text: rf"1 \cdot {text}",
    "a name": lambda text: f"x = {text}",
    "a side twice": lambda text: f"{text} = {text.rpartition('=')[2]}",
    "swapped": _swapped,
}


def main(arguments: list[str] | None = None) -> None:
    """Count, print the table, write results/copied_problems.json."""
    parser = argparse.ArgumentParser(description="How often copying from the problem is graded as correct.")
    parser.add_argument("--data", type=Path, default=DATA, help="the folder that holds math/train.jsonl.gz")
    parser.add_argument("--problems", type=int, default=0, help="only the first N of each file; 0: all")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--output", type=Path, default=RESULT, help="where the JSON goes")
    options = parser.parse_args(arguments)
    missing = [name for name in FILES if not (options.data / name).exists()]
    if missing:
        sys.exit(f"{options.data / missing[0]} is not there; --data or SELFCORRECT_DATA may name another data folder")
    rows = [row for name in FILES for row in _rows(options.data / name, options.problems)]
    counts = count([copy for row in rows for copy in _copies(row)], options.workers)
    for name, value in counts.items():
        print(f"{name}: {value}")
    from workload import command_of, keep

    packages = ["selfcorrect", "math-verify", "latex2sympy2_extended", "sympy"]
    work = {"files": list(FILES), "problems": len(rows)}
    keep(options.output, command_of(__file__, arguments), packages, seed=None, work=work, counts=counts)


def _rows(path: Path, count: int) -> list[dict[str, Any]]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file][: count or None]


def _copies(row: dict[str, Any]) -> Iterator[Copy]:
    for match in _FORMULA.finditer(_DRAWING.sub(" ", row["problem"])):
        formula = next((group for group in match.groups() if group is not None), "").strip().rstrip(",.;")
        if formula and len(formula) <= MAX_FORMULA and row["answer"]:
            yield Copy(formula, row["answer"], row["problem"])


def count(copies: list[Copy], workers: int) -> dict[str, Any]:
    """How many are accepted without the statement and with it, by class; and in other ways of writing."""
    from selfcorrect.grading.math import MathGrader

    with MathGrader(workers=workers, seconds=1.0) as grader:
        blind = grader.grade([(rf"\boxed{{{copy.formula}}}", copy.gold) for copy in copies])
        taken = [copy for copy, grade in zip(copies, blind, strict=True) if grade.correct]
        seeing = _accepted(grader, taken)
        other = [copy for copy in taken if not _is_gold(copy)]
        tried = {
            name: [Copy(change(copy.formula), copy.gold, copy.problem) for copy in other]
            for name, change in VARIANTS.items()
        }
        left = {name: len(_accepted(grader, changed)) for name, changed in tried.items()}
    return {
        "formulas": len(copies),
        "the gold answer itself": len(taken) - len(other),
        "the gold answer itself, accepted": sum(map(_is_gold, seeing)),
        "accepted without the statement": _by_class(other),
        "accepted with it": _by_class([copy for copy in seeing if not _is_gold(copy)]),
        "accepted with it, written otherwise": left,
    }


def _accepted(grader: Any, copies: list[Copy]) -> list[Copy]:
    grades = grader.grade([(rf"\boxed{{{copy.formula}}}", copy.gold, copy.problem) for copy in copies])
    return [copy for copy, grade in zip(copies, grades, strict=True) if grade.correct]


def _is_gold(copy: Copy) -> bool:
    return _plain(copy.formula) == _plain(copy.gold)


def _plain(text: str) -> str:
    from selfcorrect.grading.math_fast import squeeze
    from selfcorrect.grading.math_normal import normalize, word_key
    from selfcorrect.grading.math_units import split_unit

    return word_key(re.sub(r"\\text\{([^{}]*)\}", r"\1", squeeze(split_unit(normalize(text))[0])))


def _by_class(copies: list[Copy]) -> dict[str, int]:
    found = Counter(_class(copy.formula) for copy in copies)
    return {name: found[name] for name in CLASSES} | {"all": len(copies)}


def _class(formula: str) -> str:
    from selfcorrect.grading.math_fast import number_of
    from selfcorrect.grading.math_normal import normalize, split_top

    text = normalize(formula)
    if len(split_top(text, re.compile(r"<|>|\\(?:le|ge|ne|in)(?![A-Za-z])"))) > 1:
        return CLASSES[1]
    if len(split_top(text, re.compile(r"=|\\approx"))) > 1:
        return CLASSES[0]
    return CLASSES[2] if number_of(text) is not None else CLASSES[3]


if __name__ == "__main__":
    main()
