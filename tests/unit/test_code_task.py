"""MBPP, HumanEval and recorded repairs: splits by id, prompts, what the judge gets, what its verdicts become."""

import re
from pathlib import Path
from typing import Any

import pytest

from selfcorrect.config import CodeConfig, MathConfig, RepairConfig
from selfcorrect.errors import DataError
from selfcorrect.tasks.code import CodeTask, Item, asked_for
from selfcorrect.tasks.repair import RepairTask, repair_rows
from selfcorrect.types import Attempt, Completion, Grade, Outcome, Problem, Rollout
from tests.support import graders
from tests.support.data import HUMANEVAL, MBPP, PUBLIC, code_folder, math_folder, mbpp_row, write


@pytest.fixture(autouse=True)
def fakes(monkeypatch: pytest.MonkeyPatch) -> None:
    graders.put_in_place(monkeypatch)


def task_of(**settings: Any) -> CodeTask:
    paths = ("data", "evaluate_data")
    given: dict[str, Any] = {k: str(v) if k in paths else v for k, v in settings.items()}
    return CodeTask(CodeConfig(name="code", **given))


def numbers(problems: Any) -> list[int]:
    return [int(problem.id.rpartition("/")[2]) for problem in problems]


def fenced(program: str) -> str:
    return f"Here you are.\n```python\n{program}\n```\n"


def test_mbpp_is_split_by_task_id(tmp_path: Path) -> None:
    task = task_of(data=code_folder(tmp_path))
    assert [numbers(task.train), numbers(task.test)] == [[601, 602, 603, 604], [11, 12, 13]]
    assert numbers(task_of(data=tmp_path / "mbpp.jsonl").test) == [11, 12, 13]


def test_the_first_prompt_shows_three_solved_examples_and_the_tests(tmp_path: Path) -> None:
    task = task_of(data=code_folder(tmp_path))
    prompt = task.test[0].prompt
    assert "\r" not in prompt  # the programs have Windows line ends
    assert [prompt.count(f"def add_{n}(x):\n    return x + {n}") for n in (2, 3, 4, 1, 11)] == [1, 1, 1, 0, 0]
    assert prompt.endswith("adds 11.\nTests:\nassert add_11(0) == 11\nassert add_11(5) == 16\nassert add_11(-11) == 0")
    assert "def add_" not in task_of(data=tmp_path, shots=0).test[0].prompt
    assert task_of(data=tmp_path, shots=0, prompt="{task}|{tests}").test[0].prompt.startswith("Write a function that")
    write(tmp_path / "mbpp.jsonl", [row for row in MBPP if row["task_id"] != 3])
    with pytest.raises(DataError, match=r"task.shots = 3: the data holds no task 3 to show .*set task.shots=0"):
        task_of(data=tmp_path).held_out(1)


def test_humaneval_hides_its_tests_and_cannot_be_trained_on(tmp_path: Path) -> None:
    task = task_of(dataset="humaneval", data=code_folder(tmp_path))
    assert numbers(task.test) == [0, 1, 2, 3]
    assert str(HUMANEVAL[2]["prompt"]).strip() in task.test[2].prompt
    assert "assert" not in task.test[2].prompt
    with pytest.raises(DataError, match=r"'humaneval' is for evaluation only; to train, set task.dataset to mbpp and"):
        task.draw(1, 1, 0)


def test_training_on_one_set_and_evaluating_on_another(tmp_path: Path) -> None:
    one = task_of(data=code_folder(tmp_path), evaluate_on="humaneval")  # side by side in one folder
    write(tmp_path / "b" / "humaneval.jsonl", HUMANEVAL[:2])
    other = task_of(data=tmp_path / "mbpp.jsonl", evaluate_on="humaneval", evaluate_data=tmp_path / "b")
    assert [numbers(one.train), numbers(one.test)] == [[601, 602, 603, 604], [0, 1, 2, 3]]
    assert [numbers(other.train), numbers(other.test)] == [[601, 602, 603, 604], [0, 1]]


