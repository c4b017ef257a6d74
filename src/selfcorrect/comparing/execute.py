"""Running the jobs of a comparison: some at a time, each in a process of its own, none twice."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from selfcorrect.comparing.pace import Pace
from selfcorrect.comparing.plan import Job
from selfcorrect.config import Config, LogConfig, TrainConfig
from selfcorrect.config.paths import absolute, own_files
from selfcorrect.config.recipe import dump, load_recipe
from selfcorrect.errors import ConfigError, UserError
from selfcorrect.models.freed import started_whole
from selfcorrect.runs.changes import Change, settings_changed, shown
from selfcorrect.runs.checkpoint import atomic_folder
from selfcorrect.runs.display import clock
from selfcorrect.runs.found import is_kept
from selfcorrect.runs.trackers import FOLDERS

_POLL = 0.2
_CHILD = (
    "import sys; from selfcorrect.grading.judge.confine import die_with_parent; die_with_parent(int(sys.argv.pop(1))); "
    "from selfcorrect.cli import main; main()"
)
_LEFT_BEHIND = ("final", "report.html", ".lock", *FOLDERS, "config*.yaml", "*.log")


class JobError(UserError):
    """Runs of the comparison failed; the page tells of the others."""


def is_done(job: Job) -> bool:
    """Whether the run is complete. Raises ConfigError where the folder holds a run with other settings."""
    made = job.path / "config.yaml"
    if not made.exists():
        return False
    refuse_changed([job])
    return (job.path / "final").exists() if job.trains else any((job.path / "evaluations").glob("*.json"))


def refuse_changed(jobs: Sequence[Job]) -> None:
    """Raises ConfigError where runs were made with other settings than the comparison now names, with all of them.

    The settings of the first are told, and those of the others that differ in the same.
    """
    found = [(job, changes) for job in jobs if (changes := _changes(job))]
    if not found:
        return
    job, changes = found[0]
    told = ", ".join(f"{change.field} was {shown(change.old)} and is {shown(change.new)} now" for change in changes[:3])
    more = f", and {len(changes) - 3} more" if len(changes) > 3 else ""
    others = [str(other.path) for other, _ in found[1:]]
    besides = f"; so were {', '.join(others[:5])}{' ...' if len(others) > 5 else ''}" if others else ""
    raise ConfigError(
        f"{job.path}{f' (method {job.method})' if job.method else ''} was made with other settings than the comparison "
        f"now names: {told}{more}{besides}. Put them back, give the comparison another name, or remove "
        f"{'these folders' if others else 'that folder'} to make {'them' if others else 'it'} anew"
    )


def _changes(job: Job) -> list[Change]:
    made = job.path / "config.yaml"
    if not made.exists():
        return []
    before, now = _made_by(load_recipe(made)), _made_by(absolute(job.config))
    if not (isinstance(before, TrainConfig) and isinstance(now, TrainConfig)):
        return [Change("kind", before.kind, now.kind)]
    others = [own for own in own_files(now) if not is_kept(own.file, job.path / own.kept)]
    edited = [Change(own.setting, f"what {own.kept} in it holds", "something else") for own in others]
    return settings_changed(before, now) + edited


def is_done_at(path: Path) -> bool:
    """Whether a run of a shared first stage is complete."""
    return (path / "final").exists()


def _made_by(config: Config) -> Config:
    """The settings that a run's numbers come from: how the cores were divided, and what is logged, are none of them."""
    changed: dict[str, object] = {"threads": None}
    if isinstance(config, TrainConfig):
        changed["log"] = LogConfig()
        changed["checkpoint"] = config.checkpoint.model_copy(update={"keep": 2, "minutes": None})
    return config.model_copy(update=changed)


class Process(Protocol):
    """A command under way: what is asked of a subprocess.Popen."""

    returncode: int | None

    def poll(self) -> int | None: ...
    def wait(self) -> int: ...
    def terminate(self) -> None: ...


Launch = Callable[[list[str], Path], Process]


def launch(arguments: list[str], log: Path) -> Process:
    """`selfcorrect` with these arguments, in a process of its own that writes to `log` and ends when this one does."""
    command = [sys.executable, "-c", _CHILD, str(os.getpid()), *arguments]
    with log.open("ab") as out:
        started = started_whole(os.environ)
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=started)


