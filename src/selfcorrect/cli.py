"""The command line. Heavy libraries are imported inside the commands, so `--help` is quick."""

import errno
import json
import os
import shlex
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from selfcorrect import __version__
from selfcorrect.commands import AsJson, Grouped, Overrides, Sections, diff, export, loading, traces
from selfcorrect.commands import stopped as _stopped
from selfcorrect.config.paths import at_home
from selfcorrect.errors import ConfigError, TrainingInterrupted, UserError
from selfcorrect.evaluate_command import evaluate
from selfcorrect.models.freed import begin
from selfcorrect.planning.command import plan
from selfcorrect.serving.command import serve
from selfcorrect.starting import commands as starting
from selfcorrect.starting.completion import prepare as prepare_completion
from selfcorrect.starting.completion import shipped
from selfcorrect.waiting import wait_briefly

if TYPE_CHECKING:
    from selfcorrect.types import Rollout

app = typer.Typer(
    name="selfcorrect",
    cls=Sections,
    no_args_is_help=True,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

RecipeArgument = Annotated[Path, typer.Argument(help="A YAML recipe.", metavar="RECIPE")]
EXTERNAL_SET = "countdown/d1_cd3_test.jsonl"


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"selfcorrect {__version__}")
        raise typer.Exit


@app.callback()
def common(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and end.")
    ] = False,
) -> None:
    """SCoRe: train language models to correct themselves by reinforcement learning (arXiv 2409.12917)."""


@app.command(epilog="Example: selfcorrect demo seed=1 --name second")
def demo(
    overrides: Overrides = None,
    name: Annotated[str, typer.Option(help="The run's name; its folder is runs/NAME.")] = "demo",
) -> None:
    """Train the shipped lab model by both stages.

    It takes ten to fifteen minutes on two idle CPU cores, and ends with a table and a report.
    """
    from selfcorrect.config.shipped import shipped_recipe
    from selfcorrect.runs.recipes import train_config

    external = data_folder() / EXTERNAL_SET
    extra = [f"evaluation.external={json.dumps([str(external)])}"] if external.is_file() else []
    if not extra:
        typer.echo(
            f"note: no external test set ({external} is not there; SELFCORRECT_DATA may name another data folder)"
        )
    config = train_config(shipped_recipe("demo"), f"name={name}", *extra, *(overrides or []))
    run = Path(config.output) / config.name
    if (run / "final").is_dir():
        raise ConfigError(f"{run} is complete; open {run / 'report.html'}, or train again with --name NAME")
    typer.echo(
        "demo: a model of a million parameters learns to correct itself at arithmetic by both stages, with evaluations "
        "before, between and after: ten to fifteen minutes on two idle CPU cores"
    )
    if (run / "config.yaml").is_file():  # what was overridden when it began is no change
        _train_and_report(run, overrides or [])
    else:
        _train_and_report(config)


@app.command(epilog="Example: selfcorrect train countdown model.path=./my-model name=mine")
def train(
    recipe: Annotated[str | None, typer.Argument(help="A YAML recipe.", metavar="RECIPE")] = None,
    overrides: Overrides = None,
    resume: Annotated[Path | None, typer.Option(help="Go on with this run folder.", metavar="RUN")] = None,
) -> None:
    """Run a recipe, or go on with a run that was stopped. It ends with a table of its evaluations and report.html.

    A run goes on, or is extended, with the settings it has; `--resume RUN stages.stage2.steps=300` gives its last stage
    more steps. What would change results that are there already is refused.
    """
    from selfcorrect.config.recipe import load_recipe

    if resume is not None:
        settings = [*([recipe] if recipe is not None else []), *(overrides or [])]
        if recipe is not None and "=" not in recipe:
            raise ConfigError(f"{resume} goes on with the recipe it was begun with; leave out {recipe}")
        _train_and_report(resume, settings)
        return
    if recipe is None:
        raise ConfigError("name either a recipe, or a run folder with --resume RUN")
    try:
        config = load_recipe(recipe, overrides or [])
        if config.kind == "compare":
            raise ConfigError(f"{recipe} is of kind compare; run it with `selfcorrect compare {shlex.quote(recipe)}`")
    except UserError as error:
        _tell_others(error)
        raise
    _train_and_report(config)


