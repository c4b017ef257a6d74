"""The paper's own MATH run on paper: four sizes of model on 8, 64 and 512 H100, and recipes of several (docs/scale.md).

    python benchmarks/scale.py              # all of it: results/scale.json and the tables of docs/scale.md
    python benchmarks/scale.py --sizes 1.5B --cards 8 --output /tmp/scale.json --page /tmp/scale.md

Nothing is measured: formulas and assumptions are those of `selfcorrect plan` (docs/plan.md).
"""

import argparse
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

from selfcorrect.config import TrainConfig
from selfcorrect.config.recipe import load_recipe, validate
from selfcorrect.planning.hardware import CARDS
from selfcorrect.planning.plan import Devices, devices_for, make_plan
from selfcorrect.planning.work import assumed_lengths

HERE = Path(__file__).parent
RESULT, PAGE = HERE / "results" / "scale.json", HERE.parent / "docs" / "scale.md"
BEGIN, END = "<!-- table -->", "<!-- end of table -->"
BEGIN_SHIPPED, END_SHIPPED = "<!-- recipes -->", "<!-- end of recipes -->"
SHIPPED = (  # recipe, cards of a machine that train, such machines, cards that serve
    ("math_qwen2.5-7b-instruct_full_8x80gb", 4, 1, 4), ("math_qwen2.5-7b-instruct_full_8x80gb", 7, 1, 1),
    ("math_qwen2.5-32b-instruct_full_4x8x80gb", 8, 3, 8),
)  # fmt: skip
MODELS = {
    "1.5B": "Qwen/Qwen2.5-1.5B-Instruct", "7B": "Qwen/Qwen2.5-7B-Instruct", "32B": "Qwen/Qwen2.5-32B-Instruct",
    "70B": "meta-llama/Llama-3.3-70B-Instruct",
}  # fmt: skip
COUNTS = (8, 64, 512)
SERVED = ("32B", "70B")  # no card holds an engine with the whole model: a server on 4 or 8 of the cards samples
ATTEMPT, PROMPT, LIMIT = 350.0, 200.0, 1024  # tokens; the paper states none of them


