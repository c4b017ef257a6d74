"""An engine with vLLM's interface and weights of its own, computed by transformers, and its faults."""

import copy
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from selfcorrect.models.language_model import LanguageModel
from selfcorrect.models.plain import PlainWeights
from selfcorrect.samplers.transformers import generate
from selfcorrect.samplers.vllm import AdapterVersion, Request, Sampled
from selfcorrect.types import Completion, SamplingParams


@dataclass
class FakeEngine:
    """calls: what was asked of it, in order. fault: from which call of its kind on it goes wrong, by the fault's name.

    stale_weights, stale_cache, wrong_adapter: it goes on with what it had. raw: log-probabilities from before the
    temperature. dies, breaks_off, no_numbers: of `sample`. sync_dies, hangs: of a sync. rest_dies: of a rest. other: it
    starts from other weights than the policy's.
    """

    of: LanguageModel
    fault: dict[str, int] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)
    block: int = 4
    longest: int = 256
    closed: bool = False
    other: bool = True

    def __post_init__(self) -> None:
        self._lm = copy.deepcopy(self.of)
        self._cache: dict[tuple[int, ...], LanguageModel] = {}
        self._known: dict[int, LanguageModel] = {}
        self._taken = set[int]()
        with torch.no_grad():
            for parameter in self._lm.model.parameters():
                parameter.mul_(0.5 if self.other else 1)

    def sample(self, requests: Sequence[Request]) -> list[Sampled]:
        self._note("sample")
        if self._is("dies", "sample"):
            raise RuntimeError("CUDA error: an illegal memory access was encountered\n\n")
        found = self._answers(requests)
        if self._is("breaks_off", "sample"):
            found[-1] = Sampled(found[-1].token_ids[:0], found[-1].logprobs[:0])
        if self._is("no_numbers", "sample"):
            found[-1] = Sampled(found[-1].token_ids, (float("nan"),) * len(found[-1].token_ids))
        return found

    def take_weights(self, weights: PlainWeights) -> None:
        self._note("weights")
        if self._is("sync_dies", "weights"):
            raise RuntimeError("worker died")
        if self._is("hangs", "weights"):
            time.sleep(3)
        if self._is("stale_weights", "weights"):
            return
        if not self._is("stale_cache", "weights"):
            self._cache.clear()
        self._lm = copy.deepcopy(self._lm)
        if self._lm.adapters and weights.merged:
            self._lm.adapters.merge()
            self._lm.adapters = None
        state = {
            name.replace(".base_layer.", "."): tensor
            for name, tensor in self._lm.model.state_dict(keep_vars=True).items()
        }
        with torch.no_grad():
            for name, tensor in weights:
                state[name].copy_(tensor)

    def take_adapter(self, version: AdapterVersion) -> None:
        self._note(f"adapter {version.number}")
        assert self._lm.adapters
        self._taken.add(version.number)
        folder = version.folder
        if self._is("wrong_adapter", f"adapter {version.number}"):
            return
        self._lm = copy.deepcopy(self._lm)
        assert self._lm.adapters
        self._lm.adapters.load(load_file(folder / "adapter_model.safetensors"))
        self._cache = {}

    def drop_adapter(self, version: AdapterVersion) -> None:
        assert (version.folder / "adapter_config.json").is_file()
        self._taken.remove(version.number)  # one that it never had is an error to it
        self._note(f"drop {version.number}")

    @property
    def serves(self) -> str:
        return ""

    def follow(self, serves: str) -> None:
        self._note("follow")

    def rest(self) -> None:
        self._note("rest")
        if self._is("rest_dies", "rest"):
            raise RuntimeError("no memory on the host")

    def said(self) -> str:
        return "NCCL watchdog: rank 1 is waiting"

    def close(self) -> None:
        self.closed = True

    def _note(self, call: str) -> None:
        assert not self.closed
        self.calls.append(call)

    def _is(self, fault: str, call: str) -> bool:
        kind = call.split(maxsplit=1)[0]
        return fault in self.fault and sum(each.split()[0] == kind for each in self.calls) >= self.fault[fault]

    def _answers(self, requests: Sequence[Request]) -> list[Sampled]:
        """Rows of the same kind side by side; what begins with a block met before is answered as it was then."""
        groups: dict[Any, list[int]] = {}
        for row, request in enumerate(requests):
            head = request.prompt[: len(request.prompt) // self.block * self.block]
            lm = self._cache.setdefault(head, self._lm) if head else self._lm
            kind = (id(lm), request.temperature, request.max_new_tokens, request.stop_ids)
            groups.setdefault(kind, []).append(row)
            self._known[id(lm)] = lm
        found: dict[int, Sampled] = {}
        for (which, temperature, limit, stop_ids), rows in groups.items():
            lm = replace(self._known[which], eos_ids=frozenset(stop_ids))
            prompts = [requests[row].prompt for row in rows]
            numbers = [torch.rand(limit, generator=torch.Generator().manual_seed(requests[r].seed)) for r in rows]
            with torch.no_grad():
                done = generate(lm, prompts, SamplingParams(temperature, limit, 0), torch.stack(numbers).double())
            for row, prompt, each in zip(rows, prompts, done, strict=True):
                found[row] = Sampled(each.token_ids, self._told(lm, prompt, each))
        return [found[row] for row in range(len(requests))]

    def _told(self, lm: LanguageModel, prompt: tuple[int, ...], done: Completion) -> tuple[float, ...]:
        if "raw" not in self.fault:
            return done.logprobs
        table_1T = torch.tensor([[*prompt, *done.token_ids]])
        with torch.no_grad():
            logits = lm.model(input_ids=table_1T).logits[0, len(prompt) - 1 : -1]
        return tuple(logits.log_softmax(-1).gather(1, table_1T[0, len(prompt) :, None])[:, 0].tolist())


class Engines:
    """Makes them one after the other, each with its faults; `made` are all so far."""

    def __init__(self, lm: LanguageModel, *faults: dict[str, int]) -> None:
        self._lm, self._faults, self.made = lm, list(faults), list[FakeEngine]()

    def __call__(self, *_: Any, **__: Any) -> FakeEngine:
        fault = self._faults[min(len(self.made), len(self._faults) - 1)] if self._faults else {}
        self.made.append(FakeEngine(self._lm, fault))
        return self.made[-1]


def learn(lm: LanguageModel, size: float = 0.05) -> None:
    """The policy moves."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in lm.parameters():
            parameter.add_(size * torch.randn(parameter.shape, generator=generator))


def adapter_folders(above: Path) -> list[str]:
    return sorted(path.name for path in above.rglob("adapter-*"))
