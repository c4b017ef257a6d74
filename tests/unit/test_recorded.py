"""Recorded attempts: graded, counted, resumed, replayed; and every malformed file told with file and line."""

import fcntl
import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import selfcorrect
from selfcorrect.analysis import analyse
from selfcorrect.errors import ConfigError, DataError, NothingGraded
from selfcorrect.evaluation.recorded import grade_recorded, recorded_of
from selfcorrect.models.messages import MessageChat
from selfcorrect.samplers.recorded import RecordedSampler
from selfcorrect.tasks.files import read_rows
from selfcorrect.tasks.math import MathTask
from selfcorrect.types import Grade, Outcome, SamplingParams
from tests.run.conftest import Listener
from tests.run.test_kept import Heard
from tests.support.data import HUMANEVAL, math_folder, write
from tests.support.graders import put_in_place

STAGE = {"name": "s", "objective": "stage2", "steps": 1, "learning_rate": 1.0}


def boxed(answer: object) -> str:
    return f"Some thought.\nFinal answer: \\boxed{{{answer}}}"


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """Two attempts at five problems: kept right, fixed, broken, wrong twice, no answer then right."""
    rows = [(4, 4), (5, 6), (8, 7), (1, 2), ("", 12)]
    return write(
        tmp_path / "pairs.jsonl",
        [
            {
                "id": f"p{n}",
                "problem": f"{n} + {n}?",
                "gold": str(2 * n),
                "attempts": [boxed(a) if a else "?", boxed(b)],
            }
            for n, (a, b) in enumerate(rows, 2)
        ],
    )


def test_the_papers_metrics_of_recorded_pairs(pairs: Path) -> None:
    heard = Heard()
    summary, target = selfcorrect.grade(pairs, "math", observer=heard)
    assert [e.value for e in summary.accuracy] == [0.4, 0.6]
    assert (summary.fixed.value, summary.broken.value, summary.n) == (0.4, 0.2, 5)
    assert heard.done[-1] == (10, 10)
    lines = [json.loads(line) for line in target.read_text().splitlines()]
    assert target.name == "pairs.graded.jsonl"
    assert [[a["outcome"] for a in line["attempts"]] for line in lines] == [
        ["correct", "correct"], ["wrong", "correct"], ["correct", "wrong"], ["wrong", "wrong"], ["no_answer", "correct"],
    ]  # fmt: skip
    assert all(a["detail"] for line in lines for a in line["attempts"])


class Counting(MathTask):
    def __init__(self) -> None:
        from selfcorrect.config import MathConfig

        super().__init__(MathConfig(name="math", workers=1))
        self.graded = 0

    def grade(self, answers: Any) -> list[Grade]:
        self.graded += len(answers)
        return super().grade(answers)


def test_an_interrupted_grade_goes_on_where_it_was(pairs: Path, tmp_path: Path) -> None:
    rows, output, task = recorded_of(read_rows(pairs)), tmp_path / "out.jsonl", Counting()
    whole = grade_recorded(rows, task, output, {})
    assert task.graded == 10
    text = output.read_bytes()
    cut = text.index(b"\n", text.index(b"\n") + 1) + 20  # two lines and a piece of the third
    output.write_bytes(text[:cut])
    said: list[str] = []
    assert grade_recorded(rows, task, output, {}, say=said.append) == whole
    assert said == [f"2 of 5 rows are graded already; their verdicts are taken from {output}"]
    assert task.graded == 10 + 6
    assert output.read_bytes() == text
    task.close()


