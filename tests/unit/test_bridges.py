"""What the bridges share, and logs of other programs, without those programs; tests/bridges holds them to the real ones."""

import json
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

import selfcorrect
from selfcorrect.bridges.logs import read_log
from selfcorrect.bridges.protocol import Grader, Protocol, averaged, configured, verdicts_of
from selfcorrect.errors import ConfigError, DataError, UserError
from selfcorrect.evaluation.metrics import summarize
from selfcorrect.evaluation.recorded import grade_recorded, recorded_of
from selfcorrect.models.messages import plain_text
from selfcorrect.tasks import make_task
from selfcorrect.tasks.files import read_rows
from selfcorrect.types import Completion, Grade, Outcome, Problem
from tests.run.conftest import Listener
from tests.support.bridged import COUNT, KINDS, script
from tests.support.data import write

SAMPLE: dict[str, Any] = {"doc_id": 0, "doc": {}, "resps": [["\\boxed{4}"]], "filter": "none", "target": "4"}


def own(number: int, *texts: str, **more: Any) -> dict[str, Any]:
    doc = {"id": f"m/{number}", "selfcorrect": {"task_id": f"m/{number}", "problem": "2 + 2?", "gold": "4"}}
    return {**SAMPLE, "doc_id": number, "doc": doc, "resps": [list(texts)], **more}


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("humaneval", "mbpp")])
def test_verdicts_add_up_to_the_summary(kind: str, tmp_path: Path) -> None:
    told = script(kind, tmp_path)
    task = make_task(configured(kind, None, told.settings).task)
    rollouts = grade_recorded(recorded_of(read_rows(told.recorded)), task, tmp_path / "out.jsonl", {})
    task.close()
    found, summary = averaged([verdicts for r in rollouts if (verdicts := verdicts_of(r))]), summarize(rollouts)
    assert found == pytest.approx(
        {
            "accuracy@t1": summary.accuracy[0].value, "accuracy@t2": summary.accuracy[1].value, "delta": summary.delta.value,
            "i->c": summary.fixed.value, "c->i": summary.broken.value, "unchanged": summary.unchanged.value,
        }
    )  # fmt: skip
    assert min(found["i->c"], found["c->i"], found["unchanged"]) > 0
    assert [count.get("truncated") for count in summary.outcomes] == [COUNT // 10] * 2  # told by finish_reasons
    assert averaged([]) == {}


def test_what_could_not_be_graded_counts_nowhere(tmp_path: Path) -> None:
    protocol = Protocol(configured("countdown", None, script("countdown", tmp_path).settings))
    name = next(iter(protocol.problems))
    failed = Grade(Outcome.GRADER_FAILED, 0.0, "", "gone")
    assert protocol.verdicts(name, [failed, Grade(Outcome.CORRECT, 1.0)], ["a", "b"]) is None


@pytest.mark.parametrize(
    ("task", "settings", "told"),
    [
        ("chess", {}, "task = 'chess': must be one of math, gsm8k"),
        (None, {}, "task = None: must be one of"),
        ("math", {"pretrained": "x"}, "pretrained is no setting of the two attempts"),
        ("math", {"model.path": "x"}, "model.path is no setting of the two attempts"),
        ("math", {"rollouts.attempts": 1}, "rollouts.attempts"),
        ("math", {"task.nonsense": 1}, "task.nonsense"),
        ("math", {"evaluation.controls": True}, "evaluation.controls is played by `selfcorrect evaluate` only"),
        ("math", {"task.correction_prompt": {"Be brief": True}}, "task.correction_prompt = {'Be brief': True}: is text"),
        ("math", {"data": True}, "task.data = True: is text, but was read as bool"),
        ("gsm8k", {"rollouts.self_refine": {"feedback_prompt": "a", "refine_prompt": "b"}}, "rollouts.self_refine is"),
    ],
)  # fmt: skip
def test_settings_that_cannot_be_played_are_told(task: str | None, settings: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError) as error:
        configured(task, None, settings)
    assert told in str(error.value)


def test_text_with_commas_is_put_together_again() -> None:
    """As inspect hands it over."""
    config = configured("math", None, {"task.correction_prompt": ["Look again", " please"], "data": ["a", "b"]}).task
    assert (config.correction_prompt, config.data) == ("Look again, please", "a,b")  # type: ignore[union-attr]
    packages = configured("mbpp", None, {"task.packages": ["numpy", "scipy"], "task.hub": None}).task.packages  # type: ignore[union-attr]
    assert packages == ("numpy", "scipy")


def test_a_recipe_gives_prompts_and_attempts() -> None:
    config = configured(None, "math_qwen3-1.7b-base", {"data": "x", "rollouts.attempts": 3})
    assert (config.rollouts.attempts, config.task.data) == (3, "x")  # type: ignore[union-attr]


class Slow:
    """A grader that minds two calls at a time, and counts them."""

    def __init__(self) -> None:
        self.calls: list[int] = []
        self.busy = threading.Lock()

    def grade(self, answers: Sequence[tuple[Problem, str]]) -> list[Grade]:
        assert self.busy.acquire(blocking=False)
        threading.Event().wait(0.02)
        self.busy.release()
        self.calls.append(len(answers))
        if any(text == "crash" for _, text in answers):
            raise ValueError("the grader is broken")
        return [Grade(Outcome.CORRECT, 1.0, text) for _, text in answers]

    def close(self) -> None: ...


def test_many_threads_share_a_grader_and_get_their_own_grades() -> None:
    task = Slow()
    grader, problem, found = Grader(task), Problem("p", "t", "?", {}), dict[int, list[str]]()  # type: ignore[arg-type]

    def ask(number: int) -> None:
        texts = [Completion((), (), f"{number}.{a}", "stop") for a in (1, 2)]
        found[number] = [grade.answer for grade in grader.grade(problem, texts)]

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(30)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {number: [f"{number}.1", f"{number}.2"] for number in range(30)}
    assert sum(task.calls) == 60
    assert len(task.calls) < 30
    with pytest.raises(ValueError, match="the grader is broken"):
        grader.grade(problem, [Completion((), (), "crash", "stop")])
    ask(31)
    assert found[31] == ["31.1", "31.2"]


def test_halves_of_surrogate_pairs_are_replaced() -> None:
    assert [plain_text(text) for text in ("", "é🤖", "\ud83e\udd16", "a\ud800b\udc00")] == [
        "",
        "é🤖",
        "🤖",
        "a\ufffdb\ufffd",
    ]


def test_samples_of_lm_eval_are_recorded_attempts(tmp_path: Path) -> None:
    rows = [own(3, "\\boxed{4}", "\\boxed{5}"), own(1, "", "\\boxed{4} é\u2028\x00")]
    summary, output = selfcorrect.grade(write(tmp_path / "samples_x.jsonl", rows), "math")
    assert ([e.value for e in summary.accuracy], summary.broken.value) == ([0.5, 0.5], 0.5)
    assert [json.loads(line)["task_id"] for line in output.read_text().splitlines()] == ["m/3", "m/1"]


def test_samples_of_other_tasks_are_single_attempts(tmp_path: Path) -> None:
    """GSM8K as the harness has it, twice through its filters; a target where the row holds no answer; repeats."""
    doc = {"question": "2 + 2?", "answer": "So.\n#### 4", "finish_reasons": "whatever"}
    rows = [{**SAMPLE, "doc_id": n, "doc": doc, "filter": f} for n in (0, 1) for f in ("strict", "flexible")]
    log = read_log(write(tmp_path / "a.jsonl", rows))
    assert ([row.texts for row in log.rows], [row.name for row in log.rows]) == ([("\\boxed{4}",)] * 2, ["0", "1"])
    assert "2 lines that repeat a sample for another filter are left out" in log.notes[0]
    assert selfcorrect.grade(tmp_path / "a.jsonl", "math")[0].accuracy[0].value == 1.0
    repeats = [{**SAMPLE, "doc_id": n, "resps": [["\\boxed{4}", "\\boxed{5}"]]} for n in (0, 1)]
    summary, _ = selfcorrect.grade(write(tmp_path / "b.jsonl", repeats), "math")
    assert (summary.samples, summary.n, summary.accuracy[0].value) == (2, 2, 0.5)


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"gold": "4", "attempts": ["a", "b"]}, "log.jsonl:2: field 'doc' is missing, which"),
        (own(0, "a", "b"), "log.jsonl:2: field 'doc_id' = 0 stands at"),
        (own(0, "a", "c", filter="other"), "log.jsonl:2: field 'resps' differs from that of"),
        (own(1, "a"), "log.jsonl:2: field 'attempts' has 1, where"),
        ({**own(1), "resps": [[[-1.5, False]]]}, "log.jsonl:2: field 'resps' holds no texts of one answer"),
        ({**own(1), "resps": [["a"], ["b"]]}, "log.jsonl:2: field 'resps' holds no texts of one answer"),
        ({**own(1), "resps": None}, "log.jsonl:2: field 'resps' holds no texts of one answer"),
        ({**own(1, "a", "b"), "doc": [1]}, "log.jsonl:2: field 'doc' must be an object"),
        ({**own(1, "a", "b"), "doc_id": None}, "log.jsonl:2: field 'doc_id' must be a whole number"),
        ('{"doc_id": 1, "doc": {"id', "log.jsonl:2: not valid JSON"),
    ],
)  # fmt: skip
def test_mixed_and_damaged_samples_are_refused(row: Any, told: str, tmp_path: Path) -> None:
    file = write(tmp_path / "log.jsonl", [own(0, "a", "b")])
    file.write_text(file.read_text() + (row if isinstance(row, str) else json.dumps(row)) + "\n")
    with pytest.raises(DataError) as error:
        read_log(file)
    assert told in str(error.value)
    assert "\n" not in str(error.value)


