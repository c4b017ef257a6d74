"""A run that teaches its model nothing says so: on the terminal, in its log, in its alarms and on its page."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from selfcorrect.errors import TrainingInterrupted
from selfcorrect.evaluation.evaluate import Evaluation, Wording
from selfcorrect.evaluation.metrics import Passes, Summary, share
from selfcorrect.learning.credit import equal_groups
from selfcorrect.learning.record import StepResult
from selfcorrect.report import write_report
from selfcorrect.runs.display import LiveObserver, Observer, PlainObserver, step_line
from selfcorrect.runs.progress import on_stderr
from tests.support.runs import StopAt, brief, go, read_rows, recipe


@pytest.mark.parametrize("make", [PlainObserver, on_stderr])
def test_names_and_paths_are_no_markup(make: Callable[[], Observer], capsys: pytest.CaptureFixture[str]) -> None:
    observer = make()
    observer.evaluating("[b]math")
    for path in ("/data/[exp]/run", "/data/[/x]"):
        observer.finished(Path(path))
    assert "".join(capsys.readouterr()) == "evaluating [b]math ...\ndone: /data/[exp]/run\ndone: /data/[/x]\n"


def test_groups_that_earned_the_same() -> None:
    advantages_BA = torch.tensor([[0, 0], [0, 1e-17], [0, 1], [0, -1], [0, 0], [0, 0.0]])
    everyone = torch.ones(6, dtype=torch.bool)
    own_BA = torch.ones(6, 2, dtype=torch.bool)
    assert equal_groups(advantages_BA, own_BA, everyone, 2) == pytest.approx(2 / 3)
    assert equal_groups(advantages_BA, own_BA, torch.tensor([True] * 4 + [False] * 2), 2) == 0.5
    assert equal_groups(advantages_BA, own_BA, ~everyone, 2) is None
    assert equal_groups(advantages_BA.flip(1), own_BA, everyone, 2) == pytest.approx(2 / 3)
    own_BA[:, 0] = False  # given attempts have advantages that train nothing
    assert equal_groups(advantages_BA.flip(1), own_BA, everyone, 2) == 1


def told(run: Path) -> list[tuple[int, str, str]]:
    return [(row["step"], row["where"], row["alarm"].partition(":")[0]) for row in read_rows(run / "alarms.jsonl")]


def test_nothing_right_and_all_cut_off(tmp_path: Path, model: Path) -> None:
    """A random model is never right; without a KL weight the gradient of such a step is exactly zero."""
    stage = {"steps": 3, "learning_rate": 0.003, "beta1": 0.0}
    settings: dict[str, Any] = recipe(
        tmp_path, model,
        stages=[{"name": "one", "objective": "stage1", "beta2": 0.0, **stage}, {"name": "two", "objective": "stage2", **stage}],
        rollouts={"problems_per_step": 2, "rollouts_per_problem": 2, "max_new_tokens": 1},
    )  # fmt: skip
    console = Console(record=True, width=240)
    run = go(settings, PlainObserver(console, 0.0))
    kinds = ["cut off", "equal rewards"]
    expected = [(step, stage, kind) for step, stage in ((1, "one"), (4, "two")) for kind in kinds]  # once a stage
    evaluated = [(step, name, "cut off") for step, name in ((0, "base"), (3, "one"), (6, "two"))]
    assert sorted(told(run)) == sorted([*expected, *evaluated])
    rows = read_rows(run / "metrics.jsonl")
    assert {row["equal_groups"] for row in rows} == {1.0}
    assert {row["grad_norm"] for row in rows} == {0.0}
    text = console.export_text()
    assert text.count("alarm: base: cut off: attempts were cut off at rollouts.max_new_tokens = 1") == 1
    assert "alarm: one: cut off" in text  # of its steps; of a later evaluation it is not said again
    assert text.count(": cut off: ") == 3
    assert text.count("nothing can be concluded") == 1
    assert "all rewards of this step equal: nothing to learn" in text
    assert "equal_rewards=100%" in text
    assert "nothing learned: the gradient is zero" in text
    assert "nothing can be concluded: only 8 problems were graded" in text
    page = write_report(run).read_text(encoding="utf-8").replace("\N{NO-BREAK SPACE}", " ")
    assert "nothing can be concluded on self-correction: only 8 problems were graded" in page
    assert "What teaches nothing" in page
    machine = json.loads((run / "environment.json").read_text())["machine"]
    assert (machine["device"], machine["precision"], machine["threads"]) == ("cpu", "float32", 1)
    assert "float32" in page


def test_a_resumed_run_does_not_say_it_again(tmp_path: Path, model: Path) -> None:
    whole = told(go(brief(tmp_path, model, "whole")))
    assert next(row[0] for row in whole if row[1] == "one") == 1
    settings = brief(tmp_path, model)
    with pytest.raises(TrainingInterrupted):
        go(settings, StopAt(1))
    assert told(go(settings)) == whole


def test_the_panel_shows_it() -> None:
    console = Console(record=True, width=100, force_terminal=True)
    observer = LiveObserver(console)
    step = StepResult(
        step=1, stage="one", stage_step=1, rewards=[0.0, 0.0], accuracy=[0.0, 0.0], smoothed_reward=0.0, delta=0.0,
        fixed=0.0, broken=0.0, unchanged=0.0, kl=[0.0, 0.0], entropy=[1.0, 1.0], loss=0.0, grad_norm=0.0, learning_rate=0.1,
        completions=8, seconds=1.0, seconds_by_part={}, truncated=[1.0, 0.5], skipped=False, skip_reason="",
        equal_groups=1.0,
    )  # fmt: skip
    console.print(observer._panel(step))
    text = console.export_text()
    assert "cut off                 100.0%" in text
    assert "equal rewards           100.0%" in text
    assert "gradient zero" in text
    assert "cut_off=100%/50% equal_rewards=100%" in step_line(step, observer._pace)


GRADER = """
def problems(split, options):
    return [{"id": f"{split}{n}", "prompt": f"{n} 3 : {n % 5}"} for n in range(8)]