def test_mbpp_plus_never_evaluates_what_was_trained_on(tmp_path: Path) -> None:
    rows = [{**row, "prompt": row["text"], "test": "\n".join(row["test_list"]), "test_imports": []} for row in MBPP]
    write(tmp_path / "mbpp_plus.jsonl", rows)
    write(tmp_path / "mbpp.jsonl", MBPP)
    assert numbers(task_of(dataset="mbpp_plus", data=tmp_path).test) == [11, 12, 13, 511, 601, 602, 603, 604]
    assert numbers(task_of(data=tmp_path, evaluate_on="mbpp_plus").test) == [11, 12, 13, 511]


def test_what_the_judge_is_given(tmp_path: Path) -> None:
    node = {**mbpp_row(11), "test_setup_code": "class Node: pass", "test_imports": ["import math"]}
    write(tmp_path / "mbpp.jsonl", [*MBPP[:4], node])
    write(tmp_path / "HumanEval.jsonl", HUMANEVAL)
    task = task_of(data=tmp_path, time_limit=2.0, memory_mb=512, workers=3)
    grades = task.grade([(task.test[0], fenced("def add_11(x):\n    return x + 11"))])
    judge: Any = task._judge
    assert judge.options == {
        "workers": 3, "time_limit": 2.0, "time_factor": 20.0, "prelude": True, "preload": (), "allow_unsandboxed": False, "memory_mb": 512,
    }  # fmt: skip
    ((program, checks),) = judge.jobs
    assert checks.code == "import math\n" + "\n".join(node["test_list"])
    assert checks.setup == "class Node: pass"  # after the program: two of MBPP's need it so
    assert (checks.entry_point, checks.helpers, checks.reference) == (None, "", "def add_11(x):\n    return x + 11\n")
    assert grades == [Grade(Outcome.CORRECT, 1.0, program, "passed")]
    task.close()

    task = task_of(dataset="humaneval", data=tmp_path)
    (grade,) = task.grade([(task.test[3], fenced("def times_3(x):\n    return helper(x) * 3"))])
    judge = task._judge
    ((program, checks),) = judge.jobs
    assert program.startswith("import math\n\n\ndef helper(x):")
    assert (checks.entry_point, checks.helpers) == ("times_3", HUMANEVAL[3]["prompt"])
    assert checks.reference == f"{HUMANEVAL[3]['prompt']}{HUMANEVAL[3]['canonical_solution']}"
    assert grade.correct


@pytest.mark.parametrize(
    ("tests", "solution", "names"),
    [
        ("assert add(1, 2) == 3", "", {"add"}),
        ("assert set(f(x)) == {x for x in range(3)}", "def g(): 1\ndef f(x): 1", {"f"}),
        ("import math\nassert math.isclose(f(1), 1.0, rel_tol=0.1)", "f = float", {"f"}),
        (
            "root = Node(1)\nroot.left = Node(2)\nassert depth(root) == 2",
            "class Node: 1\ndef depth(n): 1",
            {"Node", "depth"},
        ),
        ("assert Solution().f(1) == 1", "", {"Solution"}),
        ("def check(candidate):\n    assert f(1) == 2\ncheck(f)", "", {"f"}),
        ("assert counter(Counter('a')) == 1", "def counter(c): 1", {"counter"}),
        ("for (a, b) in [(1, 2)]:\n    assert f(a) == b", "", {"f"}),
        ("assert f(", "def f(): 1", set()),
        ("\0", "", set()),
    ],
)
def test_the_names_that_tests_ask_for(tests: str, solution: str, names: set[str]) -> None:
    assert asked_for(Item(1, "", tests, tests, solution)) == names


