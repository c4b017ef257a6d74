"""A short supervised training on worked examples, for a model too small to keep to a task's form by itself.

    python benchmarks/real/warm_up.py --model FOLDER --data FOLDER --output FOLDER [--steps 150] [--batch 16] [--rate R]

--data: rows of GSM8K's shape (words.py makes some); its training rows alone are read. Each is one turn: the prompt that
run.py --task gsm8k gives, and what its `answer` works out, ended by the answer in the form that the prompt asks for.
Nothing is shown of a second attempt. --output holds the model and warm_up.json: command, versions, the losses.
"""

import argparse
import json
import random
import re
import sys
import time
from pathlib import Path

import torch
from settings import task_of

from selfcorrect.api import read_config
from selfcorrect.config import TrainConfig
from selfcorrect.errors import UserError
from selfcorrect.learning.batching import make_batch
from selfcorrect.learning.training import Trainer
from selfcorrect.models.loading import LanguageModel, load_model
from selfcorrect.models.sizing import sized
from selfcorrect.runs.folder import environment
from selfcorrect.samplers.transformers import TransformersSampler
from selfcorrect.tasks import make_task
from selfcorrect.tasks.files import read_rows
from selfcorrect.types import Attempt, Completion, Grade, Outcome, Problem, Rollout

LAST_LINE = re.compile(r"\s*#### *(\S+)\s*$")


def main(arguments: list[str] | None = None) -> int:
    """Exit status 0, or 2 with one line where something is missing or refused."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("model", "data", "output"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rate", type=float, default=5e-5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--precision", default="auto", choices=["auto", "float32", "bfloat16"])
    options = parser.parse_args(arguments, argparse.Namespace(correction=None))
    try:
        train(options)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def train(options: argparse.Namespace) -> None:
    """The whole of it."""
    began, output = time.monotonic(), Path(options.output)
    config = read_config(
        {
            "seed": options.seed, "model": {"path": options.model, "precision": options.precision},
            "task": task_of(options, "gsm8k"), "optimizer": {"warmup_steps": 10, "micro_batch": options.batch},
            "stages": [{"name": "warm_up", "objective": "single_turn", "steps": options.steps,
                        "learning_rate": options.rate}],
        }
    )  # fmt: skip
    assert isinstance(config, TrainConfig)
    task, lm = make_task(config.task), load_model(config.model)
    config, _ = sized(config, lm, 256)
    file = next(path for path in sorted(Path(options.data).iterdir()) if path.name.startswith("train."))
    examples = worked(task.load(str(file)), file, lm)
    trainer = Trainer(config, lm, None, TransformersSampler(lm), task)
    losses, draw = [], random.Random(options.seed)
    for step in range(1, options.steps + 1):
        rows = draw.sample(examples, options.batch)
        tokens = sum(len(row.attempts[0].completion.token_ids) for row in rows)
        # The update divides by the number of rows; with this weight the loss is the mean over tokens.
        weights_BA = torch.full((len(rows), 1), len(rows) / tokens)
        batch = make_batch(rows, weights_BA, (0.0,), torch.ones(len(rows), dtype=torch.bool))
        rate = options.rate * min(1.0, step / 10) * min(1.0, 2 * (1 - (step - 1) / options.steps))
        losses.append(trainer.update(batch, len(rows), rate, temperature=1.0).loss)
        if step % 10 == 0:
            print(f"step {step}: loss {losses[-1]:.3f}, {time.monotonic() - began:.0f} s", flush=True)
    task.close()
    lm.save(output)
    record = {
        **environment(options.seed), "command": " ".join(["python benchmarks/real/warm_up.py", *sys.argv[1:]]),
        "examples": len(examples), "losses": losses, "minutes": round((time.monotonic() - began) / 60, 2),
    }  # fmt: skip
    (output / "warm_up.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def worked(problems: list[Problem], file: Path, lm: LanguageModel) -> list[Rollout]:
    """Each problem with its own answer as the only attempt."""
    rows = read_rows(file)
    if len(rows) != len(problems):
        raise UserError(f"{file}: {len(rows) - len(problems)} rows state no answer; leave them out")
    found = []
    for problem, row in zip(problems, rows, strict=True):
        text = LAST_LINE.sub(r"\nFinal answer: \\boxed{\1}", row.text("answer"))
        ids = (*lm.tokenizer(text, add_special_tokens=False).input_ids, lm.tokenizer.eos_token_id)
        completion = Completion(ids, (0.0,) * len(ids), text, "stop")
        attempt = Attempt(lm.chat.first_prompt(problem.prompt), completion, Grade(Outcome.CORRECT, 1.0))
        found.append(Rollout(problem, (attempt,), 0, 0))
    return found


if __name__ == "__main__":
    sys.exit(main())
