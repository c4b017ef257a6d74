"""Small data files of our own, of the shapes of MATH, GSM8K, MBPP and HumanEval; and where the public ones lie."""

import gzip
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest

PUBLIC = Path(os.environ.get("SELFCORRECT_DATA", Path(__file__).parents[3] / "shared" / "data"))
EACH = pytest.mark.parametrize(  # the rows of a public file that a test takes
    "step", [pytest.param(10, id="each tenth"), pytest.param(1, id="all", marks=pytest.mark.nightly)]
)


def public_rows(name: str) -> list[dict[str, Any]]:
    """The rows of a public file: JSON Lines or one JSON list, gzipped or not."""
    opened = gzip.open if name.endswith(".gz") else open
    with opened(PUBLIC / name, "rt", encoding="utf-8") as file:
        text = file.read()
    if text.startswith("["):
        listed: list[dict[str, Any]] = json.loads(text)
        return listed
    return [json.loads(line) for line in text.split("\n") if line]


MATH = [
    {
        "problem": f"What is ${n} + {n}$?",
        "solution": f"Twice ${n}$ is $\\boxed{{{2 * n}}}$.",
        "answer": str(2 * n),
        "subject": "Algebra",
        "level": 1 if n % 2 else None,
    }
    for n in range(12)
]
GSM8K = [
    {"question": f"A bag holds {n} pears, another {n + 1}. How many?", "answer": f"{n}+{n + 1}\n#### {2 * n + 1}"}
    for n in range(6)
]


def mbpp_row(number: int) -> dict[str, Any]:
    """add_NUMBER(x) adds NUMBER; its program has Windows line ends."""
    name = f"add_{number}"
    return {
        "task_id": number,
        "text": f"Write a function that adds {number}.",
        "code": f"def {name}(x):\r\n    return x + {number}\r\n",
        "test_list": [f"assert {name}({x}) == {x + number}" for x in (0, 5, -number)],
        "test_setup_code": "",
        "challenge_test_list": [],
    }


MBPP = [mbpp_row(number) for number in (1, 2, 3, 4, 11, 12, 13, 511, 601, 602, 603, 604)]


def humaneval_row(n: int) -> dict[str, Any]:
    """times_N(x) multiplies by N, by a helper that the prompt defines."""
    return {
        "task_id": f"HumanEval/{n}",
        "prompt": f"import math\n\n\ndef helper(x):\n    return x\n\n\ndef times_{n}(x: int) -> int:\n"
        f'    """Multiply by {n}.\n    >>> times_{n}(2)\n    {2 * n}\n    """\n',
        "entry_point": f"times_{n}",
        "canonical_solution": f"    return helper(x) * {n}\n",
        "test": f"\n\nMETADATA = {{}}\n\n\ndef check(candidate):\n    assert candidate(2) == {2 * n}\n"
        f"    assert candidate(0) == 0\n",
    }


HUMANEVAL = [humaneval_row(n) for n in range(4)]


def write(file: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    """Rows as JSON Lines; folders on the way are made."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def math_folder(folder: Path) -> Path:
    """MATH's layout: train 0-5, test 6-11, of which 10 and 11 are its `MATH-500`."""

    def rows(split: str, start: int, end: int) -> list[dict[str, Any]]:
        return [{**row, "unique_id": f"{split}/algebra/{n}.json"} for n, row in enumerate(MATH)][start:end]

    write(folder / "train.jsonl", rows("train", 0, 6))
    write(folder / "test.jsonl", rows("test", 6, 12))
    write(folder / "math500.jsonl", rows("test", 10, 12))
    return folder


def code_folder(folder: Path) -> Path:
    """mbpp.jsonl and HumanEval.jsonl side by side."""
    write(folder / "mbpp.jsonl", MBPP)
    write(folder / "HumanEval.jsonl", HUMANEVAL)
    return folder
