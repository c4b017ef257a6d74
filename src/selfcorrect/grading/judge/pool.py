"""`CodeJudge`: verdicts on untrusted programs, from as many supervisors as there are cores (stdlib only)."""

import atexit
import contextlib
import hashlib
import importlib.util
import itertools
import json
import os
import queue
import secrets
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Self

from selfcorrect.errors import SandboxError
from selfcorrect.grading.judge.confine import Confinement
from selfcorrect.grading.judge.preload import needs_more
from selfcorrect.grading.judge.verdict import Checks, Reason, Verdict
from selfcorrect.grading.judge.wire import Frames, ProtocolError, dumps, write_frame
from selfcorrect.waiting import cores

_ROOT = str(Path(__file__).resolve().parents[3])
_BOOT = "import sys; sys.path.insert(0, sys.argv[3]); from selfcorrect.grading.judge.supervisor import main; main()"
# One order of sets in every process; symbols bound before the forks; no threads of numpy's, which namespaces refuse.
_ENVIRONMENT = {
    "PYTHONHASHSEED": "0", "LD_BIND_NOW": "1", "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "MALLOC_ARENA_MAX": "1",  # else each thread reserves 64 MiB of a program's address space, which is what is limited
}  # fmt: skip
_SETTINGS: dict[str, Any] = {}  # for tests: what every supervisor is told besides
SOURCE_BYTES = 1 << 18  # of a program, at most
_TRIES = 2  # of a job whose supervisor was lost
# How a program fails whose modules or codecs its process might not hold: it is tried in one that holds them all.
_NOT_LOADED = ("ModuleNotFoundError", "ImportError", "LookupError: unknown encoding")


_JUDGES: "weakref.WeakSet[CodeJudge]" = weakref.WeakSet()


def _after_fork() -> None:
    for judge in list(_JUDGES):
        judge._forget()


os.register_at_fork(after_in_child=_after_fork)


