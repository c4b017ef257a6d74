"""A whole run (floor 9): stages one after the other, evaluations between them, checkpoints, resume.

Everything random comes from seeds derived from the recipe's seed and the step, so a run that was stopped,
even by `kill -9`, goes on exactly as if it had not been.
"""

import dataclasses
import fcntl
import signal
import types
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from selfcorrect.between import Between
from selfcorrect.checkpoint import (
    DAMAGE,
    Checkpoint,
    atomic_folder,
    check_manifest,
    is_disk_full,
    load_newest,
    load_optimizer,
    optimizer_tensors,
    prune,
    save,
    saved,
    sweep,
    write_manifest,
)
from selfcorrect.config import HubConfig, Stage, Star, SupervisedStage, TaskConfig, TrainConfig
from selfcorrect.display import Observer
from selfcorrect.errors import CheckpointError, ConfigError, MemoryExhausted, TrainingInterrupted
from selfcorrect.evaluation import Evaluation, Evaluator, evaluated_problems, load_external
from selfcorrect.models import LanguageModel, load_model
from selfcorrect.policy import fingerprint, load_weights, weights
from selfcorrect.recipe import load_recipe
from selfcorrect.runlog import RunFolder, tracker_names
from selfcorrect.samplers.transformers import TransformersSampler
from selfcorrect.sentry import Sentry
from selfcorrect.supervised import Collection, Collector, steps_an_iteration, supervised_step
from selfcorrect.tasks import make_task
from selfcorrect.tasks.base import Task
from selfcorrect.training import Progress, StepResult, Trainer
from selfcorrect.types import Problem


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
    if config.threads:
        torch.set_num_threads(config.threads)
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
            loop = _Loop(config, folder, trainer, evaluator, validator, observer)
            with closing(folder), observer, _interruptible() as stop:
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


def absolute(config: TrainConfig) -> TrainConfig:
    """The same run from whatever folder it is resumed in."""
    model = config.model
    if Path(model.path).expanduser().is_dir():
        model = model.model_copy(update={"path": str(Path(model.path).expanduser().absolute())})
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


def check_context(config: TrainConfig, lm: LanguageModel, task: Task, problem: Problem) -> None:
    """Raises ConfigError where the attempts of one problem cannot fit into what the model can read."""
    room = getattr(lm.model.config, "max_position_embeddings", None)
    prompt = lm.chat.first_prompt(problem.prompt)
    limit, attempts = config.rollouts.max_new_tokens, config.rollouts.attempts
    asked, refine = [task.correction_prompt(problem)], config.rollouts.self_refine
    if refine:
        asked = [refine.feedback_prompt, refine.refine_prompt]
    between = sum(len(lm.chat.next_prompt(prompt, (), text)) - len(prompt) for text in asked) + (len(asked) - 1) * limit
    given = 0 if problem.first_attempt is None else len(lm.chat.written(problem.first_attempt).token_ids) - limit
    need = len(prompt) + given + attempts * limit + (attempts - 1) * between
    if room and need > room:
        raise ConfigError(
            f"rollouts.max_new_tokens = {limit}: a prompt of {len(prompt)} tokens and {attempts} attempts may take "
            f"{need} tokens, but the model reads {room}; lower max_new_tokens"
        )


def is_out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)


@contextmanager
def ready(task: Task) -> Iterator[None]:
    """The grader's processes are up. Raises what keeps them from running, before anything is written."""
    task.grade([])
    yield


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """Holds the run folder against other processes; the lock goes with the process, however it ends."""
    path.mkdir(parents=True, exist_ok=True)
    with (path / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(
                f"{path} is being trained by another process; wait for it, or choose another name"
            ) from None
        yield


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


@dataclasses.dataclass
class _Stop:
    """Set by the first Ctrl-C; `now` says that a second one, or one outside a step, need not wait."""

    asked: bool = False
    now: bool = False


@contextmanager
def _interruptible() -> Iterator[_Stop]:
    """The first Ctrl-C lets the step under way end; outside a step, and the second time, it stops at once."""
    stop = _Stop(now=True)

    def handle(signum: int, frame: types.FrameType | None) -> None:
        if stop.now or stop.asked:
            raise KeyboardInterrupt
        stop.asked = True

    try:
        before = signal.signal(signal.SIGINT, handle)
    except ValueError:  # not in the main thread: the caller handles its own interrupts
        yield stop
        return
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)


