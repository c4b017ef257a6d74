"""`selfcorrect plan`: what it says of memory is what the code does."""

import copy
import inspect
import json
import math
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, FalconConfig, LlamaConfig, MistralConfig

from selfcorrect.comparing.plan import merge
from selfcorrect.config import ModelConfig, TrainConfig
from selfcorrect.config.recipe import validate
from selfcorrect.errors import ConfigError, ModelError
from selfcorrect.learning.batching import Batch
from selfcorrect.learning.training import Trainer
from selfcorrect.learning.vocabulary import Tiles, tiles_for
from selfcorrect.models import sizing
from selfcorrect.models.freed import SET_BY_USER
from selfcorrect.models.loading import load_model, wrap
from selfcorrect.planning import beside, plan
from selfcorrect.planning.hardware import CARDS, CONTEXT_BYTES, Card, card_named, utilisation
from selfcorrect.planning.live import Live
from selfcorrect.planning.plan import Devices, _changed, devices_for, make_plan, turns
from selfcorrect.planning.rehearsal import Costume, by_layers, highest, numbers, stand_in, update
from selfcorrect.planning.settled import dressed, static
from selfcorrect.planning.settled import settled as planned_sizes
from selfcorrect.planning.spec import Spec, described
from selfcorrect.planning.work import Lengths, Step, Update, assumed_lengths, fullest_of
from selfcorrect.runs.checks import check_context, fitted
from selfcorrect.samplers.transformers import TransformersSampler
from selfcorrect.tasks import make_task
from tests.support.plans import ONE_ROW, SMALL, of_one_layer, recipe, unrehearsed
from tests.support.tiny import tiny_lm

RECIPES = Path(__file__).parents[2] / "recipes"


PUBLISHED = {  # numbers of weights as their makers' files hold them
    "Qwen/Qwen2.5-7B-Instruct": 7_615_616_512, "Qwen/Qwen2.5-Coder-1.5B-Instruct": 1_543_714_304,
    "qwen/qwen3-1.7b-base": 1_720_574_976, "meta-llama/Llama-3.1-8B-Instruct": 8_030_261_248,
    "meta-llama/Llama-3.3-70B-Instruct": 70_553_706_496, "HuggingFaceTB/SmolLM2-135M": 134_515_008,
    "google/gemma-3-270m-it": 268_098_176,
}  # fmt: skip


@pytest.mark.parametrize(("name", "count"), PUBLISHED.items())
def test_the_table_of_models_has_their_numbers_of_weights(name: str, count: int) -> None:
    spec = described(ModelConfig(path=name))
    costume = Costume(spec.config, torch.float32, torch.float32, "eager", tiles_for(torch.device("cpu")))
    assert numbers(costume, spec.layers).all == count
    adapted = numbers(replace(costume, rank=16, targets=("q_proj", "v_proj")), spec.layers)
    assert adapted.all == count
    heads = getattr(spec.config, "head_dim", None) or spec.hidden // spec.heads
    query, value = spec.heads * heads, spec.config.num_key_value_heads * heads
    assert adapted.trained == spec.layers * 16 * (2 * spec.hidden + query + value)


def test_the_math_models_read_less() -> None:
    reads = {name: described(ModelConfig(path=f"Qwen/Qwen2.5-{name}")).config.max_position_embeddings
             for name in ("7B", "Coder-7B-Instruct", "Math-7B", "Math-1.5B-Instruct")}  # fmt: skip
    assert reads == {"7B": 32768, "Coder-7B-Instruct": 32768, "Math-7B": 4096, "Math-1.5B-Instruct": 4096}


def test_a_model_that_is_nowhere_is_told_with_those_that_are_known() -> None:
    with pytest.raises(ModelError, match=r"without the hub, these are known: Qwen/Qwen2.5-0.5B, "):
        described(ModelConfig(path="nobody/nothing-7b"))


def batch_of(prompt: int, rest: int, trained: int) -> Batch:
    """Eight rollouts of two prompts, all of them equally long, of which the last so many tokens train."""
    ids = torch.full((8, prompt + rest), 3)
    ids[:4, 1] = 4
    attempt_BT = torch.zeros_like(ids)
    attempt_BT[:, -trained:] = 1
    attempt_BT[:, prompt] = 1
    ones = torch.ones(ids.shape)
    return Batch(ids, torch.full((8,), ids.shape[1]), attempt_BT, ones, 0.1 * ones, ones)


