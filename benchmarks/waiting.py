"""How long threads should spin for work, idle and under load: benchmarks/results/waiting.json.

    python benchmarks/waiting.py [--rounds 8] [--turn 5] [--spins default 100000 10000 1000 0] [--work lab ...]

A process a setting of GOMP_SPINCOUNT stays alive, and they take turns of some seconds, in an order drawn anew each
round; rounds alternate between cores left alone and cores that other processes keep busy. Given are the median of the
pieces done a second (a step, a forward pass, a token), and the median of each round's ratio to the first setting
(by default libgomp's own).
"""

import argparse
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from selfcorrect.config import TrainConfig

if TYPE_CHECKING:
    from selfcorrect.models.language_model import LanguageModel

RESULTS = Path(__file__).parent / "results" / "waiting.json"
WORKS = ("lab", "forward", "decode")


def main() -> None:
    """Measure, print a line for each work and load, write the results file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--turn", type=float, default=5.0, help="seconds at least")
    parser.add_argument(
        "--spins", nargs="+", help="each against the first", default=["default", "100000", "10000", "1000", "0"]
    )
    parser.add_argument("--work", nargs="+", default=list(WORKS), choices=WORKS)
    parser.add_argument("--layers", type=int, default=30, help="of the larger model")
    parser.add_argument("--problems", type=int, default=32, help="a step of the lab's")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options)
        return
    found = {}
    machine = {"cores": len(os.sched_getaffinity(0)), "threads": options.threads, "rounds": options.rounds}
    for work in options.work:
        for load, by_spin in measure(options, work).items():
            found[f"{work}, {load}"] = {
                spin: told(values, by_spin[options.spins[0]]) for spin, values in by_spin.items()
            }
            print(f"{work}, {load}: " + "  ".join(f"{s}: {v}" for s, v in found[f"{work}, {load}"].items()), flush=True)
        options.output.write_text(json.dumps({"machine": machine, "pieces a second": found}, indent=1) + "\n")


def measure(options: argparse.Namespace, work: str) -> dict[str, dict[str, list[float]]]:
    """Pieces a second by load, by setting, a number a round."""
    found: dict[str, dict[str, list[float]]] = {load: {s: [] for s in options.spins} for load in ("idle", "loaded")}
    servers = {spin: start(spin, options) for spin in options.spins}
    for server in servers.values():
        ask(server, work)  # warm
    for number in range(2 * options.rounds):
        load = ("idle", "loaded")[number % 2]
        busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(options.threads)]
        if load == "idle":
            stop(busy)
        for spin in random.sample(options.spins, len(options.spins)):
            found[load][spin].append(ask(servers[spin], work))
        stop(busy)
    stop(list(servers.values()))
    return found


def start(spin: str, options: argparse.Namespace) -> "subprocess.Popen[str]":
    kept = {key: value for key, value in os.environ.items() if key not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    setting = {} if spin == "default" else {"GOMP_SPINCOUNT": spin}
    shape = [f"--{name}={getattr(options, name)}" for name in ("turn", "threads", "layers", "problems")]
    command = [sys.executable, __file__, "--serve", *shape]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, env={**kept, **setting}, stdin=pipe, stdout=pipe, text=True)


def ask(server: "subprocess.Popen[str]", work: str) -> float:
    assert server.stdin
    assert server.stdout
    server.stdin.write(f"{work}\n")
    server.stdin.flush()
    return float(server.stdout.readline())


def stop(processes: "list[subprocess.Popen[Any]]") -> None:
    for process in processes:
        process.kill()
        process.wait()


def told(rates: list[float], default: list[float]) -> dict[str, float]:
    ratios = [mine / theirs for mine, theirs in zip(rates, default, strict=True)]
    return {"a second": float(f"{median(rates):.3g}"), "ratio": round(median(ratios), 2)}


def serve(options: argparse.Namespace) -> None:
    """Do the work named on each line of stdin for a turn, and answer with the pieces done a second."""
    import torch

    torch.set_num_threads(options.threads)
    works: dict[str, Any] = {"lab": lab_step, "forward": forward, "decode": decode}
    ready: dict[str, Any] = {}
    for text in sys.stdin:
        work = text.strip()
        if work not in ready:
            ready[work] = works[work](options)
        began, pieces, spent = time.perf_counter(), 0, 0.0
        while spent < options.turn:
            ready[work]()
            pieces, spent = pieces + 1, time.perf_counter() - began
        print(pieces / spent, flush=True)


def lab_step(options: argparse.Namespace) -> Any:
    """A training step of the demo."""
    from selfcorrect.api import read_config
    from selfcorrect.config.shipped import shipped_recipe
    from selfcorrect.learning.training import Trainer
    from selfcorrect.models.loading import load_model
    from selfcorrect.samplers.transformers import TransformersSampler
    from selfcorrect.tasks import make_task

    overrides = [f"threads={options.threads}", f"rollouts.problems_per_step={options.problems}"]
    config = read_config(shipped_recipe("demo"), *overrides)
    assert isinstance(config, TrainConfig)
    lm = load_model(config.model)
    trainer = Trainer(config, lm, lm.frozen_copy(), TransformersSampler(lm), make_task(config.task))
    return trainer.train_step


def larger(layers: int) -> "LanguageModel":
    """Random weights in the shape of a model of 135 million."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from selfcorrect.lab.base import build_tokenizer
    from selfcorrect.models.loading import wrap

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=layers, num_attention_heads=9,
        num_key_value_heads=3, tie_word_embeddings=True, attn_implementation="eager",
    )  # fmt: skip
    return wrap(LlamaForCausalLM(config), build_tokenizer(12))


def forward(options: argparse.Namespace) -> Any:
    """Eight rows of 128 tokens at once."""
    import torch

    lm, ids = larger(options.layers), torch.arange(8 * 128).reshape(8, 128)

    def work() -> None:
        with torch.no_grad():
            lm.model(input_ids=ids, logits_to_keep=1)

    return work


def decode(options: argparse.Namespace) -> Any:
    """A token of eight rows of 32."""
    import torch

    lm, ids = larger(options.layers), torch.arange(8 * 32).reshape(8, 32)

    with torch.no_grad():
        cache = lm.cache_in(lm.model(input_ids=ids, logits_to_keep=1, **lm.given(None)))

    def work() -> None:
        with torch.no_grad():
            lm.model(input_ids=ids[:, :1], **lm.given(cache))
            cache.crop(-1)

    return work


if __name__ == "__main__":
    main()
