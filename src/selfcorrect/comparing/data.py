"""What the runs of a comparison are asked: where data changes between two calls of it, they cannot be compared."""

import json
from collections.abc import Sequence
from contextlib import closing
from itertools import chain
from pathlib import Path

from selfcorrect.config import CountdownConfig, SupervisedStage, TrainConfig
from selfcorrect.config.paths import ASKED, absolute, asked_by
from selfcorrect.errors import ConfigError
from selfcorrect.evaluation.evaluate import digest
from selfcorrect.evaluation.kept import write_durably
from selfcorrect.runs.asked import file_digest
from selfcorrect.tasks import make_task
from selfcorrect.tasks.dataset import DataTask
from selfcorrect.types import Problem

_RUNS = ("*/config.yaml", "*/*/config.yaml", "search/shared/*/config.yaml")  # of a comparison, or of its repair/


def refuse_other_data(folder: Path, recipes: Sequence[TrainConfig]) -> None:
    """Keeps in `folder` what these recipes, of one task, are asked. Raises ConfigError where runs that are there were
    asked something else, and DataError where the data cannot be read.
    """
    made = any(any(folder.glob(pattern)) for pattern in _RUNS)
    before, now = asked_by(folder) if made else {}, _asked([absolute(recipe) for recipe in recipes])
    if other := [name for name, told in before.items() if now.get(name, told) != told]:
        raise ConfigError(
            f"{' and '.join(other)} changed since the first runs in {folder} were made, which cannot be compared with "
            f"runs on what is there now; put it back, give the comparison another name, or remove {folder} to make "
            "them anew"
        )
    if {**before, **now} != before:
        folder.mkdir(parents=True, exist_ok=True)
        write_durably(folder / ASKED, json.dumps({**before, **now}, indent=1) + "\n")


def _asked(recipes: Sequence[TrainConfig]) -> dict[str, str]:
    """By what it is, a digest of all data that the recipes name; problems that are generated are not data."""
    first, found = recipes[0], dict[str, Sequence[Problem]]()
    with closing(make_task(first.task)) as task:
        if isinstance(task, DataTask):
            found["the training problems"] = list(task.train) if any(recipe.stages for recipe in recipes) else []
            found["the held-out problems"] = task.test
        elif isinstance(first.task, CountdownConfig) and first.task.data:
            found["the held-out problems"] = task.load(first.task.data)
        held_out = (recipe.checkpoint.held_out for recipe in recipes)
        for path in filter(None, chain(first.evaluation.external, held_out)):
            found[f"the problems of {path}"] = task.load(path)
    told = {name: digest(problems, None, None) for name, problems in found.items() if problems}
    for stage in chain.from_iterable(recipe.stages for recipe in recipes):
        if isinstance(stage, SupervisedStage) and stage.traces and Path(stage.traces).is_file():
            told[f"the traces of {stage.traces}"] = file_digest(stage.traces)
    return told