def deep_lm(architecture: str) -> Any:
    """Of eight layers and 12,000 words."""
    small = tiny_lm(architecture, hidden=128)
    config = copy.deepcopy(small.model.config)
    config.num_hidden_layers, config.vocab_size = 8, 12_000
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:2] * 4
    return wrap(AutoModelForCausalLM.from_config(config, attn_implementation="eager"), small.tokenizer)


@pytest.mark.parametrize(
    ("architecture", "packed", "again", "micro"),
    [
        ("llama", True, False, 5),  # and a second one of three rows
        pytest.param("llama", True, False, 4, marks=pytest.mark.nightly),
        pytest.param("llama", False, False, 8, marks=pytest.mark.nightly),
        pytest.param("qwen2", True, True, 2, marks=pytest.mark.nightly),
        pytest.param("gemma3", False, True, 4, marks=pytest.mark.nightly),
    ],
)
def test_the_rehearsed_update_takes_what_the_real_one_takes(
    architecture: str, packed: bool, again: bool, micro: int
) -> None:
    """To 4 %: the trained tokens are chosen by a mask there, and their losses are scattered back.

    With one layer and two, the wide embeddings take most; with eight, what the layers keep. Of micro-batches of five
    rows and three the first takes most, though it has no gradients beside it: five with them would be 6 % more.
    """
    lm, reference = deep_lm(architecture), deep_lm(architecture)
    how: dict[str, Any] = {"micro_batch": micro, "gradient_checkpointing": again, "padding_free": packed}
    config = recipe(optimizer=how)
    trainer = Trainer(config, lm, reference, TransformersSampler(lm), make_task(config.task))
    prompt, rest, trained = 40, 30, 24
    batch = batch_of(prompt, rest, trained - 1)
    trainer.update(batch, 8, 0.0, 1.0)
    with Live() as live:
        live.known([*lm.model.parameters(), *reference.model.parameters(), *lm.model.buffers()])
        trainer.update(batch, 8, 0.0, 1.0)
    shares = architecture != "gemma3"
    before = prompt - 1 if shares else 0
    work = Update(
        micro, prompt + rest - 1 - before, trained, micro * trained, 2 if shares else 0, before,
        min(2, math.ceil(8 / micro)), packed, again, in_place=True,
    )  # fmt: skip
    step = Step(8, 2, 1, Lengths(prompt, prompt, 0, rest, rest, ""), reference=True)
    costume = Costume(lm.model.config, torch.float32, torch.float32, "eager", tiles_for(torch.device("cpu")))
    tried = [by_layers(costume, update(costume, work)) for work in fullest_of(step, work)]
    found = max(highest({name: line.at(8) for name, line in lines.items()}) for lines in tried)
    assert found == pytest.approx(live.peak, rel=0.04)


@pytest.mark.parametrize(("on_card", "spared"), [(False, 3), (True, 2)])
def test_the_rehearsed_update_has_one_gradient_of_tied_tables(on_card: bool, spared: int) -> None:
    """Of a second micro-batch autograd has the sum so far, the head's, the embedding's, and the last two added up; an
    embedding on a card still makes its own (models/tables.py).
    """
    config = deep_lm("llama").model.config
    config.num_hidden_layers, config.vocab_size, tiles = 1, 50_000, Tiles(1 << 12, 1 << 10, 0)
    costume = Costume(config, torch.float32, torch.float32, "eager", tiles, on_card=on_card)

    def peak(*, in_place: bool) -> float:
        work = Update(1, 8, 4, 4, 0, 0, 2, packed=False, again=False, in_place=in_place)
        return highest(of_one_layer(costume, update(costume, work)))

    table = 4 * config.vocab_size * config.hidden_size
    assert peak(in_place=False) - peak(in_place=True) == pytest.approx(spared * table, rel=0.02)


def test_a_process_that_gives_memory_back_holds_less(monkeypatch: pytest.MonkeyPatch) -> None:
    unrehearsed(monkeypatch)

    def held(**environment: str) -> float:
        for name in SET_BY_USER:
            monkeypatch.delenv(name, raising=False)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        return make_plan(recipe(model={"path": "lab"}, **ONE_ROW), Devices(None), timed=False).memory.peak

    kept = held()
    assert held(MALLOC_MMAP_THRESHOLD_="1048576") < kept == held(MALLOC_TOP_PAD_="0")


