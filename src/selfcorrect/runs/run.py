"""A whole run: stages one after the other, evaluations between them, checkpoints, resume.

Everything random comes from seeds derived from the recipe's seed and the step, so a run that was stopped,
even by `kill -9`, goes on exactly as if it had not been.
"""

import dataclasses
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from selfcorrect.config import SupervisedStage, TrainConfig
from selfcorrect.config.paths import absolute
from selfcorrect.config.recipe import load_recipe
from selfcorrect.errors import CheckpointError, ConfigError, MemoryExhausted, TrainingInterrupted
from selfcorrect.evaluation.evaluate import Evaluator, evaluated_problems, load_external
from selfcorrect.learning.training import Trainer
from selfcorrect.models.loading import load_model, use_threads
from selfcorrect.models.weights import fingerprint
from selfcorrect.runs.checkpoint import Checkpoint, is_disk_full, load_newest, prune, saved, sweep
from selfcorrect.runs.checks import check_context, is_out_of_memory, ready
from selfcorrect.runs.display import Observer
from selfcorrect.runs.folder import RunFolder, tracker_names
from selfcorrect.runs.interrupts import alone, interruptible
from selfcorrect.runs.loop import Loop
from selfcorrect.samplers.transformers import TransformersSampler
from selfcorrect.tasks import make_task


def start(config: TrainConfig, observer: Observer) -> Path:
    """Train from the beginning; returns the run folder. Raises UserError kinds for all a user can mend."""
    path = Path(config.output) / config.name
    if config.sampler == "recorded":
        raise ConfigError("sampler: recorded is for `selfcorrect evaluate`: recorded attempts cannot be trained")
    if not config.stages:
        raise ConfigError(
            "stages is empty: there is nothing to train; `selfcorrect evaluate` evaluates a recipe's model"
        )
    config = absolute(config)
    if (path / "config.yaml").exists():
        raise ConfigError(
            f"{path} already holds a run; resume it with `{resume_command(path)}`, or choose another name=..."
        )
    return _run(config, path, observer)


def resume(path: Path, observer: Observer) -> Path:
    """Go on with a run from its newest whole checkpoint. Raises ConfigError where `path` holds no run."""
    if not (path / "config.yaml").is_file():
        raise ConfigError(f"{path} holds no run to resume (no config.yaml in it); start one with `selfcorrect train`")
    config = load_recipe(path / "config.yaml")
    if not isinstance(config, TrainConfig):
        raise ConfigError(f"{path}/config.yaml is not the recipe of a training run")
    return _run(config, path, observer)


def resume_command(path: Path) -> str:
    return f"selfcorrect train --resume {path}"


def _run(config: TrainConfig, path: Path, observer: Observer) -> Path:
    use_threads(config.threads)
    _check_attempts(config)
    tracker_names(config)  # refused before anything is written, as are task, data and model
    task = make_task(config.task)
    task.draw(1, config.rollouts.problems_per_step, config.seed)
    held_out = evaluated_problems(config, task)
    external = load_external(task, config.evaluation.external)
    validation = task.load(config.checkpoint.held_out) if config.checkpoint.held_out else []
    lm = load_model(config.model)
    check_context(config, lm, task, task.longest())
    evaluator = Evaluator(
        task=task,
        problems=held_out,
        attempts=config.rollouts.attempts,
        max_new_tokens=config.rollouts.max_new_tokens,
        seed=config.seed,
        controls=config.evaluation.controls,
        external=external,
        split=config.evaluation.split,
    )
    validator = dataclasses.replace(evaluator, problems=validation, controls=False, external=()) if validation else None
    rows, reference = config.rollouts.rows_at_once, lm.frozen_copy()
    trainer = Trainer(
        config,
        lm,
        reference,
        TransformersSampler(lm, max_rows=rows),
        task,
        TransformersSampler(reference, max_rows=rows),
    )
    try:
        with closing(task), ready(task), alone(path):
            notes = [*task.notes, *lm.chat.notes]
            checkpoint, folder = _open(path, config, observer, fingerprint(lm), notes)
            loop = Loop(config, folder, trainer, evaluator, validator, observer)
            with closing(folder), observer, interruptible() as stop:
                for note in notes:
                    observer.message(f"note: {note}")
                loop.run(checkpoint, stop)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise MemoryExhausted(
            f"the memory does not suffice ({str(error).splitlines()[0]}); {_last_saved(path)}. Start again with a "
            f"lower optimizer.micro_batch (now {config.optimizer.micro_batch}, which changes no result) or "
            f"rollouts.rows_at_once (now {config.rollouts.rows_at_once})"
        ) from error
    except OSError as error:
        if not is_disk_full(error):
            raise
        raise CheckpointError(
            f"the disk is full ({error.strerror}: {error.filename or path}); {_last_saved(path)}. "
            f"Free some space, then {_how_to_go_on(path)}"
        ) from error
    except KeyboardInterrupt:
        raise TrainingInterrupted(f"stopped; {_last_saved(path)}. To go on, {_how_to_go_on(path)}") from None
    return path


def _check_attempts(config: TrainConfig) -> None:
    """Raises ConfigError where a supervised stage is to train on more than two attempts."""
    if config.rollouts.attempts != 2:
        for stage in config.stages:
            if isinstance(stage, SupervisedStage):
                raise ConfigError(f"rollouts.attempts must be 2 for stage {stage.name}: a trace is a pair of attempts")


def _open(
    path: Path, config: TrainConfig, observer: Observer, base: str, notes: Sequence[str]
) -> tuple[Checkpoint | None, RunFolder]:  # fmt: skip
    """The newest whole checkpoint, if any, and the run folder with its logs cut back to it."""
    for folder in (path, path / "checkpoints", path / "models"):
        sweep(folder)
    checkpoint, warnings = load_newest(path / "checkpoints")
    for warning in warnings:
        observer.message(f"warning: {warning}")
    prune(path / "checkpoints", config.checkpoint.keep)  # one may be half removed
    if (path / "config.yaml").exists():
        return checkpoint, RunFolder.reopen(path, config, checkpoint.step if checkpoint else 0, base)
    return checkpoint, RunFolder.create(path, config, base, notes)


def _last_saved(path: Path) -> str:
    checkpoints = saved(path / "checkpoints")
    return f"checkpoint {checkpoints[-1].name} is whole" if checkpoints else "no checkpoint had been written yet"


def _how_to_go_on(path: Path) -> str:
    return f"resume with: {resume_command(path)}" if (path / "config.yaml").exists() else "start the run again"
