"""A run that fails or is stopped before its first checkpoint stands in nobody's way."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from selfcorrect import api
from selfcorrect.config import TrainConfig
from selfcorrect.config.paths import USED
from selfcorrect.errors import ConfigError, NothingGraded, UserError
from selfcorrect.evaluation.evaluate import Evaluator
from selfcorrect.learning.training import Trainer
from selfcorrect.models.files import resolve_path
from selfcorrect.runs import run
from selfcorrect.runs.disk import prune_run
from selfcorrect.runs.display import Observer
from selfcorrect.runs.folder import RunFolder
from selfcorrect.runs.interrupts import alone
from selfcorrect.runs.run import resume, start
from tests.run.conftest import Listener, Whole
from tests.support.runs import brief, check_same, valid

UNREADABLE = {"max_number": 12, "limit": 12, "prompt": "13 {numbers} : {target}", "correction_prompt": "?"}


def asked(*args: Any, **changes: Any) -> TrainConfig:
    return valid(brief(*args, **changes))


def test_a_failed_start_leaves_nothing(model: Path, tmp_path: Path, whole_brief: Whole, lucky: None) -> None:
    """13 is no word of the tokenizer's."""
    with pytest.raises(NothingGraded):
        start(asked(tmp_path / "runs", model, task=UNREADABLE), Listener())
    assert not (tmp_path / "runs").exists()
    (tmp_path / "runs" / "run").mkdir(parents=True)
    with pytest.raises(NothingGraded):
        start(asked(tmp_path / "runs", model, task=UNREADABLE), Listener())
    assert [file.name for file in (tmp_path / "runs" / "run").iterdir()] == [".lock"]
    check_same(start(asked(tmp_path / "runs", model), Listener()), whole_brief.state)


def test_a_start_killed_at_its_trackers_begins_anew(
    model: Path, tmp_path: Path, whole_brief: Whole, lucky: None
) -> None:
    for tracker in ("tensorboard", "wandb"):
        (tmp_path / "run" / tracker / "run-1").mkdir(parents=True)
    (tmp_path / "run/.lock").touch()
    check_same(start(asked(tmp_path, model), Listener()), whole_brief.state)


@pytest.mark.parametrize(
    "file", ["notes.txt", "report.html", "tensorboard/events.1", "wandb/debug.log", "final/model.safetensors", "evaluations/mine.csv",
             "checkpoints/step-000003/state.json"]
)  # fmt: skip
def test_files_of_others_are_neither_replaced_nor_taken_over(file: str, model: Path, tmp_path: Path) -> None:
    """They lie where a run and an evaluation are to go, and no config.yaml says that a run put them there."""
    theirs = tmp_path / "run" / file
    theirs.parent.mkdir(parents=True)
    theirs.write_text("the user's own")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ConfigError, match=rf"run holds {file.partition('/')[0]} and no config.yaml, .*choose another"):
        start(asked(tmp_path, model), Listener())
    with pytest.raises(ConfigError, match=rf"run holds {file.partition('/')[0]} and no config.yaml, .*choose another"):
        api.evaluate(model, recipe=brief(tmp_path, model), output=tmp_path / "run")
    assert sorted(tmp_path.rglob("*")) == before
    assert theirs.read_text() == "the user's own"


def test_the_same_command_goes_on(
    model: Path, tmp_path: Path, whole_brief: Whole, lucky: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its evaluation of the base model is kept."""
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_step", Mock(side_effect=NothingGraded("the judge is gone")))
        with pytest.raises(NothingGraded):
            start(asked(tmp_path, model), Listener())
    base = tmp_path / "run" / "evaluations" / "base.json"
    made = base.stat().st_mtime_ns
    with pytest.raises(
        ConfigError, match=r"already holds a run, begun with other settings: seed is 9, but was 0; resume"
    ):
        start(asked(tmp_path, model, seed=9), Listener())
    listener = Listener()
    check_same(start(asked(tmp_path, model), listener), whole_brief.state)
    assert base.stat().st_mtime_ns == made
    assert (
        listener.messages[0]
        == f"{tmp_path}/run was begun with these settings, and no step is kept yet: going on with it"
    )
    with pytest.raises(ConfigError, match=r"run already holds a run; resume it with"):
        start(asked(tmp_path, model), Listener())


def test_a_beginning_with_other_settings_is_cleared(
    model: Path, tmp_path: Path, whole_brief: Whole, lucky: None
) -> None:
    """As `kill -9` leaves it before the base model is evaluated."""
    run, listener = tmp_path / "run", Listener()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("selfcorrect.runs.loop.Loop.run", lambda *_: None)
        start(asked(tmp_path, model, seed=9), Listener())
    assert (run / "config.yaml").is_file()
    check_same(start(asked(tmp_path, model), listener), whole_brief.state)
    assert re.search("held the beginning of a run with other settings, .* it begins anew", listener.messages[0])


@pytest.mark.parametrize(("changed", "goes_on"), [({}, True), ({"seed": 9}, False)])
def test_what_was_evaluated_by_then_is_not_lost(
    changed: dict[str, Any], goes_on: bool, model: Path, tmp_path: Path, whole_brief: Whole, lucky: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Another learning rate leaves the base model's evaluation as it was; with another seed it begins anew."""
    dies = Mock(side_effect=RuntimeError("killed before the evaluation is written"))
    stages = brief(tmp_path, model)["stages"]
    stages[0]["learning_rate"] = 0.5
    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "write_evaluation", dies)
        with pytest.raises(RuntimeError, match="killed"):
            start(asked(tmp_path, model, stages=stages, **changed), Listener())
    listener, found, chunk = Listener(), list[int](), Evaluator._chunk

    def counted(*arguments: Any) -> Any:
        found.append(arguments[-1].count)
        return chunk(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Evaluator, "_chunk", counted)
        check_same(start(asked(tmp_path, model), listener), whole_brief.state)
    assert found[0] == (4 if goes_on else 0)
    assert any("evaluation base begins anew" in told for told in listener.messages) != goes_on


