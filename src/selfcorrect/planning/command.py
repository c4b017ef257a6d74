"""The command `selfcorrect plan`."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from selfcorrect.errors import ConfigError

if TYPE_CHECKING:
    from selfcorrect.planning.plan import Plan, Turn
    from selfcorrect.planning.work import Lengths

_USUAL = "h100"
_TIMING = ", and timing some of its layers on this processor (half a minute for small models, minutes for wide ones)"


def plan(
    recipe: Annotated[Path, typer.Argument(help="A YAML recipe, or the name of a shipped one.", metavar="RECIPE")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Settings to replace.", metavar="[KEY=VALUE]...")
    ] = None,
    gpu: Annotated[
        str | None,
        typer.Option(help="A card of the table in docs/plan.md, or cpu for this machine's; by default h100."),
    ] = None,
    gpus: Annotated[int, typer.Option(min=1, help="Cards of one machine.")] = 1,
    nodes: Annotated[int, typer.Option(min=1, help="Machines.")] = 1,
    serving: Annotated[
        int | None,
        typer.Option(min=1, help="Further cards for the recipe's vllm.server; as few as hold it by default."),
    ] = None,
    price: Annotated[float | None, typer.Option(min=0.0, help="Dollars for one card and hour.")] = None,
    attempt_tokens: Annotated[float | None, typer.Option(min=1.0, help="Of an attempt, in the mean.")] = None,
    prompt_tokens: Annotated[float | None, typer.Option(min=1.0, help="Of a first prompt, in the mean.")] = None,
    reverse: Annotated[
        bool, typer.Option("--reverse", help="Also the largest micro-batch, the longest attempt, the cheapest card.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object in place of lines.")] = False,
) -> None:
    """Predict the memory, time and cost of a recipe. From config.json and the recipe; no weights are loaded.

    Exit status 1 where it does not fit.
    """
    from selfcorrect.config import TrainConfig
    from selfcorrect.config.recipe import load_recipe

    config = load_recipe(recipe, overrides or [])
    if not isinstance(config, TrainConfig):
        raise ConfigError(f"{recipe} is of kind {config.kind}; plan takes recipes of kind train")
    from selfcorrect.planning.hardware import CPU  # torch
    from selfcorrect.planning.plan import devices_for, make_plan, turns
    from selfcorrect.planning.work import assumed_lengths

    lengths = assumed_lengths(config, attempt_tokens, prompt_tokens)
    if attempt_tokens and attempt_tokens > config.rollouts.max_new_tokens:
        raise ConfigError(
            f"--attempt-tokens {attempt_tokens:g} is above rollouts.max_new_tokens = {config.rollouts.max_new_tokens}, "
            "where attempts are cut off"
        )
    if gpu is None:
        _say(f"for an {_USUAL}; --gpu names another card, or cpu for this machine's processor")
    gpu = gpu or _USUAL
    devices = devices_for(config, gpu, gpus, nodes, price, serving)
    _say("rehearsing a step" + (_TIMING if gpu == CPU else ""))
    made = make_plan(config, devices, lengths)
    better = list(turns(made, lengths, _say))
    backwards = _reverse(made, config, lengths) if reverse else {}
    for line in [_as_json(made, better, backwards)] if as_json else _lines(made, better, backwards):
        typer.echo(line)
    if not made.fits:
        raise typer.Exit(1)


def _as_json(made: "Plan", better: "list[Turn]", backwards: dict[str, Any]) -> str:
    from selfcorrect.planning.page import row

    ways = [{"overrides": turn.overrides, "peak_bytes": turn.plan.memory.peak} for turn in better]
    return json.dumps(row(made) | {"turns": ways, "reverse": backwards}, indent=1)


def _lines(made: "Plan", better: "list[Turn]", backwards: dict[str, Any]) -> Iterator[str]:
    from selfcorrect.planning.page import lines, turned

    yield from (*lines(made), *turned(made, better))
    yield from (f"{name.replace('_', ' ')}: {value}" for name, value in backwards.items())


def _say(text: str) -> None:
    """What goes on, beside what is printed."""
    typer.echo(text, err=True)


def _reverse(made: "Plan", config: Any, lengths: "Lengths") -> dict[str, Any]:
    from selfcorrect.planning.plan import cheapest_card, largest_micro_batch, longest_attempt

    cheapest = cheapest_card(made, config, lengths, _say) if made.devices.card else None
    found: dict[str, Any] = {
        "largest_micro_batch": largest_micro_batch(made, _say), "longest_attempt": longest_attempt(made, _say),
    }  # fmt: skip
    if made.devices.card:
        card = cheapest and cheapest.devices.card
        found["cheapest_card"] = (
            f"{card.name}, {cheapest.dollars:,.0f} dollars in {cheapest.hours:,.0f} hours"
            if card and cheapest
            else None
        )
    return found
