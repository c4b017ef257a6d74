"""The two attempts as a task of inspect_ai: `inspect eval selfcorrect/two_attempts -T task=gsm8k`. docs/bridges.md.

inspect finds this module by the package's entry point. Its model answers; grades and metrics are selfcorrect's own, and
programs run in selfcorrect's judge.
"""

import json
from functools import lru_cache, partial
from typing import Any

from selfcorrect.bridges.logs import OWN
from selfcorrect.bridges.protocol import Protocol, averaged, configured, missing
from selfcorrect.models.messages import plain_text
from selfcorrect.types import CUT_OFF, Completion

try:
    import anyio
    from inspect_ai import Epochs, Task, task
    from inspect_ai.dataset import MemoryDataset, Sample
    from inspect_ai.model import ChatMessage, ChatMessageSystem, ChatMessageUser, GenerateConfig
    from inspect_ai.scorer import Metric, SampleScore, Score, Scorer, Target, metric, scorer
    from inspect_ai.solver import Generate, Solver, TaskState, solver
except ImportError:
    raise missing("inspect_ai", "inspect") from None


@task
def two_attempts(task: str | None = None, recipe: str | None = None, **settings: Any) -> Task:
    """Attempt 1, the correction prompt, attempt 2 (... attempt rollouts.attempts), all graded.

    task: math, gsm8k, humaneval, humaneval_plus, mbpp, mbpp_sanitized, mbpp_plus, countdown, custom; or recipe: a file
    or a shipped one that names it. settings: by a recipe's names, as task.data (short: data), rollouts.attempts and
    evaluation.problems.
    Greedy unless evaluation.temperature, or inspect's --temperature, says otherwise; evaluation.samples are epochs.
    """
    protocol = _protocol(_key(task, recipe, settings))
    config, evaluation = protocol.config, protocol.config.evaluation
    makes = {"system": ChatMessageSystem, "user": ChatMessageUser}
    samples = []
    for name, problem in protocol.problems.items():
        asked: list[ChatMessage] = [makes[role](content=text) for role, text in protocol.messages(name)]
        told = {**protocol.told(name), "planned": protocol.attempts}
        metadata = {"correction_prompt": protocol.correction(name), OWN: told}
        target = str(problem.reference.get("answer", problem.reference.get("target", "")))
        samples.append(Sample(id=name, input=asked, target=target, metadata=metadata))
    return Task(
        dataset=MemoryDataset(samples, name=task or config.name),
        solver=attempts(task, recipe, **settings),
        scorer=graded(task, recipe, **settings),
        config=GenerateConfig(temperature=evaluation.temperature, max_tokens=config.rollouts.max_new_tokens),
        epochs=Epochs(evaluation.samples, "mean"),
    )


@solver
def attempts(task: str | None = None, recipe: str | None = None, **settings: Any) -> Solver:
    """Every attempt after the one before it; nothing that is asked depends on whether an attempt was right."""
    key = _key(task, recipe, settings)

    async def solve(state: TaskState, generate: Generate) -> TaskState:
        protocol = _protocol(key)
        await anyio.to_thread.run_sync(protocol.grader.start)
        texts, reasons = list[str](), list[str]()
        for number in range(1, protocol.attempts + 1):
            if number > 1:
                state.messages.append(ChatMessageUser(content=state.metadata["correction_prompt"]))
            state = await generate(state)
            texts.append(plain_text(state.output.completion))
            if texts[-1] != state.output.completion:
                state.output.completion = state.messages[-1].content = texts[-1]
            reasons.append("length" if _cut_off(state) else "stop")
            state.metadata[OWN] = {**state.metadata[OWN], "attempts": list(texts), "finish_reasons": list(reasons)}
        return state

    return solve


def _cut_off(state: TaskState) -> bool:
    return bool(state.output.choices) and state.output.stop_reason in CUT_OFF


@metric
def paper() -> Metric:
    """The paper's metrics, each the mean over problems: accuracy@t1, accuracy@t2, delta, i->c, c->i, unchanged."""

    def mean(scores: list[SampleScore]) -> dict[str, float]:
        return averaged([score.score.value for score in scores])

    return mean


@scorer(metrics=[paper()])
def graded(task: str | None = None, recipe: str | None = None, **settings: Any) -> Scorer:
    """Every attempt graded by selfcorrect's own graders. A sample they failed on is unscored, and in no metric."""
    key = _key(task, recipe, settings)

    async def score(state: TaskState, target: Target) -> Score:
        protocol, name = _protocol(key), str(state.sample_id)
        own = state.metadata.get(OWN, {})
        texts, reasons = own.get("attempts", []), own.get("finish_reasons", [])
        told: dict[str, list[str]] = {"outcomes": [], "details": []}
        if len(texts) != protocol.attempts or name not in protocol.problems:
            why = (
                f"{len(texts)} of {protocol.attempts} attempts" if texts or name in protocol.problems else "no problem"
            )
            return Score.unscored(reason="scoring_failed", explanation=f"the sample holds {why}", metadata=told)
        completions = [
            Completion((), (), text, "length" if reason == "length" else "stop")
            for text, reason in zip(texts, reasons, strict=True)
        ]
        grades = await anyio.to_thread.run_sync(partial(protocol.grader.grade, protocol.problems[name], completions))
        told = {"outcomes": [str(g.outcome) for g in grades], "details": [g.detail for g in grades]}
        explanation = "\n".join(
            f"attempt {number}: {grade.outcome}" + (f" ({grade.detail})" if grade.detail else "")
            for number, grade in enumerate(grades, 1)
        )
        verdicts = protocol.verdicts(name, grades, texts)
        if verdicts is None:
            return Score.unscored(reason="scoring_failed", explanation=explanation, metadata=told)
        return Score(value=verdicts, answer=grades[-1].answer, explanation=explanation, metadata=told)

    return score


def _key(task: str | None, recipe: str | None, settings: dict[str, Any]) -> str:
    """What the task, its solver and its scorer are all made of: they share one protocol, with one grader."""
    return json.dumps([task, recipe, settings], sort_keys=True)


@lru_cache(maxsize=8)
def _protocol(key: str) -> Protocol:
    task, recipe, settings = json.loads(key)
    return Protocol(configured(task, recipe, settings))
