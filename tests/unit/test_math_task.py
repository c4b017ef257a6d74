"""MATH and GSM8K: splits, epochs, golds, and every quirk of the data with what was decided about it."""

import json
from pathlib import Path
from typing import Any

import pytest

from selfcorrect.config import MathConfig, RepairConfig
from selfcorrect.errors import DataError
from selfcorrect.grading.math import FINAL_FORM
from selfcorrect.tasks import math as module
from selfcorrect.tasks.math import MathTask, words_digest
from selfcorrect.tasks.repair import RepairTask
from tests.support import graders
from tests.support.data import GSM8K, MATH, PUBLIC, math_folder, write


@pytest.fixture(autouse=True)
def fakes(monkeypatch: pytest.MonkeyPatch) -> None:
    graders.put_in_place(monkeypatch)


def task_of(**settings: Any) -> MathTask:
    given: dict[str, Any] = {k: str(v) if k == "data" else v for k, v in settings.items()}
    return MathTask(MathConfig(name="math", **given))


def test_the_paper_s_split_trains_on_all_but_the_500(tmp_path: Path) -> None:
    task = task_of(data=math_folder(tmp_path))
    assert [problem.id for problem in task.test] == ["test/algebra/10.json", "test/algebra/11.json"]
    assert [int(problem.id.split("/")[-1][:-5]) for problem in task.train] == list(range(10))
    original = task_of(data=tmp_path, split="original")
    assert [len(original.train), len(original.test)] == [6, 6]


def test_the_500_are_known_by_their_words_where_there_are_no_ids(tmp_path: Path) -> None:
    """As in the hub's copy, which also writes levels as text and lays its files out as train-00000-of-00001."""
    plain = [{"problem": f" {row['problem']}\n", "solution": row["solution"], "level": "Level 3"} for row in MATH]
    plain[0]["level"] = "Level ?"
    write(tmp_path / "train-00000-of-00001.jsonl", plain[:6])
    write(tmp_path / "test-00000-of-00001.jsonl", plain[6:])
    write(tmp_path / "math500.jsonl", MATH[10:])
    task = task_of(data=tmp_path)
    assert [len(task.train), len(task.test)] == [10, 2]
    assert [dict(problem.reference) for problem in task.train][:2] == [{"answer": "0"}, {"answer": "2", "level": 3}]


def test_every_problem_of_three_files_has_an_id_of_its_own(tmp_path: Path) -> None:
    plain = [{"problem": row["problem"], "solution": row["solution"]} for row in MATH]
    for name, rows in (("train", plain[:6]), ("test", plain[6:]), ("math500", plain[10:])):
        write(tmp_path / f"{name}.jsonl", rows)
    task = task_of(data=tmp_path)
    found = [*task.train, *task.test]
    assert len({problem.id for problem in found}) == len(found) == 12
    assert all(task.by_id[problem.id] is problem for problem in found)
    write(tmp_path / "train.jsonl", [{**plain[0], "unique_id": "math/math500/2"}])
    with pytest.raises(DataError, match=r"'unique_id' = 'math/math500/2' names a problem to train on and another"):
        _ = task_of(data=tmp_path).train


def test_many_rows_of_one_fault_are_counted(tmp_path: Path) -> None:
    rows = [{"problem": f"{n}?", "solution": "so"} for n in range(9)]
    write(tmp_path / "rows.jsonl", [MATH[1], *rows])
    task = task_of(data=tmp_path / "rows.jsonl")
    assert len(task.test) == 1
    assert len(task.notes) == 4
    assert task.notes[0] == "9 rows are left out: their solution states no answer; the first 3:"
    assert task.notes[1].endswith("rows.jsonl:2: left out: its solution states no answer")


def test_epochs_hold_every_problem_once(tmp_path: Path) -> None:
    task = task_of(data=math_folder(tmp_path))
    drawn = [problem.id for step in range(1, 6) for problem in task.draw(step, 4, 7)]  # 20 of a set of 10
    assert len(set(drawn[:10])) == len(set(drawn[10:])) == 10
    assert drawn[:10] != drawn[10:]
    # Random access: any step at any time, on another instance, and from a file whose lines stand otherwise.
    lines = (tmp_path / "train.jsonl").read_text().splitlines()
    (tmp_path / "train.jsonl").write_text("\n".join(reversed(lines)))
    assert [problem.id for problem in task_of(data=tmp_path).draw(3, 4, 7)] == drawn[8:12]
    assert [problem.id for problem in task.draw(1, 4, 8)] != drawn[:4]


def test_held_out_problems_are_always_the_same_and_spread_over_the_set(tmp_path: Path) -> None:
    task = task_of(data=math_folder(tmp_path), split="original")
    three = [problem.id for problem in task.held_out(3)]
    assert three == [problem.id for problem in task_of(data=tmp_path, split="original").held_out(3)]
    assert three != [problem.id for problem in task.test[:3]]
    assert len(task.held_out(2000)) == 6
    assert not {problem.id for problem in task.train} & {problem.id for problem in task.test}