class _Loop:
    """Walks a trainer through its stages, keeping what it earned."""

    def __init__(
        self, config: TrainConfig, folder: RunFolder, trainer: Trainer, evaluator: Evaluator,
        validator: Evaluator | None, observer: Observer,
    ) -> None:  # fmt: skip
        self.config, self.folder, self.trainer = config, folder, trainer
        self.evaluator, self.validator, self.observer = evaluator, validator, observer
        self._collected: Collection | None = None
        self._sentry = Sentry(config, folder, observer)
        count = config.evaluation.problems_between
        self._between = Between(trainer, evaluator.problems[:count]) if config.evaluation.every else None

    def run(self, checkpoint: Checkpoint | None, stop: _Stop) -> None:
        trainer, stages = self.trainer, self.config.stages
        if checkpoint:
            self._restore(checkpoint)
        else:
            self._evaluate("base", 0)
            self._look_between()
        self._sentry.prepare()
        for index in range(trainer.progress.stage, len(stages)):
            if index > trainer.progress.stage:
                trainer.start_stage(index)
            self._set_reference(index)
            self._sentry.stage_started()
            self.observer.stage_started(stages[index].name, stages[index].steps, trainer.progress.stage_step)
            while trainer.progress.stage_step < stages[index].steps:
                self._collect()
                stop.now = False
                self._step()
                stop.now = True
                if stop.asked:
                    self._checkpoint()
                    raise KeyboardInterrupt
            self._finish_stage(index)
        final = self.folder.path / "final"
        if not final.exists():
            self._save_model(final)
        self.observer.finished(self.folder.path)

    def _step(self) -> None:
        trainer, log = self.trainer, self.config.log
        result = supervised_step(trainer, self._collected) if self._collected else trainer.train_step()
        self.folder.log_step(result.row())
        if log.rollouts_kept and (result.stage_step == 1 or result.stage_step % log.rollouts_every == 0):
            group = self.config.rollouts.rollouts_per_problem
            spread = result.rollouts[:: max(1, min(group, len(result.rollouts) // log.rollouts_kept))]
            self.folder.log_rollouts(spread[: log.rollouts_kept], step=result.step, stage=result.stage)
        self.observer.step_done(result)
        self._sentry.step(result)
        if self.config.evaluation.every and result.step % self.config.evaluation.every == 0:
            self._look_between()
        trainer.check_health(result)
        done, total = trainer.progress.stage_step, trainer.stage.steps
        if done % self.config.checkpoint.every == 0 or done == total:
            self._keep_if_best(result)
            self._checkpoint()

    def _look_between(self) -> None:
        if self._between:
            self.folder.log_between(self._between.row())

    def _collect(self) -> None:
        """Before a step of a supervised stage: its traces, and at an iteration's start the weights it begins with."""
        stage, progress = self.trainer.stage, self.trainer.progress
        if not isinstance(stage, SupervisedStage):
            self._collected = None
            return
        iteration, done = divmod(progress.stage_step, steps_an_iteration(stage))
        if self._collected and self._collected.iteration == iteration + 1 and done:
            return
        collector = Collector(self.trainer, self.folder.path / "traces", self.observer.message)
        self._collected = collector.collection(iteration + 1, at_start=done == 0)
        if done == 0 and iteration and not (isinstance(stage, Star) and stage.from_newest):
            load_weights(self.trainer.lm, self._first_weights())
            self.trainer.restart_optimizer()

    def _first_weights(self) -> dict[str, torch.Tensor]:
        """Those that the stage under way began with."""
        if self.trainer.progress.stage == 0:
            return weights(self.trainer.reference)  # the first stage's is the base model
        path = self.folder.path / "models" / self.config.stages[self.trainer.progress.stage - 1].name
        return weights(load_language_model(self.config, str(path)))

    def _keep_if_best(self, result: StepResult) -> None:
        """`best/` holds the weights at the checkpoint of the stage with the highest score."""
        progress = self.trainer.progress
        score = self._score(result)
        if score is not None and (progress.best_reward is None or score > progress.best_reward):
            progress.best_reward = score
            self._save_model(self.folder.path / "best")

    def _score(self, result: StepResult) -> float | None:
        """Accuracy of the last attempt on the held-out file, where there is one; else the smoothed training reward."""
        if self.validator:
            self.trainer.sampler.load_weights(self.trainer.lm.model)
            summary = self.validator.run("held out", result.step, self.trainer.sampler, self.trainer.lm.chat).summary
            self.observer.message(f"step {result.step}: {summary.accuracy[-1].value:.1%} of the held-out file right")
            return summary.accuracy[-1].value
        return result.smoothed_reward if result.rewards else None

    def _finish_stage(self, index: int) -> None:
        """The stage's selected weights go on, are kept under models/ and evaluated.

        Once they are there, they are the ones that count: `best` may already be a later stage's.
        """
        stage, best = self.config.stages[index], self.folder.path / "best"
        target = self.folder.path / "models" / stage.name
        if not self._load_weights(target):
            if self.config.checkpoint.select != "last" and self.trainer.progress.best_reward is not None:
                self._load_weights(best)
            self._save_model(target)
        if not self.folder.has_evaluation(stage.name):
            self._evaluate(stage.name, self.trainer.progress.step)

    def _evaluate(self, name: str, step: int) -> None:
        if self.folder.has_evaluation(name):
            return
        self.observer.evaluating(name)
        trainer = self.trainer
        trainer.sampler.load_weights(trainer.lm.model)
        evaluation = self.evaluator.run(name, step, trainer.sampler, trainer.lm.chat)
        self.folder.write_evaluation(name, evaluation_row(evaluation), evaluation.rollouts)
        self.observer.evaluated(evaluation)
        self._sentry.evaluated(evaluation)

    def _set_reference(self, index: int) -> None:
        """Stage 1's reference is the base model; later ones measure KL to what the recipe names."""
        if self.config.algorithm.reference == "previous_stage" and index > 0:
            path = self.folder.path / "models" / self.config.stages[index - 1].name
            load_weights(self.trainer.reference, weights(load_language_model(self.config, str(path))))

    def _checkpoint(self) -> None:
        trainer = self.trainer
        tensors = {f"model/{name}": tensor for name, tensor in weights(trainer.lm).items()}
        tensors |= {f"optimizer/{name}": tensor for name, tensor in optimizer_tensors(trainer.optimizer).items()}
        checkpoint = Checkpoint(trainer.progress.step, tensors, asdict(trainer.progress))
        save(self.folder.checkpoints, checkpoint, self.config.checkpoint.keep)

    def _restore(self, checkpoint: Checkpoint) -> None:
        trainer = self.trainer
        try:
            trainer.start_stage(checkpoint.state["stage"])
            trainer.progress = Progress(**checkpoint.state)
            assert trainer.stage
        except (TypeError, KeyError, IndexError) as error:
            raise CheckpointError(
                f"checkpoint {checkpoint.step} does not fit the run's config.yaml ({error}); was it edited?"
            ) from error
        parts: dict[str, dict[str, Any]] = {"model": {}, "optimizer": {}}
        for name, tensor in checkpoint.tensors.items():
            kind, _, rest = name.partition("/")
            parts[kind][rest] = tensor
        load_weights(trainer.lm, parts["model"])
        load_optimizer(trainer.optimizer, parts["optimizer"])
        self.observer.message(f"resuming after step {checkpoint.step}")

    def _load_weights(self, source: Path) -> bool:
        """Take the weights of a model folder; False, with a warning, where it is damaged: the last ones then stay."""
        if not source.exists():
            return False
        try:
            check_manifest(source)
        except DAMAGE as error:
            self.observer.message(f"warning: {source} is damaged ({error}); going on from the newest checkpoint")
            return False
        load_weights(self.trainer.lm, weights(load_language_model(self.config, str(source))))
        return True

    def _save_model(self, target: Path) -> None:
        with atomic_folder(target) as temporary:
            self.trainer.lm.save(temporary)
            write_manifest(temporary)


def evaluation_row(evaluation: Evaluation) -> dict[str, Any]:
    """An evaluation as docs/run_folder.md has it, without its rollouts."""
    return {
        "name": evaluation.name,
        "step": evaluation.step,
        "task": evaluation.task,
        "split": evaluation.split,
        "decoding": evaluation.decoding,
        "seconds": evaluation.seconds,
        "summary": asdict(evaluation.summary),
        "sampled": asdict(evaluation.sampled) if evaluation.sampled else None,
        "controls": {name: asdict(summary) for name, summary in evaluation.controls},
        "external": [{"path": name, "summary": asdict(summary)} for name, summary in evaluation.external],
    }


def keep_evaluation(path: Path, config: TrainConfig, evaluation: Evaluation, notes: Sequence[str]) -> None:
    """A run folder that holds one evaluation and no training; `write_report` shows it."""
    if (path / "config.yaml").exists():
        raise ConfigError(f"{path} already holds a run; choose another name=..., or --output")
    folder = RunFolder.create(path, config, evaluation.name, notes, trackers=False)
    folder.write_evaluation(evaluation.name, evaluation_row(evaluation), evaluation.rollouts)


def load_language_model(config: TrainConfig, path: str | None = None) -> LanguageModel:
    """The model a recipe names, or the same settings with another folder."""
    return load_model(config.model.model_copy(update={"path": path}) if path else config.model)
