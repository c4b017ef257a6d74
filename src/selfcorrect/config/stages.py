"""The stages of a run: each names an objective, or how it collects the traces it is fine-tuned on."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from selfcorrect.config.base import NonNegative, Positive, Rate, Share, Strict


class StageBase(Strict):
    """What every stage has."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,40}$")]
    steps: Positive
    learning_rate: Rate


class RLStage(StageBase):
    """beta1: KL to the reference on every attempt, inside each attempt's return.

    offline_first: share of a step's problems whose first attempts the base model samples (Sec. 5.3); the policy did
    not write them, so they carry no gradient.
    """

    beta1: NonNegative = 0.01
    offline_first: Share = 0.0


class AdaptiveKL(Strict):
    """A rule for beta2 (Sec. 5.3 names none): after every step, beta2 *= 1 + rate * clip(KL of attempt 1 / target - 1).

    target: nats an attempt. The clip is to [-1, 1]; beta2 stays within a hundredth and a hundred times its start.
    """

    target: Rate
    rate: Annotated[float, Field(gt=0, lt=1)] = 0.05


class StageOne(RLStage):
    """Eq. 3: only later attempts are rewarded; beta2 (on top of beta1) holds attempt 1 at the reference."""

    objective: Literal["stage1"]
    beta2: NonNegative = 0.1
    adaptive: AdaptiveKL | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.adaptive and self.beta2 == 0:
            raise ValueError("adaptive multiplies beta2, which is 0; start from a beta2 above it")
        return self


class StageTwo(RLStage):
    """Eq. 4 with the bonus alpha * (r_a - r_{a-1}) on attempts 2 and later. gamma: App. A.2's ablation."""

    objective: Literal["stage2"]
    alpha: NonNegative = 10.0
    gamma: Share = 0.0


class Annealed(RLStage):
    """Both stages in one: the credit goes in a line from Stage I's to Stage II's.

    Stage I's alone until the share `begin` of the steps is done, Stage II's alone from `end` on.
    """

    objective: Literal["annealed"]
    beta2: NonNegative = 0.1
    alpha: NonNegative = 10.0
    begin: Share = 0.5
    end: Share = 0.8

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.begin > self.end:
            raise ValueError(f"begin ({self.begin:g}) must not come after end ({self.end:g})")
        return self


class SingleTurn(RLStage):
    """Eq. 2 on attempt 1 alone: one attempt is played."""

    objective: Literal["single_turn"]

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.offline_first:
            raise ValueError("offline_first gives attempt 1, which is all that single_turn trains; leave it out")
        return self


class MultiTurn(RLStage):
    """Eq. 1 without stages or bonus, on the last attempt alone (Sec. 5) or on all of them."""

    objective: Literal["multi_turn"]
    rewarded: Literal["last", "all"] = "last"
    gamma: Share = 0.0

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.gamma > 0 and self.rewarded == "last":
            raise ValueError("gamma > 0 would pass the last reward to attempt 1, against rewarded: last")
        return self


class SupervisedStage(StageBase):
    """Fine-tuning of the last attempt on collected traces; `batch` of them an update.

    collect: problems to sample, rollouts_per_problem times each, for one collection. keep_right: right-then-right
    traces too (D+). traces: a file of traces to train on, in place of a collection.
    """

    collect: Positive = 2000
    keep_right: bool = False
    batch: Positive = 256
    traces: str | None = None


class PairSFT(SupervisedStage):
    """D_SFT: a wrong first attempt of the stage's first model, paired with a right one at the same problem."""

    objective: Literal["pair_sft"]


class Star(SupervisedStage):
    """D_STaR: wrong-then-right traces of the newest model, anew for each of the iterations.

    from_newest: each iteration trains on from the last one's weights; otherwise from those the stage began with, as
    in the STaR line of work.
    """

    objective: Literal["star"]
    iterations: Positive = 3
    from_newest: bool = False

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.steps % self.iterations:
            raise ValueError(f"steps ({self.steps}) must be a multiple of iterations ({self.iterations})")
        if self.traces and self.iterations > 1:
            raise ValueError("traces names one file, so set iterations: 1")
        return self


Stage = Annotated[
    StageOne | StageTwo | Annealed | SingleTurn | MultiTurn | PairSFT | Star, Field(discriminator="objective")
]
STAGE_KINDS: dict[str, type[StageBase]] = {
    "stage1": StageOne, "stage2": StageTwo, "annealed": Annealed, "single_turn": SingleTurn, "multi_turn": MultiTurn,
    "pair_sft": PairSFT, "star": Star,
}  # fmt: skip
