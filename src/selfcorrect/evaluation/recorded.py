"""Recorded completions: real model outputs, graded and counted without a model. docs/recorded.md: the format.

A row names its problem by `task_id`, or holds what grading needs (math: gold, answer or solution; code: tests). Its
attempts are the list `attempts`, or one text under response, completion or program. `finish_reasons` says which of
them ran into the token limit. A run's own rollouts are such rows too: they hold prompt and reference, and attempts that
were graded once.
"""

import fcntl
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from selfcorrect.errors import DataError
from selfcorrect.evaluation.flat import rollout_row
from selfcorrect.evaluation.metrics import grader_lives
from selfcorrect.evaluation.stored import attempt_of
from selfcorrect.grading.math import gold_answer
from selfcorrect.models.messages import MessageChat
from selfcorrect.rollout import grade_texts
from selfcorrect.samplers.recorded import RecordedSampler
from selfcorrect.tasks.base import Task
from selfcorrect.tasks.code import CodeTask, Item, plain
from selfcorrect.tasks.countdown import Countdown
from selfcorrect.tasks.custom import CustomTask
from selfcorrect.tasks.dataset import DataTask
from selfcorrect.tasks.files import Row
from selfcorrect.tasks.math import MathTask
from selfcorrect.types import CUT_OFF, Attempt, Completion, Grade, Outcome, Problem, Rollout

SINGLE = ("response", "completion", "program")
_FENCE = "`" * 12
_CHUNK = 256  # attempts graded between two writes
_UNREAD = Grade(Outcome.UNREADABLE, 0.0, "", "the model could not read the problem")


@dataclass(frozen=True, slots=True)
class Recorded:
    """One row: its problem's name, and its attempts as `play` knows them.

    played: whether it is a rollout of a run, whose attempts say what became of them.
    """

    name: str
    completions: tuple[Completion, ...]
    row: Row
    played: bool = False

    @property
    def texts(self) -> tuple[str, ...]:
        return tuple(completion.text for completion in self.completions)

    def marks(self, problem: Problem, grader: Mapping[str, Any]) -> dict[str, str]:
        """What stands before its grades: its name, and digests of all that they depend on."""
        fields = {k: str(v) for k, v in sorted(self.row.fields.items())}
        against = [problem.id, problem.prompt, dict(problem.reference)]
        return {"task_id": self.name, "row": _digest([self.name, self.texts, fields, against]), "by": _digest(grader)}


def _digest(told: object) -> str:
    return hashlib.sha256(json.dumps(told, default=str).encode()).hexdigest()[:16]


def recorded_of(rows: Iterable[Row]) -> list[Recorded]:
    """What rows record. Raises DataError with file, line, field and reason, before anything is graded."""
    found: list[Recorded] = []
    asked: dict[str, int] = {}
    for number, row in enumerate(rows, 1):
        played = _is_played(row)
        attempts = tuple(_attempts_played(row) if played else _attempts(row))
        found.append(Recorded(_name(row, number, asked), attempts, row, played))
        if len(attempts) != len(found[0].completions):
            told = f"has {len(attempts)}, where {found[0].row.where} has {len(found[0].completions)}"
            raise row.wrong("attempts", told)
    return found


def _name(row: Row, number: int, asked: dict[str, int]) -> str:
    """Its id; without one the number of the first row that asks the same. asked: those numbers, added to."""
    for field in ("task_id", "id", "unique_id"):
        if row.has(field):
            return str(row.fields[field])
    asks = [str(row.fields[field]) for field in ("problem", "question", "tests") if row.fields.get(field)]
    return f"row {asked.setdefault(json.dumps(asks), number) if asks else number}"


