"""One whole training step on a card: how near decoding and the update come to what the card can do, and TRL's step.

    python benchmarks/gpu_step.py [--minutes 7.5]          # one call on one card
    python benchmarks/gpu_step.py --dry                    # every part at a tiny size, on a CPU

The shapes are those of Qwen2.5-0.5B and 1.5B, the weights random: a nearly flat output over 151,936 words, of which
one in 300 ends an attempt. So lengths fall off as chance has it (a mean of about 245 of at most 512 tokens, a sixth
cut off), and any sampler sees the same distribution. 64 problems x 8 rollouts x 2 attempts, bfloat16.

Parts run one after the other, each with a time limit of its own, and write a line of results/gpu_step.jsonl as they
end, so that a call that is cut off keeps what was done. What the shares mean:
- decode: seconds in which the card could read, at its measured bandwidth, the weights once for each step that the
  longest row needs, and each row's keys and values once for each of its tokens; over the seconds that sampling took,
  with prefill, grading and all.
- update: floating point operations of the model itself (6 a weight and token for the policy, 2 for the reference,
  plus attention; recomputing and padding do not count) over the update's seconds and the card's measured rate.
  The same update is timed once more on packed and on padded rows (optimizer.padding_free).
"""

import argparse
import importlib.util
import json
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from gpu_limits import longest_attempt, measure_attention
from workload import SEED, Clock, Work, make_model_folder

from selfcorrect.config import OptimizerConfig, RolloutConfig, StageTwo, TrainConfig
from selfcorrect.learning.training import Trainer
from selfcorrect.models.loading import LanguageModel, wrap
from selfcorrect.models.packed import hindrance
from selfcorrect.models.sizing import sized
from selfcorrect.samplers.transformers import TransformersSampler
from selfcorrect.types import Completion, SamplingParams

RESULT = Path(__file__).parent / "results" / "gpu_step.jsonl"


@dataclass(frozen=True)
class Shape:
    """Of a Qwen2 model."""

    name: str
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    intermediate_size: int
    tie_word_embeddings: bool = True
    vocab_size: int = 151_936


HALF = Shape("0.5B", 896, 24, 14, 2, 4864)
ONE_AND_A_HALF = Shape("1.5B", 1536, 28, 12, 2, 8960)
SEVEN = Shape("7B", 3584, 28, 28, 4, 18944, tie_word_embeddings=False, vocab_size=152_064)
DRY = Shape("dry", 32, 2, 4, 2, 48, vocab_size=1_024)
ENDS_EVERY = 300


class OutOfTimeError(Exception):
    """A part has used up its seconds."""


def main(arguments: list[str] | None = None) -> None:
    """Every part in turn, as far as the minutes go."""
    parser = argparse.ArgumentParser(description="One training step on a card, against what the card can do.")
    parser.add_argument("--minutes", type=float, default=7.5, help="for all parts together")
    parser.add_argument("--dry", action="store_true", help="a tiny size, on any machine")
    parser.add_argument("--only", nargs="+", default=[""], help="parts whose names begin so; card always runs")
    parser.add_argument("--output", type=Path, default=RESULT, help="where the lines go")
    options = parser.parse_args(arguments)
    work = Work(2, 2, 6) if options.dry else Work(64, 8, 512)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu" and not options.dry:
        parser.error("there is no card here; --dry runs every part at a tiny size")
    options.output.parent.mkdir(parents=True, exist_ok=True)
    card: dict[str, float] = {}
    shapes = [DRY] if options.dry else [HALF, ONE_AND_A_HALF]
    parts: list[tuple[str, float, Callable[[], dict[str, Any]]]] = [("card", 30, lambda: measure_card(device, card))]
    for shape in shapes:
        parts.append((f"step {shape.name}", 130, lambda shape=shape: measure_step(shape, work, device, card)))  # type: ignore[misc]
    parts.append((f"trl {shapes[0].name}", 130, lambda: measure_trl(shapes[0], work, device)))
    parts.append((f"attention {shapes[0].name}", 60, lambda: attention_of(shapes[0], device, options.dry)))
    longest = zip([DRY] * 3 if options.dry else [HALF, ONE_AND_A_HALF, SEVEN], ("full", "lora", "qlora"), strict=True)
    for shape, tuning in longest:
        parts.append((f"longest {shape.name} {tuning}", 90, lambda shape=shape, tuning=tuning: longest_attempt(  # type: ignore[misc]
            make_model(shape, device, dtype=torch.bfloat16), tuning, one_step, options.dry)))  # fmt: skip
    end = time.monotonic() + 60 * options.minutes
    with options.output.open("w", encoding="utf-8") as out:
        for name, seconds, part in [one for one in parts if one[0].startswith(("card", *options.only))]:
            line = {"part": name, **attempt(part, min(seconds, end - time.monotonic()))}
            print(json.dumps(line), file=out, flush=True)
            print(json.dumps(line), flush=True)
            torch.cuda.empty_cache()


