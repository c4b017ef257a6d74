"""Graders: text and reference in, verdict out. They import no torch and no task.

`from selfcorrect.grading import CodeJudge, Checks` is the code judge on its own; `MathGrader` grades math answers.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from selfcorrect.grading.judge import Checks, CodeJudge, Reason, Verdict
    from selfcorrect.grading.math import MathGrader

__all__ = ["Checks", "CodeJudge", "MathGrader", "Reason", "Verdict"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    room = "math" if name == "MathGrader" else "judge"
    return getattr(import_module(f"selfcorrect.grading.{room}"), name)
