"""Evaluation: problems -> play (greedy, or k samples of each) -> grade -> summarize. Imports no training code.

Several wordings of the correction prompt go on from the same first attempts, each with attempts of its own after them.
Two controls ask whether attempt 2 reads attempt 1: before attempt 2 is written, attempt 1 is replaced by the
attempt of another problem (`swapped`), or by another one at the same problem, sampled at temperature 1
(`independent`).

Rollouts are played `rows` at a time, always the same ones together, with a seed of their own: how numbers round
depends on what is computed side by side, and what was kept of an evaluation must be what it would be made again.
Every problem's first sample comes before any second one, so that more samples only lengthen the list: whole chunks of
an evaluation with fewer stay as they are.
"""

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

from selfcorrect.config import SelfRefineConfig, TrainConfig
from selfcorrect.errors import ConfigError
from selfcorrect.evaluation.averages import Change, means, paired, summary_over
from selfcorrect.evaluation.counted import Counted, Told
from selfcorrect.evaluation.flat import flat_rollout, rollout_rows
from selfcorrect.evaluation.kept import Kept
from selfcorrect.evaluation.metrics import Estimate, Summary, grader_lives, refuse_nothing_graded
from selfcorrect.evaluation.resolution import assumed, before
from selfcorrect.evaluation.told import shown
from selfcorrect.models.chat import Chat
from selfcorrect.rollout import play
from selfcorrect.samplers.base import Sampler
from selfcorrect.seeds import derive_seed
from selfcorrect.tasks.base import Task
from selfcorrect.types import Attempt, Completion, Grade, Outcome, Problem, Rollout, SamplingParams

BASE = "base"  # the name of the evaluation before training
OWN = "recipe"  # the name of the wording that the task has


@dataclass(frozen=True, slots=True)
class Wording:
    """What one wording of the correction prompt came to, after the same first attempts as the others.

    prompt: as it reads at the first problem. less: by name, accuracy of the last attempt less that after another
    wording, paired over problems; as the first attempts are shared, that is the difference of delta too.
    """

    name: str
    prompt: str
    summary: Summary
    rollouts: tuple[Rollout, ...] = field(repr=False)
    less: Mapping[str, Estimate]


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One evaluation of one model. rollouts: texts and grades, as they were kept: of every problem the first sample,
    then of every problem the second, and so on.

    controls: by what stood in for attempt 1. external: (file name, summary) pairs. about: the task's data in words.
    folder: where its files are. max_new_tokens: the limit of an attempt, where there was one. wordings: of the
    correction prompt, the task's own first; none where there is only that. against_base: less the base model's, in a
    training run. assumed: the smallest delta that could be resolved, as was assumed before (resolution.py).
    """

    name: str
    step: int
    task: str
    seconds: float
    summary: Summary
    rollouts: tuple[Rollout, ...]
    sampled: Summary | None = None
    controls: Mapping[str, Summary] = field(default_factory=dict)
    external: tuple[tuple[str, Summary], ...] = ()
    decoding: str = "greedy"
    split: str = "test"
    about: str = ""
    folder: Path | None = None
    max_new_tokens: int | None = None
    wordings: tuple[Wording, ...] = ()
    system_prompt: str | None = None
    against_base: Change | None = None
    assumed: float | None = None

    @property
    def is_base(self) -> bool:
        return self.name == BASE

    @property
    def label(self) -> str:
        if self.is_base:
            return "before training"
        return f"after {self.name}" if self.step else self.name  # an evaluation without training

    def __repr__(self) -> str:
        return shown(self)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as docs/run_folder.md tells; the rollouts are in `records`, and files in `folder`."""
        return {
            "name": self.name,
            "step": self.step,
            "task": self.task,
            "about": self.about,
            "split": self.split,
            "decoding": self.decoding,
            "seconds": self.seconds,
            "summary": asdict(self.summary),
            "sampled": asdict(self.sampled) if self.sampled else None,
            "controls": {name: asdict(summary) for name, summary in self.controls.items()},
            "external": [{"path": name, "summary": asdict(summary)} for name, summary in self.external],
            "wordings": [
                {"name": each.name, "prompt": each.prompt, "summary": asdict(each.summary),
                 "less": {other: asdict(less) for other, less in each.less.items()}}
                for each in self.wordings
            ],
            "system_prompt": self.system_prompt,
            "against_base": asdict(self.against_base) if self.against_base else None,
            "smallest_delta": {"assumed": self.assumed, "measured": self.summary.smallest},
        }  # fmt: skip

    def records(self) -> list[dict[str, Any]]:
        """A flat record a rollout, for a table of data: id, prompt, reference, t1/text, t1/outcome, ..., t2/text."""
        return [flat_rollout(row) for row in rollout_rows(self.rollouts)]


