"""Why Pair-SFT breaks the lab's model: the same traces, with and without the words its second attempts open with.

    python benchmarks/lab_openings.py [--steps 200] [--learning-rate 1e-5 1e-4] [--seed 0]

Pair-SFT takes a right first attempt as the target of the second. The lab's model opens every second attempt with a
verdict and a decision ("wrong change"), and no first attempt does, so the targets are nothing it would write (10 nats a
token at the start). Here one run collects the traces; then the same traces are trained on as they are, and with "wrong
change" laid before the second attempt, at each learning rate. Results: benchmarks/results/lab_openings.json.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import selfcorrect
from selfcorrect.lab.base import CORRECTION, PROMPT
from selfcorrect.runs.display import PlainObserver
from selfcorrect.runs.folder import environment

RESULTS = Path(__file__).parent / "results" / "lab_openings.json"
OPENING = "wrong change \n "  # true of every pair: the first attempt is wrong, and the second another one


def main() -> None:
    """Collect once, train four times, write the results file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--learning-rate", type=float, nargs="+", default=[1e-5, 1e-4])
    parser.add_argument("--collect", type=int, default=6400)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", default="runs/lab_openings")
    options = parser.parse_args()
    collected: Path | None = None
    rows = []
    for rate in options.learning_rate:
        for opened in (False, True):
            settings: dict[str, Any] = {"collect": options.collect}
            if collected:
                settings = {"traces": str(with_openings(collected) if opened else collected)}
            name = f"{'opened' if opened else 'plain'}-{rate:g}"
            run = selfcorrect.train(recipe(name, rate, settings, options), observer=PlainObserver())
            collected = collected or run / "traces" / "sft-1.jsonl"
            rows.append({"opening": OPENING if opened else "", "learning_rate": rate, **read(run)})
            print(json.dumps(rows[-1]))
    RESULTS.write_text(json.dumps({**environment(options.seed), "runs": rows}, indent=1) + "\n")


def recipe(name: str, rate: float, settings: dict[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    """The lab's Pair-SFT of recipes/compare_lab.yaml."""
    stage = {"name": "sft", "objective": "pair_sft", "steps": options.steps, "learning_rate": rate, "batch": 128}
    task = {"name": "countdown", "max_number": 100, "limit": 200, "prompt": PROMPT, "correction_prompt": CORRECTION}
    return {
        "name": name, "output": options.output, "seed": options.seed,
        "task": task,
        "rollouts": {"problems_per_step": 16, "rollouts_per_problem": 8, "max_new_tokens": 16},
        "optimizer": {"schedule": "linear"},
        "evaluation": {"problems": 2000, "offset": 2000, "controls": False},
        "stages": [{**stage, **settings}],
    }  # fmt: skip


def with_openings(traces: Path) -> Path:
    """The same traces with the opening before each second attempt; the texts are tokenised anew."""
    opened = traces.with_name("opened.jsonl")
    with traces.open(encoding="utf-8") as lines, opened.open("w", encoding="utf-8") as out:
        for line in lines:
            trace = json.loads(line)
            second = {key: value for key, value in trace["second"].items() if key != "token_ids"}
            trace["second"] = {**second, "text": OPENING + second["text"]}
            out.write(json.dumps(trace) + "\n")
    return opened


def read(run: Path) -> dict[str, Any]:
    """First and last loss, and the last evaluation's figures."""
    losses = [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    summary = json.loads((run / "evaluations" / "sft.json").read_text())["summary"]
    return {"first_loss": losses[0], "last_loss": losses[-1], "summary": summary}


if __name__ == "__main__":
    main()
