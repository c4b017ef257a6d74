"""Runs of a task of one's own: what is kept of its file, what may change, what leaves the machine."""

import signal
import sys
import time
from pathlib import Path
from unittest.mock import Mock

import pytest
import yaml
from rich.console import Console

import selfcorrect
from selfcorrect import api
from selfcorrect.errors import CheckpointError, TrainingInterrupted
from selfcorrect.exporting import export
from selfcorrect.runs.display import Observer, PlainObserver
from selfcorrect.runs.interrupts import SAME_PRESS
from selfcorrect.runs.loop import Loop
from selfcorrect.runs.run import resume
from tests.support.runs import CommandLine, StopAt, brief, end_state, go, read_rows, recipe

TASK = """
def problems(split, options):
    count = {"train": 12, "test": 8}[split]
    return [{"id": f"{split}{n}", "prompt": f"{n} 3 : {n % 5}", "answer": "7"} for n in range(1, count + 1)]

def correction_prompt(problem):
    return "?"

def grade(problem, text):
    return problem["answer"] in text
"""
OTHERS = {
    "train": ('"train": 12', '"train": 11', "the training problems and the task's file"),
    "test": ('"7"', '"7" if split == "train" else "5"', "the held-out problems and the task's file"),
    "asked": ('return "?"', 'return ": ?"', "^the task's file"),
    "grader": ('problem["answer"] in text', "True", "^the task's file"),
}


