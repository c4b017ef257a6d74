"""Checkpoints of several processes: resumed by fewer and by more, and what resuming may get wrong."""

import os
import shutil
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from selfcorrect.errors import TrainingInterrupted
from selfcorrect.learning import supervised, training
from selfcorrect.learning.record import StepResult
from selfcorrect.learning.training import Trainer
from selfcorrect.models.weights import load_weights, weights
from selfcorrect.runs import loop
from selfcorrect.runs.checkpoint import Checkpoint
from selfcorrect.runs.display import Observer
from selfcorrect.runs.loop import Loop
from selfcorrect.runs.run import resume
from selfcorrect.seeds import derive_seed
from selfcorrect.tasks.countdown import Countdown
from tests.run.test_ranks import STAGE, check_equal, gap, newest, uneven, well
from tests.run.test_ranks_ending import killed
from tests.support.ranks import launch
from tests.support.runs import StopAt, go, read_rows, tuned

LOOP: Any = Loop  # to plant things in
COUNTDOWN: Any = Countdown
TRAINING: Any = training
SUPERVISED: Any = supervised
LOOPS: Any = loop
pytestmark = pytest.mark.usefixtures("lucky")


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


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("parallel", "tuning"), [("ddp", "full"), ("ddp", "lora"), ("fsdp2", "full"), ("fsdp2", "lora"), ("fsdp2", "qlora")]
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


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("parallel", "tuning"), [("ddp", "lora"), ("ddp", "qlora"), ("fsdp2", "lora"), ("fsdp2", "qlora")]
)
def test_adapters_go_on_to_the_same_bits(parallel: str, tuning: str, model: Path, tmp_path: Path) -> None:
    """As whole weights do, which the tests of killed ranks hold to."""
    settings = tuned(uneven(tmp_path, model, "two", parallel), tuning)
    launch(tmp_path / "log", settings, hook=killed).ended()
    assert newest(tmp_path / "two").step == 2
    well(launch(tmp_path / "again", settings).ended())
    well(launch(tmp_path / "unbroken", {**settings, "output": str(tmp_path / "other")}).ended())
    check_equal(tmp_path / "two", tmp_path / "other" / "two")


@pytest.mark.nightly
def test_what_two_machines_began_others_go_on_with(model: Path, tmp_path: Path) -> None:
    """Four processes killed and gone on with to the same bits; then two of one machine, then one."""
    long: dict[str, Any] = {"stages": [{**STAGE, "steps": 5}]}
    settings = uneven(tmp_path, model, "four", "hsdp", **long)
    launch(tmp_path / "log", settings, size=4, machines=2, hook=killed).ended()
    assert newest(tmp_path / "four").step == 2
    shutil.copytree(tmp_path / "four", tmp_path / "other" / "four")
    well(launch(tmp_path / "again", settings, size=4, machines=2).ended(120))
    unbroken = {**settings, "output": str(tmp_path / "unbroken")}
    well(launch(tmp_path / "whole", unbroken, size=4, machines=2).ended(120))
    check_equal(tmp_path / "four", tmp_path / "unbroken" / "four")
    two = {**settings, "output": str(tmp_path / "other")}
    launch(tmp_path / "log-two", two, "parallel=fsdp2", hook=partial(killed, after=4)).ended()
    assert newest(tmp_path / "other" / "four").step == 4
    resume(tmp_path / "other" / "four", Observer(), ["parallel=auto"])
    assert gap(tmp_path / "four", tmp_path / "other" / "four") < 1e-5


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
