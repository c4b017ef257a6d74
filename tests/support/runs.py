"""Whole runs of a tiny model in processes of their own, which tests may kill, and what must be the same after.

The model is random and never right, so attempts are graded by a hash of their text: a third of them is right.
That gives rewards, gradients and a `best` that changes, in a run of a second or two.
"""

import hashlib
import json
import multiprocessing
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from selfcorrect import cli
from selfcorrect.config import TrainConfig
from selfcorrect.config.recipe import validate
from selfcorrect.learning.record import StepResult
from selfcorrect.runs.display import Observer
from selfcorrect.runs.run import resume, start
from selfcorrect.tasks.countdown import Countdown
from selfcorrect.types import Grade, Outcome, Problem

NOT_REPEATED = ("seconds", "seconds_by_part", "tokens_per_second")
STAGE_STEPS = 4
DEVICE = os.environ.get("TEST_DEVICE", "cpu")


def recipe(output: Path, model: Path, name: str = "run", **changes: Any) -> dict[str, Any]:
    """Two stages of four steps, a checkpoint every other step: about a second."""
    stage = {"steps": STAGE_STEPS, "learning_rate": 0.003}
    return {
        "kind": "train", "name": name, "output": str(output), "threads": 1,
        "model": {"path": str(model), "device": DEVICE, "precision": "float32"},
        "task": {"max_number": 12, "limit": 12, "prompt": "{numbers} : {target}", "correction_prompt": "?"},
        "rollouts": {"problems_per_step": 2, "rollouts_per_problem": 4, "max_new_tokens": 5, "rows_at_once": 512},
        "stages": [{"name": "one", "objective": "stage1", **stage}, {"name": "two", "objective": "stage2", **stage}],
        "optimizer": {"warmup_steps": 1, "micro_batch": 4},
        "evaluation": {"problems": 8, "controls": False},
        "checkpoint": {"every": 2, "smoothing": 0.5},
        "log": {"trackers": [], "rollouts_every": 2, "rollouts_kept": 2},
        **changes,
    }  # fmt: skip


def brief(output: Path, model: Path, name: str = "run", **changes: Any) -> dict[str, Any]:
    """One stage of two steps, a checkpoint after each: for what begins or ends a run, whatever lies between."""
    stages = [{"name": "one", "objective": "stage1", "steps": 2, "learning_rate": 0.003}]
    few = {"problems": 4, "controls": False}
    return recipe(output, model, name, **{"stages": stages, "evaluation": few, "checkpoint": {"every": 1}, **changes})


def tuned(settings: dict[str, Any], tuning: str, **changes: Any) -> dict[str, Any]:
    """The recipe with another tuning; `changes` are of its model."""
    return {**settings, "model": {**settings["model"], "tuning": tuning, **changes}}


def config(*args: Any, **kwargs: Any) -> TrainConfig:
    """`recipe`, validated."""
    return valid(recipe(*args, **kwargs))


def valid(settings: Mapping[str, Any]) -> TrainConfig:
    """A recipe, validated."""
    validated = validate(settings)
    assert isinstance(validated, TrainConfig)
    return validated


def lucky_grade(self: Any, answers: Sequence[tuple[Problem, str]]) -> list[Grade]:
    """Stands in for Countdown.grade."""
    lucky = [hashlib.sha256(f"{problem.id} {text}".encode()).digest()[1] % 2 == 0 for problem, text in answers]
    return [
        Grade(Outcome.CORRECT if right else Outcome.WRONG, float(right), text)
        for right, (_, text) in zip(lucky, answers, strict=True)
    ]


def go(settings: Mapping[str, Any], observer: Observer | None = None) -> Path:
    """Start the run, or resume it where one has begun: what a person, or a cluster, does again and again."""
    path = Path(settings["output"]) / settings["name"]
    if (path / "config.yaml").exists():
        return resume(path, observer or Observer())
    return start(valid(settings), observer or Observer())


class After(Observer):
    """Does something as step `step` ends."""

    def __init__(self, step: int, deed: Callable[[], object]) -> None:
        self._step, self._deed = step, deed

    def step_done(self, result: StepResult) -> None:
        if result.step == self._step:
            self._deed()


class StopAt(After):
    """Ctrl-C while step `step` is under way."""

    def __init__(self, step: int, times: int = 1) -> None:
        super().__init__(step, lambda: list(map(signal.raise_signal, [signal.SIGINT] * times)))


