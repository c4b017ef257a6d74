"""What a card runs, on any machine: tests/support/card stands for one, in a process of its own."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(not shutil.which("g++"), reason="no g++, which the stand-in for a card is compiled with")
def test_on_a_stand_in() -> None:
    command = [sys.executable, "-m", "tests.support.card", "pytest", "-m", "card and not nightly", "tests/card"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    assert "passed" in done.stdout
