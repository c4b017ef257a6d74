"""Memory that was freed stays with the process, where a model works on a CPU.

glibc gives a large block back to the system as soon as it is freed, and takes the next one from there page by page:
to write a fresh tensor of 24 MB takes three times as long as to write where one was before. An update makes and frees
thousands of such tensors, and is 5 to 30 % shorter this way. It costs memory, as a heap with holes breaks up: with
MALLOC_MMAP_THRESHOLD_=1048576 in the environment the process holds little beyond what is alive (docs/plan.md). Of
smaller blocks some 64 MiB stay even then: glibc would give back the heap's end at every one that is freed there.
"""

import ctypes
import os

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3  # of <malloc.h>
_KEPT = (1 << 31) - 1  # bytes that may lie free at the heap's end; the parameter is a C int
_OWN = 1 << 30  # bytes: blocks from this size on are taken from the system, and given back
_STEP = 64 << 20  # bytes by which the heap grows
_LITTLE = {_TRIM_THRESHOLD: 64 << 20, _TOP_PAD: 16 << 20}  # where large blocks are given back
GIVES_BACK = "MALLOC_MMAP_THRESHOLD_"
SET_BY_USER = (GIVES_BACK, "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_", "GLIBC_TUNABLES")


def keep_freed_memory() -> bool:
    """For the whole process, once and for all. False where there is no glibc, or the user has set it in another way."""
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