def test_a_grader_that_never_answers_leaves_no_verdicts(
    pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though one text holds no answer, which needs no grader; one that answered once is there."""
    dead, silent = Grade(Outcome.GRADER_FAILED, 0.0, "", "gone"), Grade(Outcome.NO_ANSWER, 0.0)
    output = tmp_path / "out.jsonl"
    with monkeypatch.context() as patch:
        patch.setattr(MathTask, "grade", lambda self, answers: [silent if a == "?" else dead for _, a in answers])
        with pytest.raises(NothingGraded, match=r"grader_failed \(gone\)"):
            selfcorrect.grade(pairs, "math", output=output)
        assert not output.read_text()
        second = [Grade(Outcome.WRONG, 0.0, "x"), silent]  # of attempt 1
        patch.setattr(MathTask, "grade", lambda self, answers: [*second * (len(answers) // 2 - 1), second[0], dead])
        selfcorrect.grade(pairs, "math", output=tmp_path / "other.jsonl")
        assert len((tmp_path / "other.jsonl").read_text().splitlines()) == len(read_rows(pairs))
    summary, _ = selfcorrect.grade(pairs, "math", output=output)
    assert summary.n == len(read_rows(pairs)) == len(output.read_text().splitlines())


def test_verdicts_on_something_else_are_not_taken_for_these(pairs: Path, tmp_path: Path) -> None:
    _, output = selfcorrect.grade(pairs, "math")
    pairs.write_text(pairs.read_text().replace("boxed{4}", "boxed{9}", 1))
    with pytest.raises(DataError, match=r"graded\.jsonl:1: holds verdicts on something else; remove it, or name"):
        selfcorrect.grade(pairs, "math", output=output)


CUSTOM = """
def problems(split, options):
    return [{"id": "a", "prompt": "?", "gold": "%s"}]
def grade(problem, text):
    return text == problem["gold"] and %s
"""


def test_verdicts_of_another_grader_or_gold_are_not_taken_over(tmp_path: Path) -> None:
    """The task's file, a setting, a gold answer or a hidden test of the data set has changed since."""
    rows = write(tmp_path / "out.jsonl", [{"task_id": "a", "response": "4"}])
    file = tmp_path / "mine.py"

    def grade(gold: str, verdict: str = "True", *settings: str) -> Any:
        file.write_text(CUSTOM % (gold, verdict))
        return selfcorrect.grade(rows, "custom", f"task.file={file}", *settings)[0].accuracy[0].value

    assert (grade("4"), grade("4")) == (1.0, 1.0)
    for changed in (("5",), ("4", "False"), ("4", "True", "task.options={a: 1}")):
        with pytest.raises(
            DataError, match=r"graded\.jsonl:1: holds verdicts (on something else|by other settings or)"
        ):
            grade(*changed)
    rows = write(tmp_path / "code.jsonl", [{"task_id": "HumanEval/2", "program": PROGRAM.format("x * 2")}])
    data = write(tmp_path / "HumanEval.jsonl", HUMANEVAL)
    asked = partial(selfcorrect.grade, rows, "code", "task.dataset=humaneval", f"task.data={tmp_path}")
    asked()
    data.write_text(data.read_text().replace("candidate(0) == 0", "candidate(0) == 1"))
    with pytest.raises(DataError, match=r"code\.graded\.jsonl:1: holds verdicts on something else"):
        asked()


def test_a_file_of_the_users_own_is_left_as_it_is(pairs: Path, tmp_path: Path) -> None:
    output = tmp_path / "notes.json"
    output.write_text("no line end")
    with pytest.raises(DataError, match=r"notes\.json:1: holds verdicts on something else"):
        selfcorrect.grade(pairs, "math", output=output)
    assert output.read_text() == "no line end"


PROGRAM = "def times_2(x):\n    return {}\n"


def test_verdicts_do_not_go_into_what_they_are_of(pairs: Path) -> None:
    before = pairs.read_bytes()
    with pytest.raises(ConfigError, match=r"is the file that is to be graded; name another"):
        selfcorrect.grade(pairs, "math", output=pairs)
    assert pairs.read_bytes() == before


def test_code_by_id_by_tests_and_with_fences(tmp_path: Path) -> None:
    data = write(tmp_path / "HumanEval.jsonl", HUMANEVAL)
    rows: list[dict[str, object]] = [
        {"task_id": "HumanEval/2", "program": PROGRAM.format("x * 2")},
        {"task_id": 2, "response": f"So:\n```python\n{PROGRAM.format('x * 3')}```\nDone."},
        {"task_id": "own", "completion": "def f(x):\n    return x", "tests": ["assert f(1) == 1", "assert f(2) == 2"]},
        {"task_id": "own", "program": "def f(x):\n    return 1 / 0", "tests": "assert f(1) == 1"},
        {"task_id": "HumanEval/0", "response": "I cannot."},
    ]
    file = write(tmp_path / "rows.jsonl", rows)
    summary, target = selfcorrect.grade(file, "code", "task.dataset=humaneval", f"task.data={data.parent}")
    told = [json.loads(line)["attempts"][0] for line in target.read_text().splitlines()]
    assert [a["outcome"] for a in told] == ["correct", "wrong", "correct", "wrong", "no_answer"]
    assert told[3]["detail"] == "exception: ZeroDivisionError: division by zero"
    assert summary.n == 4  # HumanEval/2 has a second sample, the others have none
    run = {
        "prompt": "",
        "reference": {"task_id": "humaneval/2", "row": "0"},
        "attempts": [{"text": rows[1]["response"]}],
    }
    write(file, [{"id": "humaneval/2", **run}])
    selfcorrect.grade(
        file, "code", "task.dataset=humaneval", f"task.data={data.parent}", output=tmp_path / "again.jsonl"
    )
    assert '"outcome": "wrong"' in (tmp_path / "again.jsonl").read_text()
    write(file, [{"id": "humaneval/77", **run}])
    with pytest.raises(DataError, match=r"rows.jsonl:1: field 'id' = 'humaneval/77' is not in the task's data"):
        selfcorrect.grade(file, "code", "task.dataset=humaneval", f"task.data={data.parent}", output=tmp_path / "none")


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("{", "bad.jsonl:2: not valid JSON"),
        ("[1]", "bad.jsonl:2: expected a JSON object"),
        ('{"gold": "1"}', "bad.jsonl:2: no attempt: expected attempts, or one of response, completion, program"),
        ('{"gold": "1", "attempts": []}', "bad.jsonl:2: field 'attempts' must be a list of one or more texts"),
        ('{"gold": "1", "attempts": [3]}', "bad.jsonl:2: field 'attempts' must be a list of one or more texts"),
        ('{"gold": "1", "response": {}}', "bad.jsonl:2: field 'response' must be text, got dict"),
        ('{"gold": "1", "attempts": ["a", "b"]}', "bad.jsonl:2: field 'attempts' has 2, where"),
        ('{"gold": 1, "response": "a"}', "bad.jsonl:2: field 'gold' must be text"),
        ('{"gold": "  ", "response": "a"}', "bad.jsonl:2: field 'gold' is empty"),
        ('{"solution": "none", "response": "a"}', "bad.jsonl:2: field 'solution' states no answer"),
        ('{"response": "a"}', "bad.jsonl:2: nothing to grade against: expected task_id, or gold, answer or solution"),
        ('{"task_id": "x/y", "response": "a"}', "bad.jsonl:2: field 'task_id' = 'x/y' is not in the task's data"),
    ],
)  # fmt: skip
def test_bad_rows_are_refused_before_anything_is_graded(tmp_path: Path, line: str, told: str) -> None:
    file = tmp_path / "bad.jsonl"
    file.write_text('{"gold": "1", "response": "\\\\boxed{1}"}\n' + line + "\n")
    with pytest.raises(DataError) as error:
        selfcorrect.grade(file, "math", f"task.data={math_folder(tmp_path / 'math')}")
    assert told in str(error.value)
    assert not (tmp_path / "bad.graded.jsonl").exists()


