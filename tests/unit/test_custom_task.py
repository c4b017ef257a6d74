"""A user's own task: the example as it is, and what is said of mistakes in the user's file."""

import contextlib
import io
import json
import os
import queue
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from rich.console import Console

import selfcorrect
from selfcorrect.config import CustomConfig
from selfcorrect.errors import DataError, GraderFailed
from selfcorrect.evaluation.evaluate import evaluated_problems
from selfcorrect.evaluation.flat import rollout_row
from selfcorrect.runs.checks import shortages
from selfcorrect.runs.folder import _lines
from selfcorrect.runs.recipes import train_config
from selfcorrect.tasks import background, custom, own
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
        ("from . import other\n", r"mine.py:1: ImportError: a relative import reaches beyond"),
        ("x = 1\ny = 1 / 0\n", r"mine.py:2: ZeroDivisionError: division by zero"),
        ("def grade(p, t): return True\n", r"mine.py: defines no function problems; docs/tasks.md"),
        ("problems = 3\n", r"mine.py: defines no function problems"),
        ("def problems(s, o): return []\n", r"mine.py: defines no function grade"),
        (GOOD.replace("range(", "range(None and "), r"mine.py:3: TypeError: 'NoneType' object cannot be interpreted"),
        (GOOD.replace('options.get("count", 3)', 'options["count"]'), r"mine.py:3: KeyError: 'count'"),
        (GOOD.replace('f"{split}{n}"', "n / 2"), r"mine.py: problems\('train'\) row 1: field 'id' must be text or a whole number, got 0.0"),
        (GOOD.replace('"id": f"{split}{n}", ', ""), r"problems\('train'\) row 1: field 'id' is missing; the row has n, prompt"),
        (GOOD.replace('f"{split}{n}"', "n"), r"mine.py: problem '0' is both in train and in test"),
        (GOOD.replace('f"{split}{n}"', '"x"'), r"problems\('train'\) row 2: field 'id' = 'x' stands at"),
        (GOOD.replace('f"{split}{n}"', 'f"{n}"'), r"mine.py: problem '0' is both in train and in test"),
        (GOOD.replace('"prompt"', '"question"'), r"row 1: field 'prompt' is missing; the row has id, n, question"),
        (GOOD.replace("return [{", "return [3] or [{"), r"row 1: must be a dict, got int"),
        (GOOD.replace("range(options", "range(0 * options"), r"mine.py: problems\('train'\) gives no rows, and there must be some to train on; it was called with options = {}"),
        (GOOD.replace("def problems(split, options):", "def problems(split, options):\n    if split == 'test': return []"), r"problems\('test'\) gives no rows, .* to evaluate on"),
        (f"import random\n{GOOD}".replace("{n}?", "{random.random()}?"), r"problems\('train'\) gives other rows when it is called again: field 'prompt' of row 1 is \"0.*, then \"0.*random.Random\(0\)"),
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
    task = task_of(tmp_path / "mine.py", GOOD.replace("int(text) ==", "4 or"))
    with pytest.raises(
        DataError, match=r"grade\(problem, text\) at problem 'test0' must return True, False, .*; got 4"
    ):
        task.grade([(task.test[0], "1")])
    task = task_of(tmp_path / "mine.py", "import sys\n" + GOOD.replace("int(text) ==", "sys.exit(3) or"))
    with pytest.raises(DataError, match=r"mine.py:8: SystemExit: 3"):
        task.grade([(task.test[0], "1")])