def test_the_block_that_the_tests_ask_for_is_judged(tmp_path: Path) -> None:
    """Not a test function behind it; and an answer's `from __future__` stands before the prompt's imports."""
    right, later = "def add_11(x):\n    return x + 11", "def test_add():\n    assert add_11(1) == 12"
    task = task_of(data=code_folder(tmp_path))
    grades = task.grade([(task.test[0], text) for text in (fenced(right) + fenced(later), fenced(later))])
    assert [grade.outcome for grade in grades] == ["correct", "wrong"]
    assert grades[0].answer == right
    task = task_of(dataset="humaneval", data=tmp_path)
    triple = "from __future__ import annotations\n\ndef times_3(x: int) -> No:\n    return helper(x) * 3"
    names: dict[str, Any] = {}
    exec(task.program(task.test[3], fenced(triple) + fenced(later)), names)
    assert names["times_3"](2) == 6


def test_verdicts_become_grades_in_order(tmp_path: Path) -> None:
    task = task_of(data=code_folder(tmp_path))
    texts = ["# timeout", "x = 1", "# grader_failed", "", "def add_11(x): return x + 11", "def add_11(x): return x"]
    texts = [fenced(text) if text else "I do not know." for text in texts]
    grades = task.grade([(task.test[0], text) for text in texts])
    assert [str(grade.outcome) for grade in grades] == [
        "timeout", "wrong", "grader_failed", "no_answer", "correct", "wrong",
    ]  # fmt: skip
    assert [grade.detail for grade in grades][:3] == [
        "timeout: as told",
        "exception: NameError",
        "grader_failed: as told",
    ]
    assert [grade.reward for grade in grades] == [0, 0, 0, 0, 1, 0]
    assert grades[5].answer == "def add_11(x): return x"


def test_every_solution_of_the_small_sets_passes(tmp_path: Path) -> None:
    task = task_of(data=code_folder(tmp_path))
    answers = [(problem, fenced(task._item(problem).solution)) for problem in [*task.train, *task.test]]
    assert all(grade.correct for grade in task.grade(answers))
    task = task_of(dataset="humaneval", data=tmp_path)
    bodies = [(p, str(row["canonical_solution"])) for p, row in zip(task.test, HUMANEVAL, strict=True)]
    assert [grade.outcome for grade in task.grade(bodies)] == ["correct"] * 4


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{**mbpp_row(11), "task_id": "x"}], r"mbpp.jsonl:1: field 'task_id' must be a whole number, got 'x'"),
        ([mbpp_row(11), mbpp_row(11)], r"mbpp.jsonl:2: field 'task_id' = 11 stands at .*mbpp.jsonl:1 already"),
        ([{**mbpp_row(11), "test_list": []}], r"mbpp.jsonl:1: field 'test_list' is empty, so nothing could be graded"),
        ([{**mbpp_row(11), "test_list": "assert"}], r"mbpp.jsonl:1: field 'test_list' must be a list of texts"),
        ([{**mbpp_row(11), "code": None}], r"mbpp.jsonl:1: field 'code' must be text, got None"),
        ([{**mbpp_row(11), "plus_input": []}], r"mbpp.jsonl:1: field 'plus_input' is of EvalPlus' own form"),
        (HUMANEVAL, r"mbpp.jsonl:1: field 'test_list' is missing; the row has canonical_solution, entry_point"),
    ],
)
def test_wrong_rows(rows: list[dict[str, Any]], message: str, tmp_path: Path) -> None:
    write(tmp_path / "mbpp.jsonl", rows)
    with pytest.raises(DataError, match=message):
        task_of(data=tmp_path, shots=0).held_out(1)


def test_wrong_humaneval_rows(tmp_path: Path) -> None:
    write(tmp_path / "HumanEval.jsonl", [{**HUMANEVAL[0], "test": "assert True"}])
    with pytest.raises(DataError, match=r"field 'test' defines no check\(candidate\)"):
        task_of(dataset="humaneval", data=tmp_path).held_out(1)
    write(tmp_path / "HumanEval.jsonl", [{**HUMANEVAL[0], "entry_point": "g"}])
    with pytest.raises(DataError, match="field 'entry_point' = 'g' is not defined in the prompt"):
        task_of(dataset="humaneval", data=tmp_path).held_out(1)
    with pytest.raises(DataError, match=r"the folder holds neither MbppPlus-OriginFmt.\* nor test.\*"):
        task_of(dataset="mbpp_plus", data=tmp_path).held_out(1)


