"""A short supervised training on worked examples, for a model too small to keep to a task's form by itself.

    python benchmarks/real/warm_up.py --model FOLDER --data FOLDER --output FOLDER [--steps 120] [--batch 16] [--rate R]
                                      [--second N]

--data: rows of GSM8K's shape (words.py makes some); its training rows alone are read. Each is one turn: the prompt that
run.py --task gsm8k gives, and what its `answer` works out, ended by the answer in the form that the prompt asks for.
Nothing is shown of a second attempt, unless by --second N, for a model that was warmed up before: besides each row's
example, N of the rows are shown with a first attempt that the model itself samples at temperature 1, right or wrong,
the question for a second one, and the worked example as its answer. --output, which must be new, holds the model and
warm_up.json: command, versions, the losses. A call that is stopped leaves nothing.
"""

import argparse
import json
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import repeat
from pathlib import Path
from typing import Any

import torch
from settings import status_of, task_of

from selfcorrect.api import read_config
from selfcorrect.config import MathConfig, TrainConfig
from selfcorrect.errors import UserError
from selfcorrect.learning.supervised import Collection, supervised_step
from selfcorrect.learning.training import Trainer
from selfcorrect.models.language_model import LanguageModel
from selfcorrect.models.loading import load_model
from selfcorrect.rollout import play
from selfcorrect.runs.checkpoint import atomic_folder
from selfcorrect.runs.checks import fitted
from selfcorrect.runs.folder import environment
from selfcorrect.samplers.transformers import TransformersSampler
from selfcorrect.seeds import derive_seed
from selfcorrect.tasks.files import Row
from selfcorrect.tasks.math import MathTask
from selfcorrect.tasks.sources import rows_of_folder
from selfcorrect.types import Attempt, Completion, Grade, Outcome, Rollout, SamplingParams

ROWS = 64
LAST_LINE = re.compile(r"\s*#### *(\S+)\s*$")


def main(arguments: list[str] | None = None) -> int:
    """Exit status 0, or 2 with one line where something is missing or refused."""
    parser = parser_of(__doc__, steps=120, batch=16, rate=5e-5)
    parser.add_argument("--data", required=True)
    parser.add_argument("--second", type=int, default=0, metavar="N", help="rows shown with a second attempt as well")
    options = parser.parse_args(arguments)
    return status_of(lambda: train(options))


