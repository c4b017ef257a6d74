"""A vLLM server: token ids in and out over HTTP, weights by its own transfer, or through a folder that both see."""

import json
import shutil
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import torch

from selfcorrect.config import VllmConfig
from selfcorrect.errors import SamplerFailed
from selfcorrect.models.plain import PlainWeights
from selfcorrect.samplers.base import note
from selfcorrect.samplers.vllm import ADAPTER, AdapterVersion, Request, Sampled
from selfcorrect.samplers.vllm_engine import need_vllm

SIDE_BY_SIDE = 256  # requests of a rank that are under way; the server batches them
UNTOLD = 1 << 40  # tokens: the length of a server that does not say how many it takes
_WAIT = 120.0  # seconds for a server that is still starting, or starting again
_MORE = 5.0  # seconds: the time-out of a whole sync comes before that of a request within it
_HERE = ("localhost", "127.0.0.1", "::1")
_BLOCK = 32  # no route tells the size of a cache block; the comparison's rows are long enough for this one


class AnsweredError(RuntimeError):
    """The server is there, and said that it could not."""


class Server:
    """A server that someone else started, by docs/vllm.md. folder: seen by both, under the same path.

    base_too: what lies beneath the adapter is not the model that the server was started with (its 4-bit weights,
    dequantised), so it is sent, once, before the first adapter.
    """

    def __init__(
        self, config: VllmConfig, folder: Path, device: torch.device, *, adapter_only: bool, base_too: bool = False
    ) -> None:
        assert config.server
        self._url, self._timeout, self._folder = config.server.rstrip("/"), config.timeout, folder
        self._keeps_base, self._told, self._versions = adapter_only and not base_too, "", 0
        self._trainer: Any = None
        self._device = device
        usual = "nccl" if device.type == "cuda" else "folder"
        self._transfer = usual if config.transfer == "auto" else config.transfer
        served, *loaded = self._await()
        # Of runs whose folders are gone, as they ended or were killed: whoever sends unloads them. One that only asks
        # may be on a host that sees none of what was sent.
        policies = [each for each in loaded if adapter_only and str(each["id"]).startswith(ADAPTER)]
        self._left = [str(each["id"]) for each in policies if not Path(str(each.get("root"))).exists()]
        self._model = str(served["id"])
        length = served.get("max_model_len")
        self.block, self.longest = _BLOCK, UNTOLD
        if isinstance(length, int) and length > 1:  # true is no number
            self.longest = length
        else:
            note(
                f"vllm.server = {self._url!r} does not say in /v1/models how many tokens it takes (max_model_len): a "
                "rollout that is too long for it ends the run with the server's own words"
            )

    def sample(self, requests: Sequence[Request]) -> list[Sampled]:
        """In the order of the requests. Raises RuntimeError where the server answers with an error, late, or never."""
        with ThreadPoolExecutor(min(len(requests), SIDE_BY_SIDE), thread_name_prefix="vllm") as pool:
            return list(pool.map(self._one, requests))

    def take_weights(self, weights: PlainWeights) -> None:
        """Raises RuntimeError as `sample`, OSError where the folder cannot be written, and what the transfer raises."""
        if self._keeps_base:
            return  # it was started with the model beneath the adapter; the comparison shows whether it was
        with self._paused():
            if self._transfer == "folder":
                self._by_folder(weights)
            else:
                self._by_transfer(weights)
            if not self._post("/reset_prefix_cache").get("success"):
                raise RuntimeError(f"{self._url} could not empty its prefix cache")

    def take_adapter(self, version: AdapterVersion) -> None:
        """Raises RuntimeError as `sample` does, also where the server cannot read the adapter's folder."""
        while self._left:
            with suppress(RuntimeError):  # another process was first
                self._unload(self._left.pop())
        with self._reading(version.folder):
            self._post("/v1/load_lora_adapter", {"lora_name": version.name, "lora_path": str(version.folder)})
        self._model = version.name

    def drop_adapter(self, version: AdapterVersion) -> None:
        self._unload(version.name)

    @property
    def serves(self) -> str:
        return self._model

    def follow(self, serves: str) -> None:
        self._model = serves

    def rest(self) -> None:
        """Its memory is its own."""

    def said(self) -> str:
        if self._told:
            return self._told
        try:
            with urllib.request.urlopen(f"{self._url}/health", timeout=5) as answer:
                return f"/health answers {answer.status}"
        except OSError as error:
            return f"/health: {error}"

    def close(self) -> None:
        """It is not ours to stop. What a transfer holds goes with it."""
        self._trainer = None

    def _unload(self, name: str) -> None:
        self._post("/v1/unload_lora_adapter", {"lora_name": name})

    def _one(self, request: Request) -> Sampled:
        params = {
            "temperature": request.temperature, "max_tokens": request.max_new_tokens, "seed": request.seed,
            "logprobs": 0, "detokenize": False, "ignore_eos": True, "stop_token_ids": list(request.stop_ids),
            "top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0,
        }  # fmt: skip
        body = {"model": self._model, "token_ids": list(request.prompt), "sampling_params": params, "stream": False}
        answer = self._post("/inference/v1/generate", body)
        try:
            choice = answer["choices"][0]
            ids = tuple(int(token) for token in choice["token_ids"])
            told = (choice.get("logprobs") or {}).get("content") or []
            return Sampled(ids, tuple(float(each["logprob"]) for each in told))
        except (LookupError, TypeError, ValueError, AttributeError):
            raise RuntimeError(f"/inference/v1/generate answered no completion: {str(answer)[:200]}") from None

    def _by_folder(self, weights: PlainWeights) -> None:
        """A new folder for each version; the one before is removed, as nothing is read from it any more."""
        self._versions += 1
        folder = self._folder / f"weights-{self._versions}"
        weights.write(folder)
        with self._reading(folder):
            self._post("/collective_rpc", {"method": "reload_weights", "kwargs": {"weights_path": str(folder)}})
        shutil.rmtree(self._folder / f"weights-{self._versions - 1}", ignore_errors=True)

    @contextmanager
    def _reading(self, folder: Path) -> Iterator[None]:
        """A server of another host may not see the folder, and its own words need not say so."""
        try:
            yield
        except AnsweredError as error:
            if urlsplit(self._url).hostname in _HERE:
                raise
            raise RuntimeError(
                f"the server was to read {folder} of {socket.gethostname()}, which both hosts must see under one path "
                f"(vllm.sync_folder; docs/vllm.md says what needs none), and {error}"
            ) from error

    def _by_transfer(self, weights: PlainWeights) -> None:
        """By vLLM's trainer side: the tensors are ready here before the server is told of them.

        They go to the card one by one where they are in this machine's memory; for IPC all of them must be there.
        """
        need_vllm()
        from vllm.distributed.weight_transfer.base import ParamMeta, WeightSource

        at_once = self._transfer == "ipc"
        named = [(name, tensor.to(self._device) if at_once else tensor) for name, tensor in weights]
        device = self._device

        class Source(WeightSource):  # type: ignore[misc]
            def metadata(self) -> list[Any]:
                return [ParamMeta(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in named]

            def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
                return ((name, tensor.to(device)) for name, tensor in named)

        if self._trainer is None:
            self._trainer = self._rendezvous(Source())
        self._trainer.source = Source()
        self._trainer.send_weights()

    def _rendezvous(self, source: Any) -> Any:
        from vllm.distributed.weight_transfer.clients import HTTPVLLMWeightSyncClient
        from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory

        if self._transfer == "ipc":
            from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerInitInfo

            info: Any = IPCTrainerInitInfo(rank=0)
        else:
            from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo

            world = self._world_size()
            address, port = _own_address(self._url)
            info = NCCLTrainerInitInfo(rank=0, master_address=address, master_port=port, world_size=world + 1)
        post = self._post

        class Client(HTTPVLLMWeightSyncClient):  # type: ignore[misc]
            def _post(self, path: str, json: Any = None) -> None:
                """Its own drops what the server answers to a failure, which nothing else tells."""
                post(f"/{path}", json)

        return WeightTransferTrainerFactory.trainer_init(info, client=Client(self._url), source=source)

    def _world_size(self) -> int:
        """Processes of the server. Raises RuntimeError where it does not say."""
        answer = self._get("/get_world_size")
        if type(size := answer.get("world_size")) is not int or size < 1:
            raise RuntimeError(f"/get_world_size answered no number of processes (world_size): {str(answer)[:200]}")
        return size

    @contextmanager
    def _paused(self) -> Iterator[None]:
        """No request is answered half by old weights and half by new ones; it goes on whatever happens."""
        self._post("/pause?mode=wait")
        try:
            yield
        except BaseException:
            with suppress(RuntimeError, OSError):  # what it says to a failure counts, and not what it says afterwards
                self._post("/resume")
            raise
        self._post("/resume")

    def _await(self) -> list[dict[str, Any]]:
        """What it serves, once it answers: the model, and adapters."""
        until, why = time.monotonic() + min(_WAIT, self._timeout), ""
        while True:
            try:
                models = self._get("/v1/models").get("data")
                if isinstance(models, list) and models and all(isinstance(m, dict) and m.get("id") for m in models):
                    return models
                why = "/v1/models names no model"
            except (OSError, ValueError, RuntimeError) as error:
                why = self._told or str(error)
            if time.monotonic() > until:
                raise SamplerFailed(
                    f"vllm.server = {self._url!r} does not answer ({why}); start it (docs/vllm.md), or mend the address"
                )
            time.sleep(1.0)

    def _get(self, path: str) -> dict[str, Any]:
        return self._ask(urllib.request.Request(f"{self._url}{path}"))

    def _post(self, path: str, body: Any = None) -> dict[str, Any]:
        data = None if body is None else json.dumps(body).encode()
        head = {"Content-Type": "application/json"}
        return self._ask(urllib.request.Request(f"{self._url}{quote(path, '/?=&')}", data, head, method="POST"))

    def _ask(self, request: urllib.request.Request) -> dict[str, Any]:
        """Its answer from JSON; {} where that is no object. Raises RuntimeError with the server's own text."""
        try:
            with urllib.request.urlopen(request, timeout=self._timeout + _MORE) as answer:
                text = answer.read().decode("utf-8", "replace")
            self._told = ""  # what it told of an earlier failure is over
        except urllib.error.HTTPError as error:
            self._told = " ".join(error.read().decode("utf-8", "replace").split())[:500]
            where = urlsplit(request.full_url).path
            hint = "; the route needs a server started as docs/vllm.md says" if error.code == 404 else ""
            raise AnsweredError(f"{where} answered {error.code}: {self._told or error.reason}{hint}") from None
        except TimeoutError:
            raise RuntimeError(f"{request.full_url} gave no answer in {self._timeout:g} s (vllm.timeout)") from None
        except urllib.error.URLError as error:
            self._told = str(error.reason)
            raise RuntimeError(f"{self._url} does not answer: {error.reason}") from None
        try:
            found = json.loads(text)
        except (ValueError, RecursionError):
            return {}
        return found if isinstance(found, dict) else {}


def _own_address(url: str) -> tuple[str, int]:
    """The address by which the server's machine can reach this one, and a port that is free now."""
    parts = urlsplit(url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    with socket.create_connection((parts.hostname or "", port), timeout=30) as line:
        address = line.getsockname()[0]
    with socket.socket() as free:
        free.bind(("", 0))
        return str(address), int(free.getsockname()[1])
