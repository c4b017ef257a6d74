"""A small run folder of known numbers, written as docs/run_folder.md says."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

HOSTILE = '</script><img src=x onerror="document.title=1">\u2028<!--<b>&amp;\ud800'
COUNTS = {"fixed": 3, "broken": 2, "kept_right": 10, "kept_wrong": 5}  # of 20 problems: 60 % -> 65 %
_OUTCOMES = {
    "fixed": ("wrong", "correct"),
    "broken": ("correct", "truncated"),
    "kept_right": ("correct", "correct"),
    "kept_wrong": ("wrong", "no_answer"),
    "left_out": ("grader_failed", "correct"),
}
CONFIG = """\
kind: train
seed: 7
output: /home/someone/runs
rollouts: {problems_per_step: 4, rollouts_per_problem: 2}
stages:
- {name: stage1, objective: stage1, steps: 4, beta2: 0.1}
- {name: stage2, objective: stage2, steps: 6, alpha: 10.0}
algorithm: {baseline: leave_one_out, normalize_std: false}
"""


def estimate(value: float, half: float = 0.02) -> dict[str, float]:
    return {"value": value, "low": value - half, "high": value + half}


def summary(
    *accuracy: float, fixed: float = 0.15, broken: float = 0.1, half: float = 0.02, n: int = 20
) -> dict[str, Any]:
    """A summary whose delta is the difference of its accuracies; every interval is value -/+ half."""
    return {
        "n": n,
        "accuracy": [estimate(a, half) for a in accuracy],
        "delta": estimate(accuracy[-1] - accuracy[0], half),
        "fixed": estimate(fixed, half),
        "broken": estimate(broken, half),
        "fix_rate": estimate(0.375, half),
        "unchanged": estimate(0.25, half),
        "outcomes": [{"correct": 12, "wrong": 8}, {"correct": 13, "wrong": 6, "truncated": 1}],
    }


def rollout(number: int, category: str, text: str = "", **extra: Any) -> dict[str, Any]:
    attempts = [
        {"text": text or f"problem {number}\nends in {a}", "outcome": outcome, "answer": str(number + a)}
        for a, outcome in enumerate(_OUTCOMES[category], 1)
    ]
    return {"id": f"p{number}", "prompt": f"problem {number}", "reference": {}, "attempts": attempts, **extra}


def step_row(step: int, **extra: Any) -> dict[str, Any]:
    stage = "stage1" if step <= 4 else "stage2"
    row = {"step": step, "stage": stage, "rewards": [0.4, 0.5], "delta": 0.1, "fixed": 0.2, "broken": 0.1}
    row["accuracy"] = row["rewards"]
    return (
        row | {"unchanged": 0.3, "kl": [0.1, 0.2], "grad_norm": 1.0, "tokens_per_second": 2e4, "skipped": False} | extra
    )


def write_lines(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write_evaluation(run: Path, name: str, main: Mapping[str, Any], step: int = 10, **extra: Any) -> None:
    folder = run / "evaluations"
    folder.mkdir(parents=True, exist_ok=True)
    data = {"name": name, "step": step, "task": "countdown", "split": "test", "decoding": "greedy", "summary": main}
    (folder / f"{name}.json").write_text(json.dumps(data | extra), encoding="utf-8")


def make_run(tmp_path: Path) -> Path:
    """A finished run: base and two stages, controls, an external set, 10 steps of which one was skipped."""
    run = tmp_path / "run"
    write_evaluation(run, "base", summary(0.5, 0.4), step=0)
    write_evaluation(run, "stage1", summary(0.52, 0.55), step=4)
    external = [{"path": "elsewhere.jsonl", "summary": summary(0.3, 0.35) | {"outcomes": [{"unreadable": 37}]}}]
    controls = {"swapped": summary(0.01, 0.2), "independent": summary(0.5, 0.65)}
    write_evaluation(run, "stage2", summary(0.6, 0.65), controls=controls, external=external)
    rows = [category for category, n in COUNTS.items() for _ in range(n)]
    write_lines(run / "evaluations" / "stage2.rollouts.jsonl", [rollout(i, c) for i, c in enumerate(rows)])
    write_lines(run / "rollouts.jsonl", [rollout(99, "fixed", step=5, stage="stage2")])
    skipped = {"skipped": True, "skip_reason": "gradient not finite", "grad_norm": float("nan")}
    write_lines(run / "metrics.jsonl", [step_row(s, **(skipped if s == 7 else {})) for s in range(1, 11)])
    (run / "config.yaml").write_text(CONFIG, encoding="utf-8")
    environment = {"command": "/home/someone/bin/selfcorrect train r.yaml", "seed": 7, "versions": {"python": "3.11"}}
    (run / "environment.json").write_text(json.dumps(environment), encoding="utf-8")
    return run
