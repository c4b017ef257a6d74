"""Memory that was freed stays with the process, where a model works on a CPU, and is used again.

glibc gives a large block back to the system as soon as it is freed, and takes the next one from there page by page:
to write a fresh tensor of 24 MB takes three times as long as to write where one was before. An update makes and frees
thousands of such tensors, and is 5 to 30 % shorter where they are kept. Two things have a heap that is kept break up:

- torch asks for tensors at multiples of 64 bytes, and glibc (2.36) takes a larger piece for one, whose ends it
  keeps for small requests. A tensor of the same size then does not fit where one was freed. So a process that trains
  begins without those small stores (`begin`): they can be turned off by the environment alone, as it starts.
- A heap with holes breaks up all the same, little by little. With MALLOC_MMAP_THRESHOLD_=1048576 in the environment
  large blocks are given back, and the process holds little beyond what is alive (docs/plan.md). Of smaller blocks some
  64 MiB stay even then: glibc would give back the heap's end at every one that is freed there.
"""

import ctypes
import os
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3  # of <malloc.h>
_KEPT = -1  # bytes that may lie free at the heap's end: any number
_OWN = 1 << 30  # bytes: blocks from this size on are taken from the system, and given back
_STEP = 64 << 20  # bytes by which the heap grows
_LITTLE = {_TRIM_THRESHOLD: 64 << 20, _TOP_PAD: 16 << 20}  # where large blocks are given back
GIVES_BACK, TUNABLES = "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES"
SET_BY_USER = (GIVES_BACK, "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_", TUNABLES)
WHOLE = "glibc.malloc.tcache_count=0:glibc.malloc.mxfast=0"  # no stores of small pieces
_BEGAN = os.environ.get(TUNABLES, "")  # glibc reads it as a process starts, and never again


def begin(script: str) -> None:
    """The command that this process runs starts anew, same process, same arguments, without glibc's stores of small
    pieces. Nothing happens where `script` is not the file of the command line, or `started_whole` changes nothing.
    """
    environment = started_whole(os.environ)
    if not is_whole() and environment != dict(os.environ) and _runs(script):
        sys.stdout.flush()
        sys.stderr.flush()
        with suppress(OSError):  # then it goes on as it is
            os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)
    _forget()


def started_whole(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment of a process that starts without them; as it is where there is no glibc, or the user has set its
    memory.
    """
    free = _is_glibc() and not any(name in environment for name in SET_BY_USER if name != GIVES_BACK)
    return dict(environment) | ({TUNABLES: WHOLE} if free else {})


def is_whole() -> bool:
    """Whether this process began without them."""
    return WHOLE in _BEGAN


def keep_freed_memory() -> bool:
    """For the whole process, once and for all. False where there is no glibc, or the user has set it in another way."""
    _forget()
    set_by_user = {name for name in SET_BY_USER if name in os.environ}
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is None or set_by_user - {GIVES_BACK}:
        return False
    kept = {_MMAP_THRESHOLD: _OWN, _TRIM_THRESHOLD: _KEPT, _TOP_PAD: _STEP}
    return all(mallopt(*each) == 1 for each in (_LITTLE if set_by_user else kept).items()) and not set_by_user


def give_back() -> None:
    """What lies free in glibc's heap goes back to the system at once, small pieces too; elsewhere nothing happens."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
    if trim is not None:
        trim(0)


def gives_back() -> bool:
    """Whether the user has freed memory given back."""
    return GIVES_BACK in os.environ


def _forget() -> None:
    """Children of this process, programs that are graded among them, start as they would have."""
    if os.environ.get(TUNABLES) == WHOLE:
        del os.environ[TUNABLES]


def _runs(script: str) -> bool:
    """Of what Python was started with; sys.argv may have been set since, as by a test that calls a command."""
    started = Path(getattr(sys.modules["__main__"], "__file__", None) or "")
    return started.name == "selfcorrect" or (started.is_file() and started.samefile(script))


def _is_glibc() -> bool:
    try:
        return (os.confstr("CS_GNU_LIBC_VERSION") or "").startswith("glibc")
    except (AttributeError, OSError, ValueError):  # Windows; other C libraries
        return False
