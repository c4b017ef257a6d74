"""Sinks for a run's numbers: tensorboard, trackio, wandb. None of them can take the run with it."""

import importlib
import importlib.util
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from selfcorrect.config import TrainConfig
from selfcorrect.errors import ConfigError, one_line
from selfcorrect.evaluation.flat import flat

FOLDERS = ("tensorboard", "wandb")  # that trackers make in a run's


class Tracker:
    """A sink for flat metrics; subclasses wrap one library each."""

    name = "tracker"

    def log(self, values: Mapping[str, float], step: int) -> None:
        raise AssertionError("abstract")

    def close(self) -> None:
        """Flush what is buffered."""


class TensorBoard(Tracker):
    name = "tensorboard"

    def __init__(self, path: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(str(path), purge_step=step + 1 if step else None)

    def log(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class WandbLike(Tracker):
    """wandb, and trackio, which has the same interface. A run that goes on goes on there too, under its identity."""

    def __init__(self, library: str, path: Path, config: TrainConfig, started: str) -> None:
        self.name = library
        identity = f"{path.name}-{''.join(filter(str.isalnum, started))}"
        extra: dict[str, Any] = {"name": identity}
        if library == "wandb":
            extra = {"name": path.name, "id": identity, "dir": str(path), "allow_val_change": True}
        self._library: Any = importlib.import_module(library)
        settings = config.model_dump(mode="json")
        self._library.init(project=config.log.project, config=settings, resume="allow", **extra)

    def log(self, values: Mapping[str, float], step: int) -> None:
        self._library.log(dict(values), step=step)

    def close(self) -> None:
        self._library.finish()


class Trackers:
    """The trackers of one run. One that fails is told of once and left out from then on."""

    def __init__(self, trackers: Sequence[Tracker] = (), say: Callable[[str], None] = lambda text: None) -> None:
        self._trackers, self._say = list(trackers), say

    def log(self, row: Mapping[str, Any], step: int) -> None:
        """A row of numbers, however nested, to all of them; its step beside them, as some keep that name for it."""
        values = numbers({name: value for name, value in row.items() if name != "step"})
        for tracker in list(self._trackers):
            self._try(tracker, lambda tracker=tracker: tracker.log(values, step))  # type: ignore[misc]

    def close(self) -> None:
        for tracker in list(self._trackers):
            self._try(tracker, tracker.close)

    def _try(self, tracker: Tracker, deed: Callable[[], None]) -> None:
        try:
            deed()
        except Exception as error:  # noqa: BLE001 - whatever a library raises: metrics.jsonl holds the same numbers
            self._trackers.remove(tracker)
            self._say(
                f"warning: {tracker.name} failed ({one_line(error)}); the run goes on without it, and metrics.jsonl "
                "holds the numbers"
            )


def tracker_names(config: TrainConfig) -> tuple[str, ...]:
    """The recipe's trackers; tensorboard by default where it is installed. Raises ConfigError for a missing one."""
    wanted = config.log.trackers
    if wanted is None:
        return ("tensorboard",) if importlib.util.find_spec("tensorboard") else ()
    for name in wanted:
        if importlib.util.find_spec(name) is None:
            raise ConfigError(f"log.trackers names {name}, which is not installed; pip install 'selfcorrect[{name}]'")
    return wanted


def make_trackers(
    path: Path, config: TrainConfig, started: str, step: int, say: Callable[[str], None] = lambda text: None
) -> Trackers:
    """Trackers of a run that goes on after `step`; started: when it was begun, by which they know it again.

    Raises ConfigError, in one line, where one that the recipe names cannot be started; those that write into the run
    folder come last.
    """
    names = tracker_names(config)
    made: list[Tracker] = []
    for name in sorted(names, key=lambda name: name == "tensorboard"):
        try:
            if name == "tensorboard":
                made.append(TensorBoard(path / "tensorboard", step))
            else:
                made.append(WandbLike(name, path, config, started))
        except Exception as error:  # libraries raise kinds of their own: no login, no network, no such project
            trackers = Trackers(made, say)
            if config.log.trackers is None:
                say(f"warning: {name} cannot be started ({one_line(error)}); the run goes on without it")
                continue
            trackers.close()
            raise ConfigError(
                f"log.trackers: {name} cannot be started: {one_line(error)}; log in to it, or leave it out with "
                "log.trackers=[]"
            ) from error
    return Trackers(made, say)


def numbers(row: Mapping[str, Any]) -> dict[str, float]:
    """Nested numbers -> {"rewards/t1": 0.4, ...}; texts and nulls are left out."""
    return {
        name: float(value) for name, value in flat(row).items()
        if isinstance(value, int | float) and math.isfinite(value)
    }  # fmt: skip
