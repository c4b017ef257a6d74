"""What commands share; and small ones that read what a run made: `export` its model, `traces` what it was tuned on,
`diff` two of its evaluations.
"""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from selfcorrect.config.paths import new_folder
from selfcorrect.errors import ConfigError, TrainingInterrupted

Overrides = Annotated[
    list[str] | None,
    typer.Argument(help="Settings that replace the recipe's, like seed=1 stages.stage1.steps=50.", metavar="KEY=VALUE"),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]


class Grouped(TyperCommand):
    """A command whose help has its options in groups, by their `rich_help_panel`."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Arguments, options without a group, then every group."""
        groups: dict[str, list[tuple[str, str]]] = {"Arguments": [], "Options": []}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            kind = "Arguments" if param.param_type_name == "argument" else "Options"
            if record is not None:
                groups.setdefault(getattr(param, "rich_help_panel", None) or kind, []).append(record)
        for name, records in groups.items():
            with formatter.section(name):
                formatter.write_dl(records)


SECTIONS = {
    "Begin": ("demo", "init", "recipes", "check", "explain", "plan", "tasks", "completion"),
    "Train": ("train", "compare", "make-repair-set", "traces", "prune"),
    "Measure": ("evaluate", "diff", "grade", "analyse", "scale", "report"),
    "Use": ("play", "serve", "export"),
}


class Sections(TyperGroup):
    """The commands in sections, as a newcomer meets them; those of no section at the end."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        rest = [name for name in self.list_commands(ctx) if name not in chain(*SECTIONS.values())]
        for title, names in {**SECTIONS, "Other": rest}.items():
            room = formatter.width - max(map(len, self.commands)) - 6
            found = [(name, self.commands[name].get_short_help_str(room)) for name in names if name in self.commands]
            if found:
                with formatter.section(title):
                    formatter.write_dl(found)


def loading() -> None:
    """What takes some seconds, where nothing is to be seen."""
    if sys.stderr.isatty() and "torch" not in sys.modules:
        typer.echo("loading torch and transformers ...", err=True)


@contextmanager
def stopped() -> Iterator[None]:
    """An interruption is told here, as typer ends on a KeyboardInterrupt without a word."""
    try:
        yield
    except TrainingInterrupted as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(error.status) from None


def export(
    source: Annotated[Path, typer.Argument(help="A run, or a model folder.", metavar="RUN")],
    target: Annotated[Path, typer.Argument(help="The folder to write.", metavar="OUT")],
    merge: Annotated[bool, typer.Option("--merge", help="Merge an adapter into its base: an ordinary model.")] = False,
    push: Annotated[str | None, typer.Option(help="Send it to the hub, private.", metavar="OWNER/NAME")] = None,
) -> None:
    """Write a run's model for others. An adapter, or merged into an ordinary folder; with a card of what it scored."""
    new_folder(target)  # before torch is loaded
    from selfcorrect.exporting import export as write

    folder = write(source, target, merge=merge, push=push, say=lambda text: typer.echo(text, err=True))
    typer.echo(f"model: {folder}")


def diff(
    a: Annotated[Path, typer.Argument(help="A run, its final, or an evaluation's folder or file.", metavar="A")],
    b: Annotated[Path, typer.Argument(help="Another one.", metavar="B")],
    evaluation: Annotated[
        str | None, typer.Option(help="Which evaluation of a folder with several; the last.", metavar="NAME")
    ] = None,
    common: Annotated[bool, typer.Option("--common", help="Pair the problems that both have.")] = False,
    as_json: AsJson = False,
) -> None:
    """Set two evaluations side by side. Accuracies, delta, i->c and c->i of both, and B less A, paired by problem.

    They must be of the same problems, with the same decoding, samples and attempts.
    """
    from selfcorrect.report.difference import diff as compare

    found = compare(a, b, evaluation=evaluation, common=common)
    typer.echo(json.dumps(asdict(found)) if as_json else str(found))


def traces(
    source: Annotated[Path, typer.Argument(help="A run, or one of its files of traces.", metavar="RUN")],
    target: Annotated[Path, typer.Argument(help="The file to write.", metavar="FILE")],
    form: Annotated[
        str, typer.Option("--format", help="conversation (one JSON list), or messages (JSON Lines).")
    ] = "messages",
    everything: Annotated[bool, typer.Option("--all", help="What a run collected and did not train on, too.")] = False,
) -> None:
    """Write what a run was fine-tuned on for other trainers. `traces: FILE` of a stage reads both formats back."""
    from selfcorrect.learning.formats import FORMATS, convert

    if form not in FORMATS:
        raise ConfigError(f"--format {form}: must be one of {', '.join(FORMATS)}")
    typer.echo(f"traces: {target} ({convert(source, target, form, everything=everything)})")