def test_finish_reasons_are_checked(tmp_path: Path) -> None:
    row = {"gold": "4", "attempts": ["\\boxed{4}", "\\boxed{4}"]}
    file = write(tmp_path / "a.jsonl", [{**row, "finish_reasons": ["max_tokens", "eos"]}])
    summary, _ = selfcorrect.grade(file, "math")
    assert summary.outcomes == ({"truncated": 1}, {"correct": 1})
    for wrong, told in (
        (["stop"], "has 1, for 2 attempts"),
        ("stop", "must be a list of texts"),
        ([1, 2], "must be a list"),
    ):
        with pytest.raises(DataError, match=told):
            recorded_of(read_rows(write(tmp_path / "b.jsonl", [{**row, "finish_reasons": wrong}])))


def message(role: str, text: str) -> SimpleNamespace:
    return SimpleNamespace(role=role, text=text)


def sample(name: object, *texts: str, epoch: int = 1, planned: int = 2, **more: Any) -> SimpleNamespace:
    told = {"task_id": str(name), "problem": "2 + 2?", "gold": "4", "planned": planned}
    told |= {"attempts": list(texts), "finish_reasons": ["stop"] * len(texts)} if texts else {}
    return SimpleNamespace(**{"id": name, "epoch": epoch, "error": None, "metadata": {"selfcorrect": told}} | more)