def parser_of(about: str | None, *, steps: int, batch: int, rate: float) -> argparse.ArgumentParser:
    """The options that every warm-up has, with its defaults."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("model", "output"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--steps", type=int, default=steps)
    parser.add_argument("--batch", type=int, default=batch)
    parser.add_argument("--rate", type=float, default=rate)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--precision", default="auto", choices=["auto", "float32", "bfloat16"])
    parser.set_defaults(correction=None)  # task_of asks for it
    return parser


def train(options: argparse.Namespace) -> None:
    """The whole of it. Raises UserError where something is missing or refused."""
    clock = begun(options)
    config = config_of(options, "gsm8k")
    assert isinstance(config.task, MathConfig)
    task = MathTask(config.task)
    rows = rows_of_folder(options.data, {"train": ("train",)}, needed=("train",))["train"]
    lm = load_model(config.model)
    config, _ = fitted(config, lm, task)
    trainer, losses = Trainer(config, lm, None, TransformersSampler(lm), task), list[float]()
    shown = [worked(row, task, lm) for row in rows]
    firsts = sampled(shown[: options.second], trainer)
    examples = Collection(1, [*shown, *map(second, firsts, shown, repeat(trainer))], len(firsts))
    for step in range(1, options.steps + 1):
        result = supervised_step(trainer, examples)
        trainer.check_health(result)
        losses.append(result.loss)
        if step % 10 == 0:
            print(f"step {step}: loss {result.loss:.3f}, {clock():.0f} s", flush=True)
    outcomes = Counter(each.attempts[0].grade.outcome.value for each in firsts)
    finish(options, Path(__file__), lm, losses, clock, examples=len(rows), first_attempts=outcomes)


def begun(options: argparse.Namespace) -> Callable[[], float]:
    """Seconds since now. Raises UserError where --output is there."""
    if Path(options.output).exists():
        raise UserError(f"--output {options.output} is there already; choose another")
    began = time.monotonic()
    return lambda: time.monotonic() - began


def finish(
    options: argparse.Namespace, script: Path, lm: LanguageModel, losses: list[float], clock: Callable[[], float],
    **more: Any,
) -> None:  # fmt: skip
    """The model and how it was made, in --output."""
    record = {
        **environment(options.seed), "command": " ".join([f"python benchmarks/real/{script.name}", *sys.argv[1:]]),
        **more, "losses": losses, "minutes": round(clock() / 60, 2),
    }  # fmt: skip
    with atomic_folder(Path(options.output)) as folder:
        lm.save(folder, torch.float32)
        (folder / "warm_up.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def config_of(options: argparse.Namespace, dataset: str) -> TrainConfig:
    """The settings, checked as a recipe's are. The stage is Pair-SFT's: cross entropy of the last attempt's tokens."""
    stage = {"name": "warm_up", "objective": "pair_sft", "steps": options.steps, "batch": options.batch,
             "learning_rate": options.rate}  # fmt: skip
    config = read_config(
        {
            "seed": options.seed, "model": {"path": options.model, "precision": options.precision},
            "task": task_of(options, dataset), "rollouts": {"max_new_tokens": 96},
            "optimizer": {"schedule": "linear", "micro_batch": options.batch}, "stages": [stage],
        }
    )  # fmt: skip
    assert isinstance(config, TrainConfig)
    return config


def worked(row: Row, task: MathTask, lm: LanguageModel) -> Rollout:
    """A problem with its own answer as the only attempt. Raises DataError where the row states none."""
    answer = row.text("answer")
    if not (last := LAST_LINE.search(answer)):
        raise row.wrong("answer", "has no last line `#### ANSWER`, as GSM8K's have; add it, or leave the row out")
    problem = task.problem(row.text("question"), {"answer": last[1]}, row.where)
    text = LAST_LINE.sub(r"\nFinal answer: \\boxed{\1}", answer)
    ids = (*lm.tokenizer(text, add_special_tokens=False).input_ids, lm.tokenizer.eos_token_id)
    completion = Completion(ids, (0.0,) * len(ids), text, "stop")
    attempt = Attempt(lm.chat.first_prompt(problem.prompt), completion, Grade(Outcome.CORRECT, 1.0))
    return Rollout(problem, (attempt,))


def sampled(shown: Sequence[Rollout], trainer: Trainer) -> list[Rollout]:
    """A first attempt of the model's own at each of these rows' problems, ROWS at once."""
    config, firsts = trainer.config, list[Rollout]()
    try:
        for start in range(0, len(shown), ROWS):
            problems = [each.problem for each in shown[start : start + ROWS]]
            params = SamplingParams(1.0, config.rollouts.max_new_tokens, derive_seed(config.seed, "firsts", start))
            firsts += play(problems, trainer.task, trainer.sampler, trainer.lm.chat, params, 1)
    finally:
        trainer.task.close()
    return firsts


def second(first: Rollout, shown: Rollout, trainer: Trainer) -> Rollout:
    """A sampled first attempt, which is not learned, the question for another, and the worked example in answer."""
    (attempt,), (example,) = first.attempts, shown.attempts
    asked = trainer.task.correction_prompt(first.problem)
    prompt_ids = trainer.lm.chat.next_prompt(attempt.prompt_ids, attempt.completion.token_ids, asked)
    return replace(first, attempts=(replace(attempt, sampled=False), replace(example, prompt_ids=prompt_ids)))


if __name__ == "__main__":
    sys.exit(main())
