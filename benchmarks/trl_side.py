"""TRL's side: GRPOTrainer with a two-attempt `rollout_func`, set up the way that makes it fastest on a CPU.

Each choice in TRL's favour:
- both attempts of a rollout are one row, so prompt and attempt 1 go through the update once (`env_mask` keeps the
  prompt of attempt 2 out of the loss);
- generation runs all 128 rows at once through `generate` with its KV cache;
- `logprobs` is None: without vLLM this trainer reads them nowhere, and having `generate` return them costs time;
- one generation serves exactly one optimiser step, so the old log-probabilities need no pass of their own;
- gradient checkpointing (on by default) and bfloat16 (on by default, slower on most CPUs) are off;
- attention, KV cache and micro-batch are the fastest of those tried; `--trl attention=eager` and the like try others.
"""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback, TrainerCallback
from trl import GRPOConfig, GRPOTrainer
from trl.models import unwrap_model_for_generation
from workload import (
    ADAM_BETAS,
    CORRECTION,
    KL_WEIGHT,
    LEARNING_RATE,
    MAX_GRAD_NORM,
    SEED,
    TEMPERATURE,
    Clock,
    StepTiming,
    Work,
    solved,
)


@dataclass(frozen=True, slots=True)
class TrlSettings:
    """attention: of both models; cache: of `generate`; micro_batch: rows in one forward and backward."""

    attention: Literal["eager", "sdpa"] = "sdpa"
    cache: Literal["dynamic", "static"] = "static"
    micro_batch: int = 16


class TrlSide:
    """`run` takes TRL's own training loop through its steps and lets something else run between two of them."""

    name = "trl"

    def __init__(
        self,
        model_folder: Path,
        output: Path,
        settings: TrlSettings,
        steps: int,
        work: Work,
        threads: int,
        changes: Mapping[str, Any] | None = None,
        lora: bool = False,
    ) -> None:
        tokenizer = AutoTokenizer.from_pretrained(model_folder, padding_side="left")
        model = AutoModelForCausalLM.from_pretrained(
            model_folder, dtype=torch.float32, attn_implementation=settings.attention
        )
        self._clock = Clock()
        rollout = TwoAttempts(tokenizer, self._clock)
        self._trainer = _TimedTrainer(
            clock=self._clock,
            model=model,
            reward_funcs=attempts_reward,
            args=_arguments(output, settings, steps, work, changes or {}),
            train_dataset=Dataset.from_dict(
                {"prompt": [[{"role": "user", "content": text}] for text in work.prompts()]},
            ),
            processing_class=tokenizer,
            rollout_func=rollout,
            peft_config=_adapter() if lora else None,
        )
        self._trainer.remove_callback(PrinterCallback)
        self._rollout = rollout
        self.first_prompt, self.close = rollout.first_prompt, rollout.close
        torch.set_num_threads(threads)

    def also_ends(self, ids: Sequence[int]) -> None:
        """Further ids end an attempt, as the model's own end token does."""
        self._rollout.ends |= set(ids)
        self._trainer.generation_config.eos_token_id = sorted(self._rollout.ends)

    def run(self, between: Callable[[StepTiming], None]) -> None:
        """All steps; `between` gets each one's timing and runs outside of TRL's clock."""
        self._trainer.add_callback(_Turns(self._clock, self._rollout, between))
        self._trainer.train()


def _adapter() -> Any:
    """The same adapter as selfcorrect's: rank 16 on all linear layers but the head."""
    from peft import LoraConfig

    return LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", lora_dropout=0.0, task_type="CAUSAL_LM")


def _arguments(output: Path, settings: TrlSettings, steps: int, work: Work, changes: Mapping[str, Any]) -> GRPOConfig:
    forwards, rest = divmod(work.rows, settings.micro_batch)
    assert not rest, "the rows must divide into micro-batches"
    arguments = {
        "output_dir": str(output),
        "max_steps": steps,
        "per_device_train_batch_size": settings.micro_batch,
        "gradient_accumulation_steps": forwards,
        "steps_per_generation": forwards,
        "num_generations": work.rollouts_per_problem,
        "num_iterations": 1,
        "max_completion_length": work.max_new_tokens,
        "temperature": TEMPERATURE,
        "cache_implementation": settings.cache,
        "beta": KL_WEIGHT,
        "scale_rewards": "none",
        "learning_rate": LEARNING_RATE,
        "lr_scheduler_type": "constant",
        "adam_beta1": ADAM_BETAS[0],
        "adam_beta2": ADAM_BETAS[1],
        "max_grad_norm": MAX_GRAD_NORM,
        "gradient_checkpointing": False,
        "bf16": False,
        "use_cpu": True,
        "dataloader_num_workers": 0,
        "dataloader_pin_memory": False,
        "report_to": "none",
        "logging_strategy": "no",
        "save_strategy": "no",
        "disable_tqdm": True,
        "log_level": "error",
        "seed": SEED,
    }
    return GRPOConfig(**{**arguments, **changes})


def attempts_reward(attempts: Sequence[Sequence[str]], **_: Any) -> list[float]:
    """One scalar a rollout, which is all that GRPOTrainer takes: the rewards of both attempts added."""
    return [float(sum(solved(text) for text in texts)) for texts in attempts]


