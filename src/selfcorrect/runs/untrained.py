"""A run folder in which no step is kept yet: it stands in nobody's way."""

import contextlib
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from selfcorrect.config.paths import USED
from selfcorrect.errors import UserError
from selfcorrect.runs.interrupts import alone

_MADE = (  # by a run before its first checkpoint
    USED, "asked.json", "environment.json", "evaluations", "checkpoints", "tensorboard", "metrics.jsonl",
    "rollouts.jsonl", "between.jsonl", "alarms.jsonl", "changes.jsonl", "report.html", "config.yaml",
)  # fmt: skip


def has_earned(path: Path) -> bool:
    """Whether anything of a run is worth keeping: a checkpoint, an evaluation, traces."""
    kept = ("checkpoints/*", "evaluations/*.json", "traces/*", "models/*", "final")
    return any(True for pattern in kept for _ in path.glob(pattern))


@contextmanager
def nothing_left_of_a_failure(path: Path, new: bool) -> Iterator[None]:
    """Where a new run fails before it has earned anything, its files go: the mended command then finds no run there."""
    try:
        yield
    except UserError:
        if new and not has_earned(path):
            _remove(path)
        raise


def clear(path: Path) -> None:
    """Take away a run that has earned nothing, but for problems of an evaluation that had not ended.

    What they depend on is kept with them, and says whether they serve. Raises ConfigError where it is being trained.
    """
    with alone(path):
        _remove(path, but="evaluations")


def _remove(path: Path, but: str = "") -> None:
    for name in _MADE:
        if name == but:
            continue
        if (path / name).is_dir():
            shutil.rmtree(path / name)
        else:
            with contextlib.suppress(FileNotFoundError):
                (path / name).unlink()
