"""`play`: attempt 1, correction prompt, attempt 2 (... attempt A), graded (no torch, no objective).

The correction prompt never needs a grade, so attempt a is graded in a thread while attempt a+1 is sampled:

    sample 1 | sample 2 | wait for what is left
             | grade 1  | grade 2
"""

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace

from selfcorrect.config import SelfRefineConfig
from selfcorrect.grading.thoughts import grade_answers
from selfcorrect.models.chat import Chat
from selfcorrect.samplers.base import Sampler
from selfcorrect.seeds import derive_seed
from selfcorrect.tasks.background import Background
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
    problems: Sequence[Problem], task: Task, sampler: Sampler, chat: Chat, params: SamplingParams, attempts: int,
    *,
    given: Sequence[Completion | None] | None = None,
    refine: SelfRefineConfig | None = None,
    asks: Callable[[Problem], str] | None = None,
    waiting: Waiting | None = None,
    part: slice | None = None,
) -> list[Rollout]:  # fmt: skip
    """Play every problem (repeat a problem to get a group), all rows together, one attempt after the other.

    given: one completion per problem that takes the place of attempt 1, or None where attempt 1 is sampled; without
    `given`, a problem's recorded first attempt does (offline repair). Both are graded like any other. refine: between
    two attempts the model writes feedback (Self-Refine). asks: stands in for the task's correction prompt. Problems the
    tokenizer cannot read are not sampled: outcome `unreadable`. Returns a Rollout a problem, in order. part: play only
    this run of them, as they come out when all are played together: other processes play the rest.
    """
    problems, readable, firsts, before = _rows(problems, chat, given, part)
    contexts = [chat.first_prompt(problem.prompt) for problem in problems]
    turn = _Turn(problems, asks or task.correction_prompt, sampler, chat, readable, refine, before)
    played: list[list[Completion]] = [[] for _ in problems]
    shown: list[list[tuple[int, ...]]] = [[] for _ in problems]
    feedback: list[list[str]] = [[] for _ in problems]
    grader = Background("grader")
    grading: list[Future[list[Grade]]] = []
    try:
        for number in range(1, attempts + 1):
            told = [""] * len(problems)
            if number > 1:
                contexts, told = turn.ask(contexts, [done[-1] for done in played], params, number)
            now = turn.answer(contexts, firsts if number == 1 else {}, params, number)
            for row in range(len(problems)):
                played[row].append(now[row])
                shown[row].append(contexts[row])
                feedback[row].append(told[row])
            recorded = firsts if number == 1 and given is None else {}
            grading.append(grader.submit(grade_texts, task, problems, now, readable, chat.opens_thought, recorded))
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
                Attempt(shown[row][a], played[row][a], grades[a][row], a > 0 or row not in firsts, feedback[row][a])
                for a in range(attempts)
            ),
        )
        for row, problem in enumerate(problems)
    ]


@dataclass(frozen=True, slots=True)
class _Turn:
    """What is the same for every attempt of one call. readable: by row, whether the tokenizer can read the problem.

    before: rows sampled by other processes ahead of these, in attempt 1 and in later ones.
    """

    problems: Sequence[Problem]
    asks: Callable[[Problem], str]
    sampler: Sampler
    chat: Chat
    readable: Sequence[bool]
    refine: SelfRefineConfig | None
    before: tuple[int, int] = (0, 0)

    def ask(
        self, contexts: Sequence[tuple[int, ...]], last: Sequence[Completion], params: SamplingParams, number: int
    ) -> tuple[list[tuple[int, ...]], list[str]]:
        """The contexts of attempt `number`, and the feedback that the model wrote on the way, if it was asked to."""
        told = [""] * len(contexts)
        prompts = [self.asks(problem) for problem in self.problems]
        if self.refine:
            contexts = self._next(contexts, last, [self.refine.feedback_prompt] * len(contexts))
            draws = replace(params, seed=derive_seed(params.seed, "feedback", number), first=self.before[1])
            last = self._sample(contexts, {}, draws)
            told = [completion.text for completion in last]
            prompts = [self.refine.refine_prompt] * len(contexts)
        return self._next(contexts, last, prompts), told

    def answer(
        self, contexts: Sequence[tuple[int, ...]], firsts: Mapping[int, Completion], params: SamplingParams, number: int
    ) -> list[Completion]:
        """Attempt `number` of every row; firsts: rows whose attempt is given."""
        seed, first = derive_seed(params.seed, "attempt", number), self.before[number > 1]
        return self._sample(contexts, firsts, replace(params, seed=seed, first=first))

    def _next(
        self, contexts: Sequence[tuple[int, ...]], last: Sequence[Completion], prompts: Sequence[str]
    ) -> list[tuple[int, ...]]:
        return [
            self.chat.next_prompt(context, completion.token_ids, prompt)
            for context, completion, prompt in zip(contexts, last, prompts, strict=True)
        ]

    def _sample(
        self, contexts: Sequence[tuple[int, ...]], given: Mapping[int, Completion], params: SamplingParams
    ) -> list[Completion]:
        rows = [row for row, ok in enumerate(self.readable) if ok and row not in given]
        sampled = self.sampler.sample([contexts[row] for row in rows], params) if rows or not given else []
        now = {**given, **dict(zip(rows, sampled, strict=True))}
        return [now.get(row, _SKIPPED) if ok else _SKIPPED for row, ok in enumerate(self.readable)]


def _rows(
    problems: Sequence[Problem], chat: Chat, given: Sequence[Completion | None] | None, part: slice | None
) -> tuple[Sequence[Problem], list[bool], dict[int, Completion], tuple[int, int]]:
    """The problems of a part, which of them can be read, the attempts 1 that are given, and `_Turn.before`."""
    readable = [chat.readable(problem.prompt) for problem in problems]
    firsts = _first_attempts(problems, chat, given)
    if part is None:
        return problems, readable, firsts, (0, 0)
    start, mine = part.start, range(len(problems))[part]
    before = sum(ok and row not in firsts for row, ok in enumerate(readable[:start])), sum(readable[:start])
    return problems[part], readable[part], {row - start: done for row, done in firsts.items() if row in mine}, before


def _first_attempts(
    problems: Sequence[Problem], chat: Chat, given: Sequence[Completion | None] | None
) -> dict[int, Completion]:
    """Row -> the completion that stands for its attempt 1, where one does."""
    if given is not None:
        return {row: completion for row, completion in enumerate(given) if completion is not None}
    texts = {row: p.first_attempt for row, p in enumerate(problems) if p.first_attempt is not None}
    return {row: chat.written(text) for row, text in texts.items()}


def grade_texts(
    task: Task,
    problems: Sequence[Problem],
    completions: Sequence[Completion],
    readable: Sequence[bool],
    opened: bool = False,
    recorded: Collection[int] = (),
) -> list[Grade]:
    """Grades in order. A completion cut off at the token limit is `truncated` and unrewarded, whatever its text; one
    that came with a verdict has that.

    opened: whether completions began inside of a thought; those of the rows `recorded` are texts of their own.
    """
    grades = [
        (completion.verdict or (_TRUNCATED if completion.finish_reason == "length" else None)) if ok else _UNREADABLE
        for completion, ok in zip(completions, readable, strict=True)
    ]
    open_rows = [row for row, grade in enumerate(grades) if grade is None]
    texts = [(problems[row], completions[row].text, opened and row not in recorded) for row in open_rows]
    found = grade_answers(task.grade, texts)
    told = dict(zip(open_rows, found, strict=True))
    return [grade or told[row] for row, grade in enumerate(grades)]
