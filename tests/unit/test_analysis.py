"""The analyses on rollouts whose numbers can be counted by hand."""

import csv
import gzip
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from selfcorrect.analysis import _training, analyse
from selfcorrect.analysis.edits import edit_figure, edit_ratio
from selfcorrect.analysis.flow import flow_figure
from selfcorrect.analysis.read import evaluations, logged
from selfcorrect.analysis.scaling import check_votes, sample_pools
from selfcorrect.analysis.training import attempts_figure, fixed_figure, progress_figures
from selfcorrect.analysis.votes import Pool, budgets_up_to, read_pools, scale_figure, scaling, vote_key
from selfcorrect.config import TrainConfig
from selfcorrect.errors import ConfigError, DataError
from selfcorrect.evaluation.counted import Counted
from selfcorrect.evaluation.kept import Kept
from selfcorrect.tasks.countdown import Countdown
from selfcorrect.types import Outcome, Problem, Rollout, SamplingParams
from tests.support.rollouts import graded


def row(right: str, answers: str, *texts: str) -> Rollout:
    """right: r or w an attempt; answers: a letter an attempt."""
    outcomes = [Outcome.CORRECT if each == "r" else Outcome.WRONG for each in right]
    return graded(*outcomes, texts=texts or tuple(answers))


def table(folder: Path, name: str) -> list[dict[str, str]]:
    with (folder / f"{name}.csv").open() as lines:
        return list(csv.DictReader(lines))


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [("", "", 0), ("abcd", "abcd", 0), ("kitten", "sitting", 3 / 13), ("abc", "", 1), ("ab", "cd", 0.5)],
)
def test_edit_ratio(first: str, second: str, expected: float) -> None:
    assert edit_ratio(first, second) == pytest.approx(expected)


def test_edit_histogram() -> None:
    rows = [row("wr", "ab", "abcd", "abcd")] * 3 + [row("wr", "ab", "ab", "cd")]
    figure = edit_figure("edits", "Edits", {"base model": rows, "nothing": []})
    assert figure
    shares = {(r["bin_low"], r["group"]): r["share"] for r in figure.rows if r["count"]}
    assert shares == {(0.0, "base model"): 0.75, (0.5, "base model"): 0.25}
    assert "75.0% copied to the letter" in figure.caption


