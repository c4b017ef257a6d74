"""The same promises on an accelerator; run by `make gpu-check`."""

import json
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Tensor

import selfcorrect
from selfcorrect.config import CountdownConfig, LabBaseConfig, ModelConfig
from selfcorrect.lab.base import CORRECTION, PROMPT, build_model, build_tokenizer
from selfcorrect.learning.batching import make_batch
from selfcorrect.learning.losses import token_loss
from selfcorrect.learning.policy import trained_states
from selfcorrect.learning.vocabulary import Tiles, score
from selfcorrect.models import packed
from selfcorrect.models.head import Head, States
from selfcorrect.models.language_model import LanguageModel
from selfcorrect.models.loading import load_model, wrap
from selfcorrect.rollout import play
from selfcorrect.samplers.transformers import TransformersSampler
from selfcorrect.tasks.countdown import Countdown
from selfcorrect.types import Rollout, SamplingParams
from tests.oracles import test_enumeration as oracle
from tests.oracles.toy import OBJECTIVES

Accelerator = Literal["cuda", "mps"]
ACCELERATOR: Accelerator | None = (
    "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else None
)
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not ACCELERATOR, reason="no accelerator on this machine")]


@pytest.fixture
def small() -> LanguageModel:
    config = LabBaseConfig(kind="lab_base", hidden_size=64, heads=2, layers=2)
    tokenizer = build_tokenizer(config.task.limit)
    return wrap(build_model(config, tokenizer).to(ACCELERATOR or "cpu"), tokenizer)


def played(lm: LanguageModel, temperature: float) -> list[Rollout]:
    task = Countdown(CountdownConfig(prompt=PROMPT, correction_prompt=CORRECTION))
    problems = [task.parse(text) for text in ("30 7 2 = 39", "9 8 7 = 10", "50 4 3 = 38")]
    params = SamplingParams(temperature, 24, 5)
    return play([p for p in problems for _ in range(4)], task, TransformersSampler(lm), lm.chat, params, 3)


