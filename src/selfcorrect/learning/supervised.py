"""Pair-SFT and STaR: collect traces into the run folder, fine-tune on them through the one token loss."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from selfcorrect.config import Star, SupervisedStage, TrainConfig
from selfcorrect.errors import DataError
from selfcorrect.evaluation.kept import write_durably
from selfcorrect.evaluation.metrics import refuse_nothing_graded
from selfcorrect.learning.batching import make_batch
from selfcorrect.learning.policy import learning_rate
from selfcorrect.learning.record import Clock, StepResult
from selfcorrect.learning.traces import epochs, fixes, pair_traces, read_traces, star_traces, write_traces
from selfcorrect.learning.training import Trainer
from selfcorrect.models.language_model import LanguageModel
from selfcorrect.models.weights import fingerprint
from selfcorrect.seeds import derive_seed
from selfcorrect.types import Rollout, SamplingParams


@dataclass(frozen=True, slots=True)
class Collection:
    """The traces that one iteration trains on. completions: how many were sampled for them."""

    iteration: int
    traces: Sequence[Rollout]
    completions: int


def steps_an_iteration(stage: SupervisedStage) -> int:
    """Updates on one collection of traces."""
    return stage.steps // (stage.iterations if isinstance(stage, Star) else 1)


def supervised_step(trainer: Trainer, collection: Collection) -> StepResult:
    """One update: cross entropy of the last attempt's tokens, the mean over all of them, on `batch` traces."""
    stage, progress, clock = trainer.stage, trainer.progress, Clock()
    assert isinstance(stage, SupervisedStage)
    each = steps_an_iteration(stage)
    done = progress.stage_step % each
    optimizer = trainer.config.optimizer
    # The warm-up is the stage's: iterations that begin anew divide it.
    warmup = {"warmup_steps": optimizer.warmup_steps * each // stage.steps}
    rate = learning_rate(stage.learning_rate, done + 1, each, optimizer.model_copy(update=warmup))
    seed = derive_seed(trainer.config.seed, stage.name, collection.iteration)
    traces = list(epochs(collection.traces, done + 1, stage.batch, seed))
    tokens = sum(len(trace.attempts[-1].completion.token_ids) for trace in traces)
    # The update divides by the number of rows; with this weight the loss is the mean over tokens.
    weights_BA = torch.full((len(traces), 2), len(traces) / tokens)
    batch = make_batch(traces, weights_BA, (0.0, 0.0), torch.ones(len(traces), dtype=torch.bool))
    update = trainer.update(batch, len(traces), rate, temperature=1.0)
    clock.lap("update")
    trainer.advance(update, None)
    return StepResult(
        step=progress.step, stage=stage.name, stage_step=progress.stage_step, loss=update.loss,
        grad_norm=update.grad_norm, learning_rate=rate, completions=collection.completions if done == 0 else 0,
        seconds=clock.total, seconds_by_part=clock.parts, skipped=bool(update.skip_reason),
        skip_reason=update.skip_reason,
    )  # fmt: skip


class Collector:
    """Finds, or samples, the traces of a supervised stage. folder: traces/ of the run."""

    def __init__(self, trainer: Trainer, folder: Path, say: Callable[[str], None]) -> None:
        self._trainer, self._folder, self._say = trainer, folder, say

    def collection(self, iteration: int, *, at_start: bool) -> Collection:
        """The traces of iteration 1, 2, ...; at_start: the model is the one that they are to be sampled from.

        Raises DataError where the model gave none to train on.
        """
        stage, first = self._trainer.stage, self._trainer.ranks.first
        chat, task = self._trainer.lm.chat, self._trainer.task.name
        assert isinstance(stage, SupervisedStage)
        if stage.traces:
            given = stage.traces
            return self._chosen(first(lambda: read_traces(given, chat, task)), iteration, 0, given)
        file = self._folder / f"{stage.name}-{iteration}.jsonl"
        if at_start:  # both kinds of traces go to the file, so that D and D+ can share it
            key = self._key(stage, iteration)
            if not first(lambda: self._find(key, file)):
                traces, completions = self._sample(stage, iteration)
                first(lambda: self._write(key, file, traces, completions))
        about = first(lambda: json.loads(file.with_suffix(".json").read_text(encoding="utf-8")))
        found = first(lambda: read_traces(file, chat, task)) if about["traces"] else []
        return self._chosen(found, iteration, about["completions"], str(file))

    def _chosen(self, found: Sequence[Rollout], iteration: int, completions: int, source: str) -> Collection:
        stage = self._trainer.stage
        assert isinstance(stage, SupervisedStage)
        chosen = _trained_on(found, stage, self._trainer.lm.reads, source)
        self._say(f"{source}: training on {_counted(chosen)}")
        return Collection(iteration, chosen, completions)

    def _find(self, key: str, file: Path) -> bool:
        """Whether traces of this key are there; those of another stage are copied."""
        self._folder.mkdir(exist_ok=True)
        for other in sorted(self._folder.glob("*.json")):
            if _key_of(other) == key:
                if other != file.with_suffix(".json"):
                    for ending in (".jsonl", ".json"):
                        text = other.with_suffix(ending).read_text(encoding="utf-8")
                        write_durably(file.with_suffix(ending), text)
                return True
        return False

    def _write(self, key: str, file: Path, traces: Sequence[Rollout], completions: int) -> None:
        write_traces(file, traces, self._trainer.task)
        about = {"key": key, "completions": completions, "traces": len(traces), "fixed": sum(map(fixes, traces))}
        # last: its presence says that the traces are whole
        write_durably(file.with_suffix(".json"), json.dumps(about) + "\n")

    def _key(self, stage: SupervisedStage, iteration: int) -> str:
        """A digest of all that the traces depend on."""
        config = self._trainer.config
        told: list[Any] = [
            fingerprint(self._trainer.lm), stage.__class__.__name__, stage.collect, iteration, config.seed,
            config.task.model_dump(mode="json"), config.model.model_dump(mode="json"),
            config.rollouts.model_dump(mode="json"),
        ]  # fmt: skip
        return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16]

    def _sample(self, stage: SupervisedStage, iteration: int) -> tuple[list[Rollout], int]:
        """Traces of `collect` problems, and how many completions were sampled for them."""
        trainer, rollouts = self._trainer, self._trainer.config.rollouts
        attempts, group = 2 if isinstance(stage, Star) else 1, rollouts.rollouts_per_problem
        seed = derive_seed(trainer.config.seed, "collect", iteration)
        problems = trainer.task.draw(iteration, stage.collect, seed)
        trainer.sampler.load_weights(trainer.lm.model)
        chunk = max(1, rollouts.rows // group)
        traces: list[Rollout] = []
        completions = 0
        for start in range(0, len(problems), chunk):
            rows = [problem for problem in problems[start : start + chunk] for _ in range(group)]
            params = SamplingParams(rollouts.temperature, rollouts.max_new_tokens, derive_seed(seed, "chunk", start))
            played = trainer.ranks.play(
                rows, trainer.task, trainer.sampler, trainer.lm.chat, params, attempts, group=group
            )
            refuse_nothing_graded(played, f"traces for stage {stage.name}")
            completions += attempts * len(played)
            if isinstance(stage, Star):
                traces += star_traces(played)
            else:
                traces += pair_traces(played, trainer.lm.chat, trainer.task, seed)
            if start % (20 * chunk) == 0 or start + chunk >= len(problems):
                self._say(f"collecting traces: {min(start + chunk, len(problems))} of {len(problems)} problems")
        trainer.rest()
        return traces, completions


def given_traces(config: TrainConfig, lm: LanguageModel) -> list[str]:
    """A line on each file of traces that a stage names and that is there; an earlier stage may be yet to write it.

    Raises DataError where one cannot be trained on.
    """
    told = []
    for stage in config.stages:
        if isinstance(stage, SupervisedStage) and stage.traces and Path(stage.traces).exists():
            found = _trained_on(read_traces(stage.traces, lm.chat, config.task.name), stage, lm.reads, stage.traces)
            told.append(f"stage {stage.name} trains on {_counted(found)} of {stage.traces}")
    return told


def _trained_on(found: Sequence[Rollout], stage: SupervisedStage, room: int | None, source: str) -> list[Rollout]:
    """Those of a collection that the stage takes. Raises DataError where there is none, or one is too long."""
    chosen = [trace for trace in found if stage.keep_right or fixes(trace)]
    if not chosen:
        more = "add some" if stage.traces else f"raise stages.{stage.name}.collect (now {stage.collect})"
        rest = "" if stage.keep_right else ", or set keep_right: true"
        kind = "right" if stage.keep_right else "wrong-then-right"
        raise DataError(f"{source}: no {kind} traces for stage {stage.name}; {more}{rest}")
    last = [(trace.problem.id, trace.attempts[1]) for trace in chosen]
    size, name = max((len(attempt.prompt_ids) + len(attempt.completion.token_ids), name) for name, attempt in last)
    if room and size > room:
        raise DataError(f"{source}: a trace takes {size} tokens ({name}), but the model reads {room}; leave it out")
    return chosen


def _counted(traces: Sequence[Rollout]) -> str:
    fixed = sum(map(fixes, traces))
    return f"{fixed} wrong-then-right and {len(traces) - fixed} right-then-right traces"


def _key_of(about: Path) -> str | None:
    """What the traces beside it depend on; None where the file is not whole."""
    try:
        found = json.loads(about.read_text(encoding="utf-8"))["key"]
    except (ValueError, KeyError, TypeError):
        return None
    return str(found)
