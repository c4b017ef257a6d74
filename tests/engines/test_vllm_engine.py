"""The real vLLM in this process, on a CPU, against the transformers sampler. Run by `make test-vllm`."""

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from selfcorrect.config import VllmConfig
from selfcorrect.errors import SamplerFailed
from selfcorrect.models.language_model import LanguageModel
from selfcorrect.samplers.transformers import TransformersSampler
from selfcorrect.samplers.vllm import AdapterVersion, VllmSampler
from selfcorrect.samplers.vllm_engine import InProcess
from selfcorrect.types import Completion, SamplingParams
from tests.support.engines import learn
from tests.support.runs import read_rows
from tests.support.tiny import loaded, tiny_lm

WHY = "vLLM is not installed: `make test-vllm` runs this in an environment of its own"
pytestmark = [pytest.mark.vllm, pytest.mark.skipif(find_spec("vllm") is None, reason=WHY)]

ENDS = (3, 5, 7)
PROMPTS = ("5 2 1 : 8", "12 11 10 9 8 7 : 2", "4 : 4", "4 : 4", "9 6 : 3")
CLOSE, FAR = 1e-4, 1e-2


@dataclass
class Pair:
    """A policy, and the sampler over the real engine that follows it."""

    lm: LanguageModel
    own: VllmSampler
    engine: InProcess

    def attempts(
        self, sampler: Any, temperature: float, count: int = 2, limit: int = 9
    ) -> list[list[tuple[tuple[int, ...], Completion]]]:
        contexts, played = [self.lm.chat.first_prompt(prompt) for prompt in PROMPTS], []
        for number in range(count):
            done = sampler.sample(contexts, SamplingParams(temperature, limit, 11 + number))
            played.append(list(zip(contexts, done, strict=True)))
            contexts = [self.lm.chat.next_prompt(c, d.token_ids, "? 1 2") for c, d in played[-1]]
        return played

    def gap(self, played: list[list[tuple[tuple[int, ...], Completion]]], temperature: float) -> float:
        """The largest difference of a token's log-probability from a plain forward pass of the policy."""
        gaps = []
        for context, done in (pair for attempt in played for pair in attempt):
            ids = torch.tensor([[*context, *done.token_ids]])
            with torch.no_grad():
                logits = self.lm.logits(ids, None)[len(context) - 1 : -1]
            own = (logits / (temperature or 1.0)).log_softmax(-1).gather(1, ids[0, len(context) :, None])[:, 0]
            gaps.append((own - torch.tensor(done.logprobs)).abs().max().item())
        return max(gaps)


@pytest.fixture
def paired(tmp_path: Path) -> Iterator[Callable[..., Pair]]:
    """paired(lm, ...) -> a Pair; engines are closed afterwards."""
    made: list[VllmSampler] = []

    def pair(lm: LanguageModel, **changes: Any) -> Pair:
        config = VllmConfig(**{"kv_cache_gib": 0.125, "sync_folder": str(tmp_path), "timeout": 300.0, **changes})
        only = lm.adapters is not None and config.adapter != "merged"

        def start(folder: Path, dtype: torch.dtype) -> InProcess:
            return InProcess(lm, config, dtype, 16, folder / "model", adapter_only=only)

        own = VllmSampler(lm, config, start, adapter_only=only)
        made.append(own)
        own.load_weights(lm.model)
        assert isinstance(own._engine, InProcess)
        return Pair(lm, own, own._engine)

    yield pair
    for own in made:
        own.close()


POLICIES: dict[str, tuple[Callable[[], LanguageModel], dict[str, Any]]] = {
    "qwen2": (lambda: tiny_lm("qwen2", end_ids=ENDS, hidden=128), {}),
    "llama, tied head": (lambda: tiny_lm("llama", end_ids=ENDS, hidden=128), {}),
    "lab": (lambda: loaded("lab", "full"), {}),
    "lora": (lambda: loaded("lab", "lora"), {}),
    "lora merged": (lambda: loaded("lab", "lora"), {"adapter": "merged"}),
    "qlora": (lambda: loaded("lab", "qlora"), {}),
}


