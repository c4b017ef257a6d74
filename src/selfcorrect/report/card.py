"""The card of an exported model: what it is, what it scored with intervals, how it was made (pure)."""

import json
import re
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

import yaml

from selfcorrect.config.paths import PATHS
from selfcorrect.config.yaml12 import Dumper, load
from selfcorrect.evaluation.caution import caution
from selfcorrect.evaluation.metrics import Estimate, Summary
from selfcorrect.report.load import Run
from selfcorrect.report.wording import capital, interval, percent, points, without_folders

_NAME_PLACES = (*PATHS, "path", "reference", "output")
_ABOUT = (
    "Trained with selfcorrect to write a first attempt at a problem and, asked to look again, a second one (SCoRe, "
    "arXiv 2409.12917; by which objectives, the recipe below says). What came of it is in the results."
)


def card(name: str, kind: str, base: str, run: Run | None, place: str) -> str:
    """README.md as the hub shows it.

    kind: adapter or model; base: what it was trained from; place: where it lies in its run, as final or models/STAGE.
    """
    head = {
        "library_name": "peft" if kind == "adapter" else "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["self-correction", "score", "selfcorrect"],
    }
    if _on_the_hub(base):
        head["base_model"] = base
    front = ["---", *(f"{key}: {json.dumps(value)}" for key, value in head.items()), "---", ""]
    told = [*front, f"# {name}", "", *([_ABOUT, ""] if run else [])]
    told += [f"Base model: `{base if _on_the_hub(base) else PurePath(base).name}`. {_USE[kind]}", ""]
    if run:
        told += [*_results(run, place), *_made(run)]
    else:
        told += [
            "It lies in no run of selfcorrect: nothing is known here of its training, and it has no results.",
            "",
        ]
    return "\n".join(told)


_USE = {
    "adapter": "This is an adapter: load the base model, then `PeftModel.from_pretrained(model, FOLDER)`.",
    "model": "This is a whole model: `AutoModelForCausalLM.from_pretrained(FOLDER)`.",
}


def _on_the_hub(base: str) -> bool:
    """Whether a base model is named as the hub names it, and not by a folder."""
    return base.count("/") == 1 and not base.startswith(("/", ".", "~"))


def _results(run: Run, place: str) -> list[str]:
    if not run.evaluations:
        return ["## Results", "", "None of its run's evaluations is written.", ""]
    attempts = max(len(e.summary.accuracy) for e in run.evaluations)
    each = [f"accuracy, attempt {a}" for a in range(1, attempts + 1)]
    columns = ["", *each, "last less first", "fixed", "broken", "n"]
    rows = [[capital(e.label), *_cells(e.summary, attempts)] for e in run.evaluations]
    row = run.final if place == "final" else next((e for e in run.evaluations if place == f"models/{e.name}"), None)
    which = f"This is `{place}` of the run"
    if row:
        which += f", the row of which says: {row.label}"
    elif place == "best":
        which += ", of which no row is: the weights that did best in training"
    cautions = [
        f"{capital(e.label)}: nothing can be concluded on self-correction: {told}.\n"
        for e in run.evaluations
        if (told := caution(e.summary))
    ]
    about = dict.fromkeys(f"{e.about or e.task}, split {e.split}, {e.decoding}" for e in run.evaluations)
    return [
        "## Results", "",
        f"Percent of problems with 95 % intervals; {'; '.join(about)}. Fixed: wrong, then right; broken: the reverse.",
        f"{which}.", "", _line(columns), _line(["---", *["---:"] * (len(columns) - 1)]), *map(_line, rows), "",
        *cautions,
    ]  # fmt: skip


def _cells(summary: Summary, attempts: int) -> list[str]:
    if not summary.n:
        return [*["-"] * (attempts + 3), "0"]
    accuracy = [_share(estimate) for estimate in summary.accuracy] + ["-"] * (attempts - len(summary.accuracy))
    if len(summary.accuracy) < 2:
        return [*accuracy, "-", "-", "-", f"{summary.n:,}"]
    delta = f"{points(summary.delta.value)} ({interval(summary.delta)})"
    return [*accuracy, delta, _share(summary.fixed), _share(summary.broken), f"{summary.n:,}"]


def _share(estimate: Estimate) -> str:
    return f"{percent(estimate.value)} ({percent(estimate.low)} to {percent(estimate.high)})"


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _made(run: Run) -> list[str]:
    command, versions = run.environment.get("command"), run.environment.get("versions", {})
    told = ["## How it was made", ""]
    if command:
        text = command if isinstance(command, str) else " ".join(map(str, command))
        told += ["", f"    {without_folders(text)}", ""]
    if isinstance(versions, Mapping) and versions:
        told += ["With " + ", ".join(f"{name} {version}" for name, version in versions.items()) + ".", ""]
    recipe = _recipe(run)
    longest = max([2, *map(len, re.findall("`+", recipe))])
    fence = "`" * (longest + 1)  # a prompt may hold fences of its own
    return [*told, "The recipe:", "", f"{fence}yaml", recipe, fence, ""]


def _recipe(run: Run) -> str:
    """The run's, its paths without their folders: those of one machine, which a published card would tell."""
    try:
        data = load(run.config_text)
    except (yaml.YAMLError, ValueError, RecursionError):
        return without_folders(run.config_text).rstrip()
    plain = {key: _without_places(str(key), value) for key, value in data.items()} if isinstance(data, dict) else data
    return yaml.dump(plain, Dumper=Dumper, sort_keys=False, allow_unicode=True, width=100).rstrip()


def _without_places(key: str, value: Any) -> Any:
    if isinstance(value, dict):
        return {each: _without_places(str(each), item) for each, item in value.items()}
    if isinstance(value, list):
        return [_without_places(key, item) for item in value]
    if not isinstance(value, str) or "prompt" in key:  # a prompt is told as the model reads it
        return value
    return PurePath(value).name if key in _NAME_PLACES and value.startswith(("/", "~")) else without_folders(value)
