"""What a plan for this machine's processor times, and how often it counts."""

import json
import time
import weakref
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.distributed import HashStore  # type: ignore[attr-defined]
from transformers import LlamaConfig

from selfcorrect.learning.vocabulary import tiles_for
from selfcorrect.models import products
from selfcorrect.planning import beside, cpu, plan, rehearsal
from selfcorrect.planning.page import asked_of
from selfcorrect.planning.plan import Devices, make_plan
from selfcorrect.planning.rehearsal import Line
from selfcorrect.planning.settled import dressed
from selfcorrect.planning.spec import Spec
from selfcorrect.planning.together import Apart, Together
from selfcorrect.planning.work import Update, assumed_lengths, step_of, update_of
from selfcorrect.samplers.prepacked import LEAST_ADAPTED
from tests.support.plans import ONE_ROW, SMALL, recipe


def made_up(patch: pytest.MonkeyPatch) -> None:
    """Each part takes a second, prompts a thousand; no memory is rehearsed."""
    parts = ("step", "step one row", "prefill", "lay out", "rollouts' passes", "optimiser")
    told = {part: Line(1.0, 0.0) for part in parts} | {"prompts' passes": Line(1000.0, 0.0)}
    patch.setattr(cpu, "_timings", lambda *_: told)
    patch.setattr(plan, "memory", lambda *_: None)


def once_each(patch: pytest.MonkeyPatch) -> None:
    """No piece is timed again for the sake of its seconds."""
    patch.setattr(cpu, "_LEAST", 0.0)
    patch.setattr(cpu, "_ROUNDS", 1)


def test_each_process_has_its_own_share_of_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """On made-up times of one second each, as each times its own: half of the rows, and of the optimiser's step in
    shards. Prompts that rows share, of a thousand seconds here, count once, and not once a micro-batch.
    """
    made_up(monkeypatch)
    config = recipe(optimizer=ONE_ROW["optimizer"], rollouts={"problems_per_step": 4, "rows_at_once": 512})
    kinds = ((1, "ddp"), (2, "ddp"), (2, "fsdp2"))
    paces = [make_plan(config, Devices(None, gpus, parallel=parallel)).pace for gpus, parallel in kinds]
    one, ddp, fsdp2 = (pace.seconds for pace in paces if pace)
    assert ddp["rollouts"] == fsdp2["rollouts"] == pytest.approx(one["rollouts"])
    rows = 4 * config.rollouts.rollouts_per_problem
    assert one["update"] == pytest.approx(rows + 1000 + 1)
    assert ddp["update"] == pytest.approx(rows / 2 + 1000 + 1)
    assert fsdp2["update"] == pytest.approx(rows / 2 + 1 / 2)  # which shares no prompts
    assert one["grading"] == ddp["grading"]  # by the cores of all


@pytest.mark.parametrize("copies", [True, False])
def test_decoding_is_timed_with_adapters_as_it_multiplies_with_them(
    monkeypatch: pytest.MonkeyPatch, copies: bool
) -> None:
    """In float32 copies for sampling hold them too (samplers/prepacked.py)."""
    own, called = rehearsal._Adapted.forward, list[int]()

    def noted(self: Any, x: Any) -> Any:
        called.append(self.base.weight.numel())
        return own(self, x)

    config = LlamaConfig(**SMALL | {"hidden_size": 256, "intermediate_size": 512})
    changed = recipe(model={"path": "lab", "tuning": "lora", "precision": "float32", "sampling_copies": copies})
    lm = rehearsal.stand_in(dressed(changed, Spec("lab", config), None).costume, 1)
    once_each(monkeypatch)
    monkeypatch.setattr(rehearsal._Adapted, "forward", noted)
    cpu._sampling([lm], 2, 4, 1, Apart())
    whole = copies and products.works(torch.float32)
    assert bool([size for size in called if size >= LEAST_ADAPTED]) != whole
    assert len(rehearsal.adapters(lm.model)) == 7