def test_rollouts_of_a_stage_with_fewer_attempts_stand_in_nobodys_way(tmp_path: Path) -> None:
    """single_turn plays one attempt, the stage after it two: the figure of the run's end is of those."""
    attempt = {"text": "1 + 2 = 3", "outcome": "correct", "answer": "3"}
    lines = [{"step": step, "id": "a", "attempts": [attempt] * (1 if step < 3 else 2)} for step in range(1, 7)]
    (tmp_path / "rollouts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = _training(tmp_path)
    assert {name: [len(each.attempts) for each in rows] for name, rows in found.items()} == {
        "early in training": [2], "late in training": [2],
    }  # fmt: skip


def test_every_rollout_flows_one_way() -> None:
    rows = (
        [row("rr", "aa")] * 5 + [row("rr", "ab")] + [row("wr", "ab")] * 4 + [row("rw", "ab")] * 2 + [row("ww", "ab")] * 3
        + [row("ww", "aa")] * 6
    )  # fmt: skip
    figure = flow_figure("x", rows)
    assert figure
    assert {r["stream"]: r["count"] for r in figure.rows} == {
        "right_same": 5, "right_other": 1, "fixed": 4, "broken": 2, "wrong_other": 3, "wrong_same": 6,
    }  # fmt: skip
    assert flow_figure("x", [row("r", "a")]) is None


def test_many_attempts_and_fixed_first_attempts() -> None:
    figure = attempts_figure({"a": [row("wrr", "abc"), row("wwr", "abc")]})
    assert figure
    assert [r["accuracy"] for r in figure.rows] == [0, 0.5, 1]
    assert attempts_figure({"a": [row("wr", "ab")]}) is None
    estimates = [{"value": v, "low": v - 0.1, "high": v + 0.1} for v in (0.3, 0.5, 0.4)]
    own, fixed = ({"n": 50, "accuracy": [estimates[0], e]} for e in estimates[1:])
    found = fixed_figure([{"step": s, "stage": "one", "own": own, "fixed": fixed} for s in (0, 10)])
    assert found
    assert [(r["step"], r["first_attempts"], r["accuracy_last"]) for r in found.rows] == [
        (0, "own", 0.5), (0, "base", 0.4), (10, "own", 0.5), (10, "base", 0.4),
    ]  # fmt: skip
    assert fixed_figure([]) is None


def test_training_curves_leave_supervised_steps_out() -> None:
    rows: list[dict[str, Any]] = [
        {"step": i, "stage": "s", "accuracy": [0.2, 0.4], "unchanged": 0.7} for i in range(1, 31)
    ]
    rows.insert(3, {"step": 99, "stage": "sft", "accuracy": [], "unchanged": 0.0})
    accuracy, changed = progress_figures(rows)
    assert len(accuracy.rows) == len(changed.rows) == 30
    assert changed.rows[0]["changed"] == pytest.approx(0.3)
    assert progress_figures(rows[:1]) == []


def test_a_file_of_graded_attempts(tmp_path: Path) -> None:
    file = tmp_path / "mine.graded.jsonl"
    attempts = [{"text": "<b>1", "outcome": "wrong", "answer": "1"}, {"text": "2", "outcome": "correct", "answer": "2"}]
    file.write_text(json.dumps({"id": 1, "attempts": attempts}) + "\n")
    figures, folder = analyse(file)
    assert [figure.name for figure in figures] == ["edits", "flow"]
    for figure in figures:
        drawn = ElementTree.parse(folder / f"{figure.name}.svg").getroot()
        assert drawn.tag == "{http://www.w3.org/2000/svg}svg"
        assert table(folder, figure.name)
    assert {r["stream"]: r["count"] for r in table(folder, "flow")}["fixed"] == "1"
    file.write_text(json.dumps({"id": 1, "attempts": attempts}) + "\n" + json.dumps({"id": 1}) + "\n")
    with pytest.raises(DataError, match=r"mine.graded.jsonl:2: expected a rollout with attempts"):
        analyse(file)
    with pytest.raises(DataError, match="nothing to analyse yet"):
        analyse(tmp_path)


def test_a_file_of_graded_attempts_that_another_tool_wrote(tmp_path: Path) -> None:
    """Some leave what Unicode calls a line's end raw inside a text, write a BOM, or compress."""
    attempts: list[dict[str, Any]] = [
        {"text": "a\u2028b\u2029c\x85d", "outcome": "wrong"}, {"text": "e", "outcome": "correct", "reward": None},
    ]  # fmt: skip
    line = json.dumps({"attempts": attempts}, ensure_ascii=False) + "\n"
    for name, content in (("a.jsonl", line.encode()), ("b.jsonl", b"\xef\xbb\xbf" + line.encode()),
                          ("c.jsonl.gz", gzip.compress(line.encode()))):  # fmt: skip
        (tmp_path / name).write_bytes(content)
        figures, folder = analyse(tmp_path / name)
        assert [figure.name for figure in figures] == ["edits", "flow"]
        assert folder == tmp_path / f"{name[0]}.analysis"
    [(found, _)] = logged(tmp_path / "a.jsonl")
    assert found.attempts[0].completion.text == attempts[0]["text"]
    for bad in ('"0.5"', "true", "NaN", "2"):
        (tmp_path / "a.jsonl").write_text(line.replace("null", bad))
        with pytest.raises(DataError, match=r"a\.jsonl:1: .*reward = .* is no number from 0 to 1"):
            analyse(tmp_path / "a.jsonl")
    (tmp_path / "a.jsonl").write_text(line.replace("wrong", "incorrect"))
    with pytest.raises(DataError, match=r"a\.jsonl:1: .*\(correct, wrong, .*'incorrect' is not"):
        analyse(tmp_path / "a.jsonl")


def test_evaluations_come_in_order_though_one_has_no_step(tmp_path: Path) -> None:
    (tmp_path / "evaluations").mkdir()
    for name, step in (("b", 2), ("a", 10), ("odd", None), ("base", 0)):
        (tmp_path / f"evaluations/{name}.json").write_text(json.dumps({"step": step}))
    assert list(evaluations(tmp_path)) == ["base", "odd", "b", "a"]


def pool(first: str, corrected: str, right: str) -> Pool:
    """A letter a solution."""
    columns = [tuple((letter, letter == right) for letter in letters) for letters in (first, corrected)]
    return Pool("p", *columns)


def test_majority_votes_by_hand() -> None:
    """All of a pool drawn: 4 first attempts a a b b tie, half right; 2 corrections b b are right."""
    [two, four] = scaling([pool("aabb", "bb", "b")] * 3, [2, 4], resamples=2000)
    assert (four.parallel.value, four.corrected.value, four.gain.value) == (0.5, 1.0, 0.5)
    # Two of the four: aa 1/6 wrong, bb 1/6 right, ab 4/6 a tie; one correction is always b.
    assert two.parallel.value == pytest.approx(0.5, abs=0.03)
    assert two.corrected.value == 1.0
    assert budgets_up_to(64) == [2, 4, 8, 16, 32, 64]
    figure = scale_figure([two, four], 3, 0.7)
    assert [(r["budget"], r["way"]) for r in figure.rows[:2]] == [(2, "parallel"), (2, "corrected")]


def test_an_attempt_without_an_answer_has_no_vote() -> None:
    silent = Pool("p", (("", False), ("", False), ("b", True), ("", False)), (("", False), ("", False)))
    [point] = scaling([silent], [4], resamples=50)
    assert (point.parallel.value, point.corrected.value) == (1.0, 0.0)
    assert vote_key("math", r"\frac{1}{2}") == vote_key("math", r"\dfrac12") != vote_key("math", "2")


def test_what_was_not_graded_is_not_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failed = {"part": 1, "whole": 0, "none": 4}  # of a problem's rollouts, those that the grader failed on

    def play(problems: list[Problem], *rest: Any) -> list[Rollout]:
        count, found = Counter[str](), []
        for problem in problems:
            count[problem.id] += 1
            outcome = Outcome.GRADER_FAILED if count[problem.id] <= failed[problem.id] else Outcome.CORRECT
            found.append(replace(graded(*[outcome] * rest[-1]), problem=problem))
        return found

    monkeypatch.setattr("selfcorrect.analysis.scaling.play", play)
    problems, nothing, params = [Problem(name, "t", "", {}) for name in failed], Any, SamplingParams(1.0, 9, 0)
    for _ in range(2):  # sampled, then kept
        with Kept(tmp_path / "s.jsonl", {}, lambda line: line[0], "") as kept:
            counted = Counted(nothing, lambda *_: None, 0)  # type: ignore[arg-type]
            pools = sample_pools(nothing, problems, counted, nothing, params, 4, kept, 3)  # type: ignore[arg-type]
        assert {pool.id: (len(pool.first), len(pool.corrected)) for pool in pools} == {"part": (2, 1), "whole": (4, 2)}
        assert all(right for pool in pools for _, right in (*pool.first, *pool.corrected))


def test_the_interval_covers_the_truth() -> None:
    """Budget 2 against a truth that is known: one correction is right with probability 0.3 a problem."""
    rng, covered = np.random.default_rng(0), 0
    for _ in range(40):
        pools = [
            Pool(str(i), (("x", False),) * 4, tuple((str(k), bool(rng.random() < 0.3)) for k in range(2)))
            for i in range(60)
        ]
        [point] = scaling(pools, [2], resamples=200)
        covered += point.corrected.low <= 0.3 <= point.corrected.high
    assert covered >= 34


def test_samples_that_can_be_voted_on(tmp_path: Path) -> None:
    file = tmp_path / "samples.jsonl"
    file.write_text(json.dumps(["p", [["a", True]] * 4, [["a", True]] * 2]) + "\n" + '["r"]\n5\n["q", [["a"')
    assert [pool.id for pool in read_pools(file)] == ["p"]  # the others are damaged, or torn
    task: Any = Countdown()
    config = TrainConfig(stages=())
    check_votes(config, task)
    task.name = "code"
    with pytest.raises(ConfigError, match="a majority vote is not defined for programs"):
        check_votes(config, task)
