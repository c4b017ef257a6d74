"""Memory that was freed is written again, not taken from the system anew."""

import ctypes
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from selfcorrect.models.freed import GIVES_BACK, SET_BY_USER, TUNABLES, WHOLE

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


BEGINS = """
import os, sys
from selfcorrect.models import freed
print(len(sys.argv), os.getpid(), freed.is_whole())
freed.begin({script})
print(*sys.argv[1:], os.getpid(), freed.is_whole(), os.environ.get(freed.TUNABLES), freed.keep_freed_memory())
"""

HOLES = """
import ctypes, sys
import torch
from torch.utils.checkpoint import checkpoint
from selfcorrect.models.freed import keep_freed_memory
print(keep_freed_memory())
class Told(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in ("arena", *"bcdefghij")]
libc = ctypes.CDLL(None)
libc.mallinfo2.restype = Told
torch.set_num_threads(1)
layers = [torch.nn.Linear(128, 128) for _ in range(30)]
def piece(layer, x):
    return x + torch.nn.functional.gelu(layer(x)) * torch.sigmoid(x).mul(2)
for rows in (3000, 3200, 2900, 3100, 3300, 2800):
    x = torch.randn(rows, 128, requires_grad=True)
    for layer in layers:
        x = checkpoint(piece, layer, x, use_reentrant=False)
    x.sum().backward()
print(libc.mallinfo2().arena >> 20)
"""
END = """
import ctypes
from selfcorrect.models.freed import keep_freed_memory
print(keep_freed_memory())
class Told(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in (*"abcdefghi", "end")]
libc = ctypes.CDLL(None)
libc.mallinfo2.restype = Told
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
blocks = [libc.malloc(1 << 29) for _ in range(6)]  # 3 GiB, of which nothing is written
for block in blocks:
    libc.free(block)
print(libc.mallinfo2().end >> 20)
"""
GLIBC = platform.libc_ver()
OF_GLIBC = pytest.mark.skipif(GLIBC[0] != "glibc", reason="another C library")


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


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="this C library takes no settings")
@pytest.mark.nightly
def test_where_large_blocks_are_given_back_small_ones_stay() -> None:
    given_back = {GIVES_BACK: str(1 << 20)}
    *_, trimmed = said("leave", SMALL, **given_back)
    kept, again = said("keep", SMALL, **given_back)
    assert kept == "False"
    assert int(again) < int(trimmed) / 10
    assert int(said("keep", **given_back)[1]) > 20 * 16
    assert said("keep", MALLOC_TRIM_THRESHOLD_="1000000")[0] == "False"  # what the user has set is left alone


def begun(folder: Path, script: str = "__file__", **environment: str) -> list[list[str]]:
    """What a command says that begins anew where `script` is its file: lines of words."""
    (folder / "command.py").write_text(BEGINS.format(script=script), encoding="utf-8")
    call = [sys.executable, str(folder / "command.py"), "one two", "three"]
    unset = {name: value for name, value in os.environ.items() if name not in SET_BY_USER}
    done = subprocess.run(call, env={**unset, **environment}, capture_output=True, text=True, check=True)
    return [line.split() for line in done.stdout.splitlines()]


@OF_GLIBC
def test_a_command_begins_anew_as_the_same_process_and_leaves_its_children_alone(tmp_path: Path) -> None:
    first, again, last = begun(tmp_path)
    assert first[2] == "False"
    assert again == [*first[:2], "True"]
    assert last == ["one", "two", "three", first[1], "True", "None", "True"]


@OF_GLIBC
def test_nothing_begins_anew_in_another_programme_or_where_the_user_has_set_memory(tmp_path: Path) -> None:
    elsewhere = begun(tmp_path, script="os.__file__")
    assert [line[-1] for line in elsewhere] == ["False", "True"]
    theirs = "glibc.malloc.trim_threshold=1000000"
    own = begun(tmp_path, **{TUNABLES: theirs})
    assert [line[-3:] for line in own[1:]] == [["False", theirs, "False"]]
    # Memory that is given back leaves small pieces too.
    assert begun(tmp_path, **{GIVES_BACK: str(1 << 20)})[-1][-3:] == ["True", "None", "False"]


@pytest.mark.skipif(GLIBC < ("glibc", "2.33"), reason="mallinfo2 is of glibc 2.33")
def test_more_than_two_gibibytes_stay_at_the_heaps_end() -> None:
    kept, free = said("keep", END)
    assert kept == "True"
    assert int(free) >= 3 << 10


@pytest.mark.skipif(GLIBC < ("glibc", "2.26") or GLIBC >= ("glibc", "2.38"), reason="such holes were seen with 2.36")
@pytest.mark.nightly
def test_tensors_find_room_where_others_were_freed() -> None:
    _, apart = said("keep", HOLES)
    kept, together = said("keep", HOLES, **{TUNABLES: WHOLE})
    assert kept == "True"
    assert int(together) < 0.85 * int(apart)
