"""Trackers are tried before anything is written, and one that fails later does not take the run with it."""

import html
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from selfcorrect.errors import ConfigError
from selfcorrect.evaluation.flat import flat_rollout
from selfcorrect.learning.training import Trainer
from selfcorrect.runs import loop
from selfcorrect.runs.between import Between
from selfcorrect.runs.trackers import Tracker, Trackers, markdown, tabled
from selfcorrect.types import Outcome, Problem
from tests.run.conftest import Listener, Whole
from tests.support.rollouts import graded
from tests.support.runs import brief, check_same, go, read_rows

pytestmark = pytest.mark.usefixtures("lucky")


class Library(types.ModuleType):
    """Stands in for wandb: fails where it is told to, and notes what it is given."""

    def __init__(self, fail_at: str, after: int = 0) -> None:
        super().__init__("wandb")
        self._fail_at, self._left, self.calls = fail_at, after, list[Any]()

    def _call(self, call: str, /, **what: Any) -> None:
        self.calls.append((call, what))
        if call == self._fail_at:
            self._left -= 1
            if self._left < 0:
                raise OSError(f"{call}: api_key not configured\n(no-tty)")

    def init(self, **what: Any) -> None:
        (Path(what["dir"]) / "wandb").mkdir(exist_ok=True)
        self._call("init", **what)

    def log(self, values: dict[str, float], step: int) -> None:
        self._call("log", values=values, step=step)

    def finish(self) -> None:
        self._call("finish")

    @staticmethod
    def Table(columns: list[str], data: list[list[Any]]) -> list[dict[str, Any]]:
        return [dict(zip(columns, row, strict=True)) for row in data]


def use(library: Library, monkeypatch: pytest.MonkeyPatch) -> Library:
    monkeypatch.setitem(__import__("sys").modules, "wandb", library)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    return library


def test_one_that_cannot_start_writes_nothing(
    model: Path, whole_brief: Whole, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line, and the name can be used again."""
    log = {"trackers": ["wandb"], "project": "mine", "rollouts_every": 2, "rollouts_kept": 2}
    with monkeypatch.context() as patch:
        use(Library("init"), patch)
        with pytest.raises(ConfigError) as refused:
            go(brief(tmp_path / "runs", model, log=log))
    assert str(refused.value) == (
        "log.trackers: wandb cannot be started: init: api_key not configured (no-tty); log in to it, or leave it out "
        "with log.trackers=[]"
    )
    assert list(tmp_path.iterdir()) == []
    library = use(Library("log", after=3), monkeypatch)
    listener = Listener()
    run = go(brief(tmp_path / "runs", model, log=log), listener)
    name, given = library.calls[0]
    assert (name, given["project"], given["name"]) == ("init", "mine", "run")
    assert [message for message in listener.messages if "wandb" in message] == [
        "warning: wandb failed (log: api_key not configured (no-tty)); the run goes on without it, and metrics.jsonl holds "
        "the numbers"
    ]
    assert [name for name, _ in library.calls] == ["init", "log", "log", "log", "log"]  # then it is left alone
    check_same(run, whole_brief.state)


def test_smaller_evaluations_and_tables_take_a_spread_and_are_told(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A data set sorted by difficulty is not cut at its front. Tables are of what the run's folder keeps."""
    taken: list[list[str]] = []

    class Noted(Between):
        def __init__(self, trainer: Trainer, problems: Sequence[Problem]) -> None:
            super().__init__(trainer, problems)
            taken.append([problem.id for problem in problems])

    monkeypatch.setattr(loop, "Between", Noted)
    library = use(Library(""), monkeypatch)
    few = {"problems": 8, "controls": False, "every": 1, "problems_between": 3}
    run = go(brief(tmp_path, model, evaluation=few, log={"trackers": ["wandb"], "rollouts_tracked": 2}))
    listed = [row["id"] for row in read_rows(run / "evaluations/base.rollouts.jsonl")]
    assert [len(ids) for ids in taken] == [3]
    assert set(taken[0]) < set(listed)
    assert taken[0] != listed[:3]
    told = [what for name, what in library.calls if name == "log" and "between/own/delta/value" in what["values"]]
    rows = read_rows(run / "between.jsonl")
    assert [what["step"] for what in told] == [row["step"] for row in rows] == [0, 1, 2]
    for what, row in zip(told, rows, strict=True):
        assert what["values"]["between/fixed/accuracy/t2/value"] == row["fixed"]["accuracy"][1]["value"]
    logged = [(what["step"], *item) for call, what in library.calls if call == "log" for item in what["values"].items()]
    assert [each for each in logged if isinstance(each[2], list)] == [
        (0, "evaluation/rollouts", two_of(run / "evaluations/base.rollouts.jsonl")),
        (1, "rollouts", two_of(run / "rollouts.jsonl")),
        (2, "evaluation/rollouts", two_of(run / "evaluations/one.rollouts.jsonl")),
    ]


def two_of(file: Path) -> list[dict[str, Any]]:
    """Of eight rollouts."""
    told = ("id", "prompt", *(f"t{number}/{name}" for number in (1, 2) for name in ("text", "outcome", "reward")))
    return [{name: flat_rollout(row)[name] for name in told} for row in read_rows(file)[::4]]


def test_a_model_s_text_is_no_markup() -> None:
    """As TensorBoard's page shows it. Halves of surrogate pairs are replaced: writing them would end the tracker."""
    from tensorboard.plugin_util import markdown_to_safe_html

    text = "<think>\n```python\n**b**\r\n    c\n```\n\n# d | e\n--|--\n<b>f</b>"
    row = tabled(graded(Outcome.WRONG, Outcome.CORRECT, texts=[text, "\ud800"]))
    shown = markdown_to_safe_html(markdown([row]))
    for line in text.splitlines():
        assert html.escape(line, quote=False) in shown
    assert (shown.count("<strong>"), shown.count("<code>"), row["t2/text"]) == (8, 7, "?"), "the prompt is empty"


def test_each_fails_alone() -> None:
    told: list[str] = []
    seen: list[dict[str, float]] = []

    class Bad(Tracker):
        name = "bad"

        def log(self, values: Any, step: int) -> None:
            raise RuntimeError

    class Good(Tracker):
        def log(self, values: Any, step: int) -> None:
            seen.append(values)

        def close(self) -> None:
            raise BrokenPipeError

    trackers = Trackers([Bad(), Good()], told.append)
    for step in (1, 2):
        trackers.log({"step": step, "stage": "one", "a": [1, step]}, step)
    trackers.show("rollouts", [graded(Outcome.WRONG)], 2)  # none are asked for
    trackers.close()
    assert seen == [{"a/t1": 1, "a/t2": 1}, {"a/t1": 1, "a/t2": 2}], "step is a name that trackio keeps for itself"
    assert [text.split(";")[0] for text in told] == [
        "warning: bad failed (RuntimeError)", "warning: tracker failed (BrokenPipeError)",
    ]  # fmt: skip
