"""Verdicts of a grader that died are not kept, whatever else ended the attempts beside them."""

import pytest

from selfcorrect.evaluation.evaluate import grader_lives
from selfcorrect.types import Attempt, Completion, Grade, Outcome, Problem, Rollout


@pytest.mark.parametrize(
    ("outcomes", "lives"),
    [
        (["grader_failed", "grader_failed"], False),
        (["grader_failed", "truncated"], False),
        (["unreadable", "grader_failed", "no_answer"], False),
        (["grader_failed", "wrong"], True),
        (["truncated", "unreadable"], True),
    ],
)
def test_whether_the_grader_lives(outcomes: list[str], lives: bool) -> None:
    rollouts = [_rollout(Outcome(outcome)) for outcome in outcomes]
    assert grader_lives(rollouts) is lives


def _rollout(outcome: Outcome) -> Rollout:
    attempt = Attempt((), Completion((), (), "", "stop"), Grade(outcome, 0.0, "", ""), True, "")
    return Rollout(Problem("p", "countdown", "p", {}), (attempt,))
