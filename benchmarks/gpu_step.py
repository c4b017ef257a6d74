"""One whole training step on a card: how near decoding and the update come to what the card can do, and TRL's step.

    python benchmarks/gpu_step.py [--minutes 9] [--only step trl]     # one call on one card
    python benchmarks/gpu_step.py --dry                               # every part at a tiny size, on a CPU

The shapes are those of Qwen2.5-0.5B and 1.5B, the weights random: a nearly flat output over 151,936 words, of which
one in 300 ends an attempt. So lengths fall off as chance has it (a mean of about 245 of at most 512 tokens, a sixth
cut off), and any sampler sees the same distribution. 64 problems x 8 rollouts x 2 attempts, bfloat16.

Parts run one after the other, each with a time limit of its own, and write a line of results/gpu_step.jsonl as they
end, with all that they had found by then: a part that runs out of its seconds keeps that, and so does a call that is
cut off. The figures of a step are those of its third (`step`): by then nearly all graphs are recorded, and the line
says how many were not. What the shares mean:
- decode: seconds in which the card could read, at its measured bandwidth, the weights once for each step that the
  longest row needs, and each row's keys and values once for each of its tokens; over the seconds that sampling took,
  with prefill, grading and all.
- update: floating point operations of the model itself (6 a weight and token for the policy, 2 for the reference,
  plus attention; a prompt counts once for all its rollouts; recomputing and padding do not count) over the update's
  seconds and the card's measured rate. The same update is timed once more on packed and on padded rows
  (optimizer.padding_free), and with its small operations compiled (optimizer.compile).
"""

import argparse
import importlib.util
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from gpu_limits import longest_attempt, measure_attention
from gpu_parts import Found, Part, peak_gigabytes, release, run_parts
from workload import SEED, Clock, StepTiming, Work, make_model_folder, versions

from selfcorrect.config import OptimizerConfig, RolloutConfig, StageTwo, TrainConfig
from selfcorrect.errors import first_line
from selfcorrect.learning.batching import Batch
from selfcorrect.learning.prompts import first_trained, prefixes_of
from selfcorrect.learning.record import StepResult
from selfcorrect.learning.training import Trainer
from selfcorrect.models import fused
from selfcorrect.models.language_model import LanguageModel
from selfcorrect.models.loading import wrap
from selfcorrect.models.packed import hindrance
from selfcorrect.models.sizing import sized
from selfcorrect.samplers.base import Sampler
from selfcorrect.samplers.scripted import ScriptedSampler
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
VERSIONS = ("selfcorrect", "torch", "transformers", "triton", "peft", "bitsandbytes", "trl", "accelerate")


def main(arguments: list[str] | None = None) -> None:
    """Every part in turn, as far as the minutes go."""
    parser = argparse.ArgumentParser(description="One training step on a card, against what the card can do.")
    parser.add_argument("--minutes", type=float, default=9.0, help="for all parts together")
    parser.add_argument("--dry", action="store_true", help="a tiny size, on any machine")
    parser.add_argument("--only", nargs="+", default=[""], help="parts whose names begin so; card always runs")
    parser.add_argument("--output", type=Path, default=RESULT, help="where the lines go")
    options = parser.parse_args(arguments)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu" and not options.dry:
        parser.error("there is no card here; --dry runs every part at a tiny size")
    options.output.parent.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + 60 * options.minutes
    if options.dry:
        fused.backend = "eager"  # traced as on a card, but no kernels made
    with options.output.open("w", encoding="utf-8") as out:
        parts = parts_of(device, options.dry)
        run_parts([one for one in parts if one[0].startswith(("card", *options.only))], end, out)


def parts_of(device: torch.device, dry: bool) -> list[tuple[str, float, Part]]:
    """Name, seconds at the most and what it does; the most telling first."""
    work, card = Work(2, 2, 6) if dry else Work(64, 8, 512), dict[str, float]()
    half, larger, seven = [DRY] * 3 if dry else [HALF, ONE_AND_A_HALF, SEVEN]

    def step(shape: Shape) -> Part:
        return lambda found: measure_step(found, shape, work, device, card)

    def trl(rows: int, steps: int) -> Part:
        return lambda found: measure_trl(found, half, work, device, rows, steps)

    def longest(shape: Shape, tuning: str) -> Part:
        return lambda found: longest_attempt(
            found, lambda: make_model(shape, device, dtype=torch.bfloat16), tuning, one_step, dry
        )

    few, more = (1, 2) if dry else (4, 16)  # rows at once: TRL's logits of a row take 10 GB in float32, with copies
    return [
        ("card", 30, lambda found: measure_card(found, device, card, dry)),
        (f"step {half.name}", 150, step(half)),
        (f"trl {half.name}, {few} rows", 220, trl(few, 2)),
        *([] if dry else [(f"step {larger.name}", 170, step(larger))]),
        (f"attention {half.name}", 60, lambda found: attention_of(found, half, device, dry)),
        (f"longest {half.name} full", 90, longest(half, "full")),
        (f"longest {larger.name} lora", 90, longest(larger, "lora")),
        (f"longest {seven.name} qlora", 150, longest(seven, "qlora")),  # of which saving and loading may take 60
        (f"trl {half.name}, {more} rows", 120, trl(more, 1)),
    ]


