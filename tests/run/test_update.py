"""Trainer.update: one gradient step, whatever the micro-batches it is computed in."""

import copy
import dataclasses
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import GptOssConfig, GptOssForCausalLM

from selfcorrect.evaluation.metrics import summarize
from selfcorrect.lab.base import build_tokenizer
from selfcorrect.learning import packing
from selfcorrect.learning.batching import Batch, make_batch
from selfcorrect.learning.packing import PackedPrompts
from selfcorrect.learning.prompts import SharedPrompts
from selfcorrect.learning.record import Update
from selfcorrect.learning.training import Trainer
from selfcorrect.models import packed as packed_attention
from selfcorrect.models import sizing
from selfcorrect.models.language_model import LanguageModel
from selfcorrect.models.loading import wrap
from selfcorrect.models.recompute import layers_of
from selfcorrect.models.tables import InPlace
from selfcorrect.rollout import play
from selfcorrect.samplers.transformers import TransformersSampler
from selfcorrect.tasks import make_task
from selfcorrect.types import Grade, Outcome, Rollout, SamplingParams
from tests.run.conftest import ENDS
from tests.support.runs import config, go, read_rows, recipe, tuned
from tests.support.tiny import LIMIT, tiny_lm


def trainer_of(
    lm: LanguageModel, reference: LanguageModel, micro_batch: int, estimator: str, again: bool = False,
    packed: bool = False,
) -> Trainer:  # fmt: skip
    how = {"gradient_checkpointing": again, "padding_free": packed}
    settings = config(
        Path("unused"), Path("unused"), algorithm={"kl_estimator": estimator},
        optimizer={"micro_batch": micro_batch, "max_grad_norm": 1e9, "warmup_steps": 0, **how},
    )  # fmt: skip
    return Trainer(settings, lm, reference, TransformersSampler(lm), make_task(settings.task))


def updated(
    lms: tuple[LanguageModel, LanguageModel], batch: Batch, micro_batch: int, estimator: str, again: bool = False,
    packed: bool = False,
) -> tuple[Update, list[Tensor]]:  # fmt: skip
    trainer = trainer_of(*lms, micro_batch, estimator, again, packed)
    # At rate 0 the weights stay, and the gradients can be read.
    update = trainer.update(batch, rollouts=7, rate=0.0, temperature=1.0)
    return update, [torch.as_tensor(parameter.grad).clone() for parameter in trainer.lm.parameters()]


def test_recorded_first_attempts_are_not_counted_as_sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = trainer_of(*new_pair("llama"), 8, "analytic")
    draw = trainer.task.draw
    monkeypatch.setattr(
        trainer.task, "draw", lambda *args: [dataclasses.replace(each, first_attempt="1 2 3") for each in draw(*args)]
    )
    done = trainer.train_step()
    assert done.completions == len(done.rollouts) == 8
    assert done.sampled_tokens == sum(len(rollout.attempts[1].completion.token_ids) for rollout in done.rollouts)


