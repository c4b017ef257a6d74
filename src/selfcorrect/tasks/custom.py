"""A user's own task in one Python file. docs/tasks.md has the shape, examples/custom_task.py a whole one.

The file is the user's and runs with the user's rights, in this process. It defines:

    problems(split, options)          rows {"id": ..., "prompt": ..., anything JSON can hold} for "train" and "test"
    grade(problem, text)              True, False or a Grade
    correction_prompt(problem)        optional: the text that asks for the next attempt
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from selfcorrect.config import CustomConfig
from selfcorrect.errors import DataError
from selfcorrect.tasks.dataset import DataTask
from selfcorrect.tasks.files import Row, read_rows, unique
from selfcorrect.tasks.own_code import OwnCode
from selfcorrect.tasks.sources import check_there
from selfcorrect.types import Grade, Outcome, Problem

CORRECTION = (
    "Your answer may be wrong. Check it, and put right what you find. Then give the whole answer once more, in the "
    "same form."
)


class CustomTask(DataTask):
    """The task `custom`."""

    name = "custom"

    def __init__(self, config: CustomConfig) -> None:
        super().__init__()
        self._config = config
        self._code = OwnCode(config.file, "task.file", "docs/tasks.md")
        self._file = self._code.file
        self._problems = self._code.function("problems")
        self._grade = self._code.function("grade")
        self._correction = self._code.function("correction_prompt", needed=False)
        self._has_graded = False

    def correction_prompt(self, problem: Problem) -> str:
        if self._correction is None:
            return CORRECTION
        with self._code.blamed():
            text = self._correction(_row_of(problem))
        if not isinstance(text, str):
            raise DataError(f"{self._file}: correction_prompt(problem) must return text, got {type(text).__name__}")
        return text

    def reworded(self, problem: Problem, template: str) -> str:
        return template.format()

    def grade(self, answers: Sequence[tuple[Problem, str]]) -> list[Grade]:
        """One by one. An error of the user's function is `grader_failed`; before any answer was graded, it rises."""
        grades: list[Grade] = []
        errors: list[DataError] = []
        for problem, text in answers:
            try:
                with self._code.blamed():
                    verdict = self._grade(_row_of(problem), text)
                grades.append(self._as_grade(problem, verdict))
                self._has_graded = True
            except DataError as error:
                errors.append(error)
                grades.append(Grade(Outcome.GRADER_FAILED, 0.0, "", str(error)))
        if errors and not self._has_graded:
            raise errors[0]
        return grades

    def load(self, path: str) -> list[Problem]:
        """Rows of the shape that problems() gives."""
        rows = read_rows(check_there(path, "file"))
        return [_problem(row) for row in unique(rows, lambda row: row.fields.get("id"), "id")]

    def _load_train(self) -> list[Problem]:
        train = self._split("train")
        held = {problem.id for problem in self.test}
        both = next((problem.id for problem in train if problem.id in held), None)
        if both is not None:
            raise DataError(f"{self._file}: problem {both!r} is both in train and in test")
        return train

    def _load_test(self) -> list[Problem]:
        return self._split("test")

    def _split(self, split: str) -> list[Problem]:
        where = f"{self._file}: problems({split!r})"
        with self._code.blamed():
            listed: Iterable[Any] = list(self._problems(split, dict(self._config.options)))
        rows = []
        for number, fields in enumerate(listed, 1):
            if not isinstance(fields, Mapping):
                raise DataError(f"{where} row {number}: must be a dict, got {type(fields).__name__}")
            rows.append(Row(f"{where} row {number}", fields))
        return [_problem(row) for row in unique(rows, lambda row: row.fields.get("id"), "id")]

    def _as_grade(self, problem: Problem, verdict: object) -> Grade:
        if isinstance(verdict, Grade):
            return self._checked(problem, verdict)
        if isinstance(verdict, bool):
            return Grade(Outcome.CORRECT if verdict else Outcome.WRONG, float(verdict))
        raise DataError(f"{self._file}: grade(problem, text) must return True, False or a Grade, got {verdict!r}"[:300])

    def _checked(self, problem: Problem, grade: Grade) -> Grade:
        """The user's Grade, its outcome one of the closed set. Raises DataError where it contradicts itself."""
        where = f"{self._file}: grade(problem, text) at problem {problem.id!r}: Grade"
        try:
            outcome, reward = Outcome(grade.outcome), float(grade.reward)
        except (TypeError, ValueError) as error:
            raise DataError(f"{where}: outcome must be one of {', '.join(Outcome)}, reward a number; {error}") from None
        if not (math.isfinite(reward) and 0 <= reward <= 1):
            raise DataError(f"{where}: reward = {reward} is no number from 0 to 1; give 1 where correct, else 0")
        if (outcome is Outcome.CORRECT) != (reward == 1):
            raise DataError(f"{where}: reward = {reward:g} contradicts outcome = {outcome}; 1 goes with correct alone")
        return Grade(outcome, reward, str(grade.answer), str(grade.detail))


def _problem(row: Row) -> Problem:
    rest = {str(name): value for name, value in row.fields.items() if name not in ("id", "prompt")}
    for name, value in rest.items():
        try:
            json.dumps(value)
        except (TypeError, ValueError, RecursionError) as error:  # of its type, or its keys'; it holds itself; too deep
            why = f"cannot be kept with the rollouts, which are JSON: {error}; give text, numbers, lists or dicts"
            raise row.wrong(name, why) from None
    return Problem(row.text("id"), "custom", row.text("prompt"), rest)


def _row_of(problem: Problem) -> dict[str, Any]:
    return {"id": problem.id, "prompt": problem.prompt, **problem.reference}
