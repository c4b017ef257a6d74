"""The stages of a run: each names an objective, or how it collects the traces it is fine-tuned on."""

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from selfcorrect.config.base import LocalPath, NonNegative, Paper, Positive, Rate, Share, Strict, kinds_of


class StageBase(Strict):
    """What every stage has.

    steps_are_one: why `steps` may not change once the stage is begun, where what a step does depends on how many there
    are in all; empty where it does not.
    """

    steps_are_one: ClassVar[str] = ""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,40}$")]
    """The stage's name, by which overrides, evaluations and models/NAME go."""
    steps: Annotated[Positive, Paper("steps, Table 5; both stages together")]
    """Updates of the stage."""
    learning_rate: Annotated[Rate, Paper("learning rate, Table 5")]
    """The highest rate of the stage, at the end of its warm-up."""


class RLStage(StageBase):
    """What every stage of reinforcement learning has."""

    beta1: Annotated[NonNegative, Paper("beta1, Eq. 2 to 4")] = 0.01
    """Weight of the KL to the reference on every attempt, inside each attempt's return."""
    offline_first: Annotated[Share, Paper("offline first attempts, Sec. 5.3")] = 0.0
    """Share of a step's problems whose first attempts the base model samples; the policy did not write them, so they
    carry no gradient."""


class AdaptiveKL(Strict):
    """A rule for beta2 (Sec. 5.3 names none): after every step, beta2 *= 1 + rate * clip(KL of attempt 1 / target - 1).

    The clip is to [-1, 1]; beta2 stays within a hundredth and a hundred times its start.
    """

    target: Rate
    """The KL of attempt 1 that beta2 is steered to, in nats an attempt."""
    rate: Annotated[float, Field(gt=0, lt=1)] = 0.05
    """By how much, at most, a step changes beta2."""


class StageOne(RLStage):
    """Stage I (Eq. 3): only later attempts are rewarded, and a KL holds attempt 1 at the reference."""

    objective: Literal["stage1"]
    """stage1: SCoRe's first stage."""
    beta2: Annotated[NonNegative, Paper("beta2, Eq. 3")] = 0.1
    """Weight of the KL that holds attempt 1 at the reference, on top of beta1."""
    adaptive: Annotated[AdaptiveKL | None, Paper("beta2 may adapt, Sec. 5.3")] = None
    """A rule that changes beta2 after every step; none by default."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.adaptive and self.beta2 == 0:
            raise ValueError("adaptive multiplies beta2, which is 0; start from a beta2 above it")
        return self


class StageTwo(RLStage):
    """Stage II (Eq. 4): every attempt is rewarded, with a bonus for turning wrong into right and a penalty for the
    reverse.
    """

    objective: Literal["stage2"]
    """stage2: SCoRe's second stage."""
    alpha: Annotated[NonNegative, Paper("alpha, the bonus of Eq. 4")] = 10.0
    """Weight of the bonus alpha * (r_a - r_{a-1}) that attempts 2 and later get beside their own reward."""
    gamma: Annotated[Share, Paper("gamma, App. A.2; 0 there but for an ablation")] = 0.0
    """Discount at which an attempt is also credited with the rewards of later ones."""


class Annealed(RLStage):
    """Both stages in one: the credit goes in a line from Stage I's to Stage II's."""

    steps_are_one = "its credit goes from stage 1's to stage 2's over all of its steps, so those done had another"

    objective: Literal["annealed"]
    """annealed: both stages in one run (ours)."""
    beta2: Annotated[NonNegative, Paper("beta2, Eq. 3")] = 0.1
    """Weight of the KL that holds attempt 1 at the reference while Stage I's credit lasts."""
    alpha: Annotated[NonNegative, Paper("alpha, the bonus of Eq. 4")] = 10.0
    """Weight of Stage II's bonus, once its credit counts alone."""
    begin: Share = 0.5
    """Share of the steps until which Stage I's credit counts alone."""
    end: Share = 0.8
    """Share of the steps from which on Stage II's credit counts alone."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.begin > self.end:
            raise ValueError(f"begin ({self.begin:g}) must not come after end ({self.end:g})")
        return self


class SingleTurn(RLStage):
    """Single-turn RL (Eq. 2) on attempt 1 alone: one attempt is played."""

    objective: Annotated[Literal["single_turn"], Paper("Eq. 2; Table 4")]
    """single_turn: plain RL on attempt 1."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.offline_first:
            raise ValueError("offline_first gives attempt 1, which is all that single_turn trains; leave it out")
        return self


class MultiTurn(RLStage):
    """Multi-turn RL (Eq. 1) without stages or bonus, on the last attempt alone (Sec. 5) or on all of them."""

    objective: Annotated[Literal["multi_turn"], Paper("Eq. 1, Sec. 5")]
    """multi_turn: plain RL over the conversation."""
    rewarded: Literal["last", "all"] = "last"
    """Which attempts are rewarded."""
    gamma: Annotated[Share, Paper("gamma, App. A.2")] = 0.0
    """Discount at which an attempt is also credited with the rewards of later ones."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.gamma > 0 and self.rewarded == "last":
            raise ValueError("gamma > 0 would pass the last reward to attempt 1, against rewarded: last")
        return self


class OwnObjective(RLStage):
    """An objective of your own, in one Python file; docs/methods.md says what the file defines."""

    objective: Literal["custom"]
    """custom: an objective of your own."""
    file: LocalPath
    """The Python file."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Handed to the file's functions as they are."""


class SupervisedStage(StageBase):
    """Fine-tuning of the last attempt on collected traces."""

    collect: Positive = 2000
    """Problems to sample, rollouts_per_problem times each, for one collection."""
    keep_right: Annotated[bool, Paper("D+, Tables 1 to 4")] = False
    """Right-then-right traces too."""
    batch: Positive = 256
    """Traces in an update."""
    traces: LocalPath | None = None
    """A file of traces to train on, in place of a collection (docs/methods.md)."""


class PairSFT(SupervisedStage):
    """Pair-SFT: a wrong first attempt of the stage's first model, paired with a right one at the same problem."""

    objective: Annotated[Literal["pair_sft"], Paper("D_SFT, Tables 1 to 3")]
    """pair_sft: fine-tuning on pairs of attempts."""


class Star(SupervisedStage):
    """STaR: wrong-then-right traces of the newest model, anew for each of the iterations."""

    steps_are_one = "its iterations share its steps, so those done would have been other ones"

    objective: Annotated[Literal["star"], Paper("D_STaR, Tables 1 and 4")]
    """star: fine-tuning on the model's own corrections."""
    iterations: Positive = 3
    """How often traces are collected and trained on; steps are divided among them."""
    from_newest: bool = False
    """Each iteration trains on from the last one's weights; otherwise from those the stage began with, as in the STaR
    line of work."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.steps % self.iterations:
            raise ValueError(f"steps ({self.steps}) must be a multiple of iterations ({self.iterations})")
        if self.traces and self.iterations > 1:
            raise ValueError("traces names one file, so set iterations: 1")
        return self


Stage = Annotated[
    StageOne | StageTwo | Annealed | SingleTurn | MultiTurn | OwnObjective | PairSFT | Star,
    Field(discriminator="objective"),
]
STAGE_KINDS: dict[str, type[StageBase]] = kinds_of(Stage, "objective")
