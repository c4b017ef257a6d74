"""A run's numbers and texts as flat records, a list of mappings: what pandas, polars and csv make a table of."""

from pathlib import Path
from typing import Any

from selfcorrect.analysis.read import json_lines
from selfcorrect.config.paths import at_home, json_object
from selfcorrect.errors import DataError
from selfcorrect.evaluation.flat import flat, flat_rollout

_LOGS = {"steps": "metrics.jsonl", "alarms": "alarms.jsonl"}


def records(run: str | Path, of: str = "steps") -> list[dict[str, Any]]:
    """Flat records of a run folder, which may still be written (docs/run_folder.md says what the fields are).

    of: steps (a record a training step, rewards/t1, rewards/t2, ...), evaluations (a record each, base first,
    summary/accuracy/t1/value, ...), alarms, rollouts (those that training kept, t1/text, t1/outcome, ...), or the name
    of an evaluation (NAME@WORDING of another wording), for its rollouts. Raises DataError where there is no such thing.
    """
    folder = at_home(run, "run")
    if not (folder / "config.yaml").is_file():
        raise DataError(f"run = {str(run)!r} is no run folder (no config.yaml in it); name one, like runs/mine")
    if of in _LOGS:
        return [flat(row) for row in json_lines(folder / _LOGS[of])]
    files = (folder / "evaluations").glob("*.json")
    found = {file.stem: told for file in files if (told := json_object(file))}  # else it is still in the writing
    names = sorted(found, key=lambda name: (name != "base", found[name].get("step", 0), name))
    if of == "evaluations":
        return [flat(found[name]) for name in names]
    file = folder / "rollouts.jsonl" if of == "rollouts" else folder / "evaluations" / f"{of}.rollouts.jsonl"
    if of != "rollouts" and not file.is_file():
        known = ", ".join([*_LOGS, "evaluations", "rollouts", *names])
        raise DataError(f"of = {of!r}: {folder} has no evaluation of that name; there are {known}")
    return [flat_rollout(row) for row in json_lines(file)]
