"""optimizer.compile: the same update, compiled once for all layers and lengths, and nothing left behind."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch._dynamo.utils import counters

from selfcorrect.errors import ConfigError
from selfcorrect.learning.batching import Batch
from selfcorrect.learning.training import Trainer
from selfcorrect.models import fused
from selfcorrect.models.language_model import LanguageModel
from selfcorrect.runs.checks import check_updates
from selfcorrect.samplers.transformers import TransformersSampler
from selfcorrect.tasks import make_task
from tests.support.runs import config
from tests.support.tiny import tiny_lm


@pytest.fixture
def compiled_by(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """Traces and guards as always, kernels of none."""
    torch._dynamo.reset()
    fused._compiled.cache_clear()
    counters.clear()
    monkeypatch.setattr(fused, "backend", "eager")
    yield monkeypatch
    fused._compiled.cache_clear()


def trainer(lm: LanguageModel, *, compiled: bool, packed: bool = True) -> Trainer:
    how = {"compile": compiled, "padding_free": packed, "gradient_checkpointing": True, "micro_batch": 4}
    settings = config(Path("unused"), Path("unused"), optimizer={"max_grad_norm": 1e9, "warmup_steps": 0, **how})
    return Trainer(settings, lm, lm.frozen_copy(), TransformersSampler(lm), make_task(settings.task))


def rollouts(lengths: list[int]) -> Batch:
    """Of one attempt each, after prompts of five tokens."""
    rows, width, generator = len(lengths), max(lengths) + 5, torch.Generator().manual_seed(sum(lengths))
    place_BT = torch.arange(width).expand(rows, -1)
    length_B = torch.tensor(lengths) + 5
    trained_BT = (place_BT >= 5) & (place_BT < length_B[:, None])
    ids_BT = torch.randint(1, 25, (rows, width), generator=generator)
    ids_BT[:, :5] = ids_BT[0, :5]  # one problem's
    advantages_BT = torch.randn(rows, 1, generator=generator) * trained_BT
    fields = {
        "token_ids_BT": ids_BT, "attempt_BT": trained_BT.long(), "length_B": length_B, "advantages_BT": advantages_BT,
        "kl_coef_BT": 0.3 * trained_BT, "sampler_logprobs_BT": torch.zeros(rows, width),
    }  # fmt: skip
    assert fields.keys() == {field.name for field in dataclasses.fields(Batch)}
    return Batch(**fields)


def gradients(of: Trainer, batch: Batch) -> list[torch.Tensor]:
    of.update(batch, rollouts=len(batch.length_B), rate=0.0, temperature=1.0)
    return [torch.as_tensor(weight.grad).clone() for weight in of.lm.parameters()]


def test_the_update_is_the_same_and_compiles_once(compiled_by: pytest.MonkeyPatch) -> None:
    """For all layers and lengths; layers run again in the backward pass, which has to meet what was compiled."""
    lm = tiny_lm("qwen2", seed=0)
    plain, compiled = trainer(lm, compiled=False), trainer(lm, compiled=True)
    for lengths in ([9, 14, 11, 20, 8, 13], [17, 6, 12, 10, 23, 7], [5, 5, 9, 31, 4, 8]):
        batch = rollouts(lengths)
        expected, found = gradients(plain, batch), gradients(compiled, batch)
        assert all(torch.equal(one, other) for one, other in zip(expected, found, strict=True))
        made = counters["stats"]["unique_graphs"]
        # Norms and gated units, each with gradients and without; a tile forward and backward.
        assert made == 6, f"{made} compiled by rollouts of {lengths}"
    assert not counters["graph_break"]
    assert not any("forward" in vars(module) for module in lm.model.modules())


@pytest.mark.nightly
@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("architecture", ["llama", "qwen2", "gemma3", "gpt2"])
def test_kernels_compute_the_same(compiled_by: pytest.MonkeyPatch, architecture: str, packed: bool) -> None:
    compiled_by.setattr(fused, "backend", "inductor")
    lm = tiny_lm(architecture, seed=0)
    packed = packed and architecture != "gemma3"
    for lengths in ([9, 14, 11, 20, 8, 13], [17, 6, 12, 10, 23, 7]):
        expected, found = (
            gradients(trainer(lm, compiled=compiled, packed=packed), rollouts(lengths)) for compiled in (False, True)
        )
        for one, other in zip(expected, found, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4 * float(one.abs().max()))


def test_no_compiler_is_told(compiled_by: pytest.MonkeyPatch) -> None:
    compiled_by.setattr(fused, "backend", "none_such")
    lm = tiny_lm("llama")
    in_memory = dataclasses.replace(lm, device=torch.device("meta"))  # of shards that go to a card
    optimizer = trainer(lm, compiled=True).config.optimizer
    told = r"^optimizer.compile = true: torch.compile fails here \(.*none_such.*set false$"
    for each in (lm, in_memory):
        with pytest.raises(ConfigError, match=told):
            check_updates(optimizer, each)
    compiled_by.setattr(fused, "backend", "eager")
    fused._compiled.cache_clear()
    check_updates(optimizer, in_memory)
    assert not any("forward" in vars(module) for module in lm.model.modules())
    assert fused.fusible(print) is print
