"""vLLM in this process: weights are handed over in memory, an adapter through a folder."""

import gc
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from selfcorrect.config import VllmConfig
from selfcorrect.errors import ConfigError, ModelError, SamplerFailed, first_line
from selfcorrect.models.language_model import LanguageModel
from selfcorrect.models.plain import PlainWeights
from selfcorrect.samplers.vllm import AdapterVersion, Request, Sampled

RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # the room for an adapter comes in these sizes only
_ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the engine's own process could not be handed tensors
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # the policy computes with the same threads
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
}
_GIB = 1 << 30


def need_vllm() -> Any:
    """VLLM's module. Raises ModelError where it cannot be imported."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import vllm
    except Exception as error:  # noqa: BLE001 - a build for another machine fails in ways of its own
        missing = isinstance(error, ModuleNotFoundError) and error.name == "vllm"
        why = "is not installed" if missing else f"cannot be used here ({first_line(error)})"
        raise ModelError(f"sampler: vllm: the package vllm {why}; docs/vllm.md says how to install it") from None
    return vllm


class InProcess:
    """An engine with a copy of the weights, started from the model's own files and given the policy's by a sync.

    scratch: a folder for a model that has no files.
    """

    def __init__(
        self, lm: LanguageModel, config: VllmConfig, dtype: torch.dtype, rows: int, scratch: Path, *, adapter_only: bool
    ) -> None:  # fmt: skip
        vllm = need_vllm()
        self._cuda = lm.device.type == "cuda"
        self._vllm, self._asleep, self._adapter = vllm, False, adapter_only
        self._request: Any = None
        self.block = (16 if self._cuda else 32) if config.block_size == "auto" else config.block_size
        if not self._cuda:
            _compile_nothing()
        cache = config.kv_cache_gib or (None if self._cuda else 1.0)
        threads = torch.get_num_threads()
        try:
            self._llm = vllm.LLM(
                model=_files(lm, dtype, scratch), dtype=str(dtype).removeprefix("torch."), skip_tokenizer_init=True,
                generation_config="vllm", use_tqdm_on_load=False, logprobs_mode="processed_logprobs",
                enable_prefix_caching=True, block_size=self.block,
                max_model_len=-1 if config.max_model_len == "auto" else config.max_model_len,
                max_num_seqs=min(rows, 1024), gpu_memory_utilization=config.memory_share,
                kv_cache_memory_bytes=int(cache * _GIB) if cache else None, enable_sleep_mode=self._cuda,
                enforce_eager=not self._cuda, **_launcher(), **_lora(lm, adapter_only=adapter_only),
            )  # fmt: skip
        except Exception as error:
            raise SamplerFailed(
                f"sampler: vllm could not be started: {first_line(error)[:400]}; mend that setting (vllm.*), or set "
                "sampler: transformers"
            ) from error
        finally:
            torch.set_num_threads(threads)
        self.longest = int(self._llm.llm_engine.model_config.max_model_len)

    def sample(self, requests: Sequence[Request]) -> list[Sampled]:
        params = [
            self._vllm.SamplingParams(
                temperature=request.temperature, max_tokens=request.max_new_tokens, seed=request.seed, logprobs=0,
                detokenize=False, ignore_eos=True, stop_token_ids=list(request.stop_ids),
            )
            for request in requests
        ]  # fmt: skip
        prompts = [{"prompt_token_ids": list(request.prompt)} for request in requests]
        found = self._llm.generate(prompts, params, lora_request=self._request, use_tqdm=False)
        return [_sampled(result.outputs[0]) for result in found]

    def take_weights(self, weights: PlainWeights) -> None:
        self._wake("weights")
        self._llm.collective_rpc("reload_weights", kwargs={"weights_iterator": iter(weights)})
        self._wake("kv_cache")
        if not self._llm.reset_prefix_cache():
            raise RuntimeError("the prefix cache could not be emptied")

    def take_adapter(self, version: AdapterVersion) -> None:
        self._wake("weights", "kv_cache")
        from vllm.lora.request import LoRARequest

        request = LoRARequest(version.name, version.number, str(version.folder))
        if not self._llm.llm_engine.add_lora(request):
            raise RuntimeError(f"adapter {version.name} was not taken")
        self._request = request

    def drop_adapter(self, version: AdapterVersion) -> None:
        self._llm.llm_engine.remove_lora(version.number)

    @property
    def serves(self) -> str:
        raise NotImplementedError("each process has an engine of its own")

    def follow(self, serves: str) -> None:
        raise NotImplementedError("each process has an engine of its own")

    def rest(self) -> None:
        """Level 1 keeps the weights in the host's memory, beneath an adapter; whole ones are sent again anyway."""
        if self._cuda:
            self._llm.sleep(level=1 if self._adapter else 2)
            self._asleep = True

    def said(self) -> str:
        return ""

    def close(self) -> None:
        with _group_kept():
            self._llm.llm_engine.engine_core.shutdown()
        del self._llm
        gc.collect()
        if self._cuda:
            torch.cuda.empty_cache()

    def _wake(self, *tags: str) -> None:
        """Weights written into memory that is still given back would be lost, so it comes first."""
        if self._asleep:
            torch.cuda.empty_cache()  # what torch keeps of the update's memory, the engine cannot take
            self._llm.wake_up(tags=list(tags))
            self._asleep = "kv_cache" not in tags


def _among_ranks() -> bool:
    """Whether this is one of several ranks: alone, an engine begins a group of one."""
    started = torch.distributed.is_available() and torch.distributed.is_initialized()
    return started and torch.distributed.get_world_size() > 1


def _launcher() -> dict[str, Any]:
    """Of several ranks: the engine takes its place and its device from the launcher's variables, in their group."""
    return {"distributed_executor_backend": "external_launcher"} if _among_ranks() else {}


@contextmanager
def _group_kept() -> Iterator[None]:
    """As it ends, an engine ends the process group that it found, which is the ranks'."""
    destroy: Any = torch.distributed.destroy_process_group if _among_ranks() else None

    def of_engine(group: Any = None) -> None:
        if group is not None:
            destroy(group)

    if destroy:
        torch.distributed.destroy_process_group = of_engine
    try:
        yield
    finally:
        if destroy:
            torch.distributed.destroy_process_group = destroy


def _compile_nothing() -> None:
    """On a CPU the engine would compile single operations at its first use, for longer than a small run takes."""
    import torch._dynamo

    torch._dynamo.config.disable = True


def _sampled(output: Any) -> Sampled:
    ids = tuple(output.token_ids)
    return Sampled(ids, tuple(float(table[token].logprob) for token, table in zip(ids, output.logprobs, strict=True)))


def _lora(lm: LanguageModel, *, adapter_only: bool) -> dict[str, Any]:
    if not adapter_only:
        return {}
    assert lm.adapters
    rank = lm.adapters.config.r
    room = next((size for size in RANKS if size >= rank), None)
    if room is None:
        raise ConfigError(
            f"model.lora.rank = {rank}: vLLM takes adapters of a rank up to {RANKS[-1]}; set vllm.adapter: merged"
        )
    return {"enable_lora": True, "max_lora_rank": room, "max_loras": 1, "max_cpu_loras": 3}


def _files(lm: LanguageModel, dtype: torch.dtype, scratch: Path) -> str:
    """A folder or hub name to start from: shapes count, the weights are sent anyway."""
    named = str(getattr(lm.model.config, "_name_or_path", "") or "")
    if named and ((Path(named) / "config.json").is_file() or (not Path(named).exists() and named.count("/") == 1)):
        return named
    PlainWeights(lm, dtype, merged=False).write(scratch)
    return str(scratch)
