"""Two processes over gloo, each with an engine of its own: they sample, learn and stop as one process with it does."""

import re
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from selfcorrect.errors import SamplerFailed
from selfcorrect.parallel.served import Own
from selfcorrect.samplers import vllm_engine
from tests.run.test_ranks import check_equal, gap, uneven, well
from tests.run.test_ranks_ending import last_lines
from tests.support.engines import FakeEngine
from tests.support.ranks import launch
from tests.support.runs import go, read_rows, tuned
from tests.support.tiny import loaded

pytestmark = pytest.mark.usefixtures("lucky")
ENGINE: Any = vllm_engine  # to plant things in
OWN: Any = Own
Faults = dict[int, list[dict[str, int]]]


def stands_in(rank: int, faults: Faults | None = None) -> None:
    """FakeEngine for vLLM in this process; faults: of a rank, of its engines one after the other."""
    of_rank = list((faults or {}).get(rank, []))

    def start(lm: Any, config: Any, dtype: Any, rows: int, scratch: Any, *, adapter_only: bool) -> FakeEngine:
        fault = of_rank.pop(0) if of_rank else {}
        if "cannot_start" in fault:
            raise SamplerFailed("sampler: vllm could not be started: no memory")
        if torch.distributed.is_initialized():  # as engines begin groups of processes, which all take part in
            torch.distributed.barrier()
        if not all(parameter.is_floating_point() for parameter in lm.model.parameters()):  # it has plain weights
            lm = loaded(lm.model.config._name_or_path, "lora" if adapter_only else "full")
            return FakeEngine(lm, fault, other=True)
        return FakeEngine(lm, fault, other=not adapter_only)

    ENGINE.need_vllm, ENGINE.InProcess = lambda: None, start


def sampled(output: Path, model: Path, name: str, parallel: str = "auto", tuning: str = "full", **changes: Any) -> Any:
    folder = output / f"sync-{name}"
    told = {"sync_folder": str(folder), "timeout": 30.0, **changes}
    return tuned(uneven(output, model, name, parallel, sampler="vllm", vllm=told), tuning)


@pytest.mark.parametrize(
    ("parallel", "tuning", "changes"),
    [
        ("fsdp2", "full", {}),
        *(pytest.param(*each, marks=pytest.mark.nightly) for each in [
            ("ddp", "full", {}), ("ddp", "lora", {}), ("fsdp2", "lora", {}), ("ddp", "lora", {"adapter": "merged"}),
            ("fsdp2", "lora", {"adapter": "merged"}), ("ddp", "qlora", {"adapter": "merged"}), ("ddp", "qlora", {}), ("fsdp2", "qlora", {}),
        ]),
    ],
)  # fmt: skip
def test_two_processes_sample_and_learn_what_one_does(
    parallel: str, tuning: str, changes: Any, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same completions and weights."""
    well(launch(tmp_path / "log", sampled(tmp_path, model, "two", parallel, tuning, **changes), hook=stands_in).ended())
    for name in ("need_vllm", "InProcess"):
        monkeypatch.setattr(vllm_engine, name, getattr(vllm_engine, name))  # put back afterwards
    stands_in(0)
    one, two = go(sampled(tmp_path, model, "one", "auto", tuning, **changes)), tmp_path / "two"
    assert gap(one, two) < 1e-5
    assert (one / "rollouts.jsonl").read_text() == (two / "rollouts.jsonl").read_text()
    assert all(0 < row["sampler_gap"] < 1e-5 for row in read_rows(two / "metrics.jsonl"))


@pytest.mark.nightly
@pytest.mark.parametrize("parallel", ["ddp", "fsdp2"])
@pytest.mark.parametrize("fault", [{"dies": 4}, {"sync_dies": 3}, {"breaks_off": 4}, {"rest_dies": 2}])
def test_an_engine_that_fails_once_is_started_anew_with_the_others(
    parallel: str, fault: dict[str, int], model: Path, tmp_path: Path
) -> None:
    hook = partial(stands_in, faults={1: [fault]})
    ended = launch(tmp_path / "log", sampled(tmp_path, model, "two", parallel), hook=hook).ended()
    well(ended)
    assert ended[0].err.count("it is started once more with the current weights") == 1
    other = sampled(tmp_path / "unbroken", model, "two", parallel)
    well(launch(tmp_path / "other", other, hook=stands_in).ended())
    check_equal(tmp_path / "two", tmp_path / "unbroken" / "two")


ONCE_MORE = [{"dies": 12}, {"dies": 2}]  # the first sample of an engine is the comparison's


@pytest.mark.nightly
@pytest.mark.parametrize("parallel", ["ddp", "fsdp2"])
@pytest.mark.parametrize(
    ("faults", "told"),
    [
        (ONCE_MORE, r"error: sampler: vllm failed \(rank 1: RuntimeError: CUDA error.*was started once more, and failed again \(rank 1: .*CUDA error.*; checkpoint [123] is kept, and.*"),
        ([{"stale_weights": 2}], r"error: rank 1: sampler: vllm computes other log-probabilities than the policy after sync \d.*"),
        ([{"cannot_start": 1}], r"error: rank 1 \(.*\) ended: sampler: vllm could not be started: no memory; .*"),
        # In step 3, of which and the two before it nothing is kept yet: no rank may wait for the others to keep it.
        ([{"dies": 12}, {"cannot_start": 1}], r"error: rank 1 \(.*\) ended: sampler: vllm could not be started: no memory; no checkpoint had been written yet.*"),
    ],
)  # fmt: skip
def test_one_rank_s_engine_ends_all_with_one_line(
    parallel: str, faults: list[dict[str, int]], told: str, model: Path, tmp_path: Path
) -> None:
    """Also where the others wait in a group of processes that it does not join; and the run goes on to the same bits."""
    settings = sampled(tmp_path, model, "two", parallel)
    settings["checkpoint"] = {"every": 3 if faults[1:] == [{"cannot_start": 1}] else 1, "keep": 8}
    ended = launch(tmp_path / "log", settings, hook=partial(stands_in, faults={1: faults})).ended()
    assert [rank.status for rank in ended] == [2, 2], ended
    (line,) = last_lines(ended[0])
    assert re.fullmatch(told, line), line
    assert ended[1].err == ""
    well(launch(tmp_path / "again", settings, hook=stands_in).ended())
    other = sampled(tmp_path / "unbroken", model, "two", parallel) | {"checkpoint": settings["checkpoint"]}
    well(launch(tmp_path / "other", other, hook=stands_in).ended())
    check_equal(tmp_path / "two", tmp_path / "unbroken" / "two")
