"""What VllmSampler does with an engine: send, compare, start again, give up. The engine here is tests/support/engines.py."""

import errno
import fcntl
import os
import socket
import sys
import time
from dataclasses import replace
from pathlib import Path
from threading import Timer, current_thread
from typing import Any
from unittest.mock import ANY, Mock, call

import pytest
import torch
from safetensors import SafetensorError

from selfcorrect.config import LoraConfig, VllmConfig
from selfcorrect.config.recipe import validate
from selfcorrect.errors import ConfigError, ModelError, SamplerFailed
from selfcorrect.models.adapters import Adapters, fresh_config
from selfcorrect.models.language_model import LanguageModel
from selfcorrect.models.plain import PlainWeights
from selfcorrect.samplers import vllm_server
from selfcorrect.samplers.compared import Comparison, Probed
from selfcorrect.samplers.sync_folder import SyncFolder
from selfcorrect.samplers.transformers import TransformersSampler
from selfcorrect.samplers.vllm import AdapterVersion, Sampled, VllmSampler
from selfcorrect.samplers.vllm_engine import InProcess, need_vllm
from selfcorrect.samplers.vllm_server import Server
from selfcorrect.types import SamplingParams
from tests.support.engines import Engines, FakeEngine, adapter_folders, learn
from tests.support.runs import valid
from tests.support.server import serving
from tests.support.tiny import tiny_lm

GREEDY = SamplingParams(0.0, 8, 3)
ENDS = (3, 5, 7)


def model(*, adapted: bool = False) -> LanguageModel:
    lm: LanguageModel = tiny_lm("llama", end_ids=ENDS)
    if adapted:
        lm.adapters = Adapters(lm.model, fresh_config(LoraConfig(rank=4), lm.model), "base", 0)
        learn(lm)
    return lm


def sampler(lm: LanguageModel, engines: Engines, tmp_path: Path, **changes: Any) -> VllmSampler:
    config = VllmConfig(**{"sync_folder": str(tmp_path), "timeout": 60.0, **changes})
    return VllmSampler(lm, config, engines, adapter_only=lm.adapters is not None and config.adapter != "merged")


def prompts(lm: LanguageModel) -> list[tuple[int, ...]]:
    return [lm.chat.first_prompt(text) for text in ("5 2 1 : 8", "9 6 : 3", "9 6 : 3", "1 1 : 1")]


@pytest.mark.parametrize(
    ("adapted", "changes"),
    [(False, {}), (True, {}), pytest.param(True, {"adapter": "merged"}, marks=pytest.mark.nightly)],
)
def test_it_samples_what_the_policy_would_after_every_update(
    adapted: bool, changes: dict[str, Any], tmp_path: Path
) -> None:
    lm, engines = model(adapted=adapted), None
    engines = Engines(lm)
    own, theirs = sampler(lm, engines, tmp_path, **changes), TransformersSampler(lm)
    assert own.sample([], GREEDY) == []
    seen = []
    for _ in range(3):
        found = own.sample(prompts(lm), GREEDY)
        expected = theirs.sample(prompts(lm), GREEDY)
        plainly = [(done.token_ids, done.text, done.finish_reason) for done in found]
        assert plainly == [(done.token_ids, done.text, done.finish_reason) for done in expected]
        torch.testing.assert_close(found[0].logprobs, expected[0].logprobs, rtol=0, atol=1e-5)
        seen.append(plainly)
        learn(lm)
        own.load_weights(lm.model)
        theirs.load_weights(lm.model)
    assert seen[0] != seen[2]
    assert len(engines.made) == 1
    assert {done[2] for done in seen[0]} == {"stop", "length"}
    own.close()
    assert not list(tmp_path.iterdir())


def test_a_version_of_an_adapter_is_dropped_one_sync_later(tmp_path: Path) -> None:
    lm, there = model(adapted=True), []
    engines = Engines(lm)
    own = sampler(lm, engines, tmp_path)
    for _ in range(4):
        own.load_weights(lm.model)
        there.append(adapter_folders(tmp_path))
    assert there == [["adapter-1"], ["adapter-1", "adapter-2"], ["adapter-2", "adapter-3"], ["adapter-3", "adapter-4"]]
    assert engines.made[0].calls == [
        "weights", "adapter 1", "adapter 2", "adapter 3", "drop 1", "adapter 4", "drop 2",
    ]  # fmt: skip


