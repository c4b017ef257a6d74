"""What both sides of the benchmark share: one model, one tokenizer, the same problems, grades and clocks.

The model is a Llama of 4.85 M random float32 weights whose output head is nearly flat over its 64 tokens. So it
ends an attempt with a chance of about 1/64 a token: attempts are random in length (about 50 tokens in the mean,
a fifth of them run into the limit of 96), and any sampler of the model sees the same distribution.
"""

import json
import os
import shlex
import string
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch

from selfcorrect.models.freed import GIVES_BACK
from selfcorrect.runs.folder import processor

SEED = 0
TEMPERATURE = 1.0
LEARNING_RATE = 1e-6  # small: the lengths of the attempts should not drift while the clock runs
KL_WEIGHT = 0.01
MAX_GRAD_NORM = 1.0
GIVEN_BACK = {GIVES_BACK: str(1 << 20)}  # in the environment: freed memory is given back
ADAM_BETAS = (0.9, 0.95)

CORRECTION = "check it and write it again"
_SPECIAL = ["<pad>", "<end>", "<user>", "<assistant>"]
_CHARACTERS = string.ascii_lowercase + string.digits + " \n+-*/=:.,()?!'\"<>[]{}#%"
_TEMPLATE = (
    "{% for turn in messages %}{% if turn.role == 'user' %}<user>{{ turn.content }}"
    "{% else %}<assistant>{{ turn.content }}<end>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@dataclass(frozen=True)
class Work:
    """The size of one step, the same on both sides."""

    problems: int = 16
    rollouts_per_problem: int = 8
    max_new_tokens: int = 96

    @property
    def rows(self) -> int:
        return self.problems * self.rollouts_per_problem

    def prompts(self) -> list[str]:
        """The problems' texts; what they ask does not matter to a random model."""
        return [f"use {30 + 3 * i} {10 + i} and {2 + i % 7} to make {20 + 5 * (i % 15)}" for i in range(self.problems)]


def solved(text: str) -> bool:
    """The grade of an attempt: cheap, the same on both sides, and true for about half of them."""
    return len(text) % 2 == 0


def make_model_folder(folder: Path) -> Path:
    """Write model, tokenizer and chat template in Hugging Face layout; both sides load them from there."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
    from transformers.utils import logging

    logging.disable_progress_bar()
    words = [*_SPECIAL, *_CHARACTERS]
    assert len(words) == 64
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token=None))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<end>",
        additional_special_tokens=_SPECIAL[2:],
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = _TEMPLATE
    config = LlamaConfig(
        vocab_size=len(words),
        hidden_size=256,
        intermediate_size=704,
        num_hidden_layers=6,
        num_attention_heads=8,
        num_key_value_heads=8,
        max_position_embeddings=512,
        tie_word_embeddings=False,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=1,
    )
    with torch.random.fork_rng():
        torch.manual_seed(SEED)
        model = LlamaForCausalLM(config)
    with torch.no_grad():
        model.lm_head.weight.mul_(0.25)  # flat, see above
    model.save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder


@dataclass(frozen=True, slots=True)
class StepTiming:
    """One training step: tokens that were sampled in it, its wall-clock seconds, and where they went."""

    sampled_tokens: int
    seconds: float
    parts: dict[str, float]

    @property
    def tokens_per_second(self) -> float:
        return self.sampled_tokens / self.seconds


class Side(Protocol):
    """A library that is ready to take training steps one at a time."""

    name: str

    def step(self) -> StepTiming:
        """Sample, grade and update once."""
        ...


@dataclass(slots=True)
class Clock:
    """Adds up the seconds spent in named parts; a part opened inside another counts for itself alone."""

    seconds: dict[str, float] = field(default_factory=dict)
    _open: list[tuple[str, float]] = field(default_factory=list)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        self._open.append((name, time.perf_counter()))
        try:
            yield
        finally:
            _, start = self._open.pop()
            spent = time.perf_counter() - start
            self.seconds[name] = self.seconds.get(name, 0.0) + spent
            if self._open:
                outer = self._open[-1][0]
                self.seconds[outer] = self.seconds.get(outer, 0.0) - spent

    def read(self, total: float) -> dict[str, float]:
        """The parts, with what is left of `total` added to "other"; starts over."""
        parts, self.seconds = self.seconds, {}
        return {**parts, "other": parts.get("other", 0.0) + total - sum(parts.values())}


def median(values: Sequence[float]) -> float:
    return float(torch.tensor(sorted(values), dtype=torch.float64).quantile(0.5))


def versions(names: Sequence[str]) -> dict[str, str | None]:
    """None for what is not installed; selfcorrect tells its own, as it may be there by PYTHONPATH alone."""
    from importlib.metadata import PackageNotFoundError, version

    import selfcorrect

    found: dict[str, str | None] = {}
    for name in names:
        try:
            found[name] = selfcorrect.__version__ if name == "selfcorrect" else version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def machine(**more: Any) -> dict[str, Any]:
    """The processor, its widest vectors (one name may stand for several kinds), its cores, and what else counts."""
    return {"cpu": f"{processor()}, {torch.backends.cpu.get_cpu_capability()}", "cores": os.cpu_count(), **more}


def command_of(script: str, arguments: Sequence[str] | None) -> str:
    """As it was typed. script: its __file__; arguments: as main got them, None where it reads the command line."""
    given = sys.argv[1:] if arguments is None else arguments
    return shlex.join(["python", f"benchmarks/{Path(script).name}", *given])


def keep(
    output: Path, command: str, packages: Sequence[str], *, on: dict[str, Any] | None = None, seed: int | None = SEED,
    **found: Any,
) -> None:  # fmt: skip
    """Write what a benchmark found, with what it comes from. on: as `machine`; seed: None where nothing is drawn."""
    record = {
        "command": command, "seed": seed, "versions": {"python": sys.version.split()[0]} | versions(packages),
        "machine": on or machine(), **found,
    }  # fmt: skip
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def kept_before(output: Path, on: dict[str, Any], keep: bool) -> dict[str, Any]:
    """What `output` holds, where --keep asks for it, else nothing. Ends where that is of another machine."""
    found: dict[str, Any] = json.loads(output.read_text(encoding="utf-8")) if keep and output.exists() else {}
    if found and found["machine"] != on:
        sys.exit(f"--keep: {output} is of another machine, or of before its vectors were told; name another file")
    return found


def in_a_process(
    script: str, arguments: Sequence[str], called: str, environment: Mapping[str, str] | None = None
) -> Any:
    """What a script prints as its last line, in JSON; ends with what it said where it fails."""
    command = [sys.executable, script, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        sys.exit(f"{called} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])
