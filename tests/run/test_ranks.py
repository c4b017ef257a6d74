"""Two processes over gloo do what one does: DDP and FSDP2, uneven groups, micro-batches that do not divide."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from selfcorrect import rollout
from selfcorrect.learning.training import Trainer
from selfcorrect.parallel.ranks import Several
from selfcorrect.parallel.sharding import Sharded
from selfcorrect.parallel.shards import tensors_in
from selfcorrect.runs.checkpoint import Checkpoint, load_newest
from tests.run.conftest import ENDS
from tests.support.ranks import Ended, launch
from tests.support.runs import end_state, go, read_rows, recipe, tuned
from tests.support.tiny import tiny_lm

TRAINER: Any = Trainer  # to plant things in
SEVERAL: Any = Several
SHARDED: Any = Sharded
ROLLOUT: Any = rollout
pytestmark = pytest.mark.usefixtures("lucky")
# AdamW moves a weight whose gradient nearly cancels by whatever rounding left of it; not with so much under the fraction.
EPSILON = 1e-4
STAGE = {"name": "a", "objective": "stage2", "steps": 3, "learning_rate": 0.003}
SIZES = {"problems_per_step": 3, "rollouts_per_problem": 4, "max_new_tokens": 5, "rows_at_once": 512}


def uneven(output: Path, model: Path, name: str, parallel: str = "auto", **changes: Any) -> dict[str, Any]:
    """Three groups of four on two ranks: one and two of them; micro-batches of three rows: two and three of them."""
    settings = {
        "stages": [STAGE], "rollouts": SIZES, "optimizer": {"warmup_steps": 0, "micro_batch": 3, "epsilon": EPSILON}, "parallel": parallel,
        "evaluation": {"problems": 3, "controls": False}, "checkpoint": {"every": 1, "keep": 8},
        "log": {"trackers": [], "rollouts_every": 1, "rollouts_kept": 12}, **changes,
    }  # fmt: skip
    return recipe(output, model, name, **settings)


def newest(run: Path) -> Checkpoint:
    found, warnings = load_newest(run / "checkpoints")
    assert found
    assert not warnings
    return replace(found, tensors=tensors_in(run / "checkpoints" / f"step-{found.step:06d}"))


def gap(one: Path, other: Path) -> float:
    """How far two runs' weights are apart."""
    mine, theirs = newest(one).tensors, newest(other).tensors
    assert mine.keys() == theirs.keys()
    return max(float((mine[name] - theirs[name]).abs().max()) for name in mine if name.startswith("model/"))


def check_equal(run: Path, other: Path) -> None:
    """To the bit, but for the order in which safetensors puts what a shard says of itself."""
    states = [end_state(each) for each in (run, other)]
    for state in states:
        for name in [name for name in state if re.search(r"/shard-|step-\d+/manifest", name)]:
            del state[name]
    assert states[0] == states[1]
    mine, theirs = (newest(each).tensors for each in (run, other))
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)


def well(ended: list[Ended]) -> None:
    assert [rank.status for rank in ended] == [0] * len(ended), ended[0].err + ended[-1].err
    assert [rank.out for rank in ended[1:]] == [""] * (len(ended) - 1)  # one of them speaks


ADAPTED = {"name": "a", "objective": "stage1", "steps": 2, "learning_rate": 0.003, "adaptive": {"target": 0.1}}
LATER: dict[str, Any] = {"stages": [{**STAGE, "objective": "stage1", "steps": 2}]}
STD: dict[str, Any] = {"algorithm": {"normalize_std": True}, "evaluation": {"problems": 3, "controls": True}}
BRIEF: dict[str, Any] = {"stages": [{**STAGE, "steps": 2}]}
ONE_STEP: dict[str, Any] = {"stages": [{**STAGE, "steps": 1}], "evaluation": {"problems": 1, "controls": False}}
HELD = {"reference": "base", "kl_estimator": "k1"}
STARS = {"name": "a", "objective": "star", "iterations": 3, "collect": 9, "batch": 5, "steps": 3, "learning_rate": 3e-3}


