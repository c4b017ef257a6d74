"""A real model on MBPP and HumanEval, before and after training, in so many minutes: base, then arm after arm.

    python benchmarks/real/run.py --model FOLDER --data FOLDER --minutes M [--arms base,score] [--seeds 0]

--data: a folder with mbpp.jsonl and HumanEval.jsonl.gz. The base model is evaluated first (two attempts: greedy, and
--samples of every problem at temperature 0.7); that measures the machine, and the rest of the minutes is planned from
it. Then each arm is trained on MBPP's training problems from the base model, with full tuning, for the same number of
updates and attempts, and evaluated. The same command goes on where a stopped one was; Ctrl-C stops after the step under
way.

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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from arms import ARMS, STAGE_ONE_SHARE, Arm, Plan, peak, stages
from evaluating import GREEDY, SAMPLED, Evaluating, Several
from page import page

from selfcorrect.api import read_config
from selfcorrect.config import TrainConfig
from selfcorrect.errors import UserError
from selfcorrect.models.loading import LanguageModel, load_model
from selfcorrect.models.weights import fingerprint
from selfcorrect.runs.checks import check_context
from selfcorrect.runs.folder import environment
from selfcorrect.tasks import make_task

PROMPT = (
    "Write a Python program for this task. It must pass the tests. Reply with one block of code and nothing else.\n\n"
    "Task: {task}\nTests:\n{tests}"
)
COMPLETION_PROMPT = (
    "Complete this Python function. Reply with one block of code that holds all of it, imports included, and nothing "
    "else.\n\n```python\n{code}\n```"
)
SAVING = 25.0  # seconds kept for writing weights, loading them and the last summary
DRY = {
    "problems": 3, "samples": 2, "tokens": 12, "eval_tokens": 12, "rollouts": "2x2", "micro_batch": 2, "slots": 1500,
    "steps": 3, "saving": 0.0,
}  # fmt: skip


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
    """Exit status 0, or 2 with one line where something is missing or refused."""
    options = parse(arguments)
    clock = Clock(60 * options.minutes)
    before = {number: signal.signal(number, clock.stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        Session(options, clock).run()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return 0


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a folder of Hugging Face layout, or a hub name")
    parser.add_argument("--data", required=True, help="a folder with mbpp.jsonl and HumanEval.jsonl.gz")
    parser.add_argument("--minutes", type=float, required=True)
    parser.add_argument("--output", type=Path, default=Path("runs/real"))
    parser.add_argument("--archive", type=Path, help="a .tar.gz of the results, for taking them along")
    parser.add_argument("--arms", default="base,score", help=f"of base, {', '.join(ARMS)}")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--steps", type=int, help="of each arm; by default as many as fit")
    parser.add_argument("--problems", type=int, default=1000, help="of each data set to evaluate on, at most")
    parser.add_argument("--samples", type=int, default=8, help="of each problem, besides the greedy one")
    parser.add_argument("--temperature", type=float, default=0.7, help="of these samples")
    parser.add_argument("--tokens", type=int, default=256, help="of an attempt, in training")
    parser.add_argument("--eval-tokens", type=int, default=384, help="of an attempt, in evaluation")
    parser.add_argument("--rollouts", default="16x8", help="of a step: problems x rollouts of each")
    parser.add_argument("--micro-batch", type=int, default=8, help="rollouts in one forward and backward")
    parser.add_argument("--slots", type=int, default=900_000, help="tokens in the cache at once, in evaluation")
    parser.add_argument("--device", default="auto", choices=["auto", "cuda", "mps", "cpu"])
    parser.add_argument("--allow-unsandboxed", action="store_true", help="grade even where programs cannot be confined")
    parser.add_argument("--dry", action="store_true", help="everything once at a tiny size, to see that it runs")
    parser.set_defaults(saving=SAVING)
    options = parser.parse_args(arguments)
    if options.dry:
        parser.set_defaults(**DRY)
        options = parser.parse_args(arguments)
    options.arms = [name for name in options.arms.split(",") if name != "base"]
    if unknown := [name for name in options.arms if name not in ARMS]:
        parser.error(f"--arms: {unknown[0]} is none of base, {', '.join(ARMS)}")
    return options


def config_of(options: argparse.Namespace, arm: str, seed: int) -> TrainConfig:
    """The settings of an arm, checked as a recipe's are."""
    problems, _, group = options.rollouts.partition("x")
    config = read_config(
        {
            "name": f"{arm}-{seed}",
            "seed": seed,
            "model": {"path": options.model, "device": options.device},
            "task": task_of(options, "mbpp"),
            "rollouts": {
                "problems_per_step": int(problems), "rollouts_per_problem": int(group),
                "max_new_tokens": options.tokens, "rows_at_once": 4096,
            },
            # The default warm-up of ten steps could be all the steps that there are.
            "optimizer": {"micro_batch": options.micro_batch, "warmup_steps": 2},
            "stages": stages(arm),
        }
    )  # fmt: skip
    assert isinstance(config, TrainConfig)
    return config


