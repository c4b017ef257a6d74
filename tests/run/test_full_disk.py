"""A disk that runs full, or memory: one clear line, the last checkpoint whole, and the run goes on once there is space."""

import errno
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import Mock

import pytest
import yaml

from selfcorrect.errors import CheckpointError, MemoryExhausted
from selfcorrect.learning.training import Trainer
from selfcorrect.runs import checkpoint
from selfcorrect.runs.checkpoint import load_newest
from selfcorrect.runs.display import Observer
from selfcorrect.runs.run import resume
from tests.conftest import Called
from tests.run.conftest import Whole
from tests.support.runs import After, brief, check_same, go, recipe

pytestmark = pytest.mark.usefixtures("lucky")
MESSAGE = r"^the disk is full \(No space left on device: .*\); {saved}\. Free some space, then {go_on}$"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MB. Skips where mounting is not permitted."""
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if sys.platform != "linux" or done.returncode:
        pytest.skip("mounting a small file system is not permitted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def fill(disk: Path) -> None:
    def pour() -> None:
        with (disk / "ballast").open("wb", buffering=0) as stream:
            while stream.write(bytes(4096)):
                pass

    with pytest.raises(OSError, match="No space left"):
        pour()


def expected(run: Path, saved: str, go_on: str = "resume with: selfcorrect train --resume {run}") -> str:
    return MESSAGE.format(saved=saved, go_on=go_on.format(run=re.escape(str(run))))


@pytest.mark.parametrize(
    ("long", "step", "kept"),
    [
        (False, 1, 1),
        (False, 2, 2),
        *(pytest.param(True, step, kept, marks=pytest.mark.nightly) for step, kept in ((1, 0), (3, 2), (5, 4), (8, 8))),
    ],
)
def test_a_real_full_disk(
    small_disk: Path, model: Path, long: bool, step: int, kept: int, request: pytest.FixtureRequest
) -> None:
    run, settings = small_disk / "run", (recipe if long else brief)(small_disk, model)
    saved = f"checkpoint step-{kept:06d} is whole" if kept else "no checkpoint had been written yet"
    whole: Whole = request.getfixturevalue("whole" if long else "whole_brief")
    with pytest.raises(CheckpointError, match=expected(run, saved)):
        go(settings, After(step, lambda: fill(small_disk)))
    before = sorted(run.rglob("*"))
    assert not [path for path in before if ".partial" in path.name]
    with pytest.raises(
        CheckpointError, match=r"the disk is full|the run may take up to"
    ):  # still full: nothing gets worse
        resume(run, Observer())
    found, warnings = load_newest(run / "checkpoints")
    assert warnings == []
    assert (found.step if found else 0) == kept
    (small_disk / "ballast").unlink()
    resume(run, Observer())
    check_same(run, whole.state)


def test_a_disk_that_is_full_from_the_start(small_disk: Path, model: Path, whole_brief: Whole) -> None:
    fill(small_disk)
    settings = brief(small_disk, model)
    with pytest.raises(CheckpointError, match=r"the disk is full|/run: the run may take up to .* free some space"):
        go(settings)
    assert not (small_disk / "run").exists()
    (small_disk / "ballast").unlink()
    go(settings)
    check_same(small_disk / "run", whole_brief.state)


def test_full_while_a_line_of_metrics_is_written(model: Path, whole_brief: Whole, tmp_path: Path) -> None:
    run = tmp_path / "run"
    metrics, aside = run / "metrics.jsonl", tmp_path / "aside"

    def break_off() -> None:
        metrics.rename(aside)
        metrics.symlink_to("/dev/full")

    with pytest.raises(CheckpointError, match=expected(run, "checkpoint step-000001 is whole")):
        go(brief(tmp_path, model), After(1, break_off))
    metrics.unlink()
    aside.rename(metrics)
    with metrics.open("a") as stream:
        stream.write('{"step": 2, "stage": "on')  # what a disk that fills up within a line leaves
    resume(run, Observer())
    check_same(run, whole_brief.state)


def test_the_command_line_tells_it_in_one_line(
    model: Path, whole_brief: Whole, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, called: Called
) -> None:
    """Where nothing can be mounted, fsync fails: the checkpoint of step 2 is not whole."""
    (tmp_path / "recipe.yaml").write_text(yaml.dump(brief(tmp_path, model)))
    sync, calls = checkpoint._sync, 0

    def full(path: Path) -> None:
        nonlocal calls
        calls += "step-000002" in str(path)
        if calls:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        sync(path)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "_sync", full)
        ended = called("train", str(tmp_path / "recipe.yaml"))
    assert ended.status == 2
    (line,) = ended.err.splitlines()
    assert re.match(r"^error: " + expected(tmp_path / "run", "checkpoint step-000001 is whole")[1:], line)
    resume(tmp_path / "run", Observer())
    check_same(tmp_path / "run", whole_brief.state)


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("[enforce fail] DefaultCPUAllocator: no room")])
def test_memory_that_gives_out_ends_the_run_in_a_line(
    error: Exception, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of torch's allocator, or of Python's own."""
    monkeypatch.setattr(Trainer, "train_step", Mock(side_effect=error))
    told = rf"^the memory does not suffice \({re.escape(str(error) or 'MemoryError')}\); .*lower optimizer\.micro_batch"
    with pytest.raises(MemoryExhausted, match=told):
        go(brief(tmp_path, model))
