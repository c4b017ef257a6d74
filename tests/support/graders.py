"""Stand-ins for the graders of math and code: fast, in this process, and told what to say by the text alone."""

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from types import ModuleType
from typing import Any

import pytest

from selfcorrect.types import Grade, Outcome

FINAL_FORM = r"End with a line `Final answer: \boxed{...}`."


class FakeMathGrader:
    """Right where the gold stands in the last box."""

    def __init__(self, workers: int | None = None, seconds: float = 3.0) -> None:
        self.closed = False

    def grade(self, answers: Sequence[tuple[str, str]]) -> list[Grade]:
        found = [(re.findall(r"\\boxed\{([^}]*)\}", text), gold) for text, gold, *_ in answers]
        return [
            Grade(Outcome.NO_ANSWER, 0.0) if not boxes
            else Grade(Outcome.CORRECT, 1.0, gold) if boxes[-1] == gold
            else Grade(Outcome.WRONG, 0.0, boxes[-1])
            for boxes, gold in found
        ]  # fmt: skip

    def close(self) -> None:
        self.closed = True


def gold_answer(solution: str, style: str = "math") -> str | None:
    if style == "gsm8k":
        return solution.partition("####")[2].strip() or None
    boxes = re.findall(r"\\boxed(?:\{([^}]*)\}| (\S))", solution)
    return (boxes[-1][0] or boxes[-1][1] or None) if boxes else None


class Reason(StrEnum):
    passed = "passed"
    wrong_answer = "wrong_answer"
    exception = "exception"
    timeout = "timeout"
    grader_failed = "grader_failed"


@dataclass(frozen=True)
class Checks:
    code: str
    entry_point: str | None = None
    helpers: str = ""
    setup: str = ""
    reference: str = ""


@dataclass(frozen=True)
class Verdict:
    reason: Reason
    detail: str = ""
    seconds: float = 0.0


class FakeJudge:
    """The verdict that a program names in a comment, `# timeout`; `passed` where it runs through the tests here.

    For programs of our own only: nothing confines them.
    """

    def __init__(self, **options: Any) -> None:
        self.options, self.jobs = options, list[tuple[str, Checks]]()
        self.confinement = "nothing at all"

    def grade(self, jobs: Sequence[tuple[str, Checks]]) -> list[Verdict]:
        self.jobs += jobs
        return [_verdict(program, checks) for program, checks in jobs]

    def close(self) -> None:
        """Nothing to end."""


def _verdict(program: str, checks: Checks) -> Verdict:
    for reason in Reason:
        if f"# {reason}" in program:
            return Verdict(reason, "as told")
    names: dict[str, Any] = {}
    try:
        exec("\n".join([checks.helpers, program, checks.setup, checks.code]), names)
        if checks.entry_point:
            names["check"](names[checks.entry_point])
    except AssertionError:
        return Verdict(Reason.wrong_answer)
    except Exception as error:  # noqa: BLE001 - whatever the program does
        return Verdict(Reason.exception, type(error).__name__)
    return Verdict(Reason.passed)


def put_in_place(patch: pytest.MonkeyPatch) -> None:
    """From now on, and until the patch ends, tasks import these."""
    math, judge = ModuleType("selfcorrect.grading.math"), ModuleType("selfcorrect.grading.judge")
    math.__dict__.update(MathGrader=FakeMathGrader, gold_answer=gold_answer, FINAL_FORM=FINAL_FORM)
    judge.__dict__.update(CodeJudge=FakeJudge, Checks=Checks, Verdict=Verdict, Reason=Reason)
    patch.setitem(sys.modules, math.__name__, math)
    patch.setitem(sys.modules, judge.__name__, judge)
