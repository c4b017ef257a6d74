"""Log-probabilities with the full-vocabulary KL, through backward: memory and time of tiles, whole logits and TRL.

    python benchmarks/loss_memory.py [--device cuda] [--tiny]

For 16,384 tokens, and vocabularies as of Llama 2, Qwen 2.5 and Gemma 3: hidden states of a policy whose head trains and
of a reference with a head of its own give log pi(token) and KL(pi || pi_ref), and the gradient of a mix of both.
  tiles         learning/vocabulary.py
  whole logits  log-softmax of both models' logits under autograd, as this project did it before
  trl           its ChunkedLogProbFunction and, for the KL, its ChunkedDivergenceFunction, one after the other: TRL has
                no single pass, and in GRPO no KL over the vocabulary; left out where TRL is not installed
A case's peak is how far a fresh process grows from the point where its inputs are in memory, gradients included;
"beyond" leaves out the gradients themselves (hidden states and head), which no way can do without. Cases that would
grow by more than --limit GiB are not run, and their need is worked out from the smaller case in the same table.

Time is compared where the vocabulary is small, as the lab's: the ways take turns.
"""

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from workload import SEED, command_of, keep, machine, median

from selfcorrect.learning.vocabulary import score
from selfcorrect.models.head import Head, States
from selfcorrect.planning.beside import measured_peak

RESULT = Path(__file__).parent / "results" / "loss_memory.json"
GIB = 2**30
Way = Callable[[States, States, Tensor], tuple[Tensor, Tensor]]


def tiles(policy: States, reference: States, ids_N: Tensor) -> tuple[Tensor, Tensor]:
    return score(policy, reference, ids_N, 1.0, "analytic")


def whole_logits(policy: States, reference: States, ids_N: Tensor) -> tuple[Tensor, Tensor]:
    logprobs_NV = _logits(policy).log_softmax(-1)
    with torch.no_grad():
        ref_logits_NV = _logits(reference)
    ref_logprobs_NV = ref_logits_NV.log_softmax(-1)
    logprobs_N = logprobs_NV.gather(1, ids_N[:, None]).squeeze(1)
    return logprobs_N, (logprobs_NV.exp() * (logprobs_NV - ref_logprobs_NV)).sum(-1)


def trl(policy: States, reference: States, ids_N: Tensor) -> tuple[Tensor, Tensor]:
    from trl.kernels.chunked_divergence import ChunkedDivergenceFunction
    from trl.kernels.chunked_logprob import ChunkedLogProbFunction

    assert policy.head
    assert reference.head
    mine, theirs = (policy.hidden_ND, policy.head.weight_VD), (reference.hidden_ND, reference.head.weight_VD)
    logprobs_N = ChunkedLogProbFunction.apply(*mine, None, ids_N, 1.0, 4096, None, 1.0, ())[0]
    kl_N = ChunkedDivergenceFunction.apply(*mine, None, *theirs, None, 1.0)[0]
    return logprobs_N, kl_N


def _logits(states: States) -> Tensor:
    assert states.head
    return states.hidden_ND @ states.head.weight_VD.T


WAYS: dict[str, Way] = {"tiles": tiles, "whole logits": whole_logits, "trl": trl}


def inputs(tokens: int, hidden: int, vocabulary: int, device: str) -> tuple[States, States, Tensor]:
    """Policy and reference some way from each other, and tokens to score."""
    generator = torch.Generator(device).manual_seed(SEED)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator, device=device).mul_(2 / hidden**0.25)

    ids_N = torch.randint(vocabulary, (tokens,), generator=generator, device=device)
    policy = States(normal(tokens, hidden).requires_grad_(), Head(normal(vocabulary, hidden).requires_grad_()))
    return policy, States(normal(tokens, hidden), Head(normal(vocabulary, hidden))), ids_N


def through_backward(way: Way, policy: States, reference: States, ids_N: Tensor) -> tuple[float, float]:
    """Means of log-probability and KL, with the gradients of their sum left at the policy's tensors."""
    logprobs_N, kl_N = way(policy, reference, ids_N)
    (kl_N - logprobs_N).mean().backward()  # type: ignore[no-untyped-call]
    return float(logprobs_N.detach().mean()), float(kl_N.detach().mean())


def main(arguments: list[str] | None = None) -> None:
    """Measure, print the tables, write results/loss_memory.json."""
    options = _options(arguments)
    torch.set_num_threads(options.threads)
    if options.case:
        print(json.dumps(_grown(options)))
        return
    ways = [name for name in WAYS if name != "trl" or importlib.util.find_spec("trl")]
    rows, speed = list[dict[str, Any]](), list[dict[str, Any]]()
    packages = ["selfcorrect", "torch", *(["trl"] if "trl" in ways else [])]
    on = machine(device=_device_name(options.device), threads=options.threads)

    def kept() -> None:
        keep(options.output, command_of(__file__, arguments), packages, on=on, memory=rows, speed=speed)

    _memory(options, ways, rows, kept)
    for vocabulary in options.small:
        speed.append(_pairs(options, vocabulary))
        kept()


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Memory and time of the loss over the vocabulary.")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--threads", type=int, default=2, help="threads that torch may use")
    parser.add_argument("--tokens", type=int, default=16384)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--vocabularies", type=int, nargs="+", default=[32000, 151936, 262144])
    parser.add_argument("--small", type=int, nargs="+", default=[64, 140, 512], help="vocabularies to time")
    parser.add_argument("--pairs", type=int, default=21, help="turns of each way")
    parser.add_argument("--limit", type=float, default=6.0, help="GiB that a case may grow by")
    parser.add_argument("--tiny", action="store_true", help="a size for tests")
    parser.add_argument("--output", type=Path, default=RESULT, help="where the JSON goes")
    parser.add_argument("--case", choices=WAYS, help=argparse.SUPPRESS)  # this process is one case of the table
    options = parser.parse_args(arguments)
    if options.tiny:
        options.tokens, options.hidden, options.vocabularies = 512, 8, [1000, 4000]
        options.small, options.pairs, options.limit = [64], 1, 0.02
    return options


