"""`play`: which contexts are sampled from, what is graded, what is not."""

import inspect
import threading
import time
from collections.abc import Sequence
from dataclasses import replace

import pytest

from selfcorrect.config import SelfRefineConfig
from selfcorrect.evaluation.flat import rollout_row
from selfcorrect.grading.countdown import grade_countdown
from selfcorrect.lab.base import build_tokenizer
from selfcorrect.models.chat import Chat
from selfcorrect.rollout import Waiting, play
from selfcorrect.samplers.scripted import ScriptedSampler
from selfcorrect.seeds import derive_seed
from selfcorrect.tasks.base import Task
from selfcorrect.tasks.countdown import Countdown
from selfcorrect.types import Attempt, Completion, Grade, Outcome, Problem, Rollout, SamplingParams
from tests.support.templates import OPENS_THOUGHT, PLAIN, byte_tokenizer

TOKENIZER = build_tokenizer(12)
END = TOKENIZER.eos_token_id
CHAT = Chat(TOKENIZER, frozenset({END}))
PARAMS = SamplingParams(1.0, 6, seed=5)


class Echo(Countdown):
    """A task whose right answer is "3"."""

    def correction_prompt(self, problem: Problem) -> str:
        return "? " + problem.id

    def grade(self, answers: Sequence[tuple[Problem, str]]) -> list[Grade]:
        return [
            Grade(Outcome.CORRECT if text == "3" else Outcome.WRONG, float(text == "3"), text) for _, text in answers
        ]


def problem(prompt: str, name: str = "1") -> Problem:
    return Problem(name, "echo", prompt, {})


def sampler_of(*completions: Sequence[int]) -> ScriptedSampler:
    """Plays these one after the other."""
    queue = iter(completions)
    return ScriptedSampler(lambda ids, params: next(queue), CHAT.decode, frozenset({END}))


def run(
    sampler: ScriptedSampler, problems: Sequence[Problem], attempts: int = 2, given: list[Completion] | None = None
) -> list[Rollout]:
    return play(problems, Echo(), sampler, CHAT, PARAMS, attempts, given=given)


def test_each_attempt_extends_the_one_before_token_for_token() -> None:
    sampler = sampler_of((4, END), (3, END), (5, 5, END), (6, END), (7, END), (8, END))
    rollouts = run(sampler, [problem("1 : 1", "1"), problem("2 : 2", "2")], attempts=3)
    for rollout, number in zip(rollouts, ("1", "2"), strict=True):
        first, second, third = rollout.attempts
        assert first.prompt_ids == CHAT.first_prompt(f"{number} : {number}")
        turn = CHAT.first_prompt(f"? {number}")  # this template writes every user turn alike
        assert second.prompt_ids == (*first.prompt_ids, *first.completion.token_ids, *turn)
        assert third.prompt_ids == (*second.prompt_ids, *second.completion.token_ids, *turn)
    assert sampler.calls == [[r.attempts[a].prompt_ids for r in rollouts] for a in range(3)]
    assert [a.completion.token_ids for a in rollouts[1].attempts] == [(3, END), (6, END), (8, END)]
    assert [a.grade.outcome for a in rollouts[1].attempts] == ["correct", "wrong", "wrong"]


@pytest.mark.parametrize("opens", [True, False])
def test_what_lies_in_a_thought_is_not_the_answer(opens: bool) -> None:
    """In every attempt, the text kept whole; a recorded first attempt is whole whatever the template opens."""
    tokenizer = byte_tokenizer(OPENS_THOUGHT if opens else PLAIN)
    end = tokenizer.convert_tokens_to_ids("</turn>")
    chat = Chat(tokenizer, frozenset({end}))
    texts = ["3</think>4", "4</think>3", "3", "<think>4</think>3", "<think>3"]
    script = iter(texts)
    sampler = ScriptedSampler(
        lambda ids, params: [*tokenizer(next(script))["input_ids"], end], chat.decode, frozenset({end})
    )
    params = SamplingParams(1.0, 60, 0)
    (rollout,) = play([problem("Is it <think>?")], Echo(), sampler, chat, params, len(texts))
    outcomes = ["wrong", "correct", "no_answer" if opens else "correct", "correct", "no_answer"]
    assert [attempt.grade.outcome for attempt in rollout.attempts] == outcomes
    assert [attempt.completion.text for attempt in rollout.attempts] == texts
    (given,) = play([replace(problem("Q"), first_attempt="3")], Echo(), sampler, chat, params, 1)
    assert given.attempts[0].grade.correct


