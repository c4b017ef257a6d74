"""Two processes over gloo do what one does: DDP and FSDP2, uneven groups, micro-batches that do not divide."""

import errno
import math
import os
import re
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from selfcorrect import rollout
from selfcorrect.errors import SandboxError, TrainingInterrupted
from selfcorrect.learning import supervised, training
from selfcorrect.learning.record import StepResult
from selfcorrect.learning.training import Trainer
from selfcorrect.models.weights import load_weights, weights
from selfcorrect.parallel import lifeline as lifelines
from selfcorrect.parallel import ranks as ranked
from selfcorrect.parallel import shards
from selfcorrect.parallel.ranks import Several
from selfcorrect.parallel.sharding import Sharded
from selfcorrect.runs import checkpoint, loop
from selfcorrect.runs.checkpoint import Checkpoint, load_newest
from selfcorrect.runs.loop import Loop
from selfcorrect.runs.run import resume
from selfcorrect.seeds import derive_seed
from selfcorrect.tasks.countdown import Countdown
from tests.run.conftest import ENDS
from tests.support.ranks import Ended, launch
from tests.support.runs import StopAt, end_state, go, read_rows, recipe, tuned
from tests.support.tiny import tiny_lm

TRAINER: Any = Trainer  # to plant things in
LOOP: Any = Loop
SEVERAL: Any = Several
COUNTDOWN: Any = Countdown
ROLLOUT: Any = rollout
RANKS: Any = ranked
TRAINING: Any = training
SUPERVISED: Any = supervised
LOOPS: Any = loop
pytestmark = pytest.mark.usefixtures("lucky")
# AdamW moves a weight whose gradient nearly cancels by whatever rounding left of it; not with so much under the fraction.
EPSILON = 1e-4
STAGE = {"name": "a", "objective": "stage2", "steps": 3, "learning_rate": 0.003}
SIZES = {"problems_per_step": 3, "rollouts_per_problem": 4, "max_new_tokens": 5, "rows_at_once": 512}