@app.command(epilog="Example: selfcorrect grade --task code outputs.jsonl task.dataset=humaneval")
def grade(
    recorded: Annotated[Path, typer.Argument(help="Recorded attempts (docs/recorded.md).", metavar="RECORDED")],
    task: Annotated[str, typer.Option(help="math, code, countdown or custom.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Settings of the task, like task.dataset=humaneval.", metavar="KEY=VALUE")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="File for the verdicts; RECORDED.graded.jsonl.")] = None,
    allow_unsandboxed: Annotated[bool, typer.Option(help="Run programs even where they cannot be confined.")] = False,
    as_json: AsJson = False,
) -> None:
    """Grade recorded completions by the paper's metrics. Verdicts with reasons go into a file. Resumable."""
    from dataclasses import asdict

    from selfcorrect.runs.recipes import to_grade
    from selfcorrect.tasks.sources import check_there

    if task not in ("math", "code", "countdown", "custom"):
        raise ConfigError(f"--task {task}: must be math, code, countdown or custom")
    settings = [*(overrides or []), *(["task.allow_unsandboxed=true"] if allow_unsandboxed else [])]
    check_there(str(at_home(recorded, "recorded")), "RECORDED")
    to_grade(task, settings)
    from selfcorrect import api  # and torch
    from selfcorrect.runs.display import summary_lines
    from selfcorrect.runs.progress import on_stderr

    with on_stderr() as watcher:
        summary, target = api.grade(recorded, task, *settings, output=output, observer=watcher)
    if as_json:
        told = asdict(summary)
        if len(summary.accuracy) < 2:  # of one attempt nothing else is known
            told |= dict.fromkeys(("delta", "fixed", "broken", "fix_rate", "unchanged"))
        if not summary.wrong_first:  # of none, no share was mended
            told["fix_rate"] = None
        typer.echo(json.dumps({"task": task, "verdicts": str(target), "summary": told}))
        return
    for line in summary_lines(summary):
        typer.echo(line)
    typer.echo(f"verdicts: {target}")


@app.command(epilog="Example: selfcorrect play '30 7 2 = 39' --model runs/demo/final")
def play(
    problem: Annotated[
        str, typer.Argument(help="Countdown: '30 7 2 = 39'; math, custom: an id or a question; else an id.")
    ],
    overrides: Overrides = None,
    model: Annotated[str, typer.Option(help="A model folder, a run, a hub name, or lab.")] = "lab",
    recipe: Annotated[Path | None, typer.Option(help="Where the task and its prompts come from.")] = None,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 is greedy.")] = 0.0,
    seed: Annotated[int | None, typer.Option(help="Of the draws; by default the recipe's.")] = None,
) -> None:
    """One problem, all attempts, coloured by their grades."""
    from selfcorrect.runs.recipes import config_for

    config_for(model, recipe, overrides or [], "play")  # before torch is loaded
    loading()
    from selfcorrect import api

    played = api.play(problem, *(overrides or []), model=model, recipe=recipe, temperature=temperature, seed=seed)
    _print_rollout(played)


@app.command(
    name="make-repair-set",
    epilog="Example: selfcorrect make-repair-set ./my-model --recipe code.yaml --output repair.jsonl",
)
def make_repair_set(
    model: Annotated[str, typer.Argument(help="A model folder or hub name, or a recipe, for its model.")],
    output: Annotated[Path, typer.Option(help="The JSON Lines file to write.")],
    overrides: Overrides = None,
    recipe: Annotated[Path | None, typer.Option(help="Where the task comes from: math or code.")] = None,
    split: Annotated[str, typer.Option(help="train, or test for the held-out problems.")] = "train",
    problems: Annotated[int | None, typer.Option(min=1, help="How many problems; by default all.")] = None,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 is greedy.")] = 1.0,
) -> None:
    """Keep the attempts that a model fails at, to repair them. It tries a task once; the task repair reads them."""
    from selfcorrect.config.paths import check_asked_paths
    from selfcorrect.models.files import model_of, resolve_path
    from selfcorrect.runs.recipes import is_recipe, train_config

    if split not in ("train", "test"):
        raise ConfigError(f"--split {split}: must be train or test")
    if recipe is None and not is_recipe(model):
        raise ConfigError(f"name the task with --recipe RECIPE, or a recipe in place of the model {model!r}")
    config = train_config(recipe or model, *(overrides or []))
    recipe, model = (recipe, model) if recipe else (Path(model), config.model.path)
    resolve_path(model_of(model))
    check_asked_paths(config)
    loading()
    from selfcorrect import api  # and torch
    from selfcorrect.runs.progress import on_stderr

    with _stopped(), on_stderr() as watcher:
        rows = api.make_repair_set(
            model, output, *(overrides or []), recipe=recipe, split="train" if split == "train" else "test",
            problems=problems, temperature=temperature, observer=watcher,
        )  # fmt: skip
    purpose = "train on" if split == "train" else "evaluate on"
    typer.echo(f"repair set: {output} ({rows} of split {split}, to {purpose})")


