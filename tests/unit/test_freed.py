"""Memory that was freed is written again, not taken from the system anew."""

import ctypes
import os
import subprocess
import sys

import pytest

from selfcorrect.models.freed import GIVES_BACK, SET_BY_USER

COUNT = """
import resource, sys
import torch
from selfcorrect.models.freed import keep_freed_memory
if sys.argv[1] == "keep":
    print(keep_freed_memory())
for _ in range(12):  # until the C library's own small leftovers lie where they stay
    torch.ones(16 << 20)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    torch.ones(16 << 20)  # 64 MiB
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


SMALL = """
import ctypes, resource, sys
from selfcorrect.models.freed import keep_freed_memory
if sys.argv[1] == "keep":
    print(keep_freed_memory())
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
def use():
    blocks = [libc.malloc(1 << 19) for _ in range(40)]
    for block in blocks:
        ctypes.memset(block, 1, 1 << 19)
    for block in blocks:
        libc.free(block)
use()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
use()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def said(argument: str, script: str = COUNT, **environment: str) -> list[str]:
    call = [sys.executable, "-c", script, argument]
    unset = {name: value for name, value in os.environ.items() if name not in SET_BY_USER}
    done = subprocess.run(call, env={**unset, **environment}, capture_output=True, text=True, check=True)
    return done.stdout.split()


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="this C library takes no settings")
@pytest.mark.nightly
def test_a_second_tensor_lies_where_the_first_one_was() -> None:
    *_, fresh = said("leave")
    kept, again = said("keep")
    assert kept == "True"
    # Pages may be of 2 MiB.
    assert int(fresh) > 20 * 16, "this machine gives no fresh pages; the comparison says nothing"
    assert int(again) < int(fresh) / 10


@pytest.mark.nightly
def test_what_the_user_has_set_is_left_alone() -> None:
    kept, _ = said("keep", MALLOC_TRIM_THRESHOLD_="1000000")
    assert kept == "False"


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="this C library takes no settings")
@pytest.mark.nightly
def test_where_large_blocks_are_given_back_small_ones_stay() -> None:
    given_back = {GIVES_BACK: str(1 << 20)}
    *_, trimmed = said("leave", SMALL, **given_back)
    kept, again = said("keep", SMALL, **given_back)
    assert kept == "False"
    assert int(again) < int(trimmed) / 10
    assert int(said("keep", **given_back)[1]) > 20 * 16