MBPP_R = {
    "task_id": 15, "split": "test", "text": "Double it.", "buggy_program": "def f(x):\n    return x", "model": "some",
    "tests": "\ndef check(candidate):\n    assert f(1) == 2\n    assert f(2) == 4\ncheck(f)\n",
    "reference": "def f(x):\r\n    return 2 * x", "failure": "AssertionError", "parses": True,
}  # fmt: skip


def test_rows_of_mbpp_r_s_shape(tmp_path: Path) -> None:
    file = write(tmp_path / "r.jsonl", [MBPP_R, {**MBPP_R, "split": "train"}, {**MBPP_R, "buggy_program": "x"}])
    task = RepairTask(RepairConfig(name="repair", data=str(file)))
    assert [len(task.train), len(task.test)] == [1, 2]
    problem = task.test[0]
    assert problem.first_attempt == "```python\ndef f(x):\n    return x\n```"
    assert problem.prompt.endswith("Task: Double it.\nTests:\nassert f(1) == 2\nassert f(2) == 4")
    grades = task.grade([(problem, problem.first_attempt), (problem, fenced("def f(x): return x * 2"))])
    assert [grade.outcome for grade in grades] == ["wrong", "correct"]
    assert "code" in task.correction_prompt(problem)


def test_splits_of_mbpp_r_s_shape(tmp_path: Path) -> None:
    rows = [{**MBPP_R, "split": split} for split in ("prompt", "validation", "train", "prompt")]
    task = RepairTask(RepairConfig(name="repair", data=str(write(tmp_path / "r.jsonl", rows))))
    assert [len(task.train), len(task.test)] == [1, 1]
    assert task.notes == (f"{tmp_path}/r.jsonl: 2 rows of split prompt are left out, which MBPP shows as examples",)
    write(tmp_path / "r.jsonl", [MBPP_R, {**MBPP_R, "split": "dev"}])
    with pytest.raises(DataError, match=r"r.jsonl:2: field 'split' = 'dev' must be one of train, test, validation, pr"):
        RepairTask(RepairConfig(name="repair", data=str(tmp_path / "r.jsonl"))).held_out(1)


@pytest.mark.parametrize(
    ("held", "other", "purpose"), [("train", "test", "evaluate on"), ("test", "train", "train on")]
)
def test_a_set_of_the_other_split_says_so(held: str, other: str, purpose: str, tmp_path: Path) -> None:
    task = RepairTask(
        RepairConfig(name="repair", data=str(write(tmp_path / "r.jsonl", [{**MBPP_R, "split": held}] * 2)))
    )
    why = (
        f"task.data = '{tmp_path}/r.jsonl' holds none to {purpose}: its rows (2) are of split {held}; record some with "
        f"`selfcorrect make-repair-set ... --split {other}`, and add them"
    )
    with pytest.raises(DataError, match=f"^{re.escape(why)}$"):
        len(getattr(task, other))


def failed(problem: Problem, text: str, outcome: Outcome) -> Rollout:
    attempt = Attempt((), Completion((), (), text, "stop"), Grade(outcome, 0.0, "", "why"))
    return Rollout(problem, (attempt,))