@pytest.mark.parametrize(
    ("parallel", "tuning", "changes"),
    [
        ("ddp", "full", {**STD, **BRIEF}),
        ("fsdp2", "full", BRIEF),
        *(
            pytest.param(parallel, tuning, changes, marks=pytest.mark.nightly)
            for parallel, tuning, changes in [
                ("ddp", "lora", STD), ("fsdp2", "lora", {}), ("ddp", "qlora", {}), ("fsdp2", "qlora", {}),
                ("ddp", "full", {"stages": [{**STAGE, "offline_first": 0.5}]}),
                ("fsdp2", "full", {"stages": [{**STAGE, "offline_first": 0.5}], "algorithm": HELD}),
                ("fsdp2", "lora", {"stages": [{**STAGE, "objective": "stage1", "offline_first": 0.5}]}),
                ("fsdp2", "full", {"optimizer": {"warmup_steps": 0, "micro_batch": 3, "epsilon": EPSILON, "padding_free": True, "gradient_checkpointing": True}}),
                ("ddp", "full", {"stages": [{"name": "a", "objective": "pair_sft", "steps": 3, "learning_rate": 0.003, "collect": 9, "batch": 5}]}),
                ("fsdp2", "full", {"stages": [STARS]}),
                ("ddp", "full", {"rollouts": {**SIZES, "problems_per_step": 1}}),
                ("fsdp2", "full", {"rollouts": {**SIZES, "problems_per_step": 1}}),
                ("ddp", "full", {"evaluation": {"problems": 5, "every": 1, "samples": 2, "temperature": 0.7}}),
                ("fsdp2", "full", {"evaluation": {"problems": 5, "every": 1, "samples": 2, "temperature": 0.7}}),
                ("fsdp2", "lora", {"evaluation": {"problems": 5, "every": 1, "correction_prompts": ["1"]}}),
                ("fsdp2", "qlora", {"optimizer": {"warmup_steps": 0, "micro_batch": 3, "epsilon": EPSILON, "padding_free": True, "gradient_checkpointing": True}}),
                ("fsdp2", "full", {"stages": [ADAPTED, {**STAGE, "name": "b"}], "algorithm": {"reference": "previous_stage"}}),
                ("ddp", "lora", {"stages": [ADAPTED, {**STAGE, "name": "b"}], "algorithm": {"reference": "previous_stage"}}),
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


@pytest.mark.nightly
@pytest.mark.parametrize("architecture", ["qwen2", "gpt2", "gemma3"])
@pytest.mark.parametrize(("parallel", "tuning"), [("fsdp2", "full"), ("fsdp2", "lora"), ("ddp", "full")])
def test_other_models_on_three_processes(architecture: str, parallel: str, tuning: str, tmp_path: Path) -> None:
    """Biases, layers of other names and kinds, heads that are not tied; sizes that three do not divide."""
    lm = tiny_lm(architecture, "eager", ENDS)
    lm.save(tmp_path / "model", torch.float32)
    settings = tuned(uneven(tmp_path, tmp_path / "model", "two", parallel, **LATER), tuning)
    ranks = launch(tmp_path / "log", settings, size=3)
    one = go(tuned(uneven(tmp_path, tmp_path / "model", "one", **LATER), tuning))
    well(ranks.ended(120))
    assert gap(one, tmp_path / "two") < 1e-5


@pytest.mark.parametrize(
    ("tuning", "changes"),
    [
    ("full", {**ONE_STEP, "optimizer": {"warmup_steps": 0, "micro_batch": 3, "epsilon": EPSILON, "padding_free": True}}),
        *(
            pytest.param(tuning, changes, marks=pytest.mark.nightly)
            for tuning, changes in [
                ("full", {"stages": [ADAPTED, {**STAGE, "name": "b"}], "algorithm": {"reference": "previous_stage"}}),
                ("lora", {"stages": [{**STAGE, "offline_first": 0.5}]}),
                ("qlora", {}),
            ]
        ),
    ],
)  # fmt: skip
def test_two_machines_of_two_processes_learn_what_one_does(
    tuning: str, changes: dict[str, Any], model: Path, tmp_path: Path
) -> None:
    """Three groups on four processes, of which one has none; each machine holds the weights once."""
    settings = tuned(uneven(tmp_path, model, "four", "hsdp", **changes), tuning)
    ranks = launch(tmp_path / "log", settings, size=4, machines=2)
    one = go(tuned(uneven(tmp_path, model, "one", **changes), tuning))
    ended = ranks.ended(120)
    well(ended)
    assert (
        "4 processes, hsdp: weights, gradients and moments in shards over the 2 of a machine, in each of 2"
        in ended[0].out
    )
    assert gap(one, tmp_path / "four") < 1e-5
    assert (one / "rollouts.jsonl").read_text() == (tmp_path / "four" / "rollouts.jsonl").read_text()


@pytest.mark.nightly
def test_machines_that_come_to_other_weights_are_told_of(model: Path, tmp_path: Path) -> None:
    settings = uneven(tmp_path, model, "four", "hsdp")
    ended = launch(tmp_path / "log", settings, size=4, machines=2, hook=forgotten_sum).ended()
    assert {rank.status for rank in ended} == {2}
    assert "rank 2 has come to other weights than rank 0" in ended[0].err
    assert not list((tmp_path / "four" / "checkpoints").glob("step-*"))


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("parallel", "tuning", "changes"),
    [
        ("ddp", "full", {}),
        ("ddp", "lora", {}),
        ("fsdp2", "lora", {}),
        ("fsdp2", "qlora", {}),
        ("fsdp2", "full", {"weights": "float32"}),
        ("fsdp2", "full", {}),
    ],
)
def test_in_bfloat16(parallel: str, tuning: str, changes: dict[str, Any], model: Path, tmp_path: Path) -> None:
    """Rounding may write another token; until then all is the same, and a run comes to its end."""
    told = {"weights": "bfloat16", "precision": "bfloat16", **changes}
    ranks = launch(tmp_path / "log", tuned(uneven(tmp_path, model, "two", parallel), tuning, **told))
    one = go(tuned(uneven(tmp_path, model, "one"), tuning, **told))
    well(ranks.ended())
    first, other = (read_rows(run / "metrics.jsonl")[0] for run in (one, tmp_path / "two"))
    assert first["loss"] == pytest.approx(other["loss"], rel=0.02)
    assert first["grad_norm"] == pytest.approx(other["grad_norm"], rel=0.02)


def test_a_model_stored_in_bfloat16_is_saved_as_it_was_trained_in_shards(tmp_path: Path) -> None:
    """final is the rounding of the last checkpoint's weights, which moved."""
    base = tmp_path / "stored"
    tiny_lm("llama", "eager", ENDS).save(base, torch.bfloat16)
    checks: dict[str, Any] = {**ONE_STEP, "checkpoint": {"every": 1, "select": "last"}}
    settings = tuned(uneven(tmp_path, base, "two", "fsdp2", **checks), "full", weights="bfloat16", precision="bfloat16")
    well(launch(tmp_path / "log", settings).ended())
    begun, ended = load_file(base / "model.safetensors"), load_file(tmp_path / "two" / "final" / "model.safetensors")
    tensors = newest(tmp_path / "two").tensors
    for name in begun:
        assert torch.equal(ended[name], tensors[f"model/{name}"].bfloat16())
    assert any(not torch.equal(ended[name], begun[name]) for name in begun)


def wrong_seed(rank: int) -> None:
    """Every rank draws as if its rows were the first ones."""
    rows = rollout._rows
    ROLLOUT._rows = lambda *args: (*rows(*args)[:3], (0, 0))


def forgotten_sum(rank: int) -> None:
    SEVERAL.sum_gradients = SHARDED.sum_gradients = lambda *_: None


def own_denominator(rank: int) -> None:
    update = Trainer.update
    TRAINER.update = lambda self, batch, rollouts, *rest: update(self, batch, 4 + 4 * self.ranks.rank, *rest)


def averaged(rank: int) -> None:
    from torch.distributed.fsdp import FSDPModule

    module: Any = FSDPModule
    module.set_gradient_divide_factor = lambda *_: None


def stale_copy(rank: int) -> None:
    SHARDED.whole = lambda self, lm, **_: self._plain


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("parallel", "planted"),
    [("ddp", wrong_seed), ("ddp", forgotten_sum), ("ddp", own_denominator), ("fsdp2", averaged), ("fsdp2", stale_copy)],
)
def test_planted_bugs_are_seen(parallel: str, planted: Any, model: Path, tmp_path: Path) -> None:
    ended = launch(tmp_path / "log", uneven(tmp_path, model, "two", parallel), hook=planted).ended()
    told = planted is forgotten_sum  # at the first checkpoint; the others' ends show nothing
    assert {rank.status for rank in ended} == ({2} if told else {0}), ended[0].err
    assert ("rank 1 has come to other weights than rank 0" in ended[0].err) is told
    one, two = go(uneven(tmp_path, model, "one")), tmp_path / "two"
    norms = [[row["grad_norm"] for row in read_rows(run / "metrics.jsonl")] for run in (one, two)]
    assert norms[1] != pytest.approx(norms[0], rel=1e-2) or gap(one, two) > 1e-4
