"""Two processes over gloo do what one does: DDP and FSDP2, uneven groups, micro-batches that do not divide."""

import os
import re
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from selfcorrect import rollout
from selfcorrect.learning.record import StepResult, Update
from selfcorrect.learning.training import Trainer
from selfcorrect.parallel.ranks import Several
from selfcorrect.runs.checkpoint import Checkpoint, load_newest
from tests.support.ranks import Ended, launch
from tests.support.runs import check_same, end_state, go, read_rows, recipe, tuned

pytestmark = pytest.mark.usefixtures("lucky")
STAGE = {"name": "a", "objective": "stage2", "steps": 3, "learning_rate": 0.003}
SIZES = {"problems_per_step": 3, "rollouts_per_problem": 4, "max_new_tokens": 5, "rows_at_once": 512}


def uneven(output: Path, model: Path, name: str, parallel: str = "auto", **changes: Any) -> dict[str, Any]:
    """Three groups of four on two ranks: one and two of them; micro-batches of three rows: two and three of them."""
    settings = {
        "stages": [STAGE], "rollouts": SIZES, "optimizer": {"warmup_steps": 0, "micro_batch": 3}, "parallel": parallel,
        "evaluation": {"problems": 3, "controls": True}, "checkpoint": {"every": 1, "keep": 8},
        "log": {"trackers": [], "rollouts_every": 1, "rollouts_kept": 12}, **changes,
    }  # fmt: skip
    return recipe(output, model, name, **settings)


def newest(run: Path) -> Checkpoint:
    found, warnings = load_newest(run / "checkpoints")
    assert found
    assert not warnings
    return found


def gap(one: Path, other: Path) -> float:
    """The largest difference between two runs' weights."""
    mine, theirs = newest(one).tensors, newest(other).tensors
    assert mine.keys() == theirs.keys()
    return max(float((mine[name] - theirs[name]).abs().max()) for name in mine if name.startswith("model/"))


def well(ended: list[Ended]) -> None:
    assert [rank.status for rank in ended] == [0] * len(ended), ended[0].err + ended[-1].err
    assert [rank.out for rank in ended[1:]] == [""] * (len(ended) - 1)  # one of them speaks


STD = {"algorithm": {"normalize_std": True}}
HELD = {"reference": "base", "kl_estimator": "k1"}


@pytest.mark.parametrize(
    ("parallel", "tuning", "changes"),
    [
        ("ddp", "full", STD),
        ("fsdp2", "full", {}),
        *(
            pytest.param(parallel, tuning, changes, marks=pytest.mark.nightly)
            for parallel, tuning, changes in [
                ("ddp", "lora", STD), ("fsdp2", "lora", {}), ("ddp", "qlora", {}),
                ("ddp", "full", {"stages": [{**STAGE, "offline_first": 0.5}]}),
                ("fsdp2", "full", {"stages": [{**STAGE, "offline_first": 0.5}], "algorithm": HELD}),
                ("fsdp2", "lora", {"stages": [{**STAGE, "objective": "stage1", "offline_first": 0.5}]}),
                ("fsdp2", "full", {"optimizer": {"warmup_steps": 0, "micro_batch": 3, "padding_free": True, "gradient_checkpointing": True}}),
                ("ddp", "full", {"stages": [{"name": "a", "objective": "pair_sft", "steps": 3, "learning_rate": 0.003, "collect": 9, "batch": 5}]}),
                ("fsdp2", "full", {"stages": [{"name": "a", "objective": "star", "iterations": 3, "steps": 3, "learning_rate": 0.003, "collect": 9, "batch": 5}]}),
                ("ddp", "full", {"rollouts": {**SIZES, "problems_per_step": 1}}),
                ("fsdp2", "full", {"rollouts": {**SIZES, "problems_per_step": 1}}),
                ("ddp", "full", {"evaluation": {"problems": 5, "every": 1, "samples": 2, "temperature": 0.7}}),
            ]
        ),
    ],
)  # fmt: skip
def test_two_processes_learn_what_one_does(
    parallel: str, tuning: str, changes: dict[str, Any], model: Path, tmp_path: Path
) -> None:
    """Weights to 1e-5 in float32; attempts, grades and evaluations the same."""
    ranks = launch(tmp_path / "log", tuned(uneven(tmp_path, model, "two", parallel, **changes), tuning))
    one = go(tuned(uneven(tmp_path, model, "one", **changes), tuning))
    well(ranks.ended())
    two = tmp_path / "two"
    assert gap(one, two) < 1e-5
    for name in ("rollouts.jsonl", "evaluations/base.rollouts.jsonl", "evaluations/a.rollouts.jsonl"):
        if (one / name).exists():
            assert (one / name).read_text() == (two / name).read_text()
    for mine, theirs in zip(*(read_rows(run / "metrics.jsonl") for run in (one, two)), strict=True):
        for name in ("rewards", "delta", "fixed", "unchanged", "equal_groups", "completions", "sampled_tokens"):
            assert mine[name] == theirs[name] or mine[name] == pytest.approx(theirs[name], nan_ok=True)
        for name in ("loss", "grad_norm", "kl", "entropy"):
            assert mine[name] == pytest.approx(theirs[name], rel=1e-4, abs=1e-5)
