"""A user's own task in one Python file. docs/tasks.md has the shape, examples/custom_task.py a whole one.

The file is the user's and runs with the user's rights, in this process. It defines:

    problems(split, options)          rows {"id": ..., "prompt": ..., anything JSON can hold} for "train" and "test"
    grade(problem, text)              True, False or a Grade
    correction_prompt(problem)        optional: the text that asks for the next attempt
"""

import importlib.util
import json
import math
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

from selfcorrect.config import CustomConfig
from selfcorrect.errors import DataError
from selfcorrect.tasks.dataset import DataTask
from selfcorrect.tasks.files import Row, read_rows, unique
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
        self._file = check_there(config.file, "task.file")
        if not self._file.is_file():
            raise DataError(f"task.file = {config.file!r}: not a file")
        self._module = self._import()
        self._problems = self._function("problems")
        self._grade = self._function("grade")
        self._correction = self._function("correction_prompt", needed=False)
        self._has_graded = False

    def correction_prompt(self, problem: Problem) -> str:
        if self._correction is None:
            return CORRECTION
        with self._blamed():
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
                with self._blamed():
                    verdict = self._grade(_row_of(problem), text)  # type: ignore[misc]
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
        with self._blamed():
            listed: Iterable[Any] = list(self._problems(split, dict(self._config.options)))  # type: ignore[misc]
        rows = []
        for number, fields in enumerate(listed, 1):
            if not isinstance(fields, Mapping):
                raise DataError(f"{where} row {number}: must be a dict, got {type(fields).__name__}")
            rows.append(Row(f"{where} row {number}", fields))
        return [_problem(row) for row in unique(rows, lambda row: row.fields.get("id"), "id")]

    def _import(self) -> ModuleType:
        name = "selfcorrect_custom_task"
        spec = importlib.util.spec_from_file_location(name, self._file)
        if spec is None or not isinstance(spec.loader, SourceFileLoader):
            raise DataError(f"task.file = {self._config.file!r}: not a Python file (.py)")
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module  # dataclasses look themselves up there
        with self._blamed():
            # Not by exec_module: its cache takes a file of the same second and size for the one before it was edited.
            path = str(self._file)
            exec(spec.loader.source_to_code(spec.loader.get_data(path), path), module.__dict__)
        return module

    def _function(self, name: str, needed: bool = True) -> Callable[..., Any] | None:
        found = getattr(self._module, name, None)
        if found is None and not needed:
            return None
        if not callable(found):
            raise DataError(f"{self._file}: defines no function {name}; docs/tasks.md has the shape of the file")
        return found  # type: ignore[no-any-return]

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

    @contextmanager
    def _blamed(self) -> Iterator[None]:
        """Whatever the user's code raises becomes a DataError that names its file and line."""
        try:
            yield
        except DataError:
            raise
        except SyntaxError as error:
            raise DataError(f"{error.filename}:{error.lineno}: {error.msg}") from error
        except (Exception, SystemExit) as error:  # the user's code may raise anything
            frames = traceback.extract_tb(error.__traceback__)
            mine = [frame.lineno for frame in frames if Path(frame.filename) == self._file]
            line = f":{mine[-1]}" if mine else ""
            raise DataError(f"{self._file}{line}: {type(error).__name__}: {error}"[:500]) from error


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