@pytest.mark.parametrize(
    ("verdict", "grade"),
    [
        ('Grade("correct", 1)', ("correct", 1.0)),
        ("True", ("correct", 1.0)),
        ("1", ("correct", 1.0)),
        ("0.25", ("wrong", 0.25)),
        ("numpy.bool_(True)", ("correct", 1.0)),
        ("numpy.float32(0.5)", ("wrong", 0.5)),
        ("numpy.array([1])", ("correct", 1.0)),
        ("numpy.array([1, 0])", r"got array\(\[1, 0\]\)"),
        ("1.5", r"at problem 'test0' must return True, False, a number from 0 \(wrong\) to 1 .* or a Grade, .*; got 1.5"),
        ("float('nan')", "got nan"),
        ("'yes'", "got 'yes'"),
        ("None", r"got None; does each of its branches return\?"),
        ('Grade("right", 1.0)', r"problem 'test0': Grade: outcome must be one of correct, wrong, .*'right'"),
        ('Grade("correct", float("nan"))', r"reward = nan is no number from 0 to 1"),
        ('Grade("wrong", -1)', r"reward = -1 is no number from 0 to 1; give 1 where the outcome is correct, and less else"),
        ('Grade("correct", 0)', r"reward = 0 contradicts outcome = correct"),
        ('Grade("timeout", 1)', r"reward = 1 contradicts outcome = timeout"),
        ('Grade("wrong", None)', r"reward a number"),
    ],
)  # fmt: skip
def test_a_verdict_is_a_truth_value_a_number_or_a_grade(
    verdict: str, grade: tuple[str, float] | str, tmp_path: Path
) -> None:
    text = f"import numpy\nfrom selfcorrect.types import Grade\n{GOOD}".replace('int(text) == problem["n"]', verdict)
    task = task_of(tmp_path / "mine.py", text)
    if isinstance(grade, tuple):
        (found,) = task.grade([(task.test[0], "1")])
        assert (found.outcome, found.reward) == grade
    else:
        for answers in ([], [(task.test[0], "1")]):  # told before a run has begun as well
            fresh = task_of(tmp_path / "mine.py")
            fresh.test  # noqa: B018 - loads it
            with pytest.raises(DataError, match=grade):
                fresh.grade(answers)


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
    begins += "for _ in range(100_000): DEEP = [DEEP]\n" if value == "DEEP" else ""
    with pytest.raises(DataError, match=r"mine.py: problems\('train'\) row 1: field 'n' cannot be kept") as caught:
        task_of(tmp_path / "mine.py", begins + GOOD.replace('"n": n', f'"n": {value}')).draw(1, 1, 0)
    assert f"JSON: {why}" in str(caught.value)
    assert str(caught.value).endswith("; give text, numbers, lists or dicts")


def test_a_number_that_is_not_finite_is_kept_as_null(tmp_path: Path) -> None:
    problem = task_of(tmp_path / "mine.py", GOOD.replace('"n": n', '"n": float("nan")')).test[0]
    attempt = Attempt((), Completion((), (), "1", "stop"), Grade(Outcome.WRONG, 0.0))
    assert json.loads(_lines([rollout_row(Rollout(problem, (attempt,)))]))["reference"] == {"n": None}


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
    config = train_config(
        {"stages": [], "task": {"name": "custom", "file": "four.py"}, **settings, "rollouts": rollouts}
    )
    assert len(evaluated_problems(config, task)) == evaluated
    assert shortages(config, task, evaluated) == told


SLOW = """
import threading
free = threading.Event()


def problems(split, options):
    return [{"id": n, "prompt": f"{n}?", "split": split} for n in (range(4) if split == "test" else range(4, 8))]


def grade(problem, text):
    if text == "never":
        free.wait(60)
    if text == "SystemExit":
        raise SystemExit
    return text == str(problem["id"] + 0)
"""


