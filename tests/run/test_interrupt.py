"""Ctrl-C and SIGTERM at the command line, by real signals to real processes."""

import contextlib
import ctypes
import errno
import os
import signal
import socket
import sys
import threading
import time
from pathlib import Path
from unittest.mock import Mock

import pytest
import yaml

from selfcorrect.errors import DataError, TrainingInterrupted
from selfcorrect.learning.record import StepResult
from selfcorrect.learning.training import Trainer
from selfcorrect.parallel import ranks
from selfcorrect.runs import interrupts
from selfcorrect.runs.checkpoint import load_newest
from selfcorrect.runs.display import Observer
from selfcorrect.runs.interrupts import SAME_PRESS, Stop, interruptible, stoppable
from selfcorrect.runs.loop import Loop
from selfcorrect.runs.run import resume
from tests.conftest import Called
from tests.run.conftest import Whole
from tests.support.runs import CommandLine, brief, check_same, go, read_rows, recipe


def slow_step() -> None:
    """Step 1 says when it begins, and waits for two signals."""
    heard, tell = os.pipe()
    os.set_blocking(tell, False)
    signal.set_wakeup_fd(tell)
    train_step = Trainer.train_step

    def slow(trainer: Trainer) -> StepResult:
        if trainer.progress.step == 0:
            print("step 1 begins", flush=True)
            for _ in range(2):
                os.read(heard, 1)
        return train_step(trainer)

    Trainer.train_step = slow  # type: ignore[method-assign,assignment]


