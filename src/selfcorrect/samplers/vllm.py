"""Sampling with vLLM, which holds weights of its own: every update is sent there, and then compared.

    load_weights -> sync: weights, or an adapter -> compare: the same log-probabilities in both -> sample, ... -> rest

What the engine is (in this process, or a server) is behind `Engine`; what goes wrong with it is dealt with here.
"""

import errno
import math
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Thread
from typing import Any, NamedTuple, Protocol, TypeVar

import torch

from selfcorrect.config import VllmConfig
from selfcorrect.errors import EngineFailed, SamplerFailed, UserError, number_of
from selfcorrect.models.language_model import LanguageModel
from selfcorrect.models.plain import PlainWeights
from selfcorrect.samplers.base import note
from selfcorrect.samplers.compared import PROBED, TEMPERATURE, Comparison, Probed, policy_logprobs, probes, total
from selfcorrect.samplers.sync_folder import SyncFolder
from selfcorrect.seeds import derive_seed
from selfcorrect.types import Completion, SamplingParams

T = TypeVar("T")

ADAPTER = "policy-"  # begins the name of every adapter that is sent


class Request(NamedTuple):
    """One completion to sample; stop_ids: tokens that end it."""

    prompt: tuple[int, ...]
    seed: int
    temperature: float
    max_new_tokens: int
    stop_ids: tuple[int, ...]


class Sampled(NamedTuple):
    """token_ids [L] with the one that ended it, and the log-probability of each [L] at the request's temperature."""

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class AdapterVersion:
    """An adapter as one sync sent it: a number, a folder and a name that no other version has had.

    Nor any of another run: a server outlives runs, and keeps what it has under a name.
    """

    number: int
    folder: Path
    name: str


class Engine(Protocol):
    """What `VllmSampler` needs of vLLM. block: tokens of a cache block; longest: tokens of a sequence.

    Any method may raise, or never return.
    """

    block: int
    longest: int

    def sample(self, requests: Sequence[Request]) -> list[Sampled]: ...

    def take_weights(self, weights: PlainWeights) -> None:
        """Sample from these from now on, with an empty cache."""

    def take_adapter(self, version: AdapterVersion) -> None:
        """Sample with this adapter over the weights from now on."""

    def drop_adapter(self, version: AdapterVersion) -> None: ...

    @property
    def serves(self) -> str:
        """What another process asks for, to have the same weights or adapter."""

    def follow(self, serves: str) -> None:
        """Ask for what another process has sent."""

    def rest(self) -> None:
        """Give memory back until weights or an adapter are taken."""

    def said(self) -> str:
        """The last that the engine itself told of a failure; empty where it told nothing."""

    def close(self) -> None: ...


