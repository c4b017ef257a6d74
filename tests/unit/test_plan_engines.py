"""What a plan for a card counts of an engine in the process, of work that is done anew, and of weights that travel."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import GPT2Config, LlamaConfig, Qwen3MoeConfig

from selfcorrect import api
from selfcorrect.config import TrainConfig
from selfcorrect.config.recipe import validate
from selfcorrect.models.sizing import sizes_of
from selfcorrect.planning import pace as pacing
from selfcorrect.planning import plan as planning
from selfcorrect.planning.hardware import CARDS, PINNED_BYTES, Card
from selfcorrect.planning.memory import Spread
from selfcorrect.planning.pace import PASSING, Pace, micro_batches
from selfcorrect.planning.page import lines, turned
from selfcorrect.planning.plan import Devices, Plan, devices_for, make_plan
from selfcorrect.planning.rehearsal import _idle
from selfcorrect.planning.settled import dressed
from selfcorrect.planning.spec import Spec, described
from selfcorrect.planning.work import assumed_lengths, update_of
from tests.support.plans import ONE_ROW, SMALL, STAGE, recipe, unrehearsed

LORA = {"path": "Qwen/Qwen2.5-7B", "tuning": "lora", "weights": "bfloat16"}
SERVED = {"server": "http://localhost:8000"}
SUPERVISED = {"name": "b", "objective": "pair_sft", "steps": 10, "learning_rate": 1e-6}


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
    between = recipe(model=LORA, sampler="vllm", evaluation={"every": 10}, **ONE_ROW)  # transformers samples the base
    phases = make_plan(between, Devices(card, engine=True), timed=False).memory.phases
    assert len({phase["KV cache of the base model"] for phase in phases.values()}) == 1
    assert "KV cache of the base model" not in half.memory.phases["update"]
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


def test_an_engine_on_a_processor_never_sleeps(monkeypatch: pytest.MonkeyPatch) -> None:
    """And its pace is not known, as transformers' is timed."""
    unrehearsed(monkeypatch)
    config = recipe(model=LORA, sampler="vllm", **ONE_ROW)
    made = make_plan(config, Devices(None, 2, 1, "fsdp2", engine=True), timed=False)
    found = {taken(made, phase) for phase in ("sampling", "update", "saving")}
    assert len(found) == 1
    assert found.pop() > 2**30
    told = "\n".join(lines(replace(made, pace=Pace({"rollouts": 1.0}, "", 1.0))))
    assert "rollouts as transformers would sample them" in told
    served = recipe(model=LORA, sampler="vllm", vllm=SERVED, **ONE_ROW)
    made = make_plan(served, Devices(None, engine=True, serving=1), timed=False)
    assert (made.server, "further" in "\n".join(lines(made))) == (0, False)  # of the server's machine nothing is known


def test_rollouts_wait_where_an_engine_has_no_room_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """In its cache; nor does one in the process take more than rows_at_once side by side."""
    unrehearsed(monkeypatch)
    found = []
    for rows, size in ((512, 40.0), (512, 2.0), (8, 40.0)):
        about: dict[str, Any] = {"rollouts": {"rows_at_once": rows}, "vllm": {"kv_cache_gib": size}}
        config = recipe(model=LORA, sampler="vllm", optimizer=ONE_ROW["optimizer"], **about)
        made = make_plan(config, Devices(CARDS["h100"], engine=True))
        assert made.pace
        found.append(made.pace.seconds["rollouts"])
    assert found[2] > 1.5 * found[1] > 1.5 * 1.5 * found[0]


def test_where_a_second_copy_has_no_room_other_ways_to_sample_are_advised(monkeypatch: pytest.MonkeyPatch) -> None:
    unrehearsed(monkeypatch)
    about: dict[str, Any] = {"model": LORA, "sampler": "vllm", "vllm": {"block_size": 32}, "stages": [STAGE], **ONE_ROW}
    said = list[str]()
    watcher: Any = SimpleNamespace(message=said.append)
    made = api.plan(about, gpu="rtx-4090", gpus=8, observer=watcher)
    assert not made.fits
    told = said[said.index("what makes it fit:") + 1 :]
    assert len(told) == 2
    assert "rollouts.rows_at_once=auto sampler=transformers vllm={}: " in told[0]
    assert "  vllm.server=http://HOST:8000 vllm.block_size=auto: " in told[1]
    assert "on 2 further cards" in told[1]
    served = about | {"vllm": SERVED}
    asked, least = (api.plan(served, gpu="rtx-4090", gpus=8, serving=n, observer=watcher) for n in (4, None))
    assert (asked.devices.serving, least.devices.serving) == (4, 2)
    assert asked.fits


