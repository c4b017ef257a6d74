"""Verdicts of a grader that died are not kept, whatever else ended the attempts beside them."""

import pytest

from selfcorrect.evaluation.evaluate import grader_lives
from selfcorrect.types import Outcome
from tests.support.rollouts import graded


@pytest.mark.parametrize(
    ("outcomes", "lives"),
    [
        (["grader_failed", "grader_failed"], False),
        (["grader_failed", "truncated"], False),
        (["unreadable", "grader_failed", "no_answer"], False),
        (["grader_failed", "wrong"], True),
        (["truncated", "unreadable"], True),
        (["grader_failed wrong", "grader_failed correct"], False),
        (["grader_failed wrong", "wrong grader_failed"], True),
    ],
)
def test_whether_the_grader_lives(outcomes: list[str], lives: bool) -> None:
    """A rollout's attempts, each graded together with those of the others."""
    assert grader_lives([graded(*map(Outcome, each.split())) for each in outcomes]) is lives
