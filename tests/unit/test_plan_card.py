"""What a plan for a card counts that a processor's does not. `make card` holds whole plans against runs."""

import copy
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn import functional
from transformers import Qwen2Config

from selfcorrect.errors import ConfigError
from selfcorrect.learning import vocabulary
from selfcorrect.learning.vocabulary import Tiles
from selfcorrect.planning import memory, rehearsal
from selfcorrect.planning.casts import CardsCasts
from selfcorrect.planning.hardware import CARDS
from selfcorrect.planning.plan import Devices, _candidates, make_plan
from selfcorrect.planning.rehearsal import Costume, sampling, update
from selfcorrect.planning.spec import Spec
from selfcorrect.planning.work import Sampling, Update
from tests.support.plans import ONE_ROW, SMALL, STAGE, of_one_layer, recipe, unrehearsed
from tests.support.tiny import tiny_lm

BFLOAT = torch.bfloat16


def costume(**changed: Any) -> Costume:
    config = copy.deepcopy(tiny_lm("llama", hidden=64).model.config)
    config.vocab_size = 50_000
    config.num_hidden_layers = 1
    return replace(
        Costume(config, torch.float32, BFLOAT, "sdpa", Tiles(1 << 30, 1 << 13, 1 << 30), on_card=True), **changed
    )


def test_autocast_of_a_card_widens_what_a_processors_does_not() -> None:
    half = torch.ones(2, 2, dtype=BFLOAT)
    with CardsCasts():
        assert (half**2).dtype == BFLOAT
        with torch.autocast("cpu", BFLOAT):
            wide = (half**3, half.pow(2), half.exp(), half.softmax(-1), functional.layer_norm(half, (2,)), half.sum())
            assert {each.dtype for each in wide} == {torch.float32}
            assert {(half * half).dtype, functional.gelu(half).dtype, (half @ half).dtype} == {BFLOAT}
            assert half.sum(dtype=BFLOAT).dtype == BFLOAT


def test_a_rehearsed_step_has_the_casts_that_sampling_lends() -> None:
    """It makes none of its own: the head's alone would be 6.1 MiB."""
    work = Sampling(8, 256, 8, 20)
    kept, lent = (of_one_layer(one, sampling(one, work)) for one in (costume(weights=BFLOAT), costume()))
    assert lent == pytest.approx(kept, rel=0.05)
    greedy = of_one_layer(costume(), sampling(costume(), replace(work, greedy=True)))
    assert lent["step"] - greedy["step"] == pytest.approx(8 * 50_000 * 4, rel=0.05)  # the shares


def test_a_cards_products_are_added_up_without_casts() -> None:
    """A processor widens a tile's gradient, and the part of the head that it came from."""
    work = Update(2, 9, 8, 16, 0, 0, 2, packed=False, again=False, in_place=True)
    peaks = []
    for one in (costume(), costume(on_card=False)):
        peaks.append(of_one_layer(one, update(one, work))["peak 1"])
    assert peaks[1] - peaks[0] > 4 * 64 * (1 << 13) / 2


def test_a_rehearsal_lets_others_train() -> None:
    """In another thread of a session: what a card needs no casts for, a processor's sums would lose."""
    total, half = torch.zeros(2, 2), torch.ones(2, 2, dtype=BFLOAT)
    with rehearsal._as_on_device(on_card=True):
        vocabulary._add_product(total, half, half)
    assert total.tolist() == [[2, 2], [2, 2]]


