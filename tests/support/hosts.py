"""Hosts on one machine: namespaces with their own network, name, processes, /tmp, home and shared memory. Needs root on Linux.

    with hosts(tmp_path) as both:
        ended = started(both, tmp_path / "log", "train", "/tmp/recipe.yaml").ended()

`/tmp` of a host is its `disk`, a folder of the test's own: `one.disk / "runs"` is what the host has as /tmp/runs. It outlives the host, as a
disk does. `started` forks the ranks from a process that has everything imported, which takes a second where `torchrun` takes twenty.
`python -m tests.support.hosts` is `selfcorrect` with the grades of tests/support/runs.py.
"""

import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from selfcorrect.parallel import ranks
from tests.support.ranks import Hook, Ranks

OWN = Path(tempfile.gettempdir())  # what every host has one of its own of
PROJECT = Path(__file__).parents[2]
TOOLS = ("unshare", "nsenter", "ip", "mount")
UNSHARE = ["unshare", "--net", "--uts", "--ipc", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child"]
PORT = 29400
# The first process of a host: when it is killed, so are all others.
INIT = """
set -e
hostname "$NAME"
mount --bind "$NAMES" /etc/hosts
mount --rbind "$DISK" "$OWN"
mount -t tmpfs none /dev/shm
ip link set lo up
echo up
exec sleep infinity
"""


class Job:
    """A command on a host. out, err: what it has written so far."""

    def __init__(self, process: subprocess.Popen[bytes], files: Sequence[Path]) -> None:
        self._process, self._files = process, files

    @property
    def out(self) -> str:
        return self._files[0].read_text()

    @property
    def err(self) -> str:
        return self._files[1].read_text()

    def wait_for(self, text: str, seconds: float = 90) -> None:
        """Until the command has written this to stdout."""
        until = time.monotonic() + seconds
        while text not in self.out:
            assert self._process.poll() is None, self.err
            assert time.monotonic() < until, self.out + self.err
            time.sleep(0.02)

    def status(self, seconds: float = 120) -> int | None:
        """Its exit status; None where it has not ended by then."""
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None

    def interrupt(self) -> None:
        """Ctrl-C, to all of its processes, as a terminal does."""
        os.killpg(self._process.pid, signal.SIGINT)


class Host:
    """name: its hostname. address: in the network of the hosts. disk: what it has as /tmp."""

    def __init__(self, name: str, address: str, base: Path, shared: Sequence[str], names: str) -> None:
        self.name, self.address, self.disk = name, address, base / name
        self._base, self._shared, self._names, self._count = base, shared, names, 0
        self._init: subprocess.Popen[bytes] | None = None
        self.disk.mkdir()

    def start(self) -> None:
        """Also anew, after it was killed."""
        names, own = self._base / f"{self.name}.hosts", self.disk / "home"
        own.mkdir(exist_ok=True)
        names.write_text(self._names)
        script = [*self._binds(), INIT]
        told = {"NAME": self.name, "DISK": str(self.disk), "OWN": str(OWN), "NAMES": str(names)}
        self._init = subprocess.Popen(
            [*UNSHARE, "sh", "-c", "\n".join(script)], env={**os.environ, **told},
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip
        assert self._init.stdout
        assert self._init.stderr
        if self._init.stdout.readline() != b"up\n":
            raise RuntimeError(self._init.stderr.read().decode().strip() or "unshare ended")

    def _binds(self) -> list[str]:
        """What lies under /tmp and is needed there: the project, Python, and folders that hosts share."""
        seen = {PROJECT, Path(sys.prefix), Path(sys.base_prefix)}
        pairs = [(path, self.disk / path.relative_to(OWN)) for path in seen if path.is_relative_to(OWN)]
        pairs += [(self._base / "shared" / name, self.disk / name) for name in self._shared]
        lines = ["set -e"]
        for source, target in pairs:
            source.mkdir(parents=True, exist_ok=True)
            target.mkdir(parents=True, exist_ok=True)
            lines.append(f"mount --rbind '{source}' '{target}'")
        return lines

    @property
    def pid(self) -> int:
        """Of its first process, as the machine counts."""
        assert self._init
        pid = self._init.pid
        return int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])

    def run(self, *command: str, env: Mapping[str, str] | None = None) -> Job:
        """Starts a command in the host's /tmp."""
        self._count += 1
        files = [self._base / f"{self.name}-{self._count}.{end}" for end in ("out", "err")]
        told = {**os.environ, "HOME": str(OWN / "home"), "PYTHONPATH": f"{PROJECT / 'src'}:{PROJECT}", **(env or {})}
        with files[0].open("wb") as out, files[1].open("wb") as err:
            process = subprocess.Popen(
                ["nsenter", "-t", str(self.pid), "-n", "-u", "-i", "-m", "-p", f"--wdns={OWN}", *command],
                env=told, stdin=subprocess.DEVNULL, stdout=out, stderr=err, start_new_session=True,
            )  # fmt: skip
        return Job(process, files)

    def sh(self, script: str) -> str:
        """What a short script on it writes. Raises RuntimeError where it fails."""
        job = self.run("sh", "-c", script)
        if job.status(30) != 0:
            raise RuntimeError(job.err.strip())
        return job.out

    def cut(self) -> None:
        """Its network cable is pulled: nothing is told to anyone."""
        self.sh("ip link set eth0 down")

    def kill(self) -> None:
        """SIGKILL to all of its processes at once; its network goes with them."""
        if self._init and self._init.poll() is None:
            with contextlib.suppress(OSError, IndexError):
                os.kill(self.pid, signal.SIGKILL)
            self._init.kill()
            self._init.wait(10)


