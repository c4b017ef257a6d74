"""`selfcorrect plan` beyond one plan: --reverse, what bounds the sync of a step, and the numbers that a plan rests on."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import typer

from selfcorrect.config import TrainConfig
from selfcorrect.config.recipe import load_recipe, validate
from selfcorrect.errors import ConfigError
from selfcorrect.models.sizing import Static
from selfcorrect.parallel.gradients import BUCKET
from selfcorrect.planning import beside
from selfcorrect.planning import plan as planning
from selfcorrect.planning.command import plan as command
from selfcorrect.planning.hardware import CARDS, HOST_BYTES, card_named
from selfcorrect.planning.memory import memory
from selfcorrect.planning.pace import HOST, LINKS, Links, Pace, links, pace, sync
from selfcorrect.planning.page import resting_on, row
from selfcorrect.planning.plan import Devices, Plan, cheapest_card, largest_micro_batch, longest_attempt, make_plan
from selfcorrect.planning.settled import static
from selfcorrect.planning.spec import described
from selfcorrect.planning.work import assumed_lengths, fullest_of, step_of, update_of
from selfcorrect.waiting import cores
from tests.support.plans import ONE_ROW, unrehearsed

RECIPES = Path(__file__).parents[2] / "recipes"
SMALL = ("model.path=HuggingFaceTB/SmolLM2-135M", "rollouts.rows_at_once=8", "rollouts.problems_per_step=8",
         "optimizer.gradient_checkpointing=true")  # auto would be settled anew for each size  # fmt: skip
CARD = replace(CARDS["l4"], gib=4.6)


def shipped(stem: str, *overrides: str) -> TrainConfig:
    config = load_recipe(RECIPES / f"{stem}.yaml", list(overrides))
    assert isinstance(config, TrainConfig)
    return config


SHORT = ("rollouts.max_new_tokens=64", "optimizer.micro_batch=2")


def planned(*overrides: str) -> Plan:
    config = shipped("countdown", *SMALL, *overrides)
    return make_plan(config, Devices(CARD), assumed_lengths(config), timed=False)


@pytest.mark.nightly
def test_the_largest_micro_batch_fits_and_the_next_does_not() -> None:
    short = "rollouts.max_new_tokens=64"
    said: list[str] = []
    found = largest_micro_batch(planned(short), said.append)
    assert f"trying a micro-batch of {found}" in said
    assert 8 < found < 64
    assert planned(short, f"optimizer.micro_batch={found}").fits
    assert not planned(short, f"optimizer.micro_batch={found + max(1, found // 16)}").fits


@pytest.mark.nightly
def test_the_longest_attempt_fits_and_the_next_does_not() -> None:
    units = longest_attempt(planned(*SHORT)) // 64
    assert units > 4
    longer = [64 * units, 64 * (units + max(1, units // 16))]
    assert [planned(*SHORT, f"rollouts.max_new_tokens={limit}").fits for limit in longer] == [True, False]


def test_of_a_card_that_is_not_in_the_table_memory_is_planned(monkeypatch: pytest.MonkeyPatch) -> None:
    unrehearsed(monkeypatch)
    config = shipped("countdown", *SMALL, *SHORT)
    other, known = (make_plan(config, Devices(card)) for card in (card_named("Tesla T4", 79.1), CARDS["h100"]))
    assert (other.memory, other.pace) == (known.memory, None)
    assert beside.told(other).endswith("); no seconds, as Tesla T4 is not in the table of cards")
    assert not {"card_tflops", "dollars_per_card_and_hour"} & {*row(other)["rests_on"]}


def test_the_usual_card_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError, match="--serving 3"):
        command(Path("countdown"), serving=3)
    assert capsys.readouterr().err == "for an h100; --gpu names another card, or cpu for this machine's processor\n"


def test_a_script_can_tell_what_does_not_fit(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    unrehearsed(monkeypatch)
    monkeypatch.setattr(planning, "turns", lambda *_: [])
    with pytest.raises(typer.Exit) as ended:
        command(
            Path("math_qwen2.5-1.5b-instruct"), ["rollouts.rows_at_once=8", "optimizer.micro_batch=1"], gpu="rtx-4090"
        )
    assert ended.value.exit_code == 1
    assert "nothing tried makes it fit" in capsys.readouterr().out


def test_there_is_no_reverse_where_nothing_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    unrehearsed(monkeypatch)
    assert planning._most(lambda rows: 0.0, 1.0, 0) == 0  # a model that reads less than 64 tokens
    made = replace(planned(*SHORT), devices=Devices(replace(CARD, gib=1.0)))
    assert largest_micro_batch(made) == longest_attempt(made) == 0


def test_a_longer_attempt_has_to_fit_on_the_server_too(monkeypatch: pytest.MonkeyPatch) -> None:
    unrehearsed(monkeypatch)
    made = planned(*SHORT)
    monkeypatch.setattr(Plan, "server", 2 * CARD.bytes)
    assert longest_attempt(made) == 0


def test_the_cheapest_card_is_that_of_least_cost_among_those_that_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    """With cards of an eighth of their memory, for a small model."""
    cards = {name: replace(card, gib=card.gib / 8) for name, card in CARDS.items()}
    monkeypatch.setattr(planning, "CARDS", cards)
    config = shipped("countdown", *SMALL, *SHORT)
    lengths = assumed_lengths(config)
    made = make_plan(config, Devices(cards["h100"], price=9.0), lengths)
    plans = [make_plan(config, Devices(card), lengths) for card in cards.values()]
    assert {plan.fits for plan in plans} == {True, False}
    best = min((plan for plan in plans if plan.fits), key=lambda plan: plan.dollars)
    found = cheapest_card(made, config, lengths)
    assert found
    assert found.devices.card == best.devices.card
    assert found.dollars == best.dollars > min(plan.dollars for plan in plans)


def big(**sections: Any) -> TrainConfig:
    stage = {"name": "a", "objective": "stage2", "steps": 10, "learning_rate": 1e-6}
    config = validate({"stages": [stage], "parallel": "fsdp2", **sections})
    assert isinstance(config, TrainConfig)
    return config


SERVED: dict[str, Any] = {"sampler": "vllm", "vllm": {"server": "http://localhost:8000"}}


def synced(devices: Devices, weights: str = "float32", **sections: Any) -> tuple[float, float, str]:
    """Billions of bytes of a copy that pass through links and memory, beyond FSDP's own, and the bound of a step."""
    config = big(model={"path": "Qwen/Qwen2.5-7B", "weights": weights}, **sections)
    laid_out = planning._laid_out(config, devices, assumed_lengths(config), described(config.model))
    fixed, model, step, spread = laid_out
    of = model.numbers.all
    found = sync(fixed, model, Links(1.0, 1.0, 1.0), step, spread, 1e18)
    hidden = sync(fixed, model, Links(1.0, 1.0, 1.0), step, replace(spread, engine=False, beside=False), 1e18)
    own = model.costume.weights.itemsize * (spread.devices - 1) / spread.devices * of  # gathered without an engine
    assert devices.card
    bound = pace(fixed, model, devices.card, step, spread, devices.nodes).bound
    return (found[LINKS] - hidden[LINKS] + own) / of, found[HOST] * HOST_BYTES / of, bound


