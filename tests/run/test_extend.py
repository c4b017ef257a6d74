"""A run that goes on with other settings: it ends as if begun with them, or is refused; nothing changes unsaid."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from selfcorrect.config import TrainConfig
from selfcorrect.config.recipe import validate
from selfcorrect.errors import ConfigError
from selfcorrect.learning.record import Progress
from selfcorrect.runs.changes import judge
from selfcorrect.runs.run import resume
from tests.conftest import Called
from tests.run.conftest import Listener, Whole
from tests.support.runs import check_same, end_state, go, read_rows, recipe

LUCKY = pytest.mark.usefixtures("lucky")
THREE = {"name": "three", "objective": "multi_turn", "steps": 2, "learning_rate": 0.003}


def stages(steps: int, *more: dict[str, Any]) -> list[dict[str, Any]]:
    one, two = recipe(Path(), Path())["stages"]
    return [one, {**two, "steps": steps}, *more]


@pytest.fixture(scope="module")
def begun_with(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Callable[..., dict[str, Any]]:
    """begun_with(steps of stage two, further stages): the end of a run that had them from the start."""
    kept: dict[str, dict[str, Any]] = {}

    def state(steps: int, *more: dict[str, Any]) -> dict[str, Any]:
        if (key := repr((steps, more))) not in kept:
            kept[key] = end_state(go(recipe(tmp_path_factory.mktemp("begun"), model, stages=stages(steps, *more))))
        return kept[key]

    return state


def edit(run: Path, change: Callable[[dict[str, Any]], object]) -> None:
    settings = yaml.safe_load((run / "config.yaml").read_text())
    change(settings)
    (run / "config.yaml").write_text(yaml.dump(settings))


@LUCKY
@pytest.mark.parametrize(
    ("stopped_at", "overrides", "steps", "more"),
    [
        pytest.param(8, ["stages.two.steps=6"], 6, [], marks=pytest.mark.nightly),  # finished
        (8, [], 6, []),  # finished, and config.yaml edited
        (8, [], 4, [THREE]),
        (5, ["stages.two.steps=6"], 6, []),
        (6, ["stages.two.steps=2"], 2, []),
        pytest.param(4, ["stages.two.steps=6"], 6, [THREE], marks=pytest.mark.nightly),  # the stage has not begun
    ],
)
def test_as_if_begun_with_them(
    stopped_at: int, overrides: list[str], steps: int, more: list[dict[str, Any]], whole: Whole,
    stopped: Callable[[int, Path], Path], begun_with: Callable[..., dict[str, Any]], tmp_path: Path,
) -> None:  # fmt: skip
    expected = begun_with(steps, *more)
    run = (
        Path(shutil.copytree(whole.path, tmp_path / "run"))
        if stopped_at == 8
        else stopped(stopped_at, tmp_path / "run")
    )
    if more or not overrides:
        edit(run, lambda settings: settings.update(stages=stages(steps, *more)))
    listener = Listener()
    resume(run, listener, overrides)
    told = [message for message in listener.messages if message.startswith(("changed: ", "kept: "))]
    assert len(read_rows(run / "changes.jsonl")) == len([m for m in told if m.startswith("changed")]) > 0
    earlier = {name for name in end_state(run) if name.startswith("earlier/")}
    assert bool(earlier) == any(m.startswith("kept: final") for m in told) == (stopped_at == 8)
    if stopped_at == 8 and not more:
        assert "changed: stages.two.steps: 4 -> 6 (training goes on from step 4; " in "".join(told)
        where = run / "earlier" / "step-000008"
        assert end_state(where / "final") == {
            name.removeprefix("final/"): value for name, value in whole.state.items() if name.startswith("final/")
        }
        assert {path.name for path in (where / "evaluations").iterdir()} == {"two.json", "two.rollouts.jsonl"}
    shutil.rmtree(run / "earlier", ignore_errors=True)
    (run / "changes.jsonl").unlink()
    check_same(run, expected)
    resume(run, listener)  # and it stays so
    check_same(run, expected)


@LUCKY
def test_a_setting_that_is_edited_does_not_go_in_silence(whole: Whole, tmp_path: Path) -> None:
    run = Path(shutil.copytree(whole.path, tmp_path / "run of mine"))
    edit(run, lambda settings: settings["stages"][1].update(learning_rate=0.1, steps=6))
    before = end_state(run)
    with pytest.raises(ConfigError) as refused:
        resume(run, Listener())
    assert str(refused.value) == (
        f"stages.two.learning_rate: 0.003 -> 0.1 cannot change when {run} goes on: 4 of the stage's steps are done with "
        "the old value; leave it as it was, or begin another run with it: `selfcorrect train "
        f"'{run}/config.yaml' name=NEW stages.two.learning_rate=0.1`"
    )
    assert end_state(run) == before
    edit(run, lambda settings: settings["stages"][1].update(learning_rate=0.003, steps=4))
    settings = (run / "config.yaml").read_text()
    listener = Listener()
    resume(run, listener, ["log.rollouts_kept=3", "checkpoint.every=1", "model.device=auto"])
    assert [m for m in listener.messages if m.startswith("changed")] == [
        "changed: model.device: cpu -> auto (the same results up to rounding)",
        "changed: checkpoint.every: 2 -> 1 (`best` is chosen among the checkpoints there are)",
        "changed: log.rollouts_kept: 2 -> 3",
    ]
    assert (run / "config.yaml").read_text() == (run / "config.used.yaml").read_text() != settings
    assert [row["field"] for row in read_rows(run / "changes.jsonl")][-1] == "log.rollouts_kept"


UNDER_WAY = Progress(stage=1, stage_step=3, step=7)
FIRST = Progress(stage=0, stage_step=4, step=4)
REFUSALS: list[tuple[Progress | None, dict[str, Any], list[str], str]] = [
    (UNDER_WAY, {}, ["seed=1"], "seed: 0 -> 1 .* every draw so far came from it"),
    (UNDER_WAY, {}, ["stages.two.steps=2"], "two.steps: 4 -> 2 .*: 3 steps are done already; that many is the least"),
    (UNDER_WAY, {}, ["stages.one.steps=6"], "one.steps: 4 -> 6 .*: the stage is finished, and two goes on from its end"),
    (UNDER_WAY, {}, ["stages.one.beta2=0.0"], "one.beta2: 0.1 -> 0.0 .*: the stage is finished"),
    (UNDER_WAY, {}, ["stages.two.alpha=3"], "two.alpha: 10.0 -> 3.0 .*: 3 of the stage's steps are done with the old"),
    (UNDER_WAY, {}, ["stages.two.name=zwei"], "stages.1.name: two -> zwei .*: the stage is begun"),
    (UNDER_WAY, {}, ["stages.1={name: two, objective: multi_turn, steps: 4, learning_rate: 0.003}"], "two.objective: stage2 -> multi_turn"),
    (UNDER_WAY, {"optimizer": {"schedule": "linear"}}, ["stages.two.steps=6"], "schedule linear lowers the rate .*; add another"),
    (UNDER_WAY, {"optimizer": {"schedule": "cosine"}}, ["stages.two.steps=3"], "schedule cosine lowers the rate"),
    (UNDER_WAY, {}, ["optimizer.schedule=linear"], "optimizer.schedule: constant -> linear .*: the steps so far were made"),
    (FIRST, {}, ["rollouts.temperature=0.5"], "rollouts.temperature: 1.0 -> 0.5 .*: what was sampled so far"),
    (FIRST, {}, ["checkpoint.select=last"], "checkpoint.select: best -> last .*: the best weights so far were chosen by it"),
    (FIRST, {}, ["evaluation.problems=9"], "evaluation.problems: 8 -> 9 .*: the run's evaluations must be comparable"),
    (FIRST, {}, ["model.precision=bfloat16"], "model.precision: float32 -> bfloat16 .*: the weights so far came from it"),
    (FIRST, {}, ["task.prompt={numbers} {target}!"], r"task.prompt: .*: problems, prompts and grades so far"),
    (FIRST, {}, ["algorithm.reference=previous_stage"], "algorithm.reference: base -> previous_stage"),
    (FIRST, {}, ["name=other"], "name: run -> other .*: the folder has its name; move it by hand; leave it as it was$"),
    (None, {}, ["seed=1"], "seed: 0 -> 1"),
]  # fmt: skip


def configs(changes: dict[str, Any], overrides: list[str]) -> tuple[TrainConfig, TrainConfig]:
    old, new = (validate(recipe(Path("out"), Path("model"), **changes), overrides=laid) for laid in ([], overrides))
    assert isinstance(old, TrainConfig)
    assert isinstance(new, TrainConfig)
    return old, new


@pytest.mark.parametrize(("done", "changes", "overrides", "told"), REFUSALS)
def test_refused(done: Progress | None, changes: dict[str, Any], overrides: list[str], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        judge(*configs(changes, overrides), done, Path("run"))


@pytest.mark.parametrize(
    ("objective", "extra", "told"),
    [
        ("star", {"iterations": 2}, "its iterations share its steps"),
        ("annealed", {}, "its credit goes from stage 1's to stage 2's over all of its steps"),
        ("pair_sft", {}, None), ("multi_turn", {}, None), ("single_turn", {}, None), ("stage1", {}, None),
    ],
)  # fmt: skip
def test_more_steps_by_objective(objective: str, extra: dict[str, Any], told: str | None) -> None:
    """Where steps that are done would have been others, there may not be more."""
    changes = {"stages": [{"name": "a", "objective": objective, "steps": 4, "learning_rate": 1e-3, **extra}]}
    pair = configs(changes, ["stages.a.steps=6"])
    for done in (Progress(stage_step=2, step=2), Progress(stage_step=4, step=4)):
        if told:
            with pytest.raises(ConfigError, match=f"{told}, .*; add another stage at the end of config.yaml"):
                judge(*pair, done, Path("run"))
        else:
            assert [str(change).split(" (")[0] for change in judge(*pair, done, Path("run"))] == [
                "stages.a.steps: 4 -> 6"
            ]
    assert judge(*pair, None, Path("run"))  # nothing is done yet


def test_what_has_not_begun_is_free() -> None:
    changed = judge(
        *configs({}, ["stages.1={name: b, objective: multi_turn, steps: 9, learning_rate: 1.0}"]), FIRST, Path("run")
    )
    assert list(map(str, changed)) == [
        "stages.two: stage2, 4 steps -> none (not begun)",
        "stages.b: none -> multi_turn, 9 steps",
    ]
    assert [str(c) for c in judge(*configs({}, ["stages.two.alpha=3"]), FIRST, Path("run"))] == [
        "stages.two.alpha: 10.0 -> 3.0"
    ]
    assert judge(*configs({}, ["stages.two.alpha=10"]), UNDER_WAY, Path("run")) == []


@LUCKY
def test_from_the_command_line(whole: Whole, tmp_path: Path, called: Called) -> None:
    run = Path(shutil.copytree(whole.path, tmp_path / "run"))
    for arguments, code, told in (
        (
            ["train", "--resume", str(run), "stages.two.steps=5", "log.project=a//b # c"],
            0,
            "changed: stages.two.steps: 4 -> 5",
        ),
        (
            ["train", "--resume", str(run), "other.yaml"],
            2,
            "goes on with the recipe it was begun with; leave out other.yaml",
        ),
        (["train", "--resume", str(run), "stages.two.stps=5"], 2, "override 'stages.two.stps=5': unknown key"),
    ):
        ended = called(*arguments)
        assert (ended.status, told in ended.out + ended.err) == (code, True), ended
    assert len(read_rows(run / "metrics.jsonl")) == 9
    assert yaml.safe_load((run / "config.yaml").read_text())["log"]["project"] == "a//b # c"
