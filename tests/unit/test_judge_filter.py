"""The system-call filter, run by an interpreter of the kernel's little language, for both architectures."""

import re
import struct
from pathlib import Path

import pytest

from selfcorrect.grading.judge.syscalls import (
    _CLONE,
    _CLONE3,
    _COMMON,
    _JUDGE_ONLY,
    _X86_ONLY,
    MACHINES,
    Machine,
    allowed,
    build_filter,
)

ALLOW, EPERM, ENOSYS, KILL = 0x7FFF0000, 0x00050001, 0x00050026, 0x80000000
THREAD_FLAGS = 0x3D0F00  # what the C library passes to make a thread
HEADERS = {"x86_64": "/usr/include/x86_64-linux-gnu/asm/unistd_64.h", "aarch64": "/usr/include/asm-generic/unistd.h"}


def run(code: bytes, number: int, audit: int, argument: int = 0) -> int:
    """What the filter answers to one call: struct seccomp_data in, SECCOMP_RET_* out."""
    data = struct.pack("=IIQQQQQQQ", number & 0xFFFFFFFF, audit, 0, argument, 0, 0, 0, 0, 0)
    steps = [struct.unpack("=HBBI", code[at : at + 8]) for at in range(0, len(code), 8)]
    accumulator, at = 0, 0
    while True:
        operation, if_true, if_false, value = steps[at]
        at += 1
        match operation:
            case 0x20:
                [accumulator] = struct.unpack_from("=I", data, value)
            case 0x54:
                accumulator &= value
            case 0x15:
                at += if_true if accumulator == value else if_false
            case 0x35:
                at += if_true if accumulator >= value else if_false
            case 0x06:
                return int(value)
            case _:
                raise AssertionError(f"operation {operation:#x}")


@pytest.mark.parametrize("machine", MACHINES.values(), ids=str)
@pytest.mark.parametrize("judge", [False, True])
def test_only_what_is_named_gets_through(machine: Machine, judge: bool) -> None:
    code = build_filter(machine, judge=judge)
    named = set(allowed(machine, judge=judge).values())
    answers = {number: run(code, number, machine.audit, THREAD_FLAGS) for number in range(600)}
    assert {number for number, answer in answers.items() if answer == ALLOW} == named | {_CLONE[machine.column]}
    assert answers[_CLONE3[machine.column]] == ENOSYS
    assert set(answers.values()) == {ALLOW, EPERM, ENOSYS}
    for flags in (
        17,
        0x11,
        0x4000 | 0x100 | 17,
        THREAD_FLAGS | 0x10000000,
        THREAD_FLAGS & ~0x10000,
        0,
    ):  # fork, vfork, new namespaces
        assert run(code, _CLONE[machine.column], machine.audit, flags) == EPERM


@pytest.mark.parametrize("machine", MACHINES.values(), ids=str)
def test_other_doors_end_the_process(machine: Machine) -> None:
    code = build_filter(machine)
    for audit in (0x40000003, 0xC00000B7, 0xC000003E, 0x40000028, 0):
        if audit != machine.audit:
            assert run(code, 0, audit) == KILL
    if machine.name == "x86_64":
        assert run(code, 0x40000000, machine.audit) == KILL
        assert run(code, 0xFFFFFFFF, machine.audit) == KILL


@pytest.mark.parametrize("name", HEADERS)
def test_numbers_are_the_kernels(name: str) -> None:
    file = Path(HEADERS[name])
    if not file.exists():
        pytest.skip(f"no {file} here")
    found = {
        call: int(number)
        for call, number in re.findall(r"#define __NR\w*?_(\w+)\s+(\d+)\s*$", file.read_text(), re.MULTILINE)
    }
    table = {
        call: numbers[MACHINES[name].column]
        for call, numbers in {**_COMMON, **_JUDGE_ONLY, "clone": _CLONE, "clone3": _CLONE3}.items()
    }
    if name == "x86_64":
        table |= _X86_ONLY
    assert {
        call: number for call, number in table.items() if found.get(call, found.get(f"3264_{call}")) != number
    } == {}