@pytest.mark.parametrize("workers", [1, 3])
def test_a_call_that_never_returns_is_a_timeout(workers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The others are graded, in order; ids that are numbers are numbers to the file's functions."""
    monkeypatch.setattr(background, "PATIENCE", 0.05)
    monkeypatch.setattr(custom, "_MOST_RUNNING", 3)
    (tmp_path / "slow.py").write_text(SLOW)
    told: list[str] = []
    settings = CustomConfig(name="custom", file=str(tmp_path / "slow.py"), seconds=0.2, workers=workers)
    task = CustomTask(settings, told.append)
    try:
        texts = ("never", "1", "SystemExit", "4", "2", "never")
        grades = task.grade([(task.test[n % 4], text) for n, text in enumerate(texts)])
        outcomes = ["timeout", "correct", "grader_failed", "wrong", "wrong", "timeout"]
        assert [(grade.outcome, grade.reward) for grade in grades] == [(o, float(o == "correct")) for o in outcomes]
        assert grades[0].detail == "took more than task.seconds = 0.2"
        assert told[0].startswith("waiting 0 s for the grader at problem '0' (slow.py; it may take task.seconds = 0.2)")
        assert any("slow.py: grade(problem, text) at problem '0': took more than" in line for line in told)
        many = 3 if workers == 1 else 10
        with pytest.raises(GraderFailed, match=rf"slow.py: .* {max(3, 4 * workers)} such calls still run, so no more"):
            task.grade([(task.test[0], "never")] * many)
    finally:
        task._code._module.free.set()


def test_an_observer_hears_of_a_slow_grader(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And standard error does not."""
    monkeypatch.setattr(background, "PATIENCE", 0.01)
    (tmp_path / "slow.py").write_text(SLOW.replace("wait(60)", "wait(0.1)"))
    rows = write(tmp_path / "rows.jsonl", [{"task_id": "1", "attempts": ["never"]}])
    console = Console(record=True, width=200, file=io.StringIO())
    selfcorrect.grade(rows, "custom", f"task.file={tmp_path}/slow.py", observer=selfcorrect.PlainObserver(console))
    assert "waiting 0 s for the grader at problem '1'" in console.export_text()
    assert capsys.readouterr().err == ""


def test_a_grader_is_tried_before_a_run(tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text(SLOW.replace('"never"', '""'))
    task = CustomTask(CustomConfig(name="custom", file=str(tmp_path / "slow.py"), seconds=0.1), print)
    assert task.grade([]) == []  # no problem is loaded to try it at
    assert task.test
    with pytest.raises(DataError, match=r"tried at problem '0' with an empty text: took more than task.seconds = 0.1"):
        task.grade([])
    task._code._module.free.set()
    task = task_of(tmp_path / "mine.py", GOOD)
    assert task.test
    assert task.grade([]) == []
    assert "grade(problem, text) raises at an empty text" in task.notes[0]
    assert "mine.py:7: ValueError" in task.notes[0]


def many(body: str) -> str:
    """GOOD with a grader that takes many."""
    return f"import numpy\nsizes = []\n{GOOD.partition('def grade')[0]}def grade_many(problems, texts):\n    {body}\n"


@pytest.mark.parametrize(("workers", "sizes"), [(1, [5]), (2, [2, 3]), (4, [1, 2, 2])])
def test_many_in_a_call(workers: int, sizes: list[int], tmp_path: Path) -> None:
    """All that are at hand, divided among the workers; what one of them gets wrong is its own answer's alone."""
    body = "[int(t) == p['n'] if t.isdigit() else None if t else 0.5 for p, t in zip(problems, texts)]"
    (tmp_path / "mine.py").write_text(many(f"sizes.append(len(texts))\n    return {body}"))
    task = CustomTask(CustomConfig(name="custom", file=str(tmp_path / "mine.py"), workers=workers))
    grades = task.grade([(task.test[n % 3], text) for n, text in enumerate(("0", "2", "x", "0", ""))])
    outcomes = [("correct", 1.0), ("wrong", 0.0), ("grader_failed", 0.0), ("correct", 1.0), ("wrong", 0.5)]
    assert [(grade.outcome, grade.reward) for grade in grades] == outcomes
    assert "grade_many(problems, texts) at problem 'test2' must return True, False" in grades[2].detail
    assert sorted(task._code._module.sizes) == sizes


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ("return numpy.array([0.5, 1])", ""),
        ("return True", r"at 2 answers must return a list with one verdict for each text, in their order, so 2; got True"),
        ("return [True]", r"mine.py: grade_many\(problems, texts\) at 2 answers must return a list .*; got 1 verdicts"),
        ("return numpy.ones(3)", r"so 2; got 3 verdicts"),
        ("return (True for text in texts)", r"so 2; got <generator"),
        ("return numpy.ones((2, 2))", r"at problem 'test0' must return True, .*; got \[1.0, 1.0\]"),
        ("pass", r"so 2; got None"),
        ("return texts\ngrade = min", r"mine.py: defines both grade and grade_many; rename the one that is not to grade"),
    ],
)  # fmt: skip
def test_what_many_in_a_call_may_give(body: str, told: str, tmp_path: Path) -> None:
    """Told before a run has begun."""
    with pytest.raises(DataError, match=told) if told else contextlib.nullcontext():
        task = task_of(tmp_path / "mine.py", many(body))
        assert task.test
        task.grade([])
        assert [grade.reward for grade in task.grade([(task.test[0], ""), (task.test[1], "")])] == [0.5, 1]


