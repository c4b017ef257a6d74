"""One GPU, under ten minutes: the tests marked gpu, then a lab run with a larger model.

    make gpu-check        or        python benchmarks/gpu_check.py [--steps 60] [--base-steps 1500]

Builds a Llama of about 58 million parameters for the lab, trains it as a base model, runs both stages on it, and
prints sampled tokens a second, update tokens a second and the lab's figures, kept in benchmarks/results/gpu_check.json.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

import selfcorrect
from selfcorrect.config import LabBaseConfig
from selfcorrect.lab.base import CORRECTION, PROMPT, train_base
from selfcorrect.runs.display import PlainObserver
from selfcorrect.runs.folder import environment

RESULTS = Path(__file__).parent / "results" / "gpu_check.json"


def main() -> int:
    """Exit status 0 where the tests pass and both stages ran; 2 where there is no accelerator."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=60, help="training steps of each stage")
    parser.add_argument("--base-steps", type=int, default=1500)
    parser.add_argument("--hidden", type=int, default=768)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--skip-tests", action="store_true")
    parser.add_argument("--device", default="auto", choices=["auto", "cuda", "mps", "cpu"])
    options = parser.parse_args()
    if options.device == "auto":
        options.device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else ""
    if not options.device:
        print("no accelerator here: gpu-check is ready to run where there is one")
        return 2
    tests = None if options.skip_tests else subprocess.call([sys.executable, "-m", "pytest", "-m", "gpu", "tests/gpu"])
    with tempfile.TemporaryDirectory() as folder:
        base, base_seconds = make_base(Path(folder), options)
        run = selfcorrect.train(recipe(base, Path(folder), options), observer=PlainObserver())
        figures = read(run) | {"base_seconds": base_seconds, "tests_exit_status": tests}
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps({**environment(0), **figures}, indent=1) + "\n")
    print(json.dumps(figures, indent=1))
    return tests or 0


def make_base(folder: Path, options: argparse.Namespace) -> tuple[Path, float]:
    """A larger base model for the lab; its folder, and the seconds it took."""
    began = time.monotonic()
    config = LabBaseConfig(
        kind="lab_base",
        output=str(folder / "base"),
        device=options.device,
        hidden_size=options.hidden,
        layers=options.layers,
        heads=options.hidden // 64,
        steps=options.base_steps,
        learning_rate=4e-4,
        matrix_learning_rate=2e-3,
    )
    return train_base(config), time.monotonic() - began


def recipe(base: Path, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Both stages, with batches large enough to keep a GPU busy."""
    stage = {"steps": options.steps, "learning_rate": 5e-5, "beta1": 0.003}
    return {
        "name": "gpu_check",
        "output": str(folder),
        "model": {"path": str(base), "device": options.device},
        "task": {"prompt": PROMPT, "correction_prompt": CORRECTION},
        "rollouts": {"problems_per_step": 128, "rollouts_per_problem": 8, "max_new_tokens": 16, "rows_at_once": 2048},
        "optimizer": {"micro_batch": 1024},
        "evaluation": {"problems": 2000},
        "stages": [
            {"name": "stage1", "objective": "stage1", "beta2": 0.3, **stage},
            {"name": "stage2", "objective": "stage2", "alpha": 10.0, **stage},
        ],
    }


def read(run: Path) -> dict[str, Any]:
    """The run's figures: tokens a second (median over steps) and every evaluation's summary."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    rows = rows[3:] or rows  # the first steps warm up
    sampled = statistics.median(row["sampled_tokens"] / row["seconds_by_part"]["rollouts"] for row in rows)
    updated = statistics.median(row["sampled_tokens"] / row["seconds_by_part"]["update"] for row in rows)
    evaluations = sorted((run / "evaluations").glob("*.json"), key=lambda path: path.stat().st_mtime)
    return {
        "sampled_tokens_per_second": round(sampled),
        "update_tokens_per_second": round(updated),
        "step_seconds": statistics.median(row["seconds"] for row in rows),
        "evaluations": {path.stem: json.loads(path.read_text())["summary"] for path in evaluations},
    }


if __name__ == "__main__":
    sys.exit(main())