def test_auto_leaves_room_for_all_attempts_where_a_stage_trains_on_one() -> None:
    """As a run settles it: its evaluations play them."""
    found = []
    for objective in ("stage2", "single_turn"):
        config = recipe(model=LORA, stages=[{**STAGE, "objective": objective}])
        spec = described(config.model)
        laid_out = planning._laid_out(config, Devices(CARDS["h100"]), assumed_lengths(config), spec)
        found.append(sizes_of(laid_out[0]))
    assert found[0] == found[1]


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
    others: list[dict[str, Any]] = [{"top_k_experts": 2}, {}, {"num_experts": [8, 4], "num_experts_per_tok": 2}]
    assert [_idle(SimpleNamespace(**{"num_experts": 8, **each})) for each in others] == [0.75, 0, 0]
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


def test_an_engine_has_16_bits_of_a_weight_that_trains_in_4() -> None:
    model = {"tuning": "qlora", "weights": "bfloat16"}
    found = dressed(recipe(model=model), Spec("llama", LlamaConfig(**SMALL)), CARDS["h100"])
    read = [pacing._Sampler(found, CARDS["h100"], Spread(engine=engine))._weights for engine in (False, True)]
    assert read[0] - read[1] > 2 * found.numbers.linear


def test_a_supervised_step_does_not_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor do its traces share prompts."""
    unrehearsed(monkeypatch)
    config = validate({"model": LORA, "stages": [SUPERVISED], **ONE_ROW})
    assert isinstance(config, TrainConfig)
    made = make_plan(config, Devices(CARDS["h100"]))
    assert made.pace
    assert (made.pace.seconds["rollouts"], made.pace.seconds["grading"], made.pace.tokens) == (0, 0, 0)
    assert made.pace.seconds["update"] > 0
    assert update_of(made.config, replace(made.step, groups=1), True, 1, in_place=False).prefixes == 0
    told = list(lines(made))
    assert told[1].startswith("a step: 256 traces; ")
    assert told[2] == "  what is sampled for traces is not counted"


def test_stages_whose_steps_are_others_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    unrehearsed(monkeypatch)
    stages = [SUPERVISED, STAGE, {**STAGE, "name": "c", "objective": "single_turn"}]
    made = make_plan(recipe(model=LORA, stages=stages, **ONE_ROW), Devices(CARDS["h100"]))
    assert list(lines(made))[2:5] == [
        "  b: supervised; each step counts as one of the others",
        "  what is sampled for traces is not counted",
        "  c: of one attempt; each step counts as one of the others",
    ]


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
    config = recipe(model=LORA, sampler="vllm", vllm=SERVED, **ONE_ROW)
    plans = [
        make_plan(config, Devices(replace(CARDS["h100"], gib=gib), engine=True, serving=1)) for gib in (14, 16.5, 40)
    ]
    told = ["\n".join(lines(made)) for made in plans]
    assert ["; --serving gives it more cards" in each for each in told] == [True, True, False]
    assert [made.fits for made in plans] == [False, False, True]
    found = [list(planning.turns(made, assumed_lengths(config))) for made in plans]
    assert ["model.tuning=qlora" in turn.overrides for turn in found[0]] == [True]  # of what trains; nothing of 16.5
    assert found[1:] == [[], []]
    assert [[*turned(made, turns)][1:2] for made, turns in zip(plans, found, strict=True)] == [
        ["what makes training fit:"],
        [],
        [],
    ]


def test_a_server_has_as_many_cards_as_share_the_heads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 14 two have seven each."""
    monkeypatch.setitem(CARDS, "l4", replace(CARDS["l4"], gib=0.5))
    config = recipe(model={"path": "Qwen/Qwen2.5-0.5B"}, sampler="vllm", vllm=SERVED)
    assert devices_for(config, "l4", 4).serving == 2
