"""MATH and GSM8K: a problem in words, an answer that can be compared. docs/tasks.md has the data's shapes.

The paper's split trains on MATH's 12,000 problems outside of MATH-500 and evaluates on those 500.
"""

import hashlib
import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from selfcorrect.config import HubConfig, MathConfig
from selfcorrect.errors import DataError
from selfcorrect.tasks.dataset import DataTask
from selfcorrect.tasks.files import Row, read_rows, renamed, unique
from selfcorrect.tasks.sources import check_there, rows_of_folder, rows_of_hub
from selfcorrect.types import Grade, Outcome, Problem

if TYPE_CHECKING:
    from selfcorrect.grading.math import MathGrader

SUBJECTS = (
    "algebra", "counting_and_probability", "geometry", "intermediate_algebra", "number_theory", "prealgebra",
    "precalculus",
)  # fmt: skip
HUBS = {
    "math": HubConfig(path="EleutherAI/hendrycks_math", name=SUBJECTS),
    "gsm8k": HubConfig(path="openai/gsm8k", name="main"),
}
# Quirks of MATH, by digest of the problem's words, since the hub's copy has no ids.
EMPTY_GOLDS = {  # the solution's box is empty; what it should hold follows from the text
    "79595ba3b4cfcfe2": ("train/number_theory/7115", "0"),
    "81a7fe8e017d681c": ("train/number_theory/7117", "0"),
}
TWINS = {  # a training problem -> the test problem that is (nearly) the same
    "ce4480c332bf9dd2": ("train/algebra/517", "074c3039a196b389"),
    "98fc77ec11ec6bfc": ("train/geometry/6032", "98fc77ec11ec6bfc"),  # word for word test/precalculus/24307
}
_TYPED = Grade(Outcome.GRADER_FAILED, 0.0, "", "a typed problem has no reference answer")
_SHOWN = 3  # notes of one kind
_LEVEL = re.compile(r"(?:Level )?([1-5])")


