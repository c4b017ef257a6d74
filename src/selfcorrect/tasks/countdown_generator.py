"""Countdown problems and every canonical answer to them (numpy only).

A canonical answer writes the larger operand first, so a problem with three numbers has exactly 48 candidates:
3 first pairs x 4 operators x 4 second operators, of which a dozen or so stay within the limit.

Axes: B problems, C = 48 candidates.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]

OPERATORS = "+-*/"
PAIRS = ((0, 1, 2), (0, 2, 1), (1, 2, 0))  # first pair, then the number left over


@dataclass(frozen=True, slots=True)
class Candidates:
    """All canonical answers of B problems: steps_BC holds x, op, y, r, u, op, v, s; valid_BC marks the usable."""

    steps_BC8: IntArray
    valid_BC: BoolArray

    @property
    def results_BC(self) -> IntArray:
        return self.steps_BC8[..., 7]


def _apply(operator: int, high: IntArray, low: IntArray, limit: int) -> tuple[IntArray, BoolArray]:
    """`high operator low` elementwise, and where the result is an integer in 1..limit."""
    safe = np.maximum(low, 1)
    result = (high + low, high - low, high * low, high // safe)[operator]
    exact = (high % safe == 0) & (low > 0) if operator == 3 else np.ones_like(high, dtype=bool)
    return result, exact & (result >= 1) & (result <= limit)


def enumerate_candidates(numbers_B3: IntArray, limit: int) -> Candidates:
    """The 48 canonical answers to each problem, with every result an integer in 1..limit where valid."""
    steps, valid = [], []
    for i, j, k in PAIRS:
        x, y = np.maximum(numbers_B3[:, i], numbers_B3[:, j]), np.minimum(numbers_B3[:, i], numbers_B3[:, j])
        for first in range(4):
            r, r_ok = _apply(first, x, y, limit)
            u, v = np.maximum(r, numbers_B3[:, k]), np.minimum(r, numbers_B3[:, k])
            for second in range(4):
                s, s_ok = _apply(second, u, v, limit)
                steps.append(np.stack([x, np.full_like(x, first), y, r, u, np.full_like(x, second), v, s], axis=-1))
                valid.append(r_ok & s_ok)
    return Candidates(np.stack(steps, axis=1), np.stack(valid, axis=1))


def choose(rng: np.random.Generator, allowed_BC: BoolArray) -> IntArray:
    """A uniform choice among the allowed candidates of each row; -1 where none is allowed."""
    keys = np.where(allowed_BC, rng.random(allowed_BC.shape), -1.0)
    return np.where(allowed_BC.any(axis=1), keys.argmax(axis=1), -1)


@dataclass(frozen=True, slots=True)
class Draws:
    """B solvable problems: numbers_B3 (sorted, largest first), target_B and their candidates."""

    numbers_B3: IntArray
    target_B: IntArray
    candidates: Candidates

    @property
    def solved_BC(self) -> BoolArray:
        hits_BC: BoolArray = self.candidates.results_BC == self.target_B[:, None]
        return self.candidates.valid_BC & hits_BC

    def at(self, rows_B: BoolArray) -> "Draws":
        """These problems alone."""
        kept = Candidates(self.candidates.steps_BC8[rows_B], self.candidates.valid_BC[rows_B])
        return Draws(self.numbers_B3[rows_B], self.target_B[rows_B], kept)


def draw_problems(rng: np.random.Generator, count: int, max_number: int, limit: int) -> Draws:
    """Problems with numbers in 1..max_number and a reachable target in 1..max_number.

    The target is the result of a candidate drawn uniformly; rows without one are dropped, so fewer than
    `count` rows may come back.
    """
    numbers_B3 = -np.sort(-rng.integers(1, max_number + 1, size=(count, 3)), axis=1)
    candidates = enumerate_candidates(numbers_B3, limit)
    picked_B = choose(rng, candidates.valid_BC & (candidates.results_BC <= max_number))
    target_B = candidates.results_BC[np.arange(count), picked_B]
    return Draws(numbers_B3, target_B, candidates).at(picked_B >= 0)