def test_self_refine_writes_feedback_between_two_attempts() -> None:
    """The feedback is context, not an attempt: neither graded nor trained on."""
    sampler = sampler_of((4, END), (6, 7, END), (3, END))
    refine = SelfRefineConfig(feedback_prompt="? 5", refine_prompt="? 6")
    [rollout] = play([problem("1 : 1")], Echo(), sampler, CHAT, PARAMS, 2, refine=refine)
    first, second = rollout.attempts
    asked, told = CHAT.first_prompt("? 5"), CHAT.first_prompt("? 6")
    assert second.prompt_ids == (*first.prompt_ids, 4, END, *asked, 6, 7, END, *told)
    assert (first.feedback, second.feedback) == ("", CHAT.decode([6, 7]))
    assert [a.grade.outcome for a in rollout.attempts] == ["wrong", "correct"]
    assert "feedback" in rollout_row(rollout)["attempts"][1]


def test_each_attempt_draws_from_a_seed_of_its_own() -> None:
    seen: list[int] = []

    def script(ids: tuple[int, ...], params: SamplingParams) -> list[int]:
        seen.append(params.seed)
        return [3, END]

    run(ScriptedSampler(script, CHAT.decode, frozenset({END})), [problem("1 : 1")], attempts=3)
    assert seen == [derive_seed(PARAMS.seed, "attempt", number) for number in (1, 2, 3)]
    assert len(set(seen)) == 3


def test_truncation_is_an_outcome_whatever_the_text() -> None:
    """ "3" would be right; cut off it earns nothing, and the template closes the turn."""
    sampler = ScriptedSampler(lambda ids, params: [3], CHAT.decode, frozenset({END}))
    (rollout,) = run(sampler, [problem("1 : 1")])
    assert [attempt.completion.text for attempt in rollout.attempts] == ["3", "3"]
    assert [attempt.grade.outcome for attempt in rollout.attempts] == [Outcome.TRUNCATED] * 2
    assert [attempt.grade.reward for attempt in rollout.attempts] == [0.0, 0.0]
    first, second = rollout.attempts
    assert second.prompt_ids == (*first.prompt_ids, 3, END, *CHAT.first_prompt("? 1"))


def test_unreadable_problems_are_not_sampled() -> None:
    sampler = sampler_of((3, END), (3, END))
    rollouts = run(sampler, [problem("99 : 1"), problem("1 : 1"), problem("1 : 99")])
    assert [len(call) for call in sampler.calls] == [1, 1]
    assert [[a.grade.outcome for a in r.attempts] for r in rollouts] == [
        ["unreadable"] * 2, ["correct"] * 2, ["unreadable"] * 2,
    ]  # fmt: skip
    assert [a.completion.token_ids for r in (rollouts[0], rollouts[2]) for a in r.attempts] == [()] * 4
    nothing = sampler_of()
    assert [r.attempts[1].grade.outcome for r in run(nothing, [problem("99 : 1")])] == ["unreadable"]


def test_given_attempts_take_the_place_of_the_first_and_are_graded() -> None:
    completions = [Completion((3, END), (-0.5, -0.5), "3", "stop"), Completion((4,), (-1.0,), "4", "length")]
    sampler = sampler_of((3, END), (5, END))
    rollouts = run(sampler, [problem("1 : 1"), problem("2 : 2", "2")], given=completions)
    assert [rollout.attempts[0].completion for rollout in rollouts] == completions
    assert [rollout.attempts[0].grade.outcome for rollout in rollouts] == ["correct", "truncated"]
    assert sampler.calls == [[rollout.attempts[1].prompt_ids for rollout in rollouts]]
    assert rollouts[0].attempts[1].prompt_ids == (*CHAT.first_prompt("1 : 1"), 3, END, *CHAT.first_prompt("? 1"))


def test_given_attempts_stay_with_their_problems() -> None:
    """Past one that cannot be read, and one without."""
    given = [Completion((n, END), (-0.5, -0.5), str(n), "stop") for n in (1, 2)]
    problems = [problem(text) for text in ("1", "99", "2", "3")]
    sampler = sampler_of((4, END), *[(5, END)] * 3)
    rollouts = play(problems, Echo(), sampler, CHAT, PARAMS, 2, given=[given[0], given[0], None, given[1]])
    assert [r.attempts[0].completion.text for r in rollouts] == ["1", "", "4", "2"]
    assert [[a.sampled for a in r.attempts] for r in rollouts] == [
        [False, True], [False, True], [True, True], [False, True],
    ]  # fmt: skip


def test_a_correction_prompt_has_no_way_to_learn_the_grade() -> None:
    """The protocol and the shipped tasks take the problem alone, and play asks before it knows more than that."""
    for holder in (Task, Countdown):
        assert list(inspect.signature(holder.correction_prompt).parameters) == ["self", "problem"]
    assert "grade" not in inspect.signature(grade_countdown).parameters


