"""Sinks for a run's numbers and some of its rollouts: tensorboard, trackio, wandb. None can take the run with it."""

import importlib
import importlib.util
import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from selfcorrect.config import TrainConfig
from selfcorrect.errors import ConfigError, one_line
from selfcorrect.evaluation.flat import flat
from selfcorrect.types import Rollout

FOLDERS = ("tensorboard", "wandb")  # that trackers make in a run's


class Tracker:
    """A sink for flat metrics and tables of rollouts; subclasses wrap one library each."""

    name = "tracker"

    def log(self, values: Mapping[str, float], step: int) -> None:
        raise AssertionError("abstract")

    def show(self, name: str, table: Sequence[Mapping[str, str | float]], step: int) -> None:
        """table: rows that all have the same columns."""
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

    def show(self, name: str, table: Sequence[Mapping[str, str | float]], step: int) -> None:
        self._writer.add_text(name, markdown(table), step)

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

    def show(self, name: str, table: Sequence[Mapping[str, str | float]], step: int) -> None:
        rows: list[Any] = [list(row.values()) for row in table]
        if self.name == "trackio":  # which leaves `columns` unread
            rows = [dict(row) for row in table]
        self._library.log({name: self._library.Table(columns=list(table[0]), data=rows)}, step=step)

    def close(self) -> None:
        self._library.finish()


class Trackers:
    """The trackers of one run. One that fails is told of once and left out from then on."""

    def __init__(
        self, trackers: Sequence[Tracker] = (), say: Callable[[str], None] = lambda text: None, rollouts: int = 0
    ) -> None:  # fmt: skip
        """rollouts: how many of those that `show` is given go into a table."""
        self._trackers, self._say, self._rollouts = list(trackers), say, rollouts

    def log(self, row: Mapping[str, Any], step: int) -> None:
        """A row of numbers, however nested, to all of them; its step beside them, as some keep that name for it."""
        values = numbers({name: value for name, value in row.items() if name != "step"})
        self._tell(lambda tracker: tracker.log(values, step))

    def show(self, name: str, rollouts: Sequence[Rollout], step: int) -> None:
        """A few of the rollouts, spread over all of them, as a table; of the same problems the same ones each time."""
        if rollouts and self._rollouts:
            few = rollouts[:: max(1, len(rollouts) // self._rollouts)][: self._rollouts]
            self._tell(lambda tracker: tracker.show(name, [tabled(rollout) for rollout in few], step))

    def close(self) -> None:
        self._tell(lambda tracker: tracker.close())

    def _tell(self, deed: Callable[[Tracker], None]) -> None:
        for tracker in list(self._trackers):
            try:
                deed(tracker)
            except Exception as error:  # noqa: BLE001 - whatever a library raises: the run's folder holds the same
                self._trackers.remove(tracker)
                self._say(
                    f"warning: {tracker.name} failed ({one_line(error)}); the run goes on without it, and "
                    "metrics.jsonl holds the numbers"
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
            if config.log.trackers is None:
                say(f"warning: {name} cannot be started ({one_line(error)}); the run goes on without it")
                continue
            Trackers(made, say).close()
            raise ConfigError(
                f"log.trackers: {name} cannot be started: {one_line(error)}; log in to it, or leave it out with "
                "log.trackers=[]"
            ) from error
    return Trackers(made, say, config.log.rollouts_tracked)


def numbers(row: Mapping[str, Any]) -> dict[str, float]:
    """Nested numbers -> {"rewards/t1": 0.4, ...}; texts and nulls are left out."""
    return {
        name: float(value) for name, value in flat(row).items()
        if isinstance(value, int | float) and math.isfinite(value)
    }  # fmt: skip


def tabled(rollout: Rollout) -> dict[str, str | float]:
    """A rollout as a row: {"id", "prompt", "t1/text", "t1/outcome", "t1/reward", "t2/text", ...}."""
    row: dict[str, str | float] = {"id": _sendable(rollout.problem.id), "prompt": _sendable(rollout.problem.prompt)}
    for number, attempt in enumerate(rollout.attempts, 1):
        row[f"t{number}/text"] = _sendable(attempt.completion.text)
        row |= {f"t{number}/outcome": str(attempt.grade.outcome), f"t{number}/reward": float(attempt.grade.reward)}
    return row


def markdown(table: Sequence[Mapping[str, str | float]]) -> str:
    """Row after row; what a model wrote stands indented, as code, so that no mark in it is taken for markup."""
    cells = [[f"**{name}**\n\n{_indented(str(value))}" for name, value in row.items()] for row in table]
    return "\n\n---\n\n".join("\n\n".join(row) for row in cells)


def _indented(text: str) -> str:
    return textwrap.indent(text, "    ", lambda line: True)


def _sendable(text: str) -> str:
    """Without halves of surrogate pairs, which UTF-8 has no bytes for."""
    return text.encode(errors="replace").decode()
