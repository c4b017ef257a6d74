"""Which rollouts become traces, and what their files hold."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from selfcorrect.config import CountdownConfig
from selfcorrect.config.stages import PairSFT
from selfcorrect.errors import DataError
from selfcorrect.learning.supervised import Collector
from selfcorrect.learning.traces import epochs, fixes, pair_traces, read_traces, star_traces, write_traces
from selfcorrect.models.chat import Chat
from selfcorrect.tasks.countdown import Countdown
from selfcorrect.types import Attempt, Completion, Grade, Outcome, Problem, Rollout
from tests.support.tiny import tiny_lm

R, W, T, F = Outcome.CORRECT, Outcome.WRONG, Outcome.TRUNCATED, Outcome.GRADER_FAILED
TASK = Countdown(CountdownConfig(prompt="{numbers} : {target}", correction_prompt="?"))


@pytest.fixture(scope="module")
def chat() -> Chat:
    found: Chat = tiny_lm("llama", "eager", (3, 5, 7, 9)).chat
    return found


def rollout(chat: Chat, name: str, *attempts: tuple[int, Outcome]) -> Rollout:
    """Attempts by the token they consist of (then an end token) and their outcome."""
    problem = Problem(name, "countdown", "3 7", {"numbers": [3, 7], "target": 10})
    played: list[Attempt] = []
    context = chat.first_prompt("3 7")
    for token, outcome in attempts:
        if played:
            context = chat.next_prompt(context, played[-1].completion.token_ids, TASK.correction_prompt(problem))
        completion = Completion((token, 3), (-1.0, -1.0), chat.said([token, 3]), "stop")
        played.append(Attempt(context, completion, Grade(outcome, float(outcome is R), str(token))))
    return Rollout(problem, tuple(played))


def pairs(traces: list[Rollout]) -> list[tuple[str, int, int]]:
    """Problem, and the token of either attempt."""
    return [(t.problem.id, *(a.completion.token_ids[0] for a in t.attempts)) for t in traces]  # type: ignore[misc]


def test_star_keeps_what_ends_right(chat: Chat) -> None:
    played = [
        rollout(chat, "a", (20, W), (21, R)), rollout(chat, "b", (22, R), (22, R)), rollout(chat, "c", (23, R), (24, W)),
        rollout(chat, "d", (25, W), (26, W)), rollout(chat, "e", (27, T), (28, R)), rollout(chat, "f", (29, F), (30, R)),
        rollout(chat, "a", (20, W), (21, R)),
    ]  # fmt: skip
    traces = star_traces(played)
    assert pairs(traces) == [("a", 20, 21), ("b", 22, 22), ("e", 27, 28)]  # once each; not where the grader failed
    assert [fixes(trace) for trace in traces] == [True, False, True]
    assert all([a.sampled for a in trace.attempts] == [False, True] for trace in traces)


def test_a_trace_is_held_against_what_the_text_model_reads(chat: Chat) -> None:
    """A model of several parts names it in the text model's config."""
    text = SimpleNamespace(max_position_embeddings=5)
    lm = replace(tiny_lm(), model=SimpleNamespace(config=SimpleNamespace(get_text_config=lambda: text)))
    stage = PairSFT(name="p", objective="pair_sft", steps=1, learning_rate=1.0)
    trainer: Any = SimpleNamespace(stage=stage, lm=lm)
    found = [rollout(chat, "a", (20, W), (21, R))]
    with pytest.raises(
        DataError, match=r"t.jsonl: a trace takes \d+ tokens \(a\), but the model reads 5; leave it out"
    ):
        Collector(trainer, Path(), print)._chosen(found, 1, 0, "t.jsonl")


