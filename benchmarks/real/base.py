"""A real model as it is, before any training: two greedy attempts at each problem, every text kept.

    python benchmarks/real/base.py --model FOLDER --data FOLDER --output DIR --sets humaneval=164,mbpp=200,gsm8k=200 \\
                                   --wordings 24
    python benchmarks/real/base.py ... (the same, without --wordings)

The first call tries three wordings of the correction prompt (prompts.py) on so many training problems of MBPP and
GSM8K, and keeps in DIR/wordings.json which one each kind of task will take, by a rule that prompts.py fixes (HumanEval,
which has no training problems, takes what MBPP's chose). The second call plays the test problems with these; without
the first call it needs --correction. Which problems of a set: always the same, and fewer are some of the more.

Both stop at any time, even killed, and go on where they were when called again: what is lost is one unit of --rows
problems. In DIR: summary.json, page.md, units.jsonl (what each unit took), texts/ (each attempt's text and grade, of
which problem, without the data sets' own words), and the same of the wordings under wordings/.
--data: a folder with the sets' files, or with folders mbpp, humaneval and gsm8k that hold them.
"""

import argparse
import hashlib
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from operator import methodcaller
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from evaluating import GREEDY, Evaluating
from page import base_page
from prompts import CODE, FAMILY, MATH, RULE, TRIED_ON, WORDINGS, asked, chosen, word_for_word
from settings import same_settings, status_of

from selfcorrect.analysis.read import json_lines
from selfcorrect.api import read_config
from selfcorrect.config import TrainConfig
from selfcorrect.errors import UserError
from selfcorrect.evaluation.kept import write_durably
from selfcorrect.evaluation.metrics import share, summarize
from selfcorrect.models.loading import load_model, use_threads
from selfcorrect.models.weights import fingerprint
from selfcorrect.runs.checks import check_context
from selfcorrect.runs.folder import environment
from selfcorrect.tasks import make_task
from selfcorrect.tasks.base import Task
from selfcorrect.types import Outcome, Problem, Rollout

NEXT_TURN = "\nUser:"  # of the plain chat template


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Exits with argparse's message where an option is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", required=True, help="a folder of Hugging Face layout, or a hub name")
    add("--data", type=Path, required=True)
    add("--output", type=Path, required=True)
    add("--sets", required=True, help=f"NAME=PROBLEMS,... with names of {', '.join(FAMILY)}")
    add("--wordings", type=int, metavar="N", help="try the wordings on N training problems a set; play no test problem")
    add("--correction", help="a correction prompt for every set, in place of one that was tried")
    add("--plain", action="store_true", help="a base model: the plain chat template, solved examples in the prompts")
    add("--code-tokens", type=int, default=384, help="of an attempt at a program")
    add("--math-tokens", type=int, default=320, help="of an attempt at a word problem")
    add("--rows", type=int, default=12, help="problems side by side; what a kill costs")
    add("--precision", default="auto", choices=["auto", "float32", "bfloat16"])
    add("--threads", type=int, default=2)
    add("--device", default="auto", choices=["auto", "cuda", "mps", "cpu"])
    add("--seed", type=int, default=0, help="of which training problems the wordings are tried on")
    add("--allow-unsandboxed", action="store_true", help="grade even where programs cannot be confined")
    options = parser.parse_args(arguments)
    sets: dict[str, int] = {}
    for part in options.sets.split(","):
        name, _, count = part.partition("=")
        if name not in FAMILY or not count.isdecimal() or int(count) < 1 or name in sets:
            parser.error(f"--sets: {part!r} is not NAME=PROBLEMS, a name of {', '.join(FAMILY)}, each once")
        sets[name] = int(count)
    if options.wordings is not None and (options.wordings < 1 or options.correction is not None):
        parser.error("--wordings: wants a number of problems, and no --correction beside it")
    options.sets = sets
    return options


def main(arguments: list[str] | None = None) -> int:
    """Exit status 0, or 2 with one line where something is missing or refused."""
    options = parse(arguments)
    return status_of(lambda: Session(options).run())


