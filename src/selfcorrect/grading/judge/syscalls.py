"""What a confined process may ask of the kernel, and the filter that says so (stdlib only).

An allowlist: what is not named gets EPERM. A call through another architecture's door (int 0x80, x32) ends the
process. Reading and writing work on the descriptors a process already holds; there is no call that opens, connects,
starts a process, sends a signal or changes a limit. fcntl is not among them: it can have the kernel send any signal
to any process of the same user (F_SETOWN, F_SETSIG, O_ASYNC).
"""

import struct
from typing import NamedTuple

# Numbers: asm/unistd_64.h on x86_64, asm-generic/unistd.h on aarch64 (a test compares where the headers lie).
_COMMON = {
    "read": (0, 63), "write": (1, 64), "close": (3, 57), "fstat": (5, 80), "lseek": (8, 62), "mmap": (9, 222),
    "mprotect": (10, 226), "munmap": (11, 215), "brk": (12, 214), "rt_sigaction": (13, 134),
    "rt_sigprocmask": (14, 135), "rt_sigreturn": (15, 139), "pread64": (17, 67), "sched_yield": (24, 124),
    "mremap": (25, 216), "madvise": (28, 233), "dup": (32, 23), "nanosleep": (35, 101), "getpid": (39, 172),
    "exit": (60, 93), "uname": (63, 160), "gettimeofday": (96, 169), "getrusage": (98, 165),
    "sysinfo": (99, 179), "times": (100, 153), "getuid": (102, 174), "getgid": (104, 176), "geteuid": (107, 175),
    "getegid": (108, 177), "getppid": (110, 173), "sigaltstack": (131, 132), "gettid": (186, 178), "futex": (202, 98),
    "sched_getaffinity": (204, 123), "restart_syscall": (219, 128), "clock_gettime": (228, 113),
    "clock_getres": (229, 114), "clock_nanosleep": (230, 115), "exit_group": (231, 94), "pselect6": (270, 72),
    "ppoll": (271, 73), "set_robust_list": (273, 99), "getcpu": (309, 168), "membarrier": (324, 283),
    "rseq": (334, 293),
}  # fmt: skip
_X86_ONLY = {"poll": 7, "select": 23, "time": 201}
_JUDGE_ONLY = {"recvmsg": (47, 212)}  # it receives each program's channel
_CLONE, _CLONE3 = (56, 220), (435, 435)

_THREAD = 0x00010000  # CLONE_THREAD
_NEW_NAMESPACES = 0x7E020080  # CLONE_NEWNS, CGROUP, UTS, IPC, USER, PID, NET and TIME
_EPERM, _ENOSYS = 1, 38
_ALLOW, _ERRNO, _KILL_PROCESS = 0x7FFF0000, 0x00050000, 0x80000000
_LOAD, _EQUAL, _AT_LEAST, _AND, _RETURN = 0x20, 0x15, 0x35, 0x54, 0x06
_NUMBER_AT, _ARCHITECTURE_AT, _FIRST_ARGUMENT_AT = 0, 4, 16


class Machine(NamedTuple):
    """An architecture: its AUDIT_ARCH value and its column of the tables."""

    name: str
    audit: int
    column: int


MACHINES = {"x86_64": Machine("x86_64", 0xC000003E, 0), "aarch64": Machine("aarch64", 0xC00000B7, 1)}


def allowed(machine: Machine, *, judge: bool) -> dict[str, int]:
    """Names and numbers of the calls that are always let through."""
    table = {name: numbers[machine.column] for name, numbers in _COMMON.items()}
    if machine.name == "x86_64":
        table |= _X86_ONLY
    if judge:
        table |= {name: numbers[machine.column] for name, numbers in _JUDGE_ONLY.items()}
    return table


def build_filter(machine: Machine, *, judge: bool = False, threads: bool = True) -> bytes:
    """The seccomp program, as the kernel's array of struct sock_filter. threads: whether clone may make them.

    A tree of comparisons: the kernel runs it for every call number there is whenever a process takes it on.
    """
    allow, refuse = [_op(_RETURN, _ALLOW)], [_op(_RETURN, _ERRNO | _EPERM)]
    answers = dict.fromkeys(allowed(machine, judge=judge).values(), allow)
    # clone3 hides its flags behind a pointer; without it the C library falls back to clone
    answers[_CLONE3[machine.column]] = [_op(_RETURN, _ERRNO | _ENOSYS)]
    if threads:
        flags = [_op(_LOAD, _FIRST_ARGUMENT_AT), _op(_AND, _THREAD | _NEW_NAMESPACES), _op(_EQUAL, _THREAD, 0, 1)]
        answers[_CLONE[machine.column]] = [*flags, *allow, *refuse]
    code = [_op(_LOAD, _ARCHITECTURE_AT), _op(_EQUAL, machine.audit, 1, 0), _op(_RETURN, _KILL_PROCESS)]
    code += [_op(_LOAD, _NUMBER_AT)]
    if machine.name == "x86_64":
        code += [_op(_AT_LEAST, 0x40000000, 0, 1), _op(_RETURN, _KILL_PROCESS)]  # x32
    spans = [(0, answers.get(0, refuse))]
    for number in range(1, max(answers) + 2):
        if (answer := answers.get(number, refuse)) != spans[-1][1]:
            spans.append((number, answer))
    return b"".join(code + _tree(spans))


def _tree(spans: list[tuple[int, list[bytes]]]) -> list[bytes]:
    """Which span a number is in, each from its first number to the next span's, and what is answered there."""
    if len(spans) == 1:
        return spans[0][1]
    half = len(spans) // 2
    below, above = _tree(spans[:half]), _tree(spans[half:])
    return [_op(_AT_LEAST, spans[half][0], len(below), 0), *below, *above]


def _op(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, if_true, if_false, value)