@pytest.mark.parametrize("name", POLICIES)
def test_greedy_attempts_are_the_transformers_samplers(name: str, paired: Callable[..., Pair]) -> None:
    """Token for token in float32, over two attempts, at the start and after two updates; drawn ones have the policy's
    log-probabilities at their temperature, and before an update reaches the engine they have not.
    """
    make, changes = POLICIES[name]
    pair = paired(make(), **changes)
    theirs = TransformersSampler(pair.lm)
    finishes, drawn = set(), set()
    for _ in range(3):
        found, expected = (pair.attempts(sampler, 0.0) for sampler in (pair.own, theirs))
        assert [[(c, d.token_ids, d.text, d.finish_reason) for c, d in attempt] for attempt in found] == [
            [(c, d.token_ids, d.text, d.finish_reason) for c, d in attempt] for attempt in expected
        ]
        assert pair.gap(found, 0.0) < CLOSE
        sampled = pair.attempts(pair.own, 1.3)
        assert pair.gap(sampled, 1.3) < CLOSE
        assert pair.gap(sampled, 1.0) > FAR
        finishes |= {d.finish_reason for attempt in (*found, *sampled) for _, d in attempt}
        drawn |= {sampled[0][row][1].token_ids for row in (2, 3)}  # the same prompt
        learn(pair.lm, 0.03)
        old = pair.attempts(pair.own, 1.0)  # nothing was sent yet
        assert pair.gap(old, 1.0) > FAR
        for sampler in (pair.own, theirs):
            sampler.load_weights(pair.lm.model)
    assert len(drawn) > 1
    if "lora" not in name:
        assert finishes == {"stop", "length"}


def test_attempt_2_finds_attempt_1_in_the_cache(paired: Callable[..., Pair]) -> None:
    pair = paired(tiny_lm("qwen2", hidden=128))
    first = pair.lm.chat.first_prompt(f"{'12 11 10 9 ' * 11}: 2")
    done = pair.own.sample([first], SamplingParams(1.0, 40, 1))[0]
    second = pair.lm.chat.next_prompt(first, done.token_ids, "? 1 2")
    params = pair.engine._vllm.SamplingParams(max_tokens=1, detokenize=False)
    found = pair.engine._llm.generate([{"prompt_token_ids": list(second)}], params, use_tqdm=False)[0]
    known, block = len(first) + len(done.token_ids) - 1, pair.engine.block  # the last token was never fed
    assert found.num_cached_tokens == known // block * block > 0


def test_stale_weights_and_a_stale_cache_are_seen(paired: Callable[..., Pair], monkeypatch: pytest.MonkeyPatch) -> None:
    pair = paired(loaded("lab", "full"))
    pair.attempts(pair.own, 1.0, 1)
    learn(pair.lm, 0.003)
    monkeypatch.setattr(pair.engine, "take_weights", lambda weights: None)
    pair.own.load_weights(pair.lm.model)
    with pytest.raises(SamplerFailed, match="other log-probabilities than the policy after sync 2"):
        pair.attempts(pair.own, 1.0, 1)
    monkeypatch.undo()
    monkeypatch.setattr(pair.engine._llm, "reset_prefix_cache", lambda: True)
    pair.own.load_weights(pair.lm.model)
    with pytest.raises(SamplerFailed, match="other log-probabilities than the policy after sync 3"):
        pair.attempts(pair.own, 1.0, 1)
    monkeypatch.undo()
    pair.own.load_weights(pair.lm.model)
    assert pair.gap(pair.attempts(pair.own, 1.0), 1.0) < CLOSE