def test_groups_are_repeated_problems() -> None:
    sampler = sampler_of((3, END), (4, END), (5, END), (6, END))
    rollouts = run(sampler, [problem("1 : 1")] * 2)
    assert len(set(sampler.calls[0])) == 1
    assert [r.attempts[0].completion.text for r in rollouts] == ["3", "4"]


def test_attempt_1_is_graded_while_attempt_2_is_sampled() -> None:
    """The grader holds attempt 1 until attempt 2 is being sampled: one after the other would never end."""
    sampling_again = threading.Event()

    class Slow(Echo):
        def grade(self, answers: Sequence[tuple[Problem, str]]) -> list[Grade]:
            assert sampling_again.wait(20), "attempt 2 waits for the grade of attempt 1"
            return super().grade(answers)

    def script(ids: tuple[int, ...], params: SamplingParams) -> list[int]:
        if params.seed == derive_seed(PARAMS.seed, "attempt", 2):
            sampling_again.set()
        return [3, END]

    waiting = Waiting()
    (rollout,) = play(
        [problem("1 : 1")], Slow(), ScriptedSampler(script, CHAT.decode, frozenset({END})), CHAT, PARAMS, 2,
        waiting=waiting,
    )  # fmt: skip
    assert [attempt.grade.outcome for attempt in rollout.attempts] == ["correct", "correct"]
    assert waiting.seconds < 10


def test_standing_still_for_the_grader_is_counted() -> None:
    class Slow(Echo):
        def grade(self, answers: Sequence[tuple[Problem, str]]) -> list[Grade]:
            time.sleep(0.05)
            return super().grade(answers)

    waiting = Waiting()
    for _ in range(2):
        play([problem("1 : 1")], Slow(), sampler_of((3, END)), CHAT, PARAMS, 1, waiting=waiting)
    assert 0.08 < waiting.seconds < 5


def test_what_the_grader_raises_rises() -> None:
    class Broken(Echo):
        def grade(self, answers: Sequence[tuple[Problem, str]]) -> list[Grade]:
            raise ZeroDivisionError("in the grader")

    with pytest.raises(ZeroDivisionError, match="in the grader"):
        play([problem("1 : 1")], Broken(), sampler_of((3, END), (3, END)), CHAT, PARAMS, 2)


def test_only_what_ended_reaches_the_grader_and_every_grade_its_row() -> None:
    asked: list[list[str]] = []

    class Asked(Echo):
        def grade(self, answers: Sequence[tuple[Problem, str]]) -> list[Grade]:
            asked.append([f"{problem.id}: {text}" for problem, text in answers])
            return super().grade(answers)

    problems = [problem("1 : 1", "a"), problem("99 : 1", "b"), problem("2 : 2", "c"), problem("3 : 3", "d")]
    sampler = sampler_of((4, END), (4,), (3, END), *[(3,)] * 3)
    rollouts = play(problems, Asked(), sampler, CHAT, PARAMS, 2)
    assert asked == [["a: 4", "d: 3"]]
    assert [r.attempts[0].grade.outcome for r in rollouts] == ["wrong", "unreadable", "truncated", "correct"]


def test_a_recorded_first_attempt_takes_the_place_of_attempt_1() -> None:
    recorded = replace(problem("1 : 1", "r"), first_attempt="4 5")
    sampler = sampler_of((6, END), (3, END), (5, END))
    one, other = run(sampler, [recorded, problem("2 : 2", "s")])
    assert sampler.calls == [[CHAT.first_prompt("2 : 2")], [one.attempts[1].prompt_ids, other.attempts[1].prompt_ids]]
    # The template closes the recorded turn.
    assert one.attempts[1].prompt_ids == (*CHAT.first_prompt("1 : 1"), 4, 5, END, *CHAT.first_prompt("? r"))
    assert [[a.sampled for a in r.attempts] for r in (one, other)] == [[False, True], [True, True]]
    assert one.attempts[0].completion.text == "4 5"
    assert [a.grade.outcome for a in one.attempts] == ["wrong", "correct"]


def test_a_rollout_prints_whatever_the_model_wrote() -> None:
    """In a few lines that no terminal obeys, and that have an encoding."""
    attempt = Attempt(
        (), Completion((), (), "a\x1b[2J\n\ud800" + "b" * 300, "stop"), Grade(Outcome.WRONG, 0.0, "", "why")
    )
    told = repr(Rollout(problem("1 : 1", "p"), (attempt,)))
    assert told.splitlines()[1].startswith(
        "  attempt 1, wrong (why): a\N{REPLACEMENT CHARACTER}[2J \N{REPLACEMENT CHARACTER}bb"
    )
    assert len(told.encode()) < 300
