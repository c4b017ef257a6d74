"""`play`: attempt 1, correction prompt, attempt 2 (... attempt A), graded (floor 4; no torch, no objective).

The correction prompt never needs a grade, so attempt a is graded in a thread while attempt a+1 is sampled:

    sample 1 | sample 2 | wait for what is left
             | grade 1  | grade 2
"""

import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace

from selfcorrect.chat import Chat
from selfcorrect.samplers.base import Sampler
from selfcorrect.seeds import derive_seed
from selfcorrect.tasks.base import Task
from selfcorrect.types import Attempt, Completion, Grade, Outcome, Problem, Rollout, SamplingParams

_SKIPPED = Completion((), (), "", "stop")
_UNREADABLE = Grade(Outcome.UNREADABLE, 0.0, "", "the model's tokenizer has no token for part of the problem")
_TRUNCATED = Grade(Outcome.TRUNCATED, 0.0, "", "ran into max_new_tokens")


@dataclass(slots=True)
class Waiting:
    """Seconds that `play` stood still for the grader; grows from call to call."""

    seconds: float = 0.0


def play(
    problems: Sequence[Problem],
    task: Task,
    sampler: Sampler,
    chat: Chat,
    params: SamplingParams,
    attempts: int,
    *,
    policy_step: int = 0,
    given: Sequence[Completion] | None = None,
    waiting: Waiting | None = None,
) -> list[Rollout]:
    """Play every problem (repeat a problem to get a group), all rows together, one attempt after the other.

    given: one completion per problem that takes the place of attempt 1 (controls); where there is none, a problem's
    recorded first attempt does (offline repair). Both are graded like any other. Problems the tokenizer cannot read
    are not sampled: outcome `unreadable`. Returns one Rollout per problem, in order; what the grader raises, rises.
    """
    contexts = [chat.first_prompt(problem.prompt) for problem in problems]
    readable = [chat.readable(context) for context in contexts]
    played: list[list[Completion]] = [[] for _ in problems]
    shown: list[list[tuple[int, ...]]] = [[] for _ in problems]
    firsts = _first_attempts(problems, chat, given)
    grader = ThreadPoolExecutor(1, thread_name_prefix="grader")
    grading: list[Future[list[Grade]]] = []
    try:
        for number in range(1, attempts + 1):
            if number > 1:
                contexts = [
                    chat.next_prompt(context, done[-1].token_ids, task.correction_prompt(problem))
                    for problem, context, done in zip(problems, contexts, played, strict=True)
                ]
            done_already = firsts if number == 1 else {}
            rows = [row for row, ok in enumerate(readable) if ok and row not in done_already]
            turn = replace(params, seed=derive_seed(params.seed, "attempt", number))
            sampled = sampler.sample([contexts[row] for row in rows], turn) if rows or not done_already else []
            now = {**done_already, **dict(zip(rows, sampled, strict=True))}
            for row in range(len(problems)):
                played[row].append(now.get(row, _SKIPPED) if readable[row] else _SKIPPED)
                shown[row].append(contexts[row])
            turn_done = [done[-1] for done in played]
            grading.append(grader.submit(_grade, task, problems, turn_done, readable))
        began = time.perf_counter()
        grades = [future.result() for future in grading]
        if waiting is not None:
            waiting.seconds += time.perf_counter() - began
    finally:
        grader.shutdown(wait=False, cancel_futures=True)  # on an error or Ctrl-C nobody needs the rest
    return [
        Rollout(
            problem,
            tuple(
                Attempt(shown[row][a], played[row][a], grades[a][row], sampled=a > 0 or row not in firsts)
                for a in range(attempts)
            ),
            params.seed,
            policy_step,
        )
        for row, problem in enumerate(problems)
    ]


def _first_attempts(
    problems: Sequence[Problem], chat: Chat, given: Sequence[Completion] | None
) -> dict[int, Completion]:
    """Row -> the completion that stands for its attempt 1, where one does."""
    if given is not None:
        return dict(enumerate(given))
    texts = {row: p.first_attempt for row, p in enumerate(problems) if p.first_attempt is not None}
    return {row: chat.written(text) for row, text in texts.items()}


def _grade(
    task: Task, problems: Sequence[Problem], completions: Sequence[Completion], readable: Sequence[bool]
) -> list[Grade]:
    """Grades in order. A completion cut off at the token limit is `truncated` and unrewarded, whatever its text."""
    grades = [
        (_TRUNCATED if completion.finish_reason == "length" else None) if ok else _UNREADABLE
        for completion, ok in zip(completions, readable, strict=True)
    ]
    open_rows = [row for row, grade in enumerate(grades) if grade is None]
    found = task.grade([(problems[row], completions[row].text) for row in open_rows]) if open_rows else []
    told = dict(zip(open_rows, found, strict=True))
    return [grade or told[row] for row, grade in enumerate(grades)]