@pytest.mark.parametrize("copies", [True, False])
def test_a_recipe_without_copies_is_loaded_and_planned_without(copies: bool) -> None:
    assert load_model(ModelConfig(path="lab", sampling_copies=copies)).copies == copies
    large = recipe(model={"path": "HuggingFaceTB/SmolLM2-135M", "device": "cpu", "sampling_copies": copies})
    assert (dressed(large, described(large.model), None).numbers.packed > 0) == copies


LAB_TASK = {
    "name": "countdown", "max_number": 100, "limit": 200, "prompt": "{numbers} : {target}", "correction_prompt": "?",
}  # fmt: skip


def test_auto_comes_to_what_a_run_settles() -> None:
    config = recipe(rollouts={"max_new_tokens": 64}, task=LAB_TASK)
    lm = load_model(config.model)
    settled, _ = fitted(config, lm, make_task(config.task))
    spec = described(config.model)
    tokens = check_context(config, lm, make_task(config.task), make_task(config.task).longest())
    assert planned_sizes(config, dressed(config, spec, None), None, tokens) == settled


AGAIN = {"model": {"path": "Qwen/Qwen2.5-7B"}, "optimizer": {"gradient_checkpointing": True}}
SERVED = {"sampler": "vllm", "vllm": {"server": "http://localhost:8000"}, "parallel": "fsdp2"}


