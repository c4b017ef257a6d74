"""What a run keeps: models in the dtype they came in, shared where equal; room told first; a first save; prune."""

import json
import re
import shutil
import signal
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from unittest.mock import DEFAULT, Mock

import pytest
import torch
from safetensors.torch import load_file, save_file

from selfcorrect.errors import CheckpointError, ConfigError, ModelError, TrainingInterrupted
from selfcorrect.models.language_model import LanguageModel
from selfcorrect.models.stored import stored_dtype
from selfcorrect.runs import disk, loop
from selfcorrect.runs.checkpoint import load_newest, save, saved
from selfcorrect.runs.display import Observer
from selfcorrect.runs.interrupts import alone
from selfcorrect.runs.run import resume
from tests.conftest import Called
from tests.run.conftest import ENDS, Listener, Whole
from tests.support.runs import StopAt, brief, check_same, end_state, go, recipe
from tests.support.tiny import tiny_lm

pytestmark = pytest.mark.usefixtures("lucky")


@pytest.fixture(scope="module")
def small_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """In bfloat16."""
    folder = tmp_path_factory.mktemp("small")
    tiny_lm("llama", "eager", ENDS, layers=1).save(folder, torch.bfloat16)
    return folder


class StopAtEvaluation(Observer):
    """Ctrl-C once a stage's model is kept, and before the next stage's first step."""

    def __init__(self, name: str) -> None:
        self._name = name

    def evaluating(self, name: str) -> None:
        if name == self._name:
            signal.raise_signal(signal.SIGINT)


