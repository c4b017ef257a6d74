"""The evaluation of a model behind an endpoint: problems, attempts, controls and metrics as of a loaded one."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

from selfcorrect import __version__
from selfcorrect.config import TrainConfig
from selfcorrect.endpoints.sampler import EndpointSampler
from selfcorrect.endpoints.settings import Endpoint
from selfcorrect.models.messages import MessageChat
from selfcorrect.models.templates import system_of
from selfcorrect.runs.checks import shortages
from selfcorrect.runs.evaluating import SIDE, Job, default_folder, make_evaluator, settings
from selfcorrect.tasks.base import Task

_ROWS = 512  # conversations side by side, where rollouts.rows_at_once is auto


def endpoint_job(
    config: TrainConfig, task: Task, folder: Path | None, name: str, endpoint: Endpoint, say: Callable[[str], None]
) -> Job:
    """config.model.path: the model's name there. folder: where the evaluation is kept under `name`, with every answer
    in evaluations/NAME.answers.jsonl; by default one for these settings. Raises ConfigError.
    """
    rows = config.rollouts.rows_at_once
    evaluator = dataclasses.replace(make_evaluator(config, task), rows=_ROWS if rows == "auto" else rows)
    model = config.model
    chat = MessageChat(system_of(model))
    made_with = settings(config, evaluator, chat, {
        "selfcorrect": __version__,
        "model": {"weights": model.path},
        "endpoint": {"url": endpoint.url, "body": dict(endpoint.body), "send_reasoning": endpoint.send_reasoning},
        "model.system_as": model.system_as,
    })  # fmt: skip
    folder = folder or default_folder(config, made_with)
    sampler = EndpointSampler(endpoint, model.path, folder / "evaluations" / f"{name}.answers.jsonl", say)
    task.grade([])
    notes = [
        f"task {evaluator.about}, {len(evaluator.problems):,} problems of split {evaluator.split}; model {model.path} "
        f"at {endpoint.url}, {endpoint.concurrency} requests at once",
        *shortages(config, task, len(evaluator.problems), trains=False),
    ]
    if model.template_options or model.chat_template:
        notes.append(
            "model.chat_template and model.template_options are the endpoint's affair; what it takes of the kind goes "
            "with every request by --body, such as '{\"chat_template_kwargs\": {...}}'"
        )
    return Job(
        evaluator,
        sampler,
        chat,
        made_with | {SIDE: evaluator.rows},
        notes,
        lambda: [sampler.told()],
        lambda: ", " * bool(sampler.kept()) + sampler.kept(),
    )