class MathTask(DataTask):
    """The task `math`. A problem's reference holds its answer, and level and subject where they are known."""

    name = "math"

    def __init__(self, config: MathConfig) -> None:
        super().__init__()
        self._config = config
        self._split = config.split or ("paper" if config.dataset == "math" else "original")
        self._questions: dict[str, str] = {}  # prompt -> the problem's own words
        self._grader: MathGrader | None = None

    def correction_prompt(self, problem: Problem) -> str:
        return self.reworded(problem, self._config.correction_prompt)

    def reworded(self, problem: Problem, template: str) -> str:
        return self._fill(template, self.question(problem))

    def question(self, problem: Problem) -> str:
        """The problem's own words, without the prompt around them; of one that was read from a run's log, with it."""
        return self._questions.get(problem.prompt, problem.prompt)

    def grade(self, answers: Sequence[tuple[Problem, str]]) -> list[Grade]:
        if self._grader is None:
            from selfcorrect.grading.math import MathGrader

            self._grader = MathGrader(workers=self._config.workers, seconds=self._config.seconds)
        known = [(row, *each) for row, each in enumerate(answers) if "answer" in each[0].reference]
        grades = self._grader.grade([(text, p.reference["answer"], self.question(p)) for _, p, text in known])
        found = {row: grade for (row, _, _), grade in zip(known, grades, strict=True)}
        return [found.get(row, _TYPED) for row in range(len(answers))]

    def close(self) -> None:
        if self._grader is not None:
            self._grader.close()
            self._grader = None

    def load(self, path: str) -> list[Problem]:
        """Rows of MATH's shape (problem, solution or answer) or GSM8K's (question, answer), by the first row."""
        rows = renamed(read_rows(check_there(path, "file")), self._config.columns)
        style: Literal["math", "gsm8k"] = "gsm8k" if rows[0].has("question") else "math"
        return self._problems(rows, style, Path(path).name)

    def _typed(self, text: str) -> Problem:
        return self.problem(text, {}, "typed")

    def _load_train(self) -> list[Problem]:
        if self._config.data is not None and check_there(self._config.data).is_file():
            raise DataError(
                f"task.data = {self._config.data!r} is one file, to evaluate on; to train, name a folder that holds "
                "train.* and test.*"
            )
        return self._without_twins()

    def _load_test(self) -> list[Problem]:
        if self._config.data is not None and check_there(self._config.data).is_file():
            return self.load(self._config.data)
        if self._split == "paper":
            return self._problems(self._rows["math500"], "math", "math500")
        return self._problems(self._rows["test"], self._config.dataset, "test")

    def _without_twins(self) -> list[Problem]:
        """Training problems, but for those that are held out in the same words or their twins'."""
        test = self.test
        held = {self._digest(problem) for problem in test}
        train = self._problems(self._rows["train"], self._config.dataset, "train")
        if self._split == "paper":
            rest = self._problems(self._rows["test"], "math", "test")
            train += [problem for problem in rest if self._digest(problem) not in held]
        kept, same = [], []
        for problem in train:
            digest = self._digest(problem)
            name, twin = TWINS.get(digest, (problem.id, digest))
            if twin in held:
                same.append(f"{name} is left out of training: a held-out problem is the same")
            else:
                kept.append(problem)
        self._notes += _few(same, "problems are left out of training: held-out problems are the same")
        names = {problem.id for problem in test}
        if both := next((problem.id for problem in kept if problem.id in names), None):
            raise DataError(
                f"task.data = {self._config.data!r}: field 'unique_id' = {both!r} names a problem to train on and "
                "another one that is held out; give every problem an id of its own"
            )
        return kept

    @cached_property
    def _rows(self) -> dict[str, list[Row]]:
        config, paper = self._config, self._split == "paper"
        if config.data is not None:
            rows = rows_of_folder(config.data, {"train": ("train",), "test": ("test",)}, needed=("train", "test"))
            held_out = rows_of_folder(config.data, {"math500": ("math500", "math-500")}) if paper else {}
            if paper and not held_out:
                raise DataError(
                    f"task.data = {config.data!r}: the folder holds no math500.jsonl (nor .json, .parquet, or one with "
                    ".gz), which the paper's split evaluates on; set task.split=original to take train.* and test.* as "
                    "they are"
                )
        else:
            hub = config.hub or HUBS[config.dataset]
            rows = {split: rows_of_hub(hub, split) for split in ("train", "test")}
            held_out = {"math500": rows_of_hub(config.hub_500, "test")} if paper else {}
        return {split: renamed(found, config.columns) for split, found in rows.items()} | held_out

    def _problems(self, rows: list[Row], style: Literal["math", "gsm8k"], split: str) -> list[Problem]:
        if style == "math":
            unique([row for row in rows if row.has("unique_id")], lambda row: row.fields["unique_id"], "unique_id")
        problems: list[Problem] = []
        without: list[Row] = []
        for number, row in enumerate(rows, 1):
            question = row.text("problem" if style == "math" else "question")
            answer = self._gold(row, style, question)
            name = row.text("unique_id") if row.has("unique_id") else f"{style}/{split}/{number}"
            if answer is None:
                without.append(row)
                continue
            reference: dict[str, Any] = {"answer": answer}
            if row.has("level") and (level := _LEVEL.fullmatch(str(row.fields["level"]))):
                reference["level"] = int(level[1])
            for field in ("subject", "type"):
                if row.has(field):
                    reference["subject"] = row.text(field)
            problems.append(self.problem(question, reference, name))
        return self._told(problems, without, style)

    def _told(self, problems: list[Problem], without: list[Row], style: Literal["math", "gsm8k"]) -> list[Problem]:
        """The problems, those without an answer noted. Raises DataError where none has one."""
        lack = {
            "math": ("solution", r"no \boxed{...}"),
            "gsm8k": ("answer", "no line `#### ANSWER`, as GSM8K's end with"),
        }
        if without and not problems:
            field, why = lack[style]
            raise without[0].wrong(
                field,
                f"states no answer: {why}; nor does any other row. Where a field holds the bare answer, it is MATH's "
                "form: task.dataset=math, task.split=original, fields problem and answer (task.columns renames)",
            )
        left_out = [f"{row.where}: left out: its {lack[style][0]} states no answer" for row in without]
        self._notes += _few(left_out, f"rows are left out: their {lack[style][0]} states no answer")
        return problems

    def problem(self, question: str, reference: dict[str, Any], name: str) -> Problem:
        """A question as a problem, its prompt filled in."""
        prompt = self._fill(self._config.prompt, question)
        self._questions[prompt] = question
        return Problem(name, self.name, prompt, reference)

    def _gold(self, row: Row, style: Literal["math", "gsm8k"], question: str) -> str | None:
        """The answer to compare with: MATH's field `answer` where there is one, else what the solution states."""
        from selfcorrect.grading.math import gold_answer

        if style == "gsm8k":
            found = gold_answer(row.text("answer"), style="gsm8k")
        elif row.has("answer"):
            found = row.text("answer", empty=True)
        else:
            found = gold_answer(row.text("solution"), style="math")
        if not (found or "").strip() and words_digest(question) in EMPTY_GOLDS:
            name, found = EMPTY_GOLDS[words_digest(question)]
            self._notes.append(f"{name}: its solution's box is empty; {found} is taken as the answer")
        return found.strip() or None if found else None

    def _digest(self, problem: Problem) -> str:
        return words_digest(self._questions[problem.prompt])

    def _fill(self, template: str, question: str) -> str:
        from selfcorrect.grading.math import FINAL_FORM

        return template.format(problem=question, final_form=FINAL_FORM)


def _few(notes: list[str], all_of: str) -> list[str]:
    """The notes; of many how many there are, and the first."""
    return notes if len(notes) <= _SHOWN else [f"{len(notes):,} {all_of}; the first {_SHOWN}:", *notes[:_SHOWN]]


def words_digest(text: str) -> str:
    """Sixteen hexadecimal digits of a text's words, whatever the white space."""
    return hashlib.sha256(" ".join(text.split()).encode()).hexdigest()[:16]