def test_freed_memory_is_given_back_before_each_checkpoint(
    small_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a shard's bytes are made in memory, in one piece."""
    order = Mock()
    order.save.side_effect = save
    for name in ("give_back", "save"):
        monkeypatch.setattr(loop, name, getattr(order, name))
    go(brief(tmp_path, small_model))
    assert [name for name, *_ in order.mock_calls] == 2 * ["give_back", "save"]


@pytest.mark.parametrize("select", ["best", pytest.param("last", marks=pytest.mark.nightly)])
def test_a_bfloat16_model_stays_one(select: str, small_model: Path, tmp_path: Path) -> None:
    """Bit for bit the same however the run is stopped, though what a stage hands on is rounded and checkpoints are not."""
    one, two = ({**stage, "steps": 2} for stage in recipe(tmp_path, small_model)["stages"])
    changes = {
        "checkpoint": {"every": 1, "smoothing": 0.5, "select": select}, "stages": [one, two],
        "algorithm": {"reference": "previous_stage"}, "evaluation": {"problems": 4, "controls": False},
    }  # fmt: skip
    run = go(recipe(tmp_path, small_model, name="whole", **changes))
    expected = end_state(run)
    for folder in ("best", "models/one", "models/two", "final"):
        tensors = load_file(run / folder / "model.safetensors")
        assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
        assert "lm_head.weight" not in tensors  # tied: once
        assert json.loads((run / folder / "config.json").read_text())["dtype"] == "bfloat16"
    kept = load_file(saved(run / "checkpoints")[-1] / "tensors.safetensors")["model/model.norm.weight"]
    assert kept.dtype == torch.float32
    assert not torch.equal(kept, kept.bfloat16().float())
    inodes = {name: (run / name / "model.safetensors").stat().st_ino for name in ("models/one", "models/two", "final")}
    assert inodes["models/two"] == inodes["final"] != inodes["models/one"]
    if select == "best":
        assert (run / "best" / "model.safetensors").stat().st_ino == inodes["final"]
    stops: dict[str, Observer] = {"step3": StopAt(3), "evaluating": StopAtEvaluation("one")}
    for name, observer in stops.items():
        settings = recipe(tmp_path, small_model, name=name, **changes)
        with pytest.raises(TrainingInterrupted):
            go(settings, observer)
        check_same(go(settings), expected)


def test_the_dtype_is_that_of_the_weights(model: Path, small_model: Path, tmp_path: Path) -> None:
    assert stored_dtype(str(model)) == torch.float32
    assert stored_dtype(str(small_model)) == torch.bfloat16
    assert stored_dtype("lab") == torch.bfloat16
    shutil.copytree(small_model, tmp_path / "m")
    halves = {name: tensor.half() for name, tensor in load_file(small_model / "model.safetensors").items()}
    first, *rest = sorted(halves)
    save_file({first: halves[first].float()}, tmp_path / "m" / "a.safetensors")
    save_file({name: halves[name] for name in rest}, tmp_path / "m" / "b.safetensors")
    (tmp_path / "m" / "model.safetensors").unlink()
    where = {"weight_map": dict.fromkeys(rest, "b.safetensors") | {first: "a.safetensors"}}
    (tmp_path / "m" / "model.safetensors.index.json").write_text(json.dumps(where))
    assert stored_dtype(str(tmp_path / "m")) == torch.float16  # config.json still says bfloat16
    for file in ("a.safetensors", "b.safetensors", "model.safetensors.index.json"):
        (tmp_path / "m" / file).unlink()
    assert stored_dtype(str(tmp_path / "m")) == torch.bfloat16  # nothing else to go by


def test_a_first_save_is_tried(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before step 1, and before anything is written: what is mended can be run under the same name."""
    refuse = Mock(side_effect=ValueError("GenerationConfig is invalid:\n`temperature` is set"))
    with monkeypatch.context() as patch:
        patch.setattr(LanguageModel, "save", refuse)
        with pytest.raises(
            ModelError, match=r"loaded but not saved, .*: GenerationConfig is invalid: `temperature` is set; mend"
        ):
            go(brief(tmp_path / "new" / "runs", model))
    assert list(tmp_path.iterdir()) == []
    go(brief(tmp_path / "new" / "runs", model))


def test_a_save_that_fails_later_loses_no_step(
    model: Path, whole_brief: Whole, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The checkpoint comes before `best`, and a run that goes on makes up for what was not kept."""
    second = Mock(wraps=disk.save_model, side_effect=[DEFAULT, RuntimeError("no"), *[DEFAULT] * 9])
    monkeypatch.setattr(loop, "save_model", second)
    with pytest.raises(RuntimeError, match="no"):
        go(brief(tmp_path, model))
    newest, _ = load_newest(tmp_path / "run" / "checkpoints")
    assert newest
    assert newest.step == len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
    check_same(go(brief(tmp_path, model)), whole_brief.state)


def test_checkpoints_by_minutes(model: Path, whole: Whole, tmp_path: Path) -> None:
    """They keep a slow step and choose nothing."""
    run = go(recipe(tmp_path, model, checkpoint={"every": 2, "smoothing": 0.5, "minutes": 1e-9, "keep": 9}))
    assert len(saved(run / "checkpoints")) == 8
    state, expected = (
        {n: v for n, v in s.items() if not n.startswith("checkpoints/")} for s in (end_state(run), whole.state)
    )
    assert state == expected


def test_room_is_told_and_checked_first(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listener = Listener()
    run = go(brief(tmp_path, model), listener)
    (told,) = [message for message in listener.messages if message.startswith("disk: ")]
    size = sum(path.stat().st_size for path in (run / "checkpoints" / "step-000002").iterdir())
    said = re.search(r"\(3 checkpoints of ([\d.]+) kB while one is replaced, 2 models of ", told)
    assert said
    assert 0.9 < 1000 * float(said[1]) / size < 1.0  # beside the heads of the files
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9 - 1000, 1000))
    with pytest.raises(
        CheckpointError, match=r"other: the run may take up to .* and 1.0 kB are free there; .* \(now 2\)"
    ):
        go(brief(tmp_path, model, name="other"))
    assert not (tmp_path / "other").exists()
    resume(run, Listener())  # all it needs is there already


def test_prune(whole: Whole, stopped: Callable[[int, Path], Path], tmp_path: Path, called: Called) -> None:
    run, begun = Path(shutil.copytree(whole.path, tmp_path / "my run")), stopped(5, tmp_path / "begun")

    def prune(folder: Path) -> tuple[int, str]:
        status, out, err = called("prune", str(folder))
        return status, out + err

    for folder, told in (
        (begun, "is not finished, and its checkpoints are"),
        (tmp_path, "holds no run to prune"),
        (tmp_path / "no", "holds no run"),
    ):
        assert prune(folder)[0] == 2
        assert told in prune(folder)[1]
    with alone(run):
        assert "being written by another process" in prune(run)[1]
    left = {name: value for name, value in end_state(run).items() if not name.startswith("checkpoints/")}
    code, out = prune(run)
    assert code == 0
    assert out.startswith("freed ")
    assert ": 2 checkpoints of " in out
    assert "can no longer be resumed or extended" in out
    assert prune(run) == (0, f"{run} holds no checkpoints; nothing to remove\n")
    assert end_state(run) == left
    listener = Listener()
    resume(run, listener)
    assert listener.messages == [f"{run} is complete, and its checkpoints are gone: there is nothing to go on with"]
    with pytest.raises(
        ConfigError, match=f"cannot go on .*stages.two.steps.*'{run}/config.yaml' name=NEW model.path='{run}/final'"
    ):
        resume(run, listener, ["stages.two.steps=6"])
    assert end_state(run) == left
