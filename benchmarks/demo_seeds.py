"""The demo with several seeds, against its bar: benchmarks/results/demo_seeds.json.

    python benchmarks/demo_seeds.py [--seeds 0 1 2 3] [--precisions float32 bfloat16] [--output runs/seeds]
                                    [--external FILE.jsonl] [KEY=VALUE ...]

Runs that are complete are read, not repeated; one that was stopped goes on. The bar (greedy, 2,000 held-out problems,
after the last stage): delta(t1,t2) at least +4.4 points with its 95 % interval above zero, i->c at least 5.8, c->i at
most 1.4, Accuracy@t2 at least 10 points over the base model's, Accuracy@t1 not below the base model's.
"""

import argparse
import itertools
import json
from pathlib import Path
from typing import Any

import selfcorrect
from selfcorrect.config.shipped import shipped_recipe
from selfcorrect.runs.display import PlainObserver

RESULTS = Path(__file__).parent / "results" / "demo_seeds.json"


def main() -> None:
    """Train or read each seed's run, print a line for each, write the results file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3])
    parser.add_argument("--precisions", nargs="+", default=["float32", "bfloat16"], choices=["float32", "bfloat16"])
    parser.add_argument("--output", default="runs/seeds")
    parser.add_argument("--external", help="a JSONL file of countdown problems to evaluate on as well")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("overrides", nargs="*")
    options = parser.parse_args()
    extra = [f"evaluation.external={json.dumps([options.external])}"] if options.external else []
    rows = []
    for precision, seed in itertools.product(options.precisions, options.seeds):
        name = f"{precision}-seed{seed}"
        run = Path(options.output) / name
        if not (run / "config.yaml").exists():
            settings = [f"seed={seed}", f"model.precision={precision}", f"name={name}", f"output={options.output}"]
            selfcorrect.train(shipped_recipe("demo"), *settings, *extra, *options.overrides, observer=PlainObserver())
        elif not (run / "final").exists():
            selfcorrect.train(run, resume_run=True, observer=PlainObserver())
        rows.append(read(run, seed, precision))
        print(line(rows[-1]), flush=True)
    options.results.write_text(json.dumps({"bar": __doc__.split("The bar ")[1].strip(), "runs": rows}, indent=1) + "\n")


def read(run: Path, seed: int, precision: str) -> dict[str, Any]:
    """One run's evaluations, its environment, its time, and which parts of the bar it clears."""
    evaluations = {path.stem: json.loads(path.read_text()) for path in (run / "evaluations").glob("*.json")}
    steps = [json.loads(text) for text in (run / "metrics.jsonl").read_text().splitlines()]
    ordered = sorted(evaluations.values(), key=lambda evaluation: evaluation["step"])
    base, last = ordered[0]["summary"], ordered[-1]["summary"]
    return {
        "seed": seed,
        "precision": precision,
        "environment": json.loads((run / "environment.json").read_text()),
        "training_seconds": round(sum(step["seconds"] for step in steps)),
        "evaluation_seconds": round(sum(evaluation["seconds"] for evaluation in ordered)),
        "bar": bar(base, last),
        "room": room(base, last),
        "evaluations": {
            e["name"]: {key: e[key] for key in ("step", "summary", "sampled", "controls", "external")} for e in ordered
        },
    }


def bar(base: dict[str, Any], last: dict[str, Any]) -> dict[str, bool]:
    """Each condition of the bar, by name."""
    return {
        "delta at least 4.4, interval above 0": last["delta"]["value"] >= 0.044 and last["delta"]["low"] > 0,
        "i->c at least 5.8": last["fixed"]["value"] >= 0.058,
        "c->i at most 1.4": last["broken"]["value"] <= 0.014,
        "t2 at least 10 over base": last["accuracy"][1]["value"] - base["accuracy"][1]["value"] >= 0.10,
        "t1 not below base": last["accuracy"][0]["value"] >= base["accuracy"][0]["value"],
        "at least 2000 problems": last["n"] >= 2000,
    }


def room(base: dict[str, Any], last: dict[str, Any]) -> dict[str, float]:
    """Points on the good side of each condition's figure."""
    before, after = ([estimate["value"] for estimate in summary["accuracy"]] for summary in (base, last))
    over = {
        "delta": last["delta"]["value"] - 0.044,
        "i->c": last["fixed"]["value"] - 0.058,
        "c->i": 0.014 - last["broken"]["value"],
        "t2": after[1] - before[1] - 0.10,
        "t1": after[0] - before[0],
    }
    return {name: round(100 * value, 2) for name, value in over.items()}


def line(row: dict[str, Any]) -> str:
    """A run in one line: every evaluation's figures in percent, and the conditions missed."""
    parts = []
    for name, evaluation in row["evaluations"].items():
        s = evaluation["summary"]
        t1, t2 = (100 * estimate["value"] for estimate in s["accuracy"])
        flows = f"i->c {100 * s['fixed']['value']:.1f} c->i {100 * s['broken']['value']:.1f}"
        parts.append(f"{name} {t1:.1f} -> {t2:.1f} ({100 * s['delta']['value']:+.1f}; {flows})")
    missed = [name for name, holds in row["bar"].items() if not holds]
    least = min(row["room"], key=row["room"].__getitem__)
    verdict = (
        f"clears the bar, by {row['room'][least]:.1f} points at least ({least})"
        if not missed
        else f"misses: {', '.join(missed)}"
    )
    which = f"{row['precision']}, seed {row['seed']}"
    return f"{which}: {'; '.join(parts)}; {row['training_seconds']} s of training; {verdict}"


if __name__ == "__main__":
    main()