def test_what_earns_a_part_counts_as_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in an evaluation; what was not graded is left out."""
    trainer = trainer_of(*new_pair("llama"), 8, "analytic")
    outcomes = {"c": (Outcome.CORRECT, 1.0), "p": (Outcome.WRONG, 0.7), "f": (Outcome.GRADER_FAILED, 0.0)}
    play_all = trainer.ranks.play

    def played(*args: Any, **kwargs: Any) -> list[Rollout]:
        pairs = zip(play_all(*args, **kwargs), ("cp", "pc", "pp", "cc", "pc", "fp", "pc", "cp"), strict=True)
        return [
            dataclasses.replace(rollout, attempts=tuple(
                dataclasses.replace(attempt, grade=Grade(*outcomes[letter]))
                for attempt, letter in zip(rollout.attempts, letters, strict=True)
            ))
            for rollout, letters in pairs
        ]  # fmt: skip

    monkeypatch.setattr(trainer.ranks, "play", played)
    done = trainer.train_step()
    same = summarize(done.rollouts)
    assert (done.fixed, done.broken) == (same.fixed.value, same.broken.value) == (3 / 7, 2 / 7)
    assert done.accuracy == [estimate.value for estimate in same.accuracy] == [3 / 7, 4 / 7]
    assert done.delta == pytest.approx(same.delta.value)
    assert done.rewards == pytest.approx([5.8 / 7, 6.1 / 7])


@pytest.mark.parametrize("estimator", ["analytic", "k1"])
def test_the_gradient_does_not_depend_on_how_the_step_is_cut_up(estimator: str) -> None:
    """In float64, micro-batches of any size, with more or less padding, and rows in any order."""
    lms, batch = two_of_each("gpt2")
    for lm in lms:
        lm.model.double()
    whole, gradients = updated(lms, batch, 8, estimator)
    assert whole.grad_norm > 0.1
    shuffled = batch.select(torch.tensor([3, 5, 0, 7, 6, 1, 4, 2]))
    for other, micro_batch in (*((batch, size) for size in (4, 3, 2, 1)), (shuffled, 4)):
        update, found = updated(lms, other, micro_batch, estimator)
        for name in ("loss", "grad_norm", "kl_A", "neg_logprob_A", "tokens_A"):
            torch.testing.assert_close(getattr(update, name), getattr(whole, name), rtol=1e-12, atol=0)
        for mine, theirs in zip(found, gradients, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-12 * whole.grad_norm)


class Made(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the tensors of one shape that are made, in memory of their own, all of which is kept."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._shape = shape
        self._storages: dict[int, Any] = {}

    def known(self, tensors: Iterable[Tensor]) -> int:
        """How many of them are new, and none from now on."""
        storages = {tensor.untyped_storage()._cdata: tensor.untyped_storage() for tensor in tensors}
        new = storages.keys() - self._storages.keys()
        self._storages |= storages
        return len(new)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(made):
            if isinstance(leaf, Tensor) and leaf.layout == torch.strided:
                self.count += self.known([leaf]) * (leaf.shape == self._shape)
        return made

    count = 0


@pytest.mark.parametrize(
    ("architecture", "tables", "again", "packed"),
    [("llama", 1, True, True), ("qwen2", 2, False, False), ("gemma3", 2, False, True)],
)
def test_gradients_of_embedding_and_head_are_added_where_they_lie(
    architecture: str, tables: int, again: bool, packed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An update of four micro-batches makes one for each of them, and the gradients are autograd's."""
    lms, batch = two_of_each(architecture)

    def made() -> tuple[int, list[Tensor]]:
        trainer = trainer_of(*lms, 2, "analytic", again, packed)
        trainer.update(batch, rollouts=7, rate=0.0, temperature=1.0)  # AdamW's moments are made
        weight_VD = trainer.lm.model.get_input_embeddings().weight
        with Made(tuple(weight_VD.shape)) as seen:
            seen.known([*trainer.lm.model.parameters(), *lms[1].model.parameters()])
            trainer.update(batch, rollouts=7, rate=0.0, temperature=1.0)
        assert not any(module.sparse for module in lms[0].model.modules() if isinstance(module, torch.nn.Embedding))
        return seen.count, [torch.as_tensor(parameter.grad).clone() for parameter in trainer.lm.parameters()]

    count, found = made()
    monkeypatch.setattr("selfcorrect.learning.training.begin", lambda lm, on_card: InPlace())
    more, gradients = made()
    assert count == tables < more
    for mine, theirs in zip(found, gradients, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5 * float(theirs.abs().max()))


def two_of_each(architecture: str) -> tuple[tuple[LanguageModel, LanguageModel], Batch]:
    return new_pair(architecture), batch_of(architecture)


def new_pair(architecture: str) -> tuple[LanguageModel, LanguageModel]:
    return tiny_lm(architecture, "eager", ENDS, seed=0), tiny_lm(architecture, "eager", ENDS, seed=1)


