"""Countdown: three numbers and a target. Generated, split by hash; or read from files.

A problem's split depends on nothing but its numbers and target, so no seed can leak test into train. The problems of
the public external set (d1_cd3_test.jsonl) are held out as well: their hashes are in assets/countdown_held_out.txt.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache, cached_property
from importlib import resources
from itertools import islice
from typing import Any

import numpy as np

from selfcorrect.config import CountdownConfig
from selfcorrect.errors import DataError
from selfcorrect.grading.countdown import grade_countdown
from selfcorrect.seeds import derive_seed
from selfcorrect.tasks.base import Split, fixed_share
from selfcorrect.tasks.countdown_generator import draw_problems
from selfcorrect.tasks.files import Row, read_rows
from selfcorrect.types import Grade, Problem

TEST_ONE_IN = 10  # a tenth of all problems is held out
_CHUNK = 256
_TYPED = re.compile(r"\s*([0-9]{1,9}(?:[\s,]+[0-9]{1,9})+)\s*[=:]\s*([0-9]{1,9})\s*")
_ID = re.compile(r"\s*countdown-([0-9]{1,9}(?:-[0-9]{1,9})+)-to-([0-9]{1,9})\s*")
_MOST = 100_000  # held-out problems: they are generated one by one, some thousands a second
_GIVE_UP = 200  # chunks in a row without a new problem: there are no more


def split_of(numbers: tuple[int, ...], target: int) -> Split:
    """The split a problem belongs to, from a hash of its sorted numbers and target."""
    key = derive_seed("countdown", *sorted(numbers), target)
    return "test" if key % TEST_ONE_IN == 0 or key in held_out() else "train"


@cache
def held_out() -> frozenset[int]:
    """Hashes of the problems that are kept out of training although `TEST_ONE_IN` would let them in."""
    lines = (resources.files("selfcorrect") / "assets" / "countdown_held_out.txt").read_text().splitlines()
    return frozenset(int(line, 16) for line in lines if not line.startswith("#"))


class Countdown:
    """The task `countdown`. Numbers are written largest first; their order carries no meaning."""

    name = "countdown"

    def __init__(self, config: CountdownConfig | None = None) -> None:
        self._config = config or CountdownConfig()
        self._notes: list[str] = []

    @property
    def notes(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(self._notes))

    def draw(self, step: int, count: int, seed: int) -> list[Problem]:
        """Generated problems, none twice in a step."""
        return list(islice(self.stream("train", derive_seed(seed, "problems", step)), count))

    def held_out(self, count: int) -> list[Problem]:
        """The first `count` of the test stream; where the recipe names a file, `count` of its problems."""
        if self._config.data:
            return fixed_share(self._own, count)
        if count > _MOST:
            raise DataError(
                f"evaluation.problems and evaluation.offset ask for {count:,} held-out problems of countdown, which "
                f"are generated one by one; lower them to {_MOST:,} together"
            )
        return list(islice(self.stream("test", 0), count))

    def longest(self) -> Problem:
        """Of a file the longest prompt; the generator's are all alike."""
        if self._config.data:
            return max(self._own, key=lambda problem: len(problem.prompt))
        return self._like_all

    @cached_property
    def _like_all(self) -> Problem:
        return next(self.stream("train", 0))

    @cached_property
    def _own(self) -> list[Problem]:
        assert self._config.data
        return self.load(self._config.data)

    def stream(self, split: Split, seed: int) -> Iterator[Problem]:
        """Solvable problems without end, none twice in one stream; the splits are disjoint whatever the seed."""
        rng = np.random.default_rng(derive_seed("countdown", split, seed))
        seen: set[str] = set()
        idle = 0
        while idle < _GIVE_UP:
            before = len(seen)
            draws = draw_problems(rng, _CHUNK, self._config.max_number, self._config.limit)
            for numbers, target in zip(draws.numbers_B3.tolist(), draws.target_B.tolist(), strict=True):
                if split_of(tuple(numbers), target) == split:
                    problem = self._problem(numbers, target)
                    if problem.id not in seen:
                        seen.add(problem.id)
                        yield problem
            idle = idle + 1 if len(seen) == before else 0
        raise DataError(
            f"task.max_number = {self._config.max_number}: there are only {len(seen)} {split} problems with numbers "
            "that small; raise task.max_number, or ask for fewer problems"
        )

    def load(self, path: str) -> list[Problem]:
        """Rows {"input": "3,7,12", "output": "22"} or {"nums": [3, 7, 12], "target": 22}; each problem once."""
        rows = read_rows(path)
        problems = {problem.id: problem for problem in map(self._read, rows)}
        again = len(rows) - len(problems)
        if again:
            self._notes.append(f"{path}: rows left out, whose problems stand there already: {again:,}")
        return list(problems.values())

    def parse(self, text: str) -> Problem:
        """A problem typed by hand: "30 7 2 = 39", or an id like countdown-30-7-2-to-39; the target comes last."""
        found = _TYPED.fullmatch(text) or _ID.fullmatch(text)
        if not found:
            raise DataError(
                f"problem {text!r}: expected two or more whole numbers, an equals sign and the target, for example "
                "'30 7 2 = 39', or an id like countdown-30-7-2-to-39"
            )
        numbers = [int(part) for part in re.findall(r"[0-9]+", found[1])]
        return self._problem(sorted(numbers, reverse=True), int(found[2]))

    def correction_prompt(self, problem: Problem) -> str:
        return self.reworded(problem, self._config.correction_prompt)

    def reworded(self, problem: Problem, template: str) -> str:
        return self._fill(template, problem.reference)

    def grade(self, answers: Sequence[tuple[Problem, str]]) -> list[Grade]:
        return [grade_countdown(text, p.reference["numbers"], p.reference["target"]) for p, text in answers]

    def close(self) -> None:
        """Nothing to end."""

    def _read(self, row: Row) -> Problem:
        first, last = ("input", "output") if "input" in row.fields else ("nums", "target")
        for field in (first, last):
            if field not in row.fields:
                raise row.wrong(field, "is missing; rows need input and output, or nums and target")
        given = row.fields[first]
        listed = given.split(",") if first == "input" and isinstance(given, str) else given
        if not isinstance(listed, list):
            raise row.wrong(first, f"must be a list of whole numbers, got {given!r}")
        numbers = [_whole_number(number, row, first) for number in listed]
        target = _whole_number(row.fields[last], row, last)
        if len(numbers) < 2 or min([*numbers, target]) < 0:
            raise DataError(
                f"{row.where}: needs at least two numbers, none negative; got {numbers} and target {target}"
            )
        return self._problem(sorted(numbers, reverse=True), target)

    def _problem(self, numbers: list[int], target: int) -> Problem:
        reference = {"numbers": numbers, "target": target}
        name = "countdown-" + "-".join(map(str, numbers)) + f"-to-{target}"
        return Problem(name, self.name, self._fill(self._config.prompt, reference), reference)

    def _fill(self, template: str, reference: Mapping[str, Any]) -> str:
        return template.format(numbers=" ".join(map(str, reference["numbers"])), target=reference["target"])


def _whole_number(value: object, row: Row, field: str) -> int:
    """An integer from a JSON number or a string of digits. Raises DataError for anything else."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    text = value.strip() if isinstance(value, str) else ""
    if text.isascii() and text.isdigit() and len(text) <= 18:
        return int(text)
    raise row.wrong(field, f"must hold whole numbers, got {value!r}")
