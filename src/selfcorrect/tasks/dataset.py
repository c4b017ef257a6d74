"""What tasks over a finite data set share: epochs, the fixed share held out, problems by id."""

from contextlib import suppress
from functools import cached_property
from unicodedata import category

from selfcorrect.errors import DataError
from selfcorrect.tasks.base import Shuffled, fixed_share
from selfcorrect.types import Problem


class DataTask:
    """A task whose problems are loaded when they are first asked for; subclasses say how.

    `_load_train` and `_load_test` return disjoint lists of problems and may append to `_notes`.
    """

    name = ""

    def __init__(self) -> None:
        self._notes: list[str] = []

    @property
    def notes(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(self._notes))

    @cached_property
    def train(self) -> Shuffled:
        """The training problems. Raises DataError where there are none."""
        problems = self._load_train()
        if not problems:
            raise DataError(f"task {self.name}: the data holds no problems to train on")
        return Shuffled(problems)

    @cached_property
    def test(self) -> list[Problem]:
        """All problems to evaluate on."""
        problems = self._load_test()
        if not problems:
            raise DataError(f"task {self.name}: the data holds no problems to evaluate on")
        return problems

    def draw(self, step: int, count: int, seed: int) -> list[Problem]:
        """Shuffled epochs without replacement."""
        return self.train.draw(step, count, seed)

    def held_out(self, count: int) -> list[Problem]:
        return fixed_share(self.test, count)

    def longest(self) -> Problem:
        """The longest prompt, with its recorded first attempt, among the problems that have been loaded."""
        loaded = [*self.__dict__.get("train", ()), *self.__dict__.get("test", ())] or self.test
        return max(loaded, key=lambda problem: len(problem.prompt) + len(problem.first_attempt or ""))

    def parse(self, text: str) -> Problem:
        """A problem by its id; or one that is typed, where the task can ask it.

        Words are typed, and a mistyped id should not be asked; but not every script parts words by spaces.
        """
        asked = text.strip()
        found = self._typed(asked) if len(asked.split()) > 1 else None
        found = found or self.find(asked)
        if found is None and any(category(character) == "Lo" for character in asked):  # letters without case
            found = self._typed(asked)
        if found is None:
            raise DataError(
                f"problem {text!r}: no such id; problems of task {self.name} are named by id, like {self.test[0].id}"
            )
        return found

    def find(self, name: str) -> Problem | None:
        """The problem with this id. What there is to train on is read only where it is none of those held out."""
        return self.held.get(name) or self.by_id.get(name)

    @cached_property
    def held(self) -> dict[str, Problem]:
        """The problems to evaluate on, by id."""
        return {problem.id: problem for problem in self.test}

    @cached_property
    def by_id(self) -> dict[str, Problem]:
        """All problems by id, those to train on included where there are some; of one id the held-out one."""
        with suppress(DataError):  # a set that is for evaluation only
            return {problem.id: problem for problem in self.train} | self.held
        return self.held

    def _typed(self, text: str) -> Problem | None:
        """A problem of the user's own words, without a reference; None where such a one cannot be asked."""
        return None

    def _load_train(self) -> list[Problem]:
        raise AssertionError("abstract")

    def _load_test(self) -> list[Problem]:
        raise AssertionError("abstract")