@pytest.mark.usefixtures("lucky")
@pytest.mark.parametrize(("signum", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_lets_the_step_end(signum: int, status: int, model: Path, whole_brief: Whole, tmp_path: Path) -> None:
    """And says so at once; a SIGTERM more loses nothing."""
    file, folder = tmp_path / "recipe.yaml", tmp_path / "run"
    file.write_text(yaml.dump(brief(tmp_path, model)))
    process = CommandLine(tmp_path, "train", str(file), hook=slow_step)
    process.wait_for(process.out, "step 1 begins\n")
    process.send(signum)
    process.wait_for(process.out, "step 1 begins\nstopping after this step (Ctrl-C again to stop now, losing it)\n")
    process.send(signal.SIGTERM)
    found, _, errors = process.ended()
    assert found == status
    assert errors.splitlines() == [
        f"stopped; checkpoint step-000001 is whole. To go on, resume with: selfcorrect train --resume {folder}"
    ]
    assert [row["step"] for row in read_rows(folder / "metrics.jsonl")] == [1]  # it was let end
    newest, warnings = load_newest(folder / "checkpoints")
    assert (newest and newest.step, warnings) == (1, [])
    if signum == signal.SIGTERM:
        return  # the rest is as after Ctrl-C
    resume(folder, Observer())
    check_same(folder, whole_brief.state)


def slow_to_load() -> None:
    def load(*_: object, **__: object) -> None:
        print("loading", flush=True)
        time.sleep(60)

    ranks.load_model = load  # type: ignore[assignment,attr-defined]


def test_ctrl_c_while_a_run_starts(model: Path, tmp_path: Path) -> None:
    """Nothing is written yet, and it is not silent."""
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.dump(recipe(tmp_path / "runs", model)))
    process = CommandLine(tmp_path, "train", str(file), hook=slow_to_load)
    process.wait_for(process.out, "loading\n")
    process.send(signal.SIGINT)
    assert process.ended() == (
        130, "loading\n", "stopped; no checkpoint had been written yet. To go on, start the run again\n",
    )  # fmt: skip
    assert {path.name for path in tmp_path.iterdir()} == {"recipe.yaml", "stdout", "stderr"}


def test_ctrl_c_in_any_command(monkeypatch: pytest.MonkeyPatch, called: Called) -> None:
    monkeypatch.setattr("selfcorrect.config.recipe.load_recipe", Mock(side_effect=KeyboardInterrupt))
    assert called("check", "recipe.yaml") == (130, "", "stopped\n")


@pytest.mark.parametrize(
    ("signals", "ends"),
    [
        ([(0.0, signal.SIGINT), (0.5, signal.SIGINT)], None),
        ([(0.0, signal.SIGINT), (1.5, signal.SIGINT)], 1),
        ([(0.0, signal.SIGTERM), (9.0, signal.SIGTERM), (10.0, signal.SIGTERM)], None),
        ([(0.0, signal.SIGTERM), (9.0, signal.SIGINT)], 1),
        ([(0.0, signal.SIGINT), (0.1, signal.SIGINT), (0.9, signal.SIGTERM), (1.0, signal.SIGINT)], 3),
    ],
)
def test_which_signal_does_not_wait(
    signals: list[tuple[float, int]], ends: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within a step. ends: the signal that gives it up."""
    stop, told = Stop(), list[str]()
    stop.now, stop.unsaved = False, 7
    met = None
    for number, (moment, signum) in enumerate(signals):
        monkeypatch.setattr("time.monotonic", lambda moment=moment: 100.0 + moment)
        try:
            stop.handle(signum, None)
        except KeyboardInterrupt:
            met = number
            break
    stop.done()
    stop.tell(told.append)
    assert met == ends
    assert told == ["stopping after this step (Ctrl-C again to stop now, losing it and the 7 before it)"]


def test_a_second_press_counts_from_when_the_first_was_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Though Python came to handle the first late, as it does on busy cores. What a launcher passes on is no third."""
    stop, now = Stop(), 0.0
    stop.now = False
    monkeypatch.setattr("time.monotonic", lambda: now)
    stop.hear(signal.SIGINT)
    now = 0.5
    stop.handle(signal.SIGINT, None)
    now = 1.1
    stop.hear(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        stop.handle(signal.SIGINT, None)
    now = 1.2
    stop.hear(signal.SIGINT)
    stop.handle(signal.SIGINT, None)


def press_in_c(*moments: float) -> float:
    """Ctrl-C at these moments of a second that code in C waits for a lock, without looking for signals; when it ended."""
    libc, lock = ctypes.CDLL(None), ctypes.create_string_buffer(64)
    libc.pthread_mutex_lock(lock)
    whole, part = divmod(time.time() + 1.0, 1)
    for moment in moments:
        threading.Timer(moment, os.kill, (os.getpid(), signal.SIGINT)).start()
    ended = libc.pthread_mutex_timedlock(lock, (ctypes.c_long * 2)(int(whole), int(1e9 * part)))
    assert ended == errno.ETIMEDOUT
    return time.monotonic()


def test_a_signal_is_told_while_code_in_c_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """As torch's backward pass does for minutes. A second Ctrl-C within it stops as it returns."""
    monkeypatch.setattr(interrupts, "SAME_PRESS", 0.2)
    told: list[tuple[str, float]] = []
    with interruptible(lambda text: told.append((text, time.monotonic()))) as stop:
        stop.now = False
        end = press_in_c(0.4, 0.5)
        assert stop.asked
    ((text, moment),) = told
    assert text.startswith("stopping after this step")
    assert moment < end - 0.3
    with interruptible(print) as stop:
        stop.now = False
        with pytest.raises(KeyboardInterrupt):
            press_in_c(0.4, 0.8)
    assert signal.set_wakeup_fd(-1) == -1


def test_a_child_that_leaves_the_block_ends_no_hearing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interrupts, "SAME_PRESS", 0.2)
    here = os.getpid()
    try:
        with interruptible(print) as stop:
            stop.now = False
            if (child := os.fork()) == 0:
                sys.exit()
            os.waitpid(child, 0)
            with pytest.raises(KeyboardInterrupt):  # the second is heard by the listener alone
                press_in_c(0.4, 0.8)
    finally:
        if os.getpid() != here:
            os._exit(0)


def test_an_interrupt_as_hearing_ends_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    presses, end = [KeyboardInterrupt()], interrupts._hear_no_more

    def pressed() -> None:
        if presses:
            raise presses.pop()
        end()

    monkeypatch.setattr(interrupts, "_hear_no_more", pressed)
    with pytest.raises(KeyboardInterrupt), interruptible(print):
        pass
    assert signal.set_wakeup_fd(-1) == -1


def test_a_childs_signals_and_those_that_others_wait_for_are_not_heard() -> None:
    told: list[str] = []
    with interruptible(told.append) as stop:
        stop.now = False
        if (child := os.fork()) == 0:
            signal.raise_signal(signal.SIGINT)
            os._exit(0)
        os.waitpid(child, 0)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        with pytest.raises(KeyboardInterrupt):
            press_in_c(0.1)
    assert told == []
    here, there = socket.socketpair()
    there.setblocking(False)
    with here, there:
        signal.set_wakeup_fd(there.fileno())
        with interruptible(told.append):
            pass
        assert signal.set_wakeup_fd(-1) == there.fileno()


def test_one_press_is_one_signal_outside_a_step_too() -> None:
    """What a launcher passes on a moment later does not break into the cleaning up."""
    stop = Stop()
    with pytest.raises(KeyboardInterrupt):
        stop.handle(signal.SIGINT, None)
    stop.handle(signal.SIGINT, None)
    stop.handle(signal.SIGTERM, None)
    stop._since -= 2 * SAME_PRESS
    with pytest.raises(KeyboardInterrupt):
        stop.handle(signal.SIGINT, None)
    assert stop.signal == signal.SIGINT


def test_sampling_commands_end_with_the_signals_status() -> None:
    with pytest.raises(TrainingInterrupted, match=r"^stopped; nothing was done yet") as stopped, stoppable():
        signal.raise_signal(signal.SIGTERM)
    assert stopped.value.status == 128 + signal.SIGTERM


def in_c(error: Exception) -> None:
    """What code in C makes of a handler's KeyboardInterrupt."""
    with contextlib.suppress(KeyboardInterrupt):
        signal.raise_signal(signal.SIGTERM)
    raise error


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (ValueError("could not determine the shape of object type"), TrainingInterrupted),
        (SystemError("returned a result with an exception set"), TrainingInterrupted),
        (OSError(28, "No space left on device"), OSError), (DataError("rows"), DataError),
    ],
)  # fmt: skip
def test_an_interrupt_that_comes_out_as_another_error(error: Exception, told: type[Exception]) -> None:
    with pytest.raises(told) as found, stoppable():
        in_c(error)
    assert isinstance(found.value, TrainingInterrupted) == (told is TrainingInterrupted)
    with pytest.raises(type(error)), stoppable():
        raise error  # nobody asked to stop


def test_the_step_before_such_an_interrupt_is_kept(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a stage's selected weights are read back."""

    def read(self: Loop, path: Path) -> None:
        in_c(ValueError("could not determine the shape of object type"))

    monkeypatch.setattr(Loop, "_stored", read)
    with pytest.raises(TrainingInterrupted, match=r"^stopped; checkpoint step-000004 is whole"):
        go(recipe(tmp_path, model, evaluation={"problems": 1, "controls": False}))
