"""Traces: pairs of attempts that Pair-SFT and STaR fine-tune on; how they are chosen, and their files.

A trace is a Rollout of two attempts whose first carries no gradient. Files hold one JSON object a line, to be read,
filtered and used again (`traces:` of a stage); docs/methods.md has the fields.
"""

import dataclasses
import random
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from selfcorrect.errors import DataError, ModelError
from selfcorrect.evaluation.kept import json_line, write_durably
from selfcorrect.evaluation.metrics import LEFT_OUT, is_graded
from selfcorrect.learning.formats import rows_of, text_of
from selfcorrect.models.chat import Chat
from selfcorrect.seeds import derive_seed
from selfcorrect.tasks.base import Task
from selfcorrect.types import Attempt, Completion, Grade, Outcome, Problem, Rollout


def star_traces(rollouts: Iterable[Rollout]) -> list[Rollout]:
    """D+_STaR: two-attempt rollouts that end right, wrong-then-right and right-then-right, each once."""
    return _distinct(
        _given(rollout) for rollout in rollouts if rollout.attempts[-1].grade.correct and is_graded(rollout)
    )


def pair_traces(firsts: Sequence[Rollout], chat: Chat, task: Task, seed: int) -> list[Rollout]:
    """D+_SFT: every first attempt followed by a right one at the same problem, drawn among those of other tokens.

    firsts: rollouts of one attempt; those of a problem stand together. Wrong ones give wrong-then-right traces, right
    ones right-then-right; a pair occurs once.
    """
    pairs: list[Rollout] = []
    for name, rows in groupby(firsts, key=lambda rollout: rollout.problem.id):
        group = [rollout for rollout in rows if is_graded(rollout)]
        right = [index for index, rollout in enumerate(group) if rollout.attempts[0].grade.correct]
        for index, rollout in enumerate(group):
            mine = rollout.attempts[0].completion.token_ids
            others = [place for place in right if group[place].attempts[0].completion.token_ids != mine]
            if others:
                drawn = random.Random(derive_seed(seed, "pair", name, index)).choice(others)
                pairs.append(_pair(rollout, group[drawn].attempts[0], chat, task))
    return _distinct(pairs)


def fixes(trace: Rollout) -> bool:
    """Whether the first attempt is wrong: such a trace is in D, the others in D+ alone."""
    return not trace.attempts[0].grade.correct


def write_traces(file: Path, traces: Iterable[Rollout], task: Task) -> None:
    """One line a trace; a file that is there is replaced. Token ids too: tokenising again may give others."""
    rows = [
        {
            "id": trace.problem.id,
            "prompt": trace.problem.prompt,
            "first": _attempt_row(trace.attempts[0]),
            "correction_prompt": task.correction_prompt(trace.problem),
            "second": _attempt_row(trace.attempts[1]),
        }
        for trace in traces
    ]
    write_durably(file, "".join(json_line(row) + "\n" for row in rows))


def read_traces(file: str | Path, chat: Chat, task: str) -> list[Rollout]:
    """Traces of a file, as written here, by hand, or in another trainer's format (learning/formats.py).

    Raises DataError with file, line, field and reason.
    """
    return [_read(row, where, chat, task) for where, row in rows_of(file)]


def _given(rollout: Rollout) -> Rollout:
    first, *later = rollout.attempts
    return dataclasses.replace(rollout, attempts=(dataclasses.replace(first, sampled=False), *later))


def _pair(rollout: Rollout, right: Attempt, chat: Chat, task: Task) -> Rollout:
    first = rollout.attempts[0]
    context = chat.next_prompt(first.prompt_ids, first.completion.token_ids, task.correction_prompt(rollout.problem))
    second = Attempt(context, right.completion, right.grade)
    return _given(dataclasses.replace(rollout, attempts=(first, second)))


