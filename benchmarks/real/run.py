"""A real model before and after training, in so many minutes: base, then arm after arm.

    python benchmarks/real/run.py --model FOLDER --data FOLDER --minutes M [--arms base,score] [--seeds 0]
                                  [--task code|gsm8k|countdown] [--tuning full|lora|qlora]

--data: of task code a folder with mbpp.jsonl and HumanEval.jsonl.gz; of gsm8k one with train.* and test.*. The base
model is evaluated first, on two attempts: greedy; repair (its wrong greedy first attempts are given, to every arm the
same ones); and --samples of every problem at temperature 0.7. That measures the machine, and the rest of the minutes
is planned from it. Then each arm is trained on the first data set's training problems from the base model, for the same
number of updates and attempts, and evaluated. The same command goes on where a stopped one was; Ctrl-C stops after the
step under way.

In --output: summary.json (command, seed, versions, card, plan, every figure), page.md, units.jsonl (seconds of each
part of the evaluations), texts/ (each attempt's text and grade), arms/ (each step's numbers, texts and checkpoints).
--archive FILE.tar.gz holds all of that but the checkpoints, and is written anew after each unit and step.
"""
# ruff: noqa: E402

import time

BEGAN = time.monotonic()  # the minutes count from here: imports are part of them

import argparse
import json
import signal
import sys
import tarfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from arms import STAGE_ONE_SHARE, Arm, Plan, Start, peak
from evaluating import GREEDY, REPAIR, SAMPLED, Evaluating, Several, set_of
from page import page
from settings import DATA, SETTLED, config_of, parse, same_settings, settled_before

from selfcorrect.analysis.read import json_lines
from selfcorrect.config import TrainConfig
from selfcorrect.errors import UserError
from selfcorrect.models.language_model import LanguageModel
from selfcorrect.models.loading import load_model
from selfcorrect.models.sizing import with_sizes
from selfcorrect.models.weights import fingerprint
from selfcorrect.runs.checks import fitted
from selfcorrect.runs.folder import environment
from selfcorrect.samplers.transformers import TransformersSampler
from selfcorrect.tasks import make_task
from selfcorrect.types import SamplingParams

DECODINGS = (GREEDY, REPAIR, SAMPLED)
TRIED = 16  # prompts
BASELINES = ("single_turn", "multi_turn")  # what the other arms are held against, beside the base


@dataclass(slots=True)
class Clock:
    """The minutes, and whether someone asked to stop."""

    seconds: float
    stopped: bool = False

    def left(self) -> float:
        return -1.0 if self.stopped else self.seconds - (time.monotonic() - BEGAN)

    def stop(self, *_: object) -> None:
        if self.stopped:
            raise KeyboardInterrupt
        self.stopped = True
        print("stopping after what is under way; once more to stop at once", flush=True)