@pytest.mark.parametrize("other", ["m", "base-2"])
def test_an_evaluation_that_was_stopped_stands_alone(other: str, model: Path, tmp_path: Path, lucky: None) -> None:
    """No run and no other evaluation begins beside it; where one has all the same, it is not written over."""
    run, named, settings = tmp_path / "run", Path(shutil.copytree(model, tmp_path / other)), brief(tmp_path, model)
    kept = run / "evaluations" / "kept" / f"{other}.json"
    kept.parent.mkdir(parents=True)
    kept.write_text("{}")
    beside: list[Callable[[], object]] = [
        lambda: start(asked(tmp_path, model), Listener()), lambda: api.evaluate(model, recipe=settings, output=run)
    ]  # fmt: skip
    for call in beside:
        with pytest.raises(
            ConfigError, match=rf"the beginning of another evaluation \(.*/{other}\.json\), which its own"
        ):
            call()
    shutil.rmtree(run)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("selfcorrect.runs.loop.Loop.run", lambda *_: None)
        start(asked(tmp_path, model), Listener())
    kept.parent.mkdir()
    kept.write_text("{}")
    before = {file: file.read_bytes() for file in run.rglob("*") if file.is_file()}
    with pytest.raises(ConfigError, match="already holds a run"):
        api.evaluate(named, recipe=settings, output=run)
    assert {file: file.read_bytes() for file in run.rglob("*") if file.is_file()} == before


def test_nothing_is_evaluated_into_a_run_under_way(model: Path, tmp_path: Path) -> None:
    """One that has written nothing by now; one that began while the model was loaded is found too."""
    settings = brief(tmp_path, model)
    with alone(tmp_path / "run"), pytest.raises(ConfigError, match="run is being written by another process; wait"):
        api.evaluate(model, recipe=settings, output=tmp_path / "run")

    def begins(*_: Any) -> list[str]:
        (tmp_path / "run").mkdir(exist_ok=True)
        (tmp_path / "run" / begun).write_text("")
        return []

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(api, "unread", begins)
        begun = "config.yaml"  # another evaluation, which has ended
        with pytest.raises(ConfigError, match="already holds a run"):
            api.evaluate(model, recipe=settings, output=tmp_path / "run")
        assert not (tmp_path / "run" / "evaluations").exists()
        shutil.rmtree(tmp_path / "run")
        begun = USED
        with pytest.raises(ConfigError, match="already holds a run"):
            api.evaluate(model, recipe=settings, output=tmp_path / "run")


def test_a_model_called_base_is_evaluated_without_training(model: Path, tmp_path: Path, lucky: None) -> None:
    named = Path(shutil.copytree(model, tmp_path / "base"))
    folder = api.evaluate(named, recipe=brief(tmp_path, named), output=tmp_path / "run").folder
    assert folder
    page = (folder / "report.html").read_text()
    assert "Before training" not in page
    assert "before training" not in page
    assert "not finished" not in page
    assert (folder / "evaluations" / "base-model.json").exists()


def test_an_evaluation_is_no_run(model: Path, tmp_path: Path, lucky: None) -> None:
    settings = brief(tmp_path, model)
    folder = api.evaluate(model, recipe=settings, output=tmp_path / "run").folder
    assert folder
    before = sorted(folder.rglob("*"))
    refused: dict[str, Callable[[], object]] = {
        "an evaluation, which keeps no checkpoints: there is nothing to prune": lambda: prune_run(folder),
        "holds an evaluation, not a run: the same `selfcorrect evaluate` command": lambda: resume(folder, Listener()),
        "already holds an evaluation; choose another name": lambda: start(asked(tmp_path, model), Listener()),
        "is an evaluation of a model, not a model; name the model itself": lambda: resolve_path(str(folder)),
    }
    for told, call in refused.items():
        with pytest.raises(UserError, match=re.escape(told)):
            call()
    assert sorted(folder.rglob("*")) == before


def test_a_path_that_is_missing_is_told_before_anything_is_read(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the command does before torch is there, so a session does, and every rank, which has a disk of its own."""
    monkeypatch.setattr(run, "make_task", lambda *_: pytest.fail("data is read"))
    held_out = {"select": "held_out", "held_out": "none.jsonl"}
    missing = {"model.path": (tmp_path / "none", {}), "checkpoint.held_out": (model, {"checkpoint": held_out})}
    for setting, (path, changes) in missing.items():
        with pytest.raises(ConfigError, match=rf"^{setting} = '\S*none\S*: no such"):
            start(asked(tmp_path, path, **changes), Observer())