@app.command(epilog="Example: selfcorrect compare compare_lab name=mine seeds=[0,1]")
def compare(recipe: RecipeArgument, overrides: Overrides = None) -> None:
    """Run every method on every seed under one budget. Reads a comparison file; writes one page and one table."""
    from selfcorrect.comparing.plan import check as check_comparison
    from selfcorrect.comparing.plan import chosen_methods
    from selfcorrect.config import CompareConfig
    from selfcorrect.config.recipe import load_recipe

    config = load_recipe(recipe, overrides or [])
    if not isinstance(config, CompareConfig):
        raise ConfigError(f"{recipe} is of kind {config.kind}; a comparison has kind: compare")
    check_comparison(chosen_methods(config))  # before torch is loaded
    loading()
    from selfcorrect.comparing.compare import compare as run_comparison

    with _stopped():
        folder = run_comparison(config, typer.echo)
    typer.echo(f"page: {folder / 'compare.html'}")
    typer.echo(f"table: {folder / 'compare.md'}")


@app.command(epilog="Example: selfcorrect analyse runs/mine")
def analyse(
    source: Annotated[Path, typer.Argument(help="A run folder, or a JSONL file of graded attempts.", metavar="SOURCE")],
    output: Annotated[Path | None, typer.Option(help="Where the figures go; by default SOURCE/analysis.")] = None,
) -> None:
    """Draw the paper's figures from what a run holds. Edit distances, flow, training, many attempts: SVG and CSV."""
    from selfcorrect.analysis import analyse as draw

    figures, folder = draw(source, output)
    for figure in figures:
        typer.echo(f"{folder / figure.name}.svg  {figure.title}")


@app.command(epilog="Example: selfcorrect scale runs/mine/final --most 32 --problems 100")
def scale(
    model: Annotated[str, typer.Argument(help="A model folder, a run, a hub name, or lab.", metavar="MODEL")],
    overrides: Overrides = None,
    output: Annotated[
        Path | None,
        typer.Option(help="A folder for samples and numbers; by default RUN/scaling, for the report."),
    ] = None,
    recipe: Annotated[Path | None, typer.Option(help="Where task, prompts and limits come from.")] = None,
    most: Annotated[int, typer.Option(help="The largest budget of solutions; a power of two.", min=2)] = 64,
    problems: Annotated[int, typer.Option(help="How many held-out problems.", min=1)] = 200,
    temperature: Annotated[float, typer.Option(help="Of sampling.", min=0.0)] = 0.7,
) -> None:
    """Compare more first attempts with correcting half as many. Majority vote at budgets 2 to 64."""
    from selfcorrect.runs.recipes import config_for

    config_for(model, recipe, overrides or [], "sample")  # before torch is loaded
    loading()
    from selfcorrect import api
    from selfcorrect.evaluation.told import estimate_text
    from selfcorrect.runs.progress import on_stderr
    from selfcorrect.sampling import scaling_folder

    folder = scaling_folder(model, output)
    with _stopped(), on_stderr() as watcher:
        points = api.scale(
            model, *(overrides or []), output=folder, recipe=recipe, most=most, problems=problems,
            temperature=temperature, observer=watcher,
        )  # fmt: skip
    typer.echo("budget  2K in parallel         K, each corrected      difference")
    for p in points:
        told = (estimate_text(p.parallel), estimate_text(p.corrected), estimate_text(p.gain, signed=True))
        typer.echo(f"{p.budget:<8}{told[0]:<23}{told[1]:<23}{told[2]}")
    typer.echo(f"picture: {folder / 'scaling.svg'}")


