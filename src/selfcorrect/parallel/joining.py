"""The processes of a launch find each other, and leave each other."""

import contextlib
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from ipaddress import ip_address
from typing import Any

import torch
from torch.distributed.rendezvous import rendezvous

from selfcorrect.errors import ConfigError, RankLost, TrainingInterrupted, UserError, first_line, one_line
from selfcorrect.parallel.launch import Launch, launched
from selfcorrect.parallel.lifeline import Lifeline
from selfcorrect.parallel.ranks import Alone, Several

_JOINING = timedelta(minutes=10)
_TELLING = timedelta(seconds=30)  # after which rank 0 says for whom it waits
# Between ranks that sample longer than others, or wait for a checkpoint or a server (parallel/launch.py). Dead ones
# are known of at once all the same.
_LONGEST_WAIT = timedelta(hours=3)


@contextmanager
def joined() -> Iterator[Alone]:
    """All processes that were started together; `Alone` where this is the only one, and nothing is initialised.

    An error ends every one of them, and one alone tells it: on the others it is raised without a text.
    """
    launch = launched()
    if launch is None:
        yield Alone()
        return
    ranks = _join(launch)
    before: Any = None
    with contextlib.suppress(ValueError):  # launchers end the others so: who speaks must get to it first
        before = signal.signal(signal.SIGTERM, lambda *_: None)  # a ValueError outside of the main thread
    try:
        yield ranks
    except BaseException as raised:
        error = _told(raised, ranks)
        agreed = ranks.lifeline.agreed or (isinstance(error, UserError) and ranks.lifeline.loss is not None)
        ranks.lifeline.end(None if agreed else _in_a_line(error))
        if isinstance(error, TrainingInterrupted) and not ranks.lifeline.speaks:
            raise TrainingInterrupted("", error.status) from None
        if isinstance(error, UserError) and not ranks.lifeline.speaks:
            raise UserError("") from None
        if error is raised:
            raise
        raise error from raised
    else:
        ranks.lifeline.end(None)
        if before is not None:
            signal.signal(signal.SIGTERM, before)
    finally:
        if ranks.lifeline.loss is None or not torch.cuda.is_available():  # NCCL would wait for the lost one
            torch.distributed.destroy_process_group()


def _join(launch: Launch) -> Several:
    if not torch.distributed.is_available():
        raise ConfigError(f"WORLD_SIZE is {launch.size}, but this torch has no torch.distributed; train in one")
    backend = "gloo"
    if torch.cuda.is_available():
        there, wanted = torch.cuda.device_count(), launch.beside or launch.local + 1
        if wanted <= there:
            torch.cuda.set_device(launch.local)
            backend = "cpu:gloo,cuda:nccl"
        else:
            raise ConfigError(
                f"{wanted} processes were started on a host with {there} GPUs; start as many as there are, or hide the "
                "GPUs with CUDA_VISIBLE_DEVICES= to train on the processors"
            )
    try:
        store, *_ = next(iter(rendezvous("env://", launch.rank, launch.size, timeout=_JOINING)))
        _name_interface(launch, _wait_for_all(store, launch))
        torch.distributed.init_process_group(
            backend, timeout=_LONGEST_WAIT, store=store, rank=launch.rank, world_size=launch.size
        )
    except RuntimeError as error:  # all kinds of torch.distributed are of it
        raise ConfigError(
            f"rank {launch.rank} of {launch.size} did not find the others at {launch.address}:{launch.port} "
            f"({first_line(error)}); see that all were started, and that the address can be reached"
        ) from error
    objects: Any = torch.distributed.group.WORLD
    if backend != "gloo":
        objects = torch.distributed.new_group(backend="gloo", timeout=_LONGEST_WAIT)

    def from_first(value: Any) -> Any:
        told = [value]
        torch.distributed.broadcast_object_list(told, src=0, group=objects)
        return told[0]

    lifeline = Lifeline(launch, from_first)
    hosts: list[Any] = [None] * launch.size
    torch.distributed.all_gather_object(hosts, socket.gethostname(), group=objects)
    return Several(launch.rank, launch.size, objects, lifeline, hosts)


def _wait_for_all(store: Any, launch: Launch) -> list[str]:
    """By rank, the address under which it reaches rank 0. Who connects to one that never comes waits as long as for one
    that samples: raises ConfigError with its rank.
    """
    names = [f"selfcorrect-{rank}" for rank in range(launch.size)]
    store.set(names[launch.rank], _own_address(launch.address, launch.port))
    until, told = time.monotonic() + _JOINING.total_seconds(), False
    while True:
        try:
            store.wait(names, _TELLING)
        except RuntimeError:
            missing = [str(rank) for rank, name in enumerate(names) if not store.check([name])]
        else:
            return [store.get(name).decode() for name in names]
        if missing and time.monotonic() > until:
            raise ConfigError(
                f"rank {launch.rank} of {launch.size} waited {_JOINING.total_seconds() / 60:.0f} minutes at "
                f"{launch.address}:{launch.port} for rank {', '.join(missing)}; see on its host whether it was "
                "started, and what it says"
            )
        if missing and launch.rank == 0 and not told:
            sys.stderr.write(f"waiting for rank {', '.join(missing)} of {launch.size}\n")
            sys.stderr.flush()
            told = True


def _name_interface(launch: Launch, addresses: Sequence[str]) -> None:
    """Gloo goes by the one of the host's own name, which many systems give to loopback, where no other host is.

    So it is told the one that leads to rank 0, where the user has not named any. Rank 0's host may reach itself by
    loopback, where it was named and not numbered: there it is the one that leads to another host. addresses: by rank.
    """
    import psutil

    if os.environ.get("GLOO_SOCKET_IFNAME"):
        return
    mine, elsewhere = addresses[launch.rank], [each for each in addresses if not ip_address(each).is_loopback]
    if elsewhere and mine not in elsewhere:
        mine = _own_address(elsewhere[0], launch.port)
    names = [name for name, all_of in psutil.net_if_addrs().items() if any(mine == each.address for each in all_of)]
    if names:
        os.environ["GLOO_SOCKET_IFNAME"] = names[0]


def _own_address(other: str, port: int) -> str:
    """Of this host, on the way to another one; that of loopback where nothing leads there."""
    with contextlib.suppress(OSError):
        kind, _, _, _, where = socket.getaddrinfo(other, port, type=socket.SOCK_DGRAM)[0]
        with socket.socket(kind, socket.SOCK_DGRAM) as probe:
            probe.connect(where)  # sends nothing
            return str(probe.getsockname()[0])
    return "127.0.0.1"


def _told(error: BaseException, ranks: Several) -> BaseException:
    """That a rank was lost before the run began, where that is what made the error."""
    if isinstance(error, RuntimeError) and (lost := ranks.loss(error)):
        return RankLost(f"{lost}; {ranks.lifeline.saved()}")
    return error


def _in_a_line(error: BaseException) -> str:
    text = one_line(error, 500)
    return text if isinstance(error, UserError) else f"{type(error).__name__}: {text}"
