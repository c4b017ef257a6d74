"""Rootless confinement by the kernel itself (stdlib only, Linux calls through libc).

Every layer is inherited and cannot be taken off again: no_new_privs, resource limits, namespaces where allowed,
another user where we are root, Landlock, and last the system-call filter.
"""

import contextlib
import ctypes
import os
import resource
import sys
from collections.abc import Callable
from functools import cache, partial
from typing import Any, NamedTuple

from selfcorrect.grading.judge.syscalls import MACHINES, build_filter

_NOBODY, _SIGKILL = 65534, 9
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 1, 4, 22, 38
_SECCOMP_MODE_FILTER = 2
_LANDLOCK_CREATE_RULESET, _LANDLOCK_RESTRICT_SELF = 444, 446
_CAPSET = {"x86_64": 126, "aarch64": 91}
_CAPABILITY_VERSION_3 = 0x20080522
_NAMESPACES = 0x10000000 | 0x40000000 | 0x08000000 | 0x04000000 | 0x00020000  # user, network, IPC, UTS, mount
_FILE_RIGHTS_BY_ABI = {1: 13, 2: 14, 3: 15, 5: 16}  # how many access rights each Landlock ABI knows
_MEBIBYTE = 1 << 20
FIRST, EARLY = 1000, 900  # for go_before_others


class Confinement(NamedTuple):
    """What holds a program on this machine. tier 1: Landlock and seccomp; 2: seccomp alone; 3: neither."""

    tier: int
    landlock: int  # ABI version, 0 without
    seccomp: bool
    namespaces: bool
    other_user: bool

    def __str__(self) -> str:
        parts = [f"Landlock {self.landlock}"] if self.landlock else []
        parts += ["seccomp"] if self.seccomp else []
        parts += ["namespaces"] if self.namespaces else []
        parts += [f"as user {_NOBODY}"] if self.other_user else []
        return f"tier {self.tier} ({', '.join(parts) or 'separate processes and resource limits only'})"


NOTHING = Confinement(3, 0, False, False, False)


def probe() -> Confinement:
    """Try each layer in a process of its own and see what holds. Call only in a process without threads."""
    if not sys.platform.startswith("linux") or os.uname().machine not in MACHINES:
        return NOTHING
    landlock = max(0, _libc().syscall(_LANDLOCK_CREATE_RULESET, None, ctypes.c_size_t(0), 1))
    namespaces = _survives(_enter_namespaces)
    other_user = os.geteuid() == 0 and _survives(_drop_user)
    if landlock and not _survives(lambda: _landlock(landlock)):
        landlock = 0
    prepare_filters()
    seccomp = _survives(_try_filter)
    if not seccomp:
        return NOTHING
    return Confinement(1 if landlock else 2, landlock, True, namespaces, other_user)


def _try_filter() -> None:
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    lock(Confinement(2, 0, True, False, False))


