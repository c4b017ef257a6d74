"""One whole training step at the size of Qwen2.5-0.5B on a CPU, selfcorrect against TRL, full and LoRA: time, memory.

    python benchmarks/real_step.py [--pairs 5] [--threads 2] [--tunings full lora]

The model has Qwen2.5-0.5B's shape (V = 151,936) and random float32 weights; one word in 32 ends an attempt, so lengths
fall off as chance has it. A step samples two attempts of 4 problems x 4 rollouts (up to 48 tokens each), grades them
and updates once, with a KL to the base model. Each measurement is the second step of a fresh process (--steps): the
first one also has AdamW's moments made and every page of memory touched for the first time, which no later step has.
Processes alternate, TRL first. Score: tokens sampled a second, so that longer or shorter samples cancel out. Peak
memory: the most that a process held, loading included. What is not the same work: train_step.py.
Ours settles its micro-batch by itself (`auto`); TRL's is --micro-batch (4 is faster than 2 and 8: docs/log.md).
Ours start as `selfcorrect train` does (models/freed.py), TRL's as `python` does.
With LoRA a third process takes its turn, `lean`: ours with micro_batch: 2, gradient checkpointing, no
model.sampling_copies, and freed memory given back (models/freed.py).
"""

import argparse
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import torch
from gpu_step import DRY, HALF, make_model
from workload import GIVEN_BACK, StepTiming, Work, command_of, in_a_process, keep, kept_before, machine, median

from selfcorrect.models.freed import started_whole
from selfcorrect.planning.beside import measured_peak

RESULT = Path(__file__).parent / "results" / "real_step.json"
PACKAGES = ("selfcorrect", "torch", "transformers", "trl", "accelerate", "peft")
ENDS = 32
SIDES = {"full": ("trl", "selfcorrect"), "lora": ("trl", "selfcorrect", "lean")}


def main(arguments: list[str] | None = None) -> None:
    """The pairs of each tuning, the table, results/real_step.json."""
    options = _options(arguments)
    if options.child:
        print(json.dumps(measure(options)))
        return
    on = machine(threads=options.threads)
    before = kept_before(options.output, on, options.keep)
    found: dict[str, Any] = {
        tuning: {"command": before["command"], **each} for tuning, each in before.get("tunings", {}).items()
    }
    command = command_of(__file__, arguments)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "model"
        make_folder(folder, options.dry)
        for tuning in options.tunings:
            pairs = []
            for number in range(options.pairs):
                pair = {side: child(side, tuning, folder, options) for side in SIDES[tuning]}
                pairs.append(pair)
                print(f"{tuning} pair {number + 1}: {told(pair)}", flush=True)
            found[tuning] = {"command": command, "summary": summary(pairs), "pairs": pairs}
            print(f"{tuning}: {json.dumps(found[tuning]['summary'])}", flush=True)
            if "lean" in SIDES[tuning]:
                found[tuning]["lean"] = summary(pairs, "lean")
                print(f"{tuning}, lean: {json.dumps(found[tuning]['lean'])}", flush=True)
            keep(options.output, command, PACKAGES, on=on, tunings=found)  # each takes half an hour


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="One step at the size of a real model, selfcorrect against TRL.")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--steps", type=int, default=2, help="of each process, the last of which counts")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tunings", nargs="+", default=["full", "lora"], choices=["full", "lora"])
    parser.add_argument("--micro-batch", type=int, default=4, help="rollouts in one forward of TRL's")
    parser.add_argument("--keep", action="store_true", help="of --output, the tunings that are not measured now")
    parser.add_argument("--dry", action="store_true", help="a tiny model, to see that it runs")
    parser.add_argument("--output", type=Path, default=RESULT)
    parser.add_argument("--child", choices=["trl", "selfcorrect", "lean"], help=argparse.SUPPRESS)
    parser.add_argument("--tuning", default="full", help=argparse.SUPPRESS)
    parser.add_argument("--model", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def make_folder(folder: Path, dry: bool) -> None:
    lm = make_model(DRY if dry else HALF, torch.device("cpu"), ENDS)
    lm.save(folder, torch.float32)


def child(side: str, tuning: str, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """One measurement in a process of its own."""
    asked = [
        "--child", side, "--tuning", tuning, "--model", str(folder),
        "--threads", str(options.threads), "--steps", str(options.steps), "--micro-batch", str(options.micro_batch),
        *(["--dry"] if options.dry else []),
    ]  # fmt: skip
    environment = dict(os.environ) if side == "trl" else started_whole(os.environ)  # as the command line starts
    environment |= GIVEN_BACK if side == "lean" else {}
    row: dict[str, Any] = in_a_process(__file__, asked, f"{side} {tuning}", environment)
    return row


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """The steps of one side."""
    torch.set_num_threads(options.threads)
    work = Work(2, 2, 6) if options.dry else Work(4, 4, 48)
    timings: list[StepTiming] = []
    if options.child in ("selfcorrect", "lean"):
        from our_side import OurSide

        ours = OurSide(options.model, options.steps, work, "auto", options.tuning, lean=options.child == "lean")
        timings, micro_batch = [ours.step() for _ in range(options.steps)], ours.micro_batch
    else:
        import trl_side

        micro_batch = options.micro_batch
        settings = trl_side.TrlSettings(cache="dynamic", micro_batch=micro_batch)
        changes: dict[str, Any] = {}
        with tempfile.TemporaryDirectory() as scratch:
            side = trl_side.TrlSide(
                options.model, Path(scratch), settings, options.steps, work, options.threads, changes=changes,
                lora=options.tuning == "lora",
            )  # fmt: skip
            vocabulary = (DRY if options.dry else HALF).vocab_size
            side.also_ends(range(ENDS, vocabulary, ENDS))
            side.run(timings.append)
    last = timings[-1]
    return {
        "sampled_tokens": last.sampled_tokens, "seconds": last.seconds, "tokens_per_second": last.tokens_per_second,
        "parts": last.parts, "peak_bytes": measured_peak(None),
        "seconds_by_step": [timing.seconds for timing in timings], "micro_batch": micro_batch,
    }  # fmt: skip


def told(pair: dict[str, Any]) -> str:
    sides = [
        f"{name} {row['sampled_tokens']} tokens in {row['seconds']:.1f} s, peak {row['peak_bytes'] / 2**30:.1f} GiB"
        for name, row in pair.items()
    ]
    return "; ".join(sides) + f"; ratio {_ratio(pair, 'selfcorrect'):.2f}"


def _ratio(pair: dict[str, Any], side: str) -> float:
    return float(pair[side]["tokens_per_second"] / pair["trl"]["tokens_per_second"])


def summary(pairs: list[dict[str, Any]], side: str = "selfcorrect") -> dict[str, Any]:
    ratios = [_ratio(pair, side) for pair in pairs]
    memory = [pair[side]["peak_bytes"] / pair["trl"]["peak_bytes"] for pair in pairs]
    return {
        "ratio_median": median(ratios), "ratio_range": [min(ratios), max(ratios)],
        "memory_median": median(memory), "memory_range": [min(memory), max(memory)],
    }  # fmt: skip


if __name__ == "__main__":
    main()