@pytest.mark.parametrize(
    ("shards", "rows", "settings"),
    [
        (4, (512, 8), SERVED),
        (8, (128, 16), {"model": {"weights": "bfloat16"}, "parallel": "fsdp2"}),
        (4, (32, 8), {"model": {"weights": "bfloat16"}, "parallel": "fsdp2", "evaluation": {"every": 10}}),
        (1, (1, 1), {"model": {"weights": "bfloat16"}}),
        (1, (256, 32), {"model": {"path": "Qwen/Qwen2.5-1.5B"}, "evaluation": {"every": 10}}),
    ],
)  # fmt: skip
def test_auto_on_a_card_comes_to_what_a_run_there_settles(
    shards: int, rows: tuple[int, int], settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a server alone samples, nothing of the model is on the card yet; else all of it is."""
    config, card = recipe(**merge(AGAIN, settings)), CARDS["h100"]
    model = dressed(config, described(config.model), card)
    with torch.device("meta"):
        lm = stand_in(model.costume, model.spec.layers)
    lm.device = torch.device("cuda")
    there = 0 if "vllm" in settings else sum(weight.nbytes for weight in lm.model.parameters())
    monkeypatch.setattr(sizing, "memory_of", lambda device: card.bytes)
    monkeypatch.setattr(sizing, "hindrance", lambda lm: "")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (card.bytes - CONTEXT_BYTES - there, card.bytes))
    run, _ = sizing.sized(config, lm, 1500, shards=shards)
    assert sizing.sizes_of(run) == sizing.sizes_of(planned_sizes(config, model, card, 1500, shards))
    assert (run.rollouts.rows, run.optimizer.rows) == rows


@pytest.mark.parametrize(
    ("reads", "told"),
    [
        (40, r"rollouts.max_new_tokens = 64: .* but the model reads 40; lower"),
        (3, r"problem \S+ has a prompt of \d+ tokens"),
    ],
)
def test_what_does_not_fit_into_the_context_is_named(reads: int, told: str) -> None:
    """A prompt that is too long by itself is no matter of max_new_tokens."""
    config = recipe(rollouts={"max_new_tokens": 64}, task=LAB_TASK)
    lm, task = load_model(config.model), make_task(config.task)
    lm.model.config.max_position_embeddings = reads
    with pytest.raises(ConfigError, match=told):
        check_context(config, lm, task, task.longest())


def test_what_lies_there_all_the_time_is_sharded_by_fsdp() -> None:
    config = recipe(model={"path": "Qwen/Qwen2.5-7B", "weights": "bfloat16"})
    model = dressed(config, described(config.model), CARDS["h100"])
    alone, shared = (static(config, model, CARDS["h100"], shards) for shards in (1, 8))
    count = 7_615_616_512
    assert (alone.weights, alone.masters, alone.gradients, alone.optimizer) == (
        2 * count,
        4 * count,
        4 * count,
        8 * count,
    )
    assert (alone.place, shared.place, shared.reference) == ("cpu", "device", 2 * count / 8)
    assert (shared.weights, shared.masters) == (4 * count / 8, 0)  # its shards are the masters
    assert shared.total == pytest.approx(18 * count / 8)
    eight = static(
        config.model_copy(update={"optimizer": config.optimizer.model_copy(update={"name": "adamw_8bit"})}),
        model,
        CARDS["h100"],
        1,
    )
    assert eight.optimizer == 2 * count


def test_no_setting_is_advised_that_training_refuses() -> None:
    config = recipe(
        model={"path": "Qwen/Qwen2.5-7B", "weights": "bfloat16"}, optimizer={"micro_batch": 1, "name": "adamw_8bit"}
    )
    assert _changed(config, ["parallel=fsdp2"]) is None
    changed = _changed(config, ["optimizer.name=adamw", "parallel=fsdp2"])
    assert changed is not None
    assert changed.parallel == "fsdp2"
    far = recipe(
        model={"path": "Qwen/Qwen2.5-7B", "reference": "cpu"},
        rollouts={"rows_at_once": 8},
        optimizer={"micro_batch": 1},
    )
    full: Any = SimpleNamespace(config=far, memory=SimpleNamespace(fullest="update"), devices=devices_for(far, "l4"))
    tuned = [overrides for overrides, _ in plan._candidates(full) if "model.weights=bfloat16" in overrides]
    assert len(tuned) == 2
    for overrides in tuned:
        assert {"optimizer.micro_batch=auto", "rollouts.rows_at_once=auto"} <= set(overrides)  # there is room again
        validate(far.model_dump(mode="json"), overrides=overrides)


def test_a_run_is_planned_for_the_processes_that_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    names = {"WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "x", "MASTER_PORT": "1",
             "ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}  # fmt: skip
    for name, value in names.items():
        monkeypatch.setenv(name, value)
    lm: Any = SimpleNamespace(device=torch.device("cpu"))
    devices = beside._devices(recipe(sampler="vllm"), lm)
    assert (devices.gpus, devices.nodes, devices.parallel, devices.engine) == (2, 2, "fsdp2", True)
    served = recipe(**SERVED, model={"path": "Qwen/Qwen2.5-7B"})
    monkeypatch.setattr(beside, "_card", lambda _: CARDS["rtx-4090"])
    lm.model = SimpleNamespace(config=described(served.model).config)
    assert beside._devices(served, lm).serving == 2  # whatever it has, its model has room there


@pytest.mark.nightly
def test_what_does_not_fit_is_told_with_settings_that_do() -> None:
    config = recipe(
        model={"path": "Qwen/Qwen2.5-3B"},
        rollouts={"max_new_tokens": 64, "rows_at_once": 8},
        optimizer={"micro_batch": 1},
    )
    lengths = assumed_lengths(config)
    made = make_plan(config, devices_for(config, "rtx-4090"), lengths, timed=False)
    assert not made.fits
    found = next(turns(made, lengths))
    assert found.plan.fits
    assert "model.tuning=lora" in found.overrides
    named = load_overridden(config, found.overrides)
    assert make_plan(named, made.devices, lengths, timed=False).memory.peak == found.plan.memory.peak


def load_overridden(config: TrainConfig, overrides: tuple[str, ...]) -> TrainConfig:
    changed = plan._changed(config, list(overrides))
    assert changed is not None
    return changed


@pytest.mark.parametrize(
    ("room", "most", "expected"), [(5, 512, 0), (50, 512, 15), (900, 512, 272), (1e9, 40, 40), (6.1, 512, 1)]
)
def test_the_reverse_finds_the_largest_that_fits(room: float, most: int, expected: int) -> None:
    calls: list[int] = []

    def peak(number: int) -> float:
        calls.append(number)
        return 3 + 3 * number + 0.001 * number * number

    assert plan._most(peak, room, most) == pytest.approx(expected, rel=0.07)
    assert len(calls) < 10


def test_cards_are_known_by_the_names_that_torch_has_for_them() -> None:
    names = {"NVIDIA H100 80GB HBM3": "h100", "NVIDIA H200": "h200", "NVIDIA GeForce RTX 4090": "rtx-4090", "NVIDIA L4": "l4",
             "NVIDIA L40S": "l40s", "NVIDIA A100-SXM4-80GB": "a100-80", "NVIDIA A100-SXM4-40GB": "a100-40", "AMD Instinct MI300X": "mi300x"}  # fmt: skip
    assert {name: card_named(name, 1.0).name for name in names} == names
    others = ("Tesla T4", "NVIDIA L40", "NVIDIA A100X", "NVIDIA H100 PCIe", "NVIDIA GeForce RTX 4090 Laptop GPU",
              "NVIDIA H100 80GB HBM3 MIG 1g.10gb")  # fmt: skip
    for other in others:
        assert card_named(other, 15.0) == Card(other, 0, 0, 15.0, 0, 0, 0)
    assert [round(utilisation(width), 2) for width in (1024, 2560, 8192)] == [0.11, 0.22, 0.4]


def test_a_plan_that_fails_is_told_in_a_line_and_stops_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SELFCORRECT_PLAN", raising=False)
    said: list[str] = []
    lm: Any = SimpleNamespace(device=torch.device("cpu"))
    with beside.planned(recipe(), lm, None, tmp_path, said.append):
        said.append("the run")
    assert said[2:] == ["the run"]
    assert said[1].startswith("plan: none (AttributeError: ")
    assert not any(tmp_path.iterdir())
    with pytest.raises(ZeroDivisionError), beside.planned(recipe(), lm, None, tmp_path, said.append):
        _ = 1 / 0


@pytest.mark.parametrize(
    ("config", "attention"),
    [(LlamaConfig(**SMALL), "sdpa"), (LlamaConfig(**SMALL), "flash_attention_2"), (FalconConfig(**SMALL), "sdpa"),
     (FalconConfig(**SMALL, alibi=True), "sdpa"), (MistralConfig(**SMALL, sliding_window=6), "sdpa")],
)  # fmt: skip
def test_a_plan_shares_and_packs_where_a_run_would(config: Any, attention: str) -> None:
    """With one model's own code: there is no flash attention here, so its name alone is put there."""
    lm = tiny_lm()
    lm.model.config, lm.model.config._attn_implementation_internal = copy.deepcopy(config), attention
    changed = recipe(model={"path": "lab", "attention": attention})
    assert dressed(changed, Spec("lab", config), CARDS["h100"]).attends_to_all == lm.attends_to_all


@pytest.mark.parametrize(
    ("told", "gpu", "why"),
    [
        ({"model_type": "bloom", "hidden_size": 64, "n_layer": 2, "n_head": 4}, "h100", "type bloom.*does not support"),
        ({"model_type": "bloom", "hidden_size": 64, "n_layer": 2, "n_head": 4}, "cpu", "type bloom attend otherwise"),
        ({"model_type": "gpt_neo", "hidden_size": 64, "num_layers": 2, "num_heads": 4,
          "attention_types": [[["global", "local"], 1]]}, "cpu", "type gpt_neo"),
        ({"model_type": "llama", "hidden_size": 577, "num_attention_heads": 4}, "h100", r"The hidden size \(577\) is"),
    ],
)  # fmt: skip
def test_a_model_that_cannot_be_planned_is_told_in_a_line(
    told: dict[str, Any], gpu: str, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if gpu == "cpu":
        unrehearsed(monkeypatch)
    (tmp_path / "config.json").write_text(json.dumps(told | {"vocab_size": 300}))
    config = recipe(model={"path": str(tmp_path)})
    with pytest.raises(ModelError, match=rf"^model\.path[^\n]*: no plan [^\n]*{why}[^\n]*$"):
        make_plan(config, devices_for(config, gpu))


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ({"gpu": "t4"}, "--gpu t4: not in the table; there are h100, "),
        ({"gpu": "RTX4090"}, r"--gpu RTX4090: not in the table; did you mean rtx-4090\? there are h100, "),
        ({"gpu": "a100"}, r"did you mean a100-80 or a100-40\? there are"),
        ({"gpu": "cpu", "gpus": 2}, "--gpu cpu is this machine's processor"),
        ({"attempt_tokens": 5000}, "--attempt-tokens 5000 is above rollouts.max_new_tokens = 1024"),
    ],
)
def test_refusals_are_one_line(arguments: dict[str, Any], why: str) -> None:
    from selfcorrect.planning.command import plan as command

    with pytest.raises(ConfigError, match=why):
        command(Path("math_qwen2.5-7b-instruct_qlora"), [], **arguments)


