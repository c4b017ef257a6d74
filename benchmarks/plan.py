"""`selfcorrect plan` against what runs take: peak memory and seconds a step, models and recipes on a CPU or a card.

    python benchmarks/plan.py --models FOLDER [--threads 2] [--only NAME ...]     # FOLDER: those of CASES by name
    python benchmarks/plan.py --device cuda [--models FOLDER] --output FILE       # those of CARD_CASES
    python benchmarks/plan.py --tiny                                              # the lab's model alone, one thread

Each case is one run. On a card it is `selfcorrect train`, of four steps, whose plan.json says both: the plan for the
lengths that came, and what was measured: the most that its process held, and the median of all steps but the first. On
a CPU layers are timed in turns with the last steps (plan_turns.py), as what else the machine does moves both; seconds
are means.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import plan_turns
import torch
from workload import SEED, command_of, keep, kept_before, machine

from selfcorrect.models.freed import SET_BY_USER, started_whole
from selfcorrect.planning import beside

RESULT = Path(__file__).parent / "results" / "plan.json"
RANDOM = "random-300m"
# The lab's tokenizer reads nothing else; the random model has it too.
_LAB_TASK = ["task.max_number=100", "task.limit=200", "task.prompt={numbers} : {target}", "task.correction_prompt=?"]
# name -> model, settings beside those that all have; `x2` in a name: two processes, as torchrun starts them
CASES: dict[str, tuple[str, list[str]]] = {
    "lab full": (
        "lab",
        ["rollouts.problems_per_step=16", "rollouts.rollouts_per_problem=8", "rollouts.max_new_tokens=16"],
    ),
    "smollm2-135m full": ("smollm2-135m-instruct", []),
    "smollm2-135m lora": (
        "smollm2-135m-instruct",
        ["model.tuning=lora", "optimizer.micro_batch=16", "rollouts.problems_per_step=4"],
    ),
    "random-300m full": (RANDOM, []),
    "random-300m lora, checkpointing": (RANDOM, ["model.tuning=lora", "optimizer.gradient_checkpointing=true"]),
    "gemma-3-270m full": ("gemma-3-270m", ["model.chat_template=plain"]),
    "smollm2-135m full, ddp x2": ("smollm2-135m-instruct", ["parallel=ddp"]),
    "smollm2-135m full, fsdp2 x2": ("smollm2-135m-instruct", ["parallel=fsdp2"]),
    "random-300m full, fsdp2 x2": (RANDOM, ["parallel=fsdp2"]),
    "qwen2.5-0.5b lora": ("qwen2.5-coder-0.5b-instruct", ["model.tuning=lora"]),
}
_WIDE = ["rollouts.problems_per_step=16", "rollouts.rollouts_per_problem=8", "rollouts.max_new_tokens=256",
         "optimizer.micro_batch=auto"]  # fmt: skip
CARD_CASES: dict[str, tuple[str, list[str]]] = {
    "card: random-300m full": (RANDOM, _WIDE),
    "card: random-300m lora, checkpointing": (
        RANDOM, [*_WIDE, "model.tuning=lora", "optimizer.gradient_checkpointing=true"],
    ),
    "card: random-300m full in bfloat16": (RANDOM, [*_WIDE, "model.weights=bfloat16"]),
    "card: qwen2.5-0.5b full": ("qwen2.5-coder-0.5b-instruct", _WIDE),
    "card: qwen2.5-0.5b lora": ("qwen2.5-coder-0.5b-instruct", [*_WIDE, "model.tuning=lora"]),
}  # fmt: skip
_ALL = {
    "seed": SEED,
    "rollouts": {"problems_per_step": 2, "rollouts_per_problem": 4, "max_new_tokens": 48},
    "stages": [{"name": "stage2", "objective": "stage2", "steps": 1, "learning_rate": 1.0e-6}],
    "optimizer": {"micro_batch": 4},
    "evaluation": {"problems": 4},
    "checkpoint": {"every": plan_turns.BEFORE, "select": "last"},
    "log": {"trackers": []},
}
_ANY = CASES | CARD_CASES


def main(arguments: list[str] | None = None) -> None:
    """Every case, the table, results/plan.json."""
    parser = argparse.ArgumentParser(description="Predicted against measured: memory and seconds of runs.")
    parser.add_argument("--models", type=Path, help="the folder that holds the models of the cases, by name")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", nargs="+", help="names of cases")
    parser.add_argument("--tiny", action="store_true", help="the lab's model, few rows")
    parser.add_argument("--keep", action="store_true", help="of --output, the cases that are not measured now")
    parser.add_argument("--output", type=Path, default=RESULT)
    options = parser.parse_args(arguments)
    cases = CASES if options.device == "cpu" else CARD_CASES
    if options.device == "cuda" and not options.models:
        cases = {name: each for name, each in cases.items() if each[0] == RANDOM}
    names = ["lab full"] if options.tiny else options.only or list(cases)
    if not options.models and any(_ANY[name][0] not in ("lab", RANDOM) for name in names):
        parser.error("--models FOLDER names where the models are; --tiny needs none")
    on = machine(threads=options.threads)
    if options.device == "cuda":
        on["accelerator"] = torch.cuda.get_device_name()
    found: dict[str, Any] = kept_before(options.output, on, options.keep).get("cases", {})
    with tempfile.TemporaryDirectory() as scratch:
        for name in names:
            found[name] = case(name, Path(scratch), options)
            print(told(name, found[name]), flush=True)
            packages = ["selfcorrect", "torch", "transformers", "peft"]  # kept at once, as cases take minutes each
            keep(options.output, command_of(__file__, arguments), packages, on=on, cases=found)


def case(name: str, scratch: Path, options: argparse.Namespace) -> dict[str, Any]:
    """What was planned and what was measured."""
    plan = run(name, scratch, options)
    if "failed" in plan:
        return plan
    after, measured = plan["predicted_at_lengths"], plan["measured"]
    # A run's clock has what processes send each other in its update.
    phases = after["seconds"] | {"update": after["seconds"]["update"] + after["seconds"]["sync"]}
    by_phase = {name: {"predicted": phases[name], "measured": took} for name, took in measured["seconds"].items()}
    return {
        "peak_bytes": both(plan, "peak_bytes") | {"fullest": after["fullest"]},
        "step_seconds": both(plan, "step_seconds") | {"by_phase": by_phase},
        "bytes": after["bytes"], "peak_bytes_by_phase": after["peak_bytes_by_phase"],
        **{name: plan[name] for name in ("planned", "took") if name in plan},
    }  # fmt: skip


def both(plan: dict[str, Any], what: str) -> dict[str, Any]:
    predicted, measured = plan["predicted_at_lengths"][what], plan["measured"][what]
    return {"predicted": predicted, "measured": measured, "error": predicted / measured - 1}


def run(name: str, scratch: Path, options: argparse.Namespace) -> dict[str, Any]:
    """plan.json of a run, or why there is none."""
    import yaml

    model, changes = _ANY[name]
    path = "lab" if model == "lab" else str(make_random(scratch) if model == RANDOM else options.models / model)
    recipe = scratch / "recipe.yaml"
    precision = "float32" if options.device == "cpu" else "auto"
    everywhere = {**_ALL, "model": {"precision": precision, "device": options.device}}
    recipe.write_text(yaml.safe_dump(everywhere), encoding="utf-8")
    changes = [*changes, *(_LAB_TASK if model in ("lab", RANDOM) else [])]
    tiny = ["rollouts.problems_per_step=2"] if options.tiny else []
    on_cpu, several = options.device == "cpu", name.endswith(" x2")
    steps = plan_turns.STEPS if on_cpu else 4
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"] if several else []
    started = [str(Path(plan_turns.__file__))] if on_cpu else ["-m", "selfcorrect.cli", "train"]
    threads = 1 if options.tiny else max(1, options.threads // 2) if several else options.threads
    folder = name.replace(" ", "-").translate({ord(","): None, ord(":"): None})
    command = [
        sys.executable, *launcher, *started, str(recipe), f"model.path={path}", f"output={scratch}",
        f"name={folder}", f"threads={threads}", f"stages.stage2.steps={steps}", *changes, *tiny,
    ]  # fmt: skip
    kept = {variable: value for variable, value in os.environ.items() if variable not in SET_BY_USER}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=started_whole(kept))
    file = scratch / folder / (plan_turns.FILE if on_cpu else beside.FILE)
    if done.returncode or not file.exists():
        return {"failed": (done.stderr or done.stdout)[-2000:]}
    plan: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    shutil.rmtree(scratch / folder)  # its checkpoints take gigabytes
    return plan if "measured" in plan else {"failed": done.stdout[-2000:]}


def make_random(scratch: Path) -> Path:
    """A Qwen2 of 300 million random weights, with the lab's tokenizer."""
    from gpu_step import ENDS_EVERY
    from transformers import Qwen2Config, Qwen2ForCausalLM

    from selfcorrect.config import ModelConfig
    from selfcorrect.models.loading import load_model

    folder = scratch / RANDOM
    if folder.is_dir():
        return folder
    torch.manual_seed(SEED)
    config = Qwen2Config(
        vocab_size=32_768, hidden_size=1024, num_hidden_layers=18, num_attention_heads=16, num_key_value_heads=4,
        intermediate_size=4096, max_position_embeddings=2048, tie_word_embeddings=True,
    )  # fmt: skip
    model = Qwen2ForCausalLM(config).to(torch.bfloat16)
    model.generation_config.eos_token_id = [1, *range(ENDS_EVERY, config.vocab_size, ENDS_EVERY)]
    folder.mkdir()
    model.save_pretrained(folder)
    load_model(ModelConfig(path="lab")).tokenizer.save_pretrained(folder)
    return folder


def told(name: str, found: dict[str, Any]) -> str:
    if "failed" in found:
        return f"{name}: failed: {found['failed']}"
    peak, seconds = found["peak_bytes"], found["step_seconds"]
    predicted, measured = peak["predicted"] / 2**30, peak["measured"] / 2**30
    return (
        f"{name}: peak {predicted:.2f} GiB predicted ({peak['fullest']}), {measured:.2f} measured "
        f"({peak['error']:+.1%}); "
        f"{seconds['predicted']:.2f} s a step predicted, {seconds['measured']:.2f} measured ({seconds['error']:+.0%})"
    )


if __name__ == "__main__":
    main()
