"""What the judge is asked and what it answers (stdlib only)."""

from dataclasses import dataclass
from enum import StrEnum


class Reason(StrEnum):
    """Why a program got its verdict; a closed set."""

    PASSED = "passed"
    WRONG_ANSWER = "wrong_answer"  # the data set's tests did not hold
    EXCEPTION = "exception"  # the program raised, at import or in a call
    TIMEOUT = "timeout"  # the one deadline of the whole program passed
    MEMORY = "memory"  # the program asked for more memory than it may have
    CRASH = "crash"  # the program's process ended before it had answered
    REFUSED = "refused"  # the source was not even tried: too long, or not text
    PROTOCOL = "protocol"  # what came back was no answer to what was asked
    GRADER_FAILED = "grader_failed"  # the judge's own trouble: neither a pass nor a fail


@dataclass(frozen=True, slots=True)
class Verdict:
    """reason, a short text for a person, and the seconds that counted against the deadline: the time on the clock,
    less what the program stood waiting for a processor.
    """

    reason: Reason
    detail: str = ""
    seconds: float = 0.0

    @property
    def passed(self) -> bool:
        return self.reason is Reason.PASSED


@dataclass(frozen=True, slots=True)
class Checks:
    """A problem's tests: trusted text, run by the judge's process and never seen by the program's.

    code: statements with asserts, or a `check(candidate)` to which the function named entry_point is passed.
    helpers: run before them (the prompt of HumanEval holds functions its tests use). setup: run after the program
    was loaded and before code; may construct the program's classes (MBPP's test_setup_code). reference: the data
    set's own solution; twenty times its run time is allowed.

    Names that neither these texts nor Python define are the program's: each becomes a function here whose calls
    go to the program's process.
    """

    code: str
    entry_point: str | None = None
    helpers: str = ""
    setup: str = ""
    reference: str = ""
