"""The code judge: verdicts on untrusted programs that cannot be forged (docs/grading.md).

CodeJudge (trainer) -> supervisor -> zygote -> the program's process, confined
                                  -> judge's process, which runs the tests and asks the program
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from selfcorrect.grading.judge.pool import CodeJudge
    from selfcorrect.grading.judge.verdict import Checks, Reason, Verdict

__all__ = ["Checks", "CodeJudge", "Reason", "Verdict"]


def __getattr__(name: str) -> Any:
    """Only when asked for: the process that programs are forked from imports this package, and must stay small."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    room = "pool" if name == "CodeJudge" else "verdict"
    return getattr(import_module(f"selfcorrect.grading.judge.{room}"), name)
