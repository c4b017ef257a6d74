"""What a task is: problems, the two prompts, and a grade. No task imports torch or a sampler."""

from collections.abc import Iterator, Sequence
from typing import Literal, Protocol

from selfcorrect.seeds import derive_seed
from selfcorrect.types import Grade, Problem

Split = Literal["train", "test"]


class Task(Protocol):
    """A source of problems and the judge of their answers."""

    name: str

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know of the data loaded so far: problems left out, and why. One line each."""
        ...

    def draw(self, step: int, count: int, seed: int) -> list[Problem]:
        """The training problems of step 1, 2, ...: the same for the same numbers, whatever was drawn before.

        Raises DataError where the task has none to train on.
        """
        ...

    def held_out(self, count: int) -> list[Problem]:
        """At most `count` problems to evaluate on, always the same; none of them is ever drawn."""
        ...

    def longest(self) -> Problem:
        """A problem with as long a prompt as any, to hold against a model's context before a run."""
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

    def reworded(self, problem: Problem, template: str) -> str:
        """The same by another template, which may fill in what the task's own correction prompt may."""
        ...

    def grade(self, answers: Sequence[tuple[Problem, str]]) -> list[Grade]:
        """One grade for each problem and text, in order. Texts may be anything: none of them raises.

        Called from a thread of its own, one call at a time. With no answers at all it starts the grader's processes,
        so that what keeps them from running is told before a run begins.
        """
        ...

    def close(self) -> None:
        """End the grader's processes, if it has any; the task may be used again."""
        ...


class Shuffled:
    """A finite list of problems, drawn in epochs: each holds every problem once, in an order of its own.

    Which problems step s draws follows from s alone, so a run that is resumed goes on exactly.
    """

    def __init__(self, problems: Sequence[Problem]) -> None:
        self._problems = list(problems)
        self._order: dict[tuple[int, int], list[int]] = {}

    def __len__(self) -> int:
        return len(self._problems)

    def __iter__(self) -> Iterator[Problem]:
        return iter(self._problems)

    def draw(self, step: int, count: int, seed: int) -> list[Problem]:
        """Problems (step - 1) * count to step * count - 1 of the endless shuffled stream."""
        places = range((step - 1) * count, step * count)
        return [self._problems[self._epoch(seed, p // len(self))[p % len(self)]] for p in places]

    def _epoch(self, seed: int, epoch: int) -> list[int]:
        key = (seed, epoch)
        if key not in self._order:
            if len(self._order) > 1:  # a step touches two epochs at most, unless the list is tiny
                self._order.clear()
            # By id and not by place: the order of a file's lines makes no difference.
            ids = [problem.id for problem in self._problems]
            self._order[key] = sorted(range(len(self)), key=lambda i: (derive_seed(seed, "epoch", epoch, ids[i]), i))
        return self._order[key]


def fixed_share(problems: Sequence[Problem], count: int) -> list[Problem]:
    """`count` problems, spread over the whole list and always the same; in the list's order."""
    if count >= len(problems):
        return list(problems)
    by_hash = sorted(range(len(problems)), key=lambda i: derive_seed("held out", problems[i].id))
    return [problems[i] for i in sorted(by_hash[:count])]
