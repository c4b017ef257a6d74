"""Tasks by name. One file a task."""

from collections.abc import Callable
from typing import assert_never

from selfcorrect.config import CodeConfig, CountdownConfig, CustomConfig, MathConfig, RepairConfig, TaskConfig
from selfcorrect.tasks.base import Split, Task
from selfcorrect.tasks.code import CodeTask
from selfcorrect.tasks.countdown import Countdown
from selfcorrect.tasks.custom import CustomTask
from selfcorrect.tasks.math import MathTask
from selfcorrect.tasks.repair import RepairTask

__all__ = ["MathTask", "Split", "Task", "make_task"]


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
    assert_never(config)