def attempt(part: Callable[[], dict[str, Any]], seconds: float) -> dict[str, Any]:
    """What the part found, or in a word why it did not; always with the seconds it took."""
    start = time.monotonic()
    try:
        with limited(seconds):
            found = part()
    except OutOfTimeError:
        found = {"failed": f"ran out of its {seconds:.0f} s"}
    except Exception as error:  # noqa: BLE001 - the parts after it still have something to say
        found = {"failed": f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:200]}"}
    return {**found, "seconds": round(time.monotonic() - start, 1)}


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Raises OutOfTimeError inside, once the seconds are over."""

    def stop(*_: Any) -> None:
        raise OutOfTimeError

    if seconds <= 0:
        raise OutOfTimeError
    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def measure_card(device: torch.device, card: dict[str, float]) -> dict[str, Any]:
    """bfloat16 multiplications a second (floating point operations), and bytes a second read and written."""
    size = 8192 if device.type == "cuda" else 128
    a = torch.randn(size, size, device=device, dtype=torch.bfloat16)
    table = torch.empty((1 << 31) if device.type == "cuda" else 1 << 20, dtype=torch.uint8, device=device)
    target = torch.empty_like(table)
    card["flops"] = 2 * size**3 / best_of(lambda: a @ a, device)
    card["bandwidth"] = 2 * table.numel() / best_of(lambda: target.copy_(table), device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    return {"device": name, "torch": torch.__version__, **card}


def best_of(run: Callable[[], Any], device: torch.device, times: int = 20) -> float:
    """The fewest seconds of a run."""
    found = []
    for _ in range(times):
        synchronize(device)
        start = time.perf_counter()
        run()
        synchronize(device)
        found.append(time.perf_counter() - start)
    return min(found)


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def make_model(
    shape: Shape, device: torch.device, ends_every: int = ENDS_EVERY, dtype: torch.dtype = torch.float32
) -> LanguageModel:
    """Random weights; forward passes in bfloat16. ends_every: one word in so many ends an attempt."""
    import tempfile

    from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

    with tempfile.TemporaryDirectory() as scratch:
        tokenizer = AutoTokenizer.from_pretrained(make_model_folder(Path(scratch)))
    sizes = {key: value for key, value in asdict(shape).items() if key != "name"}
    torch.manual_seed(SEED)
    with device, of_dtype(dtype):
        model = Qwen2ForCausalLM(Qwen2Config(**sizes, max_position_embeddings=32_768, attn_implementation="sdpa"))
    model.generation_config.eos_token_id = [1, *range(ends_every, shape.vocab_size, ends_every)]
    return wrap(model, tokenizer, torch.bfloat16)


@contextmanager
def of_dtype(dtype: torch.dtype) -> Iterator[None]:
    """New tensors have it."""
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


def attention_of(shape: Shape, device: torch.device, dry: bool) -> dict[str, Any]:
    heads = shape.num_attention_heads
    return measure_attention(heads, shape.num_key_value_heads, shape.hidden_size // heads, device, dry)


def make_trainer(lm: LanguageModel, work: Work) -> "tuple[Trainer, WatchedSampler]":
    """Stage II, with a KL to a reference on the same device; sizes as `auto` has them."""
    from our_side import _Task

    config = TrainConfig(
        rollouts=RolloutConfig(
            problems_per_step=work.problems,
            rollouts_per_problem=work.rollouts_per_problem,
            max_new_tokens=work.max_new_tokens,
        ),
        stages=(StageTwo(name="stage2", objective="stage2", steps=100, learning_rate=1e-6, beta1=0.01),),
        optimizer=OptimizerConfig(),
    )
    config, _ = sized(config, lm, 2 * work.max_new_tokens + 200)
    sampler = WatchedSampler(lm, config.rollouts.rows)
    return Trainer(config, lm, lm.frozen_copy(), sampler, _Task(Clock(), work)), sampler


class WatchedSampler(TransformersSampler):
    """The sampler, and what it had to read: see the top."""

    def __init__(self, lm: LanguageModel, rows: int) -> None:
        super().__init__(lm, rows)
        shape = lm.model.config
        self._weight_bytes = 2 * sum(weight.numel() for weight in lm.model.parameters())
        head = shape.hidden_size // shape.num_attention_heads
        self._token_bytes = 2 * 2 * shape.num_hidden_layers * shape.num_key_value_heads * head
        self.least_bytes, self.seconds, self.tokens = 0, 0.0, 0

    def sample(self, prompts: Any, params: SamplingParams) -> list[Completion]:
        start = time.perf_counter()
        done = super().sample(prompts, params)
        self.seconds += time.perf_counter() - start
        lengths = [(len(prompt), len(one.token_ids)) for prompt, one in zip(prompts, done, strict=True)]
        seen = sum(new * prompt + new * (new - 1) // 2 for prompt, new in lengths)
        self.least_bytes += max(new for _, new in lengths) * self._weight_bytes + seen * self._token_bytes
        self.tokens += sum(new for _, new in lengths)
        return done


def measure_step(shape: Shape, work: Work, device: torch.device, card: dict[str, float]) -> dict[str, Any]:
    """The second of two steps: in the first one graphs are recorded."""
    lm = make_model(shape, device)
    trainer, sampler = make_trainer(lm, work)
    updates = watched(trainer)
    for _ in range(2):
        sampler.least_bytes, sampler.seconds, sampler.tokens = 0, 0.0, 0
        start = time.perf_counter()
        result = trainer.train_step()
        synchronize(device)
        whole = time.perf_counter() - start
    weights = sum(weight.numel() for weight in lm.model.parameters())
    rows, row_tokens = work.rows, sampler.tokens / work.rows + 60
    attention = 2 * 2 * shape.num_hidden_layers * shape.hidden_size * row_tokens / 2  # a token; causal
    flops = rows * row_tokens * (8 * weights + 4 * attention)
    update = result.seconds_by_part["update"]
    return {
        "rows_at_once": trainer.config.rollouts.rows, "micro_batch": trainer.config.optimizer.rows,
        "step_seconds": whole, "sampling_seconds": sampler.seconds, "update_seconds": update,
        "sampled_tokens": sampler.tokens, "tokens_per_second_end_to_end": sampler.tokens / whole,
        "tokens_per_second_sampling": sampler.tokens / sampler.seconds,
        "decode_share_of_bandwidth": sampler.least_bytes / card["bandwidth"] / sampler.seconds,
        "update_share_of_flops": flops / card["flops"] / update,
        **packed_and_padded(trainer, updates[-1], device),
        "peak_gigabytes": torch.cuda.max_memory_allocated() / 1e9 if device.type == "cuda" else None,
    }  # fmt: skip


def watched(trainer: Trainer) -> list[tuple[Any, ...]]:
    """What the trainer's updates were given, as it goes."""
    given: list[tuple[Any, ...]] = []
    update = trainer.update

    def noted(*arguments: Any) -> Any:
        given.append(arguments)
        return update(*arguments)

    trainer.update = noted  # type: ignore[method-assign, assignment]
    return given