@pytest.mark.parametrize(
    ("changes", "cards", "why"),
    [
        ({}, (4, 1, None, 3), r"--serving 3: the model's 28 heads are split over the server's cards"),
        ({"vllm": {"server": "http://localhost:8000", "timeout": 1801.0}}, (4,), "set at most 1800"),
        ({"sampler": "transformers", "vllm": {}}, (4, 1, None, 2), "--serving 2: the recipe has no vllm.server"),
        ({}, (), "parallel = 'fsdp2' spreads training over several processes; --gpus tells how many"),
    ],
)
def test_what_a_run_would_refuse_is_not_planned(changes: dict[str, Any], cards: tuple[Any, ...], why: str) -> None:
    served: dict[str, Any] = {
        "model": {"path": "Qwen/Qwen2.5-7B"}, "parallel": "fsdp2", "sampler": "vllm",
        "vllm": {"server": "http://localhost:8000"},
    }  # fmt: skip
    assert devices_for(recipe(**served), "h100", 4).serving == 1
    assert devices_for(recipe(**served), "rtx-4090", 4).serving == 2
    assert devices_for(recipe(**{**served, "parallel": "auto"}), "cpu").serving == 1  # no engine in the process
    with pytest.raises(ConfigError, match="over several processes; set parallel=auto for one"):
        devices_for(recipe(**served), "cpu")
    with pytest.raises(ConfigError, match=why):
        devices_for(recipe(**{**served, **changes}), "h100", *cards)


