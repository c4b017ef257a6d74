"""Evaluation in units that are kept as they end: greedy, repair, k samples a problem; two attempts each, every text.

Repair: the base model's wrong greedy first attempts are given, to every model the same ones, and attempt 2 is greedy.

A unit is one file, `texts/MODEL.DECODING.NNN.jsonl.gz`, a line a rollout: the problem's id, and of each attempt the
text, its number of tokens and its grade. What is there is not played again: a stopped evaluation goes on where it was.
"""

import gzip
import json
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import count
from pathlib import Path
from statistics import median_high
from typing import Any

import torch

from selfcorrect.analysis.read import json_lines
from selfcorrect.evaluation.averages import change, means, summary_over
from selfcorrect.evaluation.flat import rollout_row
from selfcorrect.evaluation.metrics import summarize
from selfcorrect.evaluation.stored import attempt_of
from selfcorrect.models.language_model import LanguageModel
from selfcorrect.rollout import play
from selfcorrect.samplers.transformers import TransformersSampler
from selfcorrect.seeds import derive_seed
from selfcorrect.tasks.base import Task
from selfcorrect.types import Grade, Outcome, Problem, Rollout, SamplingParams

GREEDY, REPAIR, SAMPLED = "greedy", "repair", "sampled"
FAILED = (Outcome.WRONG, Outcome.NO_ANSWER, Outcome.TIMEOUT)  # not what was cut off
BETWEEN = 64  # tokens of the correction turn, about


class Several:
    """Tasks side by side, so that problems of all of them fill one batch. Trains on the first one's."""

    name = "several"

    def __init__(self, tasks: Sequence[Task]) -> None:
        self._tasks = list(tasks)
        self._owner: dict[str, Task] = {}

    @property
    def notes(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(note for task in self._tasks for note in task.notes))

    def draw(self, step: int, count: int, seed: int) -> list[Problem]:
        return self._own(self._tasks[0], self._tasks[0].draw(step, count, seed))

    def held_out(self, count: int) -> list[Problem]:
        """At most `count` of each task."""
        return [problem for task in self._tasks for problem in self._own(task, task.held_out(count))]

    def longest(self) -> Problem:
        return max((p for task in self._tasks for p in self._own(task, [task.longest()])), key=lambda p: len(p.prompt))

    def load(self, path: str) -> list[Problem]:
        return self._tasks[0].load(path)

    def parse(self, text: str) -> Problem:
        return self._tasks[0].parse(text)

    def correction_prompt(self, problem: Problem) -> str:
        return self._owner[problem.id].correction_prompt(problem)

    def reworded(self, problem: Problem, template: str) -> str:
        return self._owner[problem.id].reworded(problem, template)

    def grade(self, answers: Sequence[tuple[Problem, str]]) -> list[Grade]:
        """Each text by its own task's grader; with none, every grader is started."""
        grades: dict[int, Grade] = {}
        for task in self._tasks:
            rows = [row for row, (problem, _) in enumerate(answers) if self._owner[problem.id] is task]
            if rows or not answers:
                grades |= dict(zip(rows, task.grade([answers[row] for row in rows]), strict=True))
        return [grades[row] for row in range(len(answers))]

    def close(self) -> None:
        for task in self._tasks:
            task.close()

    def _own(self, task: Task, problems: list[Problem]) -> list[Problem]:
        self._owner |= {problem.id: task for problem in problems}
        return problems


@dataclass(frozen=True, slots=True)
class Unit:
    """Rollouts that are sampled together. problems: repeated for every sample of them."""

    model: str
    decoding: str
    number: int
    problems: tuple[Problem, ...]

    @property
    def name(self) -> str:
        return f"{self.model}.{self.decoding}.{self.number:03d}"


