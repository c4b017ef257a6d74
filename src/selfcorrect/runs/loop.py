"""The loop of a run: stages one after the other, evaluations between them, checkpoints, the selected weights."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from selfcorrect.config import Star, SupervisedStage, TrainConfig
from selfcorrect.errors import CheckpointError
from selfcorrect.evaluation.evaluate import Evaluator
from selfcorrect.learning.record import Progress, StepResult
from selfcorrect.learning.supervised import Collection, Collector, steps_an_iteration, supervised_step
from selfcorrect.learning.training import Trainer
from selfcorrect.models.loading import LanguageModel, load_model
from selfcorrect.models.weights import load_weights, weights
from selfcorrect.runs.between import Between
from selfcorrect.runs.checkpoint import (
    DAMAGE,
    Checkpoint,
    atomic_folder,
    check_manifest,
    load_optimizer,
    optimizer_tensors,
    save,
    write_manifest,
)
from selfcorrect.runs.display import Observer
from selfcorrect.runs.evaluating import drop_kept, kept_in, model_settings, run_kept, settings
from selfcorrect.runs.folder import RunFolder, evaluation_row
from selfcorrect.runs.interrupts import Stop
from selfcorrect.runs.sentry import Sentry


class Loop:
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

    def run(self, checkpoint: Checkpoint | None, stop: Stop) -> None:
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
        return weights(self._model_at(path))

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
            drop_kept(self.folder.path, name)  # a kill may have come before
            return
        trainer, lm = self.trainer, self.trainer.lm
        if name == "base":
            self.observer.message(f"every evaluation: {self.evaluator.plan()}")
        self.observer.evaluating(name)
        trainer.sampler.load_weights(lm.model)
        made_with = settings(self.config, self.evaluator, lm.chat, model_settings(lm))
        with kept_in(self.folder.path, name, made_with, self.observer, afresh=True) as kept:
            evaluation = run_kept(self.evaluator, name, step, trainer.sampler, lm.chat, kept, self.observer)
            self.folder.write_evaluation(name, evaluation_row(evaluation), evaluation.rollouts)
        drop_kept(self.folder.path, name)
        self.observer.evaluated(evaluation)
        self._sentry.evaluated(evaluation)

    def _set_reference(self, index: int) -> None:
        """Stage 1's reference is the base model; later ones measure KL to what the recipe names."""
        if self.config.algorithm.reference == "previous_stage" and index > 0:
            path = self.folder.path / "models" / self.config.stages[index - 1].name
            load_weights(self.trainer.reference, weights(self._model_at(path)))

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
        load_weights(self.trainer.lm, weights(self._model_at(source)))
        return True

    def _save_model(self, target: Path) -> None:
        with atomic_folder(target) as temporary:
            self.trainer.lm.save(temporary)
            write_manifest(temporary)

    def _model_at(self, path: Path) -> LanguageModel:
        """The model of a folder, with the recipe's other settings."""
        return load_model(self.config.model.model_copy(update={"path": str(path)}))