def test_prompts_and_grades(tmp_path: Path) -> None:
    task = task_of(
        data=math_folder(tmp_path), prompt="{final_form} Solve: {problem}", correction_prompt="Again {problem}"
    )
    problem = task.test[0]
    assert problem.prompt == FINAL_FORM + " Solve: What is $10 + 10$?"
    assert task.correction_prompt(problem) == "Again What is $10 + 10$?"
    grades = task.grade([(problem, r"\boxed{20}"), (problem, r"\boxed{2}"), (problem, "no")])
    assert [grade.outcome for grade in grades] == ["correct", "wrong", "no_answer"]
    assert task.parse("train/algebra/3.json").prompt.endswith("$3 + 3$?")
    with pytest.raises(
        DataError, match=r"no such id; problems of task math are named by id, like test/algebra/10.json"
    ):
        task.parse("hello")
    task.close()
    task.close()


def test_a_recorded_attempt_goes_by_its_problem_s_name(tmp_path: Path) -> None:
    """Whatever is in it: such a problem cannot be typed."""
    rows = [{"problem": f"{n}?", "answer": str(n), "unique_id": f"of mine {n}"} for n in range(3)]
    of = MathConfig(name="math", data=str(write(tmp_path / "rows.jsonl", rows)), split="original")
    recorded = write(tmp_path / "set.jsonl", [{"task_id": row["unique_id"], "first_attempt": "7"} for row in rows])
    task = RepairTask(RepairConfig(name="repair", data=str(recorded), of=of))
    held = task.held_out(1)[0]
    assert task.parse(held.id) is held


def test_gsm8k(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", GSM8K[:4])
    write(tmp_path / "test.jsonl", GSM8K[4:])
    task = task_of(data=tmp_path, dataset="gsm8k")
    assert [(problem.id, problem.reference["answer"]) for problem in task.test] == [
        ("gsm8k/test/1", "9"), ("gsm8k/test/2", "11"),
    ]  # fmt: skip
    assert len(task.train) == 4
    assert [p.reference["answer"] for p in task_of().load(str(tmp_path / "test.jsonl"))] == ["9", "11"]  # by its shape


def test_an_empty_gold_is_filled_in_where_it_is_known_and_left_out_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    empty = {**MATH[0], "solution": r"So there are $\boxed{}$.", "answer": ""}
    write(tmp_path / "rows.jsonl", [MATH[1], empty])
    task = task_of(data=tmp_path / "rows.jsonl")
    assert len(task.test) == 1
    assert task.notes == (f"{tmp_path}/rows.jsonl:2: left out: its solution states no answer",)
    monkeypatch.setitem(module.EMPTY_GOLDS, words_digest(str(empty["problem"])), ("train/x/1", "0"))
    task = task_of(data=tmp_path / "rows.jsonl")
    assert [problem.reference["answer"] for problem in task.test] == ["2", "0"]
    assert task.notes == ("train/x/1: its solution's box is empty; 0 is taken as the answer",)


@pytest.mark.parametrize(
    ("rows", "settings", "answers"),
    [
        ([{"q": "1 + 1?", "final": "2"}], {"columns": {"problem": "q", "answer": "final"}}, ["2"]),
        ([{"problem": "a title", "q": "1 + 1?", "answer": "2"}], {"columns": {"problem": "q"}}, ["2"]),
        ([{"question": "1 + 1?", "answer": "2"}], {"columns": {"problem": "question"}}, ["2"]),  # bare, so MATH's form
        ([{"q": "1 + 1?", "worked": "so\n#### 2"}], {"columns": {"question": "q", "answer": "worked"}}, ["2"]),
        ([{"q": "1 + 1?", "answer": "2"}], {}, "rows.jsonl:1: field 'problem' is missing; the row has answer, q; if one of them is it, set task.columns.problem=ITS_NAME"),
        ([{"q": "1 + 1?", "answer": "2"}], {"columns": {"problem": "p"}}, "rows.jsonl:1: field 'p' is missing; the row has answer, q"),
        ([{"question": "1 + 1?", "answer": "0"}], {}, "rows.jsonl:1: field 'answer' states no answer: no line `#### ANSWER`"),
        ([{"problem": "1 + 1?", "solution": "2"}], {}, "rows.jsonl:1: field 'solution' states no answer: no \\boxed{...}"),
    ],
)  # fmt: skip
def test_rows_of_one_s_own(
    rows: list[dict[str, str]], settings: dict[str, Any], answers: list[str] | str, tmp_path: Path
) -> None:
    write(tmp_path / "rows.jsonl", rows)
    task = task_of(data=tmp_path / "rows.jsonl", **settings)
    if isinstance(answers, list):
        assert [problem.reference["answer"] for problem in task.test] == answers
        assert "1 + 1?" in task.test[0].prompt
        return
    with pytest.raises(DataError) as error:
        _ = task.test
    assert answers in str(error.value)


def test_a_folder_without_the_500_names_the_other_split(tmp_path: Path) -> None:
    math_folder(tmp_path)
    (tmp_path / "math500.jsonl").unlink()
    with pytest.raises(DataError, match=r"holds no math500.jsonl .* set task.split=original"):
        _ = task_of(data=tmp_path).test
    assert task_of(data=tmp_path, split="original").test


def test_a_question_of_one_s_own_needs_no_data() -> None:
    task = task_of(data="nowhere")
    problem = task.parse("What is 3 + 4?")
    assert "What is 3 + 4?" in problem.prompt
    assert [grade.outcome for grade in task.grade([(problem, "7")])] == ["grader_failed"]


def test_a_training_problem_whose_twin_is_held_out_is_dropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    math_folder(tmp_path)
    train, test = (words_digest(str(MATH[n]["problem"])) for n in (2, 7))
    monkeypatch.setitem(module.TWINS, train, ("train/algebra/2", test))
    task = task_of(data=tmp_path, split="original")
    assert [problem.id for problem in task.train if "/2." in problem.id] == []
    assert task.notes == ("train/algebra/2 is left out of training: a held-out problem is the same",)
    # In the paper's split the twin, 7, is a training problem itself.
    assert len(task_of(data=tmp_path).train) == 10
    # The same words are the same problem, listed or not.
    write(tmp_path / "train.jsonl", [*MATH[:6], MATH[11]])
    assert len(task_of(data=tmp_path, split="original").train) == 5


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"solution": "s", "answer": "1"}, r"train.jsonl:2: field 'problem' is missing; the row has answer, solution"),
        ({"problem": 3, "answer": "1"}, r"train.jsonl:2: field 'problem' must be text, got 3"),
        ({"problem": "", "answer": "1"}, r"train.jsonl:2: field 'problem' is empty"),
        ({"problem": "p", "answer": 1}, r"train.jsonl:2: field 'answer' must be text, got 1"),
        ({"problem": "p"}, r"train.jsonl:2: field 'solution' is missing"),
        ({"problem": "p", "answer": "1", "unique_id": "a"}, r"train.jsonl:2: field 'unique_id' = 'a' stands at .*train.jsonl:1"),
    ],
)  # fmt: skip
def test_wrong_rows(row: dict[str, Any], message: str, tmp_path: Path) -> None:
    math_folder(tmp_path)
    write(tmp_path / "train.jsonl", [{**MATH[0], "unique_id": "a"}, row])
    with pytest.raises(DataError, match=message):
        task_of(data=tmp_path).draw(1, 1, 0)