class Runner:
    """Keeps `parallel` runs going. say: told of every end; launch: how a command is started.

    todo: the completions that all runs will sample, for the time that is left.
    """

    def __init__(self, parallel: int, todo: int, say: Callable[[str], None], launch: Launch = launch) -> None:
        self._parallel, self._pace, self._say, self._launch = parallel, Pace(todo), say, launch
        self._running: dict[Process, tuple[Job, float]] = {}
        self._failed: dict[str, str] = {}
        self._ended = 0

    def run(self, jobs: Sequence[Job]) -> dict[str, str]:
        """All jobs that are not done; a job waits for the one whose traces it may use.

        Returns why some failed, by name. On Ctrl-C and SIGTERM they end their step and keep it, before it goes on up.
        """
        waiting = [job for job in jobs if not is_done(job)]
        total = len(waiting)
        self._failed, self._ended = {}, 0
        try:
            while waiting or self._running:
                busy = {job.path for job in waiting} | {job.path for job, _ in self._running.values()}
                ready = [job for job in waiting if job.after not in busy]
                while ready and len(self._running) < self._parallel:
                    job = ready.pop(0)
                    waiting.remove(job)
                    self._running[self._start(job)] = (job, time.monotonic())
                time.sleep(_POLL)
                self._reap(total)
                if (left := self._pace.due([job for job, _ in self._running.values()])) is not None:
                    self._say(f"about {clock(left)} left for the whole comparison, by what is sampled so far")
        except KeyboardInterrupt:
            self._say(f"stopping: {len(self._running)} runs end their step and keep it")
            for process in self._running:  # where the terminal's Ctrl-C has reached them too, it is the same signal
                process.terminate()
            for process in self._running:
                process.wait()
            raise
        finally:
            for process in self._running:  # whatever ended this, no run goes on unseen
                process.terminate()
        return self._failed

    def _start(self, job: Job) -> Process:
        log = job.path.with_name(f"{job.path.name}.log")
        log.parent.mkdir(parents=True, exist_ok=True)
        if job.shared and not (job.path / "config.yaml").exists():
            fork(job.shared, job.config, job.path)
        if job.trains and (job.path / "config.yaml").exists():
            arguments = ["train", "--resume", str(job.path)]
        else:
            if job.after and job.after.exists():
                _take_traces(job.after, job.path)
            if job.base and job.trains:
                _take_base(job.base, job.path)
            recipe = job.path.with_name(f"{job.path.name}.yaml")
            recipe.write_text(dump(absolute(job.config)), encoding="utf-8")
            arguments = ["train" if job.trains else "evaluate", str(recipe)]
        return self._launch(arguments, log)

    def _reap(self, total: int) -> None:
        for process in [process for process in self._running if process.poll() is not None]:
            job, since = self._running.pop(process)
            self._ended += 1
            left = self._pace.ended(job, [other for other, _ in self._running.values()])
            if process.returncode:
                log = job.path.with_name(f"{job.path.name}.log")
                told = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:]
                why = f"status {process.returncode}: {''.join(told)} (see {log})"
                self._failed[job.name] = f"run {job.name} failed with {why}"
                self._say(self._failed[job.name])
            else:
                self._say(
                    f"[{self._ended}/{total}] {job.name} done in {clock(time.monotonic() - since)}; about "
                    f"{clock(left)} left for the whole comparison"
                )


def fork(source: Path, config: TrainConfig, path: Path) -> None:
    """Begin a run where another one, of its first stage alone, ended."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_folder(path) as temporary:
        shutil.copytree(source, temporary, dirs_exist_ok=True, ignore=shutil.ignore_patterns(*_LEFT_BEHIND))
        (temporary / "config.yaml").write_text(dump(absolute(config)), encoding="utf-8")


def _take_traces(source: Path, path: Path) -> None:
    """The first iteration's traces of another run; the collector takes them where they are the ones it would sample."""
    (path / "traces").mkdir(parents=True, exist_ok=True)
    for file in (source / "traces").glob("*-1.json*"):
        shutil.copyfile(file, path / "traces" / f"shared-{file.name}")


def _take_base(source: Path, path: Path) -> None:
    """The base model's evaluation of a run that begins with the same model, problems and draws; the JSON last."""
    if not (source / "evaluations" / "base.json").exists():
        return
    (path / "evaluations").mkdir(parents=True, exist_ok=True)
    for name in [*sorted(file.name for file in (source / "evaluations").glob("base[.@]*jsonl")), "base.json"]:
        partial = path / "evaluations" / f".{name}.tmp"
        shutil.copyfile(source / "evaluations" / name, partial)
        partial.replace(path / "evaluations" / name)
