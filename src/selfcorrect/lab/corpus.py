"""The text the lab's base model learns from: countdown problems with two attempts each (numpy only).

Attempts are honest (their arithmetic is true) but may miss the target. The second attempt revises without
regard to whether the first was right: that is what makes the model behave like the paper's base models,
decent at attempt 1 and worse at attempt 2.

Axes: B problems, C = 48 candidates.
"""

from dataclasses import dataclass

import numpy as np

from selfcorrect.tasks.countdown_generator import BoolArray, Draws, IntArray, choose


@dataclass(frozen=True, slots=True)
class AttemptMix:
    """How often the corpus' attempts are solved, and how often attempt 2 copies attempt 1."""

    first_solved: float
    second_copied: float
    second_solved: float  # among second attempts that are not copies


def draw_attempts(rng: np.random.Generator, draws: Draws, mix: AttemptMix) -> tuple[IntArray, IntArray]:
    """Candidate indices of attempt 1 and attempt 2 for each problem.

    Attempt 2 copies with probability `second_copied`, whatever attempt 1 was worth; otherwise it differs from
    attempt 1 wherever the problem leaves another candidate.
    """
    solved_BC = draws.solved_BC
    missed_BC = draws.candidates.valid_BC & ~solved_BC
    rows = np.arange(len(solved_BC))

    def attempt(solve_B: BoolArray, other_than_B: IntArray | None) -> IntArray:
        free_BC = np.ones_like(solved_BC)
        if other_than_B is not None:
            free_BC[rows, other_than_B] = False
        solved_B, missed_B = choose(rng, solved_BC & free_BC), choose(rng, missed_BC & free_BC)
        wanted_B, other_B = np.where(solve_B, solved_B, missed_B), np.where(solve_B, missed_B, solved_B)
        return np.where(wanted_B >= 0, wanted_B, other_B)

    first_B = attempt(rng.random(len(rows)) < mix.first_solved, None)
    revised_B = attempt(rng.random(len(rows)) < mix.second_solved, first_B)
    copied_B = (rng.random(len(rows)) < mix.second_copied) | (revised_B < 0)
    return first_B, np.where(copied_B, first_B, revised_B)
