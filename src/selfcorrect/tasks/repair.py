"""Offline repair: a recorded first attempt is given, the model writes attempt 2.

Two shapes of rows: what `selfcorrect make-repair-set` writes, which names problems of another task's data; and
MBPP-R's, whose rows hold task, tests and failing program themselves.
"""

import ast
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from selfcorrect.config import CodeConfig, RepairConfig
from selfcorrect.errors import DataError
from selfcorrect.tasks.base import Split
from selfcorrect.tasks.code import CodeTask, Item, plain
from selfcorrect.tasks.dataset import DataTask
from selfcorrect.tasks.files import Row, read_rows
from selfcorrect.tasks.math import MathTask
from selfcorrect.tasks.sources import check_there
from selfcorrect.types import Grade, Outcome, Problem, Rollout

SPLITS = {"train": "train", "test": "test", "validation": "test", "prompt": None}  # MBPP-R's; None: left out
FAILED = frozenset({Outcome.WRONG, Outcome.NO_ANSWER, Outcome.TIMEOUT})


class RepairTask(DataTask):
    """The task `repair`: another task's problems, prompts and grader, with first attempts that went wrong."""

    name = "repair"

    def __init__(self, config: RepairConfig) -> None:
        super().__init__()
        self._config = config
        self._of: CodeTask | MathTask = (
            CodeTask(config.of) if isinstance(config.of, CodeConfig) else MathTask(config.of)
        )
        self._loaded: dict[str, list[Problem]] | None = None

    @property
    def notes(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys([*self._of.notes, *self._notes]))

    def correction_prompt(self, problem: Problem) -> str:
        return self._of.correction_prompt(problem)

    def reworded(self, problem: Problem, template: str) -> str:
        return self._of.reworded(problem, template)

    def grade(self, answers: Sequence[tuple[Problem, str]]) -> list[Grade]:
        return self._of.grade(answers)

    def close(self) -> None:
        self._of.close()

    def load(self, path: str) -> list[Problem]:
        """All rows of a file, whatever their split."""
        by_split = self._read(path)
        return [problem for problems in by_split.values() for problem in problems]

    def _load_train(self) -> list[Problem]:
        return self._of_split("train", "train on")

    def _load_test(self) -> list[Problem]:
        return self._of_split("test", "evaluate on")

    def _of_split(self, split: Split, purpose: str) -> list[Problem]:
        if self._loaded is None:
            self._loaded = self._read(self._config.data)
        others = [other for other, problems in self._loaded.items() if problems]
        if others and split not in others:
            count = sum(map(len, self._loaded.values()))
            raise DataError(
                f"task.data = {self._config.data!r} holds none to {purpose}: its rows ({count:,}) are of split "
                f"{others[0]}; record some with `selfcorrect make-repair-set ... --split {split}`, and add them"
            )
        return self._loaded[split]

    def _read(self, path: str) -> dict[str, list[Problem]]:
        rows = read_rows(check_there(path))
        found: dict[str, list[Problem]] = {"train": [], "test": []}
        left_out = 0
        split: str | None
        for number, row in enumerate(rows, 1):
            if row.has("buggy_program"):
                split, problem = self._mbpp_r(row, Path(path).name)
            else:
                split, problem = self._named(row)
            name = f"{problem.id}#{number}"  # a problem may have several first attempts
            if split is None:
                left_out += 1
            else:
                found[split].append(replace(problem, id=name, task=self.name))
        if left_out:
            self._notes.append(f"{path}: {left_out:,} rows of split prompt are left out, which MBPP shows as examples")
        return found

    def _named(self, row: Row) -> tuple[str, Problem]:
        """A row of make-repair-set: its problem is the other task's."""
        name, text = row.text("task_id"), row.text("first_attempt", empty=True)
        problem = self._of.find(name)
        if problem is None:
            raise row.wrong("task_id", f"= {name!r} is no problem of task.of; is it the set the first attempts are at?")
        return "test" if name in self._of.held else "train", replace(problem, first_attempt=text)

    def _mbpp_r(self, row: Row, file: str) -> tuple[str | None, Problem]:
        """A row of MBPP-R's shape: task_id, split, text, tests, buggy_program, reference."""
        if not isinstance(self._of, CodeTask):
            raise row.wrong("buggy_program", "is a program, but task.of is not named code")
        tests = _plain_tests(plain(row.text("tests")))
        item = Item(
            number=row.integer("task_id"),
            text=row.text("text").strip(),
            shown=tests,
            tests=tests,
            solution=plain(row.text("reference")),
        )
        program = plain(row.text("buggy_program", empty=True)).strip("\n")
        longest = max([2, *map(len, re.findall("`+", program))])
        fence = "`" * (longest + 1)  # a fence in the program must not close ours: it may be what is wrong with it
        # Zero-shot: the rows stand for themselves, and hold no solved examples.
        problem = self._of.problem(item, f"{file}/{row.where.rpartition(':')[2]}/{item.number}", examples=False)
        split = row.text("split") if row.has("split") else "test"
        if split not in SPLITS:
            raise row.wrong("split", f"= {split!r} must be one of {', '.join(SPLITS)}; rename it")
        return SPLITS[split], replace(problem, first_attempt=f"{fence}python\n{program}\n{fence}")


def _plain_tests(tests: str) -> str:
    """The asserts of `def check(candidate): ...; check(name)` as they would stand alone; other tests as they are.

    The tests are the data set's, so they may be parsed here.
    """
    try:
        body = ast.parse(tests).body
    except (SyntaxError, ValueError):
        return tests
    if len(body) != 2 or not isinstance(body[0], ast.FunctionDef) or not isinstance(body[1], ast.Expr):
        return tests
    parts = [ast.get_source_segment(tests, node) for node in body[0].body]
    uses_argument = any(
        isinstance(node, ast.Name) and node.id == "candidate" for part in body[0].body for node in ast.walk(part)
    )
    return tests if uses_argument else "\n".join(part for part in parts if part)


def repair_rows(rollouts: Iterable[Rollout], split: str, model: str) -> list[dict[str, Any]]:
    """The first attempts that failed, as rows of a repair set. Truncated ones are left out: nothing ended there."""
    return [
        {
            "task_id": rollout.problem.id,
            "split": split,
            "first_attempt": attempt.completion.text,
            "failure": f"{attempt.grade.outcome}" + (f": {attempt.grade.detail}" if attempt.grade.detail else ""),
            "model": model,
        }
        for rollout in rollouts
        if (attempt := rollout.attempts[0]).grade.outcome in FAILED
    ]
