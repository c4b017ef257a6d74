"""A whole run: stages one after the other, evaluations between them, checkpoints, resume.

Everything random comes from seeds derived from the recipe's seed and the step, so a run that was stopped,
even by `kill -9`, goes on exactly as if it had not been.
"""

import dataclasses
import shlex
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import torch

from selfcorrect.config import SupervisedStage, TrainConfig
from selfcorrect.config.paths import USED, absolute, at_home, check_paths, own_files
from selfcorrect.errors import CheckpointError, ConfigError, MemoryExhausted, RankLost, TrainingInterrupted, first_line
from selfcorrect.evaluation.evaluate import Evaluator
from selfcorrect.learning.own import own_objectives
from selfcorrect.learning.policy import make_reference
from selfcorrect.learning.supervised import given_traces
from selfcorrect.learning.training import Trainer
from selfcorrect.models.language_model import LanguageModel
from selfcorrect.models.loading import use_threads
from selfcorrect.models.sizing import is_out_of_memory, sizes_of, with_sizes
from selfcorrect.models.stored import stored_dtype
from selfcorrect.models.weights import fingerprint
from selfcorrect.parallel.joining import joined
from selfcorrect.parallel.ranks import Alone
from selfcorrect.planning.beside import planned
from selfcorrect.runs.changes import judge, set_aside
from selfcorrect.runs.checkpoint import (
    Checkpoint,
    is_disk_full,
    load_newest,
    newest_state,
    progress_of,
    prune,
    saved,
    sweep,
)
from selfcorrect.runs.checks import check_updates, fitted, ready, shortages, tuning_text, unread
from selfcorrect.runs.disk import check_room, need_of, try_save
from selfcorrect.runs.disk import used as taken_by
from selfcorrect.runs.display import Observer
from selfcorrect.runs.evaluating import make_evaluator, rows_of
from selfcorrect.runs.folder import RunFolder, sizes_begun
from selfcorrect.runs.found import refuse_others, resume_command, taken, to_resume, used_by, used_if_known
from selfcorrect.runs.interrupts import LOCK, Stop, alone, interruptible
from selfcorrect.runs.loop import Loop
from selfcorrect.runs.together import (
    check_code,
    check_is_here,
    check_overrides,
    check_settings,
    notes_of,
    own_files_sent,
)
from selfcorrect.runs.trackers import tracker_names
from selfcorrect.runs.untrained import check_not_others, clear, has_earned, nothing_left_of_a_failure
from selfcorrect.samplers.choose import make_sampler
from selfcorrect.samplers.transformers import TransformersSampler
from selfcorrect.tasks import make_task
from selfcorrect.tasks.base import Task
from selfcorrect.types import Problem


def start(config: TrainConfig, observer: Observer) -> Path:
    """Train from the beginning; returns the run folder. Raises UserError kinds for all a user can mend."""
    path = Path(config.output) / config.name
    config = absolute(config)
    with joined() as ranks:
        observer = observer if ranks.rank == 0 else Observer()
        check_code(ranks)
        check_settings(ranks, config)
        check_is_here(ranks, path)
        used = ranks.first(lambda: _begun(config, path, observer))
        return _run(config, path, observer, used, ranks)


def _begun(config: TrainConfig, path: Path, observer: Observer) -> TrainConfig | None:
    """The settings that a run at `path` has gone by so far; None where there is none to go on with.

    Raises ConfigError where `path` holds something that training would spoil.
    """
    if not (path / "config.yaml").exists():
        check_not_others(path)
        return None
    refuse_others(path, config)
    used = used_if_known(path)
    trained = newest_state(path / "checkpoints") is not None
    if used == config and not trained:
        observer.message(f"{path} was begun with these settings, and no step is kept yet: going on with it")
        return used
    if used is None or trained or has_earned(path):
        raise taken(path, config, used)
    observer.message(
        f"{path} held the beginning of a run with other settings, in which no evaluation had ended: it begins anew"
    )
    clear(path)
    return None


def resume(path: Path, observer: Observer, overrides: Sequence[str] = ()) -> Path:
    """Go on with a run from its newest whole checkpoint, with what its config.yaml and the overrides then say.

    Settings other than those the run has gone by so far are judged (runs/changes.py), told and kept. Raises ConfigError
    where `path` holds no run, or a setting may not change.
    """
    path = at_home(path, "run")
    with joined() as ranks:
        observer = observer if ranks.rank == 0 else Observer()
        check_code(ranks)
        check_overrides(ranks, overrides)
        check_is_here(ranks, path)
        config, used = ranks.first(lambda: _to_go_on(path, observer, overrides))
        if config is None:
            return path
        with own_files_sent(ranks, config, path) as config:
            return _run(config, path, observer, used, ranks)


