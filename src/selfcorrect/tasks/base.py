"""What a task is (floor 2): problems, the two prompts, and a grade. No task imports torch or a sampler."""

from collections.abc import Iterator
from typing import Literal, Protocol

from selfcorrect.types import Grade, Problem

Split = Literal["train", "test"]


class Task(Protocol):
    """A source of problems and the judge of their answers."""

    name: str

    def problems(self, split: Split, seed: int) -> Iterator[Problem]:
        """An endless (train) or finite stream of problems; the splits are disjoint whatever the seed."""
        ...

    def load(self, path: str) -> list[Problem]:
        """Problems from a user's file. Raises DataError with file, line, field and reason."""
        ...

    def parse(self, text: str) -> Problem:
        """A problem typed by hand on the command line. Raises DataError where it cannot be read."""
        ...

    def correction_prompt(self, problem: Problem) -> str:
        """The instruction that asks for the next attempt. It never sees the grade: no oracle can leak."""
        ...

    def grade(self, problem: Problem, text: str) -> Grade:
        """Grade one attempt's text; never raises on any text."""
        ...