def test_folders_and_files_that_do_not_fit(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"task.data = '.*none': no such file or folder"):
        task_of(data=tmp_path / "none").held_out(1)
    write(tmp_path / "train.jsonl", MATH)
    with pytest.raises(DataError, match=r"the folder holds no test.jsonl \(nor .json, .parquet, or one with .gz\)"):
        task_of(data=tmp_path, split="original").held_out(1)
    with pytest.raises(DataError, match=r"is one file, to evaluate on; to train, name a folder"):
        task_of(data=tmp_path / "train.jsonl").draw(1, 1, 0)


@pytest.mark.skipif(not (PUBLIC / "math").is_dir(), reason=f"no public data at {PUBLIC}")
@pytest.mark.nightly
def test_the_public_sets_whole() -> None:
    """Counts, and the quirks that the data's README names, by id."""
    task = task_of(data=PUBLIC / "math")
    by_id = {problem.id: problem for problem in task.train}
    assert [len(by_id), len(task.test)] == [12_000, 500]
    assert set(by_id) == set((PUBLIC / "math/train12k.ids.txt").read_text().split())
    assert [len(note) > 40 for note in task.notes] == [True, True]  # the two empty golds
    for name in ("7115", "7117"):
        assert by_id[f"train/number_theory/{name}.json"].reference["answer"] == "0"
    for name, answer in (("24014", "2"), ("25040", "9")):  # \boxed 2, without braces
        assert by_id[f"train/algebra/{name}.json"].reference["answer"] == answer
    for name in ("377", "471"):
        assert "level" not in by_id[f"train/geometry/{name}.json"].reference
    original = task_of(data=PUBLIC / "math", split="original")
    assert [len(original.train), len(original.test)] == [7498, 5000]
    left_out = json.dumps(original.notes)
    assert "train/algebra/517 is left out" in left_out
    assert "train/geometry/6032 is left out" in left_out
    gsm8k = task_of(data=PUBLIC / "gsm8k", dataset="gsm8k")
    assert [len(gsm8k.train), len(gsm8k.test), gsm8k.notes] == [7473, 1319, ()]
