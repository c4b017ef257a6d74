"""The text the lab's base model learns from: countdown problems with two attempts each.

Attempts are honest (their arithmetic is true) but may miss the target. The second attempt opens with a remark,
for example `right change`: what attempt 1 was worth, then what the writer does about it. The verdict is true, and
the writer hardly heeds it: right answers are changed almost as often as wrong ones. That is what makes the model
behave like the paper's base models: decent at attempt 1, worse at attempt 2. (It must be hardly, not never: from a
corpus of decisions independent of the verdict the model learns to erase the verdict before it decides, and RL finds
nothing to amplify. docs/log.md has the measurement.)

Axes: B problems, C = 48 candidates.
"""

import numpy as np

from selfcorrect.config import LabBaseConfig
from selfcorrect.tasks.countdown_generator import BoolArray, Draws, IntArray, choose


def draw_attempts(rng: np.random.Generator, draws: Draws, mix: LabBaseConfig) -> tuple[IntArray, IntArray]:
    """Candidate indices of attempt 1 and attempt 2 for each problem. mix: says how often they are solved or copied.

    Attempt 2 copies a right attempt 1 with probability `right_copied`, a wrong one with `wrong_copied`; otherwise it
    differs from attempt 1 wherever the problem leaves another candidate.
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
    copy_share_B = np.where(solved_BC[rows, first_B], mix.right_copied, mix.wrong_copied)
    copied_B = (rng.random(len(rows)) < copy_share_B) | (revised_B < 0)
    return first_B, np.where(copied_B, first_B, revised_B)
