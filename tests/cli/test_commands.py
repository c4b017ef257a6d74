"""The commands on a tiny model, and that those which need no model load no heavy library."""

import json
import os
import re
import subprocess
import sys
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
import yaml

import selfcorrect
from selfcorrect import cli
from selfcorrect.commands import SECTIONS
from selfcorrect.config import TASK_KINDS
from selfcorrect.config.recipe import load_recipe
from selfcorrect.config.shipped import shipped_recipe, shipped_recipes
from selfcorrect.errors import ConfigError, DataError
from selfcorrect.models.stored import stored_dtype
from selfcorrect.runs.recipes import recipe_beside
from selfcorrect.runs.trackers import make_trackers
from selfcorrect.waiting import SPINS, wait_briefly
from tests.conftest import Called, Command
from tests.support.runs import config, go, read_rows, recipe


@pytest.fixture(scope="module")
def finished(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of such a recipe."""
    return go(one_step(tmp_path_factory.mktemp("finished"), model))


def one_step(output: Path, model: Path) -> dict[str, Any]:
    stage = {"name": "only", "objective": "stage1", "steps": 1, "learning_rate": 0.003}
    evaluation = {"problems": 4, "controls": True}
    return recipe(output, model, stages=[stage], evaluation=evaluation, log={})


@pytest.fixture
def recipe_file(model: Path, tmp_path: Path) -> Path:
    """One step of one stage, all trackers that are used by default."""
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.dump(one_step(tmp_path, model)))
    return file


def test_train_evaluate_play_report(recipe_file: Path, tmp_path: Path, command: Command) -> None:
    run = tmp_path / "run"
    out = command("train", str(recipe_file), "seed=3")
    assert "stage only: 1 steps" in out
    assert f"done: {run}" in out.replace("\n", "")
    written = json.loads((run / "evaluations" / "only.json").read_text())
    head, before, after, about, told = out.splitlines()[-5:]
    assert head.split() == ["Accuracy@t1", "Accuracy@t2", "delta", "[95", "%]", "i->c", "c->i"]
    assert before.startswith("before training  ")
    values = [100 * each["value"] for each in [*written["summary"]["accuracy"], written["summary"]["delta"]]]
    assert after.split()[:5] == ["after", "only", f"{values[0]:.1f}", f"{values[1]:.1f}", f"{values[2]:+.1f}"]
    assert about.startswith("percent of n = 4 problems; nothing can be concluded: only 4 problems")
    assert told == f"report: {run}/report.html"

    # The run's own recipe is found beside the model: same problems, same draws, same figures.
    evaluation = json.loads(command("evaluate", str(run / "final"), "--json"))
    assert evaluation["name"] == "final"
    for part in ("summary", "sampled", "controls"):
        assert evaluation[part] == written[part]
    assert command("evaluate", str(run)).startswith("final on countdown: t1 ")

    played = command("play", "12 9 3 = 4", "rollouts.attempts=3", "--model", str(run))
    assert played.startswith("12 9 3 : 4\n")
    assert played.count("attempt") == 3
    (run / "report.html").unlink()
    assert command("report", str(run)) == f"report: {run}/report.html\n"
    assert (run / "report.html").stat().st_size > 10_000
    assert command("train", "--resume", str(run)).endswith(f"report: {run}/report.html\n")  # nothing left to do


def test_tensorboard_has_the_metrics(finished: Path) -> None:
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = event_accumulator.EventAccumulator(str(finished / "tensorboard"))
    events.Reload()
    assert {"rewards/t1", "rewards/t2", "kl/t1", "loss", "evaluation/accuracy/t2/value"} <= set(
        events.Tags()["scalars"]
    )
    row = json.loads((finished / "metrics.jsonl").read_text())
    (point,) = events.Scalars("grad_norm")
    assert (point.step, point.value) == (1, pytest.approx(row["grad_norm"], rel=1e-6))


@pytest.mark.parametrize("library", ["wandb", "trackio"])
def test_a_tracker_that_is_not_installed(library: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    settings = config(tmp_path, tmp_path, log={"trackers": [library]})
    with pytest.raises(
        ConfigError, match=rf"names {library}, which is not installed; pip install 'selfcorrect\[{library}"
    ):
        make_trackers(tmp_path, settings, "", 0)
    assert list(tmp_path.iterdir()) == []


def test_wandb_like_trackers_get_flat_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[Any, ...]] = []

    class Library:
        init = staticmethod(
            lambda **kwargs: calls.append(("init", kwargs["name"], kwargs["resume"], kwargs["config"]["seed"]))
        )
        log = staticmethod(lambda values, step: calls.append(("log", values, step)))
        finish = staticmethod(lambda: calls.append(("finish",)))

    monkeypatch.setitem(sys.modules, "trackio", Library)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    trackers = make_trackers(
        tmp_path / "run", config(tmp_path, tmp_path, log={"trackers": ["trackio"]}), "2026-01-02T03:04:05+00:00", 0
    )
    trackers.log({"loss": 0.5}, 3)
    trackers.close()
    assert calls == [("init", "run-20260102T0304050000", "allow", 0), ("log", {"loss": 0.5}, 3), ("finish",)]


def test_the_recipe_that_goes_with_a_model(finished: Path, model: Path) -> None:
    """That of its own run, at the depths where runs keep models; never a config.yaml that happens to lie above."""
    above = finished.parent
    for folder in ("final", "best", "models/only"):
        assert recipe_beside(finished / folder) == finished / "config.yaml"
    (above / "config.yaml").write_text("something: else")
    (above / "a" / "b").mkdir(parents=True)
    for other in (model, above / "a" / "b", "org/name"):
        assert recipe_beside(other) is None
    demo = shipped_recipe("demo")
    assert recipe_beside("lab") == recipe_beside(demo.parents[1] / "assets/lab_base") == demo


def test_the_readme_s_python_runs(recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Word for word, with a recipe of one step under the name it uses."""
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "demo.yaml").write_text(recipe_file.read_text())
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(code, names)
    assert names["evaluation"].summary.n == 4
    assert len(names["rollout"].attempts) == 2


