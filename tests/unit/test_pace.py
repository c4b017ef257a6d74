"""How long a comparison still takes, from what its runs' folders tell."""

import json
from pathlib import Path
from typing import Any

import pytest

from selfcorrect.comparing.pace import AGAIN, FIRST, LOOK, Pace, sampled_by, sampled_so_far
from selfcorrect.comparing.plan import Job
from tests.support.runs import config


def write(file: Path, *rows: dict[str, Any], torn: str = "") -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows) + torn)


@pytest.fixture
def job(tmp_path: Path) -> Job:
    """Two stages of 4 steps x 8 rollouts x 2 attempts, and three evaluations of 8 problems: 176 completions."""
    return Job("run-0", config(tmp_path, Path("model")), tmp_path / "run-0")


def test_what_a_folder_tells(job: Job, tmp_path: Path) -> None:
    assert (sampled_by(job), sampled_so_far(job)) == (176, 0)
    evaluations = job.path / "evaluations"
    write(evaluations / "kept" / "base.jsonl", {"id": "a"}, {"id": "b"}, torn='{"id": "c')
    assert sampled_so_far(job) == 4
    write(evaluations / "base.json", {})  # the kept ones of an evaluation that has ended are not counted again
    write(job.path / "metrics.jsonl", *({"stage": "one", "completions": 16} for _ in range(4)), torn='{"stage"')
    assert sampled_so_far(job) == 16 + 64
    forked = Job("run-0", job.config, job.path, shared=tmp_path / "shared")  # stage one and base are another's
    write(job.path / "metrics.jsonl", {"stage": "one", "completions": 16}, {"stage": "two", "completions": 16})
    assert (sampled_by(forked), sampled_so_far(forked)) == (64 + 16, 16)
    (job.path / "metrics.jsonl").unlink()
    (job.path / "metrics.jsonl").mkdir()  # what cannot be read ends no comparison
    assert Pace(1000).ended(job, [job]) > 0


def test_the_first_estimate_comes_before_a_run_ends(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    speed = Pace(352)
    assert speed.due([job]) is None
    now += LOOK
    assert speed.due([job]) is None  # nothing is sampled yet
    write(job.path / "evaluations" / "kept" / "base.jsonl", *[{"id": str(i)} for i in range(3)])
    now += LOOK
    assert speed.due([job]) is None  # the clock begins here, at 6
    now += FIRST
    write(job.path / "evaluations" / "kept" / "base.jsonl", *[{"id": str(i)} for i in range(8)])
    assert speed.due([job]) == pytest.approx(FIRST / 10 * (352 - 16))
    now += FIRST
    assert speed.due([job]) is None  # not at every look
    now += AGAIN
    assert speed.due([job]) == pytest.approx((2 * FIRST + AGAIN) / 10 * (352 - 16))
    assert speed.ended(job, []) == pytest.approx((2 * FIRST + AGAIN) / 170 * 176)