@pytest.mark.parametrize("weights", ["float32", "bfloat16"])
def test_sync_gathers_a_copy_for_an_engine_and_for_a_server(weights: str) -> None:
    width = getattr(torch, weights).itemsize
    alone = synced(Devices(CARDS["h100"], 4, parallel="fsdp2"), weights)
    own = synced(Devices(CARDS["h100"], 4, parallel="fsdp2", engine=True), weights, sampler="vllm")
    served = synced(Devices(CARDS["h100"], 4, parallel="fsdp2", engine=True, serving=2), weights, **SERVED)
    assert alone[:2] == pytest.approx((width * 3 / 4, 0))
    assert own[:2] == alone[:2]  # gathered, and then handed over where it lies
    assert served[:2] == pytest.approx((width * 3 / 4 + 2, width + 2))  # into the memory, cast, and out of it


def test_copies_of_shards_gather_within_a_machine_and_sum_between_machines(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of every weight four bytes pass each way between copies, a shard by each device; all else stays in a machine."""
    unrehearsed(monkeypatch)
    config = big(model={"path": "Qwen/Qwen2.5-7B"}, **ONE_ROW)
    card, sent, held, rates = CARDS["h100"], list[tuple[float, float]](), list[Static](), list[list[float]]()
    for parallel, nodes in (("hsdp", 2), ("fsdp2", 1), ("fsdp2", 2), ("ddp", 2)):
        devices = Devices(card, 4, nodes, parallel)
        laid_out = planning._laid_out(config, devices, assumed_lengths(config), described(config.model))
        fixed, model, step, spread = laid_out
        endless = float("inf")
        near, far = (
            sync(fixed, model, rate, step, spread, 0.0)[LINKS] / model.numbers.all
            for rate in (Links(1.0, endless, endless), Links(endless, 1.0, endless))
        )
        sent.append((near, far))
        held.append(static(fixed, model, card, spread.shards))
        if parallel == "hsdp":
            assert memory(fixed, model, card, step, spread).phases["sync"]["sync buffers"] == 4 * BUCKET
        own = links(card, spread, 1).gathered / card.link  # of what is promised
        rates.append([rate / own for rate in links(card, spread, nodes)])
    assert [far for _, far in sent] == pytest.approx([2 * 4 / 4 * 1 / 2, 0, 0, 2 * 4 * 7 / 8])
    # Over machines each card of one has a way of its own, and rings go by all of them; shards go by their card's alone.
    assert rates[0] == pytest.approx([450, 50, 50])
    assert rates[1] == pytest.approx([450, 450, 450])
    assert rates[2] == pytest.approx([4 * 50, 4 * 50, 50])
    assert rates[3][1] == pytest.approx(4 * 50)
    assert 0 < sent[0][0] < sent[1][0]  # half as many rows a device as on one machine
    assert sent[3][0] == 0
    assert held[0] == held[1] != held[2]


def test_an_adapter_alone_is_gathered() -> None:
    config = big(model={"path": "Qwen/Qwen2.5-7B", "tuning": "lora", "weights": "bfloat16"})
    devices = Devices(CARDS["h100"], 4, parallel="fsdp2")
    fixed, model, step, spread = planning._laid_out(config, devices, assumed_lengths(config), described(config.model))
    without, rates = replace(model, numbers=replace(model.numbers, trained=0.0)), Links(1.0, 1.0, 1.0)
    shown, hidden = (sync(fixed, without, rates, step, spread, beside)[LINKS] for beside in (0.0, 1e18))
    assert hidden == pytest.approx(0.1 * shown)  # all of it FSDP's own: what is frozen is gathered into no copy
    assert sync(fixed, model, rates, step, spread, 1e18)[LINKS] > hidden + 4 * 3 / 4 * model.numbers.trained
    alone, merged = (
        sync(
            fixed.model_copy(update={"vllm": fixed.vllm.model_copy(update={"adapter": how})}),
            model,
            rates,
            step,
            replace(spread, engine=True, beside=True),
            1e18,
        )[LINKS]
        for how in ("auto", "merged")
    )
    assert merged - alone == 2 * (model.numbers.all - model.numbers.trained)


def test_the_bound_of_sync_is_its_longest_part() -> None:
    few: dict[str, Any] = {"rollouts": {"problems_per_step": 4, "rollouts_per_problem": 2, "max_new_tokens": 16}}
    slow = replace(CARDS["h100"], link=1.0)
    served = Devices(CARDS["h100"], 4, parallel="fsdp2", engine=True, serving=2)
    assert synced(served, **SERVED, **few)[2] == f"sync: {HOST}"
    assert synced(replace(served, card=slow), **SERVED, **few)[2] == f"sync: {LINKS}"


def rests(config: TrainConfig, devices: Devices) -> tuple[dict[str, float], str]:
    made = make_plan(config, devices, assumed_lengths(config, 8.0, 8.0), timed=devices.card is not None)
    made = replace(made, pace=made.pace or Pace({"rollouts": 1.0}, "", 1.0))  # a processor's takes seconds
    return row(made)["rests_on"], "\n".join(resting_on(made))


@pytest.mark.parametrize(
    ("rows", "fullest", "packed", "second"),
    [(8, None, True, 1.0), (8, 50.0, True, 0.5), (8, 80.0, True, 1.0), (6, None, True, 0.5), (64, 30.0, True, 1.0),
     (8, 30.0, False, 1.0), (6, 30.0, False, 0.5), (4, None, True, None), (6, 10.0, True, None)],
)  # fmt: skip
def test_a_second_micro_batch_is_as_full_as_its_step_makes_it(
    rows: int, fullest: float | None, packed: bool, second: float | None
) -> None:
    """The first one's tensors are gone by then, and all gradients are there: only a full second one takes most."""
    config = big(optimizer={"micro_batch": 4, "padding_free": packed})
    lengths = replace(
        assumed_lengths(config), prompt=40.0, longest=40.0, turn=10.0, attempt=10.0, limit=75, fullest=fullest
    )
    step = replace(step_of(config, lengths), rows=rows, groups=1)
    longest = update_of(config, step, False, 1 << 30, in_place=True)
    assert (longest.rows, longest.rest, longest.trained) == (4, 199, 150)
    tried = fullest_of(step, longest)
    if second == 1:
        assert tried == [longest]
        return
    assert tried[0] == replace(longest, micro_batches=1)
    if not packed:  # fewer rows, as long as the longest
        assert tried[1:] == [replace(longest, rows=2, scored=2 * 150)]
        return
    found = [(each.rest / longest.rest, each.trained / longest.trained, each.scored) for each in tried[1:]]
    assert len(found) == (second is not None)
    for rest, trained, scored in found:
        assert rest == pytest.approx(second, abs=0.01)
        assert trained == pytest.approx(second, abs=0.01)
        assert scored == 4 * tried[1].trained


LAB = {"name": "countdown", "max_number": 100, "limit": 200, "prompt": "{numbers} : {target}", "correction_prompt": "?"}


@pytest.mark.parametrize(("whole", "given", "share"), [(True, False, 0.17), (False, False, 0.65), (True, True, 0.04)])
def test_what_the_heap_holds_beyond_what_is_alive_hangs_on_how_the_process_began(
    monkeypatch: pytest.MonkeyPatch, whole: bool, given: bool, share: float
) -> None:
    unrehearsed(monkeypatch)
    monkeypatch.setattr("selfcorrect.planning.memory.is_whole", lambda: whole)
    monkeypatch.setattr("selfcorrect.planning.memory.gives_back", lambda: given)
    made = make_plan(big(model={"path": "lab"}, task=LAB, **ONE_ROW), Devices(None), timed=False)
    assert row(made)["rests_on"]["allocator_slack_share"] == share
    gradients = made.memory.static.gradients
    assert gradients
    for phase, passing in (("sampling", 0.0), ("update", gradients), ("loading", None)):  # none where nothing passes
        parts = dict(made.memory.phases[phase])
        held = parts.pop("allocator's slack")
        assert held == pytest.approx(0.0 if passing is None else share * (sum(parts.values()) + passing))


def test_a_torch_that_is_built_for_cuda_takes_more_of_a_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    unrehearsed(monkeypatch)
    found = []
    for build in (None, "13.0"):
        monkeypatch.setattr(torch.version, "cuda", build)
        found.append(
            make_plan(big(model={"path": "lab"}, task=LAB, **ONE_ROW), Devices(None), timed=False).memory.process
        )
    assert found[1] - found[0] == pytest.approx(0.34 * 2**30)


def test_a_plan_tells_the_numbers_that_it_rests_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that it used, and no others; the same in lines and in JSON."""
    unrehearsed(monkeypatch)
    small: dict[str, Any] = {
        "rollouts": {"max_new_tokens": 16, "problems_per_step": 2, "rollouts_per_problem": 2, "rows_at_once": 4},
        "task": LAB,
    }
    lab = {"model": {"path": "lab"}, **small, "optimizer": ONE_ROW["optimizer"]}
    on_card, told = rests(big(**lab), Devices(CARDS["h100"]))
    assert on_card["layer_milliseconds"] == pytest.approx(0.2)
    assert (on_card["grading_cores"], on_card["card_tflops"], on_card["process_gib"]) == (16, 989, 0.8)
    assert on_card["allocator_slack_share"] == 0.03
    assert {"links_gb_per_second", "host_gb_per_second", "engine_gib", "share_of_links"}.isdisjoint(on_card)
    for words in ("0.2 ms a layer", "0.80 GiB of CUDA context", "3% of allocator's slack", "2.50 dollars", "16 cores"):
        assert words in told
    served = Devices(CARDS["h100"], 2, 2, "fsdp2", engine=True, serving=1, price=1.5)
    with_server, told = rests(big(**lab, **SERVED), served)
    assert with_server["layer_milliseconds"] == pytest.approx(0.04)
    assert with_server["dollars_per_card_and_hour"] == 1.5
    assert with_server["host_gb_per_second"] == 10
    assert with_server["network_gb_per_second"] == 50
    assert {"engine_gib", "share_of_links"} <= set(with_server)
    assert "links_gb_per_second" not in with_server
    assert "1.50 dollars a card and hour (given)" in told
    wide, _ = rests(big(**lab), Devices(CARDS["l40s"], 8, 2, "fsdp2"))  # whose eight ways out are more than its links
    assert (wide["links_gb_per_second"], wide["network_gb_per_second"]) == (32, 12)
    one, two = (rests(big(**lab), Devices(None, gpus)) for gpus in (1, 2))
    sharded, _ = rests(big(**lab), Devices(None, 2, parallel="fsdp2"))
    assert set(one[0]) == {"process_gib", "allocator_slack_share", "grading_milliseconds_per_answer", "grading_cores"}
    assert (two[0]["gloo_summed_gb_per_second"], sharded["gloo_gathered_gb_per_second"]) == (1.6, 0.4)
    assert sharded.keys() - two[0].keys() == {"gloo_gathered_gb_per_second"}
    assert one[0]["grading_cores"] == cores()
    assert "1.6 GB/s summed over processes" in two[1]
    assert "GB/s" not in one[1]