def test_seeds_are_the_rows_own(tmp_path: Path) -> None:
    lm = model()
    own = sampler(lm, Engines(lm), tmp_path)
    drawn = own.sample(prompts(lm) + prompts(lm), SamplingParams(1.0, 10, 3))
    assert len({done.token_ids for done in drawn[1:3] + drawn[5:7]}) > 1
    assert drawn[:4] == own.sample(prompts(lm), SamplingParams(1.0, 10, 3))
    assert drawn[:4] != own.sample(prompts(lm), SamplingParams(1.0, 10, 4))


def two_syncs(own: VllmSampler, lm: LanguageModel) -> None:
    for _ in range(2):
        own.load_weights(lm.model)
        own.sample(prompts(lm), GREEDY)
        learn(lm)


@pytest.mark.parametrize(
    ("adapted", "fault"),
    [
        (False, {"stale_weights": 2}), (False, {"stale_cache": 2}), (False, {"raw": 1}),
        (True, {"stale_weights": 1}), (True, {"wrong_adapter": 2}),
    ],
)  # fmt: skip
def test_other_numbers_than_the_policys_stop_the_run(adapted: bool, fault: dict[str, int], tmp_path: Path) -> None:
    lm = model(adapted=adapted)
    own = sampler(lm, Engines(lm, fault), tmp_path)
    differs = r"other log-probabilities than the policy after sync \d: they differ by [\d.e+-]+ nats a token"
    with pytest.raises(SamplerFailed, match=differs) as told:
        two_syncs(own, lm)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("adapted", "fault"), [(False, {"stale_weights": 2}), (True, {"wrong_adapter": 2}), (True, {})]
)
def test_a_missed_sync_that_rounding_would_hide_stops_the_run(
    adapted: bool, fault: dict[str, int], tmp_path: Path
) -> None:
    """In bfloat16 a small update moves the policy by far less than is allowed; but it moves, and the engine not."""
    lm = replace(model(adapted=adapted), compute_dtype=torch.bfloat16)
    own = sampler(lm, Engines(lm, fault), tmp_path)
    for size in (0.0, 1e-4, 0.0, 1e-4):  # where nothing was learned the engine may stand still
        learn(lm, size)
        own.load_weights(lm.model)
        if fault and size:
            with pytest.raises(
                SamplerFailed, match=r"after sync 2 as it did before, to the last bit, .* moved by [\d.e-]+ nats"
            ):
                own.sample(prompts(lm), GREEDY)
            return
        own.sample(prompts(lm), GREEDY)


def test_other_kernels_of_the_policy_are_no_missed_sync() -> None:
    comparison = Comparison(torch.bfloat16, torch.bfloat16, "weights")
    probed = [Probed((1,), (2,), (-1.0,))]
    for sync, own in enumerate([-1.0, -1.01, -1.02]):
        comparison.judge(probed, [[own]], 5.0, sync)  # nothing was learned
    with pytest.raises(SamplerFailed, match="as it did before, to the last bit"):
        comparison.judge(probed, [[-1.01]], 5.1, 3)


