"""A run folder in which no step is kept yet: it stands in nobody's way."""

import contextlib
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from selfcorrect.config.paths import ASKED, OWN, USED
from selfcorrect.errors import ConfigError, UserError
from selfcorrect.runs.checkpoint import PARTIAL
from selfcorrect.runs.interrupts import LOCK, alone
from selfcorrect.runs.trackers import FOLDERS

_MADE = (  # by a run before its first checkpoint
    USED, OWN, ASKED, "environment.json", "evaluations", "checkpoints", *FOLDERS, "metrics.jsonl",
    "rollouts.jsonl", "between.jsonl", "alarms.jsonl", "changes.jsonl", "report.html", "plan.json", "config.yaml",
)  # fmt: skip


# That a start which was killed may leave behind before config.yaml says that there is a run.
_BEGINNING = (LOCK, USED, "environment.json")
# Endings of what may be there before it of its own evaluation: problems kept as it had not ended, what an endpoint
# answered for it, all of it where a comparison gives it to its runs on the way.
_EVALUATED = (".json", ".jsonl", ".answers.jsonl", ".rollouts.jsonl", "@*.rollouts.jsonl")


def check_not_others(path: Path, evaluation: str = "base") -> None:
    """Raises ConfigError where a folder without a run holds files: they may be anyone's, and some would be replaced.

    evaluation: the name of the one that may have begun there.
    """
    if path.exists() and not path.is_dir():
        raise ConfigError(f"{path} is a file, and a folder is written there; choose another output=... or name=...")
    found = sorted(each.name for each in path.iterdir() if not _is_beginning(each, evaluation)) if path.is_dir() else []
    others = [file.name for file in (path / "evaluations" / "kept").glob("*.json") if file.stem != evaluation]
    if found == ["evaluations"] and others:
        raise ConfigError(
            f"{path} holds the beginning of another evaluation (evaluations/kept/{others[0]}), which its own "
            "`selfcorrect evaluate` command goes on with; choose another output=... or name=..., or remove the folder"
        )
    if found:
        more = f" and {len(found) - 3} more" if len(found) > 3 else ""
        raise ConfigError(
            f"{path} holds {', '.join(found[:3])}{more} and no config.yaml, so it is no run to go on with, and its "
            "files may be someone's; choose another output=... or name=..., or remove the folder"
        )


def _is_beginning(file: Path, evaluation: str) -> bool:
    own = [f"{evaluation}{ending}" for ending in _EVALUATED]
    lent = {"evaluations": ["kept", *own, *(f".{name}.tmp" for name in own)], "traces": ["shared-*"]}
    if file.name in lent and file.is_dir():
        return all(any(each.match(form) for form in lent[file.name]) for each in file.rglob("*"))
    if file.name.startswith(PARTIAL) and file.is_dir():  # the save that is tried before anything else
        return True
    if file.name in (*FOLDERS, OWN):  # made before anything else but the lock, which says that a run did it
        return (file.parent / LOCK).exists()
    return file.name in _BEGINNING or file.name in {f".{name}.tmp" for name in (*_BEGINNING, "config.yaml")}


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
