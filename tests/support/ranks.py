"""`selfcorrect train` on several processes of this machine, over gloo, as a launcher would start them."""

import multiprocessing
import os
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from selfcorrect import cli
from selfcorrect.tasks.countdown import Countdown
from tests.support.runs import lucky_grade

Hook = Callable[[int], None]


class Ended(NamedTuple):
    """How a rank ended, and what it wrote."""

    status: int | None
    out: str
    err: str


class Ranks:
    """The processes of one launch. machines: over how many they believe themselves to be spread; hook: called in each with its rank, before the command; module-level."""

    def __init__(
        self, folder: Path, *arguments: str, size: int = 2, machines: int = 1, hook: Hook | None = None
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, context = folder, multiprocessing.get_context("forkserver")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.processes = [
            context.Process(target=_rank, args=(rank, size, size // machines, port, str(folder), arguments, hook))
            for rank in range(size)
        ]
        for process in self.processes:
            process.start()

    def send(self, signum: int, *ranks: int) -> None:
        for rank in ranks or range(len(self.processes)):
            pid = self.processes[rank].pid
            assert pid
            os.kill(pid, signum)

    def wait_for(self, text: str, rank: int = 0) -> None:
        """Until a rank has written this to stdout."""
        file = self.folder / f"{rank}.out"
        while not file.exists() or text not in file.read_text():
            assert self.processes[rank].is_alive(), (self.folder / f"{rank}.err").read_text()
            time.sleep(0.01)

    def ended(self, seconds: float = 60) -> list[Ended]:
        """Within the time; what has not ended by then is killed, with status None."""
        until = time.monotonic() + seconds
        found = []
        for rank, process in enumerate(self.processes):
            process.join(max(0.0, until - time.monotonic()))
            status = process.exitcode
            if status is None:
                process.kill()
                process.join()
            texts = [(self.folder / f"{rank}.{name}").read_text() for name in ("out", "err")]
            found.append(Ended(status, *texts))
        return found


def launch(
    folder: Path, settings: dict[str, Any], *overrides: str, hook: Hook | None = None, size: int = 2, machines: int = 1
) -> Ranks:
    """Trains a recipe, or goes on with the run where it has begun. folder: for what the ranks write.

    machines: over how many the ranks believe themselves to be spread.
    """
    folder.mkdir(parents=True, exist_ok=True)
    run = Path(settings["output"]) / settings["name"]
    if (run / "config.yaml").exists():
        return Ranks(folder, "train", "--resume", str(run), *overrides, hook=hook, size=size, machines=machines)
    recipe = folder / "recipe.yaml"
    recipe.write_text(yaml.dump(settings))
    return Ranks(folder, "train", str(recipe), *overrides, hook=hook, size=size, machines=machines)


def _rank(
    rank: int, size: int, here: int, port: int, folder: str, arguments: tuple[str, ...], hook: Hook | None
) -> None:
    for descriptor, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(f"{folder}/{rank}.{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND), descriptor)
    told = {"RANK": rank, "LOCAL_RANK": rank % here, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": here, "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in told.items()}, MASTER_ADDR="127.0.0.1")
    Countdown.grade = lucky_grade  # type: ignore[method-assign]
    if hook:
        hook(rank)
    sys.argv = ["selfcorrect", *arguments]
    cli.main()
