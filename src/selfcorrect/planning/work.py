"""A step of a recipe in numbers of rows and tokens."""

import math
from dataclasses import dataclass, replace

from selfcorrect.config import (
    CodeConfig,
    CountdownConfig,
    MathConfig,
    RepairConfig,
    SingleTurn,
    SupervisedStage,
    TrainConfig,
)

_CHARACTERS = 4.0  # of English and code, a token
_TEMPLATE = 20  # tokens of a chat template around a turn
# By data set: tokens of a problem's own words, the mean and the longest; assumed, near Qwen2.5's tokenizer.
_PROBLEMS = {"math": (75, 700), "gsm8k": (60, 230), "code": (90, 350), "countdown": (25, 35), "custom": (150, 500)}
_SHOT = 110  # a solved example of MBPP
ATTEMPT_SHARE = 0.5  # of max_new_tokens that an attempt takes in the mean, where nothing is known


@dataclass(frozen=True, slots=True)
class Lengths:
    """Tokens. prompt and longest: of the first prompt, in the mean and at the most; turn: of the correction turn.

    attempt: of an attempt in the mean; limit: at the most. told: where these come from. fullest: of an attempt in the
    mean of the step that had most; None where all may be as long as the limit.
    """

    prompt: float
    longest: float
    turn: float
    attempt: float
    limit: int
    told: str
    fullest: float | None = None

    def mean_row(self, attempts: int) -> float:
        return self.prompt + attempts * self.attempt + (attempts - 1) * self.turn

    def longest_row(self, attempts: int) -> float:
        return self.longest + attempts * self.limit + (attempts - 1) * self.turn

    def fullest_row(self, attempts: int) -> float:
        """In the mean of the fullest step."""
        if self.fullest is None:
            return self.longest_row(attempts)
        return replace(self, attempt=self.fullest).mean_row(attempts)


def assumed_lengths(config: TrainConfig, attempt: float | None = None, prompt: float | None = None) -> Lengths:
    """From the recipe's texts. attempt and prompt: where the user knows better."""
    task = config.task.of if isinstance(config.task, RepairConfig) else config.task
    limit, around = config.rollouts.max_new_tokens, len(config.model.system_prompt or "") / _CHARACTERS + _TEMPLATE
    match task:
        case MathConfig():
            mean, most = _PROBLEMS[task.dataset]
        case CodeConfig():
            mean, most = (value + task.shots * _SHOT for value in _PROBLEMS["code"])
        case CountdownConfig():
            mean, most = _PROBLEMS["countdown"]
        case _:
            mean, most = _PROBLEMS["custom"]
    template, between = getattr(task, "prompt", ""), getattr(task, "correction_prompt", "")
    around += len(template) / _CHARACTERS
    told = f"prompts of {prompt or mean + around:.0f} tokens and attempts of {attempt or ATTEMPT_SHARE * limit:.0f}"
    told += " (given)" if attempt and prompt else " (assumed; --attempt-tokens and --prompt-tokens say better)"
    return Lengths(
        prompt or mean + around, max(most + around, prompt or 0), len(between) / _CHARACTERS + _TEMPLATE,
        attempt or max(1.0, ATTEMPT_SHARE * limit), limit, told,
    )  # fmt: skip


def filled(config: TrainConfig, lengths: Lengths, attempts: int) -> float:
    """Rows of mean length that a micro-batch has for each row of `micro_batch`: packed ones have the longest's room, as
    batching.micro_batches fills it.
    """
    packed = config.optimizer.padding_free is True
    return max(1.0, lengths.longest_row(attempts) / lengths.mean_row(attempts)) if packed else 1.0


@dataclass(frozen=True, slots=True)
class Update:
    """An update of rollouts that are equally long.

    rows: of a micro-batch; rest: tokens of a row beyond its shared prefix, all of them where nothing is shared;
    trained: those of them that were sampled. prefixes: shared prompts of `prefix` tokens, 0 where each row brings its
    own. again: gradient checkpointing. scored: for how many of the trained tokens of a micro-batch a rehearsal passes
    over the vocabulary; further ones add their hidden states alone. in_place: embedding and head add to their gradients
    themselves (models/tables.py).
    """

    rows: int
    rest: int
    trained: int
    scored: int
    prefixes: int
    prefix: int
    micro_batches: int
    packed: bool
    again: bool
    in_place: bool


