"""Tasks by name. One file a task."""

from selfcorrect.config import TaskConfig
from selfcorrect.tasks.base import Split, Task
from selfcorrect.tasks.countdown import Countdown

__all__ = ["DESCRIPTIONS", "Split", "Task", "make_task"]

DESCRIPTIONS = {
    "countdown": "reach a target from three numbers, each used once (generated; for evaluation also JSONL)",
}


def make_task(config: TaskConfig) -> Task:
    """The task a recipe names."""
    return Countdown(config)