@dataclass(frozen=True, slots=True)
class Part:
    """Problems played in one way, `samples` times. given: the part whose first attempts take the place of this one's.

    wording: a template in place of the task's correction prompt.
    """

    name: str
    problems: Sequence[Problem]
    temperature: float = 0.0
    given: str = ""
    shift: int = 0  # problem i is given the attempt at problem i + shift
    samples: int = 1
    wording: str | None = None

    def chunk(self, start: int, rows: int) -> list[tuple[Problem, int]]:
        """Problems, each with which of its samples is meant (1, 2, ...), from place `start` on."""
        count = len(self.problems)
        places = range(start, min(start + rows, count * self.samples))
        return [(self.problems[place % count], place // count + 1) for place in places]

    def starts(self, rows: int) -> range:
        return range(0, len(self.problems) * self.samples, rows)


@dataclass(frozen=True, slots=True)
class Evaluator:
    """What stays the same from evaluation to evaluation: the task, the held-out problems, the limits.

    rows: how many rollouts are played, and kept, at once. samples: of each problem, at `temperature`; 0 is greedy.
    wordings: of the correction prompt, besides the task's own: templates by name. play: `rollout.play`, or one that
    several processes share.
    """

    task: Task
    problems: Sequence[Problem]
    attempts: int
    max_new_tokens: int
    seed: int
    controls: bool = True
    external: Sequence[tuple[str, Sequence[Problem]]] = ()
    recorded: bool = False
    split: str = "test"
    refine: SelfRefineConfig | None = None
    rows: int = 512
    about: str = ""
    samples: int = 1
    temperature: float = 0.0
    wordings: Mapping[str, str] = field(default_factory=dict)
    play: Callable[..., list[Rollout]] = play

    def run(
        self, name: str, step: int, sampler: Sampler, chat: Chat, kept: Kept | None = None,
        told: Told = lambda done, total, now, share: None,
    ) -> Evaluation:  # fmt: skip
        """Evaluate what `sampler` now samples from. The problems and draws are the same at every call.

        kept: what it holds is not played again, and what is played is kept there, `rows` rollouts at a time. Raises
        NothingGraded where not one problem could be sampled and graded.
        """
        counted = Counted(sampler, told, self.completions)
        played: dict[str, list[Rollout]] = {part.name: [] for part in self.parts}
        seconds = 0.0
        for part, start in self._order():
            lines = self._chunk(part, start, self._given(part, start, played), counted, chat, kept)
            problems = [problem for problem, _ in part.chunk(start, self.rows)]
            played[part.name] += [rollout_of(*pair) for pair in zip(problems, lines, strict=True)]
            seconds += sum(line["seconds"] for line in lines)
            if start == part.starts(self.rows)[-1]:
                refuse_nothing_graded(played[part.name], f"evaluation {name}")
        summaries = {part.name: summary_over(played[part.name], part.samples) for part in self.parts}
        return Evaluation(
            name=name,
            step=step,
            task=self.task.name,
            seconds=seconds,
            summary=summaries[self.main],
            rollouts=tuple(played[self.main]),
            sampled=summaries.get("sampled"),
            controls={key: summaries[key] for key in ("swapped", "independent") if key in summaries},
            external=tuple((label, summaries[f"external {label}"]) for label, _ in self.external),
            decoding=self.decoding,
            split=self.split,
            about=self.about,
            max_new_tokens=None if self.recorded else self.max_new_tokens,
            wordings=self._compared(played, summaries),
            system_prompt=chat.system.text if chat.system else None,
            assumed=assumed(len(self.problems), self.samples) if self.problems and self.attempts > 1 else None,
        )

    @property
    def main(self) -> str:
        """The name of the part that the evaluation is about."""
        return "greedy" if self.temperature == 0 else "samples"

    @property
    def decoding(self) -> str:
        """How attempts are written, in words."""
        if self.recorded:
            return "recorded"
        many = "1 sample" if self.samples == 1 else f"{self.samples} samples"
        return "greedy" if self.temperature == 0 else f"{many} at temperature {self.temperature:g}"

    @property
    def parts(self) -> list[Part]:
        """All that is played."""
        return [*self._together, *self._alone]

    @property
    def _together(self) -> list[Part]:
        """What the evaluation is about, and the wordings that go on from its first attempts."""
        way = {"temperature": self.temperature, "samples": self.samples}
        main = Part(self.main, self.problems, **way)  # type: ignore[arg-type]
        return [main, *(
            Part(f"wording {name}", self.problems, given=self.main, wording=text, **way)  # type: ignore[arg-type]
            for name, text in self.wordings.items()
        )]  # fmt: skip

    @property
    def _alone(self) -> list[Part]:
        """Controls, which take one sample of each problem, and other data, which take as many as the evaluation."""
        found, hot = [], self.temperature
        if self.controls:
            found += [
                Part("sampled", self.problems, 1.0), Part("swapped", self.problems, hot, given=self.main, shift=1)
            ]  # fmt: skip
            if any(problem.first_attempt is None for problem in self.problems):  # recorded ones have no other draw
                found.append(Part("independent", self.problems, hot, given="sampled"))
        return found + [
            Part(f"external {label}", problems, hot, samples=self.samples) for label, problems in self.external
        ]

    def _order(self) -> Iterator[tuple[Part, int]]:
        """Parts and places in the order of work: a chunk of the evaluation and of every wording, then the next one."""
        together = self._together
        yield from ((part, start) for start in together[0].starts(self.rows) for part in together)
        yield from ((part, start) for part in self._alone for start in part.starts(self.rows))

    def _compared(
        self, played: Mapping[str, Sequence[Rollout]], summaries: Mapping[str, Summary]
    ) -> tuple[Wording, ...]:
        """Every wording with its differences from the others; none where there is only the task's own."""
        if not self.wordings:
            return ()
        parts = {OWN: self.main, **{name: f"wording {name}" for name in self.wordings}}
        last = {name: {key: value[1] for key, value in means(played[part]).items()} for name, part in parts.items()}
        less: dict[str, dict[str, Estimate]] = {name: {} for name in parts}
        for one, other in combinations(parts, 2):
            if (found := paired(last[one], last[other], single=self.samples == 1)) is not None:
                less[other][one] = found
                less[one][other] = Estimate(0 - found.value, 0 - found.high, 0 - found.low)
        asked = {name: self.task.reworded(self.problems[0], text) for name, text in self.wordings.items()}
        asked = {OWN: self.task.correction_prompt(self.problems[0]), **asked}
        return tuple(
            Wording(name, asked[name], summaries[part], tuple(played[part]), less[name]) for name, part in parts.items()
        )

    @property
    def completions(self) -> int:
        """How many completions an evaluation samples, where the model can read every problem."""
        return sum(self.cost(part, part.problems) * part.samples for part in self.parts)

    @property
    def rollouts(self) -> int:
        """How many rollouts an evaluation consists of, those of the controls among them."""
        return sum(len(part.problems) * part.samples for part in self.parts)

    def cost(self, part: Part, problems: Sequence[Problem]) -> int:
        """Completions that some problems of a part take."""
        each = self.attempts + (self.attempts - 1 if self.refine else 0)
        return sum(each - (bool(part.given) or problem.first_attempt is not None) for problem in problems)

    def plan(self) -> str:
        """How many completions are to come, what multiplies them, and what the controls cost."""
        total = self.completions
        if self.decoding == "recorded":
            return f"{total:,} recorded attempts at {len(self.problems):,} problems"
        told = f"{total:,} completions to come of up to {self.max_new_tokens} tokens: {len(self.problems):,} problems"
        told += f" x {self.attempts} attempts" + (" and feedback between them" if self.refine else "")
        told += f", {self.decoding}"
        if self.wordings:
            again = sum(self.cost(part, part.problems) * part.samples for part in self._together[1:])
            told += f"; after the same first attempts, asked as {', '.join(self.wordings)}: {again:,}"
        for label, problems in self.external:
            told += f"; {len(problems):,} of {label}"
        controls = [part for part in self.parts if part.name in ("sampled", "swapped", "independent")]
        if controls:
            price = sum(self.cost(part, part.problems) for part in controls)
            named = ", ".join(part.name for part in controls)
            told += f"; controls ({named}): {price:,} completions of {total:,} (none with evaluation.controls=false)"
        return told

    def resolution(self) -> str:
        """The smallest delta that can be shown, as far as that can be told before; empty for single attempts."""
        return before(len(self.problems), self.samples) if self.problems and self.attempts > 1 else ""

    def digest(self, chat: Chat) -> str:
        """Of all problems, their prompts as the model reads them, and the texts that ask for another attempt."""
        parts = [part for part in self.parts if part.wording is None]
        return digest([problem for part in parts for problem in part.problems], self.task, chat)

    def _given(
        self, part: Part, start: int, played: Mapping[str, Sequence[Rollout]]
    ) -> list[Completion | None] | None:  # fmt: skip
        """By row of a chunk, the completion that takes the place of its attempt 1."""
        if not part.given:
            return None
        count, source = len(part.problems), played[part.given]
        places = range(start, start + len(part.chunk(start, self.rows)))
        if part.shift:
            places = [(place + part.shift) % count for place in places]  # type: ignore[assignment]
        return [source[place].attempts[0].completion for place in places]

    def _chunk(
        self, part: Part, start: int, given: Sequence[Completion | None] | None, sampler: Counted, chat: Chat,
        kept: Kept | None,
    ) -> list[dict[str, Any]]:  # fmt: skip
        """The lines of places `start` to `start + rows` of a part, kept or played."""
        rows = part.chunk(start, self.rows)
        problems = [problem for problem, _ in rows]
        cost = self.cost(part, problems)
        lines = kept.take([(part.name, problem.id, sample) for problem, sample in rows]) if kept else None
        if lines is not None:
            sampler.reach(cost)
            return lines
        began = time.monotonic()
        seed = derive_seed(self.seed, "evaluate", part.name, start // self.rows)
        params = SamplingParams(part.temperature, self.max_new_tokens, seed)
        wording = part.wording
        asks = None if wording is None else lambda problem: self.task.reworded(problem, wording)
        rollouts = self.play(
            problems, self.task, sampler, chat, params, self.attempts, given=given, refine=self.refine, asks=asks
        )
        seconds = (time.monotonic() - began) / len(problems)
        ids = self.controls or bool(self.wordings)
        lines = [
            line_of(part.name, rollout, seconds, sample=sample, ids=ids)
            for rollout, (_, sample) in zip(rollouts, rows, strict=True)
        ]
        if kept:
            kept.add(lines, graded=grader_lives(rollouts))
        sampler.reach(cost)
        return lines


def digest(problems: Sequence[Problem], task: Task | None, chat: Chat | None) -> str:
    """Of problems, and of what a model reads of them: two that differ in anything that is sampled or graded differ.

    task: whose question for another attempt counts; None: no such question does. chat: None where no model reads them.
    """
    told = hashlib.sha256()
    for problem in problems:
        asked = task.correction_prompt(problem) if task else ""
        told.update(json.dumps([problem.id, problem.prompt, problem.first_attempt, asked]).encode())
        told.update(json.dumps(problem.reference).encode())
    if problems and chat:  # by the chat template
        first = chat.first_prompt(problems[0].prompt)
        again = chat.next_prompt(first, (), task.correction_prompt(problems[0])) if task else ()
        told.update(json.dumps([first, again]).encode())
    return told.hexdigest()[:16]


def line_key(line: Any) -> tuple[Any, ...]:
    """What a kept line is about: part, problem, and which of its samples."""
    return (line["part"], line["id"], line["sample"])


def line_of(part: str, rollout: Rollout, seconds: float, *, sample: int = 1, ids: bool = False) -> dict[str, Any]:
    """A rollout as it is kept; ids: with the token ids of attempt 1, from which controls go on."""
    attempts = [
        {
            "text": each.completion.text, "finish": each.completion.finish_reason, **asdict(each.grade),
            "sampled": each.sampled, "feedback": each.feedback,
        }
        for each in rollout.attempts
    ]  # fmt: skip
    if ids:
        attempts[0]["ids"] = rollout.attempts[0].completion.token_ids
    return {"part": part, "id": rollout.problem.id, "sample": sample, "seconds": seconds, "attempts": attempts}


def rollout_of(problem: Problem, line: dict[str, Any]) -> Rollout:
    """What `line_of` wrote, read back: without contexts and log-probabilities."""
    attempts = tuple(
        Attempt(
            (), Completion(tuple(a.get("ids", ())), (), a["text"], a["finish"]),
            Grade(Outcome(a["outcome"]), a["reward"], a["answer"], a["detail"]), a["sampled"], a["feedback"],
        )
        for a in line["attempts"]
    )  # fmt: skip
    return Rollout(problem, attempts)


def load_external(task: Task, paths: Sequence[str]) -> list[tuple[str, list[Problem]]]:
    """Each file's name and problems. Raises DataError with file and line."""
    return [(Path(path).name, task.load(path)) for path in paths]


def evaluated_problems(config: TrainConfig, task: Task) -> list[Problem]:
    """Those of `evaluation`: held out, or training problems (of step 0, each once)."""
    count, offset = config.evaluation.problems, config.evaluation.offset
    if config.evaluation.split == "train":
        return list({problem.id: problem for problem in task.draw(0, count, 0)}.values())
    left_out = {problem.id for problem in task.held_out(offset)} if offset else set()
    found = [problem for problem in task.held_out(offset + count) if problem.id not in left_out]
    if not found:
        raise ConfigError(
            f"evaluation.offset = {offset} leaves none of the {len(left_out)} held-out problems; lower it"
        )
    return found