def _texts(row: Row) -> tuple[str, ...]:
    if row.has("attempts"):
        listed = row.fields["attempts"]
        if not isinstance(listed, list) or not listed or not all(isinstance(text, str) for text in listed):
            raise row.wrong("attempts", "must be a list of one or more texts")
        return tuple(listed)
    for field in SINGLE:
        if row.has(field):
            text = row.fields[field]
            if not isinstance(text, str):
                raise row.wrong(field, f"must be text, got {type(text).__name__}")
            # A recorded program is one as it stands, whatever is around it in other rows.
            return (f"{_FENCE}python\n{text}\n{_FENCE}" if field == "program" else text,)
    there = ", ".join(sorted(map(str, row.fields))[:12])
    raise DataError(f"{row.where}: no attempt: expected attempts, or one of {', '.join(SINGLE)}; the row has {there}")


def _is_played(row: Row) -> bool:
    """Whether a row is a rollout of a run (docs/run_folder.md)."""
    attempts = row.fields.get("attempts")
    listed = isinstance(attempts, list) and bool(attempts) and all(isinstance(each, dict) for each in attempts)
    return listed and isinstance(row.fields.get("reference"), dict)


def _attempts_played(row: Row) -> list[Completion]:
    found = []
    for each in row.fields["attempts"]:
        text, outcome = each.get("text"), each.get("outcome")
        if not isinstance(text, str):
            raise row.wrong("attempts", "lacks a text in one of them, which a run's rollouts have")
        verdict = _UNREAD if outcome == Outcome.UNREADABLE else None
        found.append(_completion(text, outcome == Outcome.TRUNCATED, verdict))
    return found


def _attempts(row: Row) -> list[Completion]:
    texts = _texts(row)
    told = row.texts("finish_reasons") if row.has("finish_reasons") else ["stop"] * len(texts)
    if len(told) != len(texts):
        raise row.wrong("finish_reasons", f"has {len(told)}, for {len(texts)} attempts")
    return [_completion(text, end.casefold() in CUT_OFF) for text, end in zip(texts, told, strict=True)]


def _completion(text: str, cut: bool, verdict: Grade | None = None) -> Completion:
    return Completion((), (), text, "length" if cut else "stop", verdict)


class Problems:
    """Finds the problem of each row: in the row itself, or by its id in the task's data."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._first: dict[str, str] = {}

    def of(self, recorded: Recorded) -> Problem:
        """Raises DataError with file and line where the row does not say what to grade against.

        Problems of the same id are the same problem: another one that a row calls so has another.
        """
        problem = self._of(recorded)
        content = _digest([problem.prompt, dict(problem.reference)])
        same = self._first.setdefault(problem.id, content) == content
        return problem if same else replace(problem, id=f"{problem.id} [{content[:8]}]")

    def _of(self, recorded: Recorded) -> Problem:
        row = recorded.row
        if recorded.played:
            return self._played(recorded)
        if isinstance(self._task, CodeTask) and row.has("tests"):
            item = _item(row)  # rows, and the task's own data, may call others by the same name
            return self._task.problem(item, f"{recorded.name} [{_digest(repr(item))[:8]}]", examples=False)
        if isinstance(self._task, MathTask) and (gold := _gold(row)) is not None:
            question = str(row.fields.get("problem", row.fields.get("question", "")))
            return self._task.problem(question, {"answer": gold}, recorded.name)
        if isinstance(self._task, Countdown) and row.has("task_id"):
            try:
                return self._task.parse(row.text("task_id"))
            except DataError as error:
                raise row.wrong("task_id", f"names no problem of task countdown: {error}") from None
        if not isinstance(self._task, DataTask) or not row.has("task_id"):
            needed = "tests" if self._task.name == "code" else "gold, answer or solution"
            raise DataError(f"{row.where}: nothing to grade against: expected task_id, or {needed}")
        return self._named(row, "task_id")

    def _named(self, row: Row, field: str) -> Problem:
        """The problem of the task's data that a field names."""
        try:
            known = self._by_id
        except DataError as error:
            raise DataError(
                f"{row.where}: holds nothing to grade against but its {field}, and the data set to look that up in "
                f"cannot be had; name it with task.data=PATH ({error})"
            ) from None
        found = known.get(_key(row.fields[field], known))
        if found is None:
            raise row.wrong(field, f"= {row.fields[field]!r} is not in the task's data ({self._known})")
        return found

    def _played(self, recorded: Recorded) -> Problem:
        """What a run graded against; of code, whose tests are in no log, and of a task of one's own, what the data,
        or the file, has by now.
        """
        row = recorded.row
        if isinstance(self._task, CodeTask):
            return self._named(row, "id")
        problem = Problem(row.text("id"), self._task.name, row.text("prompt"), row.fields["reference"])
        known = self._by_id.get(problem.id) if isinstance(self._task, CustomTask) else None
        return known if known and known.prompt == problem.prompt else problem

    @property
    def _by_id(self) -> Mapping[str, Problem]:
        assert isinstance(self._task, DataTask)
        return self._task.by_id

    @property
    def _known(self) -> str:
        first = next(iter(self._by_id.values()), None)
        return f"{len(self._by_id)} problems, such as {first.id}" if first else "no problems"


