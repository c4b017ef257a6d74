"""Whole runs, evaluations and `play` with sampler: vllm, over a stand-in engine in this process or behind HTTP."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from selfcorrect import api
from selfcorrect.config import VllmConfig
from selfcorrect.errors import ConfigError, SamplerFailed
from selfcorrect.models.language_model import LanguageModel
from selfcorrect.runs.checks import tried
from selfcorrect.samplers import vllm_engine, vllm_server
from selfcorrect.samplers.sync_folder import SyncFolder
from selfcorrect.samplers.transformers import TransformersSampler
from selfcorrect.samplers.vllm import VllmSampler
from selfcorrect.samplers.vllm_server import Server
from selfcorrect.types import SamplingParams
from tests.support.engines import Engines, learn
from tests.support.runs import brief, check_same, end_state, go, read_rows, recipe, valid
from tests.support.server import Fake, serving
from tests.support.tiny import loaded

ROWS_A_STEP = 3  # calls of `sample`: the comparison, and two attempts


@pytest.fixture
def engine_of(model: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """engine_of(faults...) -> the engines that runs then start."""
    lm = loaded(model)

    def put(*faults: dict[str, int]) -> Engines:
        engines = Engines(lm, *faults)
        monkeypatch.setattr(vllm_engine, "InProcess", engines)
        monkeypatch.setattr(vllm_engine, "need_vllm", lambda: None)
        return engines

    return put


def test_an_engine_that_dies_ends_the_run_and_resuming_repeats_the_step(
    model: Path, tmp_path: Path, lucky: None, engine_of: Any
) -> None:
    engine_of()
    whole = end_state(go(brief(tmp_path / "whole", model, sampler="vllm")))
    gaps = [row["sampler_gap"] for row in read_rows(tmp_path / "whole" / "run" / "metrics.jsonl")]
    assert all(0 < gap < 1e-5 for gap in gaps)
    settings = brief(tmp_path / "broken", model, sampler="vllm")
    engine_of({"dies": 2 * ROWS_A_STEP + 2}, {"dies": 1})
    with pytest.raises(
        SamplerFailed, match=r"and failed again .*; checkpoint 1 is kept, and resuming the run repeats"
    ) as told:
        go(settings)
    assert "\n" not in str(told.value)
    engines = engine_of()
    check_same(go(settings), whole)
    assert engines.made[0].calls[0] == "weights"
    assert engines.made[0].calls.count("rest") == 2


def test_an_engine_that_dies_after_the_last_step_loses_no_step(
    model: Path, tmp_path: Path, lucky: None, engine_of: Any
) -> None:
    """In the last evaluation."""
    engines = engine_of()
    whole = end_state(go(brief(tmp_path / "whole", model, sampler="vllm")))
    calls = engines.made[0].calls.count("sample")
    engine_of({"dies": calls}, {"dies": 1})
    settings = brief(tmp_path / "broken", model, sampler="vllm")
    with pytest.raises(
        SamplerFailed, match=r"failed again .*; checkpoint 2 is kept, and resuming the run goes on from"
    ):
        go(settings)
    engine_of()
    check_same(go(settings), whole)


def test_evaluation_and_play_go_through_it_too(model: Path, tmp_path: Path, lucky: None, engine_of: Any) -> None:
    settings = recipe(tmp_path, model, stages=[])
    expected = api.evaluate(model, recipe=settings, output=tmp_path / "plain")
    engines = engine_of()
    found = api.evaluate(model, recipe={**settings, "sampler": "vllm"}, output=tmp_path / "engine")
    assert found.summary == expected.summary
    assert engines.made[0].calls == ["weights", *["sample"] * 3]
    engines = engine_of()
    api.play("5 2 1 = 8", model=model, recipe={**settings, "sampler": "vllm"})
    assert engines.made[0].calls[:2] == ["weights", "sample"]


def over_http(lm: LanguageModel, fake: Fake, folder: Path, timeout: float = 60.0) -> VllmSampler:
    config = VllmConfig(server=f"http://127.0.0.1:{fake.server_port}/", sync_folder=str(folder), timeout=timeout)
    adapted = lm.adapters is not None
    return VllmSampler(
        lm, config, lambda at, _: Server(config, at, lm.device, adapter_only=adapted), adapter_only=adapted
    )


@pytest.fixture
def lm(model: Path) -> LanguageModel:
    return loaded(model)


PARAMS = SamplingParams(0.0, 8, 1)


def test_check_asks_the_server(
    lm: LanguageModel, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(vllm_server, "_WAIT", 0.0)
    with serving(lm) as fake:
        settings = brief(tmp_path, model, sampler="vllm", vllm={"server": f"http://127.0.0.1:{fake.server_port}"})
        config = valid(settings)
        (told,) = [line for line in tried(config) if line.startswith("server: ")]
        assert "answers, and reads up to " in told
        assert fake.asked == ["/v1/models"]
        fake.answers["/v1/models"] = (200, '{"data": [{"id": "base"}]}')
        (told,) = [line for line in tried(config) if line.startswith("server: ")]
        assert told.endswith(" answers")
        assert " does not say in /v1/models how many tokens it takes (max_model_len)" in capsys.readouterr().err
        other: Any = config.model_copy(update={"vllm": config.vllm.model_copy(update={"transfer": "nccl"})})
        with pytest.raises(
            ConfigError, match=r"^vllm.transfer = 'nccl' sends from a GPU, and the model is on cpu; set"
        ):
            list(tried(other))
    with pytest.raises(SamplerFailed, match=r"^vllm.server = .* does not answer .*; start it \(docs/vllm.md\)"):
        next(tried(config))


def test_a_server_is_sent_each_version_and_pauses_meanwhile(lm: LanguageModel, tmp_path: Path) -> None:
    prompts = [lm.chat.first_prompt("5 2 1 : 8"), lm.chat.first_prompt("9 6 : 3")]
    with serving(lm) as fake:
        own = over_http(lm, fake, tmp_path)
        for _ in range(3):
            expected = TransformersSampler(lm).sample(prompts, PARAMS)
            assert [d.token_ids for d in own.sample(prompts, PARAMS)] == [d.token_ids for d in expected]
            learn(lm)
            own.load_weights(lm.model)
        synced = [path for path in fake.asked if path not in ("/v1/models", "/inference/v1/generate")]
        assert synced == ["/pause", "/collective_rpc", "/reset_prefix_cache", "/resume"] * 4
        assert len(list(tmp_path.rglob("*.safetensors"))) == 1
        own.close()


def test_a_server_that_does_not_say_how_many_processes_it_has(lm: LanguageModel, tmp_path: Path) -> None:
    with serving(lm) as fake:
        config = VllmConfig(server=f"http://127.0.0.1:{fake.server_port}/")
        server = Server(config, tmp_path, lm.device, adapter_only=False)
        for answer in ("{}", '{"world_size": "2"}', '{"world_size": 0}'):
            fake.answers["/get_world_size"] = (200, answer)
            with pytest.raises(
                RuntimeError, match=r"^/get_world_size answered no number of processes \(world_size\): \{"
            ):
                server._world_size()


def test_a_server_outlives_the_runs_it_is_sent_adapters_by(model: Path, tmp_path: Path) -> None:
    """Another run, or the same resumed, has names of its own, and what one whose folder is gone has left is unloaded."""
    adapted = loaded(model, "lora")
    prompts = [adapted.chat.first_prompt("5 2 1 : 8")]
    with serving(adapted, other=False) as fake:
        runs = list[VllmSampler]()
        for count in (2, 2, 4):
            own = over_http(adapted, fake, tmp_path)
            runs.append(own)
            for _ in range(2):
                learn(adapted)
                own.load_weights(adapted.model)
                expected = TransformersSampler(adapted).sample(prompts, PARAMS)
                assert [d.token_ids for d in own.sample(prompts, PARAMS)] == [d.token_ids for d in expected]
            assert len(fake.adapters) == count
            if len(runs) == 1:
                own.close()  # the next is as if killed: its folder stays
                other = over_http(adapted, fake, tmp_path)  # a rank of a host that never saw it asks, and no more
                other.follow("policy-")
                other.close()
                assert len(fake.adapters) == count


def test_what_a_killed_process_has_left_is_removed(tmp_path: Path) -> None:
    script = (
        "import os, pathlib; from selfcorrect.samplers.sync_folder import SyncFolder\n"
        f"held = SyncFolder(pathlib.Path({str(tmp_path)!r}))\n"
        "(held.path / 'weights').write_text('much'); os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", script], check=False)
    (left,) = tmp_path.iterdir()
    elsewhere = left.with_name(f"{left.name}-elsewhere")  # its lock may be known to that host alone
    shutil.copytree(left, elsewhere)
    (elsewhere / ".lock").write_text("another host\n")
    other, mine = SyncFolder(tmp_path), SyncFolder(tmp_path)
    assert left.exists()  # it may be one that is not locked yet
    for folder in (left, other.path, elsewhere):
        os.utime(folder / ".lock", (0, 0))
    last = SyncFolder(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted([other.path, mine.path, last.path, elsewhere])
    last.remove()
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize(
    ("path", "answer", "told"),
    [
        ("/collective_rpc", (500, "CUDA error: out of memory"), r"/collective_rpc answered 500: CUDA error: out of memory"),
        ("/collective_rpc", (404, "Not Found"), r"needs a server started as docs/vllm.md says"),
        ("/collective_rpc", (200, "hang"), r"sync 1 after 0\.5 s .*the last it said: /health answers 200"),
        ("/reset_prefix_cache", (200, "hang"), r"sync 1 after 0\.5 s .*the last it said: /health answers 200"),
        ("/reset_prefix_cache", (200, '{"success": false}'), r"http://127.0.0.1:\d+ could not empty its prefix cache"),
        ("/inference/v1/generate", (400, '{"error": "max_model_len"}'), r"answered 400: .*max_model_len"),
        ("/v1/models", (503, "starting"), r"vllm.server = .* does not answer \(starting\); start it"),
        ("/v1/models", (200, '[{"id": "x"}]'), r"vllm.server = .* does not answer \(/v1/models names no model\); start it"),
        ("/inference/v1/generate", (200, '{"choices": [1]}'), r"answered no completion: \{'choices': \[1\]\}"),
    ],
)  # fmt: skip
def test_a_servers_own_text_is_told(
    path: str, answer: tuple[int, str], told: str, lm: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vllm_server, "_WAIT", 0.0)
    with serving(lm) as fake:
        fake.answers[path] = answer
        if path == "/collective_rpc" and answer[0] != 200:
            fake.answers["/resume"] = (503, "shutting down")  # which hides no cause
        own = over_http(lm, fake, tmp_path, timeout=0.5 if answer[1] == "hang" else 60.0)
        with pytest.raises(SamplerFailed, match=told) as error:
            own.sample([lm.chat.first_prompt("5 2 1 : 8")], PARAMS)
        assert "\n" not in str(error.value)
        if path == "/collective_rpc" and answer[0] != 200:
            assert fake.asked[-1] == "/resume"