def test_the_python_page_runs(
    recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its blocks one after the other, word for word, and what its text names."""
    pytest.importorskip("pandas")
    page = (Path(__file__).parents[2] / "docs/python.md").read_text(encoding="utf-8")
    (tmp_path / "mine.yaml").write_text(recipe_file.read_text())
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for code in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        exec(code, names)
    steps, texts, evaluation = (names[name] for name in ("steps", "texts", "evaluation"))
    assert steps["rewards/t2"].tolist() == names["second"].rewards
    assert names["scores"]["name"].tolist() == ["base", "only"]
    assert texts["t2/outcome"].tolist() == [
        row["attempts"][1]["outcome"] for row in read_rows(names["run"] / "evaluations/base.rollouts.jsonl")
    ]
    assert len(names["here"]) == evaluation.summary.n
    assert json.loads(json.dumps(evaluation.to_dict())) == json.loads(
        (evaluation.folder / f"evaluations/{evaluation.name}.json").read_text()
    )
    said = capsys.readouterr().out
    assert f"{evaluation!r}\n{names['rollout']!r}\n" in said
    assert len(repr(evaluation)) + len(repr(names["rollout"])) + len(repr(evaluation.summary)) < 1200
    table = {
        name
        for cells in re.findall(r"^\| .* \| (`.*) \|$", page, re.MULTILINE)
        for name in re.findall(r"`(\w+)`", cells)
    }
    assert table == {name for name in selfcorrect.__all__ if name.islower() and name[0] != "_"}
    methods = re.search(r"its methods: (.*?)\)", page)
    assert methods
    assert set(re.findall(r"`(\w+)`", methods[1])) == {name for name in vars(selfcorrect.Observer) if name[0] != "_"}
    assert set(selfcorrect.__all__) <= set(dir(selfcorrect))
    with pytest.raises(DataError, match="there are steps, alarms, evaluations, rollouts, base, only"):
        selfcorrect.records(names["run"], "nosuch")


def test_check_prints_a_recipe_that_is_the_same(recipe_file: Path, tmp_path: Path, command: Command) -> None:
    resolved = tmp_path / "resolved.yaml"
    resolved.write_text(command("check", str(recipe_file), "stages.only.beta1=4e-5"))
    assert load_recipe(resolved) == load_recipe(recipe_file, ["stages.only.beta1=4e-5"])
    assert "beta1: 4.0e-05" in resolved.read_text()


def test_tasks_are_listed(command: Command) -> None:
    assert [line.split()[0] for line in command("tasks").splitlines()] == list(TASK_KINDS)


def test_light_commands_and_refusals_load_nothing_heavy(recipe_file: Path, tmp_path: Path) -> None:
    spelt = tmp_path / "spelt.yaml"
    spelt.write_text(recipe_file.read_text() + "\nseeed: 1\n")
    done, begun, full = tmp_path / "run", tmp_path / "begun", tmp_path / "full"
    for folder in (done / "final", begun, full):
        folder.mkdir(parents=True)
    for folder in (done, begun):
        (folder / "config.yaml").write_text(recipe_file.read_text())
    asked = [["--help"], ["train", "--help"], ["check", str(recipe_file)], ["tasks"]]
    refused = [
        ["train", str(spelt)], ["train", str(recipe_file), "seed=x"], ["train", "no.yaml"], ["train"],
        ["train", "--resume", "runs/nothing"], ["train", str(recipe_file), "--resume", str(begun)],
        ["train", "--resume", str(begun), "seed=x"], ["train", str(recipe_file)],
        ["train", str(recipe_file), "name=other", "evaluation.external=[no.jsonl]"],
        ["evaluate", str(recipe_file), "seed=x"], ["evaluate", str(begun / "final")], ["evaluate", str(recipe_file), "evaluation.external=[no.jsonl]"],
        ["play", "5 2 1 = 8", "--recipe", str(spelt)], ["scale", "lab", "seed=x", "--output", str(full)], ["compare", str(spelt)], ["compare", "compare_lab", "common.seeed=1"],
        ["make-repair-set", "lab", "--recipe", str(spelt), "--output", "x"], ["serve", "lab", "--recipe", str(spelt)],
        ["grade", "--task", "math", "no.jsonl"], ["grade", "--task", "math", str(spelt), "task.dat=x"],
        ["demo", "seed=x"], ["export", str(done), str(full)], ["plan", "no.yaml"], ["plan", str(recipe_file), "seed=x"],
    ]  # fmt: skip
    code = f"""
import sys
from selfcorrect import cli
for status, commands in ((0, {asked!r}), (2, {refused!r})):
    for arguments in commands:
        sys.argv = ["selfcorrect", *arguments]
        try:
            cli.main()
        except SystemExit as ended:
            assert (ended.code or 0) == status, arguments
        heavy = {{"torch", "transformers", "safetensors", "tensorboard"}} & set(sys.modules)
        assert not heavy, (arguments, heavy)
        print("told", arguments)
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert all(ended.stdout.split(f"told {one}")[0].strip() for one in asked)
    assert ended.stderr.count("error: ") == len(refused)


def test_a_lab_base_recipe_trains_a_model(tmp_path: Path, command: Command) -> None:
    settings = {
        "kind": "lab_base", "output": str(tmp_path / "base"), "threads": 1, "hidden_size": 32, "layers": 1, "heads": 2,
        "steps": 1, "batch": 4,
    }  # fmt: skip
    file = tmp_path / "base.yaml"
    file.write_text(yaml.dump(settings))
    assert command("train", str(file)).endswith(f"model: {tmp_path}/base\n")
    assert stored_dtype(str(tmp_path / "base")) == torch.bfloat16
    assert json.loads((tmp_path / "base" / "config.json").read_text())["dtype"] == "bfloat16"
    assert command("evaluate", str(tmp_path / "base"), "evaluation.problems=2", "evaluation.controls=false")


def test_analyse_and_scale(recipe_file: Path, tmp_path: Path, command: Command) -> None:
    command("train", str(recipe_file), "stages.0.steps=2", "evaluation.every=1", "log.rollouts_every=1")
    out = command("analyse", str(tmp_path / "run"), "--output", str(tmp_path / "figures"))
    drawn = {path.stem for path in (tmp_path / "figures").glob("*.svg")}
    assert drawn >= {
        "edits_held_out",
        "edits_training",
        "first_attempts",
        "training_accuracy",
        "flow_base",
        "flow_only",
    }
    assert drawn == {path.stem for path in (tmp_path / "figures").glob("*.csv")}
    assert len(out.splitlines()) == len(drawn)
    page = (tmp_path / "run" / "report.html").read_text()
    for text in ("How it corrects", "Correcting its own and fixed first attempts", "Where the answers go: only"):
        assert text in page

    model, output = str(tmp_path / "run" / "final"), tmp_path / "scale"
    arguments = ("scale", model, "--output", str(output), "--most", "4", "--problems", "3")
    first = command(*arguments)
    assert [line.split()[0] for line in first.splitlines()] == ["budget", "2", "4", "picture:"]
    samples = (output / "samples.jsonl").read_text()
    assert len(samples.splitlines()) == 3
    assert command(*arguments) == first  # nothing is sampled again
    assert (output / "samples.jsonl").read_text() == samples
    with pytest.raises(ConfigError, match="must be a power of two"):
        selfcorrect.scale(model, output=output, most=6)
    with pytest.raises(
        ConfigError, match=r"begun with other settings: temperature is 0.9, but was 0.7; choose another"
    ):
        selfcorrect.scale(model, output=output, most=4, problems=3, temperature=0.9)


@pytest.mark.parametrize(
    ("command_name", "kind", "told"),
    [
        ("train", "compare", "is of kind compare; run it with `selfcorrect compare"),
        ("compare", "train", "is of kind train; a comparison has kind: compare"),
        ("evaluate", "compare", "this recipe is of kind compare; name one of kind train"),
    ],
)
def test_a_comparison_is_not_trained_and_a_recipe_not_compared(
    command_name: str, kind: str, told: str, called: Called
) -> None:
    ended = called(command_name, str(shipped_recipe("compare_lab" if kind == "compare" else "demo")))
    assert ended.status == 2
    assert told in ended.err


def test_checking_a_comparison_checks_its_methods(command: Command, called: Called) -> None:
    assert command("check", "compare_lab", "only=[multi_turn,score]").splitlines()[-2:] == [
        "# multi_turn: 51,200 sampled completions, 200 updates",
        "# score: 51,200 sampled completions, 200 updates",
    ]
    assert "max_numbr" in called("check", "compare_lab", "common.task.max_numbr=3").err


def test_recipes_are_listed_and_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Command, called: Called
) -> None:
    monkeypatch.chdir(tmp_path)
    assert "countdown  " in command("recipes")
    assert command("recipes", "countdown") == "recipe: countdown.yaml\n"
    assert load_recipe("countdown.yaml") == load_recipe(shipped_recipe("countdown"))
    assert "countdown.yaml is there already" in called("recipes", "countdown").err
    assert "'none': none of that" in called("recipes", "none").err