@contextmanager
def hosts(base: Path, *, shared: Sequence[str] = (), loopback_name: bool = False) -> Iterator[tuple[Host, Host]]:
    """Two of them, joined by a cable; killed in the end, whatever happens. base: an empty folder for their disks.

    shared: folders of their /tmp that are one. loopback_name: each finds its own name at 127.0.1.1, as Debian has it.
    Skips the test where the machine does not let us make them.
    """
    if missing := [tool for tool in TOOLS if not shutil.which(tool)]:
        pytest.skip(f"hosts need {', '.join(missing)}")
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("hosts need root on Linux, for namespaces")
    trial = [
        *UNSHARE,
        "sh",
        "-c",
        "hostname trial && mount -t tmpfs none /dev/shm && ip link add one type veth peer name two",
    ]
    if (tried := subprocess.run(trial, capture_output=True, check=False, text=True)).returncode:
        pytest.skip(f"hosts cannot be made here: {tried.stderr.strip()}")
    base.mkdir(parents=True, exist_ok=True)
    # Higher than 127: the lower of two addresses is the one that gloo connects to, and loopback is to be met there.
    at = {"node1": "192.168.77.1", "node2": "192.168.77.2"}
    made = []
    for name, address in at.items():
        seen = {**at, name: "127.0.1.1"} if loopback_name else at
        lines = ["127.0.0.1 localhost", *(f"{where} {other}" for other, where in seen.items())]
        made.append(Host(name, address, base, shared, "\n".join(lines) + "\n"))
    one, two = made
    try:
        for host in made:
            host.start()
        connect(one, two)
        yield one, two
    finally:
        for host in made:
            host.kill()


def connect(one: Host, two: Host) -> None:
    """Lays a cable between two hosts."""
    ends = [f"eth0 netns {host.pid}" for host in (one, two)]
    subprocess.run(
        ["ip", "link", "add", *ends[0].split(), "type", "veth", "peer", "name", *ends[1].split()], check=True
    )
    for host in (one, two):
        host.sh(f"ip addr add {host.address}/24 dev eth0 && ip link set eth0 up")


def started(these: Sequence[Host], folder: Path, *arguments: str, each: int = 1, hook: Hook | None = None) -> Ranks:
    """`selfcorrect` with these arguments, in so many ranks on each host; rank 0 on the first. folder: for what they write."""
    pids = [host.pid for host in these]
    enter = partial(_enter, pids=pids, first=these[0].name, each=each, hook=hook)
    return Ranks(folder, *arguments, size=each * len(these), machines=len(these), hook=enter)


def _enter(rank: int, pids: Sequence[int], first: str, each: int, hook: Hook | None) -> None:
    """This process goes on as a child of its own that is on the host, and hands signals and the status through."""
    names = ("pid", "net", "uts", "ipc", "mnt")
    spaces = [os.open(f"/proc/{pids[rank // each]}/ns/{name}", os.O_RDONLY) for name in names]
    for space in spaces:
        if ctypes.CDLL(None, use_errno=True).setns(space, 0):
            raise OSError(ctypes.get_errno(), "setns")
        os.close(space)
    if child := os.fork():
        for signum in (signal.SIGINT, signal.SIGTERM):
            signal.signal(signum, lambda signum, _: os.kill(child, signum))
        _, status = os.waitpid(child, 0)
        if os.WIFSIGNALED(status):
            os.kill(os.getpid(), os.WTERMSIG(status))
        os._exit(os.WEXITSTATUS(status))
    looking: Any = ranks
    looking._LOOKS = 4  # the disks here tell at once
    os.chdir(OWN)
    os.environ.update(HOME=str(OWN / "home"), MASTER_ADDR=first, SELFCORRECT_PLAN="off")
    if hook:
        hook(rank)


def torchrun(these: Sequence[Host], *arguments: str) -> list[Job]:
    """`selfcorrect` with these arguments, one process on each host, rank 0 on the first."""
    first = [f"--nnodes={len(these)}", f"--master-addr={these[0].name}", f"--master-port={PORT}"]
    start = ["-m", "torch.distributed.run", *first, "--nproc-per-node=1"]
    return _launched(these, start, "--node-rank", arguments)


def accelerate(these: Sequence[Host], *arguments: str) -> list[Job]:
    """The same, by the configuration that is shipped."""
    first = [f"--num_processes={len(these)}", f"--main_process_ip={these[0].name}"]
    file = PROJECT / "recipes" / "launch" / "nodes.yaml"
    start = ["-m", "accelerate.commands.launch", "--config_file", str(file), *first]
    return _launched(these, start, "--machine_rank", arguments)


def _launched(these: Sequence[Host], start: Sequence[str], rank: str, arguments: Sequence[str]) -> list[Job]:
    told = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "SELFCORRECT_PLAN": "off"}
    run = ["-m", "tests.support.hosts", *arguments]
    return [host.run(sys.executable, *start, f"{rank}={number}", *run, env=told) for number, host in enumerate(these)]


def main() -> None:
    from selfcorrect import cli
    from selfcorrect.tasks.countdown import Countdown
    from tests.support.runs import lucky_grade

    Countdown.grade = lucky_grade  # type: ignore[method-assign]
    sys.argv[0] = "selfcorrect"
    cli.main()


if __name__ == "__main__":
    main()
