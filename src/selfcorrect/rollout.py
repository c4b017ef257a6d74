"""`play`: attempt 1, correction prompt, attempt 2 (... attempt A), graded (floor 3; no torch, no objective)."""

from collections.abc import Sequence
from dataclasses import replace

from selfcorrect.chat import Chat
from selfcorrect.samplers.base import Sampler
from selfcorrect.seeds import derive_seed
from selfcorrect.tasks.base import Task
from selfcorrect.types import Attempt, Completion, Grade, Outcome, Problem, Rollout, SamplingParams

_SKIPPED = Completion((), (), "", "stop")


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
) -> list[Rollout]:
    """Play every problem (repeat a problem to get a group), all rows together, one attempt after the other.

    given: one completion per problem that takes the place of attempt 1 (controls, offline repair); it is
    graded like any other. Problems the tokenizer cannot read are not sampled: outcome `unreadable`.
    Returns one Rollout per problem, in order.
    """
    contexts = [chat.first_prompt(problem.prompt) for problem in problems]
    readable = [chat.readable(context) for context in contexts]
    played: list[list[Attempt]] = [[] for _ in problems]
    for number in range(1, attempts + 1):
        if number > 1:
            contexts = [
                chat.next_prompt(context, done[-1].completion.token_ids, task.correction_prompt(problem))
                for problem, context, done in zip(problems, contexts, played, strict=True)
            ]
        rows = [row for row, ok in enumerate(readable) if ok]
        if number == 1 and given is not None:
            completions = [given[row] for row in rows]
        else:
            turn = replace(params, seed=derive_seed(params.seed, "attempt", number))
            completions = sampler.sample([contexts[row] for row in rows], turn)
        sampled = dict(zip(rows, completions, strict=True))
        for row, problem in enumerate(problems):
            completion = sampled.get(row, _SKIPPED)
            grade = _grade(task, problem, completion) if readable[row] else _UNREADABLE
            played[row].append(Attempt(contexts[row], completion, grade))
    return [
        Rollout(problem, tuple(done), params.seed, policy_step) for problem, done in zip(problems, played, strict=True)
    ]


_UNREADABLE = Grade(Outcome.UNREADABLE, 0.0, "", "the model's tokenizer has no token for part of the problem")


def _grade(task: Task, problem: Problem, completion: Completion) -> Grade:
    """A completion cut off at the token limit is `truncated` and unrewarded, whatever its text."""
    if completion.finish_reason == "length":
        return Grade(Outcome.TRUNCATED, 0.0, "", "ran into max_new_tokens")
    return task.grade(problem, completion.text)