def test_hostile_texts_are_graded_like_any_other(tmp_path: Path) -> None:
    texts = ["\0", "\ud800 \\boxed{1}", "x" * 300_000, "\\boxed{" * 50_000, "", boxed(1)]
    file = write(tmp_path / "texts.jsonl", [{"gold": "1", "response": text} for text in texts])
    summary, _ = selfcorrect.grade(file, "math")
    assert summary.n == len(texts)
    assert summary.accuracy[0].value in (1 / 6, 2 / 6)  # the lone surrogate may hide the box behind it, or not


def test_thoughts_are_not_graded(tmp_path: Path) -> None:
    texts = [f"<think>{boxed(1)}</think> No.", f"{boxed(2)}</think>{boxed(1)}", f"[THINK]{boxed(1)}", boxed(1)]
    file = write(tmp_path / "texts.jsonl", [{"gold": "1", "response": text} for text in texts])
    _, output = selfcorrect.grade(file, "math")
    (attempts,) = zip(*(json.loads(line)["attempts"] for line in output.read_text().splitlines()), strict=True)
    assert [attempt["outcome"] for attempt in attempts] == ["no_answer", "correct", "no_answer", "correct"]
    assert [attempt["text"] for attempt in attempts] == texts


def test_a_replay_is_a_whole_evaluation_with_its_report(tmp_path: Path) -> None:
    rows = [{"task_id": f"test/algebra/{n}.json", "attempts": [boxed(2 * n + n % 2), boxed(2 * n)]} for n in (10, 11)]
    file = write(tmp_path / "two.jsonl", rows)
    recipe = {"task": {"name": "math", "data": str(math_folder(tmp_path / "math"))}, "stages": [STAGE], "sampler": "recorded", "recorded": str(file), "output": str(tmp_path)}  # fmt: skip
    evaluation = selfcorrect.evaluate("unused", recipe=recipe, output=tmp_path / "run")
    assert [e.value for e in evaluation.summary.accuracy] == [0.5, 1.0]
    assert [a.completion.text for a in evaluation.rollouts[1].attempts] == rows[1]["attempts"]
    page = (tmp_path / "run/report.html").read_text()
    assert "50.0" in page
    assert "100.0" in page
    assert "not finished" not in page
    assert selfcorrect.evaluate("unused", recipe=recipe, output=tmp_path / "run") == evaluation  # not graded again
    kept = {**recipe, "recorded": str(tmp_path / "run/evaluations/recorded.rollouts.jsonl")}
    assert selfcorrect.evaluate("unused", recipe=kept, output=tmp_path / "again").summary == evaluation.summary
    more = write(tmp_path / "three.jsonl", [*rows, {**rows[0], "task_id": "test/algebra/9.json"}])
    with pytest.raises(
        ConfigError, match=r"begun with other settings: recorded is .*evaluation.problems is 3, but was 2"
    ):
        selfcorrect.evaluate("unused", recipe={**recipe, "recorded": str(more)}, output=tmp_path / "run")
    with pytest.raises(ConfigError, match="recorded attempts cannot be trained"):
        selfcorrect.train(recipe)
    write(file, [{**row, "attempts": ["once"]} for row in rows])
    with pytest.raises(DataError, match=r"two\.jsonl:1: records 1 attempts, but rollouts\.attempts is 2"):
        selfcorrect.evaluate("unused", recipe=recipe)


