"""A stand-in for vLLM's server."""

import copy
import json
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from selfcorrect.models.language_model import LanguageModel
from selfcorrect.samplers.vllm import AdapterVersion, Request
from tests.support.engines import FakeEngine


class Fake(ThreadingHTTPServer):
    """vLLM's routes over a stand-in engine.

    asked: every route, in order. answers: a route's status and text in place of an answer; "hang" gives none. From a
    route's call number `since` on, and `times` times.
    """

    daemon_threads, request_queue_size = True, 512

    def __init__(self, engine: FakeEngine, address: tuple[str, int] = ("127.0.0.1", 0)) -> None:
        super().__init__(address, Routes)
        self.engine, self.asked, self.answers = engine, list[str](), dict[str, tuple[int, str]]()
        self.since, self.times = 1, 1 << 30
        # By name, the folder and who answers for it. As the real one's, they outlive who sent them.
        self.adapters: dict[str, tuple[str, FakeEngine]] = {}
        self.lock, self.hang = threading.Lock(), threading.Event()

    def fault(self, path: str) -> tuple[int, str]:
        with self.lock:
            self.asked.append(path)
            count = self.asked.count(path)
        now = self.since <= count < self.since + self.times
        return self.answers.get(path, (200, "")) if now else (200, "")

    def answer(self, path: str, body: Any) -> Any:
        match path:
            case "/v1/models":
                return {
                    "data": [
                        {"id": "base", "max_model_len": 256},
                        *({"id": name, "root": folder} for name, (folder, _) in self.adapters.items()),
                    ]
                }
            case "/collective_rpc":
                assert body["method"] == "reload_weights"
                folder = Path(body["kwargs"]["weights_path"])
                if not (folder / "config.json").is_file():
                    return f"Cannot find any model weights with '{folder}'"
                weights: Any = Weights(load_file(folder / "model.safetensors").items())
                self.engine.take_weights(weights)
                return {"results": [None]}
            case "/v1/load_lora_adapter":
                name, folder = body["lora_name"], Path(body["lora_path"])
                if name in self.adapters:
                    return f"The lora adapter '{name}' has already been loaded."
                if not (folder / "adapter_config.json").is_file():
                    return f"No adapter found for {folder}"
                engine = copy.copy(self.engine)
                engine.take_adapter(AdapterVersion(int(name.rpartition("-")[2]), folder, name))
                self.adapters[name] = (str(folder), engine)
            case "/v1/unload_lora_adapter":
                if self.adapters.pop(body["lora_name"], None) is None:
                    return f"The lora adapter '{body['lora_name']}' cannot be found."
            case "/reset_prefix_cache":
                return {"success": True}
            case "/inference/v1/generate":
                if body["model"] not in ("base", *self.adapters):
                    return f"The model `{body['model']}` does not exist."
                engine = self.engine if body["model"] == "base" else self.adapters[body["model"]][1]
                told = body["sampling_params"]
                stop = tuple(told["stop_token_ids"])
                request = Request(tuple(body["token_ids"]), told["seed"], told["temperature"], told["max_tokens"], stop)
                with self.lock:
                    (ids, logprobs) = engine.sample([request])[0]
                content = [{"token_id": i, "logprob": p} for i, p in zip(ids, logprobs, strict=True)]
                return {"choices": [{"index": 0, "token_ids": ids, "logprobs": {"content": content}}]}
        return None


class Weights(list[Any]):
    merged = False


class Routes(BaseHTTPRequestHandler):
    server: Fake

    def do_GET(self) -> None:
        self.do_POST()

    def do_POST(self) -> None:
        text = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = self.path.partition("?")[0]
        status, said = self.server.fault(path)
        if said == "hang":
            self.server.hang.wait(10)
        elif status == 200 and not said:
            answer = self.server.answer(path, json.loads(text) if text else None)
            status, said = (400, answer) if isinstance(answer, str) else (200, json.dumps(answer))
        self.send_response(status)
        self.end_headers()
        self.wfile.write(said.replace("null", "").encode() if said == "null" else said.encode())

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def serving(lm: LanguageModel, *, other: bool = True) -> Iterator[Fake]:
    """other: whether it starts from other weights than the model's, as it may where all of them are sent."""
    fake = Fake(FakeEngine(lm, other=other))
    threading.Thread(target=fake.serve_forever, daemon=True).start()
    try:
        yield fake
    finally:
        fake.hang.set()
        fake.shutdown()
        fake.server_close()


def main() -> None:
    """`python -m tests.support.server MODEL PORT full|lora`, for other hosts too."""
    from tests.support.tiny import loaded

    path, port, tuning = sys.argv[1:]
    fake = Fake(FakeEngine(loaded(path, tuning), other=tuning == "full"), ("", int(port)))
    print("serving", flush=True)
    fake.serve_forever()


if __name__ == "__main__":
    main()
