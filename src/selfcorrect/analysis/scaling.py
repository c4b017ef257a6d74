"""Sampling for inference-compute scaling: every solution once, into a file; analysis/votes.py counts them."""

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from selfcorrect.analysis.votes import Pool, read_pools, vote_key
from selfcorrect.errors import ConfigError
from selfcorrect.evaluation.metrics import refuse_nothing_graded
from selfcorrect.models.chat import Chat
from selfcorrect.rollout import play
from selfcorrect.samplers.base import Sampler
from selfcorrect.seeds import derive_seed
from selfcorrect.tasks.base import Task
from selfcorrect.types import Problem, Rollout, SamplingParams

UNDEFINED = ("code", "repair")  # programs have no answer to vote on


def sample_pools(
    task: Task, problems: Sequence[Problem], sampler: Sampler, chat: Chat, params: SamplingParams, most: int,
    file: Path, rows_at_once: int, say: Callable[[str], None] = lambda text: None,
) -> list[Pool]:  # fmt: skip
    """`most` first attempts of every problem and most/2 corrections; problems that `file` holds are not sampled again.

    Raises ConfigError where the task has no answers to vote on, or `file` is of another number of samples.
    """
    if task.name in UNDEFINED:
        raise ConfigError(f"task {task.name}: a majority vote is not defined for programs, which have no single answer")
    pools = {pool.id: pool for pool in read_pools(file)}
    if any(len(pool.first) != most for pool in pools.values()):
        raise ConfigError(f"{file}: holds another number of samples than {most}; remove it, or choose another output")
    _write(file, pools.values())  # without what a crash left torn
    todo = [problem for problem in problems if problem.id not in pools]
    chunk = max(1, rows_at_once // most)
    for start in range(0, len(todo), chunk):
        part = todo[start : start + chunk]
        seed = derive_seed(params.seed, "scale", part[0].id)
        draws = SamplingParams(params.temperature, params.max_new_tokens, seed)
        both = play([p for p in part for _ in range(most // 2)], task, sampler, chat, draws, 2)
        refuse_nothing_graded(both, "scaling")
        more = SamplingParams(params.temperature, params.max_new_tokens, derive_seed(seed, "parallel"))
        once = play([p for p in part for _ in range(most - most // 2)], task, sampler, chat, more, 1)
        with file.open("a", encoding="utf-8") as out:
            for place, problem in enumerate(part):
                mine = both[place * (most // 2) : (place + 1) * (most // 2)]
                rest = once[place * (most - most // 2) : (place + 1) * (most - most // 2)]
                pool = Pool(problem.id, (*_answers(mine, 0), *_answers(rest, 0)), _answers(mine, 1))
                pools[problem.id] = pool
                out.write(_line(pool))
        say(f"{start + len(part)} of {len(todo)} problems sampled")
    return [pools[problem.id] for problem in problems]


def _answers(rollouts: Sequence[Rollout], attempt: int) -> tuple[tuple[str, bool], ...]:
    """Normalised answers; an attempt without one has no vote."""
    grades = [(rollout.problem.task, rollout.attempts[attempt].grade) for rollout in rollouts]
    return tuple((vote_key(task, grade.answer), grade.correct) for task, grade in grades)


def _line(pool: Pool) -> str:
    return json.dumps([pool.id, pool.first, pool.corrected]) + "\n"


def _write(file: Path, pools: Iterable[Pool]) -> None:
    """Whole or not at all."""
    partial = file.with_name(f"{file.name}.partial")
    partial.write_text("".join(map(_line, pools)), encoding="utf-8")
    partial.replace(file)
