"""Training: `train_step` is the straight line of the design; `Trainer` holds what lasts from step to step.

    problems -> play -> grade -> credit -> advantages -> batch -> loss -> update -> record

Axes: B rollouts, A attempts, T tokens.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor

from selfcorrect.config import RLStage, SingleTurn, StageBase, StageOne, TrainConfig
from selfcorrect.errors import NumericalError
from selfcorrect.evaluation.metrics import is_graded, is_unchanged, refuse_nothing_graded
from selfcorrect.learning.batching import Batch, make_batch, micro_batches
from selfcorrect.learning.credit import advantages_of, credit_of, equal_groups
from selfcorrect.learning.losses import TokenLoss, token_loss
from selfcorrect.learning.objectives import Credit
from selfcorrect.learning.own import Own, own_objectives
from selfcorrect.learning.packing import PackedPrompts
from selfcorrect.learning.policy import learning_rate, make_optimizer, trained_states
from selfcorrect.learning.prompts import SharedPrompts, first_trained
from selfcorrect.learning.record import Clock, Progress, StepResult, Update
from selfcorrect.models.fused import fused
from selfcorrect.models.language_model import LanguageModel
from selfcorrect.models.recompute import recomputed
from selfcorrect.models.tables import InPlace, begin
from selfcorrect.parallel.ranks import Alone
from selfcorrect.rollout import Waiting
from selfcorrect.samplers.base import Resting, Sampler
from selfcorrect.seeds import derive_seed
from selfcorrect.tasks.base import Task
from selfcorrect.types import Attempt, Completion, Problem, Rollout, SamplingParams

BAD_STEPS_ALLOWED = 10
_KEYS = 16  # copies of a shared token's keys and values, one a row: about this part of a token's room, or less


class Trainer:
    """A policy under training: model, frozen reference, sampler, optimiser, task and progress."""

    def __init__(
        self, config: TrainConfig, lm: LanguageModel, reference: LanguageModel | None, sampler: Sampler, task: Task,
        base_sampler: Sampler | None = None, ranks: Alone | None = None, own: Mapping[str, Own] | None = None,
    ) -> None:  # fmt: skip
        """reference: None where the recipe needs none. base_sampler: samples from it, for stages with offline_first.

        ranks: of several processes; each has a trainer, and all of them take every step together. own: the user's own
        objectives, by stage, where their files were run already.
        """
        self.config, self.lm, self._reference, self.sampler, self.task = config, lm, reference, sampler, task
        self.base_sampler = base_sampler
        self.ranks = ranks or Alone()
        self.own = own_objectives(config.stages) if own is None else own
        self.progress = Progress()
        self.start_stage(0)

    @property
    def reference(self) -> LanguageModel:
        assert self._reference, "a KL weight, or a draw from the base model, without a reference"
        return self._reference

    @property
    def has_reference(self) -> bool:
        return self._reference is not None

    @property
    def stage(self) -> StageBase:
        return self.config.stages[self.progress.stage]

    def start_stage(self, index: int) -> None:
        """Fresh optimiser and best-reward record; weights go on."""
        done = self.progress
        stage = self.config.stages[index]
        adapted = stage.beta2 if isinstance(stage, StageOne) and stage.adaptive else None
        self.progress = Progress(stage=index, step=done.step, skipped=done.skipped, beta2=adapted)
        self.restart_optimizer()

    def restart_optimizer(self) -> None:
        """Forget its moments."""
        self.optimizer = make_optimizer(self.lm, self.config.optimizer)

    def train_step(self) -> StepResult:
        """One step: sample, grade, credit, update.

        Raises NothingGraded, with all as it was before the step, where not one rollout could be sampled and graded.
        """
        config, stage, progress, clock = self.config, self.stage, self.progress, Clock()
        assert isinstance(stage, RLStage)
        step = progress.step + 1
        rate = learning_rate(stage.learning_rate, progress.stage_step + 1, stage.steps, config.optimizer)
        attempts = 1 if isinstance(stage, SingleTurn) else config.rollouts.attempts
        group = config.rollouts.rollouts_per_problem

        drawn = self.task.draw(step, config.rollouts.problems_per_step, config.seed)
        problems = [problem for problem in drawn for _ in range(group)]
        params = SamplingParams(
            config.rollouts.temperature, config.rollouts.max_new_tokens, derive_seed(config.seed, "rollouts", step)
        )
        clock.lap("problems")
        self.sampler.load_weights(self.lm.model)
        given, waiting = self._offline_first(stage.offline_first, problems, params), Waiting()
        rollouts = self.ranks.play(
            problems, self.task, self.sampler, self.lm.chat, params, attempts, given=given, waiting=waiting,
            group=group,
        )  # fmt: skip
        self.rest()
        clock.lap("rollouts")
        clock.move("rollouts", "grader_wait", waiting.seconds)
        refuse_nothing_graded(rollouts, f"step {step}")

        rewards_BA = torch.tensor([[attempt.grade.reward for attempt in rollout.attempts] for rollout in rollouts])
        included_B = torch.tensor([is_graded(rollout) for rollout in rollouts])
        credit, advantages_BA = self._credited(rewards_BA, included_B, rollouts, group)
        batch = make_batch(rollouts, advantages_BA, credit.kl_coef_A, included_B)
        update = self.update(batch, int(included_B.sum()), rate, config.rollouts.temperature)
        clock.lap("update")

        sampled_BA = torch.tensor([[attempt.sampled for attempt in rollout.attempts] for rollout in rollouts])
        own_B = sampled_BA[:, 0] & included_B
        beta2 = progress.beta2
        self.advance(update, float(rewards_BA[included_B, -1].mean()) if included_B.any() else None)
        if update.rows_A[0] and not update.skip_reason:
            self._adapt(float(update.mean_kl_A[0]))
        shown_B = own_B if own_B.any() else included_B
        # What the policy has not sampled, the base model has (offline_first), or it was read (task repair).
        written = [a for rollout in rollouts for a in rollout.attempts if a.sampled or given is not None]
        result = self._record(update, rollouts, written, included_B, shown_B, rate, beta2, clock)
        return replace(result, equal_groups=equal_groups(advantages_BA, sampled_BA, included_B, group))

    def _credited(
        self, rewards_BA: Tensor, included_B: Tensor, rollouts: list[Rollout], group: int
    ) -> tuple[Credit, Tensor]:
        """What each attempt is paid, and weighed with [B, A]."""
        progress, own = self.progress, self.own.get(self.stage.name)
        if own is None:
            credit = credit_of(self.stage, rewards_BA, progress)
            return credit, advantages_of(self.config.algorithm, credit, rewards_BA, included_B, group)

        def paid() -> tuple[Credit, Tensor]:
            seed = derive_seed(self.config.seed, "objective", progress.step + 1)
            credit = own.credit(rewards_BA, rollouts, progress.stage_step, seed)
            found_BA = own.advantages(credit, rewards_BA, included_B, group, seed)
            if found_BA is None:
                found_BA = advantages_of(self.config.algorithm, credit, rewards_BA, included_B, group)
            return credit, found_BA

        return self.ranks.first(paid)  # the user's code need not come to the same in every process

    def rest(self) -> None:
        """Nothing is sampled before weights are loaded again."""
        if isinstance(self.sampler, Resting):
            self.sampler.rest()

    def _offline_first(
        self, share: float, problems: list[Problem], params: SamplingParams
    ) -> list[Completion | None] | None:  # fmt: skip
        """First attempts of the base model for the leading share of the step's groups (Sec. 5.3); None without."""
        rollouts = self.config.rollouts
        rows = round(share * rollouts.problems_per_step) * rollouts.rollouts_per_problem
        if not rows:
            return None
        draws = SamplingParams(params.temperature, params.max_new_tokens, derive_seed(params.seed, "offline"))
        return [*self.base_attempts(problems[:rows], draws), *[None] * (len(problems) - rows)]

    def base_attempts(self, problems: Sequence[Problem], params: SamplingParams) -> list[Completion | None]:
        """First attempts of the base model; None where the problem is not to be read."""
        assert self.base_sampler, "first attempts of the base model need a base_sampler"
        chat = self.lm.chat
        readable = [row for row, problem in enumerate(problems) if chat.readable(problem.prompt)]
        self.base_sampler.load_weights(self.reference.model)
        contexts = [chat.first_prompt(problems[row].prompt) for row in readable]
        sampled = dict(zip(readable, self.ranks.sample(self.base_sampler, contexts, params), strict=True))
        return [sampled.get(row) for row in range(len(problems))]

    def _adapt(self, kl: float) -> None:
        """beta2 after a step in which attempt 1 had this KL, by the stage's rule (config/stages.py)."""
        stage, beta2 = self.stage, self.progress.beta2
        if isinstance(stage, StageOne) and stage.adaptive and beta2 is not None:
            error = min(1.0, max(-1.0, kl / stage.adaptive.target - 1))
            changed = beta2 * (1 + stage.adaptive.rate * error)
            self.progress.beta2 = min(100 * stage.beta2, max(stage.beta2 / 100, changed))

    def check_health(self, result: StepResult) -> None:
        """Raises NumericalError after ten bad updates in a row, the last of which is `result`."""
        if self.progress.bad_in_a_row >= BAD_STEPS_ALLOWED:
            finer = ["model.weights=float32"] if self.config.model.weights == "bfloat16" else []
            finer += ["model.precision=float32"] if self.lm.compute_dtype != torch.float32 else []
            raise NumericalError(
                f"{BAD_STEPS_ALLOWED} updates in a row were skipped, the last at step {result.step} because "
                f"{result.skip_reason}; start again with a lower learning_rate of stage {result.stage}"
                + (f", or with {' '.join(finer)}" if finer else "")
            )

    def update(self, batch: Batch, rollouts: int, rate: float, temperature: float) -> Update:
        """One AdamW step on the mean loss over the step's rollouts, whatever the micro-batches.

        A loss or gradient that is not finite leaves weights and optimiser as they were.
        """
        attempts = max(1, int(batch.attempt_BT.max()))
        sums_4A, loss_sum = torch.zeros(4, attempts, dtype=torch.float64), torch.zeros((), dtype=torch.float64)
        ranks, most = self.ranks, self.config.optimizer.max_grad_norm
        self.optimizer.zero_grad(set_to_none=True)
        group = self.config.rollouts.rollouts_per_problem if isinstance(self.stage, RLStage) else 1
        own = ranks.own(batch, group)
        models = [lm.model for lm in (self.lm, self._reference) if lm]
        with fused(self.config.optimizer.compile, *models):
            passes = Passes(self, own, uses_kl=bool((batch.kl_coef_BT > 0).any()), temperature=temperature)
            for piece in passes.pieces(own):
                micro, result = passes.learn(piece, rollouts)
                loss_sum += float(result.loss_B.detach().sum() / max(1, rollouts))
                gap_BT = (result.logprobs_BT - micro.sampler_logprobs_BT).abs()
                for attempt in range(1, attempts + 1):
                    mine_BT = micro.attempt_BT == attempt
                    columns = (result.kl_BT, -result.logprobs_BT, gap_BT, torch.ones_like(gap_BT))
                    sums_4A[:, attempt - 1] += torch.stack([(c * mine_BT).sum() for c in columns]).cpu().double()
            for piece in ranks.idle(batch, group, lambda rows: len(list(passes.pieces(rows)))):
                passes.learn(piece, rollouts)
            passes.end()
        ranks.sum_gradients(self.lm.parameters())
        ranks.add_up(sums_4A, loss_sum)
        grad_norm = ranks.clip(self.lm.parameters(), most)
        reason = _not_finite(float(loss_sum), grad_norm)
        if not reason:
            for parameters in self.optimizer.param_groups:
                parameters["lr"] = rate
            self.optimizer.step()
        kl_A, neg_logprob_A, gap_A, tokens_A = sums_4A
        rows_A = torch.stack([(batch.attempt_BT == a + 1).any(1).sum() for a in range(attempts)])
        return Update(float(loss_sum), grad_norm, kl_A, neg_logprob_A, gap_A, tokens_A, rows_A, reason)

    def advance(self, update: Update, reward: float | None) -> None:
        """Count the step, and let go of its gradients. reward: the mean of the last attempt, where there is one."""
        self.optimizer.zero_grad(set_to_none=True)  # sampling and saving need the room
        progress, smoothing = self.progress, self.config.checkpoint.smoothing
        progress.step += 1
        progress.stage_step += 1
        if reward is not None:
            before = progress.smoothed_reward
            progress.smoothed_reward = reward if before is None else smoothing * before + (1 - smoothing) * reward
        progress.bad_in_a_row = progress.bad_in_a_row + 1 if update.skip_reason else 0
        progress.skipped += bool(update.skip_reason)

    def _record(
        self, update: Update, rollouts: list[Rollout], written: list[Attempt], included_B: Tensor, shown_B: Tensor,
        rate: float, beta2: float | None, clock: Clock,
    ) -> StepResult:  # fmt: skip
        """written: attempts that were sampled. shown_B: the rollouts whose rewards are told, all of them included."""
        kept = [rollout for rollout, included in zip(rollouts, shown_B.tolist(), strict=True) if included]
        count = max(1, len(kept))

        def means(of: Callable[[Attempt], float]) -> list[float]:
            columns = zip(*(map(of, rollout.attempts) for rollout in kept), strict=True)
            return [sum(column) / count for column in columns] or [0.0] * len(rollouts[0].attempts)

        # a reward between 0 and 1 is a wrong attempt's
        right = [(r.attempts[0].grade.correct, r.attempts[-1].grade.correct) for r in kept]
        accuracy = means(lambda attempt: attempt.grade.correct)
        tokens = sum(len(attempt.completion.token_ids) for attempt in written)
        progress, total_tokens = self.progress, float(update.tokens_A.sum())
        return StepResult(
            step=progress.step,
            stage=self.stage.name,
            stage_step=progress.stage_step,
            rewards=means(lambda attempt: attempt.grade.reward),
            accuracy=accuracy,
            smoothed_reward=progress.smoothed_reward or 0.0,
            delta=accuracy[-1] - accuracy[0],
            fixed=right.count((False, True)) / count,
            broken=right.count((True, False)) / count,
            unchanged=sum(is_unchanged(rollout) for rollout in kept) / count,
            kl=update.mean_kl_A.tolist(),
            entropy=(update.neg_logprob_A / update.tokens_A.clamp(min=1)).tolist(),
            loss=update.loss,
            grad_norm=update.grad_norm,
            learning_rate=rate,
            sampler_gap=float(update.gap_A.sum()) / max(1.0, total_tokens),
            completions=len(written),
            sampled_tokens=tokens,
            tokens_per_second=tokens / max(1e-9, clock.total),
            seconds=clock.total,
            seconds_by_part=clock.parts,
            grader_failed=int((~included_B).sum()),
            truncated=means(lambda attempt: attempt.completion.finish_reason == "length"),
            skipped=bool(update.skip_reason),
            skip_reason=update.skip_reason,
            beta2=beta2,
            longest=max(len(r.attempts[-1].prompt_ids) + len(r.attempts[-1].completion.token_ids) for r in rollouts),
            rollouts=rollouts,
        )


