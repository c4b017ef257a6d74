"""What a call of run.py is asked for, the settings of an arm that follow from it, and whether a folder has others."""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from arms import ARMS, Rates, stages

from selfcorrect.api import read_config
from selfcorrect.config import TrainConfig
from selfcorrect.errors import UserError

CODE_PROMPT = (
    "Write a Python program for this task. It must pass the tests. Reply with one block of code and nothing else.\n\n"
    "Task: {task}\nTests:\n{tests}"
)
COMPLETION_PROMPT = (
    "Complete this Python function. Reply with one block of code that holds all of it, imports included, and nothing "
    "else.\n\n```python\n{code}\n```"
)
MATH_PROMPT = "{problem}\nSay in a few words how you work it out. {final_form}"
MATH_CORRECTION = (
    "There may be a mistake in what you wrote. Check each number, put right what is wrong, and write the whole "
    "solution again. {final_form}"
)
# Small numbers and few words: a model of a hundred million weights tells them apart, and an attempt is 17 tokens.
COUNTDOWN: dict[str, Any] = {
    "max_number": 30, "limit": 60, "prompt": "Numbers: {numbers}. Target: {target}.",
    "correction_prompt": "Check your steps and write them again.",
}  # fmt: skip
DATA = {  # --data sets: what is trained on, then what else is evaluated on
    "code": ("mbpp", "humaneval"),
    "gsm8k": ("gsm8k",),
    "countdown": ("countdown",),
}
SETTLED = ("micro_batch", "gradient_checkpointing", "padding_free")  # of the optimizer section, where it says auto
SAVING = 25.0  # seconds kept for writing weights, loading them and the last summary
DRY = {
    "problems": 3, "samples": 2, "tokens": 12, "eval_tokens": 12, "rollouts": "2x2", "micro_batch": 2, "slots": 1500,
    "steps": 3, "saving": 0.0,
}  # fmt: skip


def parse(arguments: list[str] | None, about: str | None) -> argparse.Namespace:
    """Exits with argparse's message where an option is wrong."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", required=True, help="a folder of Hugging Face layout, or a hub name")
    add("--data", help="a folder with mbpp.jsonl and HumanEval.jsonl.gz, or with train.* and test.*; not for countdown")
    add("--minutes", type=float, required=True)
    add(
        "--task",
        default="code",
        choices=list(DATA),
        help="code: MBPP, and HumanEval beside it; gsm8k: rows of its shape; countdown: generated",
    )
    add("--tuning", default="full", choices=["full", "lora", "qlora"])
    add("--output", type=Path, default=Path("runs/real"))
    add("--archive", type=Path, help="a .tar.gz of the results, for taking them along")
    add("--arms", default="base,score", help=f"of base, {', '.join(ARMS)}")
    add("--seeds", type=int, nargs="+", default=[0])
    add("--steps", type=int, help="of each arm; by default as many as fit")
    add("--problems", type=int, default=1000, help="of each data set to evaluate on, at most")
    add("--samples", type=int, default=8, help="of each problem, besides the greedy one")
    add("--temperature", type=float, default=0.7, help="of these samples")
    add("--tokens", type=int, default=256, help="of an attempt, in training")
    add("--eval-tokens", type=int, default=384, help="of an attempt, in evaluation")
    add("--rollouts", default="16x8", help="of a step: problems x rollouts of each")
    add("--micro-batch", type=rows, default="auto", help="rollouts in one forward and backward; auto: as a run has it")
    add("--slots", type=int, default=900_000, help="tokens in the cache at once, in evaluation")
    for name, value in Rates().__dict__.items():
        add(f"--{name}", type=float, default=value, help="by default the paper's, for code (Table 5)")
    add("--correction", help="a correction prompt in place of the task's")
    add("--device", default="auto", choices=["auto", "cuda", "mps", "cpu"])
    add("--allow-unsandboxed", action="store_true", help="grade even where programs cannot be confined")
    add("--dry", action="store_true", help="everything once at a tiny size, to see that it runs")
    parser.set_defaults(saving=SAVING)
    options = parser.parse_args(arguments)
    if options.dry:
        parser.set_defaults(**DRY)
        options = parser.parse_args(arguments)
    options.arms = [name for name in options.arms.split(",") if name != "base"]
    if unknown := [name for name in options.arms if name not in ARMS]:
        parser.error(f"--arms: {unknown[0]} is none of base, {', '.join(ARMS)}")
    if options.data is None and options.task != "countdown":
        parser.error(f"--data: --task {options.task} needs a folder")
    return options


def status_of(deed: Callable[[], object]) -> int:
    """Exit status 0, or 2 with one line where something is missing or refused."""
    try:
        deed()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def rows(text: str) -> int | str:
    """Of --micro-batch: a number, or auto."""
    return text if text == "auto" else int(text)


def config_of(options: argparse.Namespace, arm: str, seed: int, dataset: str | None = None) -> TrainConfig:
    """The settings of an arm, checked as a recipe's are; dataset: by default the one that is trained on."""
    problems, _, group = options.rollouts.partition("x")
    rates = Rates(*(getattr(options, name) for name in Rates.__dataclass_fields__))
    config = read_config(
        {
            "name": f"{arm}-{seed}",
            "seed": seed,
            "model": {"path": options.model, "device": options.device, "tuning": options.tuning},
            "task": task_of(options, dataset or DATA[options.task][0]),
            "rollouts": {
                "problems_per_step": int(problems), "rollouts_per_problem": int(group),
                "max_new_tokens": options.tokens, "rows_at_once": 4096,
            },
            # The default warm-up of ten steps could be all the steps that there are.
            "optimizer": {"micro_batch": options.micro_batch, "warmup_steps": 2},
            "stages": stages(arm, rates),
        }
    )  # fmt: skip
    assert isinstance(config, TrainConfig)
    return config


def task_of(options: argparse.Namespace, dataset: str) -> dict[str, Any]:
    wording = {} if options.correction is None else {"correction_prompt": options.correction}
    if dataset == "countdown":
        return {"name": dataset, **COUNTDOWN, **wording}
    if dataset == "gsm8k":
        return {"name": "math", "dataset": dataset, "data": options.data, "prompt": MATH_PROMPT,
                "correction_prompt": MATH_CORRECTION, **wording}  # fmt: skip
    return {
        "name": "code", "dataset": dataset, "data": options.data, "shots": 0, "prompt": CODE_PROMPT,
        "completion_prompt": COMPLETION_PROMPT, "allow_unsandboxed": options.allow_unsandboxed, **wording,
    }  # fmt: skip


def settled_before(folder: Path) -> dict[str, Any]:
    """The sizes that a folder's results have; none where it has no results yet, or such as were made without."""
    file = folder / "settings.json"
    before = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    return {name: before[name] for name in SETTLED if name in before}


def same_settings(folder: Path, now: dict[str, Any]) -> None:
    """Keep the settings of what a folder will hold. Raises UserError where it holds results of other ones."""
    file = folder / "settings.json"
    if file.exists() and (before := json.loads(file.read_text(encoding="utf-8"))) != now:
        changed = [f"{key} = {before.get(key)!r}, now {now[key]!r}" for key in now if before.get(key) != now[key]]
        raise UserError(f"{folder} was begun with {'; '.join(changed)}; choose another --output")
    folder.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(now, indent=1) + "\n", encoding="utf-8")
