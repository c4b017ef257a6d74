"""Hand-made rollouts."""

from collections.abc import Sequence

from selfcorrect.types import Attempt, Completion, FinishReason, Grade, Outcome, Problem, Rollout

Turn = tuple[Sequence[int], Sequence[int]]  # what is new in the context, what was sampled


def rollout_of_ids(*turns: Turn, finish: FinishReason = "stop") -> Rollout:
    """A rollout whose contexts extend each other; log-probs -0.1, -0.2, ... along each completion."""
    context: tuple[int, ...] = ()
    attempts = []
    for new, sampled in turns:
        context = (*context, *new)
        logprobs = tuple(-(place + 1) / 10 for place in range(len(sampled)))
        completion = Completion(tuple(sampled), logprobs, "", finish)
        attempts.append(Attempt(context, completion, Grade(Outcome.WRONG, 0.0)))
        context = (*context, *sampled)
    return Rollout(Problem("p", "toy", "", {}), tuple(attempts))


def graded(*outcomes: Outcome, texts: Sequence[str] | None = None) -> Rollout:
    """A rollout with these outcomes; its attempts' texts differ unless given."""
    texts = texts or [f"answer {number}" for number in range(len(outcomes))]
    attempts = tuple(
        Attempt((), Completion((), (), text, "stop"), Grade(outcome, float(outcome is Outcome.CORRECT)))
        for outcome, text in zip(outcomes, texts, strict=True)
    )
    return Rollout(Problem("p", "toy", "", {}), attempts)
