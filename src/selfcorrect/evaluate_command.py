"""The command `evaluate`: a model that is loaded, or one behind an endpoint."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from selfcorrect.commands import AsJson, Overrides, loading, stopped
from selfcorrect.errors import ConfigError

if TYPE_CHECKING:
    from selfcorrect.endpoints.settings import Endpoint

_ASKED, _SPENT = "Options for an endpoint", "Options for what an endpoint may take"


def _asked(text: str, metavar: str | None = None, name: str | None = None) -> Any:
    return typer.Option(*[name] if name else [], metavar=metavar, rich_help_panel=_ASKED, help=text)


def _spent(text: str, metavar: str | None = None) -> Any:
    return typer.Option(metavar=metavar, rich_help_panel=_SPENT, help=text)


URL = Annotated[
    str | None,
    _asked("Ask a model behind an OpenAI-compatible chat endpoint, such as http://localhost:8000/v1.", "URL"),
]
Name = Annotated[str | None, _asked("The model's name there.", "NAME", "--model")]
KeyEnv = Annotated[
    str | None, _asked("The environment variable that holds the key; OPENAI_API_KEY where it is set.", "NAME")
]
Concurrency = Annotated[int, _asked("Requests at once.")]
Timeout = Annotated[float, _asked("Seconds a request may take.")]
Retries = Annotated[int, _asked("Of a request without an answer.")]
Body = Annotated[str | None, _asked("Fields for every request, over our own; null takes one away.", "JSON")]
SendReasoning = Annotated[bool, _asked("Send back what was reasoned apart, too.", None, "--send-reasoning")]
MaxTokens = Annotated[int | None, _spent("Stop before more tokens are read and written.")]
MaxCost = Annotated[float | None, _spent("Stop before it costs more.")]
PriceIn = Annotated[float | None, _spent("Of a million tokens read.")]
PriceOut = Annotated[float | None, _spent("Of a million tokens written.")]
Tokenizer = Annotated[str | None, _spent("A tokenizer.json, or its folder, to count with.", "PATH")]


def evaluate(
    model: Annotated[
        str | None,
        typer.Argument(
            help="A model folder, a run, a hub name, lab, or a recipe; with --endpoint a recipe, or nothing.",
            metavar="MODEL",
        ),
    ] = None,
    overrides: Overrides = None,
    recipe: Annotated[Path | None, typer.Option(help="Where the task and its limits come from.")] = None,
    output: Annotated[Path | None, typer.Option(help="Folder for the rollouts and report.html.")] = None,
    as_json: AsJson = False,
    endpoint: URL = None,
    name: Name = None,
    key_env: KeyEnv = None,
    concurrency: Concurrency = 8,
    timeout: Timeout = 600.0,
    retries: Retries = 8,
    body: Body = None,
    send_reasoning: SendReasoning = False,
    max_tokens_total: MaxTokens = None,
    max_cost: MaxCost = None,
    price_in: PriceIn = None,
    price_out: PriceOut = None,
    tokenizer: Tokenizer = None,
) -> None:
    """Measure both attempts on held-out problems. Accuracy at each, delta, i->c, c->i, with 95 % intervals.

    Greedy; evaluation.samples=8 evaluation.temperature=0.7 gives Avg@8 and pass@8.
    evaluation.correction_prompts.NAME=TEXT asks in other words beside the task's own. Finished problems are kept at
    once; after a stop, the same command goes on. With --endpoint URL --model NAME nothing is loaded: the endpoint is
    asked (docs/endpoints.md).
    """
    asked = {
        "key_env": key_env, "concurrency": concurrency, "timeout": timeout, "retries": retries, "body": body,
        "send_reasoning": send_reasoning, "max_tokens_total": max_tokens_total, "max_cost": max_cost,
        "price_in": price_in, "price_out": price_out, "tokenizer": tokenizer,
    }  # fmt: skip
    settings = list(overrides or [])
    if endpoint is None:
        _refuse_unused({"model": name, **asked})
        if model is None:
            raise ConfigError("name a model folder, run, hub name, lab or recipe; or --endpoint URL --model NAME")
        if "=" in model and not Path(model).exists():
            raise ConfigError(f"{model} is a setting in the model's place; name a model, lab or a recipe before it")
        _run(model, settings, recipe, output, as_json, None)
        return
    if name is None:
        raise ConfigError("--endpoint: name the model that is to be asked there with --model NAME")
    if model is not None and "=" in model:
        settings, model = [model, *settings], None
    if model is not None and recipe is not None:
        raise ConfigError(f"{model} and --recipe {recipe}: name one recipe; the model's name is --model {name}")
    _run(name, settings, recipe or (Path(model) if model else None), output, as_json, _endpoint(endpoint, asked))


def _refuse_unused(given: dict[str, Any]) -> None:
    """Raises ConfigError for what only an endpoint has."""
    from selfcorrect.endpoints.settings import Endpoint

    usual = {name: field.default for name, field in Endpoint.__dataclass_fields__.items()}
    for name, value in given.items():
        if value is not None and value != usual.get(name):
            raise ConfigError(f"--{name.replace('_', '-')} is for an endpoint; name its URL with --endpoint URL")


def _endpoint(url: str, given: dict[str, Any]) -> "Endpoint":
    from selfcorrect.endpoints.settings import Endpoint, read_body

    body = given["body"]
    return Endpoint(url, **{**given, "body": {} if body is None else read_body(body)})


def _run(
    model: str, overrides: list[str], recipe: Path | None, output: Path | None, as_json: bool,
    endpoint: "Endpoint | None",
) -> None:  # fmt: skip
    from selfcorrect.runs.recipes import to_evaluate

    to_evaluate(model, recipe, overrides, here=endpoint is None)  # before torch is loaded
    loading()
    from selfcorrect import api
    from selfcorrect.evaluation.alarms import cut_off_at, unread
    from selfcorrect.evaluation.told import CONTROLS, summary_line
    from selfcorrect.runs.display import evaluation_line
    from selfcorrect.runs.progress import on_stderr

    with stopped(), on_stderr() as watcher:
        evaluation = api.evaluate(
            model, *overrides, recipe=recipe, observer=watcher, output=output, endpoint=endpoint
        )  # fmt: skip
    if as_json:
        typer.echo(json.dumps(evaluation.to_dict()))
        return
    typer.echo(evaluation_line(evaluation))
    for part, summary in [*evaluation.controls.items(), *evaluation.external]:
        shown = f"control, after {CONTROLS[part]}" if part in CONTROLS else part
        typer.echo(f"  {shown}: {summary_line(summary)}")
    for told in [*cut_off_at(evaluation.summary, evaluation.max_new_tokens), *unread(evaluation.summary)]:
        typer.echo(f"alarm: {told}")
    if evaluation.folder is not None:
        typer.echo(f"report: {evaluation.folder / 'report.html'}")
