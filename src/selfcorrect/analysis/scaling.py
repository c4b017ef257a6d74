"""Sampling for inference-compute scaling: every solution once, into a file; analysis/votes.py counts them."""

from collections.abc import Sequence
from functools import partial

from selfcorrect.analysis.votes import Pool, pool_of, votable, vote_key
from selfcorrect.config import TrainConfig
from selfcorrect.errors import ConfigError, DataError, NothingGraded
from selfcorrect.evaluation.counted import Counted, Played, in_chunks
from selfcorrect.evaluation.kept import Kept
from selfcorrect.evaluation.metrics import LEFT_OUT, is_graded, refuse_nothing_graded
from selfcorrect.models.chat import Chat
from selfcorrect.rollout import play
from selfcorrect.samplers.base import Sampler
from selfcorrect.seeds import derive_seed
from selfcorrect.tasks.base import Task
from selfcorrect.types import Problem, Rollout, SamplingParams

UNDEFINED = ("code", "repair")  # programs have no answer to vote on


def check_votes(config: TrainConfig, task: Task) -> None:
    """Raises ConfigError where the task has no answers to vote on, or a correction is not one completion."""
    if task.name in UNDEFINED:
        raise ConfigError(f"task {task.name}: a majority vote is not defined for programs, which have no single answer")
    if config.rollouts.self_refine:
        raise ConfigError(
            "rollouts.self_refine: a correction would take two completions, and the budget counts it as one; scale "
            "without it (rollouts.self_refine=null)"
        )


def cost_of(most: int) -> int:
    """Completions that one problem takes: `most` first attempts, and a correction of half of them."""
    return most + most // 2


def sample_pools(
    task: Task, problems: Sequence[Problem], counted: Counted, chat: Chat, params: SamplingParams, most: int,
    kept: Kept, chunk: int,
) -> list[Pool]:  # fmt: skip
    """`most` first attempts of every problem and most/2 corrections; what `kept` holds is not sampled again.

    Solutions that could not be graded are left out, and problems of which nothing is left.

    chunk: how many problems are sampled, and kept, at once, always the same ones together. Raises
    NothingGraded where not one problem could be sampled and graded.
    """
    pools: list[Pool] = []
    missed: list[Rollout] | None = []  # as long as nothing could be graded
    play_part = partial(_sample, task, counted, chat, params, most)
    for lines, played in in_chunks(problems, chunk, cost_of(most), kept, counted, play_part):
        is_known = missed is None or not played or any(map(is_graded, played))
        missed = None if is_known else [*(missed or ()), *played]
        pools += map(pool_of, lines)
    refuse_nothing_graded(missed or [], "scaling")
    if not (found := votable(pools)):  # as it was kept of an earlier call
        raise NothingGraded(f"scaling: {kept.file}: none of {len(pools)} problems has solutions that were graded")
    return found


def _sample(
    task: Task, sampler: Sampler, chat: Chat, params: SamplingParams, most: int, part: Sequence[Problem], start: int
) -> Played:
    """A line a problem, and its rollouts of two attempts."""
    seed, half = derive_seed(params.seed, "scale", start, part[0].id), most // 2
    draws = SamplingParams(params.temperature, params.max_new_tokens, seed)
    both = play([p for p in part for _ in range(half)], task, sampler, chat, draws, 2)
    more = SamplingParams(params.temperature, params.max_new_tokens, derive_seed(seed, "parallel"))
    once = play([p for p in part for _ in range(most - half)], task, sampler, chat, more, 1)
    lines = []
    for place, problem in enumerate(part):
        mine = both[place * half : (place + 1) * half]
        rest = once[place * (most - half) : (place + 1) * (most - half)]
        lines.append([problem.id, (*_answers(mine, 0), *_answers(rest, 0)), _answers(mine, 1)])
    return lines, both


def _answers(rollouts: Sequence[Rollout], attempt: int) -> tuple[tuple[str, bool], ...]:
    """Normalised answers; an attempt without one has no vote, and one that could not be graded is not there.

    Raises DataError where a user's own task calls an attempt right and tells no answer: its vote would be lost unseen.
    """
    found = []
    for rollout in rollouts:
        problem, grade = rollout.problem, rollout.attempts[attempt].grade
        if problem.task == "custom" and grade.correct and not grade.answer.strip():
            raise DataError(
                f"problem {problem.id!r}: grade() of the task's file calls an attempt correct and tells no answer, so "
                "there is nothing to vote on; let it return a Grade with its answer (docs/tasks.md)"
            )
        if grade.outcome not in LEFT_OUT:
            found.append((vote_key(problem.task, grade.answer), grade.correct))
    return tuple(found)
