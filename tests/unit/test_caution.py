"""From a handful of problems, from a floor and from what was cut off nothing is concluded; from the rest it is."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from selfcorrect.comparing.page import findings, headline
from selfcorrect.comparing.results import Result, read_answers
from selfcorrect.comparing.results import summarize as summarize_runs
from selfcorrect.evaluation.alarms import WINDOW, Lessons, Watch, alarms, cut_off_at, unread
from selfcorrect.evaluation.caution import caution, ungraded
from selfcorrect.evaluation.flat import rollout_row
from selfcorrect.evaluation.metrics import is_unchanged, summarize
from selfcorrect.evaluation.told import summary_line
from selfcorrect.types import Attempt, Completion, Grade, Outcome, Problem, Rollout
from tests.support.rollouts import graded

C, W, T, N, G = Outcome.CORRECT, Outcome.WRONG, Outcome.TRUNCATED, Outcome.NO_ANSWER, Outcome.GRADER_FAILED
Kind = tuple[int, Outcome, Outcome]


def rollouts(*kinds: Kind) -> list[Rollout]:
    return [rollout for count, *outcomes in kinds for rollout in [graded(*outcomes)] * count]


@pytest.mark.parametrize(
    ("kinds", "expected"),
    [
        ([(4, T, W)], "only 4 problems were graded"),
        ([(1, W, C)], "only 1 problem was graded"),
        ([(19, W, C)], "only 19 problems were graded"),  # all of them fixed: the interval alone would claim it
        ([(3, W, C), (60, G, C)], "only 3 problems were graded"),
        ([(60, G, G)], "no problem could be graded"),
        ([(200, T, T)], "100 % of the first attempts were cut off"),
        ([(120, C, T), (80, C, C)], "60 % of the last attempts were cut off"),  # no harm was done: it had no room
        ([(150, T, C), (50, W, W)], "75 % of the first attempts were cut off"),  # and no correction here
        ([(200, N, N)], "no answer could be read from 100 %"),
        ([(120, N, C), (80, W, W)], "no answer could be read from 60 %"),  # attempt 2 may have mended the form alone
        ([(70, N, C), (40, T, W), (90, C, C)], "no answer could be read from 55 %"),
        ([(200, W, W)], "no problem of 200 right at either attempt"),
        ([(3, W, C), (197, W, W)], "3 problems of 200 right"),
        ([(200, C, C)], "no problem of 200 wrong at either attempt"),
        ([(1, C, W), (199, C, C)], "1 problem of 200 wrong"),
        ([(12, W, C), (8, C, C)], ""),
        ([(100, C, N), (100, W, N)], ""),  # an attempt 2 that no longer answers did do harm
        ([(60, T, C), (140, C, C)], ""),
        ([(200, W, C)], ""),
    ],
)
def test_what_allows_no_conclusion(kinds: Sequence[Kind], expected: str) -> None:
    told = caution(summarize(rollouts(*kinds)))
    assert told.startswith(expected)
    assert bool(told) == bool(expected)


BASE = summarize(rollouts((500, C, C), (100, C, W), (50, W, C), (350, W, W)))


def repeated(count: int, outcome: Outcome) -> list[Rollout]:
    return [graded(outcome, outcome, texts=["same", "same"])] * count


def test_no_alarm_from_a_handful_or_where_there_was_nothing_to_gain() -> None:
    assert alarms(summarize(repeated(4, W)), BASE) == []
    assert alarms(summarize(repeated(200, W)), summarize(repeated(4, C))) == []
    assert alarms(summarize(repeated(200, C)), BASE) == []  # all right at once, and left so: no copying
    assert alarms(summarize([*repeated(80, W), *repeated(120, C)]), BASE)[0].startswith("copying")
    assert [told for told in alarms(summarize(repeated(200, N)), BASE) if told.startswith("sandbagging")]
    assert not [told for _ in range(50) for told in Watch(summarize(repeated(4, C))).step(0.0, 0.0, 1.0)]


def test_two_attempts_that_say_nothing_repeat_nothing() -> None:
    assert not is_unchanged(graded(N, N, texts=["", ""]))
    assert not is_unchanged(graded(T, N, texts=[" \n", " \n"]))
    assert is_unchanged(graded(N, N, texts=["no idea", "no idea"]))


def test_an_evaluation_says_what_was_cut_off() -> None:
    quarter = summarize(rollouts((150, T, W), (50, W, C)))
    (told,) = cut_off_at(quarter, 64)
    assert told.startswith(
        "cut off: attempts were cut off at rollouts.max_new_tokens = 64 (attempt 1 75 %, attempt 2 0 %): raise it"
    )
    assert summary_line(quarter).endswith("n=200  cut off t1 75.0%, t2 0.0%")
    assert cut_off_at(BASE, 64) == []
    assert summary_line(BASE).endswith("n=1000")


def test_an_evaluation_says_that_answers_were_not_read() -> None:
    """However few the problems, as it is the prompt's fault or the reader's."""
    (told,) = unread(summarize(rollouts((6, N, W), (4, W, C))))
    assert told.startswith("no answer: none could be read from many attempts (attempt 1 60 %, attempt 2 0 %): see ")
    assert unread(BASE) == []


def compared(folder: Path, *kinds: Kind) -> Result:
    """A line of a comparison by what a run has kept."""
    kept = folder / "evaluations"
    kept.mkdir(parents=True)
    (kept / "s.json").write_text('{"step": 1}')
    rows = [{**rollout_row(rollout), "id": f"p{n}"} for n, rollout in enumerate(rollouts(*kinds))]
    (kept / "s.rollouts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    answers = read_answers({0: folder})
    return summarize_runs("m", answers, None, answers, 200)


def test_a_comparison_is_as_careful_as_a_run(tmp_path: Path) -> None:
    names = {"m": "M"}
    cut = compared(tmp_path / "cut", (140, T, C), (40, C, C), (20, T, W))
    assert "cannot be concluded: 80 % of the first attempts were cut off" in headline(names, "m", [cut])
    (told,) = findings(names, [cut])
    assert "nothing can be concluded: 80" in told
    assert (
        "; cut off: attempts were cut off at rollouts.max_new_tokens (attempt 1 80 %, attempt 2 0 %)"
        in told.replace("\N{NO-BREAK SPACE}", " ")
    )
    silent = compared(tmp_path / "silent", (140, N, C), (60, W, W))
    assert "no answer could be read from 70 %" in headline(names, "m", [silent])
    some = compared(tmp_path / "some", (60, T, C), (40, C, C), (100, W, W), (30, G, G))
    assert headline(names, "m", [some]).startswith("M gains")
    assert "cut off: attempts were cut off at rollouts.max_new_tokens (attempt 1 30 %" in findings(names, [some])[
        0
    ].replace("\N{NO-BREAK SPACE}", " ")


def heard(lessons: Lessons, *steps: tuple[Sequence[float], Sequence[float], float | None, float | None]) -> list[str]:
    return [told for step in steps for told in lessons.step(*step, skipped="")]


def test_a_step_that_teaches_nothing_says_so() -> None:
    none_right = heard(Lessons(64), ((0.0, 0.0), (1.0, 0.5), 1.0, 0.0))
    assert [told.split(":")[0] for told in none_right] == ["cut off", "equal rewards"]  # which is why: one alarm
    assert (
        "attempts were cut off at rollouts.max_new_tokens = 64 (attempt 1 100 %, attempt 2 50 %): raise it"
        in none_right[0]
    )
    assert "all rewards of this step equal: nothing to learn; no attempt was right" in none_right[1]
    assert none_right[1].endswith("; the gradient of this step is exactly zero")
    assert "exactly zero" not in heard(Lessons(64), ((0.0, 0.0), (0.0, 0.0), 1.0, 0.1))[0]  # a KL's may move it
    (alone,) = heard(Lessons(64), ((0.4, 0.5), (0.0, 0.0), 0.5, 0.0))
    assert alone.startswith("no gradient: the gradient of this step is exactly zero")
    assert "every attempt was right" in heard(Lessons(64), ((1.0, 1.0), (0.0, 0.0), 1.0, 0.1))[0]
    assert "at every problem of this step" in heard(Lessons(64), ((0.5, 0.5), (0.0, 0.0), 1.0, 0.1))[0]
    # supervised, skipped, nothing graded, healthy
    assert heard(Lessons(64), ((), (), None, 0.3), ((), (), None, None)) == []
    assert heard(Lessons(64), ((0.0, 0.0), (0.0, 0.0), None, None), ((0.4, 0.5), (0.3, 0.0), 0.7, 0.1)) == []


def test_what_goes_on_for_long_is_said_at_smaller_shares() -> None:
    step = ((0.1, 0.1), (0.3, 0.1), 0.95, 0.1)
    told = heard(Lessons(64), *[step] * WINDOW)
    assert [text.split(":")[0] for text in told] == ["cut off over 20 steps", "equal rewards over 20 steps"]
    lessons = Lessons(64)
    assert heard(lessons, *[step] * (WINDOW - 1)) == []
    lessons.stage_started()
    assert heard(lessons, *[step] * (WINDOW - 1)) == []


def test_failures_of_the_grader_are_counted_over_all_samples() -> None:
    """Of which an evaluation keeps the first rollouts alone, and may hold none that failed."""
    failed = [Grade(Outcome.GRADER_FAILED, 0.0, "", "mine.py:3:\nodd"), Grade(Outcome.CORRECT, 1.0)]
    rollout = Rollout(
        Problem("1", "custom", "", {}),
        tuple(Attempt((), Completion((), (), "", "stop"), grade) for grade in failed),
    )
    counts = ({"correct": 5, "grader_failed": 2}, {"correct": 6, "grader_failed": 1})
    assert ungraded(counts, [rollout]) == (
        "no verdict on 3 of 14 attempts, whose rollouts count nowhere: mine.py:3: odd"
    )
    assert ungraded(counts, []) == "no verdict on 3 of 14 attempts, whose rollouts count nowhere"
    assert ungraded(({"correct": 7}, {"wrong": 7}), [rollout]) == ""