def packed_and_padded(trainer: Trainer, given: tuple[Any, ...], device: torch.device) -> dict[str, Any]:
    """Seconds of the same update on packed rows, or why there are none, and on padded ones."""
    why = hindrance(trainer.lm)
    found: dict[str, Any] = {"not_packed": why} if why else {}
    for name, packed in [("padded", False)] if why else [("packed", True), ("padded", False)]:
        optimizer = trainer.config.optimizer.model_copy(update={"padding_free": packed})
        trainer.config = trainer.config.model_copy(update={"optimizer": optimizer})
        start = time.perf_counter()
        trainer.update(*given)
        synchronize(device)
        found[f"update_seconds_{name}"] = time.perf_counter() - start
    return found


def measure_trl(shape: Shape, work: Work, device: torch.device) -> dict[str, Any]:
    """TRL's GRPOTrainer on the same model and work, as trl_side.py sets it up, but in bfloat16 autocast.

    Its static cache does not take that (keys come in float32); the growing one, its default, does.
    """
    if importlib.util.find_spec("trl") is None:
        return {"failed": "trl is not installed; `pip install trl` (its wheel is pure Python)"}
    import tempfile

    import trl_side

    lm = make_model(shape, device)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "model"
        lm.save(folder)
        del lm
        torch.cuda.empty_cache()
        rows = min(4, work.rows)  # its logits of a row take 10 GB in float32, with their copies
        change = {"use_cpu": device.type == "cpu", "bf16": True}
        settings, threads = trl_side.TrlSettings(cache="dynamic", micro_batch=rows), torch.get_num_threads()
        side = trl_side.TrlSide(folder, Path(scratch) / "trl", settings, 2, work, threads, changes=change)
        side.also_ends(range(ENDS_EVERY, shape.vocab_size, ENDS_EVERY))
        timings: list[Any] = []
        side.run(timings.append)
    return {
        "step_seconds": timings[-1].seconds, "tokens_per_second_end_to_end": timings[-1].tokens_per_second,
        "sampled_tokens": timings[-1].sampled_tokens, **timings[-1].parts,
    }  # fmt: skip


def one_step(lm: LanguageModel, limit: int) -> None:
    make_trainer(lm, Work(1, 2, limit))[0].train_step()


if __name__ == "__main__":
    main()
