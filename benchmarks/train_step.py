"""One whole SCoRe training step, selfcorrect against TRL's GRPOTrainer, side by side on this machine's CPU.

    python benchmarks/train_step.py [--pairs 4] [--threads 2] [--tuning full|lora]

A step samples two attempts of 16 problems x 8 rollouts (up to 96 tokens each), grades them and updates the policy
once, with a KL to a frozen reference. Both sides start from the same folder (workload.py) and take turns: after
one step each to warm up, TRL steps, then selfcorrect, and so on, in one process. A step's score is the tokens it
sampled over its seconds, so that longer or shorter samples cancel out. Peak memory is that of two more steps of each
side, in a process of its own, loading included.

What is not the same work:
- TRL pays both attempts of a rollout with one scalar; selfcorrect credits each attempt on its own, with the bonus.
- TRL's KL is the k3 estimate from the sampled tokens, differentiated as a loss; selfcorrect's is the KL over the
  whole vocabulary, within each attempt's return.
- TRL computes the entropy of each token for its metrics; selfcorrect keeps the sampler's log-probabilities, and
  compares them with the trainer's.
- The prompts are short (about 30 tokens). With longer ones selfcorrect would gain: it computes a prompt once for its
  eight rollouts, at sampling and in the update, and attempt 1 not again for attempt 2.
What TRL is given is listed in trl_side.py.
"""

import argparse
import json
import os
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from our_side import OurSide
from trl_side import TrlSettings, TrlSide
from workload import (
    CORRECTION,
    Side,
    StepTiming,
    Work,
    command_of,
    in_a_process,
    keep,
    machine,
    make_model_folder,
    median,
)

from selfcorrect.models.freed import started_whole
from selfcorrect.planning.beside import measured_peak

RESULT = Path(__file__).parent / "results" / "train_step.json"
PARTS = ("sampling", "grading", "reference", "policy", "other")
Pair = tuple[StepTiming, StepTiming]