class Passes:
    """The forward and backward passes of one update, over this process's rows. The prompts they share come first."""

    def __init__(self, trainer: Trainer, own: Batch, *, uses_kl: bool, temperature: float) -> None:
        optimizer = trainer.config.optimizer
        self._rows = optimizer.rows
        self._lm, self._reference = trainer.lm, trainer.reference if uses_kl else None
        self._temperature, self._estimator = temperature, trainer.config.algorithm.kl_estimator
        # traces were chosen, not drawn
        self._cap = trainer.config.importance_cap if isinstance(trainer.stage, RLStage) else None
        self._packed, self._again = optimizer.padding_free is True, optimizer.gradient_checkpointing is True
        self._in_place = InPlace()
        if not trainer.ranks.sharded and (own.attempt_BT > 0).any():  # what no pass reaches is not to move
            self._in_place = begin(self._lm, on_card=self._lm.device.type != "cpu")
        self._prompts: SharedPrompts | None = None
        self._ref_prompts: SharedPrompts | None = None
        if trainer.ranks.shares_prompts:
            shared = PackedPrompts if self._packed else SharedPrompts
            with self._kept():
                self._prompts = shared.of(self._lm, own, optimizer.rows)
            with torch.no_grad():
                self._ref_prompts = shared.of(self._reference, own, optimizer.rows) if self._reference else None

    def pieces(self, rows: Batch) -> Iterator[Batch]:
        """The micro-batches of some rows, each of which is one forward and one backward pass."""
        if not self._packed:
            return micro_batches(rows, self._rows)
        shared_B = first_trained(rows) - 1 if self._prompts else torch.zeros_like(rows.length_B)
        return micro_batches(rows, self._rows, rows.length_B - 1 - shared_B + shared_B // _KEYS)

    def learn(self, piece: Batch, rollouts: int) -> tuple[Batch, TokenLoss]:
        """Adds a micro-batch's part to the gradients of the mean over `rollouts`."""
        micro, reference = piece.to(self._lm.device), None
        if self._reference:
            with torch.no_grad():
                reference = trained_states(self._reference, micro, self._ref_prompts, self._packed)
        with self._kept():
            policy = trained_states(self._lm, micro, self._prompts, self._packed)
        added = self._in_place.head
        result = token_loss(policy, reference, micro, self._temperature, self._estimator, self._cap, in_place=added)
        loss = result.loss_B.sum() / max(1, rollouts)
        loss.backward()  # type: ignore[no-untyped-call]
        return micro, result

    def end(self) -> None:
        """After the last micro-batch."""
        if self._prompts:
            self._prompts.backward()

    @contextmanager
    def _kept(self) -> Iterator[None]:
        """Of a forward pass that trains."""
        with self._in_place.forward(), recomputed(self._lm.model, self._again, self._lm.kernels):
            yield


def _not_finite(loss: float, grad_norm: float) -> str:
    if not math.isfinite(loss):
        return f"the loss is {loss}"
    return "" if math.isfinite(grad_norm) else f"the gradient norm is {grad_norm}"