def test_a_call_for_many_that_fails_costs_all_of_its_answers(tmp_path: Path) -> None:
    """Nobody knows which of them did it; those of the other call have theirs."""
    file, told = tmp_path / "slow.py", list[str]()
    text = SLOW.replace("def grade(", "def one(")
    file.write_text(f"{text}\ndef grade_many(problems, texts):\n    return [*map(one, problems, texts)]\n")
    settings = CustomConfig(name="custom", file=str(file), seconds=0.1, workers=2)
    task, fresh = CustomTask(settings, told.append), CustomTask(settings, told.append)
    try:
        with pytest.raises(DataError, match=r"at problem '0': took more than task.seconds = 0.1; raise that, or mend"):
            fresh.grade([(fresh.test[0], "never")])
        for does in ("SystemExit", "never"):
            grades = task.grade([(task.test[n], text) for n, text in enumerate((does, "1", "2", "4"))])
            assert [grade.outcome for grade in grades] == ["grader_failed", "grader_failed", "correct", "wrong"]
            assert ("slow.py:14: SystemExit" if does == "SystemExit" else "at 2 answers: took more") in grades[1].detail
        assert told[-1].endswith("grader_failed, left out; the call goes on by itself (1 so far, 1 still run)")
    finally:
        for each in (task, fresh):
            each._code._module.free.set()


def test_a_reward_function_of_trl_s_goes_on_as_docs_say(tmp_path: Path) -> None:
    page = (EXAMPLE.parents[1] / "docs" / "from-trl.md").read_text(encoding="utf-8")
    code = page.partition("```python\n")[2].partition("```")[0]
    rows = "[{'id': f'{split}{n}', 'prompt': f'{n}?', 'answer': str(n)} for n in range(2)]"
    (tmp_path / "rewards.py").write_text(
        "def exact(prompts, completions, answer, **kwargs):\n"
        "    asked = [prompt[-1]['content'] for prompt in prompts]\n"
        "    said = [completion[0]['content'] for completion in completions]\n"
        "    return [1.0 if s == a and q == a + '?' else 0.0 for q, s, a in zip(asked, said, answer)]\n"
    )
    task = task_of(tmp_path / "mine.py", f"{code}\ndef problems(split, options): return {rows}\n")
    grades = task.grade([(task.test[n], text) for n, text in ((0, "0"), (1, "0"), (1, "1"))])
    assert [grade.outcome for grade in grades] == ["correct", "wrong", "correct"]


