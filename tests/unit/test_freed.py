"""Memory that was freed: a narrow model's is written again and not taken from the system anew, a wide one's given back."""

import ctypes
import os
import subprocess
import sys

import pytest

from selfcorrect.models.freed import SET_BY_USER

COUNT = """
import resource, sys
import torch
from selfcorrect.models.freed import give_back_freed_memory, keep_freed_memory
def held():
    return int(open("/proc/self/statm").read().split()[1])
print({'keep': keep_freed_memory, 'give': give_back_freed_memory}[sys.argv[1]]())
for _ in range(12):  # until the C library's own small leftovers lie where they stay
    torch.ones(6 << 20)
before, faults = held(), resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    torch.ones(6 << 20)  # 24 MiB
faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults
many = [torch.ones(6 << 20) for _ in range(20)]
lasts = torch.ones(10)
del many
print(faults, held() - before)
"""


def said(how: str, **environment: str) -> list[str]:
    call = [sys.executable, "-c", COUNT, how]
    unset = {name: value for name, value in os.environ.items() if name not in SET_BY_USER}
    done = subprocess.run(call, env={**unset, **environment}, capture_output=True, text=True, check=True)
    return done.stdout.split()


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="this C library takes no settings")
@pytest.mark.nightly
def test_what_was_freed_is_written_again_or_given_back() -> None:
    (done, fresh, left), (kept, again, held) = said("give"), said("keep")
    assert done == kept == "True"
    # Pages may be of 2 MiB.
    assert int(fresh) > 20 * 12, "this machine gives no fresh pages; the comparison says nothing"
    assert int(again) < int(fresh) / 10
    page = os.sysconf("SC_PAGESIZE")
    assert int(left) * page < 24 << 20 < int(held) * page


@pytest.mark.nightly
def test_what_the_user_has_set_is_left_alone() -> None:
    assert said("keep", MALLOC_TRIM_THRESHOLD_="1000000")[0] == "False"
