"""benchmarks/gpu_step.py at a tiny size on a CPU; and that a part keeps what it found, however it ends."""

import json
import os
import time
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from selfcorrect.errors import ModelError
from selfcorrect.samplers.lanes import Lanes
from tests.benchmarks.conftest import Script

CPU = torch.device("cpu")
CARD = {"flops": 1e9, "bandwidth": 1e9}


def test_parts_that_are_named(script: Script, tmp_path: Path) -> None:
    output = tmp_path / "gpu_step.jsonl"
    script("benchmarks/gpu_step.py").main(["--dry", "--only", "attention", "--output", str(output)])
    lines = [json.loads(line) for line in output.read_text().splitlines()]
    assert [line["part"] for line in lines] == ["card", "attention dry"]
    assert not any("failed" in line for line in lines)


@pytest.mark.nightly  # fifteen seconds, most of them compiling and TRL's
def test_every_part(script: Script, tmp_path: Path) -> None:
    """None may have failed but those whose library is not here."""
    output = tmp_path / "gpu_step.jsonl"
    script("benchmarks/gpu_step.py").main(["--dry", "--output", str(output)])
    lines = {line["part"]: line for line in map(json.loads, output.read_text().splitlines())}
    longest = [f"longest dry {tuning}" for tuning in ("full", "lora", "qlora")]
    trl = [f"trl dry, {rows} rows" for rows in (1, 2)]
    assert list(lines) == ["card", "step dry", trl[0], "attention dry", *longest, trl[1]]
    assert {name: line["failed"] for name, line in lines.items() if "failed" in line and name not in trl} == {}
    step = lines["step dry"]
    assert (step["step"], len(step["step_seconds_by_step"])) == (3, 3)
    assert 2 * 2 * 2 <= step["sampled_tokens"] <= 2 * 2 * 2 * 6
    assert step["decode_share_of_bandwidth"] > 0
    assert step["update_share_of_flops"] > 0
    assert min(step[f"update_seconds_{way}"] for way in ("packed", "padded")) > 0
    told = {"update_share_of_flops_compiled", *(["not_compiled"] if os.environ.get("TEST_DEVICE") else [])}
    assert told & set(step)  # torch 2.13 compiles nothing under the mode of tests/support/card; 2.11 does
    assert step["head_form_known"] is True
    assert lines["card"]["versions"]["torch"] == version("torch")
    assert lines["attention dry"]["variable_length_ms"] > 0
    assert [(lines[name]["attempt_tokens"], lines[name]["stopped"]) for name in longest] == [(8, "size")] * 3
    if find_spec("trl"):
        assert [len(lines[name]["steps"]) for name in trl] == [2, 1]


def test_a_part_out_of_time_keeps_what_it_found(script: Script) -> None:
    """And no code in between takes the end of its seconds for a model's own failure."""
    parts = script("benchmarks/gpu_parts.py")

    def part(found: dict[str, Any]) -> None:
        found["first"] = 1
        try:
            time.sleep(5)
        except Exception:  # noqa: BLE001 - as the library does where models fail in their own ways
            found["swallowed"] = True

    line = parts.attempt(part, 0.1)
    assert {key: line[key] for key in line if key != "seconds"} == {"first": 1, "stopped": "time", "limit_seconds": 0}


def test_a_comparison_without_memory_loses_no_step(script: Script, monkeypatch: pytest.MonkeyPatch) -> None:
    step, work = script("benchmarks/gpu_step.py"), script("benchmarks/workload.py")
    hindrance: Any = lambda lm: (_ for _ in ()).throw(torch.OutOfMemoryError("full"))  # noqa: E731
    monkeypatch.setattr(step, "hindrance", hindrance)
    found: dict[str, Any] = {}
    with pytest.raises(torch.OutOfMemoryError):
        step.measure_step(found, step.DRY, work.Work(1, 2, 4), CPU, CARD)
    assert found["step"] == 3
    assert found["update_share_of_flops"] > 0


