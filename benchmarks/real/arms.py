"""Training for as long as the minutes allow, arm after arm, with the library's own `Trainer`.

Every arm takes the same number of updates and samples the same number of attempts. The number follows from the minutes
and the second step of the first arm, and stands in plan.json from then on, for later arms, seeds and calls.
"""

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from evaluating import write_rows

from selfcorrect.config import SingleTurn, TrainConfig
from selfcorrect.learning.record import Progress, StepResult
from selfcorrect.learning.training import Trainer
from selfcorrect.models.language_model import LanguageModel
from selfcorrect.models.weights import load_weights, weights
from selfcorrect.runs.checkpoint import Checkpoint, load_newest, load_optimizer, parts_of, save, tensors_of
from selfcorrect.runs.folder import cut, plain
from selfcorrect.samplers.transformers import TransformersSampler
from selfcorrect.tasks.base import Task

STAGE_ONE_SHARE = 0.4  # of an arm's steps; the paper does not say how its steps divide
SAVE_SECONDS = 600.0  # a kill costs so much at most
UNPLANNED = 1_000_000  # a stage's `steps` in the config: the plan has the real ones, and the rate is constant

STAGE_ONE = {"name": "stage1", "objective": "stage1", "beta2": None}  # None: what the call says
STAGE_TWO = {"name": "stage2", "objective": "stage2", "alpha": None}
ARMS: dict[str, list[dict[str, Any]]] = {
    "score": [STAGE_ONE, STAGE_TWO],
    "single_turn": [{"name": "single_turn", "objective": "single_turn"}],
    "multi_turn": [{"name": "multi_turn", "objective": "multi_turn", "rewarded": "last"}],
    "multi_turn_all": [{"name": "multi_turn", "objective": "multi_turn", "rewarded": "all"}],
    "no_stage1": [STAGE_TWO],
    "no_shaping": [STAGE_ONE, {**STAGE_TWO, "alpha": 0.0}],
}


@dataclass(frozen=True)
class Rates:
    """The paper's for code (Table 5)."""

    rate: float = 1e-5
    beta1: float = 0.01
    beta2: float = 0.25
    alpha: float = 10.0


def stages(arm: str, rates: Rates) -> list[dict[str, Any]]:
    """The arm's stages as a recipe has them."""
    common = {"steps": UNPLANNED, "learning_rate": rates.rate, "beta1": rates.beta1}
    return [
        {**common, **{key: getattr(rates, key) if value is None else value for key, value in stage.items()}}
        for stage in ARMS[arm]
    ]


def steps_of(arm: str, total: int) -> list[int]:
    """How an arm's steps divide among its stages; each has one at least."""
    if len(ARMS[arm]) == 1:
        return [total]
    first = min(max(1, round(STAGE_ONE_SHARE * total)), max(1, total - 1))
    return [first, max(1, total - first)]


@dataclass(slots=True)
class Plan:
    """plan.json. steps: an arm's; step_seconds: what a step took when they were planned."""

    file: Path
    steps: int | None = None
    step_seconds: float | None = None

    @classmethod
    def read(cls, file: Path) -> "Plan":
        return cls(file, **json.loads(file.read_text())) if file.exists() else cls(file)

    def settle(self, seconds: float, step_seconds: float, done: int) -> None:
        """So many steps as fit into `seconds`, besides those done."""
        self.step_seconds = round(step_seconds, 3)
        self.steps = done + max(1, int(seconds / (1.05 * step_seconds)))  # attempts may grow longer
        self.write()

    def write(self) -> None:
        self.file.write_text(json.dumps({"steps": self.steps, "step_seconds": self.step_seconds}) + "\n")


@dataclass(frozen=True, slots=True)
class Start:
    """Where every arm begins: the reference, and what trains as it was before the first arm."""

    reference: LanguageModel
    weights: dict[str, torch.Tensor]

    @classmethod
    def of(cls, lm: LanguageModel) -> "Start":
        reference = lm.frozen_copy()
        if lm.adapters:  # a view of the same model
            return cls(reference, {name: tensor.clone() for name, tensor in weights(lm).items()})
        return cls(reference, weights(reference))


