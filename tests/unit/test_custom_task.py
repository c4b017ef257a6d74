"""A user's own task: the example as it is, and what is said of mistakes in the user's file."""

import json
import os
import sys
from pathlib import Path

import pytest

from selfcorrect.config import CustomConfig, TrainConfig
from selfcorrect.config.recipe import validate
from selfcorrect.errors import DataError
from selfcorrect.evaluation.evaluate import evaluated_problems
from selfcorrect.runs.checks import shortages
from selfcorrect.runs.folder import _lines
from selfcorrect.tasks.custom import CORRECTION, CustomTask
from selfcorrect.types import Attempt, Completion, Grade, Outcome, Rollout
from tests.support.data import write

EXAMPLE = Path(__file__).parents[2] / "examples" / "custom_task.py"
GOOD = """
def problems(split, options):
    return [{"id": f"{split}{n}", "prompt": f"{n}?", "n": n} for n in range(options.get("count", 3))]


def grade(problem, text):
    return int(text) == problem["n"]
"""


def task_of(file: Path, text: str | None = None, **options: object) -> CustomTask:
    if text is not None:
        file.write_text(text)
    return CustomTask(CustomConfig(name="custom", file=str(file), options=options))


def test_a_file_edited_within_a_second_is_read_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And leaves nothing beside it."""
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    file = tmp_path / "mine.py"
    for count in (3, 4):
        file.write_text(GOOD.replace('"count", 3', f'"count", {count}'))
        os.utime(file, (1e9, 1e9))
        assert len(task_of(file).train) == count
    assert list(tmp_path.iterdir()) == [file]


def test_the_example_works_as_it_is() -> None:
    task = task_of(EXAMPLE, letters=3, count=60)
    assert min(len(task.train), len(task.test)) > 5
    problem = task.test[0]
    assert len(problem.reference["answer"]) == 3
    texts = (problem.reference["answer"] + "\n", problem.reference["answer"] + "x", " ")
    assert [g.outcome for g in task.grade([(problem, text) for text in texts])] == ["correct", "wrong", "no_answer"]
    assert "once more" in task.correction_prompt(problem)


def test_a_small_file_of_one_s_own(tmp_path: Path) -> None:
    task = task_of(tmp_path / "mine.py", GOOD, count=4)
    assert [len(task.train), len(task.test)] == [4, 4]
    assert task.correction_prompt(task.test[0]) == CORRECTION
    # An error at one text costs that text's grade, with file and line; the rest are graded.
    grades = task.grade([(task.test[2], text) for text in ("2", "3", "two")])
    assert [grade.outcome for grade in grades] == ["correct", "wrong", "grader_failed"]
    assert grades[2].detail.startswith(f"{tmp_path}/mine.py:7: ValueError: invalid literal")
    rows = write(tmp_path / "rows.jsonl", [{"id": "a", "prompt": "7?", "n": 7}])
    assert task.grade([(task.load(str(rows))[0], "7")])[0].correct


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def problems(:\n", r"mine.py:1: invalid syntax"),
        ("import absent_library\n", r"mine.py:1: ModuleNotFoundError: No module named 'absent_library'"),
        ("x = 1\ny = 1 / 0\n", r"mine.py:2: ZeroDivisionError: division by zero"),
        ("def grade(p, t): return True\n", r"mine.py: defines no function problems; docs/tasks.md"),
        ("problems = 3\n", r"mine.py: defines no function problems"),
        ("def problems(s, o): return []\n", r"mine.py: defines no function grade"),
        (GOOD.replace("range(", "range(None and "), r"mine.py:3: TypeError: 'NoneType' object cannot be interpreted"),
        (GOOD.replace('options.get("count", 3)', 'options["count"]'), r"mine.py:3: KeyError: 'count'"),
        (GOOD.replace('f"{split}{n}"', "n"), r"mine.py: problems\('train'\) row 1: field 'id' must be text, got 0"),
        (GOOD.replace('f"{split}{n}"', '"x"'), r"problems\('train'\) row 2: field 'id' = 'x' stands at"),
        (GOOD.replace('f"{split}{n}"', 'f"{n}"'), r"mine.py: problem '0' is both in train and in test"),
        (GOOD.replace('"prompt"', '"question"'), r"row 1: field 'prompt' is missing; the row has id, n, question"),
        (GOOD.replace("return [{", "return [3] or [{"), r"row 1: must be a dict, got int"),
        (GOOD.replace("range(options", "range(0 * options"), r"task custom: the data holds no problems"),
    ],
)  # fmt: skip
def test_mistakes_in_the_file_are_told_with_file_and_line(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message) as caught:
        task_of(tmp_path / "mine.py", text).draw(1, 1, 0)
    assert len(str(caught.value).splitlines()) == 1


def test_a_grader_that_fails_at_everything_stops_the_run(tmp_path: Path) -> None:
    task = task_of(tmp_path / "mine.py", GOOD.replace('problem["n"]', 'problem["m"]'))
    with pytest.raises(DataError, match=r"mine.py:7: KeyError: 'm'"):
        task.grade([(task.test[0], "1"), (task.test[1], "1")])
    task = task_of(tmp_path / "mine.py", GOOD.replace("int(text) ==", "3 +"))
    with pytest.raises(DataError, match=r"grade\(problem, text\) must return True, False or a Grade, got 3"):
        task.grade([(task.test[0], "1")])
    assert task.grade([]) == []
    task = task_of(tmp_path / "mine.py", "import sys\n" + GOOD.replace("int(text) ==", "sys.exit(3) or"))
    with pytest.raises(DataError, match=r"mine.py:8: SystemExit: 3"):
        task.grade([(task.test[0], "1")])


@pytest.mark.parametrize(
    ("verdict", "told"),
    [
        ('Grade("right", 1.0)', r"problem 'test0': Grade: outcome must be one of correct, wrong, .*'right'"),
        ('Grade("correct", float("nan"))', r"reward = nan is no number from 0 to 1"),
        ('Grade("wrong", -1)', r"reward = -1.0 is no number from 0 to 1"),
        ('Grade("correct", 0)', r"reward = 0 contradicts outcome = correct"),
        ('Grade("timeout", 1)', r"reward = 1 contradicts outcome = timeout"),
        ('Grade("wrong", None)', r"reward a number"),
    ],
)  # fmt: skip
def test_a_grade_that_contradicts_itself_is_refused(verdict: str, told: str, tmp_path: Path) -> None:
    text = "from selfcorrect.types import Grade\n" + GOOD.replace('int(text) == problem["n"]', verdict)
    task = task_of(tmp_path / "mine.py", text)
    with pytest.raises(DataError, match=told):
        task.grade([(task.test[0], "1")])


def test_a_grade_may_name_its_outcome_in_words(tmp_path: Path) -> None:
    text = "from selfcorrect.types import Grade\n" + GOOD.replace('int(text) == problem["n"]', 'Grade("correct", 1)')
    task = task_of(tmp_path / "mine.py", text)
    assert task.grade([(task.test[0], "1")])[0].correct


def test_files_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"task.file = '.*none.py': no such file"):
        task_of(tmp_path / "none.py")
    with pytest.raises(DataError, match=r"task.file = .*: not a file"):
        task_of(tmp_path)
    (tmp_path / "mine.txt").write_text(GOOD)
    with pytest.raises(DataError, match=r"task.file = .*mine.txt': not a Python file"):
        task_of(tmp_path / "mine.txt")


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ('{"a", "b"}', "Object of type set is not JSON serializable"),
        ("Decimal(1)", "Object of type Decimal is not JSON serializable"),
        ("{(1, 2): 3}", "keys must be str, int, float, bool or None, not tuple"),
        ("LOOP", "Circular reference detected"),
        ("DEEP", "maximum recursion depth exceeded"),
    ],
)
def test_what_json_cannot_hold_is_told_before_the_work(value: str, why: str, tmp_path: Path) -> None:
    begins = "from decimal import Decimal\nLOOP = []\nLOOP.append(LOOP)\nDEEP = 0\n"
    begins += "for _ in range(100_000): DEEP = [DEEP]\n"
    with pytest.raises(DataError, match=r"mine.py: problems\('train'\) row 1: field 'n' cannot be kept") as caught:
        task_of(tmp_path / "mine.py", begins + GOOD.replace('"n": n', f'"n": {value}')).draw(1, 1, 0)
    assert f"JSON: {why}" in str(caught.value)
    assert str(caught.value).endswith("; give text, numbers, lists or dicts")


def test_a_number_that_is_not_finite_is_kept_as_null(tmp_path: Path) -> None:
    problem = task_of(tmp_path / "mine.py", GOOD.replace('"n": n', '"n": float("nan")')).test[0]
    attempt = Attempt((), Completion((), (), "1", "stop"), Grade(Outcome.WRONG, 0.0))
    assert json.loads(_lines([Rollout(problem, (attempt,))]))["reference"] == {"n": None}


@pytest.mark.parametrize(
    ("settings", "evaluated", "told"),
    [
        ({"evaluation": {"problems": 4}}, 4, []),
        ({"evaluation": {"problems": 20}}, 4, ["evaluation.problems = 20, but there are 4 problems: all of them are taken"]),
        ({"evaluation": {"problems": 4, "offset": 1}}, 3, ["evaluation.problems = 4, but there are 3 problems behind evaluation.offset = 1: all of them are taken"]),
        ({"evaluation": {"problems": 9, "split": "train"}}, 4, ["evaluation.problems = 9, but there are 4 problems: all of them are taken"]),
        ({"evaluation": {"problems": 4}, "rollouts": {"problems_per_step": 5}}, 4, ["rollouts.problems_per_step = 5, but there are 4 to train on: a step has some more than once"]),
    ],
)  # fmt: skip
def test_fewer_problems_than_asked_for_are_told(
    settings: dict[str, dict[str, object]], evaluated: int, told: list[str], tmp_path: Path
) -> None:
    text = (
        "def problems(s, o): return [{'id': f'{s}{i}', 'prompt': 'p'} for i in range(4)]\ndef grade(p, t): return True"
    )
    task, rollouts = task_of(tmp_path / "four.py", text), {"problems_per_step": 4, **settings.get("rollouts", {})}
    config = validate({"stages": [], "task": {"name": "custom", "file": "four.py"}, **settings, "rollouts": rollouts})
    assert isinstance(config, TrainConfig)
    assert len(evaluated_problems(config, task)) == evaluated
    assert shortages(config, task, evaluated) == told
