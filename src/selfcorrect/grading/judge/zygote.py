"""The process that programs are forked from (stdlib only).

Started by exec with an empty environment, it imports what programs may use, confines itself, and forks on demand. It
never holds a program's source, a test or an answer: the source reaches the forked process through its own channel.
What it imports is kept small: a fork costs what there is to copy.

Messages on `control`: b"R" with a descriptor asks for a process; b"P" and its pid, with a pidfd, says that it runs;
b"X" and its wait status, that it ended; b"E" that none could be made.
"""

import ctypes
import gc
import json
import os
import resource
import struct
import sys
from _socket import CMSG_LEN, SCM_RIGHTS, SOL_SOCKET, socket
from collections.abc import Callable
from typing import Any

from selfcorrect.grading.judge import confine, suspect
from selfcorrect.grading.judge.preload import fix_draws, preload

CHANNEL = 3
STARTED, ENDED, DESCRIPTOR = struct.Struct("<ci"), struct.Struct("<ci"), struct.Struct("i")


def main() -> None:
    """argv: descriptor of the control socket, settings as JSON."""
    settings = json.loads(sys.argv[2])
    parent = int(settings["parent"])
    confine.die_with_parent(parent)
    confine.go_before_others(confine.FIRST)
    sys.path.extend(settings["packages_from"])
    preload(settings["packages"], more=settings["more"])
    if settings["more"]:
        from selfcorrect.grading.judge import loop

        loop.install()
    fix_draws()
    sys.path.clear()
    sys.argv = [""]
    confinement = confine.Confinement(**settings["confinement"])
    confine.prepare_filters(threads=confinement.namespaces)
    suspect.prepare()
    fork = _plain_fork()
    confine.limit_memory(settings["memory"])
    control = socket(fileno=int(settings["control"]))
    os.umask(0o777)
    confine.harden(confinement)
    confine.die_with_parent(parent)  # another user, another start: changing identity takes it off
    gc.collect()
    gc.freeze()  # the forks then share the pages
    os.dup2(1, 2)  # a flood on stderr must not fill the pipe that told of start-up errors
    control.sendall(b"S")
    here = os.getpid()
    while _serve_one(control, confinement, fork, here):
        pass


def _serve_one(control: socket, confinement: confine.Confinement, fork: Callable[[], int], here: int) -> bool:
    request, ancillary, _, _ = control.recvmsg(1, CMSG_LEN(DESCRIPTOR.size))
    if not request or not ancillary:
        return False
    [channel] = DESCRIPTOR.unpack(ancillary[0][2])
    pid = fork()
    if pid == 0:
        _become_suspect(channel, here, confinement)
    os.close(channel)
    if pid < 0:
        control.sendall(b"E")
    else:
        _watch(control, pid)
    return True


def _plain_fork() -> Callable[[], int]:
    """fork() without what Python does around it, which touches three times the memory and so takes twice the time.

    Sound here: this process has one thread, which goes on in the child as it is, and whose random state is set.
    """
    if not sys.platform.startswith("linux"):
        return os.fork
    fork: Callable[[], int] = ctypes.PyDLL(None).fork
    return fork


def _watch(control: socket, pid: int) -> None:
    """Name the process to the supervisor, which alone kills; wait for its end."""
    message = STARTED.pack(b"P", pid)
    if hasattr(os, "pidfd_open"):
        handle = os.pidfd_open(pid)
        control.sendmsg([message], [(SOL_SOCKET, SCM_RIGHTS, DESCRIPTOR.pack(handle))])
        os.close(handle)
    else:
        control.sendall(message)
    control.sendall(ENDED.pack(b"X", os.waitpid(pid, 0)[1]))


def _become_suspect(channel: int, parent: int, confinement: confine.Confinement) -> Any:
    """In the forked process: keep the channel alone, lock the door, run. Never returns."""
    try:
        confine.die_with_parent(parent)
        if channel != CHANNEL:
            os.dup2(channel, CHANNEL)
        os.closerange(CHANNEL + 1, resource.getrlimit(resource.RLIMIT_NOFILE)[0])
        confine.lock(confinement)
        suspect.serve(CHANNEL)
    finally:
        os._exit(0)
