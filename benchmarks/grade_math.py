"""Grading of real model solutions to MATH: selfcorrect's MathGrader beside math-verify called directly, in one run.

    python benchmarks/grade_math.py [--pairs 5] [--workers 1]

Both sides grade the same list (labelled_math/math_outputs.jsonl.gz in the folder that SELFCORRECT_DATA names, else
../shared/data: 2,949 texts). They take turns, each turn in a process of its own, so that no cache outlives it. What is
timed: for math-verify `verify(parse("$" + gold + "$"), parse(text))` for every row, as its README shows, with its
import left out; for selfcorrect one call of `grade`, with the start of its workers and their imports (about 0.4 s)
left in. A third number, "warm", is the same call in a grader whose worker has been started and whose cache is empty.

The verdicts are compared as correct or not, row by row: "same" rows, rows that only math-verify accepts and rows that
only selfcorrect accepts. Every one of the latter two is explained in docs/grading.md.
"""

import argparse
import gzip
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

RESULT = Path(__file__).parent / "results" / "grade_math.json"
DATA = Path(os.environ.get("SELFCORRECT_DATA", Path(__file__).parents[2] / "shared" / "data"))
LIST = "labelled_math/math_outputs.jsonl.gz"
SIDES = ("math-verify", "selfcorrect")


def main(arguments: list[str] | None = None) -> None:
    """Run the pairs, print the table, write results/grade_math.json."""
    parser = argparse.ArgumentParser(description="MathGrader beside math-verify called directly.")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--workers", type=int, default=1, help="worker processes of selfcorrect")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--output", type=Path, default=RESULT, help="where the JSON goes")
    options = parser.parse_args(arguments)
    if not (DATA / LIST).exists():
        sys.exit(f"{DATA / LIST} is not there; SELFCORRECT_DATA may name another data folder")
    if options.side:
        print(json.dumps(_math_verify() if options.side == "math-verify" else _selfcorrect(options.workers)))
        return
    pairs = []
    for index in range(options.pairs):
        theirs, ours = (_turn(side, options.workers) for side in SIDES)
        pair = {
            "math_verify": theirs["seconds"],
            "selfcorrect": ours["seconds"],
            "selfcorrect_warm": ours["warm_seconds"],
            "ratio": theirs["seconds"] / ours["seconds"],
            "ratio_warm": theirs["seconds"] / ours["warm_seconds"],
        }
        pairs.append(pair)
        print(
            f"pair {index + 1}  math-verify {pair['math_verify']:.2f} s   selfcorrect {pair['selfcorrect']:.2f} s "
            f"(warm {pair['selfcorrect_warm']:.2f} s)   ratio {pair['ratio']:.1f} (warm {pair['ratio_warm']:.1f})",
            flush=True,
        )
    _write(options, arguments, pairs, theirs["verdicts"], ours["verdicts"])


def _turn(side: str, workers: int) -> dict[str, Any]:
    command = [sys.executable, __file__, "--side", side, "--workers", str(workers)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    turn: dict[str, Any] = json.loads(done.stdout)
    return turn


def _rows() -> list[dict[str, Any]]:
    with gzip.open(DATA / LIST, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def _math_verify() -> dict[str, Any]:
    import logging

    from math_verify import parse, verify

    logging.disable(logging.CRITICAL)
    rows = _rows()
    start = time.perf_counter()
    verdicts = [verify(parse(f"${row['gold']}$"), parse(row["response"])) for row in rows]
    return {"seconds": time.perf_counter() - start, "verdicts": verdicts}


def _selfcorrect(workers: int) -> dict[str, Any]:
    from selfcorrect.grading.math import MathGrader

    answers = [(row["response"], row["gold"]) for row in _rows()]
    with MathGrader(workers=workers) as grader:
        start = time.perf_counter()
        grades = grader.grade(answers)
        seconds = time.perf_counter() - start
    with MathGrader(workers=workers) as grader:
        grader.grade([("\\boxed{2\\sqrt{1+x}}", "\\sqrt{4+4x}")])  # one answer that needs the worker
        start = time.perf_counter()
        grader.grade(answers)
        warm_seconds = time.perf_counter() - start
    return {"seconds": seconds, "warm_seconds": warm_seconds, "verdicts": [grade.correct for grade in grades]}


def _write(
    options: argparse.Namespace, arguments: list[str] | None, pairs: list[dict[str, float]], theirs: list[bool],
    ours: list[bool],
) -> None:  # fmt: skip
    from workload import command_of, keep

    summary: dict[str, dict[str, Any]] = {
        name: {"median": statistics.median(values), "range": [min(values), max(values)]}
        for name in pairs[0]
        for values in [[pair[name] for pair in pairs]]
    }
    verdicts = {
        "rows": len(ours),
        "same": sum(a == b for a, b in zip(theirs, ours, strict=True)),
        "only_math_verify_accepts": sum(a and not b for a, b in zip(theirs, ours, strict=True)),
        "only_selfcorrect_accepts": sum(b and not a for a, b in zip(theirs, ours, strict=True)),
    }
    print(
        f"seconds, math-verify / selfcorrect: median {summary['ratio']['median']:.1f} "
        f"(range {summary['ratio']['range'][0]:.1f} to {summary['ratio']['range'][1]:.1f}), "
        f"warm {summary['ratio_warm']['median']:.1f}; verdicts: {verdicts}"
    )
    keep(
        options.output, command_of(__file__, arguments),
        ["selfcorrect", "math-verify", "latex2sympy2_extended", "sympy"], seed=None,
        work={"list": LIST, "rows": len(ours), "workers": options.workers}, summary=summary, verdicts=verdicts,
        pairs=pairs,
    )  # fmt: skip


if __name__ == "__main__":
    main()