def test_check_load_tries_what_a_run_needs(recipe_file: Path, command: Command) -> None:
    told = command("check", str(recipe_file), "--load", "rollouts.rows_at_once=auto", "optimizer.micro_batch=auto")
    lines = [line for line in told.splitlines() if line.startswith("# ")]
    for part in ("problems to evaluate on", "of which at most 8 are played here", "step 1 draws",
                 "million parameters on cpu", "longest rollout: ",
                 "optimizer.micro_batch: auto is 128", "first prompt: '", "memory: ", "disk: "):  # fmt: skip
        assert any(part in line for line in lines), part
    assert all(line not in command("check", str(recipe_file)) for line in lines)


def test_version_and_examples(command: Command) -> None:
    assert command("--version") == f"selfcorrect {selfcorrect.__version__}\n"
    commands = typer.main.get_command(cli.app).commands  # type: ignore[attr-defined]
    assert len(commands) > 10
    for name, each in commands.items():
        assert (each.epilog or "").startswith(f"Example: selfcorrect {name}"), name
    assert "Example: selfcorrect check" in command("check", "-h")


# Ends where torch would be imported, and its libgomp be loaded with it.
PYTHON = """
import ctypes, sys, selfcorrect
class First:
    def find_spec(name, *_): name == "torch" and sys.exit(ctypes.CDLL(LIBGOMP) and 0)
sys.meta_path.insert(0, First)
selfcorrect.train
raise AssertionError("torch was not imported")
"""
COMMAND = "import ctypes; from selfcorrect import cli; cli.app = lambda **_: ctypes.CDLL(LIBGOMP); cli.main()"


