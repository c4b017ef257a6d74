"""The commands on a tiny model, and that those which need no model load no heavy library."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from selfcorrect import cli
from selfcorrect.errors import ConfigError
from selfcorrect.recipe import load_recipe
from selfcorrect.runlog import make_trackers
from tests.support.runs import config, recipe

Command = Callable[..., str]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """command(arguments): its stdout; it must succeed."""

    def run(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["selfcorrect", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert not ended.value.code
        return capsys.readouterr().out

    return run


@pytest.fixture
def recipe_file(model: Path, tmp_path: Path) -> Path:
    """One step of one stage, all trackers that are used by default."""
    stage = {"name": "only", "objective": "stage1", "steps": 1, "learning_rate": 0.003}
    evaluation = {"problems": 4, "controls": True}
    settings: dict[str, Any] = recipe(tmp_path, model, stages=[stage], evaluation=evaluation, log={})
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.dump(settings))
    return file


def test_train_evaluate_play_report(recipe_file: Path, tmp_path: Path, command: Command) -> None:
    run = tmp_path / "run"
    out = command("train", str(recipe_file), "seed=3")
    assert "stage only: 1 steps" in out
    assert f"done: {run}" in out.replace("\n", "")
    assert out.endswith(f"report: {run}/report.html\n")
    written = json.loads((run / "evaluations" / "only.json").read_text())

    # The run's own recipe is found beside the model: same problems, same draws, same figures.
    evaluation = json.loads(command("evaluate", str(run / "final"), "--json"))
    assert evaluation["name"] == "final"
    for part in ("summary", "sampled", "controls"):
        assert evaluation[part] == written[part]
    assert command("evaluate", str(run / "final")).startswith("final: t1 ")

    played = command("play", "12 9 3 = 4", "--model", str(run / "final"))
    assert played.startswith("12 9 3 : 4\n")
    assert played.count("attempt") == 2
    (run / "report.html").unlink()
    assert command("report", str(run)) == f"report: {run}/report.html\n"
    assert (run / "report.html").stat().st_size > 10_000
    assert command("train", "--resume", str(run)).endswith(f"report: {run}/report.html\n")  # nothing left to do


def test_tensorboard_has_the_metrics(recipe_file: Path, tmp_path: Path, command: Command) -> None:
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    command("train", str(recipe_file))
    events = event_accumulator.EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    assert {"rewards/t1", "rewards/t2", "kl/t1", "loss", "evaluation/accuracy/t2/value"} <= set(
        events.Tags()["scalars"]
    )
    row = json.loads((tmp_path / "run" / "metrics.jsonl").read_text())
    (point,) = events.Scalars("grad_norm")
    assert (point.step, point.value) == (1, pytest.approx(row["grad_norm"], rel=1e-6))


@pytest.mark.parametrize("library", ["wandb", "trackio"])
def test_a_tracker_that_is_not_installed(library: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    settings = config(tmp_path, tmp_path, log={"trackers": [library]})
    with pytest.raises(
        ConfigError, match=rf"names {library}, which is not installed; pip install 'selfcorrect\[{library}"
    ):
        make_trackers(tmp_path, settings)
    assert list(tmp_path.iterdir()) == []


def test_wandb_like_trackers_get_flat_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[Any, ...]] = []

    class Library:
        init = staticmethod(lambda **kwargs: calls.append(("init", kwargs["name"], kwargs["config"]["seed"])))
        log = staticmethod(lambda values, step: calls.append(("log", values, step)))
        finish = staticmethod(lambda: calls.append(("finish",)))

    monkeypatch.setitem(sys.modules, "trackio", Library)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    (tracker,) = make_trackers(tmp_path / "run", config(tmp_path, tmp_path, log={"trackers": ["trackio"]}))
    tracker.log({"loss": 0.5}, 3)
    tracker.close()
    assert calls == [("init", "run", 0), ("log", {"loss": 0.5}, 3), ("finish",)]


def test_check_prints_a_recipe_that_is_the_same(recipe_file: Path, tmp_path: Path, command: Command) -> None:
    resolved = tmp_path / "resolved.yaml"
    resolved.write_text(command("check", str(recipe_file), "stages.only.beta1=4e-5"))
    assert load_recipe(resolved) == load_recipe(recipe_file, ["stages.only.beta1=4e-5"])
    assert "beta1: 4.0e-05" in resolved.read_text()


def test_tasks_are_listed(command: Command) -> None:
    assert command("tasks").startswith("countdown ")


def test_light_commands_load_nothing_heavy(recipe_file: Path) -> None:
    code = """
import sys
from selfcorrect import cli
sys.argv = ["selfcorrect", *sys.argv[1:]]
try:
    cli.main()
except SystemExit as ended:
    assert not ended.code
heavy = {"torch", "transformers", "safetensors", "tensorboard"} & set(sys.modules)
assert not heavy, heavy
"""
    for arguments in (["--help"], ["train", "--help"], ["check", str(recipe_file)], ["tasks"]):
        done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert done.stdout


def test_a_lab_base_recipe_trains_a_model(tmp_path: Path, command: Command) -> None:
    settings = {
        "kind": "lab_base", "output": str(tmp_path / "base"), "threads": 1, "hidden_size": 32, "layers": 1, "heads": 2,
        "steps": 1, "batch": 4,
    }  # fmt: skip
    file = tmp_path / "base.yaml"
    file.write_text(yaml.dump(settings))
    assert command("train", str(file)).endswith(f"model: {tmp_path}/base\n")
    assert command("evaluate", str(tmp_path / "base"), "evaluation.problems=2", "evaluation.controls=false")
