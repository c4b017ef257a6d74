"""The math grader on the public data sets, where they are present: golds, real model outputs, and mutations of both.

What the numbers mean is told in docs/grading.md, class by class.
"""

import json
import os
import random
import re
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from selfcorrect.grading.math import MathGrader, gold_answer
from selfcorrect.types import Outcome
from tests.benchmarks.conftest import Script
from tests.support.data import EACH, PUBLIC, public_rows
from tests.support.processes import descendants, resident_pages

CLOSED = {Outcome.CORRECT, Outcome.WRONG, Outcome.NO_ANSWER, Outcome.TIMEOUT}  # verdicts that stay in the loss

pytestmark = pytest.mark.skipif(
    not (PUBLIC / "labelled_math").is_dir(), reason=f"no public data in {PUBLIC}; SELFCORRECT_DATA may name its folder"
)


rows = cache(public_rows)


@pytest.fixture(scope="module")
def labelled() -> list[dict[str, Any]]:
    return rows("labelled_math/math_outputs.jsonl.gz")


@pytest.fixture(scope="module")
def grader() -> Iterator[MathGrader]:
    with MathGrader(workers=1, seconds=3.0) as shared:
        yield shared


@EACH
def test_every_gold_of_math_equals_itself_in_its_solution(step: int, grader: MathGrader) -> None:
    problems = rows("math/train.jsonl.gz") + rows("math/test.jsonl.gz")
    assert len(problems) == 12_500
    assert all(gold_answer(row["solution"], "math") == row["answer"].strip() for row in problems)
    empty = {"train/number_theory/7115.json", "train/number_theory/7117.json"}
    tried = [row for at, row in enumerate(problems) if at % step == 0 or row["unique_id"] in empty]
    grades = grader.grade([(row["solution"], row["answer"], row["problem"]) for row in tried])
    failures = {row["unique_id"]: grade.detail for row, grade in zip(tried, grades, strict=True) if not grade.correct}
    assert failures == dict.fromkeys(empty, "the gold answer is empty")


@EACH
def test_every_gold_of_gsm8k_equals_itself_in_its_solution(step: int, grader: MathGrader) -> None:
    problems = rows("gsm8k/train.jsonl.gz") + rows("gsm8k/test.jsonl.gz")
    assert len(problems) == 8_792
    problems = problems[::step]
    golds = [gold_answer(row["answer"], "gsm8k") or "" for row in problems]
    grades = grader.grade([(row["answer"], gold, row["question"]) for row, gold in zip(problems, golds, strict=True)])
    assert all(grade.correct for grade in grades)


def test_model_solutions_to_gsm8k(grader: MathGrader) -> None:
    """5,276 solutions of four models, their last line `A: x` written as `#### x`: every verdict as published."""
    problems = rows("gsm8k/example_model_solutions.jsonl.gz")
    answers, labels = [], []
    for row in problems:
        for solution in (value for value in row.values() if isinstance(value, dict)):
            text = re.sub(r"(?m)^A: ", "#### ", solution["solution"])
            answers.append((text, row["ground_truth"].rsplit("A: ", 1)[1].strip()))
            labels.append(solution["is_correct"])
    assert [grade.correct for grade in grader.grade(answers)] == labels
    assert len(labels) == 5_276


def test_real_model_outputs(grader: MathGrader, labelled: list[dict[str, Any]]) -> None:
    """The confusion table of docs/grading.md: (published label, math-verify, ours)."""
    grades = grader.grade([(row["response"], row["gold"], row["problem"]) for row in labelled])
    verdicts = [grade.correct for grade in grades]
    table = Counter(
        (row["published_label"], row["math_verify"], ours) for row, ours in zip(labelled, verdicts, strict=True)
    )
    assert table == {
        (True, True, True): 1355, (False, False, False): 713, (None, False, False): 520, (None, True, True): 270,
        (True, False, False): 39, (True, True, False): 25, (False, True, True): 13, (None, True, False): 5,
        (False, True, False): 4, (False, False, True): 3, (True, False, True): 2,
    }  # fmt: skip
    assert not {grade.outcome for grade in grades} & {Outcome.TIMEOUT, Outcome.GRADER_FAILED}
    by_hand = [(row["adjudicated"], grade) for row, grade in zip(labelled, grades, strict=True) if "adjudicated" in row]
    assert not any(grade.correct for right, grade in by_hand if right is False)
    missed = [grade.outcome for right, grade in by_hand if right and not grade.correct]
    assert missed == [Outcome.NO_ANSWER] * 2  # equations outside any box


