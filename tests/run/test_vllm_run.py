"""Whole runs, evaluations and `play` with sampler: vllm, over a stand-in engine in this process or behind HTTP."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from selfcorrect import api
from selfcorrect.config import ModelConfig, VllmConfig
from selfcorrect.errors import SamplerFailed
from selfcorrect.models.loading import LanguageModel, load_model
from selfcorrect.samplers import vllm_engine, vllm_server
from selfcorrect.samplers.transformers import TransformersSampler
from selfcorrect.samplers.vllm import AdapterVersion, Request, VllmSampler
from selfcorrect.samplers.vllm_server import Server
from selfcorrect.types import SamplingParams
from tests.support.engines import Engines, FakeEngine, learn
from tests.support.runs import check_same, end_state, go, read_rows, recipe

ROWS_A_STEP = 3  # calls of `sample`: the comparison, and two attempts


@pytest.fixture
def engine_of(model: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """engine_of(faults...) -> the engines that runs then start."""
    lm = load_model(ModelConfig(path=str(model), device="cpu", precision="float32"))

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
    whole = end_state(go(recipe(tmp_path / "whole", model, sampler="vllm")))
    gaps = [row["sampler_gap"] for row in read_rows(tmp_path / "whole" / "run" / "metrics.jsonl")]
    assert all(0 < gap < 1e-5 for gap in gaps)
    settings = recipe(tmp_path / "broken", model, sampler="vllm")
    engine_of({"dies": 3 * ROWS_A_STEP + 2}, {"dies": 1})
    with pytest.raises(
        SamplerFailed, match=r"and failed again .*; checkpoint 2 is kept, and resuming the run repeats"
    ) as told:
        go(settings)
    assert "\n" not in str(told.value)
    engines = engine_of()
    check_same(go(settings), whole)
    assert engines.made[0].calls[0] == "weights"
    assert engines.made[0].calls.count("rest") == 6


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


class Fake(ThreadingHTTPServer):
    """vLLM's routes over a stand-in engine. down: it answers nothing but errors."""

    daemon_threads = True

    def __init__(self, engine: FakeEngine) -> None:
        super().__init__(("127.0.0.1", 0), Routes)
        self.engine, self.asked, self.answers = engine, list[str](), dict[str, tuple[int, str]]()
        self.lock, self.hang = threading.Lock(), threading.Event()

    def answer(self, path: str, body: Any) -> Any:
        self.asked.append(path)
        match path:
            case "/v1/models":
                return {"data": [{"id": "base", "max_model_len": 256}]}
            case "/collective_rpc":
                assert body["method"] == "reload_weights"
                folder = Path(body["kwargs"]["weights_path"])
                assert (folder / "config.json").is_file()
                weights: Any = Weights(load_file(folder / "model.safetensors").items())
                self.engine.take_weights(weights)
                return {"results": [None]}
            case "/v1/load_lora_adapter":
                self.engine.take_adapter(AdapterVersion(int(body["lora_name"].split("-")[1]), Path(body["lora_path"])))
            case "/reset_prefix_cache":
                return {"success": True}
            case "/inference/v1/generate":
                told = body["sampling_params"]
                stop = tuple(told["stop_token_ids"])
                request = Request(tuple(body["token_ids"]), told["seed"], told["temperature"], told["max_tokens"], stop)
                with self.lock:
                    (ids, logprobs) = self.engine.sample([request])[0]
                content = [{"token_id": i, "logprob": p} for i, p in zip(ids, logprobs, strict=True)]
                return {"choices": [{"index": 0, "token_ids": ids, "logprobs": {"content": content}}]}
        return None


class Weights(list[Any]):
    merged = True


class Routes(BaseHTTPRequestHandler):
    server: Fake

    def do_GET(self) -> None:
        self.do_POST()

    def do_POST(self) -> None:
        text = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = self.path.partition("?")[0]
        status, said = self.server.answers.get(path, (200, ""))
        if said == "hang":
            self.server.hang.wait(10)
        elif status == 200:
            said = json.dumps(self.server.answer(path, json.loads(text) if text else None))
        self.send_response(status)
        self.end_headers()
        self.wfile.write(said.replace("null", "").encode() if said == "null" else said.encode())

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def serving(lm: LanguageModel) -> Iterator[Fake]:
    fake = Fake(FakeEngine(lm))
    threading.Thread(target=fake.serve_forever, daemon=True).start()
    try:
        yield fake
    finally:
        fake.hang.set()
        fake.shutdown()
        fake.server_close()


def over_http(lm: LanguageModel, fake: Fake, folder: Path, timeout: float = 60.0) -> VllmSampler:
    config = VllmConfig(server=f"http://127.0.0.1:{fake.server_port}/", sync_folder=str(folder), timeout=timeout)
    adapted = lm.adapters is not None
    return VllmSampler(
        lm, config, lambda at, _: Server(config, at, lm.device, adapter_only=adapted), adapter_only=adapted
    )


@pytest.fixture
def lm(model: Path) -> LanguageModel:
    return load_model(ModelConfig(path=str(model), device="cpu", precision="float32"))


PARAMS = SamplingParams(0.0, 8, 1)


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


@pytest.mark.parametrize(
    ("path", "answer", "told"),
    [
        ("/collective_rpc", (500, "CUDA error: out of memory"), r"/collective_rpc answered 500: CUDA error: out of memory"),
        ("/collective_rpc", (404, "Not Found"), r"needs a server started as docs/vllm.md says"),
        ("/collective_rpc", (200, "hang"), r"sync 1 after 0\.5 s .*the last it said: /health answers 200"),
        ("/reset_prefix_cache", (200, "hang"), r"sync 1 after 0\.5 s .*the last it said: /health answers 200"),
        ("/inference/v1/generate", (400, '{"error": "max_model_len"}'), r"answered 400: .*max_model_len"),
        ("/v1/models", (503, "starting"), r"vllm.server = .* does not answer \(starting\); start it"),
    ],
)  # fmt: skip
def test_a_servers_own_text_is_told(
    path: str, answer: tuple[int, str], told: str, lm: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vllm_server, "_WAIT", 0.0)
    with serving(lm) as fake:
        fake.answers[path] = answer
        own = over_http(lm, fake, tmp_path, timeout=0.5 if answer[1] == "hang" else 60.0)
        with pytest.raises(SamplerFailed, match=told) as error:
            own.sample([lm.chat.first_prompt("5 2 1 : 8")], PARAMS)
        assert "\n" not in str(error.value)
        if path == "/collective_rpc" and answer[0] != 200:
            assert fake.asked[-1] == "/resume"