def correction_prompt(problem):
    return "?"

def grade(problem, text):
    if sum(map(ord, text + problem["id"])) % 3 == 0:
        raise ValueError("no [/INST]\\nhere")
    return len(text) % 2 == 0
"""


def test_a_grader_that_fails_on_some(tmp_path: Path, model: Path) -> None:
    """It is told with its line of code: of each evaluation, and once a stage of the steps."""
    file = tmp_path / "mine.py"
    file.write_text(GRADER)
    console = Console(record=True, width=240)
    run = go(recipe(tmp_path, model, task={"name": "custom", "file": str(file)}), PlainObserver(console, 0.0))
    failed = [
        (row["where"], row["alarm"]) for row in read_rows(run / "alarms.jsonl") if "grader failed" in row["alarm"]
    ]
    assert [where for where, _ in failed] == ["one", "two"]
    text = console.export_text()
    for name in ("base", "one", "two"):
        kept = read_rows(run / f"evaluations/{name}.rollouts.jsonl")
        count = sum(a["outcome"] == "grader_failed" for row in kept for a in row["attempts"])
        assert 0 < count < 16
        assert (
            f"  no verdict on {count} of 16 attempts, whose rollouts count nowhere: {file}:10: ValueError: no [/INST] here"
            in text
        )
    assert "alarm: one: grader failed: no verdict on " in text


def test_a_correction_prompt_that_cannot_be_read(tmp_path: Path, model: Path) -> None:
    settings = brief(tmp_path, model)
    settings["task"]["correction_prompt"] = "What?"
    console = Console(record=True, width=240)
    go(settings, PlainObserver(console))
    assert "note: the model's tokenizer has no token for part of the correction prompt" in console.export_text()


@pytest.mark.usefixtures("lucky")
def test_steps_that_are_skipped(tmp_path: Path, model: Path) -> None:
    stages = [{"name": "one", "objective": "stage2", "steps": 4, "learning_rate": 1e30}]
    run = go(recipe(tmp_path, model, stages=stages))
    skipped = [row["skipped"] for row in read_rows(run / "metrics.jsonl")]
    assert skipped[-2:] == [True, True]
    assert "skipped" in [kind for _, _, kind in told(run)]


def test_only_what_can_be_concluded_is_not_said_twice() -> None:
    """Of two evaluations with the same figures both have all lines of figures."""
    observer = PlainObserver(console := Console(record=True, width=240))
    half, counts = share(150, 300), ({"wrong": 150, "correct": 150, "grader_failed": 1},) * 2
    passes = (Passes(2, 300, (half, half), half, half, half),)
    summary = Summary(300, (half, half), half, half, half, half, half, counts, 2, passes, 0.05)
    ended = Evaluation("base", 0, "countdown", 1.0, summary, (), wordings=(Wording("twice", "? ?", summary, (), {}),))
    observer.evaluated(ended)
    first = console.export_text()
    observer.evaluated(ended)
    said = [line for line in first.splitlines() if "concluded" in line or "resolve a delta" in line]
    assert len(said) == 1
    assert console.export_text() == first.replace(f"{said[0]}\n", "")
    assert all(told in first for told in ("base: Avg@2 t1", "pass@2", "no verdict on 2 of 602", "asked as twice"))