def main(arguments: list[str] | None = None) -> None:
    """Run the pairs, print the table, write results/train_step.json."""
    options = _options(arguments)
    torch.set_num_threads(options.threads)
    if options.child:
        print(json.dumps(_peak(options)))
        return
    settings = _trl_settings(options.trl)
    steps, work = options.pairs + 1, Work(options.problems, max_new_tokens=options.max_new_tokens)
    with tempfile.TemporaryDirectory() as scratch:
        folder = make_model_folder(Path(scratch) / "model")
        ours = OurSide(folder, steps, work, options.micro_batch or "auto", options.tuning)
        trl = _trl(folder, Path(scratch), options, steps, work)
        _check_same_tokens(ours, trl, work)
        size = f"{work.problems} problems x {work.rollouts_per_problem} rollouts x 2 attempts"
        print(f"{size}, {options.threads} threads, {machine()['cpu']}")
        warm_up, *pairs = _interleave(trl, ours)
        peaks = {side: _in_a_process(side, folder, arguments) for side in (trl.name, ours.name)}
    _print_parts(pairs)
    summary = _summary(pairs) | {"peak_bytes": peaks}
    print(
        f"sampled tokens a second, {ours.name} / {trl.name}: median {summary['ratio_median']:.2f} "
        f"(range {summary['ratio_range'][0]:.2f} to {summary['ratio_range'][1]:.2f}, pairs: {len(pairs)})"
    )
    print("peak memory: " + ", ".join(f"{side} {peak / 2**30:.2f} GiB" for side, peak in peaks.items()))
    kept = {
        **asdict(work), "attempts": 2, "tuning": options.tuning, "trl": asdict(settings),
        "selfcorrect": {"micro_batch": ours.micro_batch},
    }  # fmt: skip
    keep(
        options.output, command_of(__file__, arguments), ["selfcorrect", "torch", "transformers", "trl", "accelerate"],
        on=machine(threads=options.threads), work=kept, summary=summary, warm_up=_row(warm_up),
        pairs=[_row(pair) for pair in pairs],
    )  # fmt: skip


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="One whole training step, selfcorrect against TRL, on CPU.")
    parser.add_argument("--pairs", type=int, default=4, help="measured pairs of steps, after one pair to warm up")
    parser.add_argument("--threads", type=int, default=2, help="threads that torch may use")
    parser.add_argument("--problems", type=int, default=Work.problems, help="of a step, 8 rollouts each")
    parser.add_argument("--max-new-tokens", type=int, default=Work.max_new_tokens, help="of an attempt")
    parser.add_argument("--micro-batch", type=int, help="selfcorrect's rows in one forward; auto by default")
    parser.add_argument(
        "--trl",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="another choice for TRL: attention=eager|sdpa, cache=dynamic|static, micro_batch=N",
    )
    parser.add_argument("--tuning", default="full", choices=["full", "lora"], help="of both sides")
    parser.add_argument("--output", type=Path, default=RESULT, help="where the JSON goes")
    parser.add_argument("--child", choices=["trl", "selfcorrect"], help=argparse.SUPPRESS)
    parser.add_argument("--model", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.pairs < 1 or options.threads < 1:
        parser.error("--pairs and --threads must be 1 or more")
    return options


def _trl_settings(choices: list[str]) -> TrlSettings:
    given: dict[str, Any] = dict(choice.split("=", 1) for choice in choices)
    if "micro_batch" in given:
        given["micro_batch"] = int(given["micro_batch"])
    return TrlSettings(**given)


def _trl(folder: Path, scratch: Path, options: argparse.Namespace, steps: int, work: Work) -> TrlSide:
    settings, lora = _trl_settings(options.trl), options.tuning == "lora"
    return TrlSide(folder, scratch / "trl", settings, steps, work, options.threads, lora=lora)


def _in_a_process(side: str, folder: Path, arguments: list[str] | None) -> float:
    """The most bytes that a process of this side alone held; each starts as it does by its own command."""
    given = sys.argv[1:] if arguments is None else arguments
    environment = dict(os.environ) if side == TrlSide.name else started_whole(os.environ)
    return float(in_a_process(__file__, [*given, "--child", side, "--model", str(folder)], side, environment))


def _peak(options: argparse.Namespace) -> float:
    """Of this process, after two steps of its side."""
    work = Work(options.problems, max_new_tokens=options.max_new_tokens)
    if options.child == OurSide.name:
        ours = OurSide(options.model, 2, work, options.micro_batch or "auto", options.tuning)
        for _ in range(2):
            ours.step()
    else:
        with tempfile.TemporaryDirectory() as scratch:
            _trl(options.model, Path(scratch), options, 2, work).run(lambda timing: None)
    return measured_peak(None)


def _check_same_tokens(ours: OurSide, trl: TrlSide, work: Work) -> None:
    """Both sides must see the same prompts, whether attempt 1 was ended by the model or cut off."""
    for text in work.prompts():
        first = ours.chat.first_prompt(text)
        assert list(first) == trl.first_prompt(text)
        for attempt in ([9, 8, 1], [9, 8, 7]):
            assert list(ours.chat.next_prompt(first, attempt, CORRECTION)) == [*first, *trl.close(attempt)]


def _interleave(trl: TrlSide, ours: Side) -> list[Pair]:
    """TRL's trainer owns its loop, so it leads; our step is taken between two of its steps."""
    pairs: list[Pair] = []

    def between(theirs: StepTiming) -> None:
        pair = (theirs, ours.step())
        label = f"pair {len(pairs)}" if pairs else "warm-up"
        columns = [
            f"{name} {timing.sampled_tokens} tokens in {timing.seconds:.1f} s = {timing.tokens_per_second:.0f}/s"
            for name, timing in zip((trl.name, ours.name), pair, strict=True)
        ]
        print(f"{label:7}  {'   '.join(columns)}   ratio {_ratio(pair):.2f}", flush=True)
        pairs.append(pair)

    trl.run(between)
    return pairs


def _ratio(pair: Pair) -> float:
    theirs, ours = pair
    return ours.tokens_per_second / theirs.tokens_per_second


def _print_parts(pairs: list[Pair]) -> None:
    """Median seconds of every part of a step."""
    print("\nmedian seconds of a step" + "".join(f"{part:>11}" for part in (*PARTS, "whole")))
    for i, name in enumerate((TrlSide.name, OurSide.name)):
        row = [median([pair[i].parts[part] for pair in pairs]) for part in PARTS]
        row.append(median([pair[i].seconds for pair in pairs]))
        print(f"{name:24}" + "".join(f"{seconds:11.2f}" for seconds in row))
    print()


def _summary(pairs: list[Pair]) -> dict[str, Any]:
    ratios = [_ratio(pair) for pair in pairs]
    return {
        "ratio_median": median(ratios),
        "ratio_range": [min(ratios), max(ratios)],
        "trl_tokens_per_second": median([pair[0].tokens_per_second for pair in pairs]),
        "selfcorrect_tokens_per_second": median([pair[1].tokens_per_second for pair in pairs]),
    }


def _row(pair: Pair) -> dict[str, Any]:
    return {"trl": asdict(pair[0]), "selfcorrect": asdict(pair[1]), "ratio": _ratio(pair)}


if __name__ == "__main__":
    main()
