"""Mutated programs and random bytes: every one gets a verdict of the closed set, and none harms the next."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selfcorrect.grading.judge import Checks, CodeJudge, Reason
from selfcorrect.seeds import derive_seed
from tests.judge.hostile import CHECKS, FORGE, OK
from tests.support.data import PUBLIC, public_rows

TOKENS = (
    "while True:", "return", "import os", "lambda:", "yield", "raise", "exit()", "None", "((((", "\t", "\n", "'''", "*" * 50,
    "9" * 40, "[[" * 30, "\x00", "\ud800", "é", "print(", "input()", "async ", "del ", "global add", "f'{x!r:>{99}}'", "open('/x')",
)  # fmt: skip
ONE = CodeJudge(workers=1, time_limit=0.3)  # starts at its first program
ADD = "def add(x, y):\n    return x + y\n"


def mutate(source: str, draw: random.Random) -> str:
    """A few cuts, copies, swaps and insertions."""
    for _ in range(draw.randint(1, 4)):
        at, to = sorted((draw.randint(0, len(source)), draw.randint(0, len(source))))
        match draw.randint(0, 4):
            case 0:
                source = source[:at] + source[min(to, at + 40) :]
            case 1:
                source = source[:at] + draw.choice(TOKENS) + source[at:]
            case 2:
                source = source[:to] + source[at : min(to, at + 60)] + source[to:]
            case 3:
                source = source[:at] + chr(draw.randint(1, 0x2FF)) + source[at + 1 :]
            case 4:
                lines = source.split("\n")
                draw.shuffle(lines)
                source = "\n".join(lines)
    return source


def judge_all(judge: CodeJudge, cases: list[tuple[str, Checks]]) -> None:
    """A right program follows every 20th: it must pass whatever went before."""
    mixed = [
        case
        for place, case in enumerate(cases)
        for case in ([case, (ADD, CHECKS["add"])] if place % 20 == 0 else [case])
    ]
    found = judge.grade(mixed)
    assert {v.reason for (source, _), v in zip(mixed, found, strict=True) if source == ADD} == {Reason.PASSED}
    failed = [(source, v) for (source, _), v in zip(mixed, found, strict=True) if v.reason is Reason.GRADER_FAILED]
    assert failed == []
    assert all(v.seconds < 0.3 + 0.5 for v in found)


def test_mutants_of_our_own_programs() -> None:
    draw = random.Random(derive_seed("judge fuzz"))
    sources = [*OK.values(), *FORGE.values()]
    judge_all(ONE, [(mutate(draw.choice(sources), draw), CHECKS["add"]) for _ in range(90)])


@given(
    st.lists(
        st.binary(max_size=200).map(lambda b: b.decode("latin-1")) | st.text(max_size=200), min_size=20, max_size=20
    )
)
@settings(max_examples=6)
def test_random_text_is_no_program(texts: list[str]) -> None:
    reasons = {verdict.reason for verdict in ONE.grade([(text, CHECKS["add"]) for text in texts])}
    assert not reasons & {Reason.PASSED, Reason.GRADER_FAILED}


@pytest.mark.nightly
@pytest.mark.skipif(not PUBLIC.is_dir(), reason="shared data is not there")
def test_mutants_of_real_programs() -> None:
    draw = random.Random(derive_seed("judge fuzz", "real"))
    rows = [row for row in public_rows("labelled_code/programs.jsonl.gz") if "tests" in row]
    picked = [draw.choice(rows) for _ in range(10_000)]
    with CodeJudge(time_limit=0.3) as judge:
        judge_all(judge, [(mutate(row["program"], draw), Checks(row["tests"])) for row in picked])
