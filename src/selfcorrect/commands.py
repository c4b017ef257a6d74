"""Commands that hand on what a run made: `export` its model, `traces` what it was fine-tuned on."""

from pathlib import Path
from typing import Annotated

import typer

from selfcorrect.errors import ConfigError


def export(
    source: Annotated[Path, typer.Argument(help="A run, or a model folder.", metavar="RUN")],
    target: Annotated[Path, typer.Argument(help="The folder to write.", metavar="OUT")],
    merge: Annotated[bool, typer.Option("--merge", help="Merge an adapter into its base: an ordinary model.")] = False,
    push: Annotated[str | None, typer.Option(help="Send it to the hub, private.", metavar="OWNER/NAME")] = None,
) -> None:
    """Write a run's model for others, an adapter or merged into an ordinary folder, with a card of what it scored."""
    from selfcorrect.export import export as write

    folder = write(source, target, merge=merge, push=push, say=lambda text: typer.echo(text, err=True))
    typer.echo(f"model: {folder}")


def traces(
    source: Annotated[Path, typer.Argument(help="A run, or one of its files of traces.", metavar="RUN")],
    target: Annotated[Path, typer.Argument(help="The file to write.", metavar="FILE")],
    form: Annotated[
        str, typer.Option("--format", help="conversation (one JSON list), or messages (JSON Lines).")
    ] = "messages",
) -> None:
    """Write collected traces in a format that other trainers read; `traces: FILE` of a stage reads both back."""
    from selfcorrect.learning.formats import FORMATS, convert

    if form not in FORMATS:
        raise ConfigError(f"--format {form}: must be one of {', '.join(FORMATS)}")
    typer.echo(f"traces: {target} ({convert(source, target, form):,})")
