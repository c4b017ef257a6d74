"""Oracle: with an adapter too, the update's gradient is the exact one, and the KL is to the model without it.

A transformer small enough to enumerate, in float64, with PEFT's own layers: every rollout there is goes through the
trainer's update, weighted by its probability. The exact gradient comes from tables of the same model's logits.
"""

from dataclasses import replace
from functools import cache
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from selfcorrect.config import LoraConfig
from selfcorrect.learning.training import Trainer
from selfcorrect.models.adapters import OFF, POLICY, Adapters, fresh_config
from selfcorrect.models.head import HeadForm
from selfcorrect.models.language_model import LanguageModel
from tests.oracles.test_enumeration import PLANTED, TOLERANCE, weighted_batch
from tests.oracles.toy import OBJECTIVES, Toy, exact_gradient, make_toy
from tests.support.runs import valid


def small_model(vocabulary: int) -> LanguageModel:
    """GPT-2, as its norms compute in the weights' precision. Its head leaves out the two ids that stand for prompts."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(3)
    config = GPT2Config(
        vocab_size=vocabulary + 2, n_embd=8, n_layer=2, n_head=2, n_positions=32, attn_implementation="eager",
        bos_token_id=None, eos_token_id=None, tie_word_embeddings=False,
    )  # fmt: skip
    model: Any = GPT2LMHeadModel(config).double().eval()
    model.set_output_embeddings(torch.nn.Linear(8, vocabulary, bias=False).double())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.5)
    adapters = Adapters(model, fresh_config(LoraConfig(rank=2, alpha=3.0), model), "", seed=1)
    with torch.no_grad():
        for tensor in adapters.tensors().values():
            tensor.normal_(0.0, 0.5)
    nothing: Any = None
    return LanguageModel(model, nothing, nothing, frozenset(), torch.device("cpu"), torch.float32, HeadForm(), adapters)


def table_of(lm: LanguageModel, toy: Toy) -> Tensor:
    """Logits after every context [C, V], the row for foreign prefixes empty."""
    rows = []
    for prefix in toy.contexts:
        ids = torch.tensor([prefix])
        last = torch.zeros(ids.shape, dtype=torch.bool)
        last[0, -1] = True
        rows.append(lm.logits(ids, last, use_cache=False)[0])
    return torch.stack([*rows, torch.zeros_like(rows[0])])


def trainer_of(lm: LanguageModel, reference: LanguageModel, estimator: str) -> Trainer:
    config = valid({
        "stages": [{"name": "one", "objective": "stage1", "steps": 9, "learning_rate": 1.0}],
        "algorithm": {"kl_estimator": estimator}, "optimizer": {"max_grad_norm": 1e30, "micro_batch": 10},
    })  # fmt: skip
    return Trainer(config, lm, reference, cast(Any, None), cast(Any, None))


@cache
def model_and_toy() -> tuple[LanguageModel, Tensor, Toy]:
    """The model, its table with a graph to its parameters [C, V], and the toy that has these tables."""
    shape = make_toy(3, 2, 2, temperature=0.7)
    lm = small_model(shape.vocabulary)
    policy_CV = table_of(lm, shape)
    toy = replace(shape, logits_CV=policy_CV.detach(), ref_logits_CV=table_of(replace(lm, view=OFF), shape).detach())
    assert (toy.logits_CV - toy.ref_logits_CV).abs().max() > 0.1
    return lm, policy_CV, toy


@cache
def exact_of(objective: str) -> tuple[Tensor, ...]:
    lm, policy_CV, toy = model_and_toy()
    wanted = (policy_CV * exact_gradient(toy, OBJECTIVES[objective])).sum()
    return torch.autograd.grad(wanted, lm.parameters(), retain_graph=True)


def worst_gap(objective: str, estimator: str, view: str) -> float:
    """Between the update's gradient and the exact one, with a reference that computes with `view`."""
    (lm, _, toy), exact = model_and_toy(), exact_of(objective)
    for parameter in lm.parameters():
        parameter.grad = None
    trainer = trainer_of(lm, replace(lm, view=view), estimator)
    trainer.update(weighted_batch(toy, objective), 1, 0.0, toy.temperature)
    assert len(exact) == len(lm.parameters()) == 16
    found = [parameter.grad for parameter in lm.parameters()]
    assert all(gradient is not None for gradient in found)
    return max(
        float((mine + theirs).abs().max()) for mine, theirs in zip(found, exact, strict=True) if mine is not None
    )


@pytest.mark.parametrize(("objective", "estimator"), zip(OBJECTIVES, ("analytic", "k1") * 4, strict=True))
def test_the_update_of_an_adapter_is_exact(objective: str, estimator: str) -> None:
    assert worst_gap(objective, estimator, OFF) < TOLERANCE


@pytest.mark.parametrize("estimator", ["analytic", "k1"])
def test_a_reference_with_the_adapter_on_is_seen(estimator: str) -> None:
    assert worst_gap("stage_one", estimator, POLICY) > PLANTED


def test_the_reference_is_a_view_of_the_same_model() -> None:
    """No second copy; and what it computes does not move with the adapter, where training began with one."""
    lm, toy = small_model(3), make_toy(3, 1, 2)
    reference = lm.frozen_copy()  # this adapter does something, so a frozen one stands beside it
    assert reference.model is lm.model
    assert not reference.parameters()
    before = table_of(reference, toy).detach()
    assert torch.equal(before, table_of(lm, toy))
    with torch.no_grad():
        for tensor in lm.parameters():
            tensor.add_(0.1)
    assert torch.equal(table_of(reference, toy), before)
    assert not torch.allclose(table_of(lm, toy), before)
    assert all(parameter.requires_grad for parameter in lm.parameters())
    assert len(lm.parameters()) == 16  # the frozen one is none of them
