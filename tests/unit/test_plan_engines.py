"""What a plan for a card counts of an engine in the process, of work that is done anew, and of weights that travel."""

from dataclasses import replace
from typing import Any

import pytest
from transformers import GPT2Config, LlamaConfig, Qwen3MoeConfig

from selfcorrect.config import TrainConfig
from selfcorrect.config.recipe import validate
from selfcorrect.planning import pace as pacing
from selfcorrect.planning import plan as planning
from selfcorrect.planning.hardware import CARDS, PINNED_BYTES, Card
from selfcorrect.planning.memory import Spread
from selfcorrect.planning.pace import PASSING, micro_batches
from selfcorrect.planning.page import lines
from selfcorrect.planning.plan import Devices, Plan, make_plan
from selfcorrect.planning.settled import dressed
from selfcorrect.planning.spec import Spec
from selfcorrect.planning.work import assumed_lengths
from tests.support.plans import ONE_ROW, SMALL, recipe, unrehearsed

LORA = {"path": "Qwen/Qwen2.5-7B", "tuning": "lora", "weights": "bfloat16"}


def in_process(card: Card | None, **vllm: Any) -> Plan:
    config = recipe(model=LORA, sampler="vllm", vllm=vllm, **ONE_ROW)
    return make_plan(config, Devices(card, engine=True), timed=card is not None)


def taken(plan: Plan, phase: str) -> float:
    return sum(plan.memory.phases[phase].get(part, 0.0) for part in ("engine's weights", "KV cache", "engine"))


def test_an_engine_in_the_process_takes_its_share_of_the_card(monkeypatch: pytest.MonkeyPatch) -> None:
    """However much it needs; where that is more, it would not start."""
    unrehearsed(monkeypatch)
    card = CARDS["h100"]
    half, most = in_process(card), in_process(card, memory_share=0.9)
    assert [taken(made, "sampling") / card.bytes for made in (half, most)] == pytest.approx([0.5, 0.9])
    assert (half.fits, most.fits) == (True, False)  # the policy's own weights are there too
    assert taken(half, "update") == 0
    small = in_process(card, kv_cache_gib=2.0)
    assert small.memory.phases["sampling"]["KV cache"] == 2 * 2**30
    few = in_process(card, memory_share=0.19)
    assert not few.fits
    assert few.memory.peak < card.bytes
    found = next(planning.turns(few, assumed_lengths(few.config)))
    assert found.overrides == ("vllm.memory_share=0.23",)
    assert found.cost == "room for 64 of the longest rollouts side by side"
    assert not [tried for tried, _ in planning._candidates(few) if "rows_at_once=8" in " ".join(tried)]  # has its own
    told = list(lines(few))
    assert ["DOES NOT FIT" in line for line in told if ": fits" in line or "NOT FIT" in line] == [False, True]
    on_processor = in_process(None)
    assert taken(on_processor, "update") == taken(on_processor, "sampling") > 2**30  # where nothing sleeps


def test_rollouts_wait_where_an_engines_cache_has_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    unrehearsed(monkeypatch)
    found = [made.pace.seconds["rollouts"] for made in (in_process(CARDS["h100"], kv_cache_gib=size)
             for size in (40.0, 2.0)) if made.pace]  # fmt: skip
    assert found[1] > 1.5 * found[0]