def _to_go_on(
    path: Path, observer: Observer, overrides: Sequence[str]
) -> tuple[TrainConfig | None, TrainConfig | None]:  # fmt: skip
    """The settings to go on with, None where nothing is left to do, and those that the run has gone by so far."""
    config, used = to_resume(path, overrides), used_by(path)
    state = newest_state(path / "checkpoints")
    changes = judge(used, absolute(config), state, path)
    before = {own.setting: own.file for own in own_files(used)}
    for own in own_files(config):
        changes = [change for change in changes if change.field != own.setting]
        if Path(own.file).absolute().parent == (path / own.kept).absolute():
            was = before.get(own.setting, own.file)
            changed = f"{was}, or what it imports, is no longer what the run has gone by: " if was != own.file else ""
            other = "; to train with the new one, begin another run" if changed else ""
            observer.message(f"{changed}going on with the run's copy of {own.told}, {own.file}{other}")
    if state is None and (path / "final").is_dir():
        if changes:
            raise ConfigError(
                f"{path} is finished and its checkpoints are gone, so it cannot go on ({changes[0]}); train its model "
                f"on in another run: `selfcorrect train {shlex.quote(str(path / 'config.yaml'))} name=NEW "
                f"model.path={shlex.quote(str(path / 'final'))}`"
            )
        observer.message(f"{path} is complete, and its checkpoints are gone: there is nothing to go on with")
        return None, used
    return absolute(config), used


def _run(config: TrainConfig, path: Path, observer: Observer, used: TrainConfig | None, ranks: Alone) -> Path:
    """used: the settings that a run which goes on has gone by so far."""
    ranks = ranks.settled(config)
    with interruptible(observer.message) as stop:
        ranks.attach(stop, lambda: _kept(path, ranks))
        try:
            with stop.told_apart():
                _prepare_and_train(config, path, observer, used, stop, ranks)
        except (RuntimeError, MemoryError) as error:
            if lost := ranks.loss(error):
                raise RankLost(f"{lost}; {_kept(path, ranks)}") from error
            if not is_out_of_memory(error):
                raise
            raise MemoryExhausted(
                f"the memory does not suffice ({first_line(error)}); {_last_saved(path)}. Start again with a "
                f"lower optimizer.micro_batch (now {config.optimizer.micro_batch}, which changes no result), with "
                "optimizer.gradient_checkpointing=true or a lower "
                f"rollouts.rows_at_once (now {config.rollouts.rows_at_once}; what auto came to was noted above)"
            ) from error
        except OSError as error:
            if not is_disk_full(error):
                raise
            raise CheckpointError(
                f"the disk is full ({error.strerror}: {error.filename or path}); {_last_saved(path)}. "
                f"Free some space, then {_how_to_go_on(path, ranks)}"
            ) from error
        except KeyboardInterrupt:
            lost = "" if stop.now else stop.lost
            told = f"stopped; {lost}{_last_saved(path)}. To go on, {_how_to_go_on(path, ranks)}"
            raise TrainingInterrupted(told, 128 + stop.signal) from None
    return path


def _prepare_and_train(
    config: TrainConfig, path: Path, observer: Observer, used: TrainConfig | None, stop: Stop, ranks: Alone
) -> None:  # fmt: skip
    use_threads(config.threads)
    _check_stages(config)
    # Traces are rank 0's to read, and no longer asked for where a run goes on behind their stage.
    ranks.each(lambda: check_paths(config, traces=used is None and ranks.rank == 0))
    ranks.first(lambda: tracker_names(config))  # refused before anything is written, as are task, data and model
    say = observer.message if ranks.rank == 0 else None
    task, evaluator, validation = ranks.each(lambda: _asked(config, say))
    own = ranks.each(lambda: own_objectives(config.stages, config.rollouts, task.draw(1, 2, config.seed)))
    evaluator = dataclasses.replace(evaluator, play=ranks.play)
    lm, dtype = ranks.load(config), stored_dtype(config.model.path)
    base = fingerprint(lm)
    if not ranks.keeps_one:  # else rank 0 alone has read it
        ranks.same({f"the model {config.model.path!r}": base}, "put the same model on all hosts")
    ranks.each(lambda: check_updates(config.optimizer, lm))
    if used is None:  # not first as their stage begins, hours on
        ranks.first(lambda: given_traces(config, lm))

    def fit() -> tuple[dict[str, Any], list[str]]:
        begun = with_sizes(config, sizes_begun(path, config) if used else {})
        found, told = fitted(begun, lm, task, shards=ranks.shards)
        return sizes_of(found), told

    sizes, of_sizes = ranks.first(fit)
    settled = with_sizes(config, sizes)  # with this host's own paths
    evaluator = dataclasses.replace(evaluator, rows=rows_of(settled, lm))
    plainly: dict[str, Any] = {"controls": False, "external": (), "samples": 1, "temperature": 0.0, "wordings": {}}
    validator = dataclasses.replace(evaluator, problems=validation, **plainly) if validation else None
    reference, told = ranks.reference(make_reference, settled, lm)
    sampler = make_sampler(settled, lm, settled.rollouts.rows)
    beside = sampler if isinstance(sampler, TransformersSampler) else None
    base_sampler = TransformersSampler(reference, settled.rollouts.rows, beside=beside) if reference else None
    trainer = ranks.spread(Trainer(settled, lm, reference, sampler, task, base_sampler, ranks, own))
    with (
        closing(task), ready(task, ranks),
        ranks.held(alone(path, ", or stop it" if used else ", or choose another name")),
        ranks.held(nothing_left_of_a_failure(path, new=used is None)),
    ):  # fmt: skip
        ranks.look_for(path / LOCK)
        room = ranks.first(lambda: _room(config, lm, dtype, path, used))
        short = [*shortages(config, task, len(evaluator.problems)), *unread(task, lm.chat)]
        of_task = notes_of(ranks, task.notes)
        notes = [*short, *of_task, *lm.chat.notes, *of_sizes, tuning_text(settled, lm), told, *ranks.notes]
        checkpoint, folder = _open(path, config, observer, base, notes, used, sizes, ranks)
        loop = Loop(settled, folder, trainer, evaluator, validator, observer, dtype)
        with closing(folder), observer:
            if used is None:
                observer.message(room)
            for note in notes:
                observer.message(f"note: {note}")
            with planned(settled, lm, task, path, observer.message):
                loop.run(checkpoint, stop)


