"""Two evaluations side by side: the figures by hand, and what cannot be compared."""

import json
import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

import selfcorrect
from selfcorrect.config.paths import FILE_HOLDS, TASK_FILE
from selfcorrect.errors import DataError
from selfcorrect.evaluation.averages import change, means, summary_over
from selfcorrect.evaluation.flat import rollout_row
from selfcorrect.evaluation.metrics import difference_of
from selfcorrect.evaluation.stored import read_rollouts
from selfcorrect.types import Rollout
from tests.unit.test_averages import random_rollouts, rollout

CONFIG = (
    "task: {name: math, workers: 1, data: HERE, prompt: P}\nrollouts: {max_new_tokens: 64, attempts: 2}\nmodel: {}\n"
)


def row(of: Rollout, **changes: Any) -> dict[str, Any]:
    """A line as docs/run_folder.md has it."""
    return {**rollout_row(of), "reference": {"answer": of.problem.id}, **changes}


def write(run: Path, rows: Sequence[dict[str, Any]], name: str = "two", step: int = 8, **changes: Any) -> Path:
    """A run folder with an evaluation whose rollouts these are; returns the run."""
    folder = run / "evaluations"
    folder.mkdir(parents=True, exist_ok=True)
    one = asdict(summary_over([rollout("a", True, True)], 1))
    told = {"name": name, "step": step, "task": "math", "about": "math (x)", "decoding": "greedy", "summary": one}
    (folder / f"{name}.rollouts.jsonl").write_text("".join(json.dumps(each) + "\n" for each in rows))
    (folder / f"{name}.json").write_text(json.dumps(told | changes))
    (run / "config.yaml").write_text(CONFIG)
    (run / "environment.json").write_text("{}")
    return run


@pytest.mark.parametrize("samples", [1, 4])
def test_the_figures_of_both_and_what_differs(samples: int, tmp_path: Path) -> None:
    """In whatever order the problems lie; one that either grader failed on counts on neither side."""
    ours, theirs = random_rollouts(40, samples, 1), random_rollouts(40, samples, 2)
    bad = [rollout("bad", True, None)] * samples
    a = write(tmp_path / "a", [row(each) for each in [*bad, *ours]])
    b = write(tmp_path / "b", [row(each) for each in [*theirs[::-1], *[rollout("bad", False, True)] * samples]])
    found = selfcorrect.diff(a, b)
    assert found.n == 40
    assert "1 problems are left out" in found.notes[0]
    assert (found.a.summary, found.b.summary) == (summary_over(ours, samples), summary_over(theirs[::-1], samples))
    before, now = means(ours), means(theirs)
    whole = change(before, now, single=samples == 1)  # as a run holds its evaluations against the base model's
    assert whole is not None
    figures = found.figures
    less = [figures[name].less.value for name in ("Accuracy@t1", "Accuracy@t2", "delta")]
    assert less == pytest.approx([whole.first.value, whole.last.value, whole.delta.value])
    mended = {
        name: sum(b and not a for a, b in _of(theirs, name)) - sum(b and not a for a, b in _of(ours, name))
        for name in now
    }
    assert figures["i->c"].less.value == pytest.approx(sum(mended.values()) / 40 / samples)
    if samples == 1:
        assert figures["delta"].less == whole.delta
        assert figures["i->c"].less == difference_of([float(mended[name]) for name in now])
    else:  # drawn in another order, so not to the bit
        assert figures["delta"].less.low == pytest.approx(whole.delta.low, abs=0.05)
        assert "pass@4, t2" in figures
    for pair in figures.values():
        assert pair.b.value - pair.a.value == pytest.approx(pair.less.value)
        assert pair.less.low < pair.less.value < pair.less.high
    assert json.loads(json.dumps(asdict(found)))["n"] == 40
    lines = str(found).splitlines()
    assert lines[0] == f"A: {a}, after two (step 8)"
    assert re.search(r"^Accuracy@t2 +\d.* +[+-]\d+\.\d \[[+-]", lines[6])


