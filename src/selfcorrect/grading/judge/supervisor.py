"""One supervisor: keeps a zygote and a judge, gives each program its one deadline, and kills (stdlib only).

Started by exec; jobs arrive on standard input as framed JSON, verdicts leave on standard output. It ends with its
parent: standard input closes. What it started ends with it: each has asked the kernel to be killed then.
"""

import _socket
import contextlib
import json
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import time
from typing import Any

from selfcorrect.grading.judge import checking, confine, draws, loop
from selfcorrect.grading.judge.preload import preload
from selfcorrect.grading.judge.verdict import Reason
from selfcorrect.grading.judge.wire import Frames, dumps, write_frame
from selfcorrect.grading.judge.zygote import ENDED, STARTED

_GRACE = 0.1  # seconds that the judge has to speak after its program was killed
_STRETCH = 3  # a deadline moves, for time spent waiting for a processor, to at most so many times itself
_SHORT = 0.02  # seconds up to which nobody looks who had the core: it takes longer than most programs
_START = 60.0
_JUDGE_MEMORY = 3072  # MiB of address space of a judge process
_READY = b'"ready"'
_STUCK = 20.0  # seconds without a word from the zygote, which only forks and waits for killed processes
_ZYGOTE = "import sys; sys.path.insert(0, sys.argv[3]); from selfcorrect.grading.judge.zygote import main; main()"


class JudgeError(Exception):
    """The judge's own failure; the job gets `grader_failed`."""


class ParentGoneError(Exception):
    """The trainer is no more."""


class Zygote:
    """The zygote process, and the one program that runs at a time. more: with the modules that few programs use."""

    def __init__(self, settings: dict[str, Any], confinement: confine.Confinement, more: bool) -> None:
        self.control, theirs = socket.socketpair()
        self._poll = _watching(self.control)
        self._running = False  # the last program's end has not been read yet
        told = {
            **settings,
            "more": more,
            "confinement": confinement._asdict(),
            "control": theirs.fileno(),
            "parent": os.getpid(),
        }
        root = settings["root"]
        self._process = subprocess.Popen(
            [sys.executable, "-s", "-S", "-B", "-c", _ZYGOTE, "", json.dumps(told), root],
            env=dict(os.environ), cwd="/", pass_fds=[theirs.fileno()], start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        )  # fmt: skip
        theirs.close()
        self.control.settimeout(_START)
        if self.control.recv(1) != b"S":
            assert self._process.stderr
            told_last = self._process.stderr.read().decode(errors="replace").strip().splitlines()[-1:]
            self.stop()
            raise JudgeError(f"the process for programs did not start: {''.join(told_last)[:200]}")
        self.control.settimeout(None)

    def start_program(self) -> tuple[_socket.socket, int, int]:
        """The judge's end of a new program's channel, its pid and its pidfd (-1 where the system has none)."""
        if self._running:
            self.ended()
        ours, theirs = _socket.socketpair()
        try:
            socket.send_fds(self.control, [b"R"], [theirs.fileno()])
            self._wait()
            message, handles, _, _ = socket.recv_fds(self.control, STARTED.size, 1)
        except OSError as error:
            ours.close()
            raise JudgeError(f"the process for programs is gone: {error}") from None
        finally:
            theirs.close()
        if len(message) < STARTED.size:
            ours.close()
            raise JudgeError("no process could be made for the program")
        self._running = True
        return ours, STARTED.unpack(message)[1], handles[0] if handles else -1

    def ended(self) -> int:
        """Wait status of the program that was started last; waits for its end."""
        self._wait()
        message = self.control.recv(ENDED.size)
        self._running = False
        if len(message) < ENDED.size:
            raise JudgeError("the process for programs is gone")
        return int(ENDED.unpack(message)[1])

    def _wait(self) -> None:
        if not _readable(self._poll, _STUCK):
            raise JudgeError(f"the process for programs did not answer for {_STUCK:g} s")

    def stop(self) -> None:
        self.control.close()
        self._process.kill()
        self._process.wait()
        if self._process.stderr:
            self._process.stderr.close()