@pytest.mark.parametrize(
    ("fault", "adapted"),
    [({"dies": 4}, False), ({"no_numbers": 2}, False), ({"sync_dies": 2}, False), ({"dies": 4}, True)],
)
def test_a_failure_is_mended_once(
    fault: dict[str, int], adapted: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The second engine has no fault, begins with the weights as they are now, and knows nothing of the first."""
    lm = model(adapted=adapted)
    engines = Engines(lm, fault, {})
    own = sampler(lm, engines, tmp_path)
    for _ in range(4):
        found = own.sample(prompts(lm), GREEDY)
        expected = TransformersSampler(lm).sample(prompts(lm), GREEDY)
        assert [done.token_ids for done in found] == [done.token_ids for done in expected]
        learn(lm)
        own.load_weights(lm.model)
    own.sample(prompts(lm), GREEDY)
    assert len(engines.made) == 2
    assert engines.made[0].closed
    assert engines.made[1].calls[:2] == (["weights", "adapter 3"] if adapted else ["weights", "sample"])
    assert capsys.readouterr().err.count("started once more with the current weights") == 1


@pytest.mark.parametrize(
    ("faults", "calls"),
    [([{"dies": 1}], 0), ([{"breaks_off": 2}], 0), ([{"sync_dies": 1}], 0), ([{"dies": 2}, {"dies": 5}], 3)],
)
def test_a_second_failure_is_the_end(faults: list[dict[str, int]], calls: int, tmp_path: Path) -> None:
    """However much later: an engine that dies again and again would be started for ever. calls: that go well before."""
    lm = model()
    engines = Engines(lm, *faults)
    own = sampler(lm, engines, tmp_path)
    for _ in range(calls):
        own.sample(prompts(lm), GREEDY)
    with pytest.raises(SamplerFailed, match="was started once more, and failed again") as told:
        own.sample(prompts(lm), GREEDY)
    assert len(engines.made) == 2
    assert "\n" not in str(told.value)


def test_an_engine_that_cannot_be_started_anew_hides_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = model()
    engines = Engines(lm, {"dies": 1})
    own, started = sampler(lm, engines, tmp_path), list[int]()
    begin = own.begin

    def once() -> Any:
        started.append(1)
        if len(started) > 1 and not own._engine:
            raise SamplerFailed("sampler: vllm could not be started: sleep mode; mend that setting")
        return begin()

    monkeypatch.setattr(own, "begin", once)
    with pytest.raises(
        SamplerFailed, match=r"vllm failed \(.*\), was started once more, and failed again \(.*sleep mode"
    ):
        own.sample(prompts(lm), GREEDY)


def test_an_engine_that_fails_at_rest_is_given_up_once(tmp_path: Path) -> None:
    lm = model()
    engines = Engines(lm, {"rest_dies": 1})
    own = sampler(lm, engines, tmp_path)
    found = own.sample(prompts(lm), GREEDY)
    own.rest()
    assert engines.made[0].closed
    assert own.sample(prompts(lm), GREEDY) == found
    assert len(engines.made) == 2
    with pytest.raises(SamplerFailed, match=r"was started once more, and failed again .*no memory on the host"):
        own.rest()


def test_an_engine_that_takes_no_longer_rollouts_names_what_to_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Vllm ends a completion where its context is full, and says nothing of it; a longer prompt it would refuse."""
    lm, whole = model(), FakeEngine.sample
    long = prompts(lm)[:1]
    limit = len(long[0]) + 4
    told = rf"^sampler: vllm takes {limit} tokens, .*raise vllm.max_model_len"

    def cut(self: FakeEngine, requests: Any) -> list[Sampled]:
        found = whole(self, requests)
        room = [limit - len(request.prompt) for request in requests]
        return [Sampled(ids[:most], told[:most]) for (ids, told), most in zip(found, room, strict=True)]

    monkeypatch.setattr(FakeEngine, "sample", cut)
    engines = Engines(lm)
    own = sampler(lm, engines, tmp_path)
    own._compared = own._synced = True  # its comparison would be cut too
    own.begin().longest = limit
    for asked in (long, [(*long[0], *long[0])]):
        with pytest.raises(SamplerFailed, match=told):
            own.sample(asked, SamplingParams(0.0, 8, 3))
    assert len(engines.made) == 1
    assert engines.made[0].calls == ["sample"]


@pytest.mark.parametrize(
    ("given", "told", "engines"),
    [
        (Sampled((1,) * 16, ()), r"without their log-probabilities.*--logprobs-mode processed_logprobs", 1),
        (Sampled((), ()), r"completion of 0 tokens came back broken off\), was started once more, and failed again", 2),
        (Sampled((1,), (-1.0,)), r"completion of 1 tokens .* and failed again", 2),
    ],
)
def test_a_comparison_without_numbers_names_what_to_set_and_a_broken_one_is_made_again(
    given: Sampled, told: str, engines: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = model()
    monkeypatch.setattr(FakeEngine, "sample", lambda self, requests: [given] * len(requests))
    made = Engines(lm)
    with pytest.raises(SamplerFailed, match=told):
        sampler(lm, made, tmp_path).sample(prompts(lm), GREEDY)
    assert len(made.made) == engines


def test_a_sync_goes_to_the_ranks_own_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A new thread would begin with card 0, on every rank."""
    lm, seen = model(), list[Any]()
    own = sampler(replace(lm, device=torch.device("cuda")), Engines(lm), tmp_path)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: seen.append((current_thread().name, device)))
    own.load_weights(lm.model)
    assert seen == [("vllm sync", 3)]


def test_a_sync_that_hangs_ends_with_the_engines_own_text(tmp_path: Path) -> None:
    lm = model()
    engines = Engines(lm, {"hangs": 1})
    own = sampler(lm, engines, tmp_path, timeout=0.2)
    with pytest.raises(SamplerFailed, match=r"sync 1 after 0\.2 s.*NCCL watchdog: rank 1 is waiting"):
        own.load_weights(lm.model)
    own.close()
    assert not engines.made[0].closed  # it would hang in that too


def test_a_folder_is_locked_though_another_process_tries_the_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unlocked it would be taken for one that a killed process left, and removed under a live engine."""
    timers = []

    def gethostname() -> str:  # asked for between the making of the file and its lock
        trying = next(tmp_path.glob("*/.lock")).open()
        fcntl.flock(trying, fcntl.LOCK_EX | fcntl.LOCK_NB)
        timers.append(Timer(0.05, trying.close))
        timers[-1].start()
        return "host"

    monkeypatch.setattr(socket, "gethostname", gethostname)
    held = SyncFolder(tmp_path)
    timers[0].join()
    with (held.path / ".lock").open() as other, pytest.raises(BlockingIOError):
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)


@pytest.mark.parametrize(
    "error",
    [
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
    ],
)
def test_a_full_disk_is_told_and_nothing_is_started_anew(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = model(adapted=True)
    engines = Engines(lm)
    own = sampler(lm, engines, tmp_path)
    monkeypatch.setattr(Adapters, "save", Mock(side_effect=error))
    with pytest.raises(SamplerFailed, match=r"selfcorrect-sync-.* has no room .*No space left on device.*sync_folder$"):
        own.load_weights(lm.model)
    assert len(engines.made) == 1


def test_after_a_rest_weights_are_sent_before_anything_is_sampled(tmp_path: Path) -> None:
    lm = model()
    engines = Engines(lm)
    own = sampler(lm, engines, tmp_path)
    own.sample(prompts(lm), GREEDY)
    own.rest()
    own.sample(prompts(lm), GREEDY)
    assert engines.made[0].calls == ["weights", "sample", "sample", "rest", "weights", "sample", "sample"]


@pytest.mark.parametrize(
    ("architecture", "adapted"),
    [("llama", False), ("qwen2", True), pytest.param("gpt2", True, marks=pytest.mark.nightly)],
)
def test_plain_weights_are_those_of_an_ordinary_model(architecture: str, adapted: bool, tmp_path: Path) -> None:
    """Loaded by transformers from what was written, it computes as the policy does."""
    from transformers import AutoModelForCausalLM

    lm: LanguageModel = tiny_lm(architecture)
    if adapted:
        lm.adapters = Adapters(lm.model, fresh_config(LoraConfig(rank=4), lm.model), "base", 0)
        learn(lm)
    PlainWeights(lm, torch.float32, merged=True).write(tmp_path / "model")
    there, told = AutoModelForCausalLM.from_pretrained(tmp_path / "model", output_loading_info=True)
    assert not told["missing_keys"]
    assert not told["unexpected_keys"]
    ids = torch.tensor([prompts(lm)[0]])
    with torch.no_grad():
        torch.testing.assert_close(
            there.eval()(input_ids=ids).logits, lm.model(input_ids=ids).logits, rtol=0, atol=1e-4
        )


def test_its_absence_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(
        ModelError, match=r"^sampler: vllm: the package vllm is not installed; docs/vllm.md says how to install it$"
    ):
        need_vllm()


STAGE = {"name": "one", "objective": "stage1", "steps": 1, "learning_rate": 1e-3}


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"vllm": {"block_size": 32}}, "vllm is for sampler: vllm, not for transformers"),
        ({"sampler": "vllm", "vllm": {"adapter": "only"}}, "model.tuning is full"),
        ({"sampler": "vllm", "vllm": {"server": "localhost:8000"}}, "is no address; write http://HOST:8000"),
        ({"sampler": "vllm", "vllm": {"server": "http://host:port"}}, "is no address; write http://HOST:8000"),
        ({"sampler": "vllm", "vllm": {"server": "http://a:1", "kv_cache_gib": 2.0}}, "kv_cache_gib is of an engine in this"),
        ({"sampler": "vllm", "vllm": {"transfer": "nccl"}}, "transfer is for a server"),
        ({"sampler": "vllm", "vllm": {"memory_share": 1.0}}, "memory_share"),
        ({"algorithm": {"importance_cap": 0.5}}, "importance_cap"),
    ],
)  # fmt: skip
def test_settings_that_do_not_fit_are_refused(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        validate({"stages": [STAGE], **changes})


@pytest.mark.parametrize(
    ("changes", "cap"),
    [({}, None), ({"sampler": "vllm"}, 2.0), ({"sampler": "vllm", "algorithm": {"importance_cap": "none"}}, None), ({"algorithm": {"importance_cap": 3.0}}, 3.0)],
)  # fmt: skip
def test_importance_weights_are_on_where_another_engine_samples(changes: dict[str, Any], cap: float | None) -> None:
    assert valid({"stages": [STAGE], **changes}).importance_cap == cap


def test_an_engine_that_sleeps_is_woken_before_it_takes_anything() -> None:
    """Weights written into memory that is given back would be lost; the cache's memory comes after them."""
    engine: Any = object.__new__(InProcess)
    engine._cuda, engine._adapter, engine._asleep, engine._request = True, False, False, None
    engine._llm = Mock()
    engine.rest()
    engine.take_weights([])
    assert engine._llm.mock_calls == [
        call.sleep(level=2), call.wake_up(tags=["weights"]), call.collective_rpc("reload_weights", kwargs=ANY),
        call.wake_up(tags=["kv_cache"]), call.reset_prefix_cache(),
    ]  # fmt: skip


def test_a_sync_has_one_time_for_all_its_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The weights beneath an adapter and the adapter itself, each within the time-out, both together not."""
    lm = model(adapted=True)
    for name in ("take_weights", "take_adapter"):
        monkeypatch.setattr(FakeEngine, name, lambda *_: time.sleep(0.3))
    with pytest.raises(SamplerFailed, match=r"sync 1 after 0\.5 s"):
        sampler(lm, Engines(lm), tmp_path, timeout=0.5).load_weights(lm.model)


def test_what_a_server_told_of_an_old_failure_is_forgotten(tmp_path: Path) -> None:
    with serving(model()) as fake:
        config = VllmConfig(server=f"http://127.0.0.1:{fake.server_port}", timeout=5.0)
        server = Server(config, tmp_path, torch.device("cpu"), adapter_only=False)
        fake.answers["/pause"] = (503, "still starting")
        with pytest.raises(RuntimeError, match="still starting"):
            server._post("/pause")
        assert server.said() == "still starting"
        fake.answers.clear()
        server._post("/resume")
        assert server.said() == "/health answers 200"


def test_what_a_server_cannot_read_is_told_with_the_folder_and_one_that_is_gone_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vllm_server, "_HERE", ())  # as if it were on another host
    with serving(model()) as fake:
        config = VllmConfig(server=f"http://127.0.0.1:{fake.server_port}", timeout=5.0)
        server, version = (
            Server(config, tmp_path, torch.device("cpu"), adapter_only=True),
            AdapterVersion(1, tmp_path, "a"),
        )
        fake.answers["/v1/load_lora_adapter"] = (400, "no such file " * 60)
        with pytest.raises(RuntimeError, match=f"^the server was to read {tmp_path} of .*, which both hosts must see"):
            server.take_adapter(version)
        server._url = "http://127.0.0.1:9"
        with pytest.raises(RuntimeError, match=r"^http://127.0.0.1:9 does not answer: [^;]*$"):
            server.take_adapter(version)