def _asked(config: TrainConfig, say: Callable[[str], None] | None) -> tuple[Task, Evaluator, list[Problem]]:
    """The task, what evaluates, and the problems that choose the best weights. Raises DataError and its like."""
    task = make_task(config.task, say)
    task.draw(1, config.rollouts.problems_per_step, config.seed)
    held_out = config.checkpoint.held_out
    return task, make_evaluator(config, task), list(task.load(held_out)) if held_out else []


def _room(config: TrainConfig, lm: LanguageModel, dtype: torch.dtype, path: Path, used: TrainConfig | None) -> str:
    """A line on what the run will take of the disk. Raises CheckpointError where that is not there."""
    if used is not None and used.stages == config.stages and (path / "final").exists():
        return ""  # nothing comes of it
    need = need_of(config, lm, try_save(lm, dtype, path))
    return check_room(path, need, config.checkpoint.keep, taken_by(path))


def _check_stages(config: TrainConfig) -> None:
    """Raises ConfigError where there is nothing to train, or a supervised stage would take more than two attempts."""
    if config.sampler == "recorded":
        raise ConfigError("sampler: recorded is for `selfcorrect evaluate`: recorded attempts cannot be trained")
    if config.sampler == "endpoint":
        raise ConfigError("sampler: endpoint is for `selfcorrect evaluate --endpoint URL`: it cannot be trained")
    if not config.stages:
        raise ConfigError(
            "stages is empty: there is nothing to train; `selfcorrect evaluate` evaluates a recipe's model"
        )
    if config.rollouts.attempts != 2:
        for stage in config.stages:
            if isinstance(stage, SupervisedStage):
                raise ConfigError(f"rollouts.attempts must be 2 for stage {stage.name}: a trace is a pair of attempts")


def _open(
    path: Path, config: TrainConfig, observer: Observer, base: str, notes: Sequence[str], used: TrainConfig | None,
    sizes: Mapping[str, Any], ranks: Alone,
) -> tuple[Checkpoint | None, RunFolder]:  # fmt: skip
    """The newest whole checkpoint, if any, and the run folder with its logs cut back to it, and its new settings."""
    mine = list[RunFolder]()

    def open_() -> Checkpoint | None:
        for folder in (path, path / "checkpoints", path / "models"):
            sweep(folder)
        checkpoint, warnings = load_newest(path / "checkpoints")
        for warning in warnings:
            observer.message(f"warning: {warning}")
        prune(path / "checkpoints", config.checkpoint.keep)  # one may be half removed
        if used is None:
            mine.append(RunFolder.create(path, config, base, notes, say=observer.message, sizes=sizes))
            return checkpoint
        changes = judge(used, config, progress_of(checkpoint), path)
        step = checkpoint.step if checkpoint else 0
        mine.append(RunFolder.reopen(path, config, step, base, observer.message))
        set_aside(path, used, config, step, observer.message)
        for change in changes:
            observer.message(f"changed: {change}")
        rows = [{"step": step, "field": change.field, "old": change.old, "new": change.new} for change in changes]
        if rows or not (path / USED).exists():
            mine[0].log_changes(config, rows)
        return checkpoint

    checkpoint = ranks.first(open_)
    return checkpoint, ranks.folder(mine[0] if mine else None, path)


def _kept(path: Path, ranks: Alone) -> str:
    """What is kept, and how to go on. Of a disk that is not ours nothing is known."""
    if ranks.rank and not ranks.shares_disk:
        return f"what is kept of the run is on {ranks.hosts[0]}. To go on, {_resume(path, ranks)}"
    return f"{_last_saved(path)}. To go on, {_how_to_go_on(path, ranks)}"


def _last_saved(path: Path) -> str:
    checkpoints = saved(path / "checkpoints")
    return f"checkpoint {checkpoints[-1].name} is whole" if checkpoints else "no checkpoint had been written yet"


def _how_to_go_on(path: Path, ranks: Alone) -> str:
    return _resume(path, ranks) if (path / "config.yaml").exists() else "start the run again"


def _resume(path: Path, ranks: Alone) -> str:
    return f"resume with: {resume_command(path)}" + (" (by the same launcher)" if ranks.size > 1 else "")