@pytest.mark.parametrize("stopped_at", [None, 1])
def test_other_problems_or_another_grader_are_refused(
    stopped_at: int | None, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was learned so far, and the base's evaluation, would be of something else. None: before step 1."""
    file = tmp_path / "own.py"
    file.write_text(TASK)
    settings = brief(tmp_path, model, task={"name": "custom", "file": str(file)})
    with monkeypatch.context() as patch:
        if stopped_at is None:
            patch.setattr(Loop, "_stages", Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(TrainingInterrupted):
            go(settings, StopAt(stopped_at or 1))
    run = tmp_path / "run"
    for old, new, told in OTHERS.values():
        assert old in TASK
        file.write_text(TASK.replace(old, new))
        with pytest.raises(CheckpointError, match=rf"{told}.* changed since the run in .* began.*name=NEW"):
            resume(run, Observer(), [f"task.file={file}"])
    file.write_text(TASK)
    with pytest.raises(TrainingInterrupted):
        resume(run, StopAt(2), [f"task.file={file}"])


@pytest.mark.parametrize("change", ["helper", "gone"])
def test_a_run_keeps_its_task(change: str, model: Path, tmp_path: Path) -> None:
    """The file, or what it imports, may change or go: the run goes on with its copy, to the same end, and says so."""
    file, helper, there = tmp_path / "own.py", tmp_path / "helper_of_own.py", tmp_path / "run"
    file.write_text(TASK.replace('problem["answer"] in text', "right(text)") + "\nfrom helper_of_own import right\n")
    helper.write_text("def right(text):\n    return len(text) % 2\n")
    settings = brief(tmp_path, model, task={"name": "custom", "file": str(file)})
    whole = go({**settings, "name": "whole"})
    with pytest.raises(TrainingInterrupted):
        go(settings, StopAt(1))
    assert {each.name for each in (there / "own" / "task").iterdir()} >= {"own.py", "helper_of_own.py"}
    if change == "gone":
        file.unlink()
    else:
        helper.write_text("def right(text):\n    return 1 / 0\n")
    console = Console(record=True, width=400)
    run = resume(there, PlainObserver(console), ["task.workers=2"])
    assert end_state(run)["metrics.jsonl"] == end_state(whole)["metrics.jsonl"]
    assert f"going on with the run's copy of the task's file, {run / 'own/task/own.py'}" in console.export_text(
        clear=False
    )
    if change != "gone":  # config.yaml names what is there from now on
        assert f"{file}, or what it imports, is no longer what the run has gone by: going on" in console.export_text()
        row, _ = read_rows(run / "changes.jsonl")
        assert (row["field"], row["new"]) == ("task.file", str(run / "own/task/own.py"))
    # one that was never resumed names the file still, and has its copy where that is gone
    evaluated = whole if change == "gone" else run
    assert api.evaluate(evaluated / "final", "evaluation.problems=2", output=tmp_path / "e").summary.n == 2
    assert (tmp_path / "e/own/task/own.py").read_text() == (run / "own/task/own.py").read_text()


def test_a_machine_s_folders_are_not_published(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither by the recipe in the card nor by the command; the task's files go along."""
    file = tmp_path / "own.py"
    file.write_text(TASK)
    options = {"words": str(tmp_path / "a list.txt"), "switch": "/no_think"}
    settings = recipe(tmp_path, model, task={"name": "custom", "file": str(file), "options": options})
    settings["stages"] = settings["stages"][:1]
    settings["log"] = {"trackers": []}
    monkeypatch.setattr(sys, "argv", ["selfcorrect", "train", f"{tmp_path}/r.yaml", f"output={tmp_path}", "seed=0"])
    run = go(settings)
    out = export(run, tmp_path / "out")
    card = (out / "README.md").read_text()
    assert str(tmp_path) not in card
    assert str(model.parent) not in card
    assert "    selfcorrect train r.yaml output=" in card
    for line in (f"path: {model.name}", "file: own.py", "words: a list.txt", "switch: /no_think"):
        assert f"{line}\n" in card
    assert (out / "own/task/own.py").read_text() == TASK


@pytest.mark.parametrize("mended", [False, True])
def test_a_run_s_rollouts_are_graded_again(mended: bool, model: Path, tmp_path: Path) -> None:
    """By the grader as it is now, on the problems as the file has them now; those cut off stay so."""
    file = tmp_path / "own.py"
    text = TASK.replace('problem["answer"] in text', "len(text) % 2 == 0")
    file.write_text(text)
    few = {"problems": 8, "controls": False}
    run = go(brief(tmp_path, model, task={"name": "custom", "file": str(file)}, evaluation=few))
    rollouts = run / "evaluations/base.rollouts.jsonl"
    before = [[a["outcome"] for a in row["attempts"]] for row in read_rows(rollouts)]
    if mended:
        file.write_text(text.replace('"answer": "7"', '"size": 1').replace("% 2 == 0", '% 2 == problem["size"]'))
    summary, verdicts = selfcorrect.grade(rollouts, "custom", f"task.file={file}", output=tmp_path / "again.jsonl")
    other = {"correct": "wrong", "wrong": "correct"} if mended else {}
    after = [[a["outcome"] for a in row["attempts"]] for row in read_rows(verdicts)]
    assert after == [[other.get(outcome, outcome) for outcome in row] for row in before]
    assert {"correct", "wrong", "truncated"} <= {outcome for row in before for outcome in row}
    assert summary.n == 8


def test_a_grader_that_never_returns_keeps_no_process(model: Path, tmp_path: Path) -> None:
    """A second Ctrl-C ends the command within a step, whatever the grader's thread does."""
    file = tmp_path / "own.py"
    calls = "calls.append(text)\n    while len(calls) > 17 and not print('hangs', flush=True): time.sleep(60)"
    file.write_text(
        TASK.replace("    return problem", f"    {calls}\n    return problem") + "\nimport time\ncalls = []\n"
    )
    settings = tmp_path / "recipe.yaml"  # one call tries the grader, 16 are of the base's evaluation at the most
    settings.write_text(
        yaml.dump(recipe(tmp_path, model, task={"name": "custom", "file": str(file), "seconds": 999.0}))
    )
    process = CommandLine(tmp_path, "train", str(settings))
    process.wait_for(process.out, "hangs\n")
    process.send(signal.SIGINT)
    process.wait_for(process.out, "stopping after this step")
    time.sleep(SAME_PRESS)
    process.send(signal.SIGINT)
    status, _, errors = process.ended()
    assert status == 130
    assert errors.startswith("stopped; step")
    assert len(errors.splitlines()) == 1
