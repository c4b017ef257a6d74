"""Puts a seccomp filter around this process, then judges what standard input holds; prints JSON.

python -m tests.judge.outer_filter '[[REFUSED CALLS], PRCTL OPTION]'
"""

import ctypes
import json
import platform
import struct
import sys

from selfcorrect.errors import SandboxError
from selfcorrect.grading.judge import CodeJudge
from tests.judge.hostile import checks_for

PRCTL = {"x86_64": 157, "aarch64": 167}
ALLOW, REFUSE = 0x7FFF0000, 0x00050001  # EPERM


def restrict(calls: list[int], option: int) -> None:
    code = [(0x20, 0, 0, 0)]
    for number in calls:
        code += [(0x15, 0, 1, number), (0x06, 0, 0, REFUSE)]
    if option:
        code += [(0x15, 0, 3, PRCTL[platform.machine()]), (0x20, 0, 0, 16), (0x15, 0, 1, option), (0x06, 0, 0, REFUSE)]
    text = b"".join(struct.pack("=HBBI", *step) for step in [*code, (0x06, 0, 0, ALLOW)])

    class Program(ctypes.Structure):
        _fields_ = (("len", ctypes.c_ushort), ("filter", ctypes.c_char_p))

    libc = ctypes.CDLL(None)
    program = Program(len(text) // 8, text)
    assert libc.prctl(38, 1, 0, 0, 0) == 0
    assert libc.prctl(22, 2, ctypes.byref(program), 0, 0) == 0


def main() -> None:
    calls, option = json.loads(sys.argv[1])
    restrict(calls, option)
    wrong = []
    try:
        with CodeJudge(workers=1, time_limit=0.7) as judge:
            confinement = judge.confinement
            for sources, passes in json.load(sys.stdin):
                found = judge.grade([(source, checks_for(source)) for source in sources])
                wrong += [
                    f"{s}: {v}"
                    for s, v in zip(sources, found, strict=True)
                    if v.passed is not passes or v.reason == "grader_failed"
                ]
        print(json.dumps({"tier": confinement.tier, "namespaces": confinement.namespaces, "wrong": wrong}))
    except SandboxError as error:
        print(json.dumps({"refused": str(error)}))


if __name__ == "__main__":
    main()