class Session:
    """One call: the model, and how it is asked."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.output = options, Path(options.output)
        self.tried = self._tried()  # before the model takes its time
        use_threads(options.threads)
        self.lm = load_model(self.config("mbpp", None).model)
        for note in self.lm.chat.notes:
            print(f"note: {note}", flush=True)
        self.how = {
            "model": fingerprint(self.lm),
            "device": self.lm.device.type,
            "precision": str(self.lm.compute_dtype).removeprefix("torch."),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "rows": options.rows,
            "plain": options.plain,
            "tokens": {CODE: options.code_tokens, MATH: options.math_tokens},
        }
        print(f"{options.model} on {self.how['device']}, {self.how['precision']}", flush=True)
        if self.tried and self.tried["model"] != self.how["model"]:
            raise UserError(f"{self.output / 'wordings.json'} is another model's; choose another --output")

    def run(self) -> None:
        if self.options.wordings is None:
            self.tables()
        else:
            self.wordings()

    def wordings(self) -> None:
        """Play each wording on training problems; wordings.json says what came out, and which one is taken."""
        folder, families = self.output / "wordings", list(dict.fromkeys(FAMILY[name] for name in self.options.sets))
        found: dict[str, Any] = {**self.how, "rule": RULE, "problems": self.options.wordings, "kinds": {}}
        for family in families:
            dataset, played = TRIED_ON[family], dict[str, list[Rollout]]()
            for name, text in WORDINGS[family].items():
                label = f"{dataset}-{name}"
                each = Asked(self, dataset, text, self._draw)
                same_settings(folder / label, {**self.how, **each.settings()})
                played[name] = each.play(folder, label)
            taken = chosen(played)
            found["kinds"][family] = {
                "tried_on": f"{dataset}, training problems",
                "taken": taken,
                "correction": WORDINGS[family][taken],
                "tried": {
                    name: {"correction": WORDINGS[family][name], **figures(rollouts)}
                    for name, rollouts in played.items()
                },
            }
            print(f"{family}: {taken}", flush=True)
        write_durably(self.output / "wordings.json", json.dumps(found, indent=1) + "\n")

    def _draw(self, task: Task) -> list[Problem]:
        return task.draw(1, self.options.wordings, self.options.seed)

    def tables(self) -> None:
        """Play the test problems of every set; summary.json and page.md are written after each unit."""
        sets = {
            name: Asked(self, name, self.correction(name), methodcaller("held_out", count))
            for name, count in self.options.sets.items()
        }
        same_settings(self.output, {**self.how, "sets": {name: each.settings() for name, each in sets.items()}})
        for name, each in sets.items():
            each.play(self.output, name, lambda: self.sum_up(sets))
        told = sets if self.options.plain else {}
        self.sum_up(sets, {name: figures(each.to_next_turn(self.output, name)) for name, each in told.items()})

    def correction(self, dataset: str) -> str:
        given: str | None = self.options.correction
        return self.tried["kinds"][FAMILY[dataset]]["correction"] if given is None else given

    def config(self, dataset: str, correction: str | None) -> TrainConfig:
        """The settings of a set, checked as a recipe's are."""
        options, family = self.options, FAMILY[dataset]
        folder = options.data / dataset
        task: dict[str, Any] = {"name": family, "dataset": dataset, **asked(dataset, options.plain)}
        task["data"] = str(folder if folder.is_dir() else options.data)
        if correction is not None:
            task["correction_prompt"] = correction
        if family == CODE:
            task["allow_unsandboxed"] = options.allow_unsandboxed
        model: dict[str, Any] = {"path": options.model, "device": options.device, "precision": options.precision}
        if options.plain:
            model |= {"chat_template": "plain", "template_options": {"bos": True}}
        limit = options.code_tokens if family == CODE else options.math_tokens
        config = read_config(
            {"name": "base", "model": model, "task": task, "rollouts": {"max_new_tokens": limit}, "stages": []}
        )
        assert isinstance(config, TrainConfig)
        return config

    def sum_up(self, sets: "dict[str, Asked]", to_turn: Mapping[str, Any] = MappingProxyType({})) -> None:
        """summary.json and page.md, from the files that are there. to_turn: of texts read to the next turn only."""
        units = json_lines(self.output / "units.jsonl")
        summary = {
            **environment(self.options.seed),
            "command": " ".join(["python benchmarks/real/base.py", *sys.argv[1:]]),
            "model": {"name": Path(self.options.model).name, "fingerprint": self.how["model"]},
            "how": self.how,
            "minutes_used": round(sum(unit["seconds"] for unit in units) / 60, 2),
            "processor_minutes_used": round(sum(unit["processor_seconds"] for unit in units) / 60, 2),
            "prompts": {name: {"first": each.first, "correction": each.correction} for name, each in sets.items()},
            "evaluations": {name: figures(each.read(self.output, name)) for name, each in sets.items()},
            "read_to_next_turn": dict(to_turn),
            "asked_for": {name: len(each.problems) for name, each in sets.items()},
            "wordings": self.tried,
        }
        write_durably(self.output / "summary.json", json.dumps(summary, indent=1) + "\n")
        (self.output / "page.md").write_text(base_page(summary), encoding="utf-8")

    def _tried(self) -> dict[str, Any]:
        """wordings.json; {} where the call needs none. Raises UserError where one is needed and is not there."""
        if self.options.wordings is not None or self.options.correction is not None:
            return {}
        file = self.output / "wordings.json"
        tried: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
        missing = [name for name in self.options.sets if FAMILY[name] not in tried.get("kinds", {})]
        if missing:
            raise UserError(
                f"{file} says no wording of the correction prompt for {missing[0]}; "
                "run the same command with --wordings N first, or set --correction"
            )
        return tried


