"""Ctrl-C at the command line, by a real signal to a real process."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from selfcorrect.runs.checkpoint import load_newest
from selfcorrect.runs.display import Observer
from selfcorrect.runs.run import resume
from tests.run.conftest import Whole
from tests.support.runs import check_same, read_rows, recipe


@pytest.mark.usefixtures("lucky")
def test_ctrl_c(model: Path, whole: Whole, tmp_path: Path) -> None:
    file, run = tmp_path / "recipe.yaml", tmp_path / "run"
    file.write_text(yaml.dump(recipe(tmp_path, model)))
    code = "import sys; from tests.support.runs import command_line; command_line('train', sys.argv[1])"
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(file)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout
    while "step 5 begins" not in process.stdout.readline():
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    out, errors = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "stopping after this step (Ctrl-C again to stop now, losing it)" in out
    assert errors.splitlines() == [
        f"stopped; checkpoint step-000005 is whole. To go on, resume with: selfcorrect train --resume {run}"
    ]
    assert [row["step"] for row in read_rows(run / "metrics.jsonl")] == [1, 2, 3, 4, 5]  # step 5 was let end
    newest, warnings = load_newest(run / "checkpoints")
    assert (newest and newest.step, warnings) == (5, [])
    resume(run, Observer())
    check_same(run, whole.state)
