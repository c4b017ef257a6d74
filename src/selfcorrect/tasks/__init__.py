"""Tasks by name. One file a task."""

from collections.abc import Callable

from selfcorrect.config import CodeConfig, CountdownConfig, CustomConfig, MathConfig, RepairConfig, TaskConfig
from selfcorrect.tasks.base import Split, Task
from selfcorrect.tasks.code import CodeTask
from selfcorrect.tasks.countdown import Countdown
from selfcorrect.tasks.custom import CustomTask
from selfcorrect.tasks.math import MathTask
from selfcorrect.tasks.repair import RepairTask

__all__ = ["DESCRIPTIONS", "MathTask", "Split", "Task", "make_task"]

DESCRIPTIONS = {
    "countdown": "reach a target from three numbers, each used once (generated; for evaluation also files)",
    "math": "MATH (the paper's 12,000 / 500 split, or its own) and GSM8K: solve a problem, state the answer last",
    "code": "MBPP (sanitized, MBPP+) and HumanEval (HumanEval+): write a program that passes the tests",
    "repair": "mend a recorded wrong first attempt at math or code (selfcorrect make-repair-set builds such a set)",
    "custom": "a task of your own, in one Python file (docs/tasks.md)",
}


def make_task(config: TaskConfig, say: Callable[[str], None] | None = None) -> Task:
    """The task a recipe names. Its data is read when it is first asked for.

    say: told, from any thread, of calls of a user's own grader that take long; by default stderr is.
    """
    match config:
        case CountdownConfig():
            return Countdown(config)
        case MathConfig():
            return MathTask(config)
        case CodeConfig():
            return CodeTask(config)
        case RepairConfig():
            return RepairTask(config)
        case CustomConfig():
            return CustomTask(config, say)
    raise AssertionError(type(config).__name__)