class Judge:
    """A judge process, forked from here (this process is small, has no threads and holds no user's data)."""

    def __init__(self, settings: dict[str, Any], confinement: confine.Confinement, packages: list[str]) -> None:
        self.control, theirs = socket.socketpair()
        self.poll, self._frames = _watching(self.control), Frames(self.control.fileno(), 1 << 16)
        here = os.getpid()
        self.pid = os.fork()
        if self.pid == 0:
            _become_judge(theirs, here, settings, confinement, packages)
        theirs.close()
        # Its start is no program's time: none is begun before it stands.
        told = self._frames.read() if _readable(self.poll, _START) else b'["", "it does not start"]'
        if told != _READY:
            self.stop()
            raise JudgeError(json.loads(told)[1] if told else "the judge's process ended at its start")

    def send(self, job: bytes, channel: _socket.socket) -> None:
        data = checking.LENGTH.pack(len(job)) + job
        self.control.sendall(memoryview(data)[socket.send_fds(self.control, [data], [channel.fileno()]) :])

    def answer(self) -> tuple[str, str] | None:
        """A Reason and the detail; None where the judge died."""
        frame = self._frames.read()
        if frame is None:
            return None
        reason, detail = json.loads(frame)
        return reason, detail

    def last_word(self) -> str:
        """Why it ended, if it could still say so."""
        with contextlib.suppress(OSError, ValueError):
            return (self.answer() or (None, ""))[1]
        return ""

    def stop(self) -> None:
        self.control.close()
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)


def _become_judge(
    control: socket.socket, parent: int, settings: dict[str, Any], confinement: confine.Confinement, packages: list[str]
) -> None:
    """In the forked process: keep the one socket, import, confine, serve. Never returns."""
    try:
        confine.die_with_parent(parent)
        kept = control.detach()
        null = os.open(os.devnull, os.O_RDWR)
        for standard in (0, 1, 2):
            os.dup2(null, standard)
        os.dup2(kept, 3)
        os.closerange(4, 1024)
        jobs = socket.socket(fileno=3)
        sys.path.extend(settings["packages_from"])
        preload(packages)
        draws.hide()
        loop.install()
        confine.go_before_others(confine.FIRST)
        confine.limit_memory(_JUDGE_MEMORY)
        # The tests are the data set's, not ours: they too get no files, no network and no other processes.
        confine.harden(confinement)
        confine.die_with_parent(parent)
        confine.lock(confinement, judge=True)
        write_frame(3, _READY)
        checking.serve(jobs)
    except Exception as error:  # noqa: BLE001 - the last word of a process that ends
        write_frame(3, dumps([Reason.GRADER_FAILED, f"the judge's process: {type(error).__name__}: {error}"[:300]]))
    finally:
        os._exit(0)


