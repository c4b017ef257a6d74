"""The countdown task: problems typed by hand, and what is held out of training."""

import gzip
import json
import os
from pathlib import Path

import pytest

from selfcorrect.config import CountdownConfig
from selfcorrect.errors import DataError
from selfcorrect.tasks.countdown import Countdown, held_out, split_of


@pytest.mark.parametrize("text", ["30 7 2 = 39", " 2, 30,7 : 39 ", "countdown-30-7-2-to-39"])
def test_typed_problems(text: str) -> None:
    assert dict(Countdown().parse(text).reference) == {"numbers": [30, 7, 2], "target": 39}


@pytest.mark.parametrize(
    "text",
    ["30 7 2 = -39", "3.5 7 2 = 4", "1234567890123 7 2 = 39", "30 7 2", "30 -7 2 = 39", "30 = 39", "30 7 = 2 = 39", ""],
)
def test_what_is_not_a_problem_is_not_guessed_at(text: str) -> None:
    with pytest.raises(DataError, match="expected two or more whole numbers"):
        Countdown().parse(text)


def test_more_than_can_be_generated_in_good_time(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"ask for 100,001 held-out problems of countdown.*lower them to 100,000 together"
    ):
        Countdown().held_out(100_001)
    file = tmp_path / "own.jsonl"
    file.write_text('{"nums": [3, 7, 12], "target": 22}\n')
    assert len(Countdown(CountdownConfig(data=str(file))).held_out(10**9)) == 1


def test_a_file_gives_as_many_problems_as_are_asked_for(tmp_path: Path) -> None:
    file = tmp_path / "own.jsonl"
    rows = [{"nums": [3, 7, 12], "target": target} for target in range(9)] + [{"nums": list(range(30)), "target": 1}]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = Countdown(CountdownConfig(data=str(file)))
    assert [len(task.held_out(count)) for count in (4, 100)] == [4, 10]
    assert {problem.id for problem in task.held_out(4)} < {problem.id for problem in task.held_out(6)}
    assert len(task.longest().reference["numbers"]) == 30


@pytest.mark.parametrize("name", ["own.jsonl", "own.jsonl.gz", "own.json", "own.json.gz"])
def test_files_are_read_as_other_tasks_read_theirs(name: str, tmp_path: Path) -> None:
    """Packed, with a byte order mark, as an array; the same problem once, in whatever order, and a note on it."""
    rows = [{"nums": [3, 7, 12], "target": 22}, {"nums": [3, 7, 12], "target": 23}, {"input": "12,7,3", "output": "22"}]
    text = json.dumps(rows) if ".json." in f"{name}." else "\n".join(map(json.dumps, rows))
    content = text.encode("utf-8-sig")
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    task = Countdown(CountdownConfig(data=str(tmp_path / name)))
    assert sorted(problem.reference["target"] for problem in task.held_out(9)) == [22, 23]
    assert task.notes == (f"{tmp_path / name}: rows left out, whose problems stand there already: 1",)


def test_the_public_external_set_is_held_out() -> None:
    """One of its rows as a fact; all of them where the file is at hand."""
    assert len(held_out()) == 256
    assert split_of((93, 100, 30), 23) == "test"
    assert split_of((93, 100, 30), 24) == "train"
    file = Path(os.environ.get("SELFCORRECT_DATA", "../shared/data")) / "countdown/d1_cd3_test.jsonl"
    for problem in Countdown().load(str(file)) if file.exists() else ():
        assert split_of(tuple(problem.reference["numbers"]), problem.reference["target"]) == "test"


PINNED_DRAW = ["countdown-83-81-4-to-6", "countdown-94-85-35-to-44"]
PINNED_TEST = ["countdown-23-11-9-to-21", "countdown-73-64-16-to-7"]


def test_a_seed_s_problems_stay_what_they_were() -> None:
    """Published results name their seeds."""
    task = Countdown()
    assert [problem.id for problem in task.draw(1, 2, 0)] == PINNED_DRAW
    assert [problem.id for problem in task.held_out(2)] == PINNED_TEST
    assert task.draw(2, 3, 0) == Countdown().draw(2, 3, 0) != task.draw(1, 3, 0)