class TwoAttempts:
    """The `rollout_func`: attempt 1 of all rows, the correction turn, attempt 2 of all rows."""

    def __init__(self, tokenizer: Any, clock: Clock) -> None:
        self._tokenizer = tokenizer
        self._clock = clock
        marker = "0"
        turns = [
            {"role": "user", "content": marker},
            {"role": "assistant", "content": marker},
            {"role": "user", "content": CORRECTION},
        ]
        text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        opening = tokenizer.apply_chat_template(turns[:1], tokenize=False, add_generation_prompt=True)
        between = tokenizer(text.removeprefix(opening + marker), add_special_tokens=False)["input_ids"]
        self._end, self._correction = between[0], between[1:]
        self.ends = {self._end}
        self.sampled_tokens = 0

    def __call__(self, conversations: list[Any], trainer: GRPOTrainer) -> dict[str, Any]:
        with self._clock.part("sampling"):
            first_prompts = self._encode(conversations)
            first = self._generate(first_prompts, trainer)
            closed = [self.close(attempt) for attempt in first]
            second = self._generate([p + c for p, c in zip(first_prompts, closed, strict=True)], trainer)
            texts = [self._tokenizer.batch_decode(ids, skip_special_tokens=True) for ids in (first, second)]
        self.sampled_tokens += sum(map(len, first)) + sum(map(len, second))
        return {
            "prompt_ids": first_prompts,
            "completion_ids": [c + b for c, b in zip(closed, second, strict=True)],
            "logprobs": None,
            "env_mask": [
                [1] * len(a) + [0] * (len(c) - len(a)) + [1] * len(b)
                for a, c, b in zip(first, closed, second, strict=True)
            ],
            "attempts": list(zip(*texts, strict=True)),
        }

    def first_prompt(self, text: str) -> list[int]:
        """The ids of attempt 1's prompt."""
        return self._encode([[{"role": "user", "content": text}]])[0]

    def close(self, attempt: list[int]) -> list[int]:
        """An attempt and the correction turn; one that was cut off at the limit gets its end token first."""
        return [*attempt, *(self._correction if attempt[-1] in self.ends else [self._end, *self._correction])]

    def _encode(self, conversations: list[Any]) -> list[list[int]]:
        encoded = self._tokenizer.apply_chat_template(
            conversations, add_generation_prompt=True, tokenize=True, return_dict=True
        )
        ids: list[list[int]] = encoded["input_ids"]
        return ids

    def _generate(self, rows: list[list[int]], trainer: GRPOTrainer) -> list[list[int]]:
        """The new ids of every row, up to and with the end token."""
        width = max(map(len, rows))
        pad = self._tokenizer.pad_token_id
        device = trainer.accelerator.device
        input_ids = torch.tensor([[pad] * (width - len(row)) + row for row in rows], device=device)
        attention_mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=device)
        with (
            unwrap_model_for_generation(
                trainer.model_wrapped, trainer.accelerator, generation_kwargs=trainer.generation_kwargs
            ) as model,
            torch.no_grad(),
        ):
            table = model.generate(
                input_ids=input_ids,
                attention_mask=attention_mask,
                generation_config=trainer.generation_config,
            )[:, width:].tolist()
        return [ids[: next((i + 1 for i, token in enumerate(ids) if token in self.ends), len(ids))] for ids in table]


class _TimedTrainer(GRPOTrainer):  # type: ignore[misc]
    """GRPOTrainer with a clock around its parts; nothing else is changed."""

    _name = "GRPO"

    def __init__(self, *, clock: Clock, **kwargs: Any) -> None:
        self._clock = clock
        super().__init__(**kwargs)

    def _calculate_rewards(self, *args: Any, **kwargs: Any) -> Any:
        with self._clock.part("grading"):
            return super()._calculate_rewards(*args, **kwargs)

    def _get_per_token_logps_and_entropies(self, model: Any, *args: Any, **kwargs: Any) -> Any:
        if torch.is_grad_enabled():
            return super()._get_per_token_logps_and_entropies(model, *args, **kwargs)
        with self._clock.part("reference"):
            return super()._get_per_token_logps_and_entropies(model, *args, **kwargs)

    def _generate_and_score_completions(self, *args: Any, **kwargs: Any) -> Any:
        with self._clock.part("other"):
            return super()._generate_and_score_completions(*args, **kwargs)

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        with self._clock.part("policy"):
            return super().training_step(*args, **kwargs)


class _Turns(TrainerCallback):  # type: ignore[misc]
    """Takes the time from the end of one step (or of `between`) to the end of the next."""

    def __init__(self, clock: Clock, rollout: TwoAttempts, between: Callable[[StepTiming], None]) -> None:
        self._clock, self._rollout, self._between = clock, rollout, between
        self._start = 0.0

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self._start = time.perf_counter()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        seconds = time.perf_counter() - self._start
        tokens, self._rollout.sampled_tokens = self._rollout.sampled_tokens, 0
        self._between(StepTiming(tokens, seconds, self._clock.read(seconds)))
        self._start = time.perf_counter()