@dataclass(frozen=True, slots=True)
class Evaluating:
    """What stays the same from model to model. samples: a problem, at `temperature`.

    lengths: tokens of each problem's prompt, by id. slots: tokens that the cache may hold at once; rows of a batch are
    as wide as the longest of them, so problems are taken by length, and a unit holds as many as fit, `most` at most.
    """

    task: Task
    problems: Sequence[Problem]
    lengths: Mapping[str, int]
    folder: Path
    samples: int
    temperature: float
    max_new_tokens: int
    slots: int
    seed: int
    most: int = sys.maxsize

    def units(self, model: str, decoding: str) -> Iterator[Unit]:
        """The longest prompts first."""
        copies = self.samples if decoding == SAMPLED else 1
        left = sorted(
            self._failed() if decoding == REPAIR else self.problems,
            key=lambda problem: (-self.lengths[problem.id], problem.id),
        )
        for number in count():
            if not left or not copies:
                return
            width = self.lengths[left[0].id] + 2 * self.max_new_tokens + BETWEEN
            each = max(1, min(self.most, self.slots // width // copies))
            chunk, left = left[:each], left[each:]
            yield Unit(model, decoding, number, tuple(problem for problem in chunk for _ in range(copies)))

    def _failed(self) -> list[Problem]:
        """What the base model got wrong at its first greedy attempt, which is given; none before all are there."""
        if not self.done("base", GREEDY):
            return []
        wrong = {
            rollout.problem.id: rollout.attempts[0].completion.text
            for rollout in self.read("base", GREEDY)
            if rollout.attempts[0].grade.outcome in FAILED
        }
        return [replace(p, first_attempt=wrong[p.id]) for p in self.problems if p.id in wrong]

    def file(self, unit: Unit) -> Path:
        return self.folder / "texts" / f"{unit.name}.jsonl.gz"

    def done(self, model: str, decoding: str) -> bool:
        return all(self.file(unit).exists() for unit in self.units(model, decoding))

    def run(
        self, model: str, decoding: str, lm: LanguageModel, kept: Callable[[], None], over: Callable[[float], bool]
    ) -> None:
        """Play what is not there yet; `kept` is called after each unit. over(seconds): so many are not left.

        Of the first unit of all nothing is known but the limits, and it is played wherever time is left.
        """
        for unit in self.units(model, decoding):
            if self.file(unit).exists():
                continue
            need = self.expected(unit)
            if over(need):
                print(f"{unit.name}: takes {need:.0f} s, and not enough time is left", flush=True)
                return
            began, busy = time.monotonic(), time.process_time()
            rollouts = self._play(unit, lm)
            seconds, busy = time.monotonic() - began, time.process_time() - busy
            write_rows(self.file(unit), rollouts)
            self._note(unit, rollouts, seconds, busy)
            kept()

    def expected(self, unit: Unit) -> float:
        """Seconds that a unit will take, a sixth more than the same one took for the median model; 0 before any was.

        Where that is not known, what the unit with the most rows took, and in proportion where this one has more.
        """
        notes, rows = self.notes(), len(unit.problems)
        same = [note["seconds"] for note in notes if note["unit"].split(".")[1:] == unit.name.split(".")[1:]]
        if same or not notes:
            return 1.15 * float(median_high(same) if same else 0.0)
        widest = max(notes, key=lambda note: (note["rollouts"], note["seconds"]))
        return float(widest["seconds"] * max(1.0, rows / widest["rollouts"]))

    def notes(self) -> list[dict[str, Any]]:
        """What the units so far took."""
        return json_lines(self.folder / "units.jsonl")

    def _play(self, unit: Unit, lm: LanguageModel) -> list[Rollout]:
        draws = derive_seed(self.seed, "evaluate", unit.decoding, unit.number)
        temperature = self.temperature if unit.decoding == SAMPLED else 0.0
        params, rows = SamplingParams(temperature, self.max_new_tokens, draws), len(unit.problems)
        while True:
            sampler = TransformersSampler(lm, max_rows=rows)  # a new one: the last unit's cache is given back
            try:
                return play(unit.problems, self.task, sampler, lm.chat, params, 2)
            except torch.OutOfMemoryError:
                if rows == 1:
                    raise
            rows = -(-rows // 2)
            print(f"{unit.name}: out of memory, now {rows} rows at once", flush=True)
            torch.cuda.empty_cache()

    def _note(self, unit: Unit, rollouts: Sequence[Rollout], seconds: float, busy: float) -> None:
        tokens = sum(len(attempt.completion.token_ids) for rollout in rollouts for attempt in rollout.attempts)
        note = {"unit": unit.name, "rollouts": len(rollouts), "tokens": tokens, "seconds": round(seconds, 2),
                "processor_seconds": round(busy, 2)}  # fmt: skip
        with (self.folder / "units.jsonl").open("a", encoding="utf-8") as notes:
            notes.write(json.dumps(note) + "\n")
        told = summarize(rollouts)
        first, last = (100 * estimate.value for estimate in (told.accuracy[0], told.accuracy[-1]))
        print(
            f"{unit.name}: {len(rollouts)} rollouts, {tokens} tokens in {seconds:.1f} s ({tokens / seconds:.0f}/s), "
            f"{first:.1f} -> {last:.1f} %",
            flush=True,
        )

    def summary(self, *models: str) -> dict[str, Any]:
        """What is there, by data set: metrics greedy, at repair and over samples; several models' taken together."""
        found: dict[str, Any] = {}
        for decoding, copies in ((GREEDY, 1), (REPAIR, 1), (SAMPLED, self.samples)):
            for name, rollouts in by_set(self._read_all(models, decoding)).items():
                told = summary_over(rollouts, copies * len(models))
                one = told if len(models) == 1 else replace(told, passes=())  # pass@k is of one model
                found.setdefault(name, {})[decoding] = asdict(one)
        return found

    def against(self, ours: Sequence[str], theirs: Sequence[str]) -> dict[str, Any]:
        """Of some models less others, means by problem, paired: both attempts and delta; of repair the last attempt."""
        found: dict[str, Any] = {}
        for decoding in (GREEDY, REPAIR, SAMPLED):
            mine, others = (by_set(self._read_all(names, decoding)) for names in (ours, theirs))
            single = len(ours) == len(theirs) == 1 and (decoding != SAMPLED or self.samples == 1)
            for name in sorted(mine.keys() & others.keys()):
                changed = change(means(others[name]), means(mine[name]), single=single)
                if changed:
                    told = {"t1": changed.first, "t2": changed.last, "delta": changed.delta}
                    kept = {"t2": changed.last} if decoding == REPAIR else told
                    found.setdefault(name, {})[decoding] = {label: asdict(each) for label, each in kept.items()}
        return found

    def _read_all(self, models: Sequence[str], decoding: str) -> list[Rollout]:
        return [rollout for model in models for rollout in self.read(model, decoding)]

    def read(self, model: str, decoding: str) -> list[Rollout]:
        """What is there, in the units' order."""
        files = [self.file(unit) for unit in self.units(model, decoding)]
        return [rollout for file in files if file.exists() for rollout in read_rows(file)]


def write_rows(file: Path, rollouts: Sequence[Rollout], **extra: Any) -> None:
    """Lines without the prompts: those follow from the id, and are the data sets' own."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f".{file.name}")
    with gzip.open(partial, "wt", encoding="utf-8") as out:
        for rollout in rollouts:
            row = {key: value for key, value in rollout_row(rollout).items() if key in ("id", "attempts")}
            for kept, attempt in zip(row["attempts"], rollout.attempts, strict=True):
                kept["tokens"] = len(attempt.completion.token_ids)
            out.write(json.dumps({**row, **extra}) + "\n")
    partial.replace(file)


def read_rows(file: Path) -> list[Rollout]:
    """Rollouts with texts and grades; their token ids are not kept."""
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    return [Rollout(Problem(row["id"], "", "", {}), tuple(map(attempt_of, row["attempts"]))) for row in rows]


def by_set(rollouts: Sequence[Rollout]) -> dict[str, list[Rollout]]:
    """By data set."""
    found: dict[str, list[Rollout]] = {}
    for rollout in rollouts:
        found.setdefault(set_of(rollout.problem), []).append(rollout)
    return found


def set_of(problem: Problem) -> str:
    """The data set that a problem's id names: gsm8k/test/3, countdown-30-7-2-to-39."""
    return re.split("[/-]", problem.id)[0]