class Supervisor:
    """Judges one job after the other."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self._settings = settings
        if settings["core"] is not None:
            os.sched_setaffinity(0, {settings["core"]})
        preload()
        confine.prepare_filters()
        self.confinement = confine.NOTHING if settings["unconfined"] else confine.probe()
        confine.fix_layout()
        self._zygotes: dict[bool, Zygote] = {}
        self._judges: dict[bool, Judge] = {}

    def run(self, payload: bytes, seconds: float, with_numpy: bool, more: bool) -> tuple[str, str, float]:
        """One program, as the judge's process will read it: reason, detail, seconds. Raises JudgeError."""
        zygote = self._zygotes.get(more)
        if not zygote:
            zygote = self._zygotes[more] = Zygote(self._settings, self.confinement, more)
        judge = self._judges.get(with_numpy)
        if not judge:
            packages = ["numpy"] if with_numpy else []
            judge = self._judges[with_numpy] = Judge(self._settings, self.confinement, packages)
        channel, pid, handle = zygote.start_program()
        try:
            clock = _Deadline(seconds, pid, judge.pid, self._settings["core"])
            judge.send(payload, channel)
            channel.close()
            return self._watch(zygote, judge, with_numpy, _Program(pid, handle), clock)
        except OSError as error:
            told = judge.last_word()
            self._drop_judge(with_numpy)
            raise JudgeError(told or f"the judge is gone: {error}") from None
        finally:
            channel.close()
            _Program(pid, handle).kill()
            if handle >= 0:
                os.close(handle)

    def _watch(
        self, zygote: Zygote, judge: Judge, which: bool, program: "_Program", clock: "_Deadline"
    ) -> tuple[str, str, float]:
        killed = stalled = False
        while not stalled and not _readable(judge.poll, _GRACE if killed else clock.left()):
            stalled = killed  # the judge itself chokes on what it was sent
            if clock.passed():
                killed = True
                program.kill()
        killed = killed or (clock.left() == 0 and clock.passed())  # this process may have waited for the core too
        seconds = clock.seconds()
        answer = None if stalled else judge.answer()
        if answer is None:
            self._drop_judge(which)
        if killed:
            return Reason.TIMEOUT, f"not done after {clock.limit:g} s", seconds
        if answer is None:
            return Reason.MEMORY, "what the program answered ended the judge's process", seconds
        reason, detail = answer
        if reason == Reason.CRASH:
            reason, detail = _how_it_ended(zygote, program)
        return reason, detail, seconds

    def _drop_judge(self, which: bool) -> None:
        judge = self._judges.pop(which, None)
        if judge:
            judge.stop()

    def stop(self) -> None:
        """End everything; the next job starts anew."""
        for which in list(self._judges):
            self._drop_judge(which)
        while self._zygotes:
            self._zygotes.popitem()[1].stop()


class _Program:
    """A program's process, to be killed without mistaking another for it."""

    def __init__(self, pid: int, handle: int) -> None:
        self.pid, self._handle = pid, handle

    def ends(self, seconds: float) -> bool:
        """Whether it ends by itself within so many seconds; no where the system cannot say."""
        if self._handle < 0:
            return False
        poll = select.poll()
        poll.register(self._handle, select.POLLIN)
        return bool(poll.poll(seconds * 1000))

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            if self._handle >= 0:
                signal.pidfd_send_signal(self._handle, signal.SIGKILL)
            else:
                os.kill(self.pid, signal.SIGKILL)


class _Deadline:
    """One deadline for the whole program. Time in which it stood ready and others had the core is given back."""

    def __init__(self, limit: float, pid: int, judge: int, core: int | None) -> None:
        self.limit, self._pid, self._judge, self._core = limit, pid, judge, core
        self._used_before = _used(judge) + time.process_time()
        self._lost = 0.0
        self._noted: float | None = None  # what others had of the core until we first looked
        self._began = time.monotonic()
        self._until = self._began + limit

    def left(self) -> float:
        until = self._until if self._noted is not None else min(self._until, self._began + _SHORT)
        return max(0.0, until - time.monotonic())

    def passed(self) -> bool:
        if self._noted is None:
            self._noted = self._had_by_others()
        if time.monotonic() < self._until - 0.001:
            return False
        self._look()
        self._until = self._began + min(self.limit + self._lost, self.limit * _STRETCH)
        return time.monotonic() >= self._until - 0.001

    def seconds(self) -> float:
        """What counts: the time on the clock, less what is given back."""
        if self._noted is not None:
            self._look()
        return time.monotonic() - self._began - self._lost

    def _look(self) -> None:
        """All threads of the program, the judge and this process share one core. Of what the threads waited, only what
        that core gave to others is lost; or, if that is more, what one thread waited while none of the rest can have
        run. Either way what counts is never less than what they all ran.
        """
        threads = _threads(self._pid)
        waited = sum(waited for _, waited in threads)
        alone = max((ran + waited for ran, waited in threads), default=0.0) - self._ran()
        given = self._had_by_others() - (self._noted or 0.0)
        self._lost = max(self._lost, min(waited, given), alone if threads else 0.0)

    def _ran(self) -> float:
        # This process too: to look takes long where there are many threads, and must not be a reason to wait longer.
        return _used(self._pid) + _used(self._judge) + time.process_time() - self._used_before

    def _had_by_others(self) -> float:
        """Seconds of the core since the beginning, but for an unknown constant."""
        idle = _idle(self._core)
        return 0.0 if idle is None else time.monotonic() - self._began - idle - self._ran()