def test_a_missed_sync_of_one_small_update_is_seen_in_bfloat16(
    paired: Callable[..., Pair], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Far below what the two engines differ by; the same update that is taken, or nothing learned, stops nothing."""
    pair = paired(loaded("lab", precision="bfloat16"))
    for size in (0.0, 0.0, 1e-6, 1e-6):
        learn(pair.lm, size)
        pair.own.load_weights(pair.lm.model)
        pair.attempts(pair.own, 1.0, 1)
    monkeypatch.setattr(pair.engine, "take_weights", lambda weights: None)
    learn(pair.lm, 1e-6)
    pair.own.load_weights(pair.lm.model)
    with pytest.raises(SamplerFailed, match=r"after sync 6 as it did before, to the last bit"):
        pair.attempts(pair.own, 1.0, 1)


def test_another_version_of_the_adapter_is_seen(paired: Callable[..., Pair], monkeypatch: pytest.MonkeyPatch) -> None:
    pair = paired(loaded("lab", "lora"))
    pair.attempts(pair.own, 1.0, 1)
    first = AdapterVersion(77, pair.own._folder / "adapter-1", "another")
    learn(pair.lm, 0.003)
    take = pair.engine.take_adapter
    monkeypatch.setattr(pair.engine, "take_adapter", lambda version: take(first))
    pair.own.load_weights(pair.lm.model)
    with pytest.raises(SamplerFailed, match="other log-probabilities than the policy after sync 2"):
        pair.attempts(pair.own, 1.0, 1)
    monkeypatch.undo()
    pair.own.load_weights(pair.lm.model)
    assert pair.gap(pair.attempts(pair.own, 1.0), 1.0) < CLOSE


def test_an_engine_that_fails_is_started_again_in_the_same_process(
    paired: Callable[..., Pair], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pair = paired(loaded("lab", "lora"))
    learn(pair.lm, 0.03)

    def broken(*_: Any, **__: Any) -> Any:
        raise RuntimeError("EngineCore encountered an issue")

    monkeypatch.setattr(pair.engine._llm, "generate", broken)
    pair.own.load_weights(pair.lm.model)
    assert pair.gap(pair.attempts(pair.own, 1.0), 1.0) < CLOSE
    assert pair.own._engine is not pair.engine
    assert "RuntimeError: EngineCore encountered an issue" in capsys.readouterr().err


def command(folder: Path, name: str, *more: str) -> list[str]:
    settings = [
        "task.prompt={numbers} : {target}", "task.correction_prompt=?", "task.max_number=100", "task.limit=200",
        "model.device=cpu", "model.precision=float32", "rollouts.max_new_tokens=12", "rollouts.problems_per_step=2",
        "rollouts.rollouts_per_problem=4", "evaluation.problems=4", "checkpoint.every=1", "log.trackers=[]",
        "stages=[{name: one, objective: stage1, steps: 2, learning_rate: 0.001}]", f"output={folder}", f"name={name}",
        "sampler=vllm", "vllm.kv_cache_gib=0.125", "threads=1",
    ]  # fmt: skip
    recipe = folder / "recipe.yaml"
    recipe.write_text("stages: []\n")
    return [sys.executable, "-m", "selfcorrect.cli", "train", str(recipe), *settings, *more]


def check_same_end(one: Path, other: Path, file: str) -> None:
    ends = [load_file(run / "final" / file) for run in (one, other)]
    for name, tensor in ends[0].items():
        torch.testing.assert_close(ends[1][name], tensor, rtol=0, atol=1e-5)


def test_a_run_that_is_killed_goes_on_with_the_weights_it_had(tmp_path: Path) -> None:
    """By the command line: two steps, and the same killed by SIGKILL once the first is kept, and resumed."""
    done = subprocess.run(command(tmp_path, "whole"), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    process = subprocess.Popen(command(tmp_path, "killed"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not list((tmp_path / "killed" / "checkpoints").glob("*1/state.json")) and process.poll() is None:
        time.sleep(0.002)
    process.kill()
    process.wait()
    resumed = [sys.executable, "-m", "selfcorrect.cli", "train", "--resume", str(tmp_path / "killed")]
    done = subprocess.run(resumed, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = [read_rows(tmp_path / name / "metrics.jsonl") for name in ("whole", "killed")]
    for whole, killed in zip(*rows, strict=True):
        assert 0 < killed["sampler_gap"] < CLOSE
        assert killed["loss"] == pytest.approx(whole["loss"], abs=1e-4)
    check_same_end(tmp_path / "whole", tmp_path / "killed", "model.safetensors")


@pytest.mark.parametrize(
    ("parallel", "tuning"), [("ddp", "full"), ("fsdp2", "full"), ("ddp", "lora"), ("fsdp2", "lora")]
)
def test_each_of_two_ranks_has_an_engine_of_its_own(parallel: str, tuning: str, tmp_path: Path) -> None:
    """As torchrun starts them: they sample and learn what one process does."""
    more = [f"model.tuning={tuning}", "optimizer.epsilon=1e-4"]
    python, *rest = command(tmp_path, "two", *more, f"parallel={parallel}")
    launcher = [python, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    for line in (command(tmp_path, "one", *more), [*launcher, *rest]):
        done = subprocess.run(line, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
    rows = [read_rows(tmp_path / name / "metrics.jsonl") for name in ("one", "two")]
    for one, two in zip(*rows, strict=True):
        assert 0 < two["sampler_gap"] < CLOSE
        assert two["loss"] == pytest.approx(one["loss"], abs=1e-4)
        assert two["rewards"] == one["rewards"]
    file = "model.safetensors" if tuning == "full" else "adapter_model.safetensors"
    check_same_end(tmp_path / "one", tmp_path / "two", file)