@dataclass(frozen=True, slots=True)
class Sampling:
    """lanes: rows at work; slots: tokens of the longest; prefilled: rows that are fed a turn of `turn` tokens; ahead:
    the most tokens of a row in a step; greedy: whether the likeliest token is taken, and none drawn.
    """

    lanes: int
    slots: int
    prefilled: int
    turn: int
    ahead: int = 1
    greedy: bool = False


@dataclass(frozen=True, slots=True)
class Step:
    """rows: of the step on one device; attempts: of a stage; reference: whether anything is measured to it; samples:
    whether it samples, as all but supervised ones do.
    """

    rows: int
    groups: int
    attempts: int
    lengths: Lengths
    reference: bool
    samples: bool = True


def step_of(config: TrainConfig, lengths: Lengths, devices: int = 1) -> Step:
    """What one device has of a step: whole groups, rounded up."""
    rollouts = config.rollouts
    groups = math.ceil(rollouts.problems_per_step / devices)
    single = all(isinstance(stage, SingleTurn) for stage in config.stages)
    supervised = all(isinstance(stage, SupervisedStage) for stage in config.stages)
    attempts = 1 if single else rollouts.attempts
    rows = groups * rollouts.rollouts_per_problem
    if supervised:
        rows = math.ceil(max(stage.batch for stage in config.stages if isinstance(stage, SupervisedStage)) / devices)
    return Step(rows, groups, attempts, lengths, config.uses_reference and not supervised, not supervised)


def update_of(
    config: TrainConfig, step: Step, attends_to_all: bool, scored: int, *, in_place: bool, longest: bool = True
) -> Update:  # fmt: skip
    """A step's update; longest: as if all rollouts were as long as they may be, which bounds its memory."""
    lengths, optimizer = step.lengths, config.optimizer
    attempts, group = step.attempts, config.rollouts.rollouts_per_problem
    attempt, prompt = (lengths.limit, lengths.longest) if longest else (lengths.attempt, lengths.prompt)
    trained = math.ceil(attempts * attempt)
    row = math.ceil(prompt + attempts * attempt + (attempts - 1) * lengths.turn)
    fill = 1.0 if longest else filled(config, lengths, attempts)
    micro = min(int(fill * optimizer.rows), step.rows)
    # As SharedPrompts.of decides; the prompts of a step are as long as prompts are in the mean. Traces are of as many
    # problems as there are, nearly.
    width = math.ceil(prompt if not longest else lengths.prompt)
    shares = attends_to_all and step.samples and group >= 2 and width > 1 and step.groups * width <= micro * row
    prefix = width - 1 if shares else 0
    return Update(
        rows=micro, rest=row - 1 - prefix, trained=trained, scored=min(scored, micro * trained),
        prefixes=step.groups if shares else 0, prefix=prefix,
        micro_batches=min(2, math.ceil(step.rows / micro)), packed=optimizer.padding_free is True,
        again=optimizer.gradient_checkpointing is True, in_place=in_place,
    )  # fmt: skip


def fullest_of(step: Step, work: Update) -> list[Update]:
    """Of an update of the longest rows, the micro-batches one of which takes most: the first, when no gradient is there
    yet, and the second, beside all gradients, as full as the step fills it.
    """
    first = replace(work, micro_batches=1)
    if not work.packed:  # padded to the longest
        rows = min(work.rows, step.rows - work.rows)
        if rows <= 0:
            return [first]
        second = replace(work, rows=rows, scored=min(work.scored, rows * work.trained))
        return [work] if second == work else [first, second]
    row = math.ceil(step.lengths.fullest_row(step.attempts)) - 1 - work.prefix
    left = min(1.0, step.rows * row / (work.rows * work.rest) - 1)
    if left == 1:
        return [work]
    if left <= 0:
        return [first]
    trained = math.ceil(left * work.trained)
    scored = min(work.scored, work.rows * trained)
    return [first, replace(work, rest=math.ceil(left * work.rest), trained=trained, scored=scored)]


def sampling_of(config: TrainConfig, step: Step) -> Sampling:
    """The last attempt, with the longest cache."""
    lengths, attempts = step.lengths, step.attempts
    turn = math.ceil(lengths.turn + 1 if attempts > 1 else lengths.prompt)
    lanes = min(config.rollouts.rows, step.rows)
    return Sampling(lanes, math.ceil(lengths.longest_row(attempts)), min(lanes, max(1, (1 << 15) // turn)), turn)