@pytest.mark.skipif(ACCELERATOR == "mps", reason="no float64 there")
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_enumeration_on_the_accelerator(objective: str) -> None:
    """Oracle 1's gradient on the device, against the one whose expectation is proved exact on the CPU."""
    toy = oracle.toy_named("tempered")
    batch = oracle.weighted_batch(toy, objective)
    context_BT = oracle.contexts_of(toy, batch)
    on_cpu = oracle.piece_gradient(toy, batch, "analytic")
    moved = batch.to(ACCELERATOR or "cpu")
    logits_CV = toy.logits_CV.to(ACCELERATOR or "cpu").requires_grad_()
    rows_N = context_BT.to(ACCELERATOR or "cpu")[moved.attempt_BT > 0]
    both = States(logits_CV[rows_N]), States(toy.ref_logits_CV.to(ACCELERATOR or "cpu")[rows_N])
    result = token_loss(*both, moved, toy.temperature)
    (gradient_CV,) = torch.autograd.grad(result.loss_B.sum(), logits_CV)
    torch.testing.assert_close(-gradient_CV.cpu(), on_cpu, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_pass_over_the_vocabulary_on_the_accelerator(dtype: torch.dtype) -> None:
    """Values and gradients as on the CPU, over many tiles; under bfloat16 their sums are float32 on both."""
    generator, device = torch.Generator().manual_seed(0), ACCELERATOR or "cpu"
    hidden_2ND, weight_2VD = (torch.randn(2, rows, 64, generator=generator) / 2 for rows in (300, 5000))
    ids_N = torch.randint(5000, (300,), generator=generator)

    def found(where: str) -> list[Tensor]:
        hidden_ND, weight_VD = hidden_2ND[0].to(where).requires_grad_(), weight_2VD[0].to(where).requires_grad_()
        policy = States(hidden_ND.to(dtype), Head(weight_VD))
        reference = States(hidden_2ND[1].to(where, dtype), Head(weight_2VD[1].to(where)))
        logprobs_N, kl_N = score(policy, reference, ids_N.to(where), 0.7, "analytic", Tiles(1 << 15, 1 << 8, 0))
        gradients = torch.autograd.grad(logprobs_N.sum() + kl_N.sum(), [hidden_ND, weight_VD])
        return [tensor.detach().cpu() for tensor in (logprobs_N, kl_N, *gradients)]

    for mine, theirs in zip(found(device), found("cpu"), strict=True):
        assert (mine - theirs).norm() < (1e-5 if dtype == torch.float32 else 2**-7) * theirs.norm()


@pytest.mark.parametrize("of_its_own", [0, 7], ids=["whole rows", "after prefixes"])
def test_packed_attention_on_the_accelerator(of_its_own: int) -> None:
    """Values and gradients of one call for all rows, in bfloat16, against a call a row in float32."""
    if ACCELERATOR != "cuda":
        pytest.skip("CUDA's variable-length attention")
    queries = (5, 40, 1, 23)
    packing = packed.Packing(queries, tuple(length + of_its_own for length in queries))
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(1, heads, sum(rows), 64, generator=generator).to("cuda", torch.bfloat16)
               for heads, rows in ((14, packing.queries), (2, packing.keys), (2, packing.keys))]  # fmt: skip

    def found(attend: Any, dtype: torch.dtype) -> list[Tensor]:
        given = [tensor.to(dtype).requires_grad_() for tensor in tensors]
        with torch.autocast("cuda", torch.bfloat16, enabled=dtype == torch.bfloat16):
            attended = attend(packing, *given, None)
        return [attended.detach(), *torch.autograd.grad(attended.float().square().sum(), given)]

    both = found(packed._on_cuda, torch.bfloat16), found(packed._row_by_row, torch.float32)
    for mine, theirs in zip(*both, strict=True):
        assert (mine.float() - theirs).norm() < 2**-6 * theirs.norm()


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_sampler_and_policy_agree(small: LanguageModel, temperature: float) -> None:
    rollouts = played(small, temperature)
    included_B = torch.ones(len(rollouts), dtype=torch.bool)
    batch = make_batch(rollouts, torch.zeros(len(rollouts), 3), (0.0, 0.0, 0.0), included_B).to(ACCELERATOR or "cpu")
    with torch.no_grad():
        result = token_loss(trained_states(small, batch), None, batch, temperature)
    gap = (result.logprobs_BT - batch.sampler_logprobs_BT).abs().max()
    assert gap < 1e-4  # float32, different order of summation in prefill and decode


@pytest.mark.skipif(ACCELERATOR == "mps", reason="graphs are CUDA's")
def test_graphs_are_recorded_anew_where_lanes_grow(small: LanguageModel) -> None:
    sampler = TransformersSampler(small)
    for length in (24, 300, 600):  # more slots each time: other lanes, which no graph knows
        sampler.sample([(5, 6, 7)] * 4, SamplingParams(1.0, length, 5))
        assert sampler._graphs
        assert sampler._graphs.recorder, "a step could not be recorded"
        assert sampler._graphs._recorded
    assert torch.cuda.current_stream() == torch.cuda.default_stream()


def test_fifty_steps_of_the_lab(tmp_path: Path) -> None:
    """The shipped base model on the accelerator: attempt 2 gains at least 5 points within fifty steps of Stage I."""
    lab = load_model(ModelConfig(device=ACCELERATOR or "auto"))
    assert lab.device.type == ACCELERATOR
    run = selfcorrect.train(
        {
            "name": "lab",
            "output": str(tmp_path),
            "model": {"device": ACCELERATOR},
            "task": {"prompt": PROMPT, "correction_prompt": CORRECTION},
            "rollouts": {"problems_per_step": 64, "max_new_tokens": 16},
            "optimizer": {"micro_batch": 512},
            "stages": [
                {"name": "one", "objective": "stage1", "steps": 50, "learning_rate": 2e-4, "beta1": 0.003, "beta2": 0.3}
            ],
            "evaluation": {"problems": 500, "controls": False},
        }
    )
    files = [run / "evaluations" / f"{name}.json" for name in ("base", "one")]
    before, after = (json.loads(file.read_text())["summary"]["accuracy"][1]["value"] for file in files)
    assert after - before > 0.05