@app.command(epilog="Example: selfcorrect report runs/mine")
def report(run: Annotated[Path, typer.Argument(help="A run folder.", metavar="RUN")]) -> None:
    """Write RUN/report.html from what the run folder holds. It works while a run goes on."""
    from selfcorrect.report import write_report

    typer.echo(f"report: {write_report(run)}")


@app.command(epilog="Example: selfcorrect prune runs/mine")
def prune(run: Annotated[Path, typer.Argument(help="A finished run folder.", metavar="RUN")]) -> None:
    """Remove a finished run's checkpoints. Only resuming and extending need them; models and report stay."""
    from selfcorrect.models.sizing import size_text
    from selfcorrect.runs.disk import prune_run

    count, freed = prune_run(run)
    if not count:
        typer.echo(f"{run} holds no checkpoints; nothing to remove")
        return
    typer.echo(f"freed {size_text(freed)}: {count} checkpoints of {run}")
    typer.echo("it can no longer be resumed or extended; its models, evaluations, logs and report are as they were")


@app.command(epilog="Example: selfcorrect check recipe.yaml --load")
def check(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    load: Annotated[bool, typer.Option("--load", help="Load data and model too, and try what a run needs.")] = False,
    explained: Annotated[bool, typer.Option("--explain", help="Say above each setting what it means.")] = False,
) -> None:
    """Validate a recipe, and print every setting of it. Without --load nothing is loaded, nothing is run."""
    from selfcorrect.config import CompareConfig, TrainConfig
    from selfcorrect.config.commented import commented
    from selfcorrect.config.paths import check_paths
    from selfcorrect.config.recipe import dump, load_recipe

    config = load_recipe(recipe, overrides or [])
    found: Iterable[str] = ()
    if isinstance(config, CompareConfig):
        from selfcorrect.comparing.plan import costs

        found = costs(config)
    if isinstance(config, TrainConfig):
        check_paths(config)
        if load:
            from selfcorrect.runs.checks import tried

            loading()
            found = tried(config)
    elif load:
        raise ConfigError(f"--load tries recipes of kind train, and {recipe} is of kind {config.kind}")
    typer.echo(commented(config.model_dump(mode="json")) if explained else dump(config), nl=False)
    for line in found:  # below the settings, where they are seen
        typer.echo(f"# {line}")


@app.command(epilog="Example: selfcorrect recipes countdown --to mine.yaml")
def recipes(
    name: Annotated[
        str | None, typer.Argument(help="The one to copy; without it, all are listed.", autocompletion=shipped)
    ] = None,
    to: Annotated[Path | None, typer.Option(help="The file to write; by default NAME.yaml in this folder.")] = None,
) -> None:
    """List the shipped recipes, or copy one to change it. Every command finds them by name."""
    from selfcorrect.config.shipped import shipped_recipe, shipped_recipes

    known = shipped_recipes()
    if name is None:
        for each, about in known.items():
            typer.echo(f"{each:<{max(map(len, known))}}  {about}")
        return
    if name not in known:
        raise ConfigError(f"recipe {name!r}: none of that name is shipped; there are {', '.join(known)}")
    target = at_home(to or f"{name}.yaml", "--to")
    try:
        with target.open("x", encoding="utf-8") as file:
            file.write(shipped_recipe(name).read_text(encoding="utf-8"))
    except FileExistsError:
        raise ConfigError(f"{target} is there already; name another file with --to") from None
    typer.echo(f"recipe: {target}")


@app.command(epilog="Example: selfcorrect tasks")
def tasks() -> None:
    """List the tasks a recipe can name."""
    from selfcorrect.config.settings import sections

    for section in sections():
        if section.key == "task":
            typer.echo(f"{section.kind:<12} {section.meaning}")


app.command(cls=Grouped, epilog="Example: selfcorrect evaluate runs/mine/final evaluation.problems=200")(evaluate)
app.command(epilog="Example: selfcorrect init --model ./my-model --data problems.jsonl --to mine.yaml")(starting.init)
app.command(epilog="Example: selfcorrect explain rollouts.temperature")(starting.explain)
app.command(epilog="Example: selfcorrect completion bash >> ~/.bashrc")(starting.completion)
app.command(epilog="Example: selfcorrect diff runs/mine/evaluations/base.json runs/mine")(diff)
app.command(epilog="Example: selfcorrect export runs/mine ./mine --merge")(export)
app.command(epilog="Example: selfcorrect plan math_qwen2.5-7b-instruct_qlora --gpu rtx-4090")(plan)
app.command(epilog="Example: selfcorrect serve runs/mine --port 8000")(serve)
app.command(epilog="Example: selfcorrect traces runs/mine mine.jsonl --format messages")(traces)

