"""`selfcorrect plan` against what runs hold of a card's memory, phase by phase: small models, every kind of tuning.

    python benchmarks/card_memory.py [--only NAME ...]                                # on a card
    python -m tests.support.card benchmarks/card_memory.py                            # on the stand-in for one

A case is a run of two steps of random weights whose attempts all reach their limit. Of each phase of the second one
(sampling, update), and of the evaluation after it, the most bytes at once stand beside the plan's for the lengths that
came (torch.cuda.max_memory_reserved, given back between phases: tensors, and graphs' pools). The context and the
allocator's slack are left out of both: a stand-in has neither, and at this size they would hide all else.
"""

import argparse
import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from workload import SEED, command_of, keep, kept_before, machine

HERE = Path(__file__).parent
RESULT = HERE / "results" / "card_memory.json"
MIB = 2**20
COLUMNS = ("sampling", "update", "evaluation")
PHASES = {"rollouts": "sampling", "update": "update"}  # a step's clock's names, and the plan's
_BFLOAT = ["model.weights=bfloat16"]
# name -> kind of model, settings beside those that all have
CASES: dict[str, tuple[str, list[str]]] = {
    "full": ("qwen2", []),
    "full, float32": ("qwen2", ["model.precision=float32"]),
    "full in bfloat16": ("qwen2", _BFLOAT),
    "full, checkpointing": ("qwen2", ["optimizer.gradient_checkpointing=true"]),
    "full, padded": ("qwen2", ["optimizer.padding_free=false"]),
    "full, padded, checkpointing": ("qwen2", ["optimizer.padding_free=false", "optimizer.gradient_checkpointing=true"]),
    "full, no prompts shared": ("qwen2", ["rollouts.rollouts_per_problem=1", "rollouts.problems_per_step=8",
                                          "algorithm.baseline=none"]),
    "full, reference on cpu": ("qwen2", ["model.reference=cpu"]),
    "full, 8-bit moments": ("qwen2", ["optimizer.name=adamw_8bit"]),
    "full, few rows at once": ("qwen2", ["rollouts.rows_at_once=8"]),
    "full, wider evaluations": ("qwen2", ["rollouts.problems_per_step=2", "evaluation.problems=32"]),
    "full, one micro-batch": ("qwen2", ["optimizer.micro_batch=16"]),
    "full, llama": ("llama", []),
    "full, gemma3": ("gemma3", []),
    "full, gpt2": ("gpt2", []),
    "lora": ("qwen2", ["model.tuning=lora"]),
    "lora in bfloat16": ("qwen2", ["model.tuning=lora", *_BFLOAT]),
    "lora in bfloat16, checkpointing": ("qwen2", ["model.tuning=lora", *_BFLOAT,
                                                  "optimizer.gradient_checkpointing=true"]),
    "qlora": ("qwen2", ["model.tuning=qlora", *_BFLOAT]),
    "qlora, checkpointing": ("qwen2", ["model.tuning=qlora", *_BFLOAT, "optimizer.gradient_checkpointing=true"]),
}  # fmt: skip
_ALL: dict[str, Any] = {
    "seed": SEED, "threads": 1, "name": "run",
    "model": {"device": "cuda"},
    "task": {"max_number": 100, "limit": 200, "prompt": "{numbers} : {target} " * 4, "correction_prompt": "? " * 40},
    "rollouts": {"problems_per_step": 4, "rollouts_per_problem": 4, "max_new_tokens": 8},
    "stages": [{"name": "stage2", "objective": "stage2", "steps": 2, "learning_rate": 1.0e-6}],
    "optimizer": {"micro_batch": 8},
    "evaluation": {"problems": 1, "controls": False},
    "checkpoint": {"every": 1000, "select": "last"},
    "log": {"trackers": []},
}  # fmt: skip


def main(arguments: list[str] | None = None) -> None:
    """Every case, a line each, and results/card_memory.json."""
    parser = argparse.ArgumentParser(description="Predicted against measured: a card's memory by phase.")
    parser.add_argument("--only", nargs="+", default=list(CASES), help="names of cases")
    parser.add_argument("--keep", action="store_true", help="of --output, the cases that are not measured now")
    parser.add_argument("--output", type=Path, default=RESULT)
    options = parser.parse_args(arguments)
    card = torch.cuda.get_device_name() if torch.version.cuda else "none: a stand-in (tests/support/card)"
    on = machine(accelerator=card)
    found: dict[str, Any] = kept_before(options.output, on, options.keep).get("cases", {})
    columns = [f"{phase + ', MiB':>15}{'measured':>10}{'':8}" for phase in COLUMNS]
    print(f"{'':32}{''.join(columns)}")
    with tempfile.TemporaryDirectory() as scratch:
        for name in options.only:
            found[name] = case(name, Path(scratch))
            print(told(name, found[name]), flush=True)
            keep(options.output, command_of(__file__, arguments), ["selfcorrect", "torch"], on=on, cases=found)