class Asked:
    """Problems of one set with one correction prompt. pick: of the task, which."""

    def __init__(
        self, session: Session, dataset: str, correction: str, pick: Callable[[Task], list[Problem]]
    ) -> None:  # fmt: skip
        self.session, self.dataset, self.correction = session, dataset, correction
        self.config = session.config(dataset, correction)
        self.task = make_task(self.config.task)
        self.problems = pick(self.task)
        self.first = asked(dataset, session.options.plain)
        check_context(self.config, session.lm, self.task, self.task.longest())
        chat = session.lm.chat
        self.lengths = {problem.id: len(chat.first_prompt(problem.prompt)) for problem in self.problems}

    def settings(self) -> dict[str, Any]:
        """What the texts depend on, besides model and machine."""
        said = json.dumps([[problem.id, problem.prompt] for problem in self.problems]).encode()
        return {
            "problems": len(self.problems),
            "prompts": hashlib.sha256(said).hexdigest()[:16],
            "correction": self.correction,
        }

    def play(self, folder: Path, label: str, kept: Callable[[], None] = lambda: None) -> list[Rollout]:
        """What is not there yet is played; all rollouts."""
        evaluating = self._evaluating(folder)
        if not evaluating.done(label, GREEDY):
            self.task.grade([])  # the judges' processes are up, or say why not
            try:
                evaluating.run(label, GREEDY, self.session.lm, kept, lambda need: False)
            finally:
                self.task.close()
        return evaluating.read(label, GREEDY)

    def read(self, folder: Path, label: str) -> list[Rollout]:
        return self._evaluating(folder).read(label, GREEDY)

    def to_next_turn(self, folder: Path, label: str) -> list[Rollout]:
        """The rollouts as if an attempt that was cut off had ended where it began to write the next turn by itself.

        That is what a base model does; attempt 2 was asked for after the whole text all the same.
        """
        rollouts, known = self.read(folder, label), {problem.id: problem for problem in self.problems}
        ended = [
            (rollout.problem.id, attempt, attempt.completion.text.partition(NEXT_TURN)[0])
            for rollout in rollouts
            for attempt in rollout.attempts
            if attempt.grade.outcome is Outcome.TRUNCATED and NEXT_TURN in attempt.completion.text
        ]
        try:
            grades = self.task.grade([(known[name], text) for name, _, text in ended]) if ended else []
        finally:
            self.task.close()
        new = {
            id(attempt): replace(attempt, completion=replace(attempt.completion, text=text), grade=grade)
            for (_, attempt, text), grade in zip(ended, grades, strict=True)
        }
        return [replace(r, attempts=tuple(new.get(id(each), each) for each in r.attempts)) for r in rollouts]

    def _evaluating(self, folder: Path) -> Evaluating:
        options = self.session.options
        return Evaluating(
            self.task, self.problems, self.lengths, folder, 0, 0.0, self.config.rollouts.max_new_tokens,
            sys.maxsize, options.seed, options.rows,
        )  # fmt: skip


def figures(rollouts: Sequence[Rollout]) -> dict[str, Any]:
    """The metrics with intervals, how many attempts were cut off or gave no answer, and the problems' ids."""
    told = asdict(summarize(rollouts))
    n = len(rollouts)
    for outcome, key in (("truncated", "cut_off"), ("no_answer", "no_answer")):
        told[key] = [asdict(share(counts.get(outcome, 0), n)) for counts in told["outcomes"]]
    told["word_for_word"] = asdict(share(word_for_word(rollouts), n))
    return {**told, "ids": sorted(rollout.problem.id for rollout in rollouts)}


if __name__ == "__main__":
    sys.exit(main())