def test_a_failing_kernel_loses_no_other(script: Script, monkeypatch: pytest.MonkeyPatch) -> None:
    limits = script("benchmarks/gpu_limits.py")
    monkeypatch.setattr(limits, "packed_attention", lambda *_: 1 / 0)
    found: dict[str, Any] = {}
    with pytest.raises(ZeroDivisionError):
        limits.measure_attention(found, 2, 1, 8, CPU, True)
    assert found["padded_ms"] > 0


@pytest.mark.parametrize(("fits", "most"), [(5000, 65_536), (100, 65_536), (70_000, 4096)])
def test_the_longest_attempt_is_found_by_halves(
    script: Script, fits: int, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = list[int]()

    def step(limit: int) -> None:
        tried.append(limit)
        if limit > fits:
            raise torch.OutOfMemoryError

    found: dict[str, Any] = {"attempt_tokens": 0, "peak_gigabytes": {}, "step_seconds": {}}
    limits = script("benchmarks/gpu_limits.py")
    monkeypatch.setattr(limits, "release", lambda: None)  # of a card, and of a large process'''s garbage
    limits.search(found, step, 512, most)
    assert 0.88 * min(fits, most) <= found["attempt_tokens"] <= fits
    assert found["stopped"] == ("memory" if fits < most else "size")
    assert len(tried) <= 12
    assert set(found["step_seconds"]) == {limit for limit in tried if limit <= fits}


def test_long_attempts_are_made_up(script: Script, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full step on attempts of the full length, of which few tokens are decoded."""
    gpu, steps, lengths = script("benchmarks/gpu_step.py"), list[int](), list[int]()
    step, update = Lanes.step, gpu.Trainer.update

    def counted(self: Any, rows: int, width: int, tokens: int) -> None:
        steps.append(width)
        step(self, rows, width, tokens)

    def noted(self: Any, batch: Any, *rest: Any) -> Any:
        lengths.extend((batch.attempt_BT > 0).sum(1).tolist())
        return update(self, batch, *rest)

    monkeypatch.setattr(Lanes, "step", counted)
    monkeypatch.setattr(gpu.Trainer, "update", noted)
    gpu.one_step(gpu.make_model(gpu.DRY, CPU), 400)
    assert lengths == [800, 800]
    assert 1 <= len(steps) <= 16


def test_no_model_is_made_for_a_library_that_is_not_there(script: Script, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "bitsandbytes", None)
    with pytest.raises(ModelError, match="bitsandbytes"):
        script("benchmarks/gpu_limits.py").longest_attempt({}, lambda: 1 / 0, "qlora", None, True)


def test_a_prompt_counts_once_for_its_rollouts(script: Script) -> None:
    """Two rollouts of 3 tokens after a prompt of 5, of which the last goes with each row."""
    from selfcorrect.learning.batching import Batch

    gpu = script("benchmarks/gpu_step.py")
    attempt_BT = torch.tensor([[0] * 5 + [1] * 3] * 2)
    zeros_BT = torch.zeros(2, 8)
    batch = Batch(torch.arange(8).repeat(2, 1), torch.tensor([8, 8]), attempt_BT, zeros_BT, zeros_BT, zeros_BT)
    pairs = 2 * (8 * 8 - 4 * 4) / 2 + 4 * 4 / 2
    attention = 16 * gpu.DRY.num_hidden_layers * gpu.DRY.hidden_size * pairs
    assert gpu.update_flops(batch, gpu.DRY, 1000) == 8 * 1000 * (2 * 4 + 4) + attention


def test_versions_of_what_a_path_alone_brings(script: Script, monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib import metadata

    def none(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", none)
    found = script("benchmarks/workload.py").versions(["selfcorrect", "trl"])
    assert found == {"selfcorrect": "0.1.0", "trl": None}
