"""Commands for whoever begins: `explain`, `init`, `completion`."""

from pathlib import Path
from typing import Annotated

import typer

from selfcorrect.errors import ConfigError
from selfcorrect.starting.completion import keys


def explain(
    key: Annotated[
        str | None,
        typer.Argument(
            help="Like rollouts.temperature, alpha, or a section; without it, sections are listed.", autocompletion=keys
        ),
    ] = None,
) -> None:
    """Say what a setting means. Type, range, default, the paper's symbol, and what the shipped recipes set it to."""
    from selfcorrect.config import explain as told

    for line in told.overview() if key is None else told.explain(key):
        typer.echo(line)


def init(
    model: Annotated[str, typer.Option(help="A model folder, or a name on the hub.")],
    data: Annotated[Path, typer.Option(help="A JSONL, JSON, CSV or Parquet file, or a folder of train.* and test.*.")],
    question: Annotated[str | None, typer.Option(help="The column of the question; found by itself if usual.")] = None,
    answer: Annotated[str | None, typer.Option(help="The column of the answer; found by itself if usual.")] = None,
    task: Annotated[str | None, typer.Option(help="math, code or custom; by default as the data looks.")] = None,
    tuning: Annotated[
        str | None, typer.Option(help="full, lora or qlora; by default full, of an adapter's folder lora.")
    ] = None,
    to: Annotated[Path, typer.Option(help="The recipe to write.")] = Path("recipe.yaml"),
) -> None:
    """Write a commented recipe for your model and data. Data of another form is written in one that it reads."""
    from selfcorrect.starting.init import init as write

    if task not in (None, "math", "code", "custom"):
        raise ConfigError(f"--task {task}: must be math, code or custom")
    if tuning not in (None, "full", "lora", "qlora"):
        raise ConfigError(f"--tuning {tuning}: must be full, lora or qlora")
    for line in write(model, data, to, question=question, answer=answer, task=task, tuning=tuning):  # type: ignore[arg-type]  # mypy does not narrow by `in`
        typer.echo(line)


def completion(shell: Annotated[str, typer.Argument(help="bash, zsh or fish.")]) -> None:
    """Print what completes commands and settings in a shell."""
    from selfcorrect.starting.completion import script

    typer.echo(script(shell))
