"""A step or an evaluation in which nothing could be sampled or graded ends the run with the reason, and loses nothing."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from selfcorrect import api, rollout
from selfcorrect.errors import NothingGraded
from selfcorrect.learning.supervised import Collector
from selfcorrect.learning.training import Trainer
from selfcorrect.runs.loop import Loop
from selfcorrect.tasks import make_task
from selfcorrect.tasks.base import Task
from selfcorrect.tasks.countdown import Countdown
from selfcorrect.types import Grade, Outcome, Problem
from tests.run.conftest import Whole
from tests.support.data import math_folder
from tests.support.runs import brief, check_same, config, go, lucky_grade, read_rows, recipe

graded = rollout.grade_texts
Answers = Sequence[tuple[Problem, str]]


FAILED = Grade(Outcome.GRADER_FAILED, 0.0, "", "the judge\nis gone")


def nothing(task: Task, problems: Sequence[Problem], *_: Any) -> list[Grade]:
    """Stands for rollout.grade_texts where the grader is dead."""
    return [FAILED] * len(problems)


def test_a_model_that_can_read_no_problem_is_not_trained(model: Path, tmp_path: Path, lucky: None) -> None:
    """13 is no word of the tokenizer's."""
    task = {"max_number": 12, "limit": 12, "prompt": "13 {numbers} : {target}", "correction_prompt": "?"}
    reason = (
        r"none of 8 problems played could be graded: 8 unreadable \(the model's tokenizer has no token for part of the "
        r"problem\); take a model whose tokenizer can read the task's problems"
    )
    with pytest.raises(NothingGraded, match=rf"^evaluation base: {reason}; nothing was trained yet, and resuming .*"):
        go(recipe(tmp_path, model, task=task))
    with pytest.raises(NothingGraded, match=rf"^evaluation model\w*: {reason}"):
        api.evaluate(model, recipe=recipe(tmp_path, model, task=task))


@pytest.mark.parametrize("step", [1, 2])
def test_a_grader_that_dies_ends_the_run_and_resuming_repeats_the_step(
    step: int, model: Path, tmp_path: Path, whole_brief: Whole, lucky: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_step = Trainer.train_step

    def dying(trainer: Trainer) -> Any:
        if trainer.progress.step + 1 == step:
            monkeypatch.setattr(rollout, "grade_texts", nothing)
        return train_step(trainer)

    monkeypatch.setattr(Trainer, "train_step", dying)
    settings = brief(tmp_path, model)
    kept = "nothing was trained yet" if step == 1 else f"checkpoint {step - 1} is kept"
    with pytest.raises(NothingGraded) as told:
        go(settings)
    assert str(told.value) == (
        f"step {step}: none of 8 problems played could be graded: 8 grader_failed (the judge is gone); mend what keeps the "
        f"grader from working; {kept}, and resuming the run repeats the step"
    )
    assert len(read_rows(tmp_path / "run/metrics.jsonl") if step > 1 else []) == step - 1
    monkeypatch.setattr(Trainer, "train_step", train_step)
    monkeypatch.setattr(rollout, "grade_texts", graded)
    check_same(go(settings), whole_brief.state)


def test_a_few_that_cannot_be_graded_are_left_out_and_no_reason_to_stop(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def mostly_failing(self: Any, answers: Answers) -> list[Grade]:
        return [*[FAILED] * (len(answers) - 1), *lucky_grade(self, answers[-1:])] if answers else []

    monkeypatch.setattr(Countdown, "grade", mostly_failing)
    rows = read_rows(go(brief(tmp_path, model)) / "metrics.jsonl")
    assert {0 < row["grader_failed"] < 8 for row in rows} == {True}


def test_a_grader_that_dies_during_an_evaluation(
    model: Path, tmp_path: Path, whole_brief: Whole, lucky: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the last stage, whose weights are kept by then."""
    finish = Loop._evaluate

    def dying(loop: Loop, name: str) -> None:
        if name == "one":
            monkeypatch.setattr(rollout, "grade_texts", nothing)
        finish(loop, name)

    monkeypatch.setattr(Loop, "_evaluate", dying)
    settings = brief(tmp_path, model)
    with pytest.raises(
        NothingGraded, match=r"^evaluation one: none of 4 problems played could be graded: 4 grader_failed"
    ):
        go(settings)
    monkeypatch.setattr(Loop, "_evaluate", finish)
    monkeypatch.setattr(rollout, "grade_texts", graded)
    check_same(go(settings), whole_brief.state)


def test_a_grader_that_dies_as_traces_are_sampled(
    model: Path, tmp_path: Path, lucky: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between steps, as in an evaluation: it is said what is kept."""
    sample = Collector._sample

    def dying(*given: Any) -> Any:
        monkeypatch.setattr(rollout, "grade_texts", nothing)
        return sample(*given)

    monkeypatch.setattr(Collector, "_sample", dying)
    stage = {"name": "one", "objective": "pair_sft", "steps": 1, "learning_rate": 1e-3, "collect": 2, "batch": 2}
    with pytest.raises(
        NothingGraded,
        match=r"^traces for stage one: .*; nothing was trained yet, and resuming the run goes on from there$",
    ):
        go(brief(tmp_path, model, stages=[stage]))


def test_scaling_and_repair_sets_stop_where_nothing_counts_and_not_for_one_problem(
    model: Path, tmp_path: Path, lucky: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One problem at a time: a first one that cannot be graded ends nothing, and a dead grader's verdicts are not kept."""
    settings = recipe(tmp_path, model, rollouts={"max_new_tokens": 5, "rows_at_once": 2})
    chosen = make_task(config(tmp_path, model).task).held_out(3)

    def scale(folder: str) -> Any:
        return api.scale(model, recipe=settings, output=tmp_path / folder, most=2, problems=3)

    def but_the_first(task: Task, problems: Sequence[Problem], *rest: Any) -> list[Grade]:
        found = graded(task, problems, *rest)
        return [FAILED if p == chosen[0] else grade for p, grade in zip(problems, found, strict=True)]

    whole = scale("whole")
    monkeypatch.setattr(rollout, "grade_texts", nothing)
    with pytest.raises(NothingGraded, match=r"^scaling: none of 3 problems played could be graded: 3 grader_failed"):
        scale("dead")
    monkeypatch.setattr(rollout, "grade_texts", but_the_first)
    assert len(scale("one")) == len(whole)
    assert len(read_rows(tmp_path / "one/samples.jsonl")) == 3
    monkeypatch.setattr(rollout, "grade_texts", graded)
    assert scale("dead") == whole
    math = {"name": "math", "data": str(math_folder(tmp_path / "math"))}  # no word of the tokenizer's
    with pytest.raises(
        NothingGraded, match=r"^repair set: none of \d+ problems played could be graded: \d+ unreadable"
    ):
        api.make_repair_set(model, tmp_path / "set.jsonl", recipe={**settings, "task": math})
    assert not (tmp_path / "set.jsonl").exists()