def _distinct(traces: Iterable[Rollout]) -> list[Rollout]:
    """Each pair of token sequences once, the first occurrence."""
    by_ids: dict[tuple[tuple[int, ...], tuple[int, ...]], Rollout] = {}
    for trace in traces:
        by_ids.setdefault((trace.attempts[1].prompt_ids, trace.attempts[1].completion.token_ids), trace)
    return list(by_ids.values())


def _attempt_row(attempt: Attempt) -> dict[str, Any]:
    grade, completion = attempt.grade, attempt.completion
    return {
        "text": completion.text, "outcome": str(grade.outcome), "answer": grade.answer,
        "token_ids": list(completion.token_ids), "finish_reason": completion.finish_reason,
    }  # fmt: skip


def _read(row: dict[str, Any], where: str, chat: Chat, task: str) -> Rollout:
    asked = ("prompt", "correction_prompt")
    prompt, correction = (text_of(where, f"field {field!r}", row.get(field)) for field in asked)
    problem = Problem(str(row.get("id", where)), task, prompt, {})
    first, first_grade = _completion(row, "first", where, chat)
    second, second_grade = _completion(row, "second", where, chat)
    if not second_grade.correct or first_grade.outcome in LEFT_OUT:
        raise DataError(
            f"{where}: a trace ends right, and its first attempt was graded; got outcomes {first_grade.outcome} and "
            f"{second_grade.outcome}; leave the line out"
        )
    context = _context(row, prompt, where, chat)
    following = chat.next_prompt(context, first.token_ids, correction)
    attempts = (Attempt(context, first, first_grade, sampled=False), Attempt(following, second, second_grade))
    return Rollout(problem, attempts)


def _context(row: dict[str, Any], prompt: str, where: str, chat: Chat) -> tuple[int, ...]:
    """The first prompt's ids, with the trace's system text where it has one."""
    if not row.get("system"):
        return chat.first_prompt(prompt)
    try:
        return chat.first_prompt(prompt, text_of(where, "field 'system'", row["system"]))
    except ModelError as error:
        raise DataError(f"{where}: its system text cannot be written: {error}; leave it out") from error


def _completion(row: dict[str, Any], field: str, where: str, chat: Chat) -> tuple[Completion, Grade]:
    """The attempt's tokens, from its ids where it has some, else from its text with the template's end of turn."""
    attempt = row.get(field)
    if not isinstance(attempt, dict):
        raise DataError(f"{where}: field {field!r} must be an object with text and outcome, got {attempt!r}")
    text, named = (text_of(f"{where}: {field}", f"field {of!r}", attempt.get(of)) for of in ("text", "outcome"))
    if named not in list(Outcome):
        raise DataError(f"{where}: {field}: outcome {named!r} must be one of {', '.join(Outcome)}")
    ids = attempt.get("token_ids")
    if ids is None:
        end = chat.turn_end()
        ids = [*chat.written(text).token_ids, *([] if end is None else [end])]
    elif not isinstance(ids, list) or not ids or not all(type(i) is int and 0 <= i < chat.vocabulary for i in ids):
        raise DataError(f"{where}: {field}: token_ids must be a list of token ids, each below {chat.vocabulary}")
    elif chat.said(ids) != text:
        raise DataError(f"{where}: {field}: token_ids do not spell the text; after editing the text, leave them out")
    cut = attempt.get("finish_reason") == "length"
    grade = Grade(Outcome(named), float(named == Outcome.CORRECT), str(attempt.get("answer", "")))
    return Completion(tuple(ids), (0.0,) * len(ids), text, "length" if cut else "stop"), grade


def epochs(traces: Sequence[Rollout], step: int, count: int, seed: int) -> Iterator[Rollout]:
    """The traces of update 1, 2, ...: epochs without replacement, each in an order of its own."""
    orders: dict[int, list[int]] = {}
    for place in range((step - 1) * count, step * count):
        epoch, index = divmod(place, len(traces))
        if epoch not in orders:
            orders[epoch] = random.Random(derive_seed(seed, "epoch", epoch)).sample(range(len(traces)), len(traces))
        yield traces[orders[epoch][index]]