@pytest.mark.parametrize("step", [3, pytest.param(1, marks=pytest.mark.nightly)])
def test_golds_made_wrong_are_not_accepted(step: int, grader: MathGrader) -> None:
    """From every list, interval and decimal among the golds: a member left out or added, an end moved, a digit rounded."""
    golds = sorted({row["answer"] for row in rows("math/train.jsonl.gz") + rows("math/test.jsonl.gz")} - {""})[::step]
    wrong = []
    for gold in golds:
        members = gold.split(",")
        if len(members) > 1 and re.fullmatch(r"[-+\w\\{}/. ,]+", gold) and not re.search(r"\\,|\d,\\?!?\d{3}", gold):
            wrong += [(gold, ",".join(members[:i] + members[i + 1 :])) for i in range(len(members))]
            wrong.append((gold, f"{gold}, 12345"))
        swaps = {"(": "[", "[": "(", ")": "]", "]": ")"}
        if "," in gold and re.match(r"\s*(?:\\left)?\s*[(\[]", gold) and "infty" not in gold:
            first = re.search(r"[(\[]", gold)
            assert first
            wrong.append((gold, gold[: first.start()] + swaps[first[0]] + gold[first.end() :]))
        if "infty" in gold:
            wrong += [(gold, gold[:i] + swaps[c] + gold[i + 1 :]) for i, c in enumerate(gold) if c in swaps]
        if re.fullmatch(r"-?\d*\.\d+", gold):
            wrong += [(gold, gold + "3"), (gold, gold[:-1] + str((int(gold[-1]) + 1) % 10))]
        if re.fullmatch(r"\\frac\{\d+\}\{\d+\}", gold):
            top, bottom = map(int, re.findall(r"\d+", gold))
            wrong += [(gold, f"{top / bottom:.{digits}f}") for digits in (2, 6, 12) if top * 10**digits % bottom]
        if re.fullmatch(r"\d*\\sqrt\{\d+\}", gold):
            factor, root = re.findall(r"(\d*)\\sqrt\{(\d+)\}", gold)[0]
            wrong += [(gold, f"{int(factor or 1) * int(root) ** 0.5:.{digits}f}") for digits in (1, 4, 15)]
    assert len(wrong) > (3_000 if step == 1 else 900)
    grades = grader.grade([(rf"\boxed{{{given}}}", gold) for gold, given in wrong])
    assert [pair for pair, grade in zip(wrong, grades, strict=True) if grade.correct] == []


SHAPES = [
    r"\sqrt{x+\sqrt{2}}", r"\frac{x}{y+1}", "x>3", "(1,2)", r"\{1,2\}", r"[0,1)\cup\{5\}", r"\text{maybe}", "|x|", r"\infty", "x=z^y",
    r"\begin{pmatrix}1\\2\end{pmatrix}", r"\sin x", "1,x", r"-\frac{1}{2^x}", r"\triangle ABC", "x + c", r"9^{x}!", r"\&^", "z:1",
]  # fmt: skip


def never_left_out(step: int, grader: MathGrader) -> None:
    """No wrong answer, of whatever shape, makes the grader fail on a gold answer of MATH: spaced, unspaced, as it is."""
    golds = sorted({row["answer"] for row in rows("math/train.jsonl.gz") + rows("math/test.jsonl.gz")} - {""})[::step]
    spaced = [re.sub(r"([-+=(),<>]|\\cup)", r" \1 ", gold) for gold in golds]
    unspaced = [re.sub(r"(?<![A-Za-z,]) | (?![A-Za-z\d])", "", gold) for gold in golds]
    answers = [
        (rf"\boxed{{{given}}}", gold)
        for versions in zip(golds, spaced, unspaced, strict=True)
        for gold in sorted(set(versions))
        for given in [*SHAPES, f"{versions[0]}+q"]
    ]
    grades = grader.grade(answers)
    failed = [(*pair, grade.detail) for pair, grade in zip(answers, grades, strict=True) if grade.outcome not in CLOSED]
    assert failed == []


def test_no_answer_is_left_out(grader: MathGrader) -> None:
    never_left_out(499, grader)


@pytest.mark.nightly
def test_no_answer_is_left_out_anywhere() -> None:
    with MathGrader(workers=2, seconds=5.0) as grader:
        never_left_out(1, grader)


