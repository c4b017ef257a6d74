"""Whole runs of a tiny model in processes of their own, which tests may kill, and what must be the same after.

The model is random and never right, so attempts are graded by a hash of their text: a third of them is right.
That gives rewards, gradients and a `best` that changes, in a run of a second or two.
"""

import hashlib
import json
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from selfcorrect.config import TrainConfig
from selfcorrect.recipe import load_recipe, validate
from selfcorrect.types import Grade, Outcome, Problem

PRELOAD = [
    "selfcorrect.run", "selfcorrect.cli", "safetensors.torch", "transformers.models.llama.modeling_llama",
    "transformers.models.auto.modeling_auto", "transformers.models.auto.tokenization_auto",
]  # fmt: skip
NOT_REPEATED = ("seconds", "seconds_by_part", "tokens_per_second")
STAGE_STEPS = 4


def recipe(output: Path, model: Path, name: str = "run", **changes: Any) -> dict[str, Any]:
    """Two stages of four steps, a checkpoint every other step: about a second."""
    stage = {"steps": STAGE_STEPS, "learning_rate": 0.003}
    return {
        "kind": "train", "name": name, "output": str(output), "threads": 1,
        "model": {"path": str(model), "device": "cpu", "precision": "float32"},
        "task": {"max_number": 12, "limit": 12, "prompt": "{numbers} : {target}", "correction_prompt": "?"},
        "rollouts": {"problems_per_step": 2, "rollouts_per_problem": 4, "max_new_tokens": 5},
        "stages": [{"name": "one", "objective": "stage1", **stage}, {"name": "two", "objective": "stage2", **stage}],
        "optimizer": {"warmup_steps": 1, "micro_batch": 4},
        "evaluation": {"problems": 8, "controls": False},
        "checkpoint": {"every": 2, "smoothing": 0.5},
        "log": {"trackers": [], "rollouts_every": 2, "rollouts_kept": 2},
        **changes,
    }  # fmt: skip


def config(*args: Any, **kwargs: Any) -> TrainConfig:
    """`recipe`, validated."""
    validated = validate(recipe(*args, **kwargs))
    assert isinstance(validated, TrainConfig)
    return validated


def lucky_grade(self: Any, problem: Problem, text: str) -> Grade:
    """Stands in for Countdown.grade."""
    right = hashlib.sha256(f"{problem.id} {text}".encode()).digest()[0] % 3 == 0
    return Grade(Outcome.CORRECT if right else Outcome.WRONG, float(right), text)


def go(settings: Mapping[str, Any]) -> None:
    """Start the run, or resume it where one has begun: what a person, or a cluster, does again and again."""
    import torch

    from selfcorrect.display import Observer
    from selfcorrect.run import resume, start
    from selfcorrect.tasks.countdown import Countdown

    torch.set_num_threads(1)
    Countdown.grade = lucky_grade  # type: ignore[method-assign]
    path = Path(settings["output"]) / settings["name"]
    if (path / "config.yaml").exists():
        resume(path, Observer())
    else:
        validated = validate(settings)
        assert isinstance(validated, TrainConfig)
        start(validated, Observer())


def command_line(*arguments: str) -> None:
    """The command line with lucky grades; for `python -c`, where a process must be sent signals."""
    from selfcorrect import cli
    from selfcorrect.tasks.countdown import Countdown

    Countdown.grade = lucky_grade  # type: ignore[method-assign]
    sys.argv = ["selfcorrect", *arguments]
    cli.main()


class Process:
    """`go` in a process that is cheap to start: its server has everything imported."""

    def __init__(self, settings: Mapping[str, Any], hook: Callable[[], None] | None = None) -> None:
        """hook: called in the process before the run; module-level, as it is pickled."""
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOAD)
        ready, theirs = context.Pipe(duplex=False)
        self._process = context.Process(target=_child, args=(dict(settings), hook, theirs))
        self._process.start()
        theirs.close()
        ready.recv()  # everything before this is the test's, not the run's

    def kill_after(self, seconds: float) -> bool:
        """SIGKILL after so long; False where the run had ended by then."""
        self._process.join(seconds)
        if self._process.exitcode is None:
            os.kill(self._process.pid or 0, signal.SIGKILL)
        return self.ended() != 0

    def ended(self) -> int:
        """Wait for its end: 0 done, -9 killed; anything else is an error of the run and fails the test."""
        self._process.join(120)
        code = self._process.exitcode
        self._process.close()
        assert code in (0, -signal.SIGKILL), f"the run ended with status {code}; its traceback is on stderr"
        return code


def _child(settings: dict[str, Any], hook: Callable[[], None] | None, ready: Connection) -> None:
    if hook:
        hook()
    ready.send(None)
    go(settings)


def read_rows(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def end_state(run: Path) -> dict[str, Any]:
    """Everything that resuming must give back bit for bit: by file, contents without times."""
    state: dict[str, Any] = {}
    for file in sorted(path for path in run.rglob("*") if path.is_file()):
        name = str(file.relative_to(run))
        if name in ("environment.json", "config.yaml", "report.html"):
            state[name] = "there"
        elif name == "metrics.jsonl":
            state[name] = [{k: v for k, v in row.items() if k not in NOT_REPEATED} for row in read_rows(file)]
        elif name.startswith("evaluations/") and not name.endswith(".rollouts.jsonl"):
            state[name] = {k: v for k, v in json.loads(file.read_text()).items() if k != "seconds"}
        else:
            state[name] = hashlib.sha256(file.read_bytes()).hexdigest()
    return state


def check_same(run: Path, expected: Mapping[str, Any]) -> None:
    """The run ended as the one that was never stopped. The file that differs is named."""
    found = end_state(run)
    assert sorted(found) == sorted(expected)
    for name, contents in expected.items():
        assert found[name] == contents, f"{name} differs"


@contextmanager
def lucky_grades() -> Any:
    """For runs inside the test's own process."""
    import pytest

    from selfcorrect.tasks.countdown import Countdown

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Countdown, "grade", lucky_grade)
        yield


def load_config(run: Path) -> TrainConfig:
    loaded = load_recipe(run / "config.yaml")
    assert isinstance(loaded, TrainConfig)
    return loaded
