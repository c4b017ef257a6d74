"""What ends one rank, or stops all: killed ones, failed graders, full disks, Ctrl-C; each in one line, and the run goes on."""

import errno
import math
import os
import re
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from pkgutil import resolve_name
from typing import Any
from unittest.mock import Mock

import pytest
import torch

from selfcorrect.errors import SandboxError
from selfcorrect.learning import training
from selfcorrect.learning.record import StepResult
from selfcorrect.learning.training import Trainer
from selfcorrect.parallel import lifeline as lifelines
from selfcorrect.runs import checkpoint
from selfcorrect.runs.loop import Loop
from selfcorrect.tasks.countdown import Countdown
from tests.run.test_ranks import STAGE, check_equal, newest, uneven, well
from tests.support.ranks import Ended, launch
from tests.support.runs import read_rows

TRAINER: Any = Trainer  # to plant things in
LOOP: Any = Loop
COUNTDOWN: Any = Countdown
TRAINING: Any = training
pytestmark = pytest.mark.usefixtures("lucky")


def killed(rank: int, after: int = 2) -> None:
    """Rank 1 dies in the step that follows so many."""
    step = Trainer.train_step

    def dies(trainer: Trainer) -> StepResult:
        if rank == 1 and trainer.progress.step == after:
            os.kill(os.getpid(), signal.SIGKILL)
        return step(trainer)

    TRAINER.train_step = dies


def first_killed(rank: int) -> None:
    killed(1 - rank)


def dies_in_step_3(dead: int, at: str, rank: int, *, after: bool = False) -> None:
    """The rank that is to die does so in this function, or at its end."""
    deed, begun = resolve_name(at), list[bool]()

    def dies(*args: Any, **kwargs: Any) -> Any:
        found = deed(*args, **kwargs) if after or not begun else None
        if begun:
            os.kill(os.getpid(), signal.SIGKILL)
        return found

    if rank == dead:
        pytest.MonkeyPatch().setattr(at, dies)
        _at_step_3(lambda trainer: begun.append(True))


def last_lines(ended: Ended) -> list[str]:
    return [line for line in ended.err.splitlines() if line.startswith("error:")]


DEATHS = [  # kind, the rank that dies, in which function, and whether at its end
    ("ddp", 1, "parallel.ranks.play", True), ("fsdp2", 1, "parallel.sharding.Sharded.clip", False),
    ("fsdp2", 1, "parallel.shards.write", False), ("fsdp2", 0, "parallel.ranks.play", False),
    ("ddp", 0, "parallel.ranks.sum_gradients", False),
    ("fsdp2", 0, "runs.checkpoint.write_manifest", True),  # all but the folder's last name is there
]  # fmt: skip


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("parallel", "dead", "hook"),
    [
        ("ddp", 1, killed), ("fsdp2", 1, killed), ("ddp", 0, first_killed),
        *(
            (kind, dead, partial(dies_in_step_3, dead, f"selfcorrect.{at}", after=after))
            for kind, dead, at, after in DEATHS
        ),
    ],
)  # fmt: skip
def test_a_rank_that_is_killed_is_named_and_the_run_goes_on(
    parallel: str, dead: int, hook: Any, model: Path, tmp_path: Path
) -> None:
    """In under a minute; what is made in the end is that of a run that nothing happened to, to the bit."""
    settings = uneven(tmp_path, model, "two", parallel)
    ended = launch(tmp_path / "log", settings, hook=hook).ended()
    assert [rank.status for rank in ended] == ([2, -9] if dead else [-9, 2])
    (line,) = last_lines(ended[1 - dead])
    died = rf"error: rank {dead} \((pid \d+ )?on .*\) died without a word: killed, or out of memory; "
    kept = r"checkpoint step-000002 is whole\. To go on, resume with: selfcorrect train --resume .*two \(by the same launcher\)"
    assert re.fullmatch(died + kept, line)
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
    if rank == 1:
        _at_step_3(Mock(side_effect=torch.OutOfMemoryError("CUDA out of memory")))


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

    full = Mock(side_effect=OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "the file"))
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

        def breaks(*args: Any, **named: Any) -> Any:
            result = loss(*args, **named)
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
        == f"stopped; checkpoint step-000003 is whole. To go on, resume with: selfcorrect train --resume {run}"
        " (by the same launcher)\n"
    )
    assert ended[1].err == ""
    well(launch(tmp_path / "again", settings).ended())
    well(launch(tmp_path / "unbroken", {**settings, "output": str(tmp_path / "other")}).ended())
    check_equal(run, tmp_path / "other" / "two")