class VllmSampler:
    """start: makes an engine that computes in a dtype, and waits for it; it may write to the folder, and raises
    UserError kinds where it cannot. adapter_only: an adapter is sent, and not all weights.
    """

    def __init__(
        self, lm: LanguageModel, config: VllmConfig, start: Callable[[Path, torch.dtype], Engine], *,
        adapter_only: bool,
    ) -> None:  # fmt: skip
        self._lm, self._config, self._start, self._adapter_only = lm, config, start, adapter_only
        self.dtype = lm.compute_dtype if config.precision == "auto" else getattr(torch, config.precision)
        self._comparison = Comparison(self.dtype, lm.compute_dtype, "adapter" if adapter_only else "weights")
        self._engine: Engine | None = None
        self._syncs = 0
        self._versions: list[AdapterVersion] = []  # those the engine knows, the newest last
        self._synced = self._compared = False
        self._failed, self._until = "", 0.0  # how, for the first time; when a sync's time is over
        self._bare = True  # whether the engine was never sent weights
        self._probes: list[tuple[int, ...]] = []
        self._place = SyncFolder(Path(config.sync_folder) if config.sync_folder else None)
        self._folder = self._place.path

    def load_weights(self, model: Any) -> None:
        """Send the engine this model's weights, or its adapter. Raises SamplerFailed where it does not take them."""
        self._lm.model, self._synced = model, False
        self._twice(self._sync)

    def sample(self, prompts: Sequence[tuple[int, ...]], params: SamplingParams) -> list[Completion]:
        """Raises SamplerFailed where the engine fails twice, or where its numbers are not the policy's."""
        if not prompts:
            return []
        requests = self._requests(prompts, params)
        return self._completions(self._twice(lambda: self._sample(requests)))

    def sample_once(self, prompts: Sequence[tuple[int, ...]], params: SamplingParams) -> list[Completion]:
        """From what was sent, and compared, before. Raises EngineFailed where the engine fails."""
        if not prompts:
            return []
        return self._completions(self._once(lambda: _answers(self._sent(), self._requests(prompts, params))))

    def begin(self) -> Engine:
        """The engine, started where it was not. Raises SamplerFailed."""
        if self._engine is None:
            self._engine, self._bare = self._start(self._folder, self.dtype), True
        return self._engine

    def send_once(self, model: Any) -> None:
        """`load_weights`. Raises EngineFailed where the engine fails."""
        self._lm.model, self._synced = model, False
        self._once(self._sync)

    def probe_once(self, prompts: Sequence[tuple[int, ...]]) -> list[Probed]:
        """What the engine writes after rows made of these prompts, for `judge`. Raises EngineFailed where it fails."""
        return self._once(lambda: self._probe(self._sent(), prompts))

    @property
    def serves(self) -> str:
        return self._sent().serves

    def follow(self, serves: str) -> None:
        """Sample from what another process has sent to the server, and compared. Raises SamplerFailed."""
        self.begin().follow(serves)
        self._synced = self._compared = True

    def rest(self) -> None:
        """Where the engine fails in it for the first time, it is given up. Raises SamplerFailed for the second."""
        self._twice(self._rest)

    def rest_once(self) -> None:
        """Raises EngineFailed where the engine fails."""
        self._once(self._rest)

    def close(self) -> None:
        """Give up the engine, and what was written for it."""
        self.stop()
        self._place.remove()

    def stop(self) -> None:
        """Give up the engine; the next use starts it anew."""
        engine, self._engine = self._engine, None
        self._synced, self._versions = False, []
        if engine:
            try:
                engine.close()
            except Exception as error:  # noqa: BLE001 - it is given up in any case
                note(f"sampler: vllm could not be closed ({_line(error)})")

    def _rest(self) -> None:
        if self._engine:
            self._engine.rest()
        self._synced = False

    def _requests(self, prompts: Sequence[tuple[int, ...]], params: SamplingParams) -> list[Request]:
        stop_ids = tuple(sorted(self._lm.eos_ids))
        return [
            Request(prompt, derive_seed(params.seed, row), params.temperature, params.max_new_tokens, stop_ids)
            for row, prompt in enumerate(prompts, params.first)
        ]

    def _completions(self, sampled: Sequence[Sampled]) -> list[Completion]:
        return [
            Completion(ids, logprobs, self._lm.chat.said(ids), "stop" if ids[-1] in self._lm.eos_ids else "length")
            for ids, logprobs in sampled
        ]

    def _ready(self) -> Engine:
        return self._engine if self._synced and self._engine else self._sync()

    def _sample(self, requests: Sequence[Request]) -> list[Sampled]:
        engine = self._ready()
        if not self._compared:
            probed = self._probe(engine, [request.prompt for request in requests])
            self.judge(probed, policy_logprobs(self._lm, probed))
        return _answers(engine, requests)

    def _twice(self, deed: Callable[[], T]) -> T:
        """Once more with an engine started anew and the current weights, where it fails for the first time."""
        anew = False
        while True:
            try:
                return self._once(deed)
            except SamplerFailed as error:  # one that cannot even be started anew is not to hide why it had to be
                if not anew and not isinstance(error, EngineFailed):
                    raise
                self.stop()
                if self._failed:
                    raise failed_again(self._failed, str(error)) from error
                self._failed = str(error)
            note(started_again(self._failed))
            anew = True

    def _once(self, deed: Callable[[], T]) -> T:
        try:
            return deed()
        except UserError:
            raise
        except Exception as error:
            self._refuse_full_disk(error)
            raise EngineFailed(_line(error)) from error

    def _refuse_full_disk(self, error: Exception) -> None:
        if number_of(error) in (errno.ENOSPC, errno.EDQUOT):
            raise SamplerFailed(
                f"sampler: vllm: {self._folder} has no room for what is sent ({_line(error)}); free some space, or "
                "name a folder on another disk in vllm.sync_folder"
            ) from error

    def _sent(self) -> Engine:
        assert self._engine, "there is no engine"
        assert self._synced, "nothing was sent to it since it rested"
        return self._engine

    def _sync(self) -> Engine:
        engine, began = self.begin(), self._bare
        self._until = time.monotonic() + self._config.timeout
        self._syncs, self._compared = self._syncs + 1, False
        if not self._adapter_only:
            self._in_time(engine, lambda: engine.take_weights(PlainWeights(self._lm, self.dtype, merged=True)))
        else:
            if began:  # what lies beneath the adapter here: dequantised, or rounded
                self._in_time(engine, lambda: engine.take_weights(PlainWeights(self._lm, self.dtype, merged=False)))
            self._bare = False
            self._send_adapter(engine)
        self._synced = True
        return engine

    def _send_adapter(self, engine: Engine) -> None:
        """Sends the adapter under a new name and from a new folder, as the engine caches adapters by both.

        The version before it stays for one more sync: the engine may still read its files.
        """
        assert self._lm.adapters
        named = f"{ADAPTER}{self._place.word}-{self._syncs}"
        version = AdapterVersion(self._syncs, self._folder / f"adapter-{self._syncs}", named)
        version.folder.mkdir()
        self._lm.adapters.save(version.folder)
        self._in_time(engine, lambda: engine.take_adapter(version))
        self._versions.append(version)
        while len(self._versions) > 2:
            old = self._versions.pop(0)
            self._in_time(engine, partial(engine.drop_adapter, old))
            shutil.rmtree(old.folder, ignore_errors=True)

    def _in_time(self, engine: Engine, deed: Callable[[], None]) -> None:
        """Raises SamplerFailed where the engine is still at it as the sync's time is over."""
        raised: list[BaseException] = []
        card = torch.cuda.current_device() if self._lm.device.type == "cuda" else None

        def run() -> None:
            try:
                if card is not None:  # a thread begins with card 0
                    torch.cuda.set_device(card)
                deed()
            except BaseException as error:  # noqa: BLE001 - raised again below
                raised.append(error)

        thread = Thread(target=run, name="vllm sync", daemon=True)
        thread.start()
        thread.join(max(0.0, self._until - time.monotonic()))
        if thread.is_alive():
            self._engine = None  # nothing more can be asked of it
            raise SamplerFailed(
                f"sampler: vllm had not taken the weights of sync {self._syncs} after {self._config.timeout:g} s "
                f"(vllm.timeout); the last it said: {engine.said() or 'nothing'}; look at its log, and whether all of "
                "its cards answer"
            )
        if raised:
            raise raised[0]

    def _probe(self, engine: Engine, prompts: Sequence[tuple[int, ...]]) -> list[Probed]:
        """The same rows after every sync, longer than a cache block, so that what an older version left is met."""
        self._probes = self._probes or probes(prompts, 3 * engine.block + 1, engine.longest - PROBED)
        requests = [
            Request(probe, derive_seed("probe", row), TEMPERATURE, PROBED, ()) for row, probe in enumerate(self._probes)
        ]
        found = engine.sample(requests)
        if not all(len(logprobs) == len(ids) for ids, logprobs in found):
            raise SamplerFailed(
                f"sampler: vllm gave tokens without their log-probabilities after sync {self._syncs}, so it cannot be "
                "compared with the policy: start the server with --logprobs-mode processed_logprobs, or set sampler: "
                "transformers"
            )
        fewest = min(len(ids) for ids, _ in found)
        if fewest < PROBED:
            raise RuntimeError(f"a completion of {fewest} tokens came back broken off")
        return [Probed(probe, *told) for probe, told in zip(self._probes, found, strict=True)]

    def judge(self, probed: Sequence[Probed], own: Sequence[Sequence[float]]) -> None:
        """Raises SamplerFailed where the engine's log-probabilities are not the policy's `own`, or stand still."""
        self._comparison.judge(probed, own, total(self._lm.model), self._syncs)
        self._compared = True


