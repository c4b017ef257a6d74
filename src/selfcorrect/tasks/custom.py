"""A user's own task in one Python file. docs/tasks.md has the shape, examples/custom_task.py a whole one.

The file is the user's and runs with the user's rights, in this process. It defines:

    problems(split, options)          rows {"id": ..., "prompt": ..., anything JSON can hold} for "train" and "test"
    grade(problem, text)              True, False, a number from 0 to 1, or a Grade
    grade_many(problems, texts)       in place of grade: a list of those, one for each problem and text
    correction_prompt(problem)        optional: the text that asks for the next attempt
"""

import copy
import json
import math
import numbers
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from selfcorrect.config import CustomConfig
from selfcorrect.errors import DataError, GraderFailed
from selfcorrect.tasks.background import Overdue, Timed
from selfcorrect.tasks.dataset import DataTask
from selfcorrect.tasks.files import Row, read_rows, unique
from selfcorrect.tasks.own import OwnCode
from selfcorrect.tasks.sources import check_there
from selfcorrect.types import Grade, Outcome, Problem

CORRECTION = (
    "Your answer may be wrong. Check it, and put right what you find. Then give the whole answer once more, in the "
    "same form."
)
TYPED = "typed"
_Call = Sequence[tuple[Problem, str]]  # the answers that one call of the user's function judges
_MOST_RUNNING = 16  # calls that were given up and still run, beyond which a run is not worth going on with
_MAY_RETURN = (
    "True, False, a number from 0 (wrong) to 1 (right), or a Grade, such as Grade(Outcome.WRONG, 0.5, answer, why)"
)


