"""Oracle 7: a run that was stopped, however it was stopped, ends bit for bit as one that never was."""

import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from selfcorrect.errors import CheckpointError, ConfigError, TrainingInterrupted
from selfcorrect.learning.record import StepResult
from selfcorrect.learning.training import Trainer
from selfcorrect.models.adapters import need_peft
from selfcorrect.runs import interrupts
from selfcorrect.runs.checkpoint import PARTIAL, load_newest, saved, sweep
from selfcorrect.runs.display import Observer
from selfcorrect.runs.interrupts import alone
from selfcorrect.runs.loop import Loop
from selfcorrect.runs.run import resume
from tests.run.conftest import Listener, Whole
from tests.support.runs import KillPoint, Process, StopAt, brief, check_same, end_state, go, read_rows, recipe, tuned
from tests.support.tiny import tiny_lm

ONE_PROBLEM = {"problems": 1, "controls": False}


def test_the_run_is_worth_comparing(whole: Whole) -> None:
    """Rewards vary, every weight moves, and evaluations differ."""
    rows = read_rows(whole.path / "metrics.jsonl")
    assert [(row["step"], row["stage"], row["stage_step"]) for row in rows] == [
        *((step, "one", step) for step in range(1, 5)), *((step, "two", step - 4) for step in range(5, 9)),
    ]  # fmt: skip
    assert len({tuple(row["rewards"]) for row in rows}) > 2
    assert all(row["grad_norm"] > 0.01 and not row["skipped"] for row in rows)
    models = [load_file(whole.path / name / "model.safetensors") for name in ("models/one", "models/two")]
    assert all(not models[0][name].equal(models[1][name]) for name in models[0])
    assert len({(whole.path / "evaluations" / f"{n}.rollouts.jsonl").read_text() for n in ("base", "one", "two")}) == 3
    assert {path.name for path in saved(whole.path / "checkpoints")} == {"step-000006", "step-000008"}


@pytest.mark.usefixtures("lucky")
@pytest.mark.parametrize("step", [3, 4, pytest.param(8, marks=pytest.mark.nightly)])
def test_n_and_n_steps_are_2n(step: int, whole: Whole, stopped: Callable[[int, Path], Path], tmp_path: Path) -> None:
    """Ctrl-C lets step N end and keeps it; with N = 4 the stages lie on either side."""
    run = stopped(step, tmp_path / "run")
    assert [row["step"] for row in read_rows(run / "metrics.jsonl")] == list(range(1, step + 1))
    newest, warnings = load_newest(run / "checkpoints")
    assert (newest and newest.step, warnings) == (step, [])
    resume(run, Observer())
    check_same(run, whole.state)
    resume(run, Observer())  # a complete run has nothing left to do
    check_same(run, whole.state)


