"""What becomes of memory that was freed, where a model works on a CPU: kept by the process, or given back.

glibc gives a large block back to the system as soon as it is freed, and takes the next one from there page by page; an
update makes and frees thousands. Kept, they spare a narrow model, whose tensors are soon computed, a third of a step's
time. But a heap that keeps them breaks up: with a wide model the process held a quarter more than with blocks given
back, and was as quick (docs/log.md). So narrow models keep and wide ones give back, and then what the process holds is
what is alive, as `selfcorrect plan` says.
"""

import ctypes
import os

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3  # of <malloc.h>
_KEPT = (1 << 31) - 1  # bytes that may lie free at the heap's end; the parameter is a C int
_OWN = 1 << 30  # bytes: blocks from this size on are taken from the system, and given back
_STEP = 64 << 20  # bytes by which the heap grows
# The same for all others. Setting the first also ends glibc's own raising of it, to 32 MiB.
_GIVEN_BACK, _LITTLE = 1 << 20, 1 << 17
WIDE = 256  # hidden numbers of a token
SET_BY_USER = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_", "GLIBC_TUNABLES")


def give_back_freed_memory() -> bool:
    """For the whole process, before a model is loaded: a heap with holes fills those first, whatever is set.

    False where there is no glibc, or the user has set it in another way.
    """
    return _set((_MMAP_THRESHOLD, _GIVEN_BACK), (_TRIM_THRESHOLD, _GIVEN_BACK), (_TOP_PAD, _LITTLE))


def keep_freed_memory() -> bool:
    """For the whole process, until the next model is loaded. False as above."""
    return _set((_MMAP_THRESHOLD, _OWN), (_TRIM_THRESHOLD, _KEPT), (_TOP_PAD, _STEP))


def _set(*settings: tuple[int, int]) -> bool:
    if any(name in os.environ for name in SET_BY_USER):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    return mallopt is not None and all(mallopt(name, value) == 1 for name, value in settings)