def told(name: str, found: dict[str, Any]) -> str:
    columns = [
        f"{at['predicted'] / MIB:15.1f}{at['measured'] / MIB:10.1f}{at['predicted'] / at['measured'] - 1:+8.1%}"
        for at in found.values()
    ]
    return f"{name:32}" + "".join(columns)


def case(name: str, scratch: Path) -> dict[str, Any]:
    """Predicted and measured bytes by phase."""
    from selfcorrect.config import TrainConfig
    from selfcorrect.config.recipe import validate
    from selfcorrect.runs.display import Observer
    from selfcorrect.runs.run import start

    kind, changes = CASES[name]
    output = scratch / name.replace(" ", "-").replace(",", "")
    settings = {**_ALL, "output": str(output), "model": {**_ALL["model"], "path": str(make_model(kind, scratch))}}
    config = validate(settings, overrides=changes)
    assert isinstance(config, TrainConfig)
    with watched() as peaks:
        start(config, Observer())
    plan = json.loads((output / "run" / "plan.json").read_text(encoding="utf-8"))["predicted_at_lengths"]
    rests = plan["rests_on"]
    predicted = {
        phase: (size - rests["process_gib"] * 2**30) / (1 + rests["allocator_slack_share"])
        for phase, size in plan["peak_bytes_by_phase"].items()
    }
    return {phase: {"predicted": predicted[phase], "measured": peaks[phase]} for phase in COLUMNS if phase in predicted}


@contextmanager
def watched() -> Iterator[dict[str, int]]:
    """The most bytes in each phase of the last step inside, and in the last evaluation."""
    from selfcorrect.evaluation.evaluate import Evaluator
    from selfcorrect.learning.record import Clock

    peaks, lap, run = dict[str, int](), Clock.lap, Evaluator.run

    def take(phase: str | None) -> None:
        if phase:
            peaks[phase] = torch.cuda.max_memory_reserved()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()

    def watching(self: Clock, part: str) -> None:
        lap(self, part)
        take(PHASES.get(part))

    def evaluating(self: Evaluator, *args: Any, **kwargs: Any) -> Any:
        take(None)  # gradients are there until a step's very end
        found = run(self, *args, **kwargs)
        take("evaluation")
        return found

    Clock.lap, Evaluator.run = watching, evaluating  # type: ignore[method-assign]
    try:
        yield peaks
    finally:
        Clock.lap, Evaluator.run = lap, run  # type: ignore[method-assign]


def make_model(kind: str, scratch: Path) -> Path:
    """Random weights, most of them in embeddings of 32,768 words, with the lab's tokenizer: no attempt ends early."""
    import transformers

    from selfcorrect.config import ModelConfig
    from selfcorrect.models.loading import load_model

    folder = scratch / f"model-{kind}"
    if folder.is_dir():
        return folder
    torch.manual_seed(SEED)
    sizes: dict[str, Any] = {
        "vocab_size": 32_768, "hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4,
        "num_key_value_heads": 2, "intermediate_size": 512, "max_position_embeddings": 512, "bos_token_id": None,
        "tie_word_embeddings": True,
    }  # fmt: skip
    match kind:
        case "qwen2":
            model: Any = transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**sizes))
        case "llama":
            model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes))
        case "gemma3":
            model = transformers.Gemma3ForCausalLM(transformers.Gemma3TextConfig(**sizes, head_dim=32))
        case "gpt2":
            model = transformers.GPT2LMHeadModel(
                transformers.GPT2Config(
                    vocab_size=32_768, n_embd=128, n_layer=4, n_head=4, bos_token_id=None, eos_token_id=None
                )
            )
    folder.mkdir()
    model.save_pretrained(folder)
    load_model(ModelConfig(path="lab")).tokenizer.save_pretrained(folder)
    return folder


if __name__ == "__main__":
    main()
