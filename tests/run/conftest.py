"""Runs that the tests of this folder share, made once."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from selfcorrect.errors import TrainingInterrupted
from selfcorrect.runs.display import Observer
from selfcorrect.tasks.countdown import Countdown
from tests.support.runs import StopAt, brief, end_state, go, lucky_grade, recipe
from tests.support.tiny import tiny_lm

ENDS = (3, 5, 7, 9)


class Listener(Observer):
    """Keeps what a run says."""

    def __init__(self) -> None:
        self.messages: list[str] = []

    def message(self, text: str) -> None:
        self.messages.append(text)


class Whole(NamedTuple):
    """A run that was never stopped: its folder and its end state."""

    path: Path
    state: dict[str, object]


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of one layer: a run is mostly the calls of its layers, and what several may mix up is seen by tests/unit."""
    folder = tmp_path_factory.mktemp("model")
    tiny_lm("llama", "eager", ENDS, seed=3, layers=1).save(folder, torch.float32)
    return folder


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Whole:
    return _whole(recipe(tmp_path_factory.mktemp("whole"), model))


@pytest.fixture(scope="session")
def whole_brief(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Whole:
    return _whole(brief(tmp_path_factory.mktemp("brief"), model))


def _whole(settings: dict[str, Any]) -> Whole:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Countdown, "grade", lucky_grade)
        run = go(settings)
    return Whole(run, end_state(run))


@pytest.fixture
def lucky(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lucky grades in the test's own process too."""
    monkeypatch.setattr(Countdown, "grade", lucky_grade)


@pytest.fixture(scope="session")
def stopped(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Callable[[int, Path], Path]:
    """stopped(step, target): a copy at `target` of the run as Ctrl-C during that step leaves it.

    The run is made by the first test that asks, and kept for others: ask before anything is patched.
    """
    kept: dict[int, Path] = {}

    def copy(step: int, target: Path) -> Path:
        if step not in kept:
            settings = recipe(tmp_path_factory.mktemp(f"stopped-{step}"), model)
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(Countdown, "grade", lucky_grade)
                with pytest.raises(TrainingInterrupted):
                    go(settings, StopAt(step))
            kept[step] = Path(settings["output"]) / "run"
        return Path(shutil.copytree(kept[step], target))

    return copy
