"""Stand-ins for the graders of math and code: fast, in this process, and told what to say by the text alone."""

import re
from collections.abc import Sequence
from typing import Any

import pytest

from selfcorrect.grading import math
from selfcorrect.grading.judge import Checks, Reason, Verdict, pool
from selfcorrect.types import Grade, Outcome


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
        return Verdict(Reason.WRONG_ANSWER)
    except Exception as error:  # noqa: BLE001 - whatever the program does
        return Verdict(Reason.EXCEPTION, type(error).__name__)
    return Verdict(Reason.PASSED)


def put_in_place(patch: pytest.MonkeyPatch) -> None:
    """From now on, and until the patch ends, tasks import these."""
    patch.setattr(math, "MathGrader", FakeMathGrader)
    patch.setattr(pool, "CodeJudge", FakeJudge)