def test_what_lies_beside_the_file_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a script finds it, and anew each time; what has the name of a library or of the program is not."""
    for name, text in {
        "pkg/__init__.py": "",
        "pkg/deep.py": "from .value import VALUE",
        "pkg/value.py": "VALUE = 1",
        "random.py": "",
        "numpy.py": "",
        "none.py": "",
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    file, helper = tmp_path / "mine.py", tmp_path / "helper_of_mine.py"
    text = f"import random, numpy\nfrom helper_of_mine import right\n{GOOD}"
    text = text.replace('int(text) == problem["n"]', "right(text)")
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    for word in ("yes", "not"):
        helper.write_text(f"def right(text):\n    from pkg import deep\n    return text == {word!r} and deep.VALUE\n")
        os.utime(helper, (1e9, 1e9))
        task = task_of(file, text)
        assert [grade.correct for grade in task.grade([(task.test[0], "yes"), (task.test[0], "not")])] == [
            word == "yes", word == "not",
        ]  # fmt: skip
    assert list(own.files_of(file)) == [
        "mine.py",
        "helper_of_mine.py",
        "pkg/value.py",
        "pkg/deep.py",
        "pkg/__init__.py",
    ]
    before = own.digest_of(file)
    own.keep(file, tmp_path / "kept")
    assert own.digest_of(tmp_path / "kept/mine.py") == before
    (tmp_path / "pkg/deep.py").write_text("VALUE = 1 / 0")
    with pytest.raises(DataError, match=r"/pkg/deep.py:1: ZeroDivisionError"):
        task_of(file, text).grade([(task.test[0], "not")])
    (tmp_path / "pkg/deep.py").write_text("VALUE = 2")
    assert own.digest_of(file) != before
    kept = task_of(tmp_path / "kept/mine.py")
    assert kept.grade([(kept.test[0], "not")])[0].correct
    late = GOOD.replace("return int", "from helper_of_mine import right\n    return right(text) or int")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "helper_of_mine.py").write_text("def right(text): return text == 'b'")
    with pytest.MonkeyPatch.context() as patch:  # two at once, each with its own helper; the session's stays
        patch.setitem(sys.modules, "helper_of_mine", json)
        both = [task_of(tmp_path / "late.py", late), task_of(tmp_path / "b" / "late.py", late)]
        found = [[grade.outcome for grade in each.grade([(each.test[0], t) for t in ("0", "b")])] for each in both]
        assert found == [["correct", "grader_failed"], ["correct", "correct"]]
        assert sys.modules["helper_of_mine"] is json


def test_what_the_file_s_code_does_is_its_own(tmp_path: Path) -> None:
    """Errors of a text's syntax have the file's line, numbers beyond all bounds are no crash, and rows are copies."""
    text = GOOD.replace('"n": n', '"n": [n, 0]')
    text = text.replace('int(text) == problem["n"]', "problem['n'].sort() or ast.literal_eval(text) == problem['n']")
    task = task_of(tmp_path / "mine.py", f"import ast\n{text}")
    grades = task.grade([(task.test[2], each) for each in ("[0, 2]", "2 apples", "[0, 2]")])
    assert [grade.outcome for grade in grades] == ["correct", "grader_failed", "correct"]
    assert grades[1].detail.startswith(f"{tmp_path}/mine.py:8: SyntaxError: invalid syntax")
    assert task.test[2].reference == {"n": [2, 0]}
    task = task_of(tmp_path / "mine.py", GOOD.replace('int(text) == problem["n"]', "10**400"))
    with pytest.raises(DataError, match=r"mine.py: OverflowError: int too large"):
        task.grade([(task.test[0], "")])


def test_a_prompt_that_is_typed(tmp_path: Path) -> None:
    task = task_of(tmp_path / "mine.py", GOOD)
    assert task.parse("test1") is task.test[1]
    assert "train" not in task.__dict__  # nothing is read for it
    typed = task.parse(" What is 3? ")
    assert (typed.prompt, task.correction_prompt(typed)) == ("What is 3?", CORRECTION)
    assert task.parse("三加四是多少").prompt == "三加四是多少"  # no spaces, and no id
    (grade,) = task.grade([(typed, "3")])
    assert grade.outcome == "grader_failed"
    assert grade.detail.endswith(
        "KeyError: 'n'; a prompt that is typed has no fields but id and prompt, so name a problem by its id to see it judged"
    )
    with pytest.raises(DataError, match=r"no such id; problems of task custom are named by id, like test0"):
        task.parse("word")


def test_work_in_the_background_keeps_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pool of concurrent.futures would be waited for."""
    code = f"import runpy, threading; B = runpy.run_path({background.__file__!r})['Background']; B('b').submit(threading.Event().wait)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
    work = background.Background("b")
    with pytest.raises(SystemExit):
        work.submit(sys.exit).result()
    assert work.submit(divmod, 7, 4).result() == (1, 3)
    work.shutdown()

    class Emptied(queue.SimpleQueue[object]):  # by the thread, just after it was looked at
        def empty(self) -> bool:
            return False

    monkeypatch.setattr(queue, "SimpleQueue", Emptied)
    ended = threading.Thread(target=background.Background("b").shutdown, kwargs={"cancel_futures": True}, daemon=True)
    ended.start()
    ended.join(5)
    assert not ended.is_alive()