def _key(name: object, known: Mapping[str, Problem]) -> str:
    """The id in the task's data: HumanEval/3, humaneval/3 and 3 are one problem in HumanEval; no MBPP id is."""
    text = str(name)
    if text in known:
        return text
    family, _, number = text.rpartition("/")
    for have in known:
        own, _, last = have.rpartition("/")
        if last == number and own.partition("_")[0] == (family.lower().partition("_")[0] or own.partition("_")[0]):
            return have
    return text


def _gold(row: Row) -> str | None:
    if row.has("gold"):
        return row.text("gold")
    if row.has("answer"):
        answer = row.text("answer")
        return gold_answer(answer, style="gsm8k") if "####" in answer else answer
    if row.has("solution"):
        found = gold_answer(row.text("solution"), style="math")
        if found is None:
            raise row.wrong("solution", "states no answer")
        return found
    return None


def _item(row: Row) -> Item:
    def optional(field: str) -> str:
        return plain(row.text(field, empty=True)) if row.has(field) else ""

    tests = row.fields["tests"]
    return Item(
        number=0,
        text="",
        shown="",
        tests="\n".join(row.texts("tests")) if isinstance(tests, list) else plain(row.text("tests")),
        solution=optional("reference"),
        setup=optional("setup"),
        before=optional("prompt") if row.has("entry_point") else "",
        entry_point=optional("entry_point") if row.has("prompt") else "",
    )


