"""The cores that are ours, and how torch's threads wait for work on them (stdlib only)."""

import os
import sys

SPINS = "1000"  # some tens of microseconds


def cores() -> int:
    """How many cores this process may use, which a container or a scheduler may hold beneath those of the machine."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def wait_briefly() -> None:
    """Threads that have nothing to do look for work for a moment, then sleep; whoever has set how they wait is obeyed.

    libgomp, which torch brings, reads it once, when torch is first imported: where that is done, nothing changes. Its
    default spins for milliseconds at every gap, which other work on the same cores pays for, and so does the thread
    that is waited for; not spinning at all costs a wake-up at every operation (benchmarks/waiting.py).
    """
    if "torch" not in sys.modules and not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys():
        os.environ["GOMP_SPINCOUNT"] = SPINS
