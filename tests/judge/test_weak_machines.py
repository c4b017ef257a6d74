"""Machines and containers that offer less: an outer filter takes system calls away before the judge starts."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from selfcorrect.grading.judge.syscalls import MACHINES
from tests.judge.hostile import ESCAPE, FORGE, OK

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="seccomp is Linux's")
LANDLOCK = (444, 445, 446)
# What Docker's default profile refuses without capabilities, as far as the judge or its programs might ask for it.
DOCKER = {
    "x86_64": (272, 308, 165, 166, 155, 321, 298, 323, 425, 426, 427, 248, 249, 250, 161, 170, 171, 135),
    "aarch64": (97, 268, 40, 39, 41, 280, 241, 282, 425, 426, 427, 217, 218, 219, 51, 161, 162, 92),
}
NO_FILTERS = {"x86_64": (317,), "aarch64": (277,)}


def judged_without(calls: tuple[int, ...], prctl: int = 0) -> dict[str, object]:
    """The judge in a process that may not make these calls, nor prctl(`prctl`, ...)."""
    # Without a namespace nothing bounds the number of threads, so there are none. What asks nothing of the system is left
    # to test_judge.py.
    ok = [source for name, source in OK.items() if name not in ("threads", "deep recursion")]
    forged = [source for source in FORGE.values() if "import os" in source and "while True" not in source]
    programs = [[forged, False], [list(ESCAPE.values()), False], [ok, True]]
    done = subprocess.run(
        [sys.executable, "-m", "tests.judge.outer_filter", json.dumps([calls, prctl])], input=json.dumps(programs),
        capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found: dict[str, object] = json.loads(done.stdout)
    return found


@pytest.fixture(scope="module")
def machine() -> str:
    import platform

    if platform.machine() not in MACHINES:
        pytest.skip("neither x86_64 nor aarch64")
    return platform.machine()


def test_without_landlock_the_filter_alone_holds(machine: str) -> None:
    assert judged_without(LANDLOCK) == {"tier": 2, "namespaces": True, "wrong": []}


def test_in_a_container_of_dockers_default_profile(machine: str) -> None:
    assert judged_without(DOCKER[machine]) == {"tier": 1, "namespaces": False, "wrong": []}


def test_without_filters_nothing_is_run(machine: str) -> None:
    found = judged_without(NO_FILTERS[machine], prctl=22)
    assert list(found) == ["refused"]
    assert "--allow-unsandboxed" in str(found["refused"])