def replay(
    recorded: Sequence[Recorded], path: str | Path, task: Task, chat: MessageChat, attempts: int
) -> tuple[list[Problem], int, RecordedSampler, list[str]]:
    """The recorded problems, how many samples of each there are, a sampler that answers them as recorded, and what a
    user should know.

    path: the file they are from. Raises DataError where a row records fewer attempts than are to be evaluated.
    """
    if len(recorded[0].texts) < attempts:
        raise DataError(
            f"{recorded[0].row.where}: records {len(recorded[0].texts)} attempts, but rollouts.attempts is {attempts}; "
            "record more, or count what there is with `selfcorrect grade`"
        )
    found = Problems(task)
    asked = [found.of(row) for row in recorded]
    places, samples, left_out = arranged(asked)
    script = [(asked[at].prompt, task.correction_prompt(asked[at]), recorded[at].completions) for at in places]
    each = f", {samples} samples of each," if samples > 1 else ""
    problems = [asked[at] for at in places[: len(places) // samples]]
    notes = [f"{len(problems)} problems{each} are recorded in {path}; these are evaluated, and no others", *left_out]
    return problems, samples, RecordedSampler(chat, script), notes


def arranged(problems: Sequence[Problem]) -> tuple[list[int], int, list[str]]:
    """Places of rows by the problems they are of: of every problem the first sample, then of every problem the second,
    and so on; how many samples of each; what is left out, as others have fewer.
    """
    by_id: dict[str, list[int]] = {}
    for place, problem in enumerate(problems):
        by_id.setdefault(problem.id, []).append(place)
    samples = min(map(len, by_id.values()))
    more = len(problems) - samples * len(by_id)
    told = f"some problems have {samples} samples only, so {more:,} more samples of others are left out"
    return [each[place] for place in range(samples) for each in by_id.values()], samples, [told] if more else []


def grade_recorded(
    recorded: Sequence[Recorded], task: Task, output: Path, grader: Mapping[str, Any],
    told: Callable[[int], None] = lambda attempts: None, say: Callable[[str], None] = lambda text: None,
) -> list[Rollout]:  # fmt: skip
    """Grade every attempt; one line a row goes to `output`, in order, as it is graded.

    grader: all that verdicts depend on besides the rows and their problems. Rows that `output` holds already are not
    graded again, which say is told, so a grader that never answered leaves nothing there; told(n) is called as n more
    attempts are done. Raises DataError where output belongs to other recordings, problems or graders.
    """
    problems = Problems(task)
    known = [problems.of(row) for row in recorded]
    marks = [row.marks(problem, grader) for row, problem in zip(recorded, known, strict=True)]
    with output.open("a", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DataError(f"{output}: is being written by another process; wait for it, or name another") from None
        done = _resume(output, marks)
        if done:
            say(f"{len(done):,} of {len(recorded):,} rows are graded already; their verdicts are taken from {output}")
        for grades in done:
            told(len(grades))
        rollouts, waiting = list(map(_rollout, recorded, known, done)), ""
        step = max(1, _CHUNK // len(recorded[0].texts))
        for start in range(len(done), len(recorded), step):
            rows = range(start, min(start + step, len(recorded)))
            asked = [known[row] for row in rows for _ in recorded[row].texts]
            texts = [completion for row in rows for completion in recorded[row].completions]
            fresh = iter(grade_texts(task, asked, texts, [True] * len(texts)))
            for row in rows:
                rollouts.append(_rollout(recorded[row], known[row], islice(fresh, len(recorded[row].texts))))
                waiting += json.dumps(marks[row] | {"attempts": rollout_row(rollouts[row])["attempts"]}) + "\n"
            if _answered(rollouts[start:]):
                file.write(waiting)
                file.flush()
                waiting = ""
            told(len(texts))
        if _answered(rollouts):
            file.write(waiting)
    return rollouts


def _answered(rollouts: Sequence[Rollout]) -> bool:
    """Whether the grader gave a verdict where it was asked: all attempts are graded together here, not each alone."""
    return grader_lives([replace(rollout, attempts=(each,)) for rollout in rollouts for each in rollout.attempts])


def _rollout(row: Recorded, problem: Problem, grades: Iterable[Grade]) -> Rollout:
    attempts = tuple(Attempt((), text, grade) for text, grade in zip(row.completions, grades, strict=True))
    return Rollout(problem, attempts)


def _resume(output: Path, marks: Sequence[Mapping[str, str]]) -> list[list[Grade]]:
    """What an earlier, interrupted call has written; a last line that was cut off is taken away."""
    found: list[list[Grade]] = []
    kept = 0
    *lines, tail = output.read_bytes().split(b"\n")
    for line in lines:
        try:
            told = json.loads(line)
            grades = [attempt_of(each).grade for each in told["attempts"]]
            row, by = told["row"], told["by"]
        except (ValueError, KeyError, TypeError):
            row = by = ""
        if len(found) == len(marks) or row != marks[len(found)]["row"]:
            raise _other(output, len(found) + 1, "on something else")
        if by != marks[len(found)]["by"]:
            raise _other(
                output,
                len(found) + 1,
                "by other settings or another file of the task, or another release of this program",
            )
        found.append(grades)
        kept += len(line) + 1
    if tail and not (len(found) < len(marks) and _begins(tail, marks[len(found)])):
        raise _other(output, len(found) + 1, "on something else")
    with output.open("r+b") as file:
        file.truncate(kept)
    return found


def _other(output: Path, line: int, what: str) -> DataError:
    return DataError(f"{output}:{line}: holds verdicts {what}; remove it, or name another --output")


def _begins(tail: bytes, marks: Mapping[str, str]) -> bool:
    """Whether a piece of a line is the beginning of a row's verdicts."""
    beginning = json.dumps(marks)[:-1].encode()
    return tail.startswith(beginning) or beginning.startswith(tail)