@pytest.mark.parametrize("kind", ["code", "math"])
def test_a_set_that_was_made_is_read_back(kind: str, tmp_path: Path) -> None:
    """Failed attempts of both splits, two of them at one problem, one empty; truncated and right ones are left out."""
    code = CodeConfig(name="code", data=str(code_folder(tmp_path / "code")))
    math = MathConfig(name="math", data=str(math_folder(tmp_path / "math")))
    of = code if kind == "code" else math
    source = RepairTask(RepairConfig(name="repair", data="unused", of=of))._of
    one, two, held = *list(source.train)[:2], source.test[0]
    outcomes = (Outcome.WRONG, Outcome.TIMEOUT, Outcome.NO_ANSWER, Outcome.TRUNCATED, Outcome.CORRECT)
    rows = repair_rows(
        [failed(p, t, o) for p, t, o in zip((one, one, two, two, two), ("a", "b", "", "c", "d"), outcomes, strict=True)],
        "train", "folder",
    )  # fmt: skip
    rows += repair_rows([failed(held, "e", Outcome.WRONG)], "test", "folder")
    assert rows[1] == {
        "task_id": one.id, "split": "train", "first_attempt": "b", "failure": "timeout: why", "model": "folder",
    }  # fmt: skip
    task = RepairTask(RepairConfig(name="repair", data=str(write(tmp_path / "set.jsonl", rows)), of=of))
    assert [(problem.id, problem.first_attempt) for problem in task.train] == [
        (f"{one.id}#1", "a"), (f"{one.id}#2", "b"), (f"{two.id}#3", ""),
    ]  # fmt: skip
    assert [(problem.prompt, problem.first_attempt) for problem in task.test] == [(held.prompt, "e")]
    right = fenced(mbpp_row(601)["code"]) if kind == "code" else r"\boxed{0}"
    assert [grade.correct for grade in task.grade([(next(iter(task.train)), right)])] == [True]
    write(tmp_path / "set.jsonl", [{**rows[0], "task_id": "mbpp/999"}])
    with pytest.raises(DataError, match=r"set.jsonl:1: field 'task_id' = 'mbpp/999' is no problem of task.of"):
        RepairTask(RepairConfig(name="repair", data=str(tmp_path / "set.jsonl"), of=of)).held_out(1)


@pytest.mark.skipif(not (PUBLIC / "mbpp").is_dir(), reason=f"no public data at {PUBLIC}")
@pytest.mark.parametrize("plus", [False, pytest.param(True, marks=pytest.mark.nightly)])
def test_the_public_sets_whole(plus: bool) -> None:
    counts = {
        ("mbpp", "mbpp"): (374, 500), ("mbpp_sanitized", "mbpp"): (120, 257), ("mbpp_plus", "mbpp"): (0, 371),
        ("humaneval", "humaneval"): (0, 164), ("humaneval_plus", "humaneval"): (0, 164),
    }  # fmt: skip
    for (dataset, folder), (train, test) in counts.items():
        if ("plus" in dataset) != plus:  # whose tests are the larger part of it all
            continue
        task = task_of(dataset=dataset, data=PUBLIC / folder)
        assert len(task.test) == test, dataset
        if train:
            assert len(task.train) == train, dataset
    task = task_of(data=PUBLIC / "mbpp")
    needs_node = [item.number for item in task._own if "Node" in item.setup]
    assert needs_node == [367, 927]
    assert not any("\r" in item.solution for item in task._own)
    repair = RepairTask(RepairConfig(name="repair", data=str(PUBLIC / "repair/mbpp_r_style.jsonl.gz")))
    assert [len(repair.train), len(repair.test), len(repair.load(repair._config.data))] == [9, 362, 371]


def test_columns_of_one_s_own(tmp_path: Path) -> None:
    row = {{"text": "instruction", "code": "solution"}.get(key, key): value for key, value in mbpp_row(11).items()}
    write(tmp_path / "rows.jsonl", [row])
    config = CodeConfig(
        name="code", data=str(tmp_path / "rows.jsonl"), shots=0, columns={"text": "instruction", "code": "solution"}
    )
    (problem,) = CodeTask(config).test
    assert str(row["instruction"]) in problem.prompt
    with pytest.raises(
        DataError, match=r"rows.jsonl:1: field 'prompt' is missing; .* set task.columns.prompt=ITS_NAME"
    ):
        _ = CodeTask(config.model_copy(update={"columns": {}})).test