def main(arguments: list[str] | None = None) -> int:
    """Exit status 0; 2 with one line where something is missing or refused; 130 where someone stopped it at once."""
    options = parse(arguments, __doc__)
    clock = Clock(60 * options.minutes)
    before = {number: signal.signal(number, clock.stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        Session(options, clock).run()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped at once; the same command goes on from what was saved", file=sys.stderr)
        return 130
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return 0


class Session:
    """One call: what is measured, planned, done and kept."""

    def __init__(self, options: argparse.Namespace, clock: Clock) -> None:
        self.options, self.clock = options, clock
        self.output: Path = options.output
        self.output.mkdir(parents=True, exist_ok=True)
        self.runs = [(arm, seed) for seed in options.seeds for arm in options.arms]  # every arm once, then more seeds
        self.plan = Plan.read(self.output / "plan.json")
        if options.steps:
            self.plan.steps = options.steps
            self.plan.write()
        # Sizes are those of two attempts, which every arm is evaluated on, and the same for all arms of a folder.
        first = config_of(options, "score", options.seeds[0])
        sets = [config_of(options, "score", options.seeds[0], name).task for name in DATA[options.task]]
        self.task = Several([make_task(each) for each in sets])
        problems = self.task.held_out(options.problems)
        self.task.draw(1, 1, 0)
        self.task.grade([])  # the judges' processes are up, or say why not, before the model takes its time
        for note in self.task.notes:
            print(f"note: {note}", flush=True)
        self.lm = load_model(first.model)
        self.sizes = self._settled(first)
        self.model, self.precision = fingerprint(self.lm), str(self.lm.compute_dtype).removeprefix("torch.")
        lengths = {problem.id: len(self.lm.chat.first_prompt(problem.prompt)) for problem in problems}
        self.evaluating = Evaluating(
            self.task, problems, lengths, self.output, options.samples, options.temperature, options.eval_tokens,
            options.slots, 0,  # the same draws whichever seeds a call names
        )  # fmt: skip
        self._same_settings()
        self.say(f"{options.model} on {self.lm.device}, {self.lm.compute_dtype}; {len(problems)} problems")

    def run(self) -> None:
        """Base, plan, arms; whatever happens, what is there is summed up."""
        try:
            if not self.evaluating.notes():
                self._foretell()
            # Where there is something to train, the base's samples take no more than a part of the minutes.
            self.evaluate("base", self.lm, 0.0, 0.6 * self.clock.seconds if self.runs else 0.0)
            if self.runs:
                start = Start.of(self.lm)
                each = self._announce()
                for number, (arm, seed) in enumerate(self.runs):
                    if self.clock.left() <= 0:
                        self.say(f"not begun, or not gone on with, from {arm}-{seed} on: the time is over")
                        break
                    self._arm(arm, seed, start, each, len(self.runs) - number)
        finally:
            self.task.close()
            self.sum_up()

    def _foretell(self) -> None:
        """What a moment's sampling says of the base's evaluation, before that takes its time."""
        problems, options = self.evaluating.problems, self.options
        prompts = [self.lm.chat.first_prompt(problem.prompt) for problem in problems[:TRIED]]
        sampler, params = TransformersSampler(self.lm), SamplingParams(1.0, min(32, options.eval_tokens), 0)
        took = 0.0
        for _ in range(2):  # the second time counts
            began = time.monotonic()
            done = sampler.sample(prompts, params)
            took = time.monotonic() - began
        rate = sum(len(each.token_ids) for each in done) / took
        greedy, sampled = (len(problems) * each * options.eval_tokens / rate / 60 for each in (3, 2 * options.samples))
        self.say(
            f"{len(prompts)} rows write {rate:.0f} tokens a second: at the most, if every attempt runs to its limit, "
            f"the base's evaluation takes {greedy:.1f} minutes (greedy and repair) and {sampled:.1f} (samples) of "
            f"{options.minutes:g}; more rows at once are faster, and what is left trains"
        )

    def _settled(self, config: TrainConfig) -> dict[str, Any]:
        """What `auto` comes to: as the folder has it, since a card may have other memory free by another call."""
        settled, notes = fitted(with_sizes(config, {"optimizer": settled_before(self.output)}), self.lm, self.task)
        for note in notes:
            self.say(note)
        return {name: getattr(settled.optimizer, name) for name in SETTLED}

    def evaluate(self, name: str, lm: LanguageModel, first: float, sampled: float) -> None:
        """Greedy, repair, then samples, as far as the time goes; first, sampled: seconds of each kept for others."""
        for decoding, reserve in ((GREEDY, first), (REPAIR, first), (SAMPLED, sampled)):

            def over(need: float, kept: float = reserve + self.options.saving / 3) -> bool:
                return self.clock.left() < need + kept

            self.evaluating.run(name, decoding, lm, self.sum_up, over)

    def _announce(self) -> float:
        """Say what will fit; seconds of evaluation that each arm is to be left with."""
        greedy, repair, sampled = (1.15 * self._seconds("base", decoding) for decoding in DECODINGS)
        greedy += repair
        left, count = self.clock.left() - self.options.saving, len(self.runs)
        both = count * (greedy + sampled) < left / 2
        each = greedy + sampled if both else greedy
        self.say(
            f"{max(0.0, left):.0f} s are left for {count} runs: {each:.0f} s each for evaluating ("
            + ("greedy and sampled" if both else "greedy; samples only if time is left") + "), "
            f"{max(0.0, left / count - each - self.options.saving):.0f} s each for training"
        )  # fmt: skip
        return each

    def _arm(self, arm: str, seed: int, start: Start, each: float, runs_left: int) -> None:
        name = f"{arm}-{seed}"
        folder = self.output / "arms" / name
        # Everyone's share of what is left now, so that an early end serves those that follow.
        share = (self.clock.left() - self.options.saving) / runs_left
        end = self.clock.left() - max(0.0, share - each - self.options.saving)
        config = with_sizes(config_of(self.options, arm, seed), {"optimizer": self.sizes})
        training = Arm(arm, config, folder, self.plan, lambda: self.clock.left() - end, self.archive)
        if training.finished():
            if all(self.evaluating.done(name, decoding) for decoding in DECODINGS):
                return
            if not training.has_weights():  # taken out of an archive
                self.say(f"{name}: trained elsewhere, and not evaluated whole; without its weights it stays as it is")
                return
        folder.mkdir(parents=True, exist_ok=True)
        done = training.train(self.lm, start, self.task)
        self.say(f"{name}: {done} of {self.plan.steps} steps")
        torch.cuda.empty_cache()
        if done:
            others = (runs_left - 1) * share
            self.evaluate(name, self.lm, others, others)

    def _seconds(self, model: str, decoding: str) -> float:
        """What the units of a model took."""
        notes = self.evaluating.notes()
        return float(sum(row["seconds"] for row in notes if row["unit"].startswith(f"{model}.{decoding}.")))

    def _used(self) -> float:
        """Seconds of evaluating and training behind what is there, of every call that worked at it."""
        models, arms = self._models(), self.output / "arms"
        trained = sum(float(training_of(arms / name).get("seconds", 0.0)) for name in models)
        notes = self.evaluating.notes()
        return trained + sum(float(row["seconds"]) for row in notes if row["unit"].partition(".")[0] in models)

    def _models(self) -> list[str]:
        """Of this call, those of which texts are there."""
        names = ["base", *(f"{arm}-{seed}" for arm, seed in self.runs)]
        return [name for name in names if any((self.output / "texts").glob(f"{name}.*.gz"))]

    def _same_settings(self) -> None:
        """Raises UserError where the folder holds results of other settings: they would be mixed."""
        kept = (
            "task", "tuning", "problems", "samples", "temperature", "tokens", "eval_tokens", "rollouts", "slots",
            "rate", "beta1", "beta2", "alpha", "correction",
        )  # fmt: skip
        same_settings(
            self.output,
            {"model": self.model, "precision": self.precision, **{name: getattr(self.options, name) for name in kept},
             **self.sizes},
        )  # fmt: skip

    def sum_up(self) -> None:
        """summary.json, page.md and the archive, from the files that are there."""
        names = self._models()
        models = together(names)
        summary = {
            **environment(self.options.seeds[0]),
            "command": " ".join(["python benchmarks/real/run.py", *sys.argv[1:]]),
            "model": {"name": Path(self.options.model).name, "fingerprint": self.model, "precision": self.precision},
            "options": {
                key: str(value) if isinstance(value, Path) else value for key, value in vars(self.options).items()
            },
            "prompts": {
                "first": {set_of(problem): problem.prompt for problem in reversed(self.evaluating.problems)},
                "correction": self.task.correction_prompt(self.evaluating.problems[0]),
            },
            "minutes_used": round(self._used() / 60, 2),
            "plan": {
                "steps": self.plan.steps,
                "step_seconds": self.plan.step_seconds,
                "stage_one_share": STAGE_ONE_SHARE,
            },
            "sizes": self.sizes,
            "peak_memory_bytes": peak(),
            "evaluations": {name: self.evaluating.summary(*runs) for name, runs in models.items()},
            "against": {
                other: {name: self.evaluating.against(runs, there) for name, runs, there in held}
                for other, held in opponents(models).items()
            },
            "training": {name: training_of(self.output / "arms" / name) for name in names if name != "base"},
        }
        (self.output / "summary.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
        (self.output / "page.md").write_text(page(summary), encoding="utf-8")
        self.archive()

    def archive(self) -> None:
        """All results but the checkpoints in one file; the old one stays until the new one is whole."""
        target: Path | None = self.options.archive
        if target is None:
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f".{target.name}")
        with tarfile.open(partial, "w:gz", compresslevel=1) as out:
            out.add(self.output, arcname="real", filter=lambda item: None if "/checkpoints" in item.name else item)
        partial.replace(target)

    def say(self, text: str) -> None:
        print(f"[{time.monotonic() - BEGAN:.0f} s] {text}", flush=True)


def together(names: Iterable[str]) -> dict[str, list[str]]:
    """What is told of: each model by itself, then every arm of which several seeds are there, over all of them."""
    there = list(names)
    by_arm: dict[str, list[str]] = {}
    for name in there:
        by_arm.setdefault(name.rpartition("-")[0], []).append(name)
    several = {f"{arm}, {len(runs)} seeds": runs for arm, runs in by_arm.items() if len(runs) > 1}
    return {**{name: [name] for name in there}, **several}


def opponents(models: dict[str, list[str]]) -> dict[str, list[tuple[str, list[str], list[str]]]]:
    """What each is held against, by name: the base; single-turn, then multi-turn RL of the same seeds.

    Lists of (name, its runs, theirs); of two baselines the later is held against the earlier, not both ways.
    """
    found: dict[str, list[tuple[str, list[str], list[str]]]] = {"base": [], **{arm: [] for arm in BASELINES}}
    for name, runs in models.items():
        if name == "base":
            continue
        found["base"].append((name, runs, ["base"]))
        arm = runs[0].rpartition("-")[0]
        for other in BASELINES[: BASELINES.index(arm)] if arm in BASELINES else BASELINES:
            there = [f"{other}-{run.rpartition('-')[2]}" for run in runs]
            if all(run in models for run in there):
                found[other].append((name, runs, there))
    return found


def training_of(folder: Path) -> dict[str, Any]:
    """An arm's steps in short: rewards at both ends, seconds by part, tokens a second."""
    rows = json_lines(folder / "metrics.jsonl")
    if not rows:
        return {}
    parts: dict[str, float] = {}
    for row in rows:
        for part, seconds in row["seconds_by_part"].items():
            parts[part] = parts.get(part, 0.0) + seconds
    edge = max(1, len(rows) // 4)
    return {
        "steps": len(rows), "seconds": sum(row["seconds"] for row in rows), "seconds_by_part": parts,
        "completions": sum(row["completions"] for row in rows),
        "sampled_tokens": sum(row["sampled_tokens"] for row in rows),
        "rewards_first_quarter": _mean([row["rewards"] for row in rows[:edge]]),
        "rewards_last_quarter": _mean([row["rewards"] for row in rows[-edge:]]),
        "unchanged": [rows[0]["unchanged"], rows[-1]["unchanged"]],
        "kl_last": rows[-1]["kl"], "sampler_gap": max(row["sampler_gap"] for row in rows),
        "grader_failed": sum(row["grader_failed"] for row in rows), "skipped": sum(row["skipped"] for row in rows),
    }  # fmt: skip


def _mean(rows: list[list[float]]) -> list[float]:
    return [sum(column) / len(rows) for column in zip(*rows, strict=True)]


if __name__ == "__main__":
    sys.exit(main())