def uneven(output: Path, model: Path, name: str, parallel: str = "auto", **changes: Any) -> dict[str, Any]:
    """Three groups of four on two ranks: one and two of them; micro-batches of three rows: two and three of them."""
    settings = {
        "stages": [STAGE], "rollouts": SIZES, "optimizer": {"warmup_steps": 0, "micro_batch": 3, "epsilon": EPSILON}, "parallel": parallel,
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
STD: dict[str, Any] = {"algorithm": {"normalize_std": True}}
HELD = {"reference": "base", "kl_estimator": "k1"}


@pytest.mark.parametrize(
    ("parallel", "tuning", "changes"),
    [
        ("ddp", "full", STD),
        ("fsdp2", "full", {}),
        *(
            pytest.param(parallel, tuning, changes, marks=pytest.mark.nightly)
            for parallel, tuning, changes in [
                ("ddp", "lora", STD), ("fsdp2", "lora", {}), ("ddp", "qlora", {}), ("fsdp2", "qlora", {}),
                ("ddp", "full", {"stages": [{**STAGE, "offline_first": 0.5}]}),
                ("fsdp2", "full", {"stages": [{**STAGE, "offline_first": 0.5}], "algorithm": HELD}),
                ("fsdp2", "lora", {"stages": [{**STAGE, "objective": "stage1", "offline_first": 0.5}]}),
                ("fsdp2", "full", {"optimizer": {"warmup_steps": 0, "micro_batch": 3, "epsilon": EPSILON, "padding_free": True, "gradient_checkpointing": True}}),
                ("ddp", "full", {"stages": [{"name": "a", "objective": "pair_sft", "steps": 3, "learning_rate": 0.003, "collect": 9, "batch": 5}]}),
                ("fsdp2", "full", {"stages": [{"name": "a", "objective": "star", "iterations": 3, "steps": 3, "learning_rate": 0.003, "collect": 9, "batch": 5}]}),
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
    lm.save(tmp_path / "model")
    settings = tuned(uneven(tmp_path, tmp_path / "model", "two", parallel, **LATER), tuning)
    ranks = launch(tmp_path / "log", settings, size=3)
    one = go(tuned(uneven(tmp_path, tmp_path / "model", "one", **LATER), tuning))
    well(ranks.ended(120))
    assert gap(one, tmp_path / "two") < 1e-5


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


@pytest.mark.nightly
def test_bfloat16_weights_in_shards_have_float32_masters(model: Path, tmp_path: Path) -> None:
    """Steps too small for bfloat16 are kept: in checkpoints, in the models that are saved, by one process that goes on."""
    long: dict[str, Any] = {"stages": [{**STAGE, "steps": 5, "learning_rate": 1e-6}]}
    checks: dict[str, Any] = {"checkpoint": {"every": 1, "keep": 8, "select": "last"}}
    settings = tuned(
        uneven(tmp_path, model, "two", "fsdp2", **long, **checks), "full", weights="bfloat16", precision="auto"
    )
    launch(tmp_path / "log", settings, hook=killed).ended()
    with pytest.raises(TrainingInterrupted):
        resume(tmp_path / "two", StopAt(4), ["parallel=auto"])
    well(launch(tmp_path / "again", settings, "parallel=fsdp2").ended())
    begun, ended = load_file(model / "model.safetensors"), load_file(tmp_path / "two" / "final" / "model.safetensors")
    tensors = newest(tmp_path / "two").tensors
    moved = [name for name in begun if begun[name].dim() > 1]
    for name in moved:
        assert torch.equal(ended[name], tensors[f"model/{name}"])
        change = (ended[name] - begun[name].bfloat16().float()).abs().max()
        assert 1e-6 < change < 1e-5
    one = go(tuned(uneven(tmp_path, model, "one", **long, **checks), "full", weights="bfloat16", precision="auto"))
    apart = torch.cat([(tensors[f"model/{n}"] - newest(one).tensors[f"model/{n}"]).abs().flatten() for n in moved])
    assert apart.quantile(0.99) < 1e-7


def test_a_model_stored_in_bfloat16_is_saved_as_it_was_trained_in_shards(tmp_path: Path) -> None:
    """final is the rounding of the last checkpoint's weights, which moved."""
    base = tmp_path / "stored"
    tiny_lm("llama", "eager", ENDS).save(base, torch.bfloat16)
    checks: dict[str, Any] = {"checkpoint": {"every": 1, "select": "last"}}
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
    SEVERAL.sum_gradients = lambda *_: None


def own_denominator(rank: int) -> None:
    update = Trainer.update
    TRAINER.update = lambda self, batch, rollouts, *rest: update(self, batch, 4 + 4 * self.ranks.rank, *rest)


def averaged(rank: int) -> None:
    from torch.distributed.fsdp import FSDPModule

    module: Any = FSDPModule
    module.set_gradient_divide_factor = lambda *_: None


def stale_copy(rank: int) -> None:
    from selfcorrect.parallel.sharding import Sharded

    sharded: Any = Sharded
    sharded.whole = lambda self, lm: self._plain


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("parallel", "planted"),
    [("ddp", wrong_seed), ("ddp", forgotten_sum), ("ddp", own_denominator), ("fsdp2", averaged), ("fsdp2", stale_copy)],
)
def test_planted_bugs_are_seen(parallel: str, planted: Any, model: Path, tmp_path: Path) -> None:
    launch(tmp_path / "log", uneven(tmp_path, model, "two", parallel), hook=planted).ended()
    one, two = go(uneven(tmp_path, model, "one")), tmp_path / "two"
    norms = [[row["grad_norm"] for row in read_rows(run / "metrics.jsonl")] for run in (one, two)]
    assert norms[1] != pytest.approx(norms[0], rel=1e-2) or gap(one, two) > 1e-4


def killed(rank: int) -> None:
    """Rank 1 dies in step 3."""
    step = Trainer.train_step

    def dies(trainer: Trainer) -> StepResult:
        if rank == 1 and trainer.progress.step == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return step(trainer)

    TRAINER.train_step = dies


def first_killed(rank: int) -> None:
    killed(1 - rank)


def dies_in_step_3(rank: int, dead: int, owner: Any, name: str, *, after: bool = False) -> None:
    """The rank that is to die does so in this function, or at its end."""
    deed = getattr(owner, name)

    def dies(*args: Any, **kwargs: Any) -> Any:
        found = deed(*args, **kwargs) if after or not begun else None
        if begun:
            os.kill(os.getpid(), signal.SIGKILL)
        return found

    begun = list[bool]()
    if rank == dead:
        setattr(owner, name, dies)
        _at_step_3(lambda trainer: begun.append(True))


def killed_sampling(rank: int) -> None:
    dies_in_step_3(rank, 1, RANKS, "play", after=True)


def killed_updating(rank: int) -> None:
    dies_in_step_3(rank, 1, Sharded, "clip")


def killed_saving(rank: int) -> None:
    dies_in_step_3(rank, 1, shards, "write")


def first_killed_sampling(rank: int) -> None:
    dies_in_step_3(rank, 0, RANKS, "play")


def first_killed_updating(rank: int) -> None:
    dies_in_step_3(rank, 0, RANKS, "sum_gradients")


def first_killed_saving(rank: int) -> None:
    """All but the folder's last name is there."""
    dies_in_step_3(rank, 0, checkpoint, "write_manifest", after=True)


def last_lines(ended: Ended) -> list[str]:
    return [line for line in ended.err.splitlines() if line.startswith("error:")]


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("parallel", "hook", "told"),
    [
        ("ddp", killed, r"error: rank 1 \(pid \d+ on .*\) died without a word: killed, or out of memory; checkpoint step-000002 is whole. To go on, resume with: selfcorrect train --resume .*two \(by the same launcher\)"),
        ("fsdp2", killed, r"error: rank 1 \(pid .*died without a word.* checkpoint step-000002 is whole.*"),
        *(
            (parallel, hook, rf"error: rank {int('first' not in hook.__name__)} \(.* died without a word.* checkpoint step-000002 is whole.*")
            for parallel, hook in [
                ("ddp", first_killed), ("ddp", killed_sampling), ("fsdp2", killed_updating), ("fsdp2", killed_saving),
                ("fsdp2", first_killed_sampling), ("ddp", first_killed_updating), ("fsdp2", first_killed_saving),
            ]
        ),
    ],
)  # fmt: skip
def test_a_rank_that_is_killed_is_named_and_the_run_goes_on(
    parallel: str, hook: Any, told: str, model: Path, tmp_path: Path
) -> None:
    """In under a minute; what is made in the end is that of a run that nothing happened to, to the bit."""
    settings = uneven(tmp_path, model, "two", parallel)
    ended = launch(tmp_path / "log", settings, hook=hook).ended()
    dead = int("first" not in hook.__name__)
    assert [rank.status for rank in ended] == ([2, -9] if dead else [-9, 2])
    (line,) = last_lines(ended[1 - dead])
    assert re.fullmatch(told, line)
    well(launch(tmp_path / "again", settings).ended())
    assert not list((tmp_path / "two").rglob(".partial*"))
    well(launch(tmp_path / "unbroken", {**settings, "output": str(tmp_path / "other")}).ended())
    check_equal(tmp_path / "two", tmp_path / "other" / "two")


def graderless(rank: int) -> None:
    """The grader of rank 1 breaks in step 3."""
    if rank == 1:
        grade = Countdown.grade
        calls: list[int] = []

        def breaks(self: Any, answers: Any) -> Any:
            calls.append(len(answers))
            if (Path.cwd() / "step-3").exists():
                raise SandboxError("the grader is gone")
            return grade(self, answers)

        COUNTDOWN.grade = breaks
    _at_step_3(lambda trainer: (Path.cwd() / "step-3").touch())


def crashing(rank: int) -> None:
    """A bug on rank 1: not of a kind that a user can mend."""
    if rank == 1:
        _at_step_3(lambda trainer: setattr(trainer, "task", None))


def exhausted(rank: int) -> None:
    """Rank 1's device has no memory left."""

    def fail(trainer: Trainer) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    if rank == 1:
        _at_step_3(fail)


def stuck(rank: int) -> None:
    """Rank 1 dies while rank 0 is where nothing can be told it."""
    lifeline: Any = lifelines
    lifeline.GRACE = 1.0
    killed(rank)
    if rank == 0:
        _at_step_3(lambda trainer: time.sleep(50))


def full_disk(rank: int) -> None:
    """Rank 1's disk is full when the second checkpoint is written; under DDP it is rank 0 that writes."""
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "the file")

    _at_step_3(lambda trainer: setattr(HuggingFaceStorageWriter, "write_data", full) if rank == 1 else None)
    _at_step_3(
        lambda trainer: setattr(checkpoint, "write_manifest", full) if rank == 0 and not trainer.ranks.sharded else None
    )


def _at_step_3(deed: Callable[[Trainer], object]) -> None:
    step = Trainer.train_step

    def does(trainer: Trainer) -> StepResult:
        if trainer.progress.step == 2:
            deed(trainer)
        return step(trainer)

    TRAINER.train_step = does


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("parallel", "hook", "statuses", "told"),
    [
        ("ddp", graderless, [2, 2], r"error: rank 1: the grader is gone"),
        ("fsdp2", graderless, [2, 2], r"error: rank 1: the grader is gone"),
        ("ddp", crashing, [2, 1], r"error: rank 1 \(pid \d+ on .*\) ended: AttributeError: .*; checkpoint step-000002 is whole. To go on, .*"),
        ("ddp", exhausted, [2, 2], r"error: rank 1 \(pid \d+ on .*\) ended: the memory does not suffice \(CUDA out of memory\); checkpoint step-000002 is whole.*"),
        ("ddp", stuck, [2, -9], r"error: rank 1 \(pid \d+ on .*\) died without a word: killed, or out of memory; checkpoint step-000002 is whole.*"),
        ("ddp", full_disk, [2, 2], r"error: the disk is full \(No space left on device: the file\); checkpoint step-000002 is whole. Free some space, then resume with: .*"),
        ("fsdp2", full_disk, [2, 2], r"error: the disk is full \(No space left on device on rank 1: the file\); checkpoint step-000002 is whole. Free some space, then resume with: .*"),
    ],
)  # fmt: skip
def test_what_ends_one_rank_ends_all_with_one_line(
    parallel: str, hook: Any, statuses: list[int], told: str, model: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    settings = uneven(tmp_path, model, "two", parallel)
    ended = launch(tmp_path / "log", settings, hook=hook).ended()
    assert [rank.status for rank in ended] == statuses, ended
    assert [bool(re.fullmatch(told, line)) for line in last_lines(ended[0])] == [True], ended[0].err
    assert last_lines(ended[1]) == []
    assert not list((tmp_path / "two").rglob(".partial*"))
    (tmp_path / "step-3").unlink(missing_ok=True)
    well(launch(tmp_path / "again", settings).ended())
    assert newest(tmp_path / "two").step == 3


def not_finite(rank: int) -> None:
    """In step 2 the loss of rank 1 is no number."""
    if rank == 1:
        loss = TRAINING.token_loss

        def breaks(*args: Any) -> Any:
            result = loss(*args)
            if (Path.cwd() / "step-2").exists():
                return replace(result, loss_B=result.loss_B * math.nan)
            return result

        def train_step(trainer: Trainer) -> StepResult:
            (Path.cwd() / "step-2").touch() if trainer.progress.step == 1 else (Path.cwd() / "step-2").unlink(
                missing_ok=True
            )
            found: StepResult = step(trainer)
            return found

        step, TRAINING.token_loss, TRAINER.train_step = TRAINER.train_step, breaks, train_step


@pytest.mark.nightly
@pytest.mark.parametrize("parallel", ["ddp", "fsdp2"])
def test_what_is_not_finite_on_one_rank_is_skipped_by_all(
    parallel: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    well(launch(tmp_path / "log", uneven(tmp_path, model, "two", parallel), hook=not_finite).ended())
    rows = read_rows(tmp_path / "two" / "metrics.jsonl")
    assert [row["skip_reason"] for row in rows] == ["", "the loss is nan", ""]
    tensors = newest(tmp_path / "two").tensors
    assert {float(t) for name, t in tensors.items() if name.endswith(".step")} == {2.0}


def slow(rank: int) -> None:
    """Step 3 says when it begins, and waits for a moment."""

    def wait(trainer: Trainer) -> None:
        print("step 3 begins", flush=True)
        time.sleep(1.5)

    _at_step_3(wait)


def slow_evaluation(rank: int) -> None:
    """Says when the last evaluation begins, and waits for a moment."""
    evaluation = Loop._evaluation

    def waits(loop: Loop, *args: Any) -> Any:
        if loop.trainer.progress.step == 3:
            print("evaluation begins", flush=True)
            time.sleep(1.5)
        return evaluation(loop, *args)

    LOOP._evaluation = waits


@pytest.mark.nightly
@pytest.mark.parametrize("parallel", ["ddp", "fsdp2"])
@pytest.mark.parametrize(
    ("hook", "says", "signum", "to"),
    [
        (slow, "step 3 begins", signal.SIGINT, (0, 1)),
        (slow, "step 3 begins", signal.SIGTERM, (1,)),
        (slow_evaluation, "evaluation begins", signal.SIGINT, (0, 1)),
        (slow_evaluation, "evaluation begins", signal.SIGINT, (0,)),
    ],
)
def test_ctrl_c_once_stops_all(
    parallel: str, hook: Any, says: str, signum: int, to: tuple[int, ...], model: Path, tmp_path: Path
) -> None:
    """The step under way ends on all ranks, and is kept; one line, and the status of one process."""
    settings = uneven(tmp_path, model, "two", parallel, checkpoint={"every": 3, "keep": 8})
    settings["stages"] = [{**STAGE, "steps": 4}] if hook is slow else [STAGE]
    ranks = launch(tmp_path / "log", settings, hook=hook)
    ranks.wait_for(says)
    ranks.wait_for(says, 1)
    ranks.send(signum, *to)
    ended = ranks.ended()
    assert [rank.status for rank in ended] == [128 + signum] * 2, ended
    run = tmp_path / "two"
    assert (
        ended[0].err
        == f"stopped; checkpoint step-000003 is whole. To go on, resume with: selfcorrect train --resume {run}\n"
    )
    assert ended[1].err == ""
    well(launch(tmp_path / "again", settings).ended())
    well(launch(tmp_path / "unbroken", {**settings, "output": str(tmp_path / "other")}).ended())
    check_equal(run, tmp_path / "other" / "two")


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("parallel", "tuning"), [("ddp", "full"), ("fsdp2", "full"), ("fsdp2", "lora"), ("fsdp2", "qlora")]
)
def test_two_then_one_then_two_processes(parallel: str, tuning: str, model: Path, tmp_path: Path) -> None:
    """Checkpoints are everyone's: what two began one goes on with, and what one wrote two go on with."""
    long: dict[str, Any] = {"stages": [{**STAGE, "steps": 5}]}
    settings = tuned(uneven(tmp_path, model, "two", parallel, **long), tuning)
    launch(tmp_path / "log", settings, hook=killed).ended()
    with pytest.raises(TrainingInterrupted):
        resume(tmp_path / "two", StopAt(4), ["parallel=auto"])
    assert newest(tmp_path / "two").step == 4
    well(launch(tmp_path / "again", settings, f"parallel={parallel}").ended())
    one = go(tuned(uneven(tmp_path, model, "one", **long), tuning))
    assert gap(one, tmp_path / "two") < 1e-5
    changed = [row["field"] for row in read_rows(tmp_path / "two" / "changes.jsonl")]
    assert changed == ["parallel", "parallel"]


def no_moments(rank: int) -> None:
    LOOPS.load_optimizer = lambda *_: None


def batch_again(rank: int) -> None:
    draw = Countdown.draw
    COUNTDOWN.draw = lambda self, step, *rest: draw(self, max(1, step - 1), *rest)


def draws_again(rank: int) -> None:
    TRAINING.derive_seed = lambda seed, name, step: derive_seed(seed, name, step - 2)


def unshuffled(rank: int) -> None:
    SUPERVISED.epochs = lambda traces, step, batch, seed: traces[:batch]


def one_update_more(rank: int) -> None:
    def less(at: Loop) -> None:
        at.trainer.progress.step = at.trainer.progress.stage_step = 1

    _restored(less)


def warm_again(rank: int) -> None:
    rate = TRAINING.learning_rate
    TRAINING.learning_rate = lambda peak, step, *rest: rate(peak, step - 2, *rest)


def held_to_itself(rank: int) -> None:
    _restored(lambda at: load_weights(at.trainer.reference, weights(at.trainer.lm)))


def smoothed_anew(rank: int) -> None:
    _restored(lambda at: setattr(at.trainer.progress, "smoothed_reward", None))


def _restored(deed: Callable[[Loop], object]) -> None:
    restore = Loop._restore

    def does(self: Loop, found: Checkpoint) -> None:
        restore(self, found)
        deed(self)

    LOOP._restore = does


def killed_supervised(rank: int) -> None:
    """Rank 1 dies in step 3."""

    def dies(trainer: Trainer, *rest: Any) -> StepResult:
        if rank == 1 and trainer.progress.step == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        found: StepResult = step(trainer, *rest)
        return found

    step = LOOPS.supervised_step
    LOOPS.supervised_step = dies


RESUMED: dict[str, Any] = {
    "stages": [{**STAGE, "objective": "stage1", "steps": 4}],
    "optimizer": {"warmup_steps": 3, "micro_batch": 3},
}
TRACES: dict[str, Any] = {"stages": [{**STAGE, "objective": "pair_sft", "steps": 5, "collect": 9, "batch": 5}]}


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("parallel", "changes", "planted"),
    [
        ("ddp", RESUMED, (None, no_moments, batch_again, draws_again, one_update_more, warm_again, held_to_itself, smoothed_anew)),
        ("fsdp2", RESUMED, (None, no_moments, one_update_more)),
        ("ddp", TRACES, (None, unshuffled)),
    ],
)  # fmt: skip
def test_what_resuming_may_get_wrong(
    parallel: str, changes: dict[str, Any], planted: Any, model: Path, tmp_path: Path
) -> None:
    """Moments lost, a batch or its draws taken twice, what is left of an epoch in its old order, more updates than the
    step says, the warm-up begun anew, the KL measured to the resumed weights, averages forgotten. None: nothing planted.
    """
    settings = uneven(tmp_path / "unbroken", model, "two", parallel, **changes)
    well(launch(tmp_path / "log", settings).ended())
    stopped = {**settings, "output": str(tmp_path / "stopped")}
    launch(tmp_path / "log", stopped, hook=killed_supervised if changes is TRACES else killed).ended()
    assert newest(tmp_path / "stopped" / "two").step == 2
    for hook in planted:
        again = tmp_path / (hook.__name__ if hook else "again")
        shutil.copytree(tmp_path / "stopped", again)
        well(launch(tmp_path / "log", {**settings, "output": str(again)}, hook=hook).ended())
        if hook is None:
            check_equal(again / "two", tmp_path / "unbroken" / "two")
            steps = {name: t for name, t in newest(again / "two").tensors.items() if name.endswith(".step")}
            assert {float(t) for t in steps.values()} == {newest(again / "two").step}
        else:
            with pytest.raises(AssertionError):
                check_equal(again / "two", tmp_path / "unbroken" / "two")