def test_a_machine_that_slows_down_slows_both_models_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    """The line through two models goes far beyond both: times of different moments would bend it. The first round, in
    which memory is taken, does not count.
    """
    slower = [50.0, 1.0, 4.0, 2.0]  # by round

    class Made:
        def __init__(self, seconds: float) -> None:
            self.seconds, self.rounds, self.weight = seconds, 0, object()
            self.get_input_embeddings = self.get_output_embeddings = lambda: self
            self.model = self

    def sampling(lms: list[Made], *_: Any) -> list[dict[str, float]]:
        return [{"step": lm.seconds * slower[lm.rounds]} for lm in lms]

    def learning(lm: Made, *_: Any) -> dict[str, float]:
        lm.rounds += 1
        return {"rollouts' passes": 10 * lm.seconds * slower[lm.rounds - 1]}

    for name, made in (("_sampling", sampling), ("_learning", learning), ("_moving", lambda lm, _: lm.seconds)):
        monkeypatch.setattr(cpu, name, made)
    monkeypatch.setattr(products, "serve", lambda _: None)
    monkeypatch.setattr(cpu, "_ROUNDS", 3)
    lms = [Made(0.1), Made(0.4)]
    few, many = cpu._of_both(lms, *[None] * 5)  # type: ignore[arg-type]
    assert few == pytest.approx({"step": 0.2, "rollouts' passes": 2.0, "optimiser": 0.1})
    assert many == pytest.approx({"step": 0.8, "rollouts' passes": 8.0, "optimiser": 0.4})
    assert lms[0].weight is lms[1].weight


def test_processes_of_a_machine_begin_every_piece_at_once() -> None:
    """A process that decodes while another multiplies has more of the memory than one in a step of a run has."""
    store, log, agreed = HashStore(), list[tuple[int, str]](), list[list[bool]]([[], []])

    def times(rank: int) -> None:
        others = Together(store, rank, range(2))
        for number, piece in enumerate("abc"):
            if rank:
                time.sleep(0.05)
            agreed[rank].append(others.agreed(rank == number % 2))
            others.begin()
            log.append((rank, piece))
        others.end()

    both = [Thread(target=times, args=(rank,)) for rank in range(2)]
    for each in both:
        each.start()
    for each in both:
        each.join(10)
    assert [piece for _, piece in log] == list("aabbcc")
    assert agreed[0] == agreed[1] == [True, False, True]  # the first to ask decides for both
    start = time.perf_counter()
    Together(store, 2, range(1, 3)).begin()  # the other one has ended
    lost = Together(store, 3, range(3, 5), patience=0.05)  # the other one never comes, and is waited for once
    for _ in range(100):
        lost.begin()
    assert time.perf_counter() - start < 4