class KillPoint:
    """Dies by SIGKILL at the first file operation under `run` whose label is `at`; notes the labels met in `notes`.

    Python tells an audit hook of every operation before it takes place. A file opened for writing has two points:
    before it is there, and when half of it is written.
    """

    def __init__(self, run: Path, at: str = "", notes: Path | None = None) -> None:
        self._run, self._at, self._notes = f"{run}{os.sep}", at, notes

    def __call__(self) -> None:
        sys.addaudithook(self._hear)

    def _steps(self) -> int:
        try:
            descriptor = os.open(f"{self._run}metrics.jsonl", os.O_RDONLY)
        except FileNotFoundError:
            return 0
        lines = os.read(descriptor, 1 << 20).count(b"\n")
        os.close(descriptor)
        return lines

    def _hear(self, event: str, details: tuple[Any, ...]) -> None:
        if event in ("os.rename", "os.mkdir", "shutil.rmtree"):
            self._meet(event, details[0], None)
        elif event == "os.remove" and details[1] != -1:  # inside of shutil.rmtree
            self._meet(event, f"{self._run}{details[0]}", None)
        elif event == "open" and isinstance(details[0], str | Path) and details[2] & (os.O_WRONLY | os.O_RDWR):
            self._meet("before", details[0], None)
            self._meet("within", details[0], details[2])

    def _meet(self, event: str, path: Any, flags: int | None) -> None:
        if not str(path).startswith(self._run):
            return
        name = re.sub(r"(\.partial-[\w-]+)-(?!old)\w{8}(?=/|$)", r"\1", str(path)[len(self._run) :])
        label = f"after step {self._steps()}: {event} {name}"
        if self._notes:
            with self._notes.open("a") as stream:
                stream.write(f"{label}\n")
        if label == self._at:
            self._at = ""  # what follows is heard too
            if flags is not None:
                os.write(os.open(path, flags), b'{"step": 1, "half')
            os.kill(os.getpid(), signal.SIGKILL)


class Process:
    """`go` in a process that is cheap to start: its server has everything imported (tests/support/forked.py)."""

    def __init__(
        self, settings: Mapping[str, Any], hook: Callable[[], None] | None = None,
        deed: Callable[[Mapping[str, Any]], object] = go,
    ) -> None:  # fmt: skip
        """hook: called in the process before the deed; both module-level, as they are pickled."""
        context = multiprocessing.get_context("forkserver")
        self._ours, theirs = context.Pipe(duplex=False)
        self._process = context.Process(target=_child, args=(dict(settings), hook, deed, theirs))
        self._process.start()
        theirs.close()
        self._began: float = self._ours.recv()  # everything before this is the test's, not the run's

    def kill_after(self, seconds: float) -> bool:
        """SIGKILL once it has used so much processor time; False where the run had ended by then."""
        pid = self._process.pid
        assert pid
        while self._process.exitcode is None and _processor_seconds(pid) - self._began < seconds:
            self._process.join(0.002)
        if self._process.exitcode is None:
            os.kill(pid, signal.SIGKILL)
        return self.killed()

    def killed(self) -> bool:
        """Wait for its end: False where the run was done. An error of the run fails the test."""
        self._process.join(300)
        code = self._process.exitcode
        self._process.close()
        assert code in (0, -signal.SIGKILL), f"the run ended with status {code}; its traceback is on stderr"
        return code != 0

    def seconds(self) -> float:
        """Processor time of the whole run; waits for its end."""
        ended: float = self._ours.recv()
        assert not self.killed()
        return ended - self._began


class CommandLine(Process):
    """`selfcorrect` with these arguments, in a process like the above; what it writes goes to files in `folder`."""

    def __init__(self, folder: Path, *arguments: str, hook: Callable[[], None] | None = None) -> None:
        self.out, self.err = folder / "stdout", folder / "stderr"
        for file in (self.out, self.err):
            file.touch()
        super().__init__({"arguments": arguments, "streams": [str(self.out), str(self.err)]}, hook, _command)

    def wait_for(self, file: Path, text: str) -> None:
        """Until `text` stands in one of its files."""
        while text not in file.read_text():
            assert self._process.is_alive(), self.err.read_text()
            time.sleep(0.01)

    def send(self, signum: int) -> None:
        assert self._process.pid
        os.kill(self._process.pid, signum)

    def ended(self) -> tuple[int | None, str, str]:
        """Its status, and what it wrote to stdout and stderr."""
        self._process.join(120)
        return self._process.exitcode, self.out.read_text(), self.err.read_text()


def _command(settings: Mapping[str, Any]) -> None:
    for descriptor, file in enumerate(settings["streams"], 1):
        os.dup2(os.open(file, os.O_WRONLY | os.O_APPEND), descriptor)
    sys.argv = ["selfcorrect", *settings["arguments"]]
    cli.main()


def _processor_seconds(pid: int) -> float:
    """Processor time that a process has used; its clock's number is Linux's. 0 once it is gone."""
    try:
        return time.clock_gettime((~pid << 3) | 2)
    except OSError:
        return 0.0


def _child(
    settings: dict[str, Any], hook: Callable[[], None] | None, deed: Callable[[Mapping[str, Any]], object],
    ours: Connection,
) -> None:  # fmt: skip
    Countdown.grade = lucky_grade  # type: ignore[method-assign]
    if hook:
        hook()
    ours.send(time.process_time())
    deed(settings)
    ours.send(time.process_time())


def read_rows(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def end_state(run: Path) -> dict[str, Any]:
    """Everything that resuming must give back bit for bit: by file, contents without times."""
    state: dict[str, Any] = {}
    for file in sorted(path for path in run.rglob("*") if path.is_file()):
        name = str(file.relative_to(run))
        if "checkpoints/damaged-" in name:
            continue
        if name in ("environment.json", "config.yaml", "config.used.yaml", "report.html"):
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
    assert not (other := found.keys() ^ expected.keys()), other
    for name, contents in expected.items():
        assert found[name] == contents, f"{name} differs"