def main(arguments: list[str] | None = None) -> None:
    """Every size on every number of cards, the JSON, the table."""
    parser = argparse.ArgumentParser(description="The paper's run, worked out for several sizes and numbers of cards.")
    parser.add_argument("--sizes", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--cards", nargs="+", type=int, default=list(COUNTS))
    parser.add_argument("--output", type=Path, default=RESULT)
    parser.add_argument("--page", type=Path, default=PAGE)
    options = parser.parse_args(arguments)
    rows = [worked_out(size, cards) for size in options.sizes for cards in options.cards]
    recipes = [of_recipe(*asked) for asked in SHIPPED]
    found = {"command": "python benchmarks/scale.py", "rows": rows, "recipes": recipes}
    options.output.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    if options.page.exists():
        text = options.page.read_text(encoding="utf-8")
        for begin, told, end in ((BEGIN, table(rows), END), (BEGIN_SHIPPED, shipped(recipes), END_SHIPPED)):
            before, _, rest = text.partition(begin)
            if end not in rest:
                parser.error(f"--page {options.page}: has no place for a table, which stands between {begin} and {end}")
            text = f"{before}{begin}\n{told}{end}{rest.partition(end)[2]}"
        options.page.write_text(text, encoding="utf-8")
    print(f"{table(rows)}\n{shipped(recipes)}", end="")


def paper_run(size: str) -> TrainConfig:
    """3,000 steps of 512 rollouts of two attempts, all weights."""
    stages = [
        {"name": "stage1", "objective": "stage1", "steps": 1000, "learning_rate": 5e-6, "beta1": 0.01, "beta2": 0.1},
        {"name": "stage2", "objective": "stage2", "steps": 2000, "learning_rate": 5e-6, "beta1": 0.01, "alpha": 10},
    ]
    config = validate({
        "model": {"path": MODELS[size], "weights": "bfloat16"}, "task": {"name": "math"}, "stages": stages,
        "rollouts": {"problems_per_step": 64, "rollouts_per_problem": 8, "max_new_tokens": LIMIT},
        "optimizer": {"micro_batch": 4, "gradient_checkpointing": True}, "sampler": "vllm",
        "vllm": {"server": "http://server:8000"} if size in SERVED else {},
    })  # fmt: skip
    assert isinstance(config, TrainConfig)
    return config


def worked_out(size: str, cards: int) -> dict[str, Any]:
    """One line of the table."""
    config = paper_run(size)
    serving = (4 if cards == 8 else 8) if size in SERVED else None
    training = cards - (serving or 0)
    nodes = math.ceil(training / 8)
    devices = Devices(CARDS["h100"], min(8, training), nodes, "fsdp2", engine=True, serving=serving)
    lengths = assumed_lengths(config, ATTEMPT, PROMPT)
    kinds = ("fsdp2", "hsdp") if nodes > 1 else ("fsdp2",)
    plans = [make_plan(config, replace(devices, parallel=kind), lengths) for kind in kinds]
    plan = min(plans, key=lambda plan: (not plan.fits, plan.hours))
    assert plan.pace
    return {
        "size": size, "cards": cards, "parallel": plan.devices.parallel,
        "peak_gib": plan.memory.peak / 2**30, "fullest": plan.memory.fullest,
        "fits": plan.fits, "tensor": plan.spread.tensor, "serving": serving or 0,
        "busy": min(training, config.rollouts.problems_per_step),
        "seconds": plan.pace.seconds, "step_seconds": plan.pace.total, "days": plan.hours / 24, "dollars": plan.dollars,
        "bound": plan.pace.bound,
    }  # fmt: skip


def of_recipe(name: str, gpus: int, nodes: int, serving: int) -> dict[str, Any]:
    """One line of the recipes' table."""
    config = load_recipe(name)
    assert isinstance(config, TrainConfig)
    plan = make_plan(config, devices_for(config, "h100", gpus, nodes, serving=serving))
    assert plan.pace
    return {
        "recipe": name, "gpus": gpus, "nodes": nodes, "serving": serving, "peak_gib": plan.memory.peak / 2**30,
        "fits": plan.fits, "seconds": plan.pace.seconds, "step_seconds": plan.pace.total, "days": plan.hours / 24,
        "dollars": plan.dollars, "bound": plan.pace.bound,
    }  # fmt: skip


def shipped(recipes: list[dict[str, Any]]) -> str:
    """As docs/scale.md shows it."""
    lines = [
        "| recipe | H100 that train, and serve | GiB a card | rollouts, s | update, s | sync, s | a step, s | days "
        "| dollars |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in recipes:
        assert row["fits"]
        told = " | ".join(f"{row['seconds'][name]:.1f}" for name in ("rollouts", "update", "sync"))
        lines.append(
            f"| `{row['recipe']}` | {row['gpus'] * row['nodes']}, {row['serving']} | {row['peak_gib']:.0f} | {told} "
            f"| {row['step_seconds']:.0f} | {row['days']:.1f} | {row['dollars']:,.0f} |"
        )
    return "\n".join(lines) + "\n"


def table(rows: list[dict[str, Any]]) -> str:
    """As docs/scale.md shows it."""
    lines = [
        "| model | H100 | shards | GiB a card, of 79.1 | rollouts, s | reference, s | update, s | sync, s | a step, s "
        "| days | dollars | bound by |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        seconds = row["seconds"]
        told = [f"{seconds.get(name, 0):.1f}" for name in ("rollouts", "reference", "update", "sync")]
        fits = f"{row['peak_gib']:.0f} ({row['fullest']})" + ("" if row["fits"] else ", does not fit")
        idle = row["cards"] - row["serving"] - row["busy"]
        told_of = f"{row['cards']}, {row['serving']} of them serve" if row["serving"] else row["cards"]
        lines.append(
            f"| {row['size']} | {told_of} | {row['parallel']} | {fits} | {' | '.join(told)} "
            f"| {row['step_seconds']:.0f} | {row['days']:.1f} | {row['dollars']:,.0f} | {row['bound']}"
            + (f"; {idle} cards have no problem |" if idle else " |")
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
