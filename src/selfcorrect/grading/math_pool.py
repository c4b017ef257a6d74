"""Processes that compare answers, and are killed where they take too long.

A worker is a fresh interpreter (never a fork of the trainer) with an environment of three variables. It gets one
comparison at a time; the limits of each are kept here. A worker that hangs is killed and costs its own answer's limit;
an answer under which a worker dies gets a fresh worker, once; a worker that has answered RECYCLE times is replaced, so
that memory stays flat.
"""

import json
import os
import subprocess
import sys
import threading
import time
import weakref
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing import connection
from typing import Any

RECYCLE = 2000  # answers of one worker
START_SECONDS = 120.0  # for sympy to be imported on a busy machine
START_TRIES = 3
PATIENCE = 2.0  # wall limit over CPU limit: a worker that is kept waiting by others is not at fault
_LINE_LIMIT = 1 << 16
_RUN = "import sys; sys.path[:] = {path!r}; from selfcorrect.grading.math_worker import main; main({parent})"
_TICKS = os.sysconf("SC_CLK_TCK")

Job = dict[str, Any]
Reply = dict[str, Any]


@dataclass(eq=False)
class Worker:
    """One process, and the job it is at."""

    process: "subprocess.Popen[bytes]"
    started: float
    ready: bool = False
    answered: int = 0
    job: "_Task | None" = None
    job_since: float = 0.0
    job_cpu: float = 0.0
    buffer: bytes = b""

    @property
    def output(self) -> int:
        assert self.process.stdout is not None
        return self.process.stdout.fileno()

    def cpu_seconds(self) -> float | None:
        """CPU time used so far; None where the system does not say."""
        try:
            with open(f"/proc/{self.process.pid}/stat", "rb") as file:
                fields = file.read().rpartition(b")")[2].split()
        except OSError:
            return None
        return (int(fields[11]) + int(fields[12])) / _TICKS

    def give(self, task: "_Task") -> None:
        """Send one job. Raises OSError where the worker is gone."""
        self.job, self.job_since, self.job_cpu = task, time.monotonic(), self.cpu_seconds() or 0.0
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(task.job).encode("ascii") + b"\n")
        self.process.stdin.flush()

    def end(self) -> None:
        """Kill and reap; never fails."""
        self.process.kill()
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                try:
                    stream.close()
                except OSError:
                    continue
        self.process.wait()


@dataclass
class _Task:
    index: int
    job: Job
    tries: int = 0


@dataclass
class _Run:
    """The state of one batch."""

    waiting: deque[_Task]
    replies: list[Reply | None]
    failed_starts: int = 0
    stop: str = ""  # why no worker can be had

    @property
    def open(self) -> bool:
        return any(reply is None for reply in self.replies)