def _idle(core: int | None) -> float | None:
    """Seconds that a core had nothing to do since the machine's start."""
    with contextlib.suppress(OSError, ValueError, IndexError), open("/proc/stat", "rb") as file:
        for line in file:
            if line.startswith(b"cpu%d " % core if core is not None else b"-"):
                return sum(map(int, line.split()[4:6])) / os.sysconf("SC_CLK_TCK")
    return None


def _threads(pid: int) -> list[tuple[float, float]]:
    """Of each thread of a process the seconds that it ran, and that it stood ready and did not; none where unknown."""
    found = []
    with contextlib.suppress(OSError):
        for thread in os.listdir(f"/proc/{pid}/task"):
            with contextlib.suppress(OSError, ValueError), open(f"/proc/{pid}/task/{thread}/schedstat", "rb") as file:
                ran, waited, _ = file.read().split()
                found.append((int(ran) / 1e9, int(waited) / 1e9))
    return found


def _used(pid: int) -> float:
    """Processor seconds of all threads of a process, ended ones too; 0 where the kernel does not say."""
    with contextlib.suppress(OSError):
        return time.clock_gettime(~pid << 3 | 2)  # CPUCLOCK_SCHED of a process: linux/posix-timers.h
    return 0.0


def _watching(control: socket.socket) -> select.poll:
    poll = select.poll()
    poll.register(control, select.POLLIN)
    poll.register(0, 0)  # hang-up alone
    return poll


def _readable(poll: select.poll, seconds: float) -> bool:
    """Whether the other side has spoken within so many seconds. Raises ParentGoneError."""
    ready = poll.poll(seconds * 1000)
    if any(descriptor == 0 for descriptor, _ in ready):
        raise ParentGoneError
    return bool(ready)


def _how_it_ended(zygote: Zygote, program: _Program) -> tuple[str, str]:
    """Of a program whose channel was closed."""
    if not program.ends(_GRACE / 2):
        program.kill()
        zygote.ended()
        return Reason.CRASH, "closed its channel before it had answered"
    status = zygote.ended()
    if not os.WIFSIGNALED(status):
        code = os.waitstatus_to_exitcode(status)
        return Reason.CRASH, f"ended with exit status {code} before it had answered"
    number = os.WTERMSIG(status)
    if number == signal.SIGKILL:  # no program can send one
        return Reason.MEMORY, "the kernel killed the process, as it does where the machine's memory runs out"
    name = signal.Signals(number).name if number in set(signal.Signals) else str(number)
    return Reason.CRASH, f"ended by signal {name}"


def _judged(supervisor: Supervisor, payload: bytes, job: dict[str, Any]) -> tuple[Any, ...]:
    """The verdict; after trouble of our own, a second try with processes made anew."""
    told = ""
    for _ in range(2):
        try:
            return supervisor.run(payload, **job)
        except (JudgeError, OSError, struct.error) as error:
            told = f"{type(error).__name__}: {error}"
            supervisor.stop()
    return Reason.GRADER_FAILED, told, 0.0


def main() -> None:
    """argv: settings as JSON."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the trainer's to handle
    output = os.dup(1)
    os.dup2(2, 1)
    with contextlib.suppress(AttributeError, OSError):  # its processes take turns: none is to interrupt another because
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))  # it was spoken to; refused here and there
    confine.go_before_others(confine.EARLY)
    supervisor = Supervisor(json.loads(sys.argv[2]))
    write_frame(output, dumps(supervisor.confinement._asdict()))
    frames = Frames(0, 1 << 30)
    with contextlib.suppress(ParentGoneError, BrokenPipeError):
        while (job := frames.read()) is not None:
            header, _, payload = job.partition(b"\n")
            write_frame(output, dumps(_judged(supervisor, payload, json.loads(header))))
    supervisor.stop()