@pytest.fixture
def inspect_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """A log of inspect's of these samples, by a reader in the package's place."""

    def write_log(*samples: Any, status: str = "success", epochs: int = 1) -> Path:
        config = SimpleNamespace(dataset=SimpleNamespace(samples=4), config=SimpleNamespace(epochs=epochs))
        log = SimpleNamespace(samples=list(samples), status=status, eval=config)
        monkeypatch.setattr(reader, "read_eval_log", lambda file, **options: log, raising=False)
        (tmp_path / "log.eval").write_bytes(b"PK")
        return tmp_path / "log.eval"

    reader = ModuleType("inspect_ai.log")
    monkeypatch.setitem(sys.modules, "inspect_ai", ModuleType("inspect_ai"))
    monkeypatch.setitem(sys.modules, "inspect_ai.log", reader)
    return write_log


def test_half_finished_logs_are_read_as_far_as_they_go(inspect_log: Callable[..., Path]) -> None:
    log = read_log(
        inspect_log(
            sample("a", "x", "y"), sample("b", "x"), sample("c"), sample("d", "x", "y", error="gone"), status="cancelled"
        )
    )  # fmt: skip
    assert [(row.name, row.texts) for row in log.rows] == [("a", ("x", "y"))]
    told = " ".join(log.notes)
    for part in ("ended as 'cancelled'; it holds 4 of 4 samples", "1 samples stopped after 1 of 2 attempts are left out (b)", "1 samples stopped before an attempt are left out (c)", "1 samples stopped by an error are left out (d)"):  # fmt: skip
        assert part in told
    with pytest.raises(DataError, match=r"holds no attempt that can be graded; .* ended as 'error'; it holds 0 of 4"):
        read_log(inspect_log(status="error"))


