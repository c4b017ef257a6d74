"""The records that travel through one training step (stdlib only).

    problems -> play -> grade -> credit -> baseline -> batch -> loss -> update -> record

Axes used in names: B rollouts, A attempts, L tokens of a completion, P tokens of a prompt.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Literal

FinishReason = Literal["stop", "length"]
CUT_OFF = frozenset(  # what servers, and the programs that write logs, call an attempt that ran into a limit on tokens
    {"length", "max_tokens", "max_output_tokens", "max_length", "model_length", "token_limit"}
)


class Outcome(StrEnum):
    """What a grader can say of one attempt; a closed set."""

    CORRECT = "correct"
    WRONG = "wrong"
    NO_ANSWER = "no_answer"  # nothing in the text that could be graded
    TRUNCATED = "truncated"  # ran into the token limit before it ended
    TIMEOUT = "timeout"  # the answer used up the grader's time
    UNREADABLE = "unreadable"  # the model's tokenizer cannot read the problem; not attempted
    GRADER_FAILED = "grader_failed"  # the grader's own trouble: left out of loss and metrics


@dataclass(frozen=True, slots=True)
class Problem:
    """One problem `x` with what its task needs to grade an answer.

    first_attempt: a recorded text that stands for attempt 1 (offline repair); None where the model writes it.

    Example: ``Problem("countdown-3-7-12-t22", "countdown", "3 7 12 : 22",
    {"numbers": [3, 7, 12], "target": 22})``
    """

    id: str
    task: str
    prompt: str
    reference: Mapping[str, Any]
    first_attempt: str | None = None


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How to sample. No top-k and no top-p: the loss differentiates the distribution sampled from.

    temperature: 0 means greedy. seed: one number fixes every draw of the call. first: how many rows of the same call
    come before these, sampled by other processes; a row's draws depend on its number in the whole call.
    """

    temperature: float
    max_new_tokens: int
    seed: int
    first: int = 0


@dataclass(frozen=True, slots=True)
class Completion:
    """Sampled tokens, the end-of-sequence token included when the model wrote one.

    token_ids [L]; logprobs [L]: log-probability of each token at the sampling temperature, in nats
    (at temperature 0: of the untempered distribution). verdict: where whatever wrote it says itself that there is
    nothing to grade, like a refusal.
    """

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    text: str
    finish_reason: FinishReason
    verdict: "Grade | None" = None


@dataclass(frozen=True, slots=True)
class Grade:
    """A grader's verdict: outcome, reward `r(y, y*)` in [0, 1], 1 where correct alone, the answer it read, and why."""

    outcome: Outcome
    reward: float
    answer: str = ""
    detail: str = ""

    @property
    def correct(self) -> bool:
        return self.outcome is Outcome.CORRECT


@dataclass(frozen=True, slots=True)
class Attempt:
    """One attempt: its whole context `x_a` as token ids [P], what was sampled, and its grade.

    sampled: False where the completion was given (a control, offline repair): the policy did not write it, so it
    carries no gradient. feedback: what the model wrote on the attempt before, where it was asked to (Self-Refine).
    """

    prompt_ids: tuple[int, ...]
    completion: Completion
    grade: Grade
    sampled: bool = True
    feedback: str = ""


@dataclass(frozen=True, slots=True)
class Rollout:
    """All attempts at one problem. Attempt a+1's prompt_ids extend attempt a's ids token for token."""

    problem: Problem
    attempts: tuple[Attempt, ...]

    def __repr__(self) -> str:
        """What a person reads of it: the problem, and every attempt with its verdict; without ids and probabilities."""
        lines = [f"<Rollout {self.problem.id}: {_cut(self.problem.prompt)}>"]
        for number, attempt in enumerate(self.attempts, 1):
            why = f" ({_cut(attempt.grade.detail)})" if attempt.grade.detail else ""
            lines.append(f"  attempt {number}, {attempt.grade.outcome}{why}: {_cut(attempt.completion.text)}")
        return "\n".join(lines)


def _cut(text: str, most: int = 200) -> str:
    """A text on one line, of so many characters, each of which can be printed: a model writes anything."""
    line = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in " ".join(text.split()))
    return line if len(line) <= most else f"{line[:most]} ..."
