"""What each of two FSDP2 processes holds at the most, part by part of a run: loading, sharding, steps, a stage's end.

    python benchmarks/rank_memory.py --model FOLDER       # SmolLM2-135M in float32: some minutes
    python benchmarks/rank_memory.py --tiny               # the lab's model

The kernel's own count of the most that a process held (VmHWM), which is set back between the parts; Linux alone. Steps
are tiny, so that what is held for the weights shows; freed memory is given back (models/freed.py).
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from workload import GIVEN_BACK, SEED, command_of, keep

RESULT = Path(__file__).parent / "results" / "rank_memory.json"
_FILE = "RANK_MEMORY_FILE"  # where a process writes what it held, with its rank behind it
_GB = 1e9
_RECIPE = {
    "seed": SEED, "name": "run", "parallel": "fsdp2", "threads": 1,
    "model": {"precision": "float32", "device": "cpu"},
    "rollouts": {"problems_per_step": 2, "rollouts_per_problem": 2, "max_new_tokens": 4},
    "stages": [{"name": "stage2", "objective": "stage2", "steps": 2, "learning_rate": 1.0e-6}],
    "optimizer": {"micro_batch": 1}, "evaluation": {"problems": 2, "controls": False}, "log": {"trackers": []},
}  # fmt: skip
_LAB_TASK = {"max_number": 100, "limit": 200, "prompt": "{numbers} : {target}", "correction_prompt": "?"}


def main(arguments: list[str] | None = None) -> None:
    """Full tuning and LoRA, the table, results/rank_memory.json."""
    parser = argparse.ArgumentParser(description="Peak memory of two FSDP2 processes, by part of a run.")
    parser.add_argument("--model", help="a folder of Hugging Face layout")
    parser.add_argument("--tiny", action="store_true", help="the lab's model")
    parser.add_argument("--output", type=Path, default=RESULT)
    options = parser.parse_args(arguments)
    if bool(options.model) == options.tiny:
        parser.error("name --model FOLDER, or take --tiny")
    found: dict[str, Any] = {tuning: measured(options.model or "lab", tuning) for tuning in ("full", "lora")}
    for tuning, ranks in found.items():
        for rank, parts in enumerate(ranks):
            print(f"{tuning}, rank {rank}: " + ", ".join(f"{name} {size / _GB:.2f} GB" for name, size in parts.items()))
    packages, model = ["selfcorrect", "torch", "transformers", "peft"], Path(options.model or "lab").name
    keep(options.output, command_of(__file__, arguments), packages, model=model, bytes=found)


def measured(model: str, tuning: str) -> list[dict[str, int]]:
    """Bytes by part, of each rank."""
    import yaml

    with tempfile.TemporaryDirectory() as scratch:
        recipe, kept = Path(scratch) / "recipe.yaml", Path(scratch) / "held"
        about = {**_RECIPE, "model": {**_RECIPE["model"], "path": model, "tuning": tuning}, "output": scratch}  # type: ignore[dict-item]
        recipe.write_text(yaml.safe_dump(about | ({"task": _LAB_TASK} if model == "lab" else {})), encoding="utf-8")
        launcher = "torch.distributed.run --standalone --nproc-per-node 2"
        around = {_FILE: str(kept), "SELFCORRECT_PLAN": "off", "OMP_NUM_THREADS": "1", **GIVEN_BACK}
        subprocess.run(
            [sys.executable, "-m", *launcher.split(), __file__, "train", str(recipe)], check=True,
            stdout=subprocess.DEVNULL, env=os.environ | around,
        )  # fmt: skip
        return [json.loads(Path(f"{kept}-{rank}").read_text(encoding="utf-8")) for rank in range(2)]


def watched() -> None:
    """One rank: the command, with its memory looked at after each part."""
    from selfcorrect import cli
    from selfcorrect.parallel.sharding import Sharded
    from selfcorrect.planning.beside import measured_peak
    from selfcorrect.runs.loop import Loop

    held: dict[str, int] = {}

    def after(owner: Any, name: str, part: str) -> None:
        deed: Callable[..., Any] = getattr(owner, name)

        def does(*args: Any, **kwargs: Any) -> Any:
            result = deed(*args, **kwargs)
            look(part)
            return result

        setattr(owner, name, does)

    def evaluated(loop: Any, name: str) -> None:
        look("a stage's end" if loop.trainer.progress.step else "sharding")  # what came before it
        evaluate(loop, name)
        look("evaluating and steps")

    def finished(loop: Any, index: int) -> None:
        look("evaluating and steps")
        finish(loop, index)

    def look(part: str) -> None:
        held[part] = max(held.get(part, 0), int(measured_peak(None)))
        Path("/proc/self/clear_refs").write_text("5")

    look("before")
    after(Sharded, "load", "loading")
    after(Sharded, "spread", "sharding")
    loop: Any = Loop
    evaluate, loop._evaluate = loop._evaluate, evaluated
    finish, loop._finish_stage = loop._finish_stage, finished
    try:
        cli.app(standalone_mode=False)
    finally:
        Path(f"{os.environ[_FILE]}-{os.environ['RANK']}").write_text(json.dumps(held), encoding="utf-8")


if __name__ == "__main__":
    watched() if _FILE in os.environ else main()