def _of(rollouts: Sequence[Rollout], name: str) -> list[tuple[bool, bool]]:
    return [(r.attempts[0].grade.correct, r.attempts[1].grade.correct) for r in rollouts if r.problem.id == name]


def test_problems_are_paired_and_not_only_counted(tmp_path: Path) -> None:
    """The same accuracies by other problems: an interval of the swapped ones, and none narrower for like answers."""
    half = [rollout(f"p{n}", n % 2 == 0, n % 2 == 0) for n in range(40)]
    other = [rollout(f"p{n}", n % 2 == 1, n % 2 == 1) for n in range(40)]
    a, same, swapped = (
        write(tmp_path / name, list(map(row, side))) for name, side in (("a", half), ("b", half), ("c", other))
    )
    width = [
        found.high - found.low
        for found in (selfcorrect.diff(a, each).figures["Accuracy@t2"].less for each in (same, swapped))
    ]
    assert width[1] > 5 * width[0]


def test_what_is_named(tmp_path: Path) -> None:
    rows = [row(each) for each in random_rollouts(30, 1, 3)]
    run = write(write(tmp_path / "r", rows, "base", 0), rows, "one", 4)
    write(run, rows, "two", 8)
    for folder in ("final", "models/one", "best"):
        (run / folder).mkdir(parents=True)
    base = run / "evaluations" / "base.json"
    told = {
        str(named): selfcorrect.diff(base, named).b.name.partition(", ")[2]
        for named in (
            run,
            run / "evaluations",
            run / "final",
            run / "models" / "one",
            base.with_name("two.rollouts.jsonl"),
        )
    }
    assert list(told.values()) == ["after two (step 8)"] * 3 + ["after one (step 4)", "after two (step 8)"]
    assert selfcorrect.diff(base, run, evaluation="one").b.file.endswith("one.rollouts.jsonl")
    for named, why in (
        (run / "best", "no evaluation of .* is of this model; `selfcorrect evaluate .*best --output FOLDER`"),
        (base, "are the same evaluation"),
        (tmp_path, "holds no finished evaluation; name one of its folders: r"),
        (run / "config.yaml", "is no file of an evaluation"),
        (run / "none", "no such folder or file"),
    ):
        with pytest.raises(DataError, match=why):
            selfcorrect.diff(base, named)
    with pytest.raises(DataError, match="holds no finished evaluation 'three'; it has base, one, two"):
        selfcorrect.diff(base, run, evaluation="three")


@pytest.mark.parametrize(
    ("changes", "rows", "told"),
    [
        ({"task": "code"}, {}, "task: math in .*, but code in .*"),
        ({"decoding": "1 sample at temperature 0.7"}, {}, "decoding: greedy in .*, but 1 sample at temperature 0.7"),
        ({}, {"reference": {"answer": "other"}}, "problem p0 is another one"),
    ],
)  # fmt: skip
def test_what_cannot_be_compared_is_refused(
    changes: dict[str, Any], rows: dict[str, Any], told: str, tmp_path: Path
) -> None:
    ours = random_rollouts(30, 1, 3)
    a = write(tmp_path / "a", [row(each) for each in ours])
    b = write(tmp_path / "b", [row(each, **rows) for each in ours], **changes)
    with pytest.raises(DataError, match=told):
        selfcorrect.diff(a, b)