def test_a_card_reads_again_what_it_had_no_room_to_keep(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attempt 1 of rows beyond those side by side, with its prompt, before attempt 2."""
    unrehearsed(monkeypatch)
    monkeypatch.setattr(pacing._Sampler, "step", lambda *_: {"nothing": 0.0})
    rollouts = {"problems_per_step": 4, "rollouts_per_problem": 8}
    found = []
    for rows in (32, 8):
        config = recipe(model=LORA, rollouts={**rollouts, "rows_at_once": rows}, optimizer=ONE_ROW["optimizer"])
        made = make_plan(config, Devices(CARDS["h100"]))
        assert made.pace
        found.append(made.pace.seconds["rollouts"])
    lengths = made.step.lengths
    fed = 4 * lengths.prompt + 32 * (lengths.turn + 1)
    assert found[1] / found[0] == pytest.approx((fed + 24 * (lengths.prompt + lengths.attempt)) / fed)


def test_a_reference_in_the_machines_memory_takes_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its layers come to the card for each micro-batch."""
    unrehearsed(monkeypatch)
    found = []
    rollouts = {"rows_at_once": 512, "max_new_tokens": 64}
    for place in ("device", "cpu"):
        model = {"path": "Qwen/Qwen2.5-7B", "weights": "bfloat16", "reference": place}
        config = recipe(model=model, rollouts=rollouts, optimizer=ONE_ROW["optimizer"])
        made = make_plan(config, Devices(CARDS["h100"]))
        assert made.pace
        found.append(made.pace.seconds["reference"])
    layers = 2 * (made.model.numbers.all - made.model.numbers.outer)
    assert layers == pytest.approx(2 * (7_615_616_512 - 2 * 152_064 * 3584), rel=0.001)
    passes = 1 + micro_batches(made.config, made.step)
    assert passes > 10
    assert found[1] - found[0] == pytest.approx(passes * layers / PINNED_BYTES)
    assert made.pace
    assert made.pace.bound == f"reference: {PASSING}"


def test_layers_of_all_kinds_and_heads_of_any_width_are_multiplied() -> None:
    """GPT-2's are no nn.Linear, nor are experts, of which a token passes through a few."""
    gpt2 = GPT2Config(n_embd=64, n_layer=2, n_head=4, vocab_size=300)
    config = recipe()
    model = dressed(config, Spec("gpt2", gpt2), CARDS["h100"])
    assert model.numbers.linear == 0
    fixed, _, step, spread = planning._laid_out(config, Devices(CARDS["h100"]), assumed_lengths(config), model.spec)
    narrow = pacing._flops(fixed, model, step, spread)["reference"]
    tokens = step.rows * step.attempts * step.lengths.attempt
    assert narrow > tokens * 2 * 2 * 12 * 64 * 64
    moe = Spec("moe", Qwen3MoeConfig(**SMALL, num_key_value_heads=2, num_experts=8, num_experts_per_tok=2))
    of = dressed(config, moe, CARDS["h100"]).numbers
    assert of.idle == 2 * 8 * 3 * 64 * moe.config.moe_intermediate_size * 6 / 8
    sent = replace(model, numbers=replace(model.numbers, idle=model.numbers.all - model.numbers.outer))
    assert pacing._flops(fixed, sent, step, spread)["reference"] < narrow
    gpt2.head_dim = 4 * 16
    more = pacing._flops(fixed, model, step, spread)["reference"] / narrow
    assert more > 1.5


def test_of_an_embedding_with_a_head_beside_it_a_token_reads_a_row() -> None:
    read = []
    for tied in (True, False):
        spec = Spec("llama", LlamaConfig(**SMALL, tie_word_embeddings=tied))
        model = dressed(recipe(), spec, CARDS["h100"])
        sampler = pacing._Sampler(model, CARDS["h100"], Spread())
        read.append((sampler._weights, sampler.flops))
    assert read[0] == read[1]
    assert read[0][0] == 2 * (model.numbers.all - 300 * 64)


def test_a_supervised_step_does_not_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    unrehearsed(monkeypatch)
    stage = {"name": "a", "objective": "pair_sft", "steps": 10, "learning_rate": 1e-6}
    config = validate({"model": LORA, "stages": [stage], **ONE_ROW})
    assert isinstance(config, TrainConfig)
    made = make_plan(config, Devices(CARDS["h100"]))
    assert made.pace
    assert (made.pace.seconds["rollouts"], made.pace.seconds["grading"], made.pace.tokens) == (0, 0, 0)
    assert made.pace.seconds["update"] > 0


def test_the_update_shares_prompts_where_a_run_would(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not where all of them take more room than a micro-batch."""
    unrehearsed(monkeypatch)
    rollouts = {"problems_per_step": 64, "rollouts_per_problem": 8, "rows_at_once": 8}
    found = []
    for rows in (1, 64):
        optimizer = {"micro_batch": rows, "padding_free": False, "gradient_checkpointing": True}
        made = make_plan(recipe(model=LORA, rollouts=rollouts, optimizer=optimizer), Devices(CARDS["h100"]))
        assert made.pace
        found.append(made.pace.seconds["reference"])
    lengths = made.step.lengths
    every = 512 * lengths.mean_row(2)
    assert found[0] / found[1] == pytest.approx(every / (every - 448 * lengths.prompt), rel=0.02)


def test_a_server_that_has_too_few_cards_is_told_to_have_more(monkeypatch: pytest.MonkeyPatch) -> None:
    unrehearsed(monkeypatch)
    config = recipe(model=LORA, sampler="vllm", vllm={"server": "http://localhost:8000"}, **ONE_ROW)
    told = [
        "\n".join(lines(make_plan(config, Devices(replace(CARDS["h100"], gib=gib), engine=True, serving=1))))
        for gib in (14.0, 40.0)
    ]
    assert ["; --serving gives it more cards" in each for each in told] == [True, False]