@pytest.mark.nightly
def test_copies_of_the_problem_are_counted(script: Script, tmp_path: Path) -> None:
    """The benchmark at a tiny size: what is accepted without the statement is refused with it."""
    output = tmp_path / "copied.json"
    size = ["--data", str(PUBLIC), "--problems", "40", "--output", str(output)]
    script("benchmarks/copied_problems.py").main(size)
    counts = json.loads(output.read_text())["counts"]
    assert counts["accepted without the statement"]["all"] > 0
    assert counts["accepted with it"]["all"] == 0
    assert set(counts["accepted with it, written otherwise"].values()) == {0}


def mutated(text: str, rng: random.Random) -> str:
    """One or two cuts, copies, swaps or foreign pieces, mostly near the end, where the answer is."""
    foreign = ["{", "}", "\\", "$", "\\boxed{", "\\frac{", "\\\\", "\x00", "\ud800", "^{9^{9}}", ",", "(", "]", "#### "]
    for _ in range(rng.randint(1, 2)):
        start = max(0, len(text) - rng.choice([20, 60, 200, 10_000]))
        a, b = sorted(rng.randint(start, len(text)) for _ in range(2))
        kind = rng.randrange(4)
        piece = rng.choice(foreign) * rng.choice([1, 1, 50])
        text = (
            text[:a] + text[b:] if kind == 0
            else text[:b] + text[a:] if kind == 1
            else text[:a] + piece + text[a:] if kind == 2
            else text[:a] + text[a:b][::-1] + text[b:]
        )  # fmt: skip
    return text


def fuzz(labelled: list[dict[str, Any]], count: int, seed: int, grader: MathGrader) -> Counter[Outcome]:
    rng = random.Random(seed)
    picked = [rng.choice(labelled) for _ in range(count)]
    answers = [
        (mutated(row["response"], rng), mutated(row["gold"], rng) if rng.random() < 0.2 else row["gold"])
        for row in picked
    ]
    grades = grader.grade(answers)
    for (_, gold), grade in zip(answers, grades, strict=True):
        assert grade.reward == float(grade.correct)
        assert grade.outcome is not Outcome.GRADER_FAILED or gold not in {row["gold"] for row in picked}
    return Counter(grade.outcome for grade in grades)


def test_mutated_outputs(labelled: list[dict[str, Any]], grader: MathGrader, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grader._pool, "seconds", 0.5)
    outcomes = fuzz(labelled, 300, 0, grader)
    assert outcomes.keys() <= {*CLOSED, Outcome.GRADER_FAILED}
    assert outcomes[Outcome.CORRECT] > 50
    assert outcomes[Outcome.WRONG] > 50


@pytest.mark.nightly
def test_many_mutated_outputs(labelled: list[dict[str, Any]]) -> None:
    with MathGrader(workers=2, seconds=1.0) as grader:
        outcomes = fuzz(labelled, 30_000, 1, grader)
    assert outcomes.keys() <= {*CLOSED, Outcome.GRADER_FAILED}


@EACH
def test_fast_and_slow_path_agree(step: int, labelled: list[dict[str, Any]], grader: MathGrader) -> None:
    """Real outputs once more, with every comparison of scalars left to math-verify."""
    answers = [(row["response"], row["gold"]) for row in labelled[:: step if step == 1 else 3 * step]]
    slow = MathGrader(fast=False)
    slow._pool = grader._pool  # with the same workers
    careful = slow.grade(answers)
    quick = grader.grade(answers)
    assert [grade.outcome for grade in quick] == [grade.outcome for grade in careful]


@pytest.mark.nightly
def test_memory_stays_flat_over_a_hundred_thousand_answers() -> None:
    """Each answer is written so that a worker must look at it."""
    with MathGrader(workers=2, fast=False) as grader:
        peaks = []
        for start in range(2, 100_002, 10_000):
            rows = [
                (f"\\boxed{{\\frac{{{n}}}{{{n + 1}}}}}", f"\\frac{{{2 * n}}}{{{2 * n + 2}}}")
                for n in range(start, start + 10_000)
            ]
            assert sum(grade.correct for grade in grader.grade(rows)) == len(rows)
            peaks.append(resident_pages(descendants(os.getpid())) / 256)  # MiB
    assert peaks[0] > 20, "no worker looked at anything"
    assert max(peaks[1:]) < peaks[0] * 1.5 + 20, peaks
