"""What is tried before a run or an evaluation writes anything."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from selfcorrect.config import TrainConfig
from selfcorrect.errors import ConfigError
from selfcorrect.models.loading import LanguageModel
from selfcorrect.tasks.base import Task
from selfcorrect.types import Problem


def check_context(config: TrainConfig, lm: LanguageModel, task: Task, problem: Problem) -> None:
    """Raises ConfigError where the attempts of one problem cannot fit into what the model can read."""
    room = getattr(lm.model.config, "max_position_embeddings", None)
    prompt = lm.chat.first_prompt(problem.prompt)
    limit, attempts = config.rollouts.max_new_tokens, config.rollouts.attempts
    asked, refine = [task.correction_prompt(problem)], config.rollouts.self_refine
    if refine:
        asked = [refine.feedback_prompt, refine.refine_prompt]
    between = sum(len(lm.chat.next_prompt(prompt, (), text)) - len(prompt) for text in asked) + (len(asked) - 1) * limit
    given = 0 if problem.first_attempt is None else len(lm.chat.written(problem.first_attempt).token_ids) - limit
    need = len(prompt) + given + attempts * limit + (attempts - 1) * between
    if room and need > room:
        raise ConfigError(
            f"rollouts.max_new_tokens = {limit}: a prompt of {len(prompt)} tokens and {attempts} attempts may take "
            f"{need} tokens, but the model reads {room}; lower max_new_tokens"
        )


def is_out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)


@contextmanager
def ready(task: Task) -> Iterator[None]:
    """The grader's processes are up. Raises what keeps them from running, before anything is written."""
    task.grade([])
    yield