@pytest.mark.usefixtures("lucky")
def test_a_second_interrupt_does_not_wait(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And says what is lost: all since the last checkpoint, which may be many steps."""
    monkeypatch.setattr(interrupts, "SAME_PRESS", 0.0)
    often, seldom = (
        recipe(tmp_path, model, f"every-{every}", checkpoint={"every": every}, evaluation=ONE_PROBLEM)
        for every in (2, 50)
    )
    with pytest.raises(TrainingInterrupted, match=r"^stopped; steps 1 to 3 are lost; no checkpoint had been written"):
        go(seldom, StopAt(3, times=2))
    last = r"^stopped; step 3 is lost; checkpoint step-000002 is whole.*train --resume .*/every-2$"
    with pytest.raises(TrainingInterrupted, match=last):
        go(often, StopAt(3, times=2))


@pytest.mark.usefixtures("lucky")
def test_an_interrupt_between_steps_loses_none(
    model: Path, whole: Whole, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In what follows a step that no checkpoint was due at."""
    follow_up = Loop._follow_up

    def interrupted(self: Loop, **how: bool) -> None:
        if self.trainer.progress.step == 3:
            raise KeyboardInterrupt
        follow_up(self, **how)

    with monkeypatch.context() as patch:
        patch.setattr(Loop, "_follow_up", interrupted)
        with pytest.raises(TrainingInterrupted, match="checkpoint step-000003 is whole"):
            go(recipe(tmp_path, model))
    go(recipe(tmp_path, model))
    check_same(tmp_path / "run", whole.state)


def with_adapters() -> None:
    """What is imported for them is none of the run's time."""
    need_peft()


@pytest.mark.parametrize(
    ("tuning", "least"),
    [
        pytest.param("full", 5, marks=pytest.mark.nightly), pytest.param("full", 40, marks=pytest.mark.nightly),
        pytest.param("lora", 8, marks=pytest.mark.nightly),
    ],
)  # fmt: skip
def test_killed_at_random_moments(tuning: str, least: int, model: Path, tmp_path: Path) -> None:
    """SIGKILL at moments spread over the whole run, and over what is left of it after each kill."""
    ready = with_adapters if tuning == "lora" else None
    seconds = Process(tuned(recipe(tmp_path, model, name="whole"), tuning), ready).seconds()
    expected = end_state(tmp_path / "whole")
    rng, kills, runs = random.Random(0), 0, 0
    while kills < least:
        runs += 1
        settings = tuned(recipe(tmp_path, model, name=f"run{runs}"), tuning)
        moment = (runs % 8 + rng.random()) / 8  # each eighth of a run in turn, so that no part of it is left out
        while Process(settings, ready).kill_after(moment * seconds):
            kills += 1
            moment = rng.random()
        check_same(tmp_path / f"run{runs}", expected)
    assert runs > 1 or least < 10  # on a busy machine a run is killed oftener


def short(output: Path, model: Path, name: str = "run") -> dict[str, Any]:
    stages = [{**stage, "steps": 2} for stage in recipe(output, model)["stages"]]
    return recipe(output, model, name, stages=stages, evaluation={"problems": 4, "controls": False})


def points_of(settings: dict[str, Any], notes: Path) -> list[str]:
    """Every file operation of a whole run, in order."""
    Process(settings, KillPoint(Path(settings["output"]) / settings["name"], notes=notes)).seconds()
    return list(dict.fromkeys(notes.read_text().splitlines()))


def telling(points: list[str]) -> list[str]:
    """Those that commit something, or are in the middle of what no rename commits: of each kind the last but one."""
    kinds: dict[str, list[str]] = {}
    for point in points:
        if "os.rename" in point or ("within" in point and ".partial" not in point and not point.endswith(".tmp")):
            kind = re.sub(r"\d+|\b(base|one|two)\b", "", point.partition(": ")[2])
            kinds.setdefault(kind, []).append(point)
    chosen = {same[-2:][0] for same in kinds.values()}
    return [point for point in points if point in chosen]


@pytest.mark.parametrize("every", ["telling", pytest.param("all", marks=pytest.mark.nightly)])
def test_killed_at_file_operations(every: str, model: Path, tmp_path: Path) -> None:
    """One run killed again and again: before each file is written, when half of it is, before it is renamed, ..."""
    made = recipe if every == "all" else short
    points = points_of(made(tmp_path, model, "whole"), tmp_path / "notes")
    if every == "telling":
        points = telling(points)
    assert len(points) > 15
    settings, met = made(tmp_path, model), []
    for point in points:
        process = Process(settings, KillPoint(tmp_path / "run", at=point))
        if not process.killed():
            break
        met.append(point)
    else:
        Process(settings).seconds()
    check_same(tmp_path / "run", end_state(tmp_path / "whole"))
    assert met == points


def flip_a_bit(file: Path) -> None:
    contents = bytearray(file.read_bytes())
    contents[-9] ^= 1
    file.write_bytes(contents)


def truncate_the_state(checkpoint: Path) -> None:
    file = checkpoint / "state.json"
    file.write_text(file.read_text()[:-8])


def empty(checkpoint: Path) -> None:
    for file in checkpoint.iterdir():
        file.unlink()


DAMAGES: dict[str, Callable[[Path], object]] = {
    "bit flip": lambda c: flip_a_bit(c / "tensors.safetensors"),
    "tensors cut short": lambda c: (c / "tensors.safetensors").write_bytes((c / "state.json").read_bytes()),
    "state truncated": truncate_the_state,
    "state missing": lambda c: (c / "state.json").unlink(),
    "no manifest": lambda c: (c / "manifest.json").unlink(),
    "empty manifest": lambda c: (c / "manifest.json").write_text(""),
    "strange manifest": lambda c: (c / "manifest.json").write_text("[]"),
    "manifest of nothing": lambda c: (c / "manifest.json").write_text('{"sha256": {}}'),
    "no files": empty,
    "under another name": lambda c: shutil.copytree(c.with_name("step-000004"), c, dirs_exist_ok=True),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_seen(damage: str, stopped: Callable[[int, Path], Path], tmp_path: Path) -> None:
    run = stopped(6, tmp_path / "run")
    DAMAGES[damage](run / "checkpoints" / "step-000006")
    newest, warnings = load_newest(run / "checkpoints")
    assert newest
    assert newest.step == 4
    (warning,) = warnings
    assert warning.startswith("checkpoint step-000006 is damaged (")


@pytest.mark.usefixtures("lucky")
@pytest.mark.parametrize(
    ("damage", "step", "before"),
    [
        ("bit flip", 6, 4),
        pytest.param("no files", 5, 4, marks=pytest.mark.nightly),
        *(pytest.param("bit flip", step, before, marks=pytest.mark.nightly) for step, before in ((4, 2), (7, 6))),
    ],
)
def test_a_damaged_checkpoint_is_passed_over(
    damage: str, step: int, before: int, whole: Whole, stopped: Callable[[int, Path], Path], tmp_path: Path
) -> None:
    """At step 6 `best` is the second stage's already, while the checkpoint before is the end of the first."""
    run, listener = stopped(step, tmp_path / "run"), Listener()
    DAMAGES[damage](run / "checkpoints" / f"step-{step:06d}")
    resume(run, listener)
    assert listener.messages[0].startswith(f"warning: checkpoint step-{step:06d} is damaged")
    assert f"resuming after step {before}" in listener.messages
    check_same(run, whole.state)


@pytest.mark.usefixtures("lucky")
@pytest.mark.parametrize("name", ["best", "models/one"])
def test_a_damaged_model_folder_is_not_loaded(
    name: str, whole: Whole, stopped: Callable[[int, Path], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped at the end of stage one, whose weights would come from `models/one`, else `best`, else the checkpoint."""
    run, listener = stopped(4, tmp_path / "run"), Listener()  # before the patch: others get copies of this run
    if name == "best":  # what follows the checkpoint finds no better ones, so that `best` stays as it is
        monkeypatch.setattr(Loop, "_score", lambda loop: -1.0)
    if name != "best":
        shutil.copytree(run / "best", run / name)
    flip_a_bit(run / name / "model.safetensors")
    resume(run, listener)
    assert [m for m in listener.messages if m.startswith(f"warning: {run / name} is damaged (model.safetensors")]
    assert weights_of(run / "models" / "one")  # written anew, and whole
    if name != "best":
        check_same(run, whole.state)


@pytest.mark.usefixtures("lucky")
def test_damaged_files_of_a_run_are_named(stopped: Callable[[int, Path], Path], tmp_path: Path) -> None:
    """A log's damaged line is told of and left out; without what else a run reads it does not go on."""
    run, listener = stopped(4, tmp_path / "run"), Listener()
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text("".join([lines[0], "{torn\n", *lines[2:]]))
    resume(run, listener)
    told = f"warning: {run / 'metrics.jsonl'}: 1 lines are damaged and left out from now on (line 2)"
    assert told in listener.messages
    for name in ("asked.json", "environment.json"):
        whole_file = (run / name).read_text()
        for text, why in (("{", "damaged: Expecting"), ("[]", "damaged: no JSON object")):
            (run / name).write_text(text)
            with pytest.raises(CheckpointError, match=rf"{name}: {why}.*put it back from a copy"):
                resume(run, Listener())
        (run / name).write_text(whole_file)


@pytest.mark.usefixtures("lucky")
def test_another_base_model_is_refused(model: Path, stopped: Callable[[int, Path], Path], tmp_path: Path) -> None:
    """The KL is measured to it."""
    run = stopped(3, tmp_path / "run")
    other = tmp_path / "other"
    tiny_lm("llama", "eager", (3, 5, 7, 9), seed=5).save(other, torch.float32)
    settings = (run / "config.yaml").read_text()
    assert str(model) in settings
    (run / "config.yaml").write_text(settings.replace(str(model), str(other)))
    with pytest.raises(CheckpointError, match=r"model.path = .*/other' holds other weights than when .*/run began"):
        resume(run, Observer())


def test_a_run_has_one_process(model: Path, whole_brief: Whole, tmp_path: Path) -> None:
    settings = brief(tmp_path, model)
    with alone(tmp_path / "run"), pytest.raises(ConfigError, match=r"/run is being written by another process; wait"):
        go(settings)
    run = Path(shutil.copytree(whole_brief.path, tmp_path / "whole"))
    with alone(run), pytest.raises(ConfigError, match=r"another process; wait for it, or stop it$"):
        resume(run, Observer())


@pytest.mark.usefixtures("lucky")
def test_no_whole_checkpoint(stopped: Callable[[int, Path], Path], tmp_path: Path) -> None:
    run = stopped(5, tmp_path / "run")
    for checkpoint in saved(run / "checkpoints"):
        flip_a_bit(checkpoint / "tensors.safetensors")
    told = r"no checkpoint under .* is whole: .*step-000005.*step-000004.*afresh"
    with pytest.raises(CheckpointError, match=told) as caught:
        resume(run, Observer())
    assert "falling back" not in str(caught.value)


@pytest.mark.usefixtures("lucky")
@pytest.mark.parametrize("select", ["best", pytest.param("last", marks=pytest.mark.nightly)])
def test_best_is_kept_beside_the_last(
    select: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The smoothed rewards are made up: the best steps are 2 and 7. Step 5 starts a record of its own."""
    smoothed = {1: 0.3, 2: 0.6, 3: 0.5, 4: 0.4, 5: 0.1, 6: 0.2, 7: 0.5, 8: 0.4}
    train_step = Trainer.train_step

    def step(trainer: Trainer) -> StepResult:
        result = train_step(trainer)
        result.smoothed_reward = trainer.progress.smoothed_reward = smoothed[result.step]
        return result

    monkeypatch.setattr(Trainer, "train_step", step)
    run = go(recipe(tmp_path, model, checkpoint={"every": 1, "keep": 9, "select": select}, evaluation=ONE_PROBLEM))
    assert weights_of(run / "models" / "one") == weights_at(run, 2 if select == "best" else 4)
    assert weights_of(run / "models" / "two") == weights_at(run, 7 if select == "best" else 8)
    assert weights_of(run / "final") == weights_of(run / "models" / "two")
    assert weights_of(run / "best") == weights_at(run, 7)
    assert weights_at(run, 7) != weights_at(run, 8)


@pytest.mark.usefixtures("lucky")
def test_a_damaged_final_is_told_and_left(whole_brief: Whole, tmp_path: Path) -> None:
    """Its weights are the same file as those of best and models/, which are then damaged too; what else lies in it may
    be the user's.
    """
    run = Path(shutil.copytree(whole_brief.path, tmp_path / "run"))
    (run / "final" / "config.json").write_text("{}")
    listener = Listener()
    resume(run, listener)
    assert any("final is damaged" in line for line in listener.messages)
    assert (run / "final" / "config.json").read_text() == "{}"


def weights_of(folder: Path) -> dict[str, Any]:
    return {name: tensor.tolist() for name, tensor in load_file(folder / "model.safetensors").items()}


def weights_at(run: Path, step: int) -> dict[str, Any]:
    tensors = load_file(run / "checkpoints" / f"step-{step:06d}" / "tensors.safetensors")
    return {n.removeprefix("model/"): tensor.tolist() for n, tensor in tensors.items() if n.startswith("model/")}


@pytest.mark.parametrize("replaced", [False, True], ids=["between its renames", "after them"])
def test_a_folder_that_was_being_replaced_is_there(replaced: bool, tmp_path: Path) -> None:
    """A kill may leave the old folder under its other name; it comes back unless the new one has taken its place."""
    for name, text in ((f"{PARTIAL}best-old", "old"), ("best" if replaced else f"{PARTIAL}best-x7", "new")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model").write_text(text)
    sweep(tmp_path)
    assert [folder.name for folder in tmp_path.iterdir()] == ["best"]
    assert (tmp_path / "best" / "model").read_text() == ("new" if replaced else "old")