def test_models_that_were_timed_are_let_go_of(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their parts hold each other, and the run that comes next needs the memory."""
    own, timed = cpu._of_both, list[tuple[int, weakref.ref[Any]]]()

    def noted(lms: Any, *given: Any) -> list[dict[str, float]]:
        for lm in lms:
            timed.append((lm.model.config.num_hidden_layers, weakref.ref(lm.model)))
            lm.model.itself = lm.model  # on this processor too
        return own(lms, *given)

    monkeypatch.setattr(cpu, "_of_both", noted)
    cpu._timings.cache_clear()
    once_each(monkeypatch)
    monkeypatch.setattr(plan, "memory", lambda *_: None)
    few = {"problems_per_step": 1, "rollouts_per_problem": 2, "max_new_tokens": 16, "rows_at_once": 2}
    make_plan(recipe(rollouts=few, optimizer=ONE_ROW["optimizer"]), Devices(None))
    assert [layers for layers, _ in timed] == [1, 5]  # all that the lab's model has
    assert not any(model() for _, model in timed)


def test_seconds_are_of_micro_batches_as_full_as_they_are_and_of_all_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a processor: packed rows fill the room of the longest; what several processes do is one processor's work."""
    made_up(monkeypatch)
    optimizer = ONE_ROW["optimizer"] | {"micro_batch": 4, "padding_free": True}
    config = recipe(optimizer=optimizer, rollouts={"problems_per_step": 4, "rows_at_once": 512})
    lengths = replace(assumed_lengths(config), prompt=20.0, longest=40.0, turn=10.0, attempt=30.0, limit=80)
    step = step_of(config, lengths)
    rows = [update_of(config, step, True, 1, in_place=True, longest=longest).rows for longest in (True, False)]
    assert rows == [4, int(4 * (40 + 2 * 80 + 10) / (20 + 2 * 30 + 10))]
    one, two = (make_plan(config, Devices(None, gpus), lengths).pace for gpus in (1, 2))
    assert one
    assert two
    assert one.tokens == two.tokens
    assert two.seconds["sync"] > one.seconds["sync"] == 0


def test_of_fewer_rows_the_same_share_of_tiles_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that are not are made a second time in the backward pass, which is most of a large vocabulary's work."""
    made_up(monkeypatch)
    told, seen = cpu._timings, list[tuple[int, int]]()

    def timed(work: Update, key: Any, *others: Any) -> dict[str, Line]:
        seen.append((work.rows, key.costume.tiles.kept))
        return told(work, key, *others)

    monkeypatch.setattr(cpu, "_timings", timed)
    for flops in (1.0, 1e18):
        monkeypatch.setattr(cpu, "_FLOPS", flops)
        make_plan(recipe(optimizer=ONE_ROW["optimizer"] | {"micro_batch": 4, "padding_free": False}), Devices(None))
    kept = tiles_for(torch.device("cpu")).kept
    assert seen == [(1, kept // 4), (4, kept)]


@pytest.mark.parametrize(
    ("rank", "beside_it", "device", "times"), [(1, 2, "cpu", 1), (1, 1, "cpu", 0), (1, 2, "meta", 0)]
)
def test_those_on_the_first_ones_processor_plan_in_silence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rank: int, beside_it: int, device: str, times: int
) -> None:
    """Layers are timed on all of them at once."""
    monkeypatch.delenv("SELFCORRECT_PLAN", raising=False)
    started = {"WORLD_SIZE": 2, "RANK": rank, "LOCAL_WORLD_SIZE": beside_it, "MASTER_ADDR": "x", "MASTER_PORT": 1}
    for name, value in started.items():
        monkeypatch.setenv(name, str(value))
    said, planned, lm = list[str](), list[bool](), SimpleNamespace(device=torch.device(device))
    monkeypatch.setattr(beside, "_plan", lambda *_: planned.append(True))
    with beside.planned(recipe(), lm, None, tmp_path, said.append):  # type: ignore[arg-type]
        pass
    assert (len(planned), said, list(tmp_path.iterdir())) == (times, [], [])


def test_a_run_that_goes_on_as_it_was_is_not_planned_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And what it took before stays where nothing was left to do."""
    monkeypatch.delenv("SELFCORRECT_PLAN", raising=False)
    config = recipe(rollouts={"rows_at_once": 4}, optimizer=ONE_ROW["optimizer"])
    other = recipe(rollouts={"rows_at_once": 8}, optimizer=ONE_ROW["optimizer"])
    planned, lm = list[bool](), SimpleNamespace(device=torch.device("cpu"))
    monkeypatch.setattr(beside, "_plan", lambda *_, **__: planned.append(True))
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    devices = beside._devices(config, lm)  # type: ignore[arg-type]
    kept = json.dumps({"predicted": asked_of(config, devices), "measured": {}})
    (tmp_path / "plan.json").write_text(kept)
    for goes_by, times in ((config, 0), (other, 1)):
        with beside.planned(goes_by, lm, None, tmp_path, lambda _: None):  # type: ignore[arg-type]
            pass
        assert (len(planned), (tmp_path / "plan.json").read_text()) == (times, kept)


@pytest.mark.parametrize("says", [True, False])
def test_whether_layers_are_timed_again_is_not_each_processs_own_matter(
    says: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its own clock one may have planned a moment longer than another, which would wait for it."""
    asked, timed = list[bool](), list[bool]()

    class Others(Apart):
        def agreed(self, more: bool) -> bool:
            asked.append(more)
            return says

    monkeypatch.setattr(beside, "timing_together", lambda: nullcontext(Others()))
    monkeypatch.setattr(beside, "row", lambda _: {})
    monkeypatch.setattr(beside, "at_lengths_that_came", lambda *_, timed: again(timed))

    def again(timing: bool) -> Any:
        timed.append(timing)
        return SimpleNamespace(step=made.step, pace=None, memory=SimpleNamespace(peak=1.0))

    step = {"sampled_tokens": 8, "longest": 9, "seconds": 2.0, "seconds_by_part": dict.fromkeys(beside.PHASES, 1.0)}
    (tmp_path / "metrics.jsonl").write_text(f"{json.dumps(step)}\n" * 3)
    made: Any = SimpleNamespace(devices=Devices(None), step=SimpleNamespace(lengths=SimpleNamespace(attempt=4.0)))
    for least in (5.0, 7.0):
        beside._tell_measured(made, {}, recipe(), tmp_path, lambda _: None, least)
    assert (asked, timed) == ([True, False], [says, says])