class WorkerPool:
    """Up to `workers` processes; `seconds` of CPU time for each answer, and PATIENCE times that on the clock."""

    def __init__(self, workers: int, seconds: float) -> None:
        self.size = workers
        self.seconds = seconds
        self.forget()
        _POOLS.add(self)

    def run(self, jobs: list[Job]) -> list[Reply]:
        """A reply for every job, in order: the worker's, or {"timeout": why}, or {"failed": why}."""
        batch = _Run(deque(_Task(index, job) for index, job in enumerate(jobs)), [None] * len(jobs))
        for worker in [worker for worker in self.workers if worker.process.poll() is not None]:
            self._drop(worker)  # it ended while it waited, which is no answer's doing
        try:
            while batch.open and not batch.stop:
                self._hand_out(batch)
                self._listen(batch)
        finally:
            if batch.open:  # interrupted or stopped: no worker is left in the middle of a job, to answer it in the next
                self.close()
        return [reply if reply is not None else {"failed": batch.stop} for reply in batch.replies]

    def forget(self) -> None:
        """In a forked process: the workers are the parent's, and so are the threads that start them and that grade."""
        self.lock = threading.Lock()  # held by whoever grades
        self.workers: list[Worker] = []
        self._starter = ThreadPoolExecutor(1, "math workers")  # a worker is killed as the thread that started it ends

    def close(self) -> None:
        """End every worker."""
        while self.workers:
            self.workers.pop().end()

    def _hand_out(self, batch: _Run) -> None:
        while len(self.workers) < min(self.size, len(batch.waiting) + sum(w.job is not None for w in self.workers)):
            self.workers.append(self._started())
        for worker in list(self.workers):
            if worker.ready and worker.job is None and batch.waiting:
                try:
                    worker.give(batch.waiting.popleft())
                except OSError:
                    self._died(worker, batch)

    def _started(self) -> Worker:
        try:
            starting = self._starter.submit(_start)
        except RuntimeError:  # the interpreter ends, and waits for the thread that grades: it has no other thread left
            return _start()
        return starting.result()

    def _listen(self, batch: _Run) -> None:
        ready = connection.wait([worker.output for worker in self.workers], self._until_next_check())
        for worker in list(self.workers):
            if worker.output in ready:
                self._read(worker, batch)
            else:
                self._check_time(worker, batch)

    def _until_next_check(self) -> float:
        now = time.monotonic()
        due = [worker.job_since + self.seconds - now for worker in self.workers if worker.job is not None]
        return min(max(min(due, default=1.0), 0.05), 1.0)

    def _read(self, worker: Worker, batch: _Run) -> None:
        data = os.read(worker.output, _LINE_LIMIT)
        worker.buffer += data
        if not data or len(worker.buffer) > _LINE_LIMIT:
            self._died(worker, batch)
            return
        if not worker.buffer.endswith(b"\n"):
            return
        reply = json.loads(worker.buffer)
        worker.buffer = b""
        if not worker.ready:
            worker.ready = True
            if not reply["ready"]:
                batch.stop = f"no worker could start: {reply['detail']}"
                self._drop(worker)
            return
        if worker.job is not None:
            batch.replies[worker.job.index] = reply
        worker.job = None
        worker.answered += 1
        if worker.answered >= RECYCLE or "spent" in reply:
            self._drop(worker)

    def _check_time(self, worker: Worker, batch: _Run) -> None:
        now = time.monotonic()
        if not worker.ready:
            if now - worker.started > START_SECONDS:
                self._died(worker, batch)
            return
        if worker.job is None or now - worker.job_since < self.seconds:
            return
        cpu = worker.cpu_seconds()
        over = cpu is None or cpu - worker.job_cpu >= self.seconds
        if over or now - worker.job_since >= PATIENCE * self.seconds:
            batch.replies[worker.job.index] = {"timeout": f"more than {self.seconds:g} s to compare"}
            self._drop(worker)

    def _died(self, worker: Worker, batch: _Run) -> None:
        self._drop(worker)
        code = worker.process.returncode
        if not worker.ready:
            batch.failed_starts += 1
            if batch.failed_starts >= START_TRIES:
                batch.stop = f"no worker could start in {START_TRIES} tries (exit code {code})"
            return
        task = worker.job
        if task is not None and batch.replies[task.index] is None:
            task.tries += 1
            if task.tries >= 2:
                batch.replies[task.index] = {
                    "died": code, "failed": f"the worker died twice over this answer (exit code {code})"
                }  # fmt: skip
            else:
                batch.waiting.appendleft(task)

    def _drop(self, worker: Worker) -> None:
        self.workers.remove(worker)
        worker.end()


_POOLS: "weakref.WeakSet[WorkerPool]" = weakref.WeakSet()


def _after_fork() -> None:
    for pool in list(_POOLS):
        pool.forget()


os.register_at_fork(after_in_child=_after_fork)


def _start() -> Worker:
    code = _RUN.format(path=[entry or os.getcwd() for entry in sys.path], parent=os.getpid())
    process = subprocess.Popen(
        [sys.executable, "-I", "-B", "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={"PYTHONHASHSEED": "0", "LC_ALL": "C.UTF-8", "OMP_NUM_THREADS": "1"},
        start_new_session=True,
        close_fds=True,
    )
    return Worker(process, time.monotonic())