def test_the_measured_peak_is_not_the_parents() -> None:
    """A child begins with what its parent held as it was forked, by getrusage."""
    held = bytearray(600 << 20)
    begin = "from __future__ import annotations\nimport contextlib, re, sys\nfrom pathlib import Path\n"
    code = f"{begin}{inspect.getsource(beside.measured_peak)}\nprint(measured_peak(None))"  # and nothing heavy
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, close_fds=False)
    assert 0 < float(done.stdout) < len(held)


def test_an_engine_in_each_process_is_counted_beside_the_whole_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    unrehearsed(monkeypatch)
    plans = [
        make_plan(recipe(**about), devices_for(recipe(**about), "h100", 4), timed=False)
        for about in (
            {"model": {"path": "Qwen/Qwen2.5-7B"}, "parallel": parallel, "sampler": sampler, **ONE_ROW}
            for parallel, sampler in (("fsdp2", "vllm"), ("fsdp2", "transformers"), ("ddp", "vllm"))
        )
    ]
    parts = [plan.memory.phases["sampling"] for plan in plans]
    assert parts[0]["engine's weights"] == parts[2]["engine's weights"] > 14e9  # one card's, not split over four
    assert parts[0]["whole copy for sampling"] == parts[1]["whole copy for sampling"] > 14e9
    assert not parts[2]["whole copy for sampling"]


@pytest.mark.nightly
def test_the_command_tells_it_as_json() -> None:
    line = [
        sys.executable,
        "-m",
        "selfcorrect.cli",
        "plan",
        "math_qwen2.5-1.5b-instruct_lora",
        "--gpu",
        "l40s",
        "--json",
    ]
    told = json.loads(subprocess.run(line, capture_output=True, text=True, check=True).stdout)
    assert told["fits"] is True
    assert sum(told["bytes"].values()) == pytest.approx(told["peak_bytes"])
    assert sum(told["seconds"].values()) == pytest.approx(told["step_seconds"])


@pytest.mark.nightly
def test_a_longer_attempt_or_a_wider_batch_never_takes_less() -> None:
    config = recipe(
        model={"path": "HuggingFaceTB/SmolLM2-135M"},
        rollouts={"max_new_tokens": 64, "rows_at_once": 16, "problems_per_step": 4},
        optimizer={"micro_batch": 4, "padding_free": False},
    )
    card = CARDS["l4"]
    spec: Spec = described(config.model)

    def peak(change: Callable[[dict[str, Any]], None]) -> float:
        told = config.model_dump(mode="json")
        change(told)
        changed = validate(told)
        assert isinstance(changed, TrainConfig)
        return make_plan(changed, Devices(card), spec=spec, timed=False).memory.peak

    plain = peak(lambda told: None)
    assert peak(lambda told: told["rollouts"].update(max_new_tokens=512)) > plain
    assert peak(lambda told: told["optimizer"].update(micro_batch=8)) >= plain
    assert peak(lambda told: told["stages"][0].update(beta1=0.0)) < plain  # no reference