class _Supervisor:
    """The trainer's end of one supervisor process."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-s", "-S", "-B", "-c", _BOOT, "", json.dumps(settings), _ROOT],
            env=_ENVIRONMENT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            start_new_session=True, bufsize=0,
        )  # fmt: skip
        assert self._process.stdin
        assert self._process.stdout
        self._to, self._from = self._process.stdin.fileno(), self._process.stdout.fileno()
        self._frames = Frames(self._from, 1 << 20)
        self.confinement = Confinement(**self._read())

    @property
    def pid(self) -> int:
        return self._process.pid

    def ask(self, job: bytes) -> Verdict:
        """Raises OSError or EOFError where the supervisor is gone."""
        write_frame(self._to, job)
        reason, detail, seconds = self._read()
        return Verdict(Reason(reason), detail, seconds)

    def _read(self) -> Any:
        try:
            frame = self._frames.read()
        except ProtocolError as error:
            raise EOFError(str(error)) from None
        if frame is None:
            raise EOFError("the supervisor ended")
        return json.loads(frame)

    def let_go(self) -> None:
        """Close this process's copies of the pipes, and leave the supervisor to its parent."""
        self._process.returncode = 0  # not ours to wait for
        self.stop()

    def stop(self) -> None:
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe:
                with contextlib.suppress(OSError):
                    pipe.close()
        try:
            self._process.wait(2.0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


@lru_cache(maxsize=4096)
def _as_text(checks: Checks) -> str:
    return json.dumps(asdict(checks))


def _names_numpy(checks: Checks) -> bool:
    return any("numpy" in text for text in (checks.code, checks.setup, checks.helpers))


class CodeJudge:
    """Judges untrusted Python programs against a data set's tests.

    The program and the tests run in different processes, and nothing but plain data passes between them, so a
    verdict cannot be forged (docs/grading.md). One judge serves a whole run; it starts its processes at the first
    grade, after a self-test, and may be used from several threads.

    workers: programs judged side by side; one a core by default and at most, so that none waits for another.
    time_limit: seconds for a whole program, or time_factor times what the problem's reference takes, whichever is
    more, up to time_cap. memory_mb: address space of a program. prelude: whether common modules are imported before
    the program (preload.PRELUDE). preload: packages that programs may import besides the standard library, such as
    numpy. allow_unsandboxed: go on where the kernel offers no confinement.

    Raises SandboxError where programs cannot be confined, or the self-test finds a hole.
    """

    def __init__(
        self, *, workers: int | None = None, time_limit: float = 0.5, time_factor: float = 20.0,
        time_cap: float = 10.0, memory_mb: int = 1024, prelude: bool = True, preload: Iterable[str] = (),
        allow_unsandboxed: bool = False,
    ) -> None:  # fmt: skip
        self.workers = min(workers or cores(), cores())
        self._limit, self._memory = time_limit, memory_mb
        self._factor, self._cap = time_factor, max(time_cap, time_limit)
        self._prelude, self._preload, self._allow = prelude, tuple(preload), allow_unsandboxed
        self._free: queue.SimpleQueue[_Supervisor | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._open: set[_Supervisor] = set()
        self._reference_seconds: dict[Checks, float] = {}
        self._secret = secrets.token_bytes(32)  # what tests draw hangs on it; it goes to no process but the judge's
        self._confinement: Confinement | None = None
        self._launched = itertools.count()
        _JUDGES.add(self)

    @property
    def confinement(self) -> Confinement:
        """What holds programs on this machine; starts the first supervisor and runs the self-test."""
        self._start()
        assert self._confinement
        return self._confinement

    def grade(self, programs: Sequence[tuple[str, Checks]]) -> list[Verdict]:
        """One verdict a program, in order."""
        if not programs:
            return []
        self._start()
        verdicts: dict[int, Verdict] = {}
        waiting = iter(range(len(programs)))
        taking = threading.Lock()
        errors: list[BaseException] = []

        def work() -> None:
            try:
                while not errors:
                    with taking:
                        index = next(waiting, None)
                    if index is None:
                        return
                    verdicts[index] = self._judge(*programs[index])
            except BaseException as error:  # noqa: BLE001 - rises in the caller's thread, below
                errors.append(error)

        threads = [threading.Thread(target=work, daemon=True) for _ in range(min(self.workers, len(programs)) - 1)]
        for thread in threads:
            thread.start()
        work()
        for thread in threads:
            thread.join()
        if errors:
            raise errors[0]
        return [verdicts[index] for index in range(len(programs))]

    def close(self) -> None:
        """End every process. The next grade starts anew."""
        with self._lock:
            self._confinement = None
            old, self._free = self._free, queue.SimpleQueue()
            while self._open:
                self._open.pop().stop()
            for _ in range(self.workers):  # whoever waits learns that there is nothing to wait for
                old.put(None)
        atexit.unregister(self.close)

    def _forget(self) -> None:
        """In a forked process: the supervisors are the parent's. This judge starts its own when it is used."""
        for supervisor in self._open:
            supervisor.let_go()
        self._open, self._free, self._lock = set(), queue.SimpleQueue(), threading.Lock()
        self._confinement = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _judge(self, source: str, checks: Checks) -> Verdict:
        size = len(source.encode("utf-8", "surrogatepass"))
        if size > SOURCE_BYTES:
            return Verdict(Reason.REFUSED, f"the source has {size} bytes; at most {SOURCE_BYTES} are run")
        if "\0" in source or any("\ud800" <= c <= "\udfff" for c in source):
            return Verdict(Reason.REFUSED, "the source is not text: it holds NUL bytes or lone surrogates")
        known = self._reference_seconds.get(checks)
        verdict = self._run(source, checks, self._limit if known is None else self._scaled(known))
        if verdict.reason is Reason.TIMEOUT and checks.reference and known is None:
            limit = self._scaled(self._time_reference(checks))
            if limit > self._limit:  # the first run was for nothing: it begins again, with all of its time
                verdict = self._run(source, checks, limit)
        return verdict

    def _scaled(self, reference_seconds: float) -> float:
        return min(self._cap, max(self._limit, self._factor * reference_seconds))

    def _time_reference(self, checks: Checks) -> float:
        """Measured only when a program ran out of the least time: most never do. What would raise the limit is
        measured again, and the lesser counts: it holds for all the judge's life.
        """
        job = self._job(checks.reference, checks, self._cap, more=True)
        least = self._cap
        for _ in range(2):
            verdict = self._ask(job)
            if verdict.reason is Reason.GRADER_FAILED:
                return 0.0  # and the next program that needs it tries again
            least = min(least, verdict.seconds)
            if self._scaled(least) == self._limit or verdict.reason is Reason.TIMEOUT:
                break
        self._reference_seconds[checks] = least
        return least

    def _run(self, source: str, checks: Checks, seconds: float) -> Verdict:
        more = needs_more(source)
        verdict = self._ask(self._job(source, checks, seconds, more))
        if more or verdict.reason is not Reason.EXCEPTION or not verdict.detail.startswith(_NOT_LOADED):
            return verdict
        # The deadline is the program's, not a process's: what the first one used is gone.
        again = self._ask(self._job(source, checks, max(0.001, seconds - verdict.seconds), more=True))
        detail = f"not done after {seconds:g} s" if again.reason is Reason.TIMEOUT else again.detail
        return replace(again, detail=detail, seconds=verdict.seconds + again.seconds)

    def _ask(self, job: bytes) -> Verdict:
        free, lost = self._free, ""
        if self._confinement is None:  # close() was called while a batch ran
            return Verdict(Reason.GRADER_FAILED, "the judge was closed")
        for _ in range(_TRIES):
            try:
                waiting = free.get()
                if free is not self._free:
                    return Verdict(Reason.GRADER_FAILED, "the judge was closed")
                supervisor = waiting or self._launch()
            except BaseException:
                free.put(None)  # whoever comes next starts another
                raise
            try:
                verdict = supervisor.ask(job)
            except (OSError, EOFError) as error:
                lost = str(error)
                self._discard(supervisor)
                free.put(None)
                continue
            except BaseException:  # Ctrl-C in the middle of an answer: what is in the pipe belongs to no one
                self._discard(supervisor)
                free.put(None)
                raise
            free.put(supervisor)
            return verdict
        return Verdict(Reason.GRADER_FAILED, f"the judge's process was lost {_TRIES} times: {lost}")

    def _job(self, source: str, checks: Checks, seconds: float, more: bool) -> bytes:
        """A line that the supervisor reads, and what it hands on to the judge's process."""
        draws = hashlib.blake2b(f"{_as_text(checks)}\0{source}".encode("utf-8", "surrogatepass"), key=self._secret)
        job = {"source": source, "checks": _as_text(checks), "prelude": self._prelude, "draws": draws.hexdigest()}
        return dumps({"seconds": seconds, "with_numpy": _names_numpy(checks), "more": more}) + b"\n" + dumps(job)

    def _start(self) -> None:
        with self._lock:
            if self._confinement:
                return
            first = self._launch()
            try:
                self._check(first)
            except BaseException:
                self._discard(first)
                raise
            for supervisor in [first] + [None] * (self.workers - 1):
                self._free.put(supervisor)
            atexit.register(self.close)
            self._confinement = first.confinement

    def _check(self, first: _Supervisor) -> None:
        """Raises SandboxError where programs are not confined, or the self-test finds a hole."""
        from selfcorrect.grading.judge.selftest import holes

        if not first.confinement.seccomp:
            if self._allow:
                return
            raise SandboxError(
                "this machine offers no confinement for untrusted programs (no seccomp: on Linux, x86_64 or "
                "aarch64, a kernel or container that allows it is needed); run on one that does, or accept the "
                "risk to your files and account with --allow-unsandboxed (in a recipe task.allow_unsandboxed: true)"
            )
        try:
            found = holes(lambda source, checks: first.ask(self._job(source, checks, 0.3, needs_more(source))))
        except (OSError, EOFError) as error:
            raise SandboxError(f"the code judge's process ended in its self-test: {error}") from error
        if found:
            raise SandboxError(
                f"the self-test of the code judge found a hole: {'; '.join(found)}. No program was run; "
                "please report this with your kernel's version"
            )

    def _launch(self) -> _Supervisor:
        try:
            supervisor = _Supervisor(self._settings())
        except (OSError, EOFError) as error:
            raise SandboxError(f"the code judge's process does not start: {error}") from error
        self._open.add(supervisor)
        return supervisor

    def _discard(self, supervisor: _Supervisor) -> None:
        self._open.discard(supervisor)
        supervisor.stop()

    def _next_core(self) -> int | None:
        """One core for all processes of a supervisor: they take turns, and waking each other there is twice as fast."""
        if not hasattr(os, "sched_getaffinity"):
            return None
        cores = sorted(os.sched_getaffinity(0))
        return cores[(os.getpid() + next(self._launched)) % len(cores)]

    def _settings(self) -> dict[str, Any]:
        numpy = importlib.util.find_spec("numpy")  # some data sets' tests use it
        folders = {str(Path(numpy.origin).parents[1])} if numpy and numpy.origin else set()
        for name in self._preload:
            spec = importlib.util.find_spec(name)
            if not spec or not spec.origin:
                raise SandboxError(
                    f"preload: no package {name!r} is installed here; install it or take it off the list"
                )
            folders.add(str(Path(spec.origin).parents[1]))
        return {
            "packages": list(self._preload), "packages_from": sorted(folders), "root": _ROOT,
            "memory": self._memory, "unconfined": False, "core": self._next_core(), **_SETTINGS,
        }  # fmt: skip