def harden(confinement: Confinement) -> None:
    """Everything but the system-call filter, once, before any program: what is forked from here inherits it.

    Raises OSError where a layer that was probed does not hold.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (32, 32))
    if confinement.tier == NOTHING.tier:
        return
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    if confinement.other_user:
        _drop_user()
    if confinement.namespaces:
        _enter_namespaces()
        resource.setrlimit(resource.RLIMIT_NPROC, (128, 128))  # counted within the new user namespace
    if confinement.landlock:
        _landlock(confinement.landlock)
    _prctl(_PR_SET_DUMPABLE, 0)


def limit_memory(mebibytes: int) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (mebibytes * _MEBIBYTE,) * 2)


def lock(confinement: Confinement, *, judge: bool = False) -> None:
    """The system-call filter: the last layer, in the process that will run untrusted or data-set code.

    After harden (which forbids new privileges) and prepare_filters.
    """
    if not confinement.seccomp:
        return
    if _locks[judge]() < 0:
        raise OSError(ctypes.get_errno(), "prctl: the system-call filter was refused")


def die_with_parent(parent: int) -> None:
    """SIGKILL as soon as the parent is gone, even if it was gone already."""
    if _die:
        _die[0]()
    elif sys.platform.startswith("linux"):
        _prctl(_PR_SET_PDEATHSIG, _SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def go_before_others(score: int) -> None:
    """When the machine runs out of memory the kernel is to take this process, and what it starts, not the trainer.

    Needs no privilege, but must come before harden: afterwards the file cannot be opened. score: up to 1000.
    """
    with contextlib.suppress(OSError, ValueError), open("/proc/self/oom_score_adj", "r+b", buffering=0) as file:
        if int(file.read()) < score:
            file.write(str(score).encode())


def fix_layout() -> None:
    """Same addresses in every process started from here, where the machine allows: some verdicts hang on them."""
    if sys.platform.startswith("linux"):
        _libc().personality(ctypes.c_ulong(0x0040000))  # ADDR_NO_RANDOMIZE; refused in some containers


def _enter_namespaces() -> None:
    _check(_libc().unshare(_NAMESPACES), "unshare")
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    nothing = (ctypes.c_uint32 * 6)()
    _check(_libc().syscall(_CAPSET[os.uname().machine], header, nothing), "capset")


def _drop_user() -> None:
    os.setgroups([])
    os.setresgid(_NOBODY, _NOBODY, _NOBODY)
    os.setresuid(_NOBODY, _NOBODY, _NOBODY)


def _landlock(abi: int) -> None:
    """No rule is added: every right a ruleset knows is denied everywhere."""
    rights = max(count for version, count in _FILE_RIGHTS_BY_ABI.items() if version <= abi)
    attributes = (ctypes.c_uint64 * 3)((1 << rights) - 1, 0b11 if abi >= 4 else 0, 0b11 if abi >= 6 else 0)
    size = 24 if abi >= 6 else 16 if abi >= 4 else 8
    descriptor = _check(
        _libc().syscall(_LANDLOCK_CREATE_RULESET, attributes, ctypes.c_size_t(size), 0), "landlock_create_ruleset"
    )
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    _check(_libc().syscall(_LANDLOCK_RESTRICT_SELF, descriptor, 0), "landlock_restrict_self")
    os.close(descriptor)


def _survives(layer: Any) -> bool:
    """Whether a forked process could put the layer on."""
    pid = os.fork()
    if pid == 0:
        try:
            layer()
        except BaseException:  # noqa: BLE001 - in a child that only reports whether it worked
            os._exit(1)
        os._exit(0)
    return os.waitpid(pid, 0)[1] == 0


class _SockFprog(ctypes.Structure):
    _fields_ = (("len", ctypes.c_ushort), ("filter", ctypes.c_char_p))


_locks: dict[bool, Callable[[], int]] = {}
_die: list[Callable[[], int]] = []


def prepare_filters(*, threads: bool = False) -> None:
    """Build the filters and the calls now: what a fork does not have to build costs it nothing.

    threads: only where their number is bounded, which takes a user namespace.
    """
    if os.uname().machine not in MACHINES:
        return
    prctl = ctypes.PyDLL(None, use_errno=True).prctl
    prctl.argtypes = [ctypes.c_int, *[ctypes.c_void_p] * 4]
    _die.append(partial(prctl, _PR_SET_PDEATHSIG, _SIGKILL, 0, 0, 0))
    for judge in (False, True):
        code = build_filter(MACHINES[os.uname().machine], judge=judge, threads=threads)
        program = _SockFprog(len(code) // 8, code)
        _locks[judge] = partial(prctl, _PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.byref(program), 0, 0)


@cache
def _libc() -> Any:
    return ctypes.CDLL(None, use_errno=True)


def _prctl(option: int, *arguments: Any) -> None:
    padded = [ctypes.c_ulong(a) if isinstance(a, int) else a for a in (*arguments, 0, 0, 0, 0)][:4]
    _check(_libc().prctl(option, *padded), f"prctl {option}")


def _check(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result