def task_of(options: argparse.Namespace, dataset: str) -> dict[str, Any]:
    return {
        "name": "code", "dataset": dataset, "data": options.data, "shots": 0, "prompt": PROMPT,
        "completion_prompt": COMPLETION_PROMPT, "allow_unsandboxed": options.allow_unsandboxed,
    }  # fmt: skip


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
        first = config_of(options, self.runs[0][0] if self.runs else "score", options.seeds[0])
        mbpp = make_task(first.task)
        evaluated = read_config({**first.model_dump(mode="json"), "task": task_of(options, "humaneval")})
        assert isinstance(evaluated, TrainConfig)
        self.task = Several([mbpp, make_task(evaluated.task)])
        problems = self.task.held_out(options.problems)
        self.task.draw(1, 1, 0)
        self.task.grade([])  # the judges' processes are up, or say why not, before the model takes its time
        for note in self.task.notes:
            print(f"note: {note}", flush=True)
        self.lm = load_model(first.model)
        check_context(first, self.lm, self.task, self.task.longest())
        self.model = fingerprint(self.lm)
        lengths = {problem.id: len(self.lm.chat.first_prompt(problem.prompt)) for problem in problems}
        self.evaluating = Evaluating(
            self.task, problems, lengths, self.output, options.samples, options.temperature, options.eval_tokens,
            options.slots, options.seeds[0],
        )  # fmt: skip
        self._same_settings()
        self.say(f"{options.model} on {self.lm.device}, {self.lm.compute_dtype}; {len(problems)} problems")

    def run(self) -> None:
        """Base, plan, arms; whatever happens, what is there is summed up."""
        try:
            # Where there is something to train, the base's samples take no more than a part of the minutes.
            self.evaluate("base", self.lm, 0.0, 0.6 * self.clock.seconds if self.runs else 0.0)
            if self.runs:
                reference = self.lm.frozen_copy()
                each = self._announce()
                for number, (arm, seed) in enumerate(self.runs):
                    self._arm(arm, seed, reference, each, len(self.runs) - number)
        finally:
            self.task.close()
            self.sum_up()

    def evaluate(self, name: str, lm: LanguageModel, *reserves: float) -> None:
        """Greedy, then samples, as far as the time goes; reserves: seconds of each that are for others."""
        for decoding, reserve in zip((GREEDY, SAMPLED), reserves, strict=True):

            def over(need: float, kept: float = reserve + self.options.saving / 3) -> bool:
                return self.clock.left() < need + kept

            self.evaluating.run(name, decoding, lm, self.sum_up, over)

    def _announce(self) -> float:
        """Say what will fit; seconds of evaluation that each arm is to be left with."""
        greedy, sampled = (1.15 * self._seconds("base", decoding) for decoding in (GREEDY, SAMPLED))
        left, count = self.clock.left() - self.options.saving, len(self.runs)
        both = count * (greedy + sampled) < left / 2
        each = greedy + sampled if both else greedy
        self.say(
            f"{max(0.0, left):.0f} s are left for {count} runs: {each:.0f} s each for evaluating ("
            + ("greedy and sampled" if both else "greedy; samples only if time is left") + "), "
            f"{max(0.0, left / count - each - self.options.saving):.0f} s each for training"
        )  # fmt: skip
        return each

    def _arm(self, arm: str, seed: int, reference: LanguageModel, each: float, runs_left: int) -> None:
        name = f"{arm}-{seed}"
        folder = self.output / "arms" / name
        # Everyone's share of what is left now, so that an early end serves those that follow.
        share = (self.clock.left() - self.options.saving) / runs_left
        end = self.clock.left() - max(0.0, share - each - self.options.saving)
        training = Arm(
            arm, config_of(self.options, arm, seed), folder, self.plan, lambda: self.clock.left() - end, self.archive
        )
        if training.finished() and all(self.evaluating.done(name, decoding) for decoding in (GREEDY, SAMPLED)):
            return
        folder.mkdir(parents=True, exist_ok=True)
        done = training.train(self.lm, reference, self.task)
        self.say(f"{name}: {done} of {self.plan.steps} steps")
        torch.cuda.empty_cache()
        if done:
            others = (runs_left - 1) * share
            self.evaluate(name, self.lm, others, others)

    def _seconds(self, model: str, decoding: str) -> float:
        """What the units of a model took."""
        file = self.output / "units.jsonl"
        rows = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
        return float(sum(row["seconds"] for row in rows if row["unit"].startswith(f"{model}.{decoding}.")))

    def _same_settings(self) -> None:
        """Raises UserError where the folder holds results of other settings: they would be mixed."""
        kept = ("problems", "samples", "temperature", "tokens", "eval_tokens", "rollouts", "slots")
        now = {"model": self.model, **{name: getattr(self.options, name) for name in kept}}
        file = self.output / "settings.json"
        if file.exists() and (before := json.loads(file.read_text())) != now:
            changed = [f"{key} = {before.get(key)!r}, now {now[key]!r}" for key in now if before.get(key) != now[key]]
            raise UserError(f"{self.output} was begun with {'; '.join(changed)}; choose another --output")
        file.write_text(json.dumps(now, indent=1) + "\n")

    def sum_up(self) -> None:
        """summary.json, page.md and the archive, from the files that are there."""
        names = [f"{arm}-{seed}" for arm, seed in self.runs]
        models = {name: found for name in ["base", *names] if (found := self.evaluating.summary(name))}
        summary = {
            **environment(self.options.seeds[0]),
            "command": " ".join(["python benchmarks/real/run.py", *sys.argv[1:]]),
            "model": {"name": Path(self.options.model).name, "fingerprint": self.model},
            "options": {
                key: str(value) if isinstance(value, Path) else value for key, value in vars(self.options).items()
            },
            "prompts": {
                "mbpp": PROMPT,
                "humaneval": COMPLETION_PROMPT,
                "correction": self.task.correction_prompt(self.evaluating.problems[0]),
            },
            "minutes_used": round((time.monotonic() - BEGAN) / 60, 2),
            "plan": {
                "steps": self.plan.steps,
                "step_seconds": self.plan.step_seconds,
                "stage_one_share": STAGE_ONE_SHARE,
            },
            "peak_memory_bytes": peak(),
            "evaluations": models,
            "against_base": {name: self.evaluating.against(name, "base") for name in models if name != "base"},
            "training": {name: training_of(self.output / "arms" / name) for name in names if name in models},
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


def training_of(folder: Path) -> dict[str, Any]:
    """An arm's steps in short: rewards at both ends, seconds by part, tokens a second."""
    file = folder / "metrics.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
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