def _memory(options: argparse.Namespace, ways: list[str], rows: list[dict[str, Any]], kept: Callable[[], None]) -> None:
    """Adds rows one by one. The first size is an eighth of the tokens, at which whole logits are measured as well."""
    smallest = min(options.vocabularies)
    sizes = [(options.tokens // 8, smallest), *((options.tokens, vocabulary) for vocabulary in options.vocabularies)]
    print(f"hidden size {options.hidden}, float32, on {_device_name(options.device)}")
    print(f"{'tokens':>7}{'vocabulary':>12}  {'way':14}{'grown by':>12}{'beyond gradients':>18}{'seconds':>10}")
    for tokens, vocabulary in sizes:
        gradients = 4 * options.hidden * (tokens + vocabulary) / GIB
        for way in ways:
            row: dict[str, Any] = {"tokens": tokens, "vocabulary": vocabulary, "way": way}
            # Whole logits grow with tokens and vocabulary, trl with the tokens (at 4,096 it was 5.4 and 5.5 GiB).
            more = {"whole logits": tokens * vocabulary / (sizes[0][0] * smallest), "trl": tokens / sizes[0][0]}
            first = rows[ways.index(way)].get("beyond_gib", 0.0) if len(rows) >= len(ways) else 0.0
            need = first * more.get(way, 0.0)
            if need + gradients > options.limit:
                row["not_run_needs_gib"] = need + gradients
                told = f"not run: needs {need + gradients:.1f} GiB (computed)"
            else:
                row |= _in_a_fresh_process(options, way, tokens, vocabulary)
                told = f"failed: {row.get('failed')}"
                if "grown_gib" in row:
                    row["beyond_gib"] = row["grown_gib"] - gradients
                    told = f"{row['grown_gib']:9.2f} GiB{row['beyond_gib']:14.2f} GiB{row['seconds']:10.1f}"
            print(f"{tokens:7}{vocabulary:12}  {way:14}{told}", flush=True)
            rows.append(row)
            kept()


def _in_a_fresh_process(options: argparse.Namespace, way: str, tokens: int, vocabulary: int) -> dict[str, Any]:
    """What it grew by, or why it ended: a case may take all the memory of a card."""
    size = ["--tokens", str(tokens), "--hidden", str(options.hidden), "--vocabularies", str(vocabulary)]
    place = ["--device", options.device, "--threads", str(options.threads)]
    command = [sys.executable, __file__, "--case", way, *size, *place]
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=_paths())
    if done.returncode:
        return {"failed": (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1][:200]}
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def _paths() -> dict[str, str]:
    """The environment, with what this process can import."""
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}


def _grown(options: argparse.Namespace) -> dict[str, float]:
    """How far this process grows from its inputs to its gradients."""
    way, device = WAYS[options.case], options.device
    through_backward(way, *inputs(64, options.hidden, 128, device))  # libraries' own memory is none of the case's
    given = inputs(options.tokens, options.hidden, options.vocabularies[0], device)
    before, clock = _peak(device, reset=True), _clock(device)
    start = clock()
    logprob, kl = through_backward(way, *given)
    peak, seconds = _peak(device), clock() - start
    return {"grown_gib": (peak - before) / GIB, "seconds": seconds, "logprob": logprob, "kl": kl}


def _peak(device: str, reset: bool = False) -> int:
    if device == "cuda":
        torch.cuda.synchronize()
        if reset:
            torch.cuda.reset_peak_memory_stats()
        return torch.cuda.max_memory_allocated()
    return int(measured_peak(None))


def _pairs(options: argparse.Namespace, vocabulary: int) -> dict[str, Any]:
    """Whole logits and tiles in turn, at the lab's hidden size and a micro-batch's tokens."""
    tokens, hidden = min(options.tokens, 3000), 128
    given = inputs(tokens, hidden, vocabulary, options.device)
    ratios, seconds = [], []
    for turn in range(options.pairs + 1):
        taken = [_seconds(options.device, way, given) for way in (whole_logits, tiles)]
        if turn:  # the first warms up
            ratios.append(taken[0] / taken[1])
            seconds.append(taken)
    middle = [median([pair[side] for pair in seconds]) for side in (0, 1)]
    print(
        f"{tokens} tokens, vocabulary {vocabulary}: whole logits {middle[0] * 1e3:.1f} ms, tiles {middle[1] * 1e3:.1f} "
        f"ms; whole logits / tiles: median {median(ratios):.2f}, {min(ratios):.2f} to {max(ratios):.2f}"
    )
    return {
        "tokens": tokens, "hidden": hidden, "vocabulary": vocabulary, "ratio_median": median(ratios),
        "ratio_range": [min(ratios), max(ratios)], "whole_logits_seconds": middle[0], "tiles_seconds": middle[1],
    }  # fmt: skip


def _seconds(device: str, way: Way, given: tuple[States, States, Tensor]) -> float:
    clock = _clock(device)
    start = clock()
    through_backward(way, *given)
    return clock() - start


def _clock(device: str) -> Callable[[], float]:
    """Seconds of this process's processors, which others on the machine do not lengthen; on a GPU those on the wall."""

    def finished() -> float:
        torch.cuda.synchronize()
        return time.perf_counter()

    return finished if device == "cuda" else time.process_time


def _device_name(device: str) -> str:
    return torch.cuda.get_device_name() if device == "cuda" else str(machine()["cpu"])


if __name__ == "__main__":
    main()