@dataclass(slots=True)
class Arm:
    """One arm and seed under training. left: seconds that there are for training; kept: called after each step."""

    name: str
    config: TrainConfig
    folder: Path
    plan: Plan
    left: Callable[[], float]
    kept: Callable[[], None]

    def train(self, lm: LanguageModel, start: Start, task: Task) -> int:
        """Train `lm` from the start, or go on from a checkpoint. Returns the steps done in all."""
        load_weights(lm, start.weights)
        trainer = Trainer(self._own(self.config), lm, start.reference, TransformersSampler(lm, 4096), task)
        state, warnings = load_newest(self.folder / "checkpoints")
        for warning in warnings:
            print(f"warning: {warning}", flush=True)
        if state:
            self._restore(trainer, state)
        cut(self.folder / "metrics.jsonl", trainer.progress.step, print)  # a killed call wrote of more steps
        times, begun, saved = list[float](), trainer.progress.step, time.monotonic()
        while self._at_work(trainer):
            if self.left() < 1.2 * second_slowest(times):
                print(f"{self.name}: no time for another step after {trainer.progress.step}", flush=True)
                break
            result = self._step(trainer)
            if result.step > begun + 1:  # the first one warms up
                times.append(result.seconds)
            self._keep(result)
            if time.monotonic() - saved > SAVE_SECONDS:
                self._save(trainer)
                saved = time.monotonic()
            if self.plan.steps is None and result.step >= 2:
                self.plan.settle(self.left(), result.seconds, result.step)
                print(f"a step takes {result.seconds:.1f} s: {self.plan.steps} steps an arm are planned", flush=True)
        if trainer.progress.step > begun:
            self._save(trainer)
        return trainer.progress.step

    def finished(self) -> bool:
        """Whether all planned steps were done, as the arm's last checkpoint has it."""
        done = self.folder / "done.json"
        return (
            done.exists() and self.plan.steps is not None and json.loads(done.read_text())["steps"] >= self.plan.steps
        )

    def has_weights(self) -> bool:
        """Whether any checkpoint is there."""
        return any((self.folder / "checkpoints").glob("step-*"))

    def _own(self, config: TrainConfig) -> TrainConfig:
        """single_turn plays one attempt where the others play two: twice the problems make its budget theirs."""
        if not isinstance(config.stages[0], SingleTurn):
            return config
        doubled = config.rollouts.model_copy(update={"problems_per_step": 2 * config.rollouts.problems_per_step})
        return config.model_copy(update={"rollouts": doubled})

    def _at_work(self, trainer: Trainer) -> bool:
        """Move on to the next stage where one is due; False where the last one has ended."""
        progress, total = trainer.progress, self.plan.steps
        if total is None:
            return True
        counts = steps_of(self.name, total)
        if progress.stage_step < counts[progress.stage]:
            return True
        if progress.stage + 1 == len(counts):
            return False
        trainer.start_stage(progress.stage + 1)
        return True

    def _step(self, trainer: Trainer) -> StepResult:
        """A step; where the memory does not suffice, again with half the micro-batch, which changes no result."""
        while True:
            try:
                result = trainer.train_step()
            except torch.OutOfMemoryError:
                size = trainer.config.optimizer.rows // 2
                if not size:
                    raise
            else:
                trainer.check_health(result)
                return result
            print(f"out of memory: micro_batch {2 * size} -> {size}", flush=True)
            trainer.optimizer.zero_grad(set_to_none=True)
            torch.cuda.empty_cache()
            optimizer = trainer.config.optimizer.model_copy(update={"micro_batch": size})
            trainer.config = trainer.config.model_copy(update={"optimizer": optimizer})

    def _keep(self, result: StepResult) -> None:
        """The step's numbers and all its texts."""
        write_rows(self.folder / "rollouts" / f"step-{result.step:04d}.jsonl.gz", result.rollouts, stage=result.stage)
        with (self.folder / "metrics.jsonl").open("a", encoding="utf-8") as out:
            out.write(json.dumps(plain({**result.row(), "at": time.time(), "memory": peak()})) + "\n")
        rewards = " -> ".join(f"{reward:.3f}" for reward in result.rewards)
        cut = " ".join(f"{share:.0%}" for share in result.truncated)
        print(
            f"{self.name} {result.stage} step {result.step}: rewards {rewards}, unchanged {result.unchanged:.2f}, "
            f"cut off {cut}, KL {result.kl[0]:.3f}, {result.seconds:.1f} s, {result.tokens_per_second:.0f} tokens/s",
            flush=True,
        )
        self.kept()

    def _save(self, trainer: Trainer) -> None:
        """Weights, and the optimiser's moments where there is more to do: what evaluation and the next call need."""
        complete = self.plan.steps is not None and trainer.progress.step >= self.plan.steps
        tensors = tensors_of(trainer.lm, None if complete else trainer.optimizer)
        # Two at most for a moment: the old one goes once the new one is whole.
        made = Checkpoint(trainer.progress.step, tensors, asdict(trainer.progress))
        save(self.folder / "checkpoints", made, 1, trainer.ranks)
        (self.folder / "done.json").write_text(json.dumps({"steps": trainer.progress.step}) + "\n")

    def _restore(self, trainer: Trainer, state: Checkpoint) -> None:
        trainer.start_stage(state.state["stage"])
        trainer.progress = Progress(**state.state)
        place = self.folder / "checkpoints" / f"step-{state.step:06d}"
        model, moments = parts_of(trainer.ranks.read(place, trainer))
        load_weights(trainer.lm, model)
        if moments:
            load_optimizer(trainer.optimizer, moments)
        elif self._at_work(trainer):
            print(f"{self.name}: more steps than were planned before: the optimiser starts anew", flush=True)
        print(f"{self.name}: going on after step {trainer.progress.step}", flush=True)


def second_slowest(seconds: list[float]) -> float:
    """What a step may take: one of three and more may have been suspended meanwhile, and tells nothing."""
    return sorted(seconds)[-2 if len(seconds) > 2 else -1] if seconds else 0.0


def peak() -> int | None:
    """The most bytes of the accelerator's memory that this process has held."""
    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None