class CustomTask(DataTask):
    """The task `custom`."""

    name = "custom"

    def __init__(self, config: CustomConfig, say: Callable[[str], None] | None = None) -> None:
        """say: told of calls of grade that take long; by default stderr is."""
        super().__init__()
        self._config, self._say = config, say or _on_stderr
        self._code = OwnCode(config.file, "task.file", "docs/tasks.md")
        self._file = self._code.file
        self._problems = self._code.function("problems")
        one, many = self._code.optional("grade"), self._code.optional("grade_many")
        if one and many:
            raise self._code.wrong("defines both grade and grade_many; rename the one that is not to grade")
        self._grade, self._is_many = many or _one_by_one(self._code.function("grade")), many is not None
        self._called = "grade_many(problems, texts)" if many else "grade(problem, text)"
        self._correction = self._code.optional("correction_prompt")
        self._calls = Timed(self._judged, config.workers, config.seconds, self._slow, self._overdue)
        self._has_graded = self._is_tried = False
        self._given_up = 0

    def correction_prompt(self, problem: Problem) -> str:
        if self._correction is None:
            return CORRECTION
        try:
            with self._code.blamed():
                text = self._correction(_row_of(problem))
        except DataError as error:
            raise DataError(f"{error}{_of_typed(problem)}") from error
        if not isinstance(text, str):
            raise DataError(f"{self._file}: correction_prompt(problem) must return text, got {type(text).__name__}")
        return text

    def reworded(self, problem: Problem, template: str) -> str:
        return template.format()

    def grade(self, answers: Sequence[tuple[Problem, str]]) -> list[Grade]:
        """An error of the user's function is `grader_failed`; before any answer was graded, it rises.

        A call of grade that takes more than task.seconds is `timeout`; one of grade_many is an error, as nobody knows
        which answer took the time. Either goes on by itself. With no answers at all the function is tried on empty
        texts. Raises GraderFailed where too many such calls still run.
        """
        if not answers:
            self._try_out()
            return []
        size = -(-len(answers) // self._config.workers) if self._is_many else 1
        calls = [answers[start : start + size] for start in range(0, len(answers), size)]
        found = self._calls.over(calls)
        if found is None:
            raise GraderFailed(f"{self._file}: the task was closed while it graded")
        grades: list[Grade] = []
        errors: list[DataError] = []
        verdicts = [verdict for call, came in zip(calls, found, strict=True) for verdict in self._each(call, came)]
        for (problem, _), verdict in zip(answers, verdicts, strict=True):
            if isinstance(verdict, Grade):
                self._has_graded |= verdict.outcome is not Outcome.TIMEOUT
                grades.append(verdict)
            else:
                typed = _of_typed(problem)
                errors += [] if typed else [verdict]
                grades.append(Grade(Outcome.GRADER_FAILED, 0.0, "", f"{verdict}{typed}"))
        if errors and not self._has_graded:
            raise errors[0]
        return grades

    def close(self) -> None:
        """Begin no more calls of grade; those under way cannot be ended."""
        self._calls.stop()

    def load(self, path: str) -> list[Problem]:
        """Rows of the shape that problems() gives."""
        return _problems(read_rows(check_there(path, "file")))

    def parse(self, text: str) -> Problem:
        """A problem by its id; other words are a prompt of the user's own, which has no fields but id and prompt."""
        return self.find(text.strip()) or super().parse(text)

    def _typed(self, text: str) -> Problem:
        return Problem(TYPED, self.name, text, {})

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
        rows = self._rows(split, where)
        if not rows:
            purpose = "train on" if split == "train" else "evaluate on, which no run goes without"
            raise DataError(
                f"{where} gives no rows, and there must be some to {purpose}; it was called with options = "
                f"{self._config.options!r} (task.options)"
            )
        found = _problems(rows)
        if again := _difference(rows, self._rows(split, where)):
            raise DataError(
                f"{where} gives other rows when it is called again: {again}; a run that goes on must find the same "
                "ones, so draw them by a seed of your own, as random.Random(0) does"
            )
        return found

    def _rows(self, split: str, where: str) -> list[Row]:
        with self._code.blamed():
            listed: Iterable[Any] = list(self._problems(split, dict(self._config.options)))
        rows = []
        for number, fields in enumerate(listed, 1):
            if not isinstance(fields, Mapping):
                raise DataError(f"{where} row {number}: must be a dict, got {type(fields).__name__}")
            rows.append(Row(f"{where} row {number}", fields))
        return rows

    def _try_out(self) -> None:
        """One call, so that a grader that returns no verdict, or none in time, is told of before a run has begun.

        What it raises at an empty text it may not raise at others; that is a note.
        """
        loaded = [*self.__dict__.get("test", ()), *self.__dict__.get("train", ())]
        call = [(problem, "") for problem in loaded[: 2 if self._is_many else 1]]  # with two a wrong length is seen
        if not call or self._is_tried:
            return
        self._is_tried = True
        (found,) = self._calls.over([call]) or [None]
        if isinstance(found, Overdue):
            raise DataError(
                f"{self._file}: {self._called}, tried at {_told(call)} with an empty text: {self._too_long()}; raise "
                "that, or mend it"
            )
        failed = [each for each in self._each(call, found or []) if isinstance(each, DataError)]
        if failed and isinstance(failed[0], NoVerdictError):
            raise failed[0]
        if failed:
            self._notes.append(
                f"{self._called} raises at an empty text ({failed[0]}); what a call that raises was to grade is "
                f"{Outcome.GRADER_FAILED}"
            )

    def _judged(self, call: _Call) -> list[Grade | DataError]:
        """Called in threads: for each answer a verdict, or why it has none. Raises DataError of all of them."""
        try:
            with self._code.blamed():
                found = self._grade([_row_of(problem) for problem, _ in call], [text for _, text in call])
                found = found.tolist() if hasattr(found, "tolist") else found  # an array, a tensor, a column
                if not isinstance(found, list | tuple) or len(found) != len(call):
                    got = f"{len(found)} verdicts" if isinstance(found, list | tuple) else f"{found!r:.100}"
                    raise NoVerdictError(
                        f"{self._at(call)} must return a list with one verdict for each text, in their order, so "
                        f"{len(call)}; got {got}"
                    )
                return [self._read(problem, verdict) for (problem, _), verdict in zip(call, found, strict=True)]
        except KeyboardInterrupt as error:  # none of the terminal's, which go to the main thread
            raise DataError(f"{self._file}: {self._called} raises KeyboardInterrupt") from error

    def _read(self, problem: Problem, verdict: object) -> Grade | DataError:
        try:
            with self._code.blamed():  # numbers may be of the user's own kinds
                return _verdict(self._at([(problem, "")]), verdict)
        except DataError as error:
            return error

    def _each(self, call: _Call, came: Any) -> list[Grade | DataError]:
        """What came of a call, answer by answer."""
        if isinstance(came, list):
            return came
        if isinstance(came, Overdue):
            why = self._too_long()
            lost = DataError(f"{self._at(call)}: {why}; raise that, or mend it")
            came = lost if self._is_many else Grade(Outcome.TIMEOUT, 0.0, "", why)
        assert isinstance(came, Grade | DataError)
        return [came] * len(call)

    def _at(self, call: _Call) -> str:
        return f"{self._file}: {self._called} at {_told(call)}"

    def _slow(self, call: _Call, seconds: float) -> None:
        self._say(
            f"waiting {seconds:.0f} s for the grader at {_told(call)} ({self._file.name}; it may take task.seconds = "
            f"{self._config.seconds:g})"
        )

    def _overdue(self, call: _Call) -> None:
        self._given_up += 1
        running = self._calls.running
        told = f"{self._at(call)}: {self._too_long()}"
        if running >= max(_MOST_RUNNING, 4 * self._config.workers):
            raise GraderFailed(f"{told}; {running} such calls still run, so no more are begun; raise that, or mend it")
        if self._given_up & (self._given_up - 1) == 0:  # 1, 2, 4, ...: once is enough for one cause
            is_now = f"{Outcome.GRADER_FAILED}, left out" if self._is_many else f"{Outcome.TIMEOUT}, earning nothing"
            self._say(
                f"warning: {told}: {is_now}; the call goes on by itself ({self._given_up} so far, {running} still run)"
            )

    def _too_long(self) -> str:
        return f"took more than task.seconds = {self._config.seconds:g}"


class NoVerdictError(DataError):
    """What the user's function returned is no verdict, or no list of them."""


def _one_by_one(grade: Callable[..., Any]) -> Callable[..., list[Any]]:
    """`grade` as a `grade_many`."""
    return lambda problems, texts: [grade(problem, text) for problem, text in zip(problems, texts, strict=True)]


def _verdict(where: str, verdict: object) -> Grade:
    """What grade returned, as a Grade. Raises NoVerdictError where it is none."""
    if isinstance(verdict, Grade):
        return _checked(where, verdict)
    number = _number(verdict)
    if number is None or not 0 <= number <= 1:
        hint = "; does each of its branches return?" if verdict is None else ""
        raise NoVerdictError(f"{where} must return {_MAY_RETURN}; got {verdict!r:.100}{hint}")
    return Grade(Outcome.CORRECT if number == 1 else Outcome.WRONG, number)


def _checked(where: str, grade: Grade) -> Grade:
    """The user's Grade, its outcome one of the closed set. Raises DataError where it contradicts itself."""
    where = f"{where}: Grade"
    try:
        outcome, reward = Outcome(grade.outcome), float(grade.reward)
    except (TypeError, ValueError) as error:
        known = ", ".join(Outcome)
        raise NoVerdictError(f"{where}: outcome must be one of {known}, reward a number; {error}") from None
    if not (math.isfinite(reward) and 0 <= reward <= 1):
        raise NoVerdictError(
            f"{where}: reward = {reward:g} is no number from 0 to 1; give 1 where the outcome is correct, and less "
            "elsewhere, such as 0 or 0.5"
        )
    if (outcome is Outcome.CORRECT) != (reward == 1):
        raise NoVerdictError(f"{where}: reward = {reward:g} contradicts outcome = {outcome}; 1 goes with correct alone")
    return Grade(outcome, reward, str(grade.answer), str(grade.detail))


def _number(verdict: object) -> float | None:
    """A truth value or a number, of Python or of a library that has single ones of its own; None for all else."""
    if not isinstance(verdict, numbers.Real) and callable(item := getattr(verdict, "item", None)):
        try:
            verdict = item()
        except Exception:  # noqa: BLE001 - of more than one number, each library raises what it likes
            return None
    return float(verdict) if isinstance(verdict, numbers.Real) else None


def _problems(rows: Sequence[Row]) -> list[Problem]:
    found = [_problem(row) for row in rows]
    unique(rows, lambda row: str(row.fields["id"]), "id")
    return found


def _problem(row: Row) -> Problem:
    """An id that is a whole number is one all the same in what the user's functions get."""
    number = row.fields.get("id")
    is_number = isinstance(number, int) and not isinstance(number, bool)
    if "id" in row.fields and not is_number and not isinstance(number, str):
        raise row.wrong("id", f"must be text or a whole number, got {number!r:.60}")
    rest = {str(name): value for name, value in row.fields.items() if name != "prompt" and (name != "id" or is_number)}
    for name, value in rest.items():
        try:
            json.dumps(value)
        except (TypeError, ValueError, RecursionError) as error:  # of its type, or its keys'; it holds itself; too deep
            why = f"cannot be kept with the rollouts, which are JSON: {error}; give text, numbers, lists or dicts"
            raise row.wrong(name, why) from None
    return Problem(str(number) if is_number else row.text("id"), CustomTask.name, row.text("prompt"), rest)


def _difference(rows: Sequence[Row], again: Sequence[Row]) -> str:
    """Where two lists of rows differ first, in words; empty where they do not."""
    if len(rows) != len(again):
        return f"{len(rows):,} rows, then {len(again):,}"
    for number, (row, other) in enumerate(zip(rows, again, strict=True), 1):
        for name in dict.fromkeys([*row.fields, *other.fields]):
            first, second = (_written(each.fields.get(name)) for each in (row, other))
            if first != second:
                return f"field {name!r} of row {number} is {first:.60}, then {second:.60}"
    return ""


def _written(value: Any) -> str:
    try:
        return json.dumps(value)  # in which a number that is none equals itself
    except (TypeError, ValueError, RecursionError):
        return "what JSON cannot hold"


def _row_of(problem: Problem) -> dict[str, Any]:
    """A row of the user's own: what its functions do to it reaches no problem."""
    return {"id": problem.id, "prompt": problem.prompt, **copy.deepcopy(dict(problem.reference))}


def _told(call: _Call) -> str:
    return f"problem {call[0][0].id!r}" if len(call) == 1 else f"{len(call)} answers"


def _of_typed(problem: Problem) -> str:
    """What to add to an error at a prompt that was typed; empty for every other problem."""
    if problem.id != TYPED or problem.reference:
        return ""
    return "; a prompt that is typed has no fields but id and prompt, so name a problem by its id to see it judged"


def _on_stderr(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
