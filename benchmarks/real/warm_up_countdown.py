"""A short supervised training on countdown, in conversations of two attempts, for a small pretrained model.

    python benchmarks/real/warm_up_countdown.py --model FOLDER --output FOLDER [--steps 200] [--batch 32] [--rate R]
                                                [--right-kept 0.35] [--wrong-kept 0.2]

As the lab's base model is made (src/selfcorrect/lab/corpus.py), in ordinary words: the steps of an attempt are true,
but may miss the target; the second attempt says first whether the one before was right, and then what it does about
it: of right ones a share of --right-kept is kept, of wrong ones --wrong-kept, by default as little as the lab's base
does. Each conversation is drawn anew, from problems of the training split alone, and both attempts are learned.
--output, which must be new, holds the model and warm_up.json: command, versions, the losses.
"""

import argparse
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from settings import COUNTDOWN, status_of
from warm_up import begun, config_of, finish, parser_of

from selfcorrect.config import CountdownConfig, LabBaseConfig
from selfcorrect.errors import UserError
from selfcorrect.lab.corpus import draw_attempts
from selfcorrect.learning.batching import make_batch
from selfcorrect.learning.policy import learning_rate
from selfcorrect.learning.training import Trainer
from selfcorrect.models.language_model import LanguageModel
from selfcorrect.models.loading import load_model
from selfcorrect.samplers.transformers import TransformersSampler
from selfcorrect.seeds import derive_seed
from selfcorrect.tasks.countdown import Countdown, split_of
from selfcorrect.tasks.countdown_generator import OPERATORS, draw_problems
from selfcorrect.types import Attempt, Completion, Grade, Outcome, Problem, Rollout

MIX = LabBaseConfig(kind="lab_base")  # how often the lab's attempts are solved, and copied
CHUNK = 256
Texts = tuple[str, str, bool, bool]  # both attempts, and whether each is right


def main(arguments: list[str] | None = None) -> int:
    """Exit status 0, or 2 with one line where something is missing or refused."""
    parser = parser_of(__doc__, steps=200, batch=32, rate=2e-4)
    parser.add_argument("--right-kept", type=float, default=MIX.right_copied, help="share of right first attempts")
    parser.add_argument("--wrong-kept", type=float, default=MIX.wrong_copied, help="share of wrong ones")
    options = parser.parse_args(arguments)
    return status_of(lambda: train(options))


def train(options: argparse.Namespace) -> None:
    """The whole of it. Raises UserError where something is missing or refused."""
    clock = begun(options)
    config = config_of(options, "countdown")
    assert isinstance(config.task, CountdownConfig)
    task = Countdown(config.task)
    lm = load_model(config.model)
    trainer, losses = Trainer(config, lm, None, TransformersSampler(lm), task), list[float]()
    mix = MIX.model_copy(update={"right_copied": options.right_kept, "wrong_copied": options.wrong_kept})
    shown = conversations(options.seed, mix, task, lm)
    for step in range(1, options.steps + 1):
        losses.append(learn(trainer, list(islice(shown, options.batch))))
        if step % 10 == 0:
            print(f"step {step}: loss {losses[-1]:.3f}, {clock():.0f} s", flush=True)
    finish(options, Path(__file__), lm, losses, clock, examples=options.steps * options.batch)


def learn(trainer: Trainer, traces: list[Rollout]) -> float:
    """One update: cross entropy of both attempts, the mean over all tokens. Returns it."""
    stage, optimizer = trainer.stage, trainer.config.optimizer
    rate = learning_rate(stage.learning_rate, trainer.progress.stage_step + 1, stage.steps, optimizer)
    tokens = sum(len(attempt.completion.token_ids) for trace in traces for attempt in trace.attempts)
    # The update divides by the number of rows; with this weight the loss is the mean over tokens.
    weights_BA = torch.full((len(traces), 2), len(traces) / tokens)
    batch = make_batch(traces, weights_BA, (0.0, 0.0), torch.ones(len(traces), dtype=torch.bool))
    update = trainer.update(batch, len(traces), rate, temperature=1.0)
    if update.skip_reason:
        raise UserError(f"step {trainer.progress.step + 1} gave no update: {update.skip_reason}; lower --rate")
    trainer.advance(update, None)
    return update.loss


def conversations(seed: int, mix: LabBaseConfig, task: Countdown, lm: LanguageModel) -> Iterator[Rollout]:
    """Two attempts at each of ever new training problems."""
    rng = np.random.default_rng(derive_seed(seed, "warm_up_countdown"))
    end = lm.tokenizer.eos_token_id

    def attempt(prompt_ids: tuple[int, ...], text: str, right: bool) -> Attempt:
        ids = (*lm.tokenizer(text, add_special_tokens=False).input_ids, end)
        grade = Grade(Outcome.CORRECT, 1.0) if right else Grade(Outcome.WRONG, 0.0)
        return Attempt(prompt_ids, Completion(ids, (0.0,) * len(ids), text, "stop"), grade)

    while True:
        for problem, (one, two, one_right, two_right) in drawn(rng, mix, task):
            first = attempt(lm.chat.first_prompt(problem.prompt), one, one_right)
            asked = lm.chat.next_prompt(
                first.prompt_ids, first.completion.token_ids, task.correction_prompt(problem)
            )  # fmt: skip
            yield Rollout(problem, (first, attempt(asked, two, two_right)))


def drawn(rng: np.random.Generator, mix: LabBaseConfig, task: Countdown) -> Iterator[tuple[Problem, Texts]]:
    """Some problems of the training split, and what is written of each."""
    draws = draw_problems(rng, CHUNK, COUNTDOWN["max_number"], COUNTDOWN["limit"])
    first_B, second_B = draw_attempts(rng, draws, mix)
    for row, (numbers, target) in enumerate(zip(draws.numbers_B3.tolist(), draws.target_B.tolist(), strict=True)):
        if split_of(tuple(numbers), target) != "train":
            continue
        problem = task.parse(f"{' '.join(map(str, numbers))} = {target}")
        one, two = (steps(draws.candidates.steps_BC8[row, index_B[row]]) for index_B in (first_B, second_B))
        one_right, two_right = (bool(draws.solved_BC[row, index_B[row]]) for index_B in (first_B, second_B))
        remark = f"{'Right' if one_right else 'Wrong'}. I {'keep' if one == two else 'change'} it."
        yield problem, (one, f"{remark}\n{two}", one_right, two_right)


def steps(numbers_8: np.ndarray) -> str:
    """The two steps of a candidate as text."""
    x, op1, y, r, u, op2, v, s = numbers_8.tolist()
    return f"{x} {OPERATORS[op1]} {y} = {r}\n{u} {OPERATORS[op2]} {v} = {s}"


if __name__ == "__main__":
    sys.exit(main())
