"""Paths in a recipe, made absolute: a run is the same from whatever folder it is resumed in."""

from pathlib import Path
from typing import Any

from selfcorrect.config.run import PLAIN_TEMPLATE, TrainConfig
from selfcorrect.config.stages import Stage, SupervisedStage
from selfcorrect.config.tasks import HubConfig, TaskConfig


def absolute(config: TrainConfig) -> TrainConfig:
    """The same run from whatever folder it is resumed in."""
    model = config.model
    if Path(model.path).expanduser().is_dir():
        model = model.model_copy(update={"path": str(Path(model.path).expanduser().absolute())})
    if model.chat_template not in (None, PLAIN_TEMPLATE):
        model = model.model_copy(update={"chat_template": str(Path(str(model.chat_template)).expanduser().absolute())})
    external = tuple(str(Path(name).expanduser().absolute()) for name in config.evaluation.external)
    evaluation = config.evaluation.model_copy(update={"external": external})
    task = with_absolute_paths(config.task)
    checkpoint = config.checkpoint
    if checkpoint.held_out:
        checkpoint = checkpoint.model_copy(update={"held_out": str(Path(checkpoint.held_out).expanduser().absolute())})
    stages = tuple(_absolute_stage(stage) for stage in config.stages)
    changed = {"model": model, "evaluation": evaluation, "task": task, "checkpoint": checkpoint, "stages": stages}
    return config.model_copy(update=changed)


def _absolute_stage(stage: Stage) -> Stage:
    if not isinstance(stage, SupervisedStage) or not stage.traces:
        return stage
    return stage.model_copy(update={"traces": str(Path(stage.traces).expanduser().absolute())})


def with_absolute_paths(task: TaskConfig) -> TaskConfig:
    """The task with the paths of its files, and of folders named in place of a hub data set, made absolute."""
    changed: dict[str, Any] = {}
    for field, value in task:
        if field in ("data", "evaluate_data", "file") and value is not None:
            changed[field] = str(Path(value).expanduser().absolute())
        elif isinstance(value, HubConfig) and Path(value.path).expanduser().is_dir():
            changed[field] = value.model_copy(update={"path": str(Path(value.path).expanduser().absolute())})
        elif field == "of":
            changed[field] = with_absolute_paths(value)
    return task.model_copy(update=changed)
