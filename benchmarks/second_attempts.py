"""What several tokens of a row in a step gain at sampling: benchmarks/results/second_attempts.json.

    python benchmarks/second_attempts.py RECIPE [key=value ...] [--problems 16] [--rollouts 1] [--pairs 3]

Rollouts of held-out problems of a recipe's task, side by side, at its evaluation.temperature (0, greedy, where it names
none). Both attempts are sampled with one token a step and with several (samplers/ahead.py) in turn, pair after pair,
from the same prompts and by the same numbers; second attempts follow the first ones. Printed are the seconds of each
way, how often it looked how far it is (on a processor after every step), the ratio of the seconds, and how many
attempts say the same both ways: all, up to rounding.
"""

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch

from selfcorrect.api import read_config
from selfcorrect.config import TrainConfig
from selfcorrect.models.loading import load_model, use_threads
from selfcorrect.runs.folder import environment
from selfcorrect.samplers.ahead import ONE_BY_ONE
from selfcorrect.samplers.base import Far
from selfcorrect.samplers.graphs import AS_THEY_ARE, FIXED
from selfcorrect.samplers.transformers import TransformersSampler
from selfcorrect.tasks import make_task
from selfcorrect.types import Completion, SamplingParams

RESULTS = Path(__file__).parent / "results" / "second_attempts.json"
PLAIN, AHEAD = "one a step", "several a step"
Prompts = list[tuple[int, ...]]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print a line for each pair, write the results file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--problems", type=int, default=16)
    parser.add_argument("--rollouts", type=int, default=1, help="of each problem")
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--label", help="of the results in their file; by default the model's name")
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_intermixed_args(arguments)
    config = read_config(options.recipe, *options.overrides)
    if not isinstance(config, TrainConfig):
        parser.error(f"{options.recipe}: is no recipe of a training")
    use_threads(config.threads)
    lm, task = load_model(config.model), make_task(config.task)
    problems = [problem for problem in task.held_out(options.problems) for _ in range(options.rollouts)]
    params = SamplingParams(config.evaluation.temperature, config.rollouts.max_new_tokens, config.seed)
    first: Prompts = [lm.chat.first_prompt(problem.prompt) for problem in problems]
    shapes = FIXED if lm.device.type == "cuda" else AS_THEY_ARE
    sides = {
        PLAIN: Side(TransformersSampler(lm, len(first), replace(shapes, cost=ONE_BY_ONE))),
        AHEAD: Side(TransformersSampler(lm, len(first), shapes)),
    }
    pairs = list[dict[str, Any]]()
    for _ in range(options.pairs):
        pair = dict[str, Any]()
        for attempt in (1, 2):
            prompts = first
            if attempt == 2:
                prompts = [
                    lm.chat.next_prompt(context, done.token_ids, task.correction_prompt(problem))
                    for context, done, problem in zip(first, sides[PLAIN].said, problems, strict=True)
                ]
            pair[f"attempt {attempt}"] = compared(sides, prompts, replace(params, seed=params.seed + attempt))
        print(*(f"{name}: {told(found)}" for name, found in pair.items()), sep="\n", flush=True)
        pairs.append(pair)
    ratios = {name: [pair[name]["ratio"] for pair in pairs] for name in pairs[0]}
    found = {
        **environment(config.seed), "problems": len(problems), "temperature": params.temperature,
        "precision": str(lm.compute_dtype).removeprefix("torch."),
        "ratio": {name: median(each) for name, each in ratios.items()},
        "range": {name: [min(each), max(each)] for name, each in ratios.items()}, "pairs": pairs,
    }  # fmt: skip
    kept = json.loads(options.output.read_text()) if options.output.is_file() else {}
    kept[options.label or Path(config.model.path).name] = found
    options.output.write_text(json.dumps(kept, indent=1) + "\n")
    print("median ratio  " + "  ".join(f"{name} {ratio:.2f}" for name, ratio in found["ratio"].items()))


class Side:
    """One way of sampling, which keeps its cache from attempt to attempt. said: in its last call."""

    def __init__(self, sampler: TransformersSampler) -> None:
        self._sampler, self.said = sampler, list[Completion]()

    def sample(self, prompts: Prompts, params: SamplingParams) -> dict[str, float]:
        """Seconds, tokens, and how often was looked how far it is: on a processor after every step."""
        looks, begun = list[Far](), time.perf_counter()
        self._sampler.watch = looks.append
        self.said = self._sampler.sample(prompts, params)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds, tokens = time.perf_counter() - begun, sum(len(each.token_ids) for each in self.said)
        return {"seconds": seconds, "tokens": tokens, "looks": len(looks)}


def compared(sides: dict[str, Side], prompts: Prompts, params: SamplingParams) -> dict[str, Any]:
    found: dict[str, Any] = {name: side.sample(prompts, params) for name, side in sides.items()}
    said = [[each.token_ids for each in side.said] for side in sides.values()]
    found["ratio"] = found[PLAIN]["seconds"] / found[AHEAD]["seconds"]
    found["the same"] = sum(one == other for one, other in zip(*said, strict=True))
    return found


def told(found: dict[str, Any]) -> str:
    plain, ahead = found[PLAIN], found[AHEAD]
    return (
        f"{plain['tokens']} tokens, {plain['seconds']:.1f} s in {plain['looks']} looks, {ahead['seconds']:.1f} s in "
        f"{ahead['looks']}: {found['ratio']:.2f} times as fast, {found['the same']} attempts say the same"
    )


if __name__ == "__main__":
    main()
