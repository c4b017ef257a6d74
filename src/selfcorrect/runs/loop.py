"""The loop of a run: stages one after the other, evaluations between them, checkpoints, the selected weights."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import torch

from selfcorrect.config import Star, SupervisedStage, TrainConfig
from selfcorrect.config.paths import asked_by, objective_of
from selfcorrect.errors import CheckpointError, GraderFailed, NothingGraded, SamplerFailed
from selfcorrect.evaluation.evaluate import Evaluation, Evaluator
from selfcorrect.learning.record import StepResult
from selfcorrect.learning.supervised import Collection, Collector, steps_an_iteration, supervised_step
from selfcorrect.learning.training import Trainer
from selfcorrect.models.files import resolve_path
from selfcorrect.models.freed import give_back
from selfcorrect.models.language_model import LanguageModel
from selfcorrect.models.weights import fingerprint, load_weights, stored_weights, weights
from selfcorrect.runs.asked import asked_of, check_asked, file_digest
from selfcorrect.runs.between import Between
from selfcorrect.runs.checkpoint import (
    DAMAGE,
    Checkpoint,
    check_manifest,
    load_optimizer,
    parts_of,
    progress_of,
    save,
    tensors_of,
)
from selfcorrect.runs.disk import save_model, share_model
from selfcorrect.runs.display import Observer
from selfcorrect.runs.evaluating import drop_kept, kept_in, model_settings, run_kept, settings
from selfcorrect.runs.folder import RunFolder
from selfcorrect.runs.interrupts import Stop
from selfcorrect.runs.sentry import Sentry
from selfcorrect.tasks.base import fixed_share

_FAILED = (NothingGraded, GraderFailed, SamplerFailed)  # for which what was earned is kept


class Loop:
    """Walks a trainer through its stages, keeping what it earned."""

    def __init__(
        self, config: TrainConfig, folder: RunFolder, trainer: Trainer, evaluator: Evaluator,
        validator: Evaluator | None, observer: Observer, dtype: torch.dtype = torch.float32,
    ) -> None:  # fmt: skip
        """dtype: that of the models it keeps."""
        self.config, self.folder, self.trainer, self.ranks = config, folder, trainer, trainer.ranks
        self.evaluator, self.validator, self.observer = evaluator, validator, observer
        self._dtype, self._saved, self._saved_step = dtype, time.monotonic(), 0
        self._base = fingerprint(trainer.lm)
        validation = [("validation", validator.problems)] if validator else []
        evaluated = [("held-out", evaluator.problems), *evaluator.external, *validation]
        self._asked = asked_of(config, trainer.task, evaluated, trainer.lm.chat)
        # An adapter as it began, where a stage begins anew with it; weights are the reference's, or read again.
        anew = trainer.lm.adapters and isinstance(config.stages[0], Star)
        self._began = {name: t.clone() for name, t in weights(trainer.lm).items()} if anew else None
        self._collected: Collection | None = None
        self._objectives = {objective_of(name): own.digest for name, own in trainer.own.items()}
        self._sentry = Sentry(config, folder, observer)
        few = fixed_share(evaluator.problems, config.evaluation.problems_between)
        self._between = Between(trainer, few) if config.evaluation.every else None

    def run(self, checkpoint: Checkpoint | None, stop: Stop) -> None:
        self.ranks.same(self._asked, "put the same data on all hosts")
        begun = asked_by(self.folder.path)
        self._check_asked({**self._asked, **{told: now for told, now in self._objectives.items() if told in begun}})
        if checkpoint:
            self._restore(checkpoint)
        else:
            self._evaluate("base")
            self._look_between()
        self._sentry.prepare()
        try:
            with stop.told_apart():
                self._stages(stop)
        except KeyboardInterrupt:
            if stop.now:  # else within a step that was given up
                self._checkpoint()
            raise
        final, last = self.folder.path / "final", self.folder.path / "models" / self.config.stages[-1].name
        self.ranks.first(lambda: self._looks_whole(final) if final.exists() else share_model(last, final))
        self.observer.finished(self.folder.path)

    def _stages(self, stop: Stop) -> None:
        trainer, stages = self.trainer, self.config.stages
        for index in range(trainer.progress.stage, len(stages)):
            if index > trainer.progress.stage:
                trainer.start_stage(index)
            self._set_reference(index)
            told = objective_of(stages[index].name)
            if told in self._objectives:
                self._check_asked({told: self._objectives[told]})
            self._sentry.stage_started(stages[index].name)
            self.observer.stage_started(stages[index].name, stages[index].steps, trainer.progress.stage_step)
            while trainer.progress.stage_step < stages[index].steps:
                self._collect()
                before, first = trainer.progress.step, self._saved_step + 1
                stop.lost = f"step {first} is lost; " if first > before else f"steps {first} to {before + 1} are lost; "
                stop.unsaved, stop.now = before + 1 - first, False
                result = self._step()
                if self.ranks.asked(stop):
                    self._checkpoint()
                stop.now = True
                if self.ranks.asked(stop):
                    raise KeyboardInterrupt
                self._follow_up()
                trainer.check_health(result)
            self._finish_stage(index)

    def _step(self) -> StepResult:
        """One step; nothing comes between it and its checkpoint but the lines that a resumed run could not write."""
        trainer, log = self.trainer, self.config.log
        try:
            result = supervised_step(trainer, self._collected) if self._collected else trainer.train_step()
        except _FAILED as error:
            if trainer.progress.stage_step:
                self._checkpoint()
            raise type(error)(f"{error}; {self._kept()}, and resuming the run repeats the step") from error
        self.folder.log_step(result.row())
        if log.rollouts_kept and (result.stage_step == 1 or result.stage_step % log.rollouts_every == 0):
            group = self.config.rollouts.rollouts_per_problem
            spread = result.rollouts[:: max(1, min(group, len(result.rollouts) // log.rollouts_kept))]
            self.folder.log_rollouts(spread[: log.rollouts_kept], step=result.step, stage=result.stage)
        self._sentry.step(result)
        if self._is_due() or self.ranks.first(self._is_long_since):
            self._checkpoint()
        self.observer.step_done(result)
        return result

    def _kept(self) -> str:
        step = self.trainer.progress.step
        return f"checkpoint {step} is kept" if step else "nothing was trained yet"

    @contextmanager
    def _after_checkpoint(self) -> Iterator[None]:
        """Around what samples between steps."""
        try:
            yield
        except _FAILED as error:
            raise type(error)(f"{error}; {self._kept()}, and resuming the run goes on from there") from error

    def _is_due(self) -> bool:
        """Whether a checkpoint, and a look whether these are the best weights so far, belongs to the last step."""
        done, total = self.trainer.progress.stage_step, self.trainer.stage.steps
        return done % self.config.checkpoint.every == 0 or done == total

    def _is_long_since(self) -> bool:
        """Whether the last step is to be kept for its own sake: time has passed, or what follows it takes its time."""
        minutes, every, trainer = self.config.checkpoint.minutes, self.config.evaluation.every, self.trainer
        if minutes and time.monotonic() - self._saved >= 60 * minutes:
            return True
        if isinstance(trainer.stage, Star) and trainer.progress.stage_step % steps_an_iteration(trainer.stage) == 0:
            return True
        return bool(every and trainer.progress.step % every == 0)

    def _follow_up(self, *, was_due: bool = False) -> None:
        """What a step brings beyond its checkpoint. A run that was stopped in between does it when it goes on.

        was_due: the step was a stage's last one when the checkpoint was written.
        """
        every, step = self.config.evaluation.every, self.trainer.progress.step
        if every and step % every == 0 and not self.folder.has_between(step):
            self._look_between()
        if was_due or self._is_due():
            self._keep_if_best()

    def _look_between(self) -> None:
        if self._between:
            self.observer.evaluating(f"a few problems, after step {self.trainer.progress.step}")
            with self._after_checkpoint():
                row = self._between.row()
            self.folder.log_between(row)

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
        with self._after_checkpoint():
            self._collected = collector.collection(iteration + 1, at_start=done == 0)
        if file := stage.traces:
            told = f"the traces of stage {stage.name}"
            self.ranks.first(lambda: check_asked(self.folder.path, {told: file_digest(file)}))
        if done == 0 and iteration and not (isinstance(stage, Star) and stage.from_newest):
            load_weights(self.trainer.lm, self._first_weights())
            self.trainer.restart_optimizer()

    def _check_asked(self, now: Mapping[str, str]) -> None:
        self.ranks.first(lambda: check_asked(self.folder.path, now))

    def _first_weights(self) -> dict[str, torch.Tensor]:
        """Those that the stage under way began with."""
        if self.trainer.progress.stage == 0:
            if self._began is not None:
                return self._began
            base = self.trainer.reference if self.trainer.has_reference else None
            return weights(base) if base else self._stored(Path(resolve_path(self.config.model.path)))
        path = self.folder.path / "models" / self.config.stages[self.trainer.progress.stage - 1].name
        return self._stored(path)

    def _keep_if_best(self) -> None:
        """`best/` holds the weights at the checkpoint of the stage with the highest score."""
        progress = self.trainer.progress
        score = self._score()
        if score is not None and (progress.best_reward is None or score > progress.best_reward):
            progress.best_reward = score
            self._save_model(self.folder.path / "best")

    def _score(self) -> float | None:
        """Accuracy of the last attempt on the held-out file, where there is one; else the smoothed training reward."""
        trainer = self.trainer
        if not self.validator:
            return trainer.progress.smoothed_reward
        value = self._evaluation(self.validator, f"held_out-{trainer.progress.step}").summary.accuracy[-1].value
        self._drop_kept(f"held_out-{trainer.progress.step}")
        self.observer.message(f"step {trainer.progress.step}: {value:.1%} of the held-out file right")
        return value

    def _finish_stage(self, index: int) -> None:
        """The stage's selected weights are kept under models/, and what was kept goes on and is evaluated.

        Once they are there, they are the ones that count: `best` may already be a later stage's. They are taken from
        there even in the run that wrote them, as the dtype they are kept in may have rounded them.
        """
        stage, best = self.config.stages[index], self.folder.path / "best"
        target = self.folder.path / "models" / stage.name
        if not self._load_weights(target):
            chosen = self.config.checkpoint.select != "last" and self.trainer.progress.best_reward is not None
            if chosen and self._is_whole(best):
                self.ranks.first(lambda: share_model(best, target))
            else:
                self._save_model(target)
            self._load_weights(target)
        self._evaluate(stage.name)

    def _evaluate(self, name: str) -> None:
        if self.folder.has_evaluation(name):
            self._drop_kept(name)  # a kill may have come before
            return
        if name == "base":
            self.observer.message(f"every evaluation: {self.evaluator.plan()}")
            self.observer.message(self.evaluator.resolution())
        evaluation = self._evaluation(self.evaluator, name)
        evaluation = replace(evaluation, against_base=self._sentry.against_base(evaluation))
        self.observer.evaluated(evaluation)
        self._sentry.evaluated(evaluation)
        self.folder.write_evaluation(evaluation)
        self._drop_kept(name)

    def _drop_kept(self, name: str) -> None:
        self.ranks.first(lambda: drop_kept(self.folder.path, name))

    def _save_model(self, target: Path) -> None:
        lm = self.ranks.whole(self.trainer.lm, exact=self._dtype.itemsize > 2)
        self.ranks.first(lambda: save_model(lm, self._dtype, target))

    def _evaluation(self, evaluator: Evaluator, name: str) -> Evaluation:
        """Of the weights as they are, each problem kept as it ends; `drop_kept` once something came of them."""
        trainer, lm = self.trainer, self.trainer.lm
        self.observer.evaluating(name)
        made_with = settings(self.config, evaluator, lm.chat, model_settings(lm))
        with self._after_checkpoint():
            trainer.sampler.load_weights(lm.model)
            with self.ranks.held(kept_in(self.folder.path, name, made_with, self.observer, afresh=True)) as kept:
                found = run_kept(evaluator, name, trainer.progress.step, trainer.sampler, lm.chat, kept, self.observer)
            trainer.rest()
        return found

    def _set_reference(self, index: int) -> None:
        """Stage 1's reference is the base model; later ones measure KL to what the recipe names."""
        if self.config.algorithm.reference == "previous_stage" and index > 0 and self.trainer.has_reference:
            path = self.folder.path / "models" / self.config.stages[index - 1].name
            load_weights(self.trainer.reference, self._stored(path, self.trainer.reference))

    def _checkpoint(self) -> None:
        trainer = self.trainer
        if trainer.progress.step == self._saved_step:
            return
        self.ranks.check_alike(trainer.lm)
        give_back()  # a shard's bytes are made in memory, in one piece that no hole of the heap has room for
        state = asdict(trainer.progress) | {"due": self._is_due(), "base": self._base}
        checkpoint = Checkpoint(trainer.progress.step, tensors_of(trainer.lm, trainer.optimizer), state)
        save(self.folder.checkpoints, checkpoint, self.config.checkpoint.keep, self.ranks)
        self._saved, self._saved_step = time.monotonic(), checkpoint.step

    def _restore(self, checkpoint: Checkpoint) -> None:
        trainer = self.trainer
        progress = progress_of(checkpoint)
        assert progress
        if checkpoint.state.get("base", self._base) != self._base:
            raise CheckpointError(
                f"checkpoint {checkpoint.step} was trained from other weights ({checkpoint.state['base']}) than "
                f"model.path = {self.config.model.path!r} holds ({self._base}); put that model back"
            )
        if progress.stage >= len(self.config.stages):
            raise CheckpointError(f"checkpoint {checkpoint.step} is of a stage that config.yaml no longer names")
        trainer.start_stage(progress.stage)
        trainer.progress = progress
        tensors = self.ranks.read(self.folder.checkpoints / f"step-{checkpoint.step:06d}", trainer)
        model, moments = parts_of(tensors)
        load_weights(trainer.lm, model)
        load_optimizer(trainer.optimizer, moments)
        self.observer.message(f"resuming after step {checkpoint.step}")
        self._saved_step = checkpoint.step
        if not self._is_whole(self.folder.path / "models" / trainer.stage.name):  # else the stage is behind it
            self._follow_up(was_due=bool(checkpoint.state.get("due")))

    def _load_weights(self, source: Path) -> bool:
        """Take the weights of a model folder; False where it is not there or damaged: the last ones then stay."""
        if not self._is_whole(source):
            return False
        load_weights(self.trainer.lm, self._stored(source))
        return True

    def _is_whole(self, source: Path) -> bool:
        """Whether a model folder is there and as it was written; one that is damaged is told of."""
        return self.ranks.first(lambda: self._looks_whole(source))

    def _looks_whole(self, source: Path) -> bool:
        if not source.exists():
            return False
        try:
            check_manifest(source)
        except DAMAGE as error:
            self.observer.message(f"warning: {source} is damaged ({error}), and not as this run wrote it")
            return False
        return True

    def _stored(self, path: Path, into: LanguageModel | None = None) -> dict[str, torch.Tensor]:
        """The weights, or the adapter, of a model folder. into: what takes them; None: the policy."""
        lm = self.trainer.lm
        return self.ranks.handed(lambda: stored_weights(path, lm, self.config.model), (into or lm).model)
