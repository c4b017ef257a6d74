"""Long pieces of work: how many of their completions are there, within a call too; and a chunk at a time."""

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from selfcorrect.evaluation.kept import Kept
from selfcorrect.evaluation.metrics import grader_lives
from selfcorrect.samplers.base import Far, Sampler, Telling, Watched
from selfcorrect.types import Completion, Problem, Rollout, SamplingParams

_BETWEEN = 0.25  # seconds between two looks within a call: nobody reads faster

Told = Callable[[int, int, str, float], None]
"""Completions done, completions in all, what goes on now in words, and the share of completions that is done of it."""
Played = tuple[list[Any], list[Rollout]]  # a line a problem, and the rollouts that were played for them


class Counted:
    """A sampler that tells how far the work is. total: completions to come."""

    def __init__(self, sampler: Sampler, told: Told, total: int) -> None:
        self._sampler, self._told, self._total = sampler, told, total
        self._before = self._since = 0

    def sample(self, prompts: Sequence[tuple[int, ...]], params: SamplingParams) -> list[Completion]:
        sampler = self._sampler
        if isinstance(sampler, Watched) and prompts:
            self._tell(
                f"reading {len(prompts):,} prompt{'s' * (len(prompts) > 1)} of up to {max(map(len, prompts)):,} tokens"
            )
            sampler.watch = self._watching(params.max_new_tokens)
        if isinstance(sampler, Telling):
            sampler.tell = lambda ended, now: self._tell(now, 0.0, ended)
        try:
            found = sampler.sample(prompts, params)
        finally:
            if isinstance(sampler, Watched):
                sampler.watch = None
            if isinstance(sampler, Telling):
                sampler.tell = None
        self._since += len(prompts)
        self._tell()
        return found

    def load_weights(self, model: Any) -> None:
        self._sampler.load_weights(model)

    def reach(self, cost: int) -> None:
        """A chunk of so many completions is done; those of problems that cannot be read were not sampled."""
        self._before, self._since = self._before + cost, 0
        self._tell()

    def _watching(self, limit: int) -> Callable[[Far], None]:
        last = time.monotonic()

        def watch(far: Far) -> None:
            nonlocal last
            if far.rows and time.monotonic() - last >= _BETWEEN:
                last = time.monotonic()
                each = far.tokens // far.rows
                self._tell(
                    f"{far.rows:,} side by side at token {each:,} of up to {limit:,}", far.tokens / limit, far.ended
                )

        return watch

    def _tell(self, now: str = "", share: float = 0.0, ended: int = 0) -> None:
        self._told(self._before + self._since + ended, self._total, now, share)


def in_chunks(
    problems: Sequence[Problem], chunk: int, cost: int, kept: Kept, counted: Counted,
    play: Callable[[Sequence[Problem], int], Played],
) -> Iterator[Played]:  # fmt: skip
    """The lines of every problem, sampled and kept a chunk at a time, always the same ones together.

    Without rollouts where they were kept already. cost: completions that a problem takes. play: of the problems of a
    chunk, and the place where it starts.
    """
    for start in range(0, len(problems), chunk):
        part = problems[start : start + chunk]
        lines = kept.take([problem.id for problem in part])
        played = list[Rollout]()
        if lines is None:
            lines, played = play(part, start)
            kept.add(lines, graded=grader_lives(played))
        counted.reach(cost * len(part))
        yield lines, played