def test_what_sampling_leaves_on_a_card_is_there_in_the_update(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lanes and graphs of a step; those of a far wider evaluation are let go of, and are a phase of their own."""
    unrehearsed(monkeypatch)
    rollouts = {"problems_per_step": 2, "rollouts_per_problem": 2, "rows_at_once": 64}
    config = recipe(rollouts=rollouts, optimizer=ONE_ROW["optimizer"], evaluation={"problems": 40})
    single = recipe(stages=[{**STAGE, "objective": "single_turn"}]).stages

    def phases(stages: Any = config.stages, **evaluation: Any) -> dict[str, dict[str, float]]:
        evaluated = config.evaluation.model_copy(update=evaluation)
        asked = config.model_copy(update={"evaluation": evaluated, "stages": stages})
        spec = Spec("small", Qwen2Config(**SMALL, num_key_value_heads=2, intermediate_size=64))
        return make_plan(asked, Devices(CARDS["h100"], 2, 1, "fsdp2"), spec=spec, timed=False).memory.phases

    few, wide = phases(problems=4), phases()
    assert few.keys() == {"sampling", "update"}
    assert wide.keys() == {"sampling", "evaluation", "update"}
    assert few["update"] == wide["update"]
    longer = phases(single, problems=4)  # of two attempts
    assert longer["evaluation"]["KV cache"] == few["sampling"]["KV cache"] > longer["sampling"]["KV cache"]
    assert few["update"]["CUDA graphs"] == few["sampling"]["CUDA graphs"] > 0
    assert wide["evaluation"]["KV cache"] > 2 * wide["update"]["KV cache"]
    assert wide["evaluation"]["whole copy for sampling"] == wide["sampling"]["whole copy for sampling"] > 0
    monkeypatch.setattr(memory, "KEPT", 3)  # its 24 lanes are no more than three times the 8 of a step
    beside = phases()
    assert beside["update"]["KV cache"] == 3 * few["update"]["KV cache"]
    assert beside["sampling"]["KV cache"] - few["sampling"]["KV cache"] == 2 * few["update"]["KV cache"]
    assert beside["update"]["CUDA graphs"] == beside["evaluation"]["CUDA graphs"]


def test_devices_share_what_is_evaluated_side_by_side() -> None:
    def rows(devices: int, **sections: Any) -> int:
        config = recipe(rollouts={"rows_at_once": 64}, **sections)
        return memory._evaluated(config, memory.Spread(devices))

    assert [rows(devices, evaluation={"problems": 40}) for devices in (1, 3)] == [40, 14]
    assert [rows(devices, evaluation={"problems": 400}) for devices in (1, 8)] == [64, 8]
    assert rows(1, evaluation={"problems": 4, "external": ["more.jsonl"]}) == 64  # it may have any number of them
    assert rows(1, evaluation={"problems": 4}, checkpoint={"held_out": "more.jsonl", "select": "held_out"}) == 64


@pytest.mark.parametrize("objective", ["stage2", "single_turn"])
def test_attempts_beyond_what_the_model_reads_are_not_planned(objective: str) -> None:
    """Evaluations play all of them."""
    rollouts = {"max_new_tokens": 16_385, "rows_at_once": 8}
    about: dict[str, Any] = {**ONE_ROW, "rollouts": rollouts, "stages": [{**STAGE, "objective": objective}]}
    config = recipe(**about, model={"path": "Qwen/Qwen2.5-7B"})
    with pytest.raises(ConfigError, match=r"max_new_tokens = 16385: 2 attempts .* more than the 32768 tokens"):
        make_plan(config, Devices(CARDS["h100"]))


@pytest.mark.parametrize("parallel", ["ddp", "fsdp2"])
def test_each_advice_is_given_once(parallel: str) -> None:
    """Among it weights in 4 bits that every card holds whole, as sampling gathers what lies in shards."""
    config = recipe(**ONE_ROW, model={"path": "Qwen/Qwen2.5-7B", "tuning": "lora"}, parallel=parallel)
    plan: Any = SimpleNamespace(
        config=config, memory=SimpleNamespace(fullest="update"), devices=Devices(CARDS["l4"], 8, parallel=parallel)
    )
    advised = [tuple(overrides) for overrides, _ in _candidates(plan)]
    assert len(advised) == len(set(advised))
    whole = [overrides for overrides in advised if "parallel=ddp" in overrides]
    assert ["model.tuning=qlora" in overrides for overrides in whole] == [True] * (parallel == "fsdp2")