def test_epochs_are_samples_of_a_problem(inspect_log: Callable[..., Path], tmp_path: Path) -> None:
    right, wrong = "\\boxed{4}", "\\boxed{5}"
    rows = [sample(name, wrong, right, epoch=epoch) for name in ("a", "b") for epoch in (1, 2)]
    rows[3] = sample("b", right, wrong, epoch=2)
    file = inspect_log(*rows, sample("a", right, right, epoch=3), epochs=3)
    recipe = {
        "task": {"name": "math"},
        "stages": [],
        "sampler": "recorded",
        "recorded": str(file),
        "output": str(tmp_path),
    }
    heard = Listener()
    evaluation = selfcorrect.evaluate("unused", recipe=recipe, output=tmp_path / "run", observer=heard)
    assert [(r.problem.id, r.attempts[0].completion.text) for r in evaluation.rollouts] == [
        ("a", wrong), ("b", wrong), ("a", wrong), ("b", right),
    ]  # fmt: skip
    summary = evaluation.summary
    assert (summary.n, summary.samples, summary.fixed.value, summary.broken.value) == (2, 2, 0.75, 0.25)
    assert "note: some problems have 2 samples only, so 1 more samples of others are left out" in heard.messages


@pytest.mark.parametrize("reason", ["max_tokens", "model_length"])
def test_logs_of_other_tasks_of_inspect(reason: str, inspect_log: Callable[..., Path]) -> None:
    output = SimpleNamespace(choices=[SimpleNamespace(stop_reason=reason)])
    turns = [message("user", "2 + 2?"), message("assistant", "3"), message("user", "Sure?"), message("assistant", "4")]
    other = sample(7, metadata={}, messages=turns, output=output, input="2 + 2?", target=["4", "four"])
    (row,) = read_log(inspect_log(other)).rows
    assert (row.name, row.texts) == ("7", ("3", "4"))
    assert [attempt.finish_reason for attempt in row.completions] == ["stop", "length"]
    assert row.row.fields["gold"] == "4"


@pytest.mark.parametrize("name", ["log.eval", "log.json"])
def test_without_inspect_one_line_names_the_extra(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "inspect_ai", None)
    monkeypatch.setitem(sys.modules, "inspect_ai.log", None)
    (tmp_path / name).write_text('{"version": 2, "status": "success", "eval": {')
    with pytest.raises(
        UserError, match=r"inspect_ai is not installed, which this needs; pip install 'selfcorrect\[inspect\]'$"
    ):
        read_log(tmp_path / name)
    monkeypatch.delitem(sys.modules, "selfcorrect.bridges.inspect_tasks", raising=False)
    with pytest.raises(UserError, match=r"selfcorrect\[inspect\]"):
        __import__("selfcorrect.bridges.inspect_tasks")
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.delitem(sys.modules, "selfcorrect.bridges.lm_eval_tasks", raising=False)
    with pytest.raises(UserError, match=r"lm_eval is not installed, .*selfcorrect\[lm-eval\]"):
        __import__("selfcorrect.bridges.lm_eval_tasks")
