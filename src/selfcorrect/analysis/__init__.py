"""The paper's figures from what a run folder, or a file of graded attempts, holds.

Each analysis is a function that returns a Figure: a vector drawing with its numbers. `analyse` writes all that apply.
"""

from collections.abc import Sequence
from pathlib import Path

from selfcorrect.analysis.edits import edit_figure
from selfcorrect.analysis.figure import Figure
from selfcorrect.analysis.flow import flow_figure
from selfcorrect.analysis.read import evaluated, json_lines, json_object, logged, read_graded
from selfcorrect.analysis.training import attempts_figure, fixed_figure, progress_figures
from selfcorrect.analysis.votes import budgets_up_to, read_pools, scale_figure, scaling, votable
from selfcorrect.config.paths import at_home
from selfcorrect.errors import DataError
from selfcorrect.tasks.files import stem_of
from selfcorrect.types import Rollout

__all__ = ["Figure", "analyse", "figures_of"]


def analyse(source: str | Path, output: str | Path | None = None) -> tuple[list[Figure], Path]:
    """Write every figure that `source` has the data for, as SVG and CSV; returns them and the folder.

    source: a run folder, or a JSONL file of graded attempts. output: by default analysis/ in the run, or a folder
    beside the file. Raises DataError where there is nothing to analyse.
    """
    source = at_home(source, "source")
    figures = figures_of(source)
    if not figures and (source / "compare.json").exists():
        raise DataError(f"{source} is a comparison; name one of its runs: {source}/runs/METHOD-SEED")
    if not figures:
        raise DataError(f"{source}: nothing to analyse yet: no evaluation and no training step with two attempts")
    beside = source / "analysis" if source.is_dir() else source.with_name(f"{stem_of(source.name)}.analysis")
    folder = at_home(output or beside, "output")
    for figure in figures:
        figure.write(folder)
    return figures, folder


def figures_of(source: Path) -> list[Figure]:
    """All figures, in the paper's order."""
    if source.is_file():
        rows = {source.name: read_graded(source)}
        found = [
            edit_figure("edits", "How much the last attempt changes", rows),
            flow_figure(source.name, rows[source.name]),
        ]
        return [figure for figure in [*found, attempts_figure(rows)] if figure]
    if not source.exists():
        raise DataError(f"{source}: no such file or folder")
    by_name = evaluated(source)
    shown = _ends(by_name)
    found = [
        edit_figure("edits_held_out", "How much the last attempt changes, held-out problems", shown),
        edit_figure("edits_training", "How much the last attempt changes, while training", _training(source)),
        fixed_figure(json_lines(source / "between.jsonl")),
        *progress_figures(json_lines(source / "metrics.jsonl")),
        attempts_figure(shown),
        _scaling(source / "scaling"),
        *(flow_figure(name, rows, f"flow_{name}") for name, rows in by_name.items()),
    ]
    return [figure for figure in found if figure]


def _scaling(folder: Path) -> Figure | None:
    """Of the samples that `selfcorrect scale` left in a run."""
    pools = votable(read_pools(folder / "samples.jsonl"))
    about = json_object(folder / "samples.json")
    if not pools or "most" not in about:
        return None
    return scale_figure(scaling(pools, budgets_up_to(int(about["most"]))), len(pools), float(about["temperature"]))


def _ends(by_name: dict[str, list[Rollout]]) -> dict[str, Sequence[Rollout]]:
    """The base model's evaluation and the latest one."""
    names = list(by_name)
    if not names:
        return {}
    ends: dict[str, Sequence[Rollout]] = {"base model" if names[0] == "base" else names[0]: by_name[names[0]]}
    if len(names) > 1:
        ends[f"after {names[-1]}"] = by_name[names[-1]]
    return ends


def _training(run: Path) -> dict[str, Sequence[Rollout]]:
    """Logged training rollouts of the first and of the last tenth of the steps (at least the first and last logged)."""
    rows = logged(run / "rollouts.jsonl")
    rows = [each for each in rows if len(each[0].attempts) == len(rows[-1][0].attempts)]  # of the last stage's kind
    steps = sorted({int(line.get("step", 0)) for _, line in rows})
    if len(steps) < 2:
        return {}
    early, late = steps[0] + (steps[-1] - steps[0]) // 10, steps[-1] - (steps[-1] - steps[0]) // 10
    return {
        "early in training": [row for row, line in rows if line.get("step", 0) <= early],
        "late in training": [row for row, line in rows if line.get("step", 0) >= late],
    }
