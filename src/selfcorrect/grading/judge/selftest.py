"""Hostile programs that the judge runs against itself before the first real one (stdlib only).

Each defines `broke_out()`, which returns True where the confinement failed; a `passed` verdict is a hole.
"""

import contextlib
import secrets
import tempfile
from collections.abc import Callable
from pathlib import Path

from selfcorrect.grading.judge.verdict import Checks, Reason, Verdict

_CHECKS = Checks("assert broke_out() == True")
_NEVER = Checks("assert answer() == 42\nassert answer() == 43")

_READ = """
def broke_out():
    return open({secret!r}).read() == {word!r}
"""
_WRITE = """
import os
def broke_out():
    for flags in (os.O_WRONLY, os.O_RDWR | os.O_CREAT):
        os.write(os.open({victim!r}, flags), b"gone")
    return True
"""
_NETWORK = """
import socket
def broke_out():
    socket.socket(socket.AF_UNIX if {unix} else socket.AF_INET)
    return True
"""
_FORK = """
import os
def broke_out():
    if os.fork() == 0:
        os._exit(0)
    return True
"""
_EXECUTE = """
import os
def broke_out():
    return os.posix_spawn("/bin/true", ["true"], {}) > 0
"""
_SIGNAL = """
import os
def broke_out():
    os.kill(os.getppid(), 0)
    return True
"""
_SYSTEM_CALLS = """
import ctypes
def broke_out():
    libc = ctypes.CDLL(None)
    calls = [libc.unshare(0x10000000), libc.ptrace(16, 1, 0, 0), libc.prctl(4, 1, 0, 0, 0), libc.memfd_create(b"x", 0)]
    return any(result >= 0 for result in calls)
"""
_DESCRIPTORS = """
import os
def broke_out():
    found = []
    for number in range(64):
        try:
            os.write(number, b"")
            found.append(number)
        except OSError as error:
            if error.errno != 9:
                found.append(number)
    return found != [0, 1, 2, 3]
"""
_OWNER = """
import ctypes
def broke_out():
    return ctypes.CDLL(None).fcntl(3, 8, 1) >= 0 or ctypes.CDLL(None).fcntl(3, 10, 9) >= 0
"""
_ENVIRONMENT = """
import os
def broke_out():
    return any("HOME" in name or "PATH" in name or "USER" in name for name in os.environ)
"""
_FORGERIES = {
    "an object equal to everything": "class E:\n    def __eq__(self, o): return True\ndef answer(): return E()",
    "exit status 0": "import os\ndef answer(): os._exit(0)",
    "answers before the questions": (
        "import os\ndef answer(): return 0\n"
        "for n in (42, 43):\n    m = b'[\"\",\"ok\",%d]' % n\n    os.write(3, len(m).to_bytes(4, 'little') + m)"
    ),
}


def holes(run: Callable[[str, Checks], Verdict]) -> list[str]:
    """Names of the programs that got through; empty where all is well. Trouble of the judge counts as a hole."""
    found = []
    with tempfile.TemporaryDirectory() as folder:
        secret, victim = Path(folder) / "secret", Path(folder) / "victim"
        word = secrets.token_hex(8)
        secret.write_text(word)
        victim.write_text("whole")
        with contextlib.suppress(OSError):  # so that it is the confinement that keeps it, not the file's mode
            Path(folder).chmod(0o755)
            victim.chmod(0o666)
        escapes = {
            "reads files": _READ.format(secret=str(secret), word=word),
            "writes files": _WRITE.format(victim=str(victim)),
            "opens network sockets": _NETWORK.format(unix=False),
            "opens local sockets": _NETWORK.format(unix=True),
            "starts processes": _FORK,
            "runs commands": _EXECUTE,
            "sends signals": _SIGNAL,
            "has signals sent": _OWNER,
            "makes dangerous system calls": _SYSTEM_CALLS,
            "inherits descriptors": _DESCRIPTORS,
            "sees the environment": _ENVIRONMENT,
        }
        for name, source in escapes.items():
            if run(source, _CHECKS).reason in (Reason.PASSED, Reason.GRADER_FAILED):
                found.append(name)
        if victim.read_text() != "whole":
            found.append("writes files")
    for name, source in _FORGERIES.items():
        if run(source, _NEVER).reason in (Reason.PASSED, Reason.GRADER_FAILED):
            found.append(f"forges a pass by {name}")
    if run("def answer():\n    while True: pass", _NEVER).reason is not Reason.TIMEOUT:
        found.append("runs without end")
    if not run("def answer(c=iter((42, 43))): return next(c)", _NEVER).passed:
        found.append("fails a program that is right")
    return found
