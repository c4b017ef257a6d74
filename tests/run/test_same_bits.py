"""The same code, seed, machine and threads give the same bits, however busy the cores are."""

import hashlib
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from selfcorrect.config.shipped import shipped_recipe
from selfcorrect.learning.batching import make_batch
from selfcorrect.learning.training import Trainer
from selfcorrect.models.loading import load_model
from selfcorrect.models.weights import weights
from selfcorrect.rollout import play
from selfcorrect.runs.checks import fitted
from selfcorrect.runs.recipes import train_config
from selfcorrect.samplers.transformers import TransformersSampler
from selfcorrect.tasks import make_task
from selfcorrect.types import SamplingParams


@pytest.fixture
def two_threads() -> Iterator[None]:
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)


@contextmanager
def busy_cores() -> Iterator[None]:
    work = [sys.executable, "-c", "import time; end = time.time() + 3600\nwhile time.time() < end: pass"]
    others = [subprocess.Popen(work) for _ in range(2)]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


def demo_trainer(*overrides: str) -> Trainer:
    config = train_config(shipped_recipe("demo"), *overrides)
    assert config.model.precision == "float32"
    assert config.threads == 2
    lm, task = load_model(config.model), make_task(config.task)
    config, _ = fitted(config, lm, task)
    return Trainer(config, lm, lm.frozen_copy(), TransformersSampler(lm), task)


@pytest.mark.usefixtures("two_threads")
@pytest.mark.nightly
def test_a_gradient_has_no_order_of_its_own() -> None:
    """Attempts of many lengths: rows of one prompt then stand in the shares of both threads, and add to its gradient."""
    trainer = demo_trainer()
    drawn = trainer.task.draw(1, 8, 0)
    problems = [problem for problem in drawn for _ in range(12)]
    rollouts = play(problems, trainer.task, trainer.sampler, trainer.lm.chat, SamplingParams(1.5, 16, 0), 2)
    advantages_BA = torch.randn(96, 2, generator=torch.Generator().manual_seed(0))
    batch = make_batch(rollouts, advantages_BA, (0.1, 0.1), torch.ones(96, dtype=torch.bool))
    found = set()
    for _ in range(8):
        trainer.update(batch, 96, rate=0.0, temperature=1.5)
        digest = hashlib.sha256()
        for parameter in trainer.lm.parameters():
            digest.update(torch.as_tensor(parameter.grad).numpy().tobytes())
        found.add(digest.hexdigest())
    assert len(found) == 1


def steps(count: int) -> list[tuple[str, ...]]:
    """Of each of the demo's first steps what was sampled, loss, gradient norm and weights, to the bit."""
    trainer = demo_trainer()
    rows: list[tuple[str, ...]] = []
    for _ in range(count):
        result = trainer.train_step()
        sampled = [attempt.completion.token_ids for rollout in result.rollouts for attempt in rollout.attempts]
        digest = hashlib.sha256(repr(sampled).encode())
        for tensor in weights(trainer.lm).values():
            digest.update(tensor.numpy().tobytes())
        rows.append((result.loss.hex(), result.grad_norm.hex(), digest.hexdigest()))
    return rows


@pytest.mark.nightly
@pytest.mark.alone
@pytest.mark.usefixtures("two_threads")
def test_the_demo_begins_alike_on_idle_and_on_busy_cores() -> None:
    alone = steps(150)
    with busy_cores():
        assert steps(150) == alone
