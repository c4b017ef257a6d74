"""Problems sampled a chunk at a time, each chunk kept as it ends."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from selfcorrect.evaluation.counted import Counted
from selfcorrect.evaluation.evaluate import grader_lives
from selfcorrect.evaluation.kept import Kept
from selfcorrect.types import Problem, Rollout

Played = tuple[list[Any], list[Rollout]]  # a line a problem, and the rollouts that were played for them


def in_chunks(
    problems: Sequence[Problem], chunk: int, cost: int, kept: Kept, counted: Counted,
    play: Callable[[Sequence[Problem], int], Played],
) -> Iterator[Played]:  # fmt: skip
    """The lines of every problem, always the same ones together; without rollouts where they were kept already.

    cost: completions that a problem takes. play: of the problems of a chunk, and the place where it starts.
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