def started_again(first: str) -> str:
    return f"sampler: vllm failed ({first}); it is started once more with the current weights"


def failed_again(first: str, then: str) -> SamplerFailed:
    """An engine is started anew once in a run."""
    return SamplerFailed(
        f"sampler: vllm failed ({first}), was started once more, and failed again ({then}); see what it wrote on "
        "stderr or in the server's log"
    )


def _answers(engine: Engine, requests: Sequence[Request]) -> list[Sampled]:
    """Raises RuntimeError where one is not whole, SamplerFailed where the engine takes no longer ones."""
    for request in requests:
        if len(request.prompt) >= engine.longest:  # which it would refuse as if it had failed
            raise _no_room(engine, request)
    found = engine.sample(requests)
    for request, (ids, logprobs) in zip(requests, found, strict=True):
        whole = len(ids) == request.max_new_tokens or (ids and ids[-1] in request.stop_ids)
        if not whole and ids and len(request.prompt) + len(ids) >= engine.longest:
            raise _no_room(engine, request)
        if not whole or len(logprobs) != len(ids) or not all(map(math.isfinite, logprobs)):
            raise RuntimeError(f"a completion of {len(ids)} tokens came back broken off, or without its numbers")
    return found


def _no_room(engine: Engine, request: Request) -> SamplerFailed:
    return SamplerFailed(
        f"sampler: vllm takes {engine.longest} tokens, and a prompt of {len(request.prompt)} with "
        f"rollouts.max_new_tokens = {request.max_new_tokens} came to more: raise vllm.max_model_len and "
        "vllm.kv_cache_gib (of a server: --max-model-len), or lower rollouts.max_new_tokens"
    )


def _line(error: BaseException) -> str:
    """A failure in one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[-1][:500]}" if lines else type(error).__name__