@cache
def batch_of(architecture: str) -> Batch:
    """Two ragged rollouts of two attempts at each of four prompts of several lengths; the sixth is not included."""
    lms = new_pair(architecture)
    trainer = trainer_of(*lms, 3, "analytic")
    texts = [text for text in ("5 2 1 = 8", "12 9 3 2 = 4", "7 7 = 6", "4 4 2 = 2") for _ in range(2)]
    problems = [trainer.task.parse(text) for text in texts]
    rollouts = play(problems, trainer.task, trainer.sampler, trainer.lm.chat, SamplingParams(1.0, 9, 4), 2)
    included_B = torch.arange(8) != 5
    advantages_BA = torch.randn(8, 2, generator=torch.Generator().manual_seed(0))
    return make_batch(rollouts, advantages_BA, (0.3, 0.2), included_B)


@pytest.mark.parametrize(
    ("architecture", "dtype"),
    [("llama", torch.float32), ("llama", torch.bfloat16), ("qwen2", torch.bfloat16), ("gpt2", torch.float32),
     ("gemma3", torch.bfloat16)],
)  # fmt: skip
def test_running_layers_again_changes_no_bit(
    architecture: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With shared prompts where the model allows them (all but gemma3), in eval mode, nothing left behind."""
    lms, batch = two_of_each(architecture)
    for lm in lms:
        lm.compute_dtype = dtype
    layers = layers_of(lms[0].model)
    assert len(layers) == 2
    assert bool(SharedPrompts.of(lms[0], batch, 3)) == (architecture != "gemma3")
    calls: list[bool] = []
    attention = next(module for name, module in layers[0].named_modules() if name in ("self_attn", "attn"))
    attention.register_forward_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    plain, expected = updated(lms, batch, 3, "analytic")
    once = len(calls)
    update, found = updated(lms, batch, 3, "analytic", again=True)
    assert len(calls) == 3 * once  # once as before, and those again
    assert (update.loss, update.grad_norm) == (plain.loss, plain.grad_norm)
    assert all(map(torch.equal, found, expected))
    assert not any("forward" in layer.__dict__ for layer in layers)


def test_a_layer_runs_again_with_the_attention_it_first_had(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a card that prefers cuDNN's attention, which forward passes do without, the second run took it."""
    monkeypatch.setattr(LanguageModel, "kernels", lambda self: sdpa_kernel([SDPBackend.MATH]))
    lms, batch = two_of_each("llama")
    backends: Any = torch.backends.cuda
    seen: list[bool] = []
    attention: Any = layers_of(lms[0].model)[0].self_attn
    attention.register_forward_hook(lambda *_: seen.append(backends.flash_sdp_enabled()))
    updated(lms, batch, 3, "analytic", again=True)
    assert len(seen) > 6
    assert not any(seen)
    assert backends.flash_sdp_enabled()


@pytest.mark.parametrize(
    ("architecture", "planted"), [("llama", False), ("qwen2", False), ("gpt2", False), ("llama", True)]
)
def test_shared_prompts_change_nothing(architecture: str, planted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Losses, KL and gradients of two rollouts a prompt are those of whole sequences. Planted: prompts get no gradient."""
    lms, batch = two_of_each(architecture)
    assert SharedPrompts.of(lms[0], batch, 3)
    if planted:
        monkeypatch.setattr(SharedPrompts, "backward", lambda self: None)
    shared, found = updated(lms, batch, 3, "analytic")
    monkeypatch.setattr(SharedPrompts, "of", lambda *arguments: None)
    whole, gradients = updated(lms, batch, 3, "analytic")
    torch.testing.assert_close(shared.kl_A, whole.kl_A, rtol=1e-4, atol=0)
    assert shared.loss == pytest.approx(whole.loss, rel=1e-4)
    gap = max(float((mine - theirs).abs().max()) for mine, theirs in zip(found, gradients, strict=True))
    assert (gap > whole.grad_norm / 1000) if planted else (gap < whole.grad_norm / 1e4)


PLANTS = "rows see the rows before them", "places go on from row to row"


@pytest.mark.parametrize("shared", [True, False], ids=["shared prompts", "whole rows"])
@pytest.mark.parametrize(
    ("architecture", "planted"),
    [("llama", ""), ("qwen2", ""), ("gpt2", ""), *(("llama", plant) for plant in PLANTS), ("gpt2", PLANTS[1])],
)
def test_packed_rows_change_nothing(
    architecture: str, shared: bool, planted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In float64: losses, KL and gradients are those of padded rows, whether layers run again or not."""
    allowed = 1e-13 if architecture == "gpt2" else 1e-6  # the norms of the others are taken in float32 all the same
    lms, batch = two_of_each(architecture)
    for lm in lms:
        lm.model.double()
    monkeypatch.setattr(SharedPrompts, "of", lambda *arguments: None)
    padded, gradients = updated(lms, batch, 3, "analytic")
    monkeypatch.undo()
    if not shared:
        monkeypatch.setattr(PackedPrompts, "of", lambda *arguments: None)
    else:
        assert PackedPrompts.of(lms[0], batch, 3)
    if planted.startswith("rows"):
        monkeypatch.setattr(packed_attention, "_row_by_row", all_as_one)
    elif planted:
        laid_out = packing._laid_out
        monkeypatch.setattr(packing, "_laid_out", lambda *given: went_on(*laid_out(*given)))
    for again in (False, True)[: 1 if planted else 2]:
        update, found = updated(lms, batch, 3, "analytic", again, packed=True)
        gap = max(float((mine - theirs).abs().max()) for mine, theirs in zip(found, gradients, strict=True))
        assert (gap > 0.01 * padded.grad_norm) if planted else (gap < allowed * padded.grad_norm)
        if not planted:
            torch.testing.assert_close(update.kl_A, padded.kl_A, rtol=10 * allowed, atol=0)
            assert update.loss == pytest.approx(padded.loss, rel=allowed)
        assert lms[0].model.config._attn_implementation == "eager"


@pytest.mark.parametrize(
    ("tuning", "stage"),
    [
        ("lora", {"objective": "stage2", "offline_first": 0.5}),
        ("qlora", {"objective": "pair_sft", "collect": 8, "batch": 4}),
    ],
)
def test_runs_on_packed_rows_learn_the_same(
    tuning: str, stage: dict[str, Any], model: Path, tmp_path: Path, lucky: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Planted for the first: rows see the rows before them."""
    losses = []
    for name in ("padded", "packed", *(["planted"] if tuning == "lora" else [])):
        if name == "planted":
            monkeypatch.setattr(packed_attention, "_row_by_row", all_as_one)
            monkeypatch.setattr(sizing, "hindrance", lambda lm: "")  # its trial sees it too
        packs = name != "padded"
        how = {"micro_batch": 3, "warmup_steps": 0, "padding_free": packs, "gradient_checkpointing": packs}
        stages = [{"name": "a", "steps": 2, "learning_rate": 0.003, **stage}]
        brief = {"stages": stages, "optimizer": how, "evaluation": {"problems": 2, "controls": False}}
        run = go(tuned(recipe(tmp_path, model, name, **brief), tuning))
        losses.append([row["loss"] for row in read_rows(run / "metrics.jsonl")])
    same = [each == pytest.approx(losses[0], rel=1e-4) for each in losses[1:]]
    assert same == [True, False][: len(same)]


def of_its_own(seed: int) -> LanguageModel:
    """Its layers attend as configs of their own say, whatever the model's says: code that takes nothing from without."""
    lm: LanguageModel = tiny_lm("llama", seed=seed)
    for layer in lm.model.model.layers:
        layer.self_attn.config = copy.deepcopy(layer.self_attn.config)
    return lm


def gpt_oss(seed: int) -> LanguageModel:
    """Each head's softmax has one more term, which learns."""
    tokenizer = build_tokenizer(LIMIT)
    torch.manual_seed(seed)
    sizes = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
    }
    config = GptOssConfig(
        vocab_size=len(tokenizer), **sizes, intermediate_size=48, num_local_experts=2, num_experts_per_tok=1,
        layer_types=["full_attention"] * 2, attn_implementation="eager", pad_token_id=None,
    )  # fmt: skip
    return wrap(GptOssForCausalLM(config), tokenizer)


@pytest.mark.parametrize(("made", "able"), [(of_its_own, False), (gpt_oss, False), (tiny_lm, True)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_are_packed_only_where_a_trial_agrees(made: Any, able: bool, dtype: torch.dtype) -> None:
    lm = made(seed=0)
    assert lm.attends_to_all
    lm.compute_dtype = dtype
    assert packed_attention.hindrance(lm) == ("" if able else "its code does not take its attention from without")


def test_what_bfloat16_rounds_is_not_taken_for_the_models_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """Real models' hidden states move by a tenth and more: the trial is in float32 where the weights are."""
    exact = packed_attention._row_by_row

    def rough(packing: Any, query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> Tensor:
        attended = exact(packing, query, key, value, scale)
        return attended if value.dtype == torch.float32 else 30 * attended

    monkeypatch.setattr(packed_attention, "_row_by_row", rough)
    lm = tiny_lm("llama", "sdpa")
    lm.compute_dtype = torch.bfloat16
    assert packed_attention.hindrance(lm) == ""
    lm.model.to(torch.bfloat16)
    assert "its code does not take" in packed_attention.hindrance(lm)


def test_the_trial_runs_where_the_weights_are() -> None:
    """Of shards that a server's run makes, rank 0 holds the weights in the machine's memory first."""
    assert packed_attention.hindrance(dataclasses.replace(tiny_lm(), device=torch.device("meta"))) == ""


def test_a_trial_that_fails_is_told_as_that(monkeypatch: pytest.MonkeyPatch) -> None:
    fail = Mock(side_effect=RuntimeError("no kernel for this\nand more"))
    monkeypatch.setattr(packed_attention, "_row_by_row", fail)
    told = packed_attention.hindrance(tiny_lm("llama", "eager"))
    assert told == "a trial of two rows failed: RuntimeError: no kernel for this"


def all_as_one(packing: Any, query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> Tensor:
    new, seen = query.shape[2], key.shape[2]
    mask = torch.ones(new, seen, dtype=torch.bool).tril(seen - new)
    attended = torch.nn.functional.scaled_dot_product_attention(query, key, value, mask, scale=scale, enable_gqa=True)
    return attended.transpose(1, 2)


def went_on(ids_N: Tensor, place_N: Tensor, *rest: Any) -> tuple[Any, ...]:
    return ids_N, torch.arange(len(place_N)).clamp(max=63), *rest


def test_the_update_moves_every_weight() -> None:
    """AdamW's first step is the rate times the sign of the gradient, wherever that is not tiny."""
    (lm, reference), batch = two_of_each("llama")
    trainer = trainer_of(lm, reference, 3, "analytic")
    before = [parameter.detach().clone() for parameter in lm.parameters()]
    update = trainer.update(batch, rollouts=7, rate=1e-3, temperature=trainer.config.rollouts.temperature)
    assert not update.skip_reason
    for old, new in zip(before, lm.parameters(), strict=True):
        gradient = torch.as_tensor(new.grad)
        clear = gradient.abs() > 1e-4
        assert clear.any()
        moved = (new.detach() - old)[clear]
        torch.testing.assert_close(moved, -1e-3 * gradient[clear].sign(), rtol=1e-3, atol=1e-6)
    trainer.advance(update, 0.5)
    assert all(parameter.grad is None for parameter in lm.parameters())  # sampling has their memory


def test_the_gap_to_the_sampler_is_measured() -> None:
    update, _ = updated(*two_of_each("llama"), 3, "analytic")
    assert float((update.gap_A / update.tokens_A).max()) < 2e-5