def test_other_counts_of_problems_samples_and_attempts(tmp_path: Path) -> None:
    ours = random_rollouts(30, 1, 3)
    a = write(tmp_path / "a", [row(each) for each in ours])
    fewer = write(tmp_path / "b", [row(each) for each in ours[:25]])
    with pytest.raises(DataError, match=r"has 30 problems and .* 25, of which 25 are the same; .*--common"):
        selfcorrect.diff(a, fewer)
    assert selfcorrect.diff(a, fewer, common=True).n == 25
    none = write(tmp_path / "g", [row(each, id=f"z{each.problem.id}") for each in ours])
    with pytest.raises(DataError, match=r"have no problem in common \(such as p0 in the one and zp0 in the other\)"):
        selfcorrect.diff(a, none)
    twice = write(tmp_path / "c", [row(each) for each in random_rollouts(30, 2, 3)])
    with pytest.raises(DataError, match=r"samples of each problem: 1 in .*, but 2 in"):
        selfcorrect.diff(a, twice)
    three = write(tmp_path / "d", [row(each) for each in random_rollouts(30, 1, 3, attempts=3)])
    with pytest.raises(DataError, match=r"attempts at each problem: 2 in .*, but 3 in"):
        selfcorrect.diff(a, three)
    torn = write(tmp_path / "e", [row(each) for each in [*random_rollouts(30, 2, 3), ours[0]]])
    with pytest.raises(DataError, match="has 3 lines of problem p0, and 2 of p1"):
        selfcorrect.diff(a, torn)
    write(tmp_path / "f", [row(ours[0]), {"id": "x"}])
    with pytest.raises(DataError, match=r"two.rollouts.jsonl:2: expected a rollout"):
        selfcorrect.diff(a, tmp_path / "f")


def test_notes_on_what_else_was_asked(tmp_path: Path) -> None:
    """Files may lie elsewhere; prompts, limits and graders may not differ in silence."""
    ours = random_rollouts(30, 1, 3)
    a = write(tmp_path / "a", [row(each) for each in ours])
    b = write(tmp_path / "b", [row(each, prompt="other words") for each in ours])
    (b / "config.yaml").write_text(
        CONFIG.replace("64", "128").replace("HERE", "THERE").replace("workers: 1", "workers: 2")
    )
    (a / "asked.json").write_text(json.dumps({"the training problems": "1", TASK_FILE: "2"}))
    (b / "evaluations" / "kept").mkdir()
    (b / "evaluations" / "kept" / "two.json").write_text(json.dumps({"task": {FILE_HOLDS: "3"}}))
    assert list(selfcorrect.diff(a, b).notes) == [
        "the prompts of 30 of 30 problems read differently (such as p0)",
        "rollouts.max_new_tokens is 64 in A and 128 in B",
        "the task's file was another one for A than for B, and may have graded otherwise",
    ]
    few = [
        write(tmp_path / name, [row(each) for each in ours[:5]], decoding=how)
        for name, how in (("c", "recorded"), ("d", "greedy"))
    ]
    told = selfcorrect.diff(*few).notes
    assert "how recorded attempts were sampled is not known" in told[0]
    assert told[1].startswith("nothing can be concluded from A: only 5 problems")


def test_a_gain_that_is_bought_is_called_so(tmp_path: Path) -> None:
    good = write(tmp_path / "a", [row(rollout(f"p{n}", n % 4 > 0, n % 4 > 0)) for n in range(80)])
    sandbag = write(tmp_path / "b", [row(rollout(f"p{n}", n % 4 > 2, n % 4 > 0)) for n in range(80)])
    assert selfcorrect.diff(good, sandbag).notes[0].startswith("the gain in delta is bought by a worse first answer")
    assert selfcorrect.diff(sandbag, good).notes == ()


def test_rollouts_are_read_back(tmp_path: Path) -> None:
    ours = [rollout("a", True, False), rollout("b", False, True)]
    run = write(tmp_path / "a", [row(each) for each in ours])
    read = read_rollouts(run / "evaluations" / "two.rollouts.jsonl", "t")
    assert [each.attempts for each in read] == [each.attempts for each in ours]
    alone = [
        write(tmp_path / name, [row(rollout(f"p{n}", n < most)) for n in range(30)])
        for name, most in (("s", 9), ("t", 12))
    ]
    assert selfcorrect.diff(*alone).figures["Accuracy@t1"].less.value == pytest.approx(0.1)  # of single attempts