@pytest.mark.parametrize("script", [COMMAND, PYTHON])
def test_threads_wait_briefly(script: str) -> None:
    """The libgomp that torch brings says itself what it reads when it is loaded."""
    found = [str(file) for file in Path(torch.__file__).parent.rglob("libgomp*")]
    if not found:
        pytest.skip("this torch comes without libgomp")
    script = script.replace("LIBGOMP", repr(found[0]))
    inherited = {key: value for key, value in os.environ.items() if key not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    env = inherited | {"OMP_DISPLAY_ENV": "verbose"}
    said = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True, env=env).stderr
    assert f"GOMP_SPINCOUNT = '{SPINS}'" in said


@pytest.mark.parametrize("told", ["", "GOMP_SPINCOUNT", "OMP_WAIT_POLICY"])
def test_how_threads_wait_is_as_told(told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.setenv(name, "77")
        if name != told:
            monkeypatch.delenv(name)
    monkeypatch.delitem(sys.modules, "torch")
    wait_briefly()
    expected = {"": SPINS, "GOMP_SPINCOUNT": "77"}.get(told)
    assert os.environ.get("GOMP_SPINCOUNT") == expected


def test_an_evaluation_of_little_worth_says_so(recipe_file: Path, model: Path, command: Command) -> None:
    settings = ("rollouts.max_new_tokens=1", "evaluation.controls=false")
    out = command("evaluate", str(model), *settings, "--recipe", str(recipe_file))
    assert "nothing can be concluded: only 4 problems were graded" in out
    assert "alarm: cut off: " in out
    assert "rollouts.max_new_tokens = 1" in out


def test_lists_of_commands_and_recipes_are_even(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """In 80 columns each command has a whole sentence; descriptions of recipes stand below each other."""
    monkeypatch.setenv("COLUMNS", "80")
    lines = command("--help").splitlines()
    for name in chain(*SECTIONS.values()):
        (line,) = [line for line in lines if line.startswith(f"  {name} ")]
        assert line.endswith("."), line
        assert not line.endswith("..."), line
    known = shipped_recipes()
    starts = {line.index(about) for line, about in zip(command("recipes").splitlines(), known.values(), strict=True)}
    assert starts == {max(map(len, known)) + 2}