def test_what_is_written_may_lie_at_the_user_s_home(
    pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for output, file in ((None, "pairs.graded.jsonl"), ("~/other.jsonl", "other.jsonl")):
        assert selfcorrect.grade("~/pairs.jsonl", "math", output=output)[1] == tmp_path / file
    assert analyse("~/pairs.graded.jsonl", "~/figures")[1] == tmp_path / "figures"
    recipe = {"task": {"name": "math"}, "stages": [], "sampler": "recorded", "recorded": "~/pairs.jsonl"}
    assert selfcorrect.evaluate("unused", recipe=recipe, output="~/run").folder == tmp_path / "run"
    assert list(Path().iterdir()) == []


def test_the_sampler_answers_each_context_with_what_followed_it() -> None:
    chat = MessageChat()
    sampler = RecordedSampler(
        chat,
        [
            (prompt, "again", list(map(chat.written, texts)))
            for prompt, *texts in (("same", "a1", "a2"), ("same", "b1", "b2"), ("é\ud800", "", "c2"))
        ],
    )
    params = SamplingParams(0.0, 1, 0)
    firsts = [chat.first_prompt(text) for text in ("same", "same", "é\ud800")]
    found = sampler.sample(firsts, params)
    assert [c.text for c in found] == ["a1", "b1", ""]
    seconds = [chat.next_prompt(context, c.token_ids, "again") for context, c in zip(firsts, found, strict=True)]
    assert [c.text for c in sampler.sample(seconds, params)] == ["a2", "b2", "c2"]
    assert chat.decode(found[0].token_ids) == "a1"
    with pytest.raises(DataError, match="no attempt is recorded for the context that begins with 'other'"):
        sampler.sample([chat.first_prompt("other")], params)


def test_rows_that_hold_their_golds_need_no_data_set(pairs: Path) -> None:
    summary, _ = selfcorrect.grade(pairs, "math", "task.data=/nowhere")
    assert summary.n == 5


def test_rows_with_the_same_prompt_keep_their_own_attempts(tmp_path: Path) -> None:
    """More rows than evaluation.problems asks for, none of them with a question: all are evaluated, each as recorded."""
    rows = [{"gold": str(n), "problem": "", "attempts": [boxed(n), boxed(n if n % 2 else -n)]} for n in range(1, 12)]
    rows.append(rows[1])
    file = write(tmp_path / "alike.jsonl", rows)
    recipe = {"task": {"name": "math"}, "stages": [STAGE], "sampler": "recorded", "recorded": str(file), "evaluation": {"problems": 5}, "output": str(tmp_path)}  # fmt: skip
    evaluation = selfcorrect.evaluate("unused", recipe=recipe)
    assert [e.value for e in evaluation.summary.accuracy] == [1.0, 0.5]
    assert evaluation.summary.n == 12
    assert evaluation.decoding == "recorded"


def test_an_id_of_another_data_set_is_refused(tmp_path: Path) -> None:
    data = write(tmp_path / "HumanEval.jsonl", HUMANEVAL)
    file = write(tmp_path / "rows.jsonl", [{"task_id": "Mbpp/2", "program": "x = 1"}])
    with pytest.raises(DataError, match=r"rows\.jsonl:1: field 'task_id' = 'Mbpp/2' is not in the task's data"):
        selfcorrect.grade(file, "code", "task.dataset=humaneval", f"task.data={data.parent}")


MATH = [{"gold": "1", "problem": "a?"}, {"gold": "1", "problem": "b?"}, {"gold": "2", "problem": "b?"}]
CODE = [{"tests": f"assert f({n}) == {n}"} for n in range(3)]


@pytest.mark.parametrize(
    ("task", "problems"),
    [
        ("math", [{"task_id": f"p{n}", "gold": "1"} for n in range(3)]),
        ("math", MATH),  # without ids
        ("math", [{"id": "same", **row} for row in MATH]),
        ("code", CODE),
        ("code", [{"task_id": "same", **row} for row in CODE]),
    ],
)
def test_rows_of_one_problem_are_its_samples(
    task: str, problems: list[dict[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever they stand in the file, whose order the verdicts keep."""
    if task == "code":
        put_in_place(monkeypatch)
    right = {"math": boxed(1), "code": "```python\ndef f(x): return x\n```"}[task]
    rows = [{**row, "attempts": [text, text]} for text in (right, "?") for row in problems]
    rows.insert(1, rows.pop())
    file = write(tmp_path / "rows.jsonl", rows)
    summary, verdicts = selfcorrect.grade(file, task)
    assert (summary.n, summary.samples, summary.passes[-1].k) == (3, 2, 2)
    assert [json.loads(line)["attempts"][0]["text"] for line in verdicts.read_text().splitlines()] == [
        row["attempts"][0] for row in rows
    ]
    heard = Listener()
    summary, _ = selfcorrect.grade(write(tmp_path / "more.jsonl", [*rows, rows[0]]), task, observer=heard)
    assert (summary.n, summary.samples) == (3, 2)
    assert "note: some problems have 2 samples only, so 1 more samples of others are left out" in heard.messages
    recipe = {"task": {"name": task}, "stages": [], "sampler": "recorded", "recorded": str(file), "output": str(tmp_path)}  # fmt: skip
    evaluated = selfcorrect.evaluate("unused", recipe=recipe).summary
    assert (evaluated.n, evaluated.samples, evaluated.outcomes) == (3, 2, selfcorrect.grade(file, task)[0].outcomes)


def test_two_processes_cannot_write_the_same_verdicts(pairs: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    with output.open("a") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(DataError, match="is being written by another process"):
            selfcorrect.grade(pairs, "math", output=output)