def measure_card(found: Found, device: torch.device, card: dict[str, float], dry: bool) -> None:
    """bfloat16 multiplications a second (floating point operations), and bytes a second read and written."""
    size, many = (128, 1 << 20) if dry else (8192, 1 << 31)
    a = torch.randn(size, size, device=device, dtype=torch.bfloat16)
    table = torch.empty(many, dtype=torch.uint8, device=device)
    target = torch.empty_like(table)
    card["flops"] = 2 * size**3 / best_of(lambda: a @ a, device)
    card["bandwidth"] = 2 * table.numel() / best_of(lambda: target.copy_(table), device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    found |= {"device": name, "cuda": torch.version.cuda, "versions": versions(VERSIONS), **card}


def best_of(run: Callable[[], Any], device: torch.device) -> float:
    """The fewest seconds of twenty runs."""
    found = []
    for _ in range(20):
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


def attention_of(found: Found, shape: Shape, device: torch.device, dry: bool) -> None:
    heads = shape.num_attention_heads
    measure_attention(found, heads, shape.num_key_value_heads, shape.hidden_size // heads, device, dry)


def make_trainer(lm: LanguageModel, work: Work, kind: Callable[[LanguageModel, int], Sampler]) -> Trainer:
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
    sampler = kind(lm, config.rollouts.rows)
    return Trainer(config, lm, lm.frozen_copy(), sampler, _Task(Clock(), work))


class WatchedSampler(TransformersSampler):
    """The sampler, and what it had to read: see the top."""

    def __init__(self, lm: LanguageModel, rows: int) -> None:
        super().__init__(lm, rows)
        shape = lm.model.config
        self._weight_bytes = 2 * sum(weight.numel() for weight in lm.model.parameters())
        head = shape.hidden_size // shape.num_attention_heads
        self._token_bytes = 2 * 2 * shape.num_hidden_layers * shape.num_key_value_heads * head
        self.told: list[str] = []
        if self._graphs:
            self._graphs.tell = self.told.append
        self.begin()

    def begin(self) -> None:
        """Of a step."""
        self.least_bytes, self.seconds, self.tokens = 0, 0.0, 0
        self._before = len(self._graphs._recorded) if self._graphs else 0

    def graphs(self) -> dict[str, Any]:
        """Recorded in all and in this step, or why none are; nothing where there are none to record."""
        if not self._graphs:
            return {}
        count = len(self._graphs._recorded)
        return {"recorded": count, "in_this_step": count - self._before, "told": self.told}

    def sample(self, prompts: Any, params: SamplingParams) -> list[Completion]:
        start = time.perf_counter()
        done = super().sample(prompts, params)
        self.seconds += time.perf_counter() - start
        lengths = [(len(prompt), len(one.token_ids)) for prompt, one in zip(prompts, done, strict=True)]
        seen = sum(new * prompt + new * (new - 1) // 2 for prompt, new in lengths)
        self.least_bytes += max(new for _, new in lengths) * self._weight_bytes + seen * self._token_bytes
        self.tokens += sum(new for _, new in lengths)
        return done


def measure_step(found: Found, shape: Shape, work: Work, device: torch.device, card: dict[str, float]) -> None:
    """Three steps, of which the last one counts; then its update on packed and on padded rows."""
    lm = make_model(shape, device)
    trainer = make_trainer(lm, work, WatchedSampler)
    sampler = trainer.sampler
    assert isinstance(sampler, WatchedSampler)
    updates, optimizer = watched(trainer), trainer.config.optimizer
    found |= {
        "rows_at_once": trainer.config.rollouts.rows, "micro_batch": optimizer.rows, "packed": optimizer.padding_free,
        "gradient_checkpointing": optimizer.gradient_checkpointing, "head_form_known": lm.head_form is not None,
        "step_seconds_by_step": [],
    }  # fmt: skip
    for number in (1, 2, 3):
        sampler.begin()
        start = time.perf_counter()
        result = trainer.train_step()
        synchronize(device)
        found["step_seconds_by_step"].append(time.perf_counter() - start)
        found |= {"step": number, **figures(found["step_seconds_by_step"][-1], result, sampler, card)}
        flops = update_flops(updates[-1][0], shape, sum(weight.numel() for weight in lm.model.parameters()))
        found["update_share_of_flops"] = flops / card["flops"] / result.seconds_by_part["update"]
        found["peak_gigabytes"] = peak_gigabytes()
    update_again(found, trainer, updates[-1], device)
    if compiled := found.get("update_seconds_compiled"):
        found["update_share_of_flops_compiled"] = flops / card["flops"] / compiled


def figures(whole: float, result: StepResult, sampler: WatchedSampler, card: dict[str, float]) -> Found:
    """Of one step."""
    return {
        "step_seconds": whole, "sampling_seconds": sampler.seconds, "update_seconds": result.seconds_by_part["update"],
        "sampled_tokens": sampler.tokens, "tokens_per_second_end_to_end": sampler.tokens / whole,
        "tokens_per_second_sampling": sampler.tokens / sampler.seconds, "graphs": sampler.graphs(),
        "decode_share_of_bandwidth": sampler.least_bytes / card["bandwidth"] / sampler.seconds,
    }  # fmt: skip


def update_flops(batch: Batch, shape: Shape, weights: int) -> float:
    """See the top. A token's attention takes 4 a layer, hidden number and token that it sees, forward."""
    rows = list(zip(batch.length_B.tolist(), (first_trained(batch) - 1).tolist(), strict=True))
    prompts = [len(prompt) for prompt in dict.fromkeys(prefixes_of(batch))]
    tokens: int = sum(length - prompt for length, prompt in rows) + sum(prompts)
    seen: float = sum(length**2 - prompt**2 for length, prompt in rows) / 2 + sum(prompt**2 for prompt in prompts) / 2
    return 8 * weights * tokens + 4 * 4 * shape.num_hidden_layers * shape.hidden_size * seen


def watched(trainer: Trainer) -> list[tuple[Any, ...]]:
    """What the trainer's updates were given, as it goes."""
    given: list[tuple[Any, ...]] = []
    update = trainer.update

    def noted(*arguments: Any) -> Any:
        given.append(arguments)
        return update(*arguments)

    trainer.update = noted  # type: ignore[method-assign, assignment]
    return given


def update_again(found: Found, trainer: Trainer, given: tuple[Any, ...], device: torch.device) -> None:
    """Seconds of the same update on packed rows, on padded ones, and compiled, on the better of the two: the first time
    with what compiling takes. Or why there are none.
    """
    why = hindrance(trainer.lm)
    if why:
        found["not_packed"] = why
    best = (not why, True)
    ways = {"packed": (True, False), "padded": (False, False), "compiling": best, "compiled": best}
    for name, (packed, compiled) in ways.items():
        if why and name == "packed":
            continue
        optimizer = trainer.config.optimizer.model_copy(update={"padding_free": packed, "compile": compiled})
        trainer.config = trainer.config.model_copy(update={"optimizer": optimizer})
        start = time.perf_counter()
        try:
            trainer.update(*given)
        except Exception as error:  # compilers fail in their own ways, and the other figures stand
            if not compiled:
                raise
            found["not_compiled"] = f"{type(error).__name__}: {first_line(error)}"
            return
        synchronize(device)
        found[f"update_seconds_{name}"] = time.perf_counter() - start


def measure_trl(found: Found, shape: Shape, work: Work, device: torch.device, rows: int, steps: int) -> None:
    """TRL's GRPOTrainer on the same model and work, as trl_side.py sets it up, but in bfloat16 autocast.

    Its static cache does not take that (keys come in float32); the growing one, its default, does. With it every token
    has keys of another length, for each of which cuDNN's attention plans anew: without that it samples thrice as fast.
    rows: of a micro-batch.
    """
    if importlib.util.find_spec("trl") is None:
        raise ModuleNotFoundError("trl is not installed; `pip install trl` (its wheel is pure Python)")
    import tempfile

    import trl_side

    def keep(timing: StepTiming) -> None:
        found["steps"].append({**asdict(timing), "tokens_per_second_end_to_end": timing.tokens_per_second})
        found["peak_gigabytes"] = peak_gigabytes()

    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "model"
        make_model(shape, device).save(folder, torch.float32)
        release()
        torch.backends.cuda.enable_cudnn_sdp(False)
        found |= {"micro_batch": rows, "cudnn_attention": False, "steps": []}
        change = {"use_cpu": device.type == "cpu", "bf16": True}
        settings, threads = trl_side.TrlSettings(cache="dynamic", micro_batch=rows), torch.get_num_threads()
        try:
            side = trl_side.TrlSide(folder, Path(scratch) / "trl", settings, steps, work, threads, changes=change)
            side.also_ends(range(ENDS_EVERY, shape.vocab_size, ENDS_EVERY))
            side.run(keep)
        finally:
            torch.backends.cuda.enable_cudnn_sdp(True)


class MadeUpSampler(TransformersSampler):
    """Attempts of the full length in no time: a few tokens are decoded in lanes as wide as they need, the rest made up.

    What the sampler would keep of them from the first attempt to the second is not there.
    """

    def sample(self, prompts: Sequence[tuple[int, ...]], params: SamplingParams) -> list[Completion]:
        self._room(prompts, params)
        super().sample(
            [prompt[:64] for prompt in prompts], replace(params, max_new_tokens=min(8, params.max_new_tokens))
        )
        letters = [4 + place % 60 for place in range(params.max_new_tokens)]  # ids of plain characters
        return ScriptedSampler(lambda *_: letters, self._lm.chat.said, frozenset()).sample(prompts, params)


def one_step(lm: LanguageModel, limit: int) -> None:
    make_trainer(lm, Work(1, 2, limit), MadeUpSampler).train_step()


if __name__ == "__main__":
    main()