_THAT_TRAIN = ("train", "demo", "plan")  # plan: it times layers that do


def data_folder() -> Path:
    """Where the public data files are looked for: SELFCORRECT_DATA, else ../shared/data."""
    return Path(os.environ.get("SELFCORRECT_DATA", "../shared/data"))


def main() -> None:
    """Entry point: user errors become one line on stderr and exit status 2, Ctrl-C status 130."""
    if sys.argv[1:2] and sys.argv[1] in _THAT_TRAIN:
        begin(__file__)
    wait_briefly()
    prepare_completion(app)
    try:
        app(standalone_mode=True)
    except SystemExit as ended:
        # typer ends on a KeyboardInterrupt without a word; a command that said what was kept does so from no cause
        if isinstance(getattr(ended.__context__, "__cause__", None), KeyboardInterrupt):
            typer.echo("stopped", err=True)
        raise
    except UserError as error:
        for line in str(error).splitlines():
            typer.echo(f"error: {line}", err=True)
        sys.exit(2)
    except OSError as error:
        if error.filename is None and error.errno != errno.ENOSPC:  # not about a file of the user's
            raise
        typer.echo(f"error: {error.filename or 'writing'}: {error.strerror}", err=True)
        sys.exit(2)


def _tell_others(error: UserError) -> None:
    """Of several processes this one has no recipe; those of other hosts may, and would wait for it."""
    from selfcorrect.parallel.launch import launched

    if launched():
        from selfcorrect.parallel.joining import joined

        with joined():
            raise error


def _train_and_report(what: "Path | object", overrides: Sequence[str] = ()) -> None:
    """what: a run folder to go on with, with these overrides, or a config to start."""
    from selfcorrect.config import LabBaseConfig, TrainConfig
    from selfcorrect.config.paths import check_paths
    from selfcorrect.parallel.launch import is_first, launched, refuse_several
    from selfcorrect.report import write_report
    from selfcorrect.runs.found import refuse_others, to_resume

    if launched() is None:  # before torch is loaded; of several processes one speaks, later
        if isinstance(what, TrainConfig):
            refuse_others(Path(what.output) / what.name, what)
            check_paths(what)
        elif isinstance(what, Path):
            to_resume(at_home(what, "--resume"), overrides)
        loading()
    from selfcorrect.report.ending import ending
    from selfcorrect.runs.display import make_observer
    from selfcorrect.runs.run import resume, start

    if isinstance(what, LabBaseConfig):
        from selfcorrect.lab.base import train_base

        refuse_several("kind: lab_base")
        typer.echo(f"model: {train_base(what, typer.echo)}")
        return
    observer = make_observer()
    try:
        run = start(what, observer) if isinstance(what, TrainConfig) else resume(Path(str(what)), observer, overrides)
    except TrainingInterrupted as error:
        if str(error):  # of several processes one speaks
            typer.echo(str(error), err=True)
        raise typer.Exit(error.status) from None
    if is_first():
        for line in ending(run):
            typer.echo(line)
        typer.echo(f"report: {write_report(run)}")


def _print_rollout(rollout: "Rollout") -> None:
    from rich.console import Console
    from rich.panel import Panel
    from rich.text import Text

    console = Console(highlight=False, markup=False)
    console.print(Text(rollout.problem.prompt, style="bold"))
    for number, attempt in enumerate(rollout.attempts, 1):
        grade = attempt.grade
        ungraded = grade.outcome == "grader_failed"
        colour = "yellow" if ungraded else "green" if grade.correct else "red"
        told = "not graded" if ungraded else str(grade.outcome)
        title = f"attempt {number}: {told}" + (f" ({grade.detail})" if grade.detail else "")
        text = Text("\n".join(line.strip() for line in attempt.completion.text.strip().splitlines()))
        console.print(Panel(text, title=Text(title, style=colour), title_align="left", border_style=colour, width=76))


if __name__ == "__main__":
    main()
