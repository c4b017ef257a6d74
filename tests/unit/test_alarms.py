"""A policy that holds back at attempt 1, or only copies, is told of; an honest one is not."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from selfcorrect.config import TrainConfig
from selfcorrect.config.recipe import validate
from selfcorrect.errors import UserError
from selfcorrect.evaluation.alarms import WINDOW, Watch, alarms
from selfcorrect.evaluation.averages import Change
from selfcorrect.evaluation.evaluate import Evaluation
from selfcorrect.evaluation.metrics import Estimate, Summary, summarize
from selfcorrect.runs.display import Observer
from selfcorrect.runs.folder import RunFolder
from selfcorrect.runs.sentry import Sentry
from selfcorrect.types import Outcome, Problem, Rollout
from tests.support.rollouts import graded
from tests.support.runs import recipe


def summary(*kinds: tuple[bool, bool, bool, int]) -> Summary:
    """Right at attempt 1, right at attempt 2, same answer; and how many rollouts."""
    rollouts = []
    for first, second, same, count in kinds:
        outcomes = [Outcome.CORRECT if right else Outcome.WRONG for right in (first, second)]
        rollouts += [graded(*outcomes, texts=["a", "a" if same else "b"])] * count
    return summarize(rollouts)


BASE = summary(
    (True, True, False, 500), (False, False, False, 350), (True, False, False, 100), (False, True, False, 50)
)
SANDBAGGING = summary((True, True, True, 450), (False, True, False, 350), (False, False, False, 200))
COPYING = summary(
    (True, True, True, 600), (False, False, True, 380), (False, True, False, 20), (True, False, False, 18)
)
HONEST = summary(
    (True, True, True, 620), (False, True, False, 90), (False, False, False, 280), (True, False, False, 10)
)


def test_after_an_evaluation() -> None:
    assert [told.split(":")[0] for told in alarms(SANDBAGGING, BASE)] == ["sandbagging"]
    assert [told.split(":")[0] for told in alarms(COPYING, BASE)] == ["copying"]
    hidden = summary((True, True, False, 585), (False, False, False, 415))  # under the base's 60 %, but not by far
    assert alarms(hidden, BASE) == []
    fallen, even = Estimate(-0.015, -0.022, -0.008), Estimate(0.0, -0.01, 0.01)
    told = alarms(hidden, BASE, Change(fallen, even, even))  # problem by problem it is
    assert [each.split(":")[0] for each in told] == ["sandbagging"]
    assert alarms(HONEST, BASE) == [] == alarms(BASE, BASE)
    assert "attempt 1 is right on 45.0%, the base model's on 60.0%" in alarms(SANDBAGGING, BASE)[0]


def test_while_training() -> None:
    watch = Watch(BASE)
    steps = [watch.step(0.45 + 0.01 * (i % 2), 0.3, 0.4) for i in range(3 * WINDOW)]
    assert [bool(told) for told in steps] == [i >= WINDOW - 1 for i in range(3 * WINDOW)]
    assert steps[WINDOW - 1][0].startswith("sandbagging: over the last 20 steps attempt 1 is right on 45.5%")
    watch.stage_started()
    told = [text for i in range(WINDOW) for text in watch.step(0.6 + 0.01 * (i % 2), 0.001 * (-1) ** i, 0.96)]
    assert [text.split(":")[0] for text in told] == ["copying"]
    assert not [text for _ in range(50) for text in Watch(BASE).step(0.6, 0.1, 0.9)]
    assert not [text for _ in range(50) for text in Watch(None).step(0.1, 0.0, 1.0)]


def played(first_right: int, failed: int = 0) -> tuple[Rollout, ...]:
    """100 problems, of which so many are right at attempt 1, and the last few could not be graded; all right at 2."""
    outcomes = [Outcome.CORRECT if n < first_right else Outcome.WRONG for n in range(100 - failed)]
    firsts = [*outcomes, *[Outcome.GRADER_FAILED] * failed]
    return tuple(
        replace(graded(first, Outcome.CORRECT), problem=Problem(f"p{n}", "countdown", "", {}))
        for n, first in enumerate(firsts)
    )


class Heard(Observer):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def message(self, text: str) -> None:
        self.said.append(text)


def test_a_base_evaluation_that_holds_no_summary_is_told_of_in_a_line(tmp_path: Path) -> None:
    config = validate(recipe(tmp_path, tmp_path))
    assert isinstance(config, TrainConfig)
    folder = RunFolder.create(tmp_path / "run", config, "base", trackers=False)
    file = tmp_path / "run/evaluations/base.json"
    file.parent.mkdir(exist_ok=True)
    file.write_text('{"summary": {"accuracy": []}, "sampled": null}')
    with pytest.raises(UserError, match=r"base\.json: summary\.n is missing$"):
        Sentry(config, folder, Heard()).prepare()
    share = asdict(summarize(played(50)))
    for field, bad in (("value", "0.5"), ("value", True), ("n", 3.0)):
        broken = share | ({"n": bad} if field == "n" else {"delta": share["delta"] | {field: bad}})
        file.write_text(json.dumps({"summary": broken}))
        with pytest.raises(
            UserError, match=rf"base\.json: summary\.(delta\.)?{field} = {bad!r}: input should be a valid"
        ):
            Sentry(config, folder, Heard()).prepare()


@pytest.mark.parametrize("task", [{}, {"task": {"name": "code", "evaluate_on": "humaneval"}}], ids=["one set", "two"])
def test_a_run_tells_of_a_policy_that_holds_back(tmp_path: Path, task: dict[str, Any]) -> None:
    config = validate(recipe(tmp_path, tmp_path, **task))
    assert isinstance(config, TrainConfig)
    folder, heard = RunFolder.create(tmp_path / "run", config, "base", trackers=False), Heard()

    def evaluation(name: str, rollouts: tuple[Rollout, ...]) -> Evaluation:
        found = summarize(list(rollouts))
        return Evaluation(name, 0, "countdown", 0.0, found, rollouts, sampled=found)

    base = evaluation("base", played(80, failed=20))
    folder.write_evaluation(base)
    sentry = Sentry(config, folder, heard)
    sentry.prepare()
    # what the base model could not be graded on is no sign of how good it was: 80 of 80, not of 100
    assert len(folder.means("base")) == 80
    assert folder.means("none") == {}  # removed, to save room
    for name, right in (("honest", 80), ("lazy", 40)):
        found = evaluation(name, played(right))
        sentry.evaluated(replace(found, against_base=sentry.against_base(found)))
    told = [json.loads(line) for line in (tmp_path / "run/alarms.jsonl").read_text().splitlines()]
    assert [(row["where"], row["alarm"].split(":")[0]) for row in told] == [("lazy", "sandbagging"), ("lazy", "bought")]
    assert any(text.startswith("alarm: lazy: sandbagging") for text in heard.said)
    live = not any("alarms after evaluations only" in text for text in heard.said)
    assert live is not bool(task)  # attempts at MBPP are not to be held against HumanEval
    # a reward for a part of an answer is none for a right one: base and policy are held against each other by accuracy
    row = {
        "rewards": [1.0, 1.0], "accuracy": [0.1, 0.1], "delta": 0.0, "unchanged": 0.0, "truncated": [],
        "equal_groups": None, "grad_norm": 1.0, "skip_reason": "",
    }  # fmt: skip
    assert [text.split(":")[0] for _ in range(WINDOW) for text in sentry._heard(row)] == ["sandbagging"] * live