def test_pairs_are_a_wrong_and_a_right_one_of_the_same_problem(chat: Chat) -> None:
    firsts = [
        rollout(chat, "a", (20, W)), rollout(chat, "a", (21, R)), rollout(chat, "a", (22, W)),
        rollout(chat, "b", (23, W)), rollout(chat, "b", (24, F)),  # nothing right
        rollout(chat, "c", (25, R)),  # right, and alone
        rollout(chat, "d", (26, R)), rollout(chat, "d", (27, R)), rollout(chat, "e", (26, R)), rollout(chat, "e", (26, R)),
    ]  # fmt: skip
    traces = pair_traces(firsts, chat, TASK, seed=0)
    assert pairs(traces) == [("a", 20, 21), ("a", 22, 21), ("d", 26, 27), ("d", 27, 26)]
    assert [fixes(trace) for trace in traces] == [True, True, False, False]
    assert pair_traces(firsts, chat, TASK, seed=0) == traces
    for trace in traces:
        first, second = trace.attempts
        whole = (*first.prompt_ids, *first.completion.token_ids)
        assert second.prompt_ids[: len(whole)] == whole
        assert second.prompt_ids == chat.next_prompt(
            first.prompt_ids, first.completion.token_ids, TASK.correction_prompt(trace.problem)
        )


def test_files_give_back_the_tokens(chat: Chat, tmp_path: Path) -> None:
    file = tmp_path / "traces.jsonl"
    traces = star_traces([rollout(chat, "a", (20, W), (21, R)), rollout(chat, "b", (22, R), (23, R))])
    write_traces(file, traces, TASK)
    read = read_traces(file, chat, "countdown")
    assert [[(a.prompt_ids, a.completion.token_ids, a.sampled) for a in t.attempts] for t in read] == [
        [(a.prompt_ids, a.completion.token_ids, a.sampled) for a in t.attempts] for t in traces
    ]
    row = json.loads(file.read_text().splitlines()[0])
    for attempt in ("first", "second"):
        del row[attempt]["token_ids"]
    row["second"]["text"] = "7"
    file.write_text(json.dumps(row))
    [edited] = read_traces(file, chat, "countdown")  # texts without ids are tokenised, and end their turn
    assert edited.attempts[1].completion.token_ids == (*chat.written("7").token_ids, chat.turn_end())


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"prompt": 3}, "field 'prompt' must be text"),
        ({"second": None}, "field 'second' must be an object"),
        ({"second": {"text": "x", "outcome": "fine"}}, "outcome 'fine' must be one of correct"),
        ({"second": {"text": "x", "outcome": "correct", "token_ids": [20, 3]}}, "token_ids do not spell the text"),
        ({"second": {"text": "x", "outcome": "correct", "token_ids": ["a"]}}, "must be a list of token ids"),
        (
            {"second": {"text": "x", "outcome": "correct", "token_ids": [2**70]}},
            "must be a list of token ids, each below",
        ),
        ({"second": {"text": "x", "outcome": "wrong"}}, "a trace ends right, and its first attempt was graded"),
        ({"first": {"text": "x", "outcome": "grader_failed"}}, "got outcomes grader_failed and correct"),
    ],
)
def test_what_cannot_be_a_trace_is_refused_with_file_and_line(
    change: dict[str, object], told: str, chat: Chat, tmp_path: Path
) -> None:
    file = tmp_path / "traces.jsonl"
    write_traces(file, star_traces([rollout(chat, "a", (20, W), (21, R))]), TASK)
    row = json.loads(file.read_text())
    file.write_text("\n" + json.dumps({**row, **change}))
    with pytest.raises(DataError, match=r"traces.jsonl:2:") as caught:
        read_traces(file, chat, "countdown")
    assert told in str(caught.value)


def test_every_trace_once_an_epoch(chat: Chat) -> None:
    traces = [rollout(chat, str(i), (20, W), (21, R)) for i in range(7)]
    drawn = [t.problem.id for step in range(1, 8) for t in epochs(traces, step, 3, seed=5)]
    assert [sorted(drawn[start : start + 7]) for start in (0, 7, 14)] == [sorted(map(str, range(7)))] * 3
    assert drawn[:7] != drawn[7:14]
