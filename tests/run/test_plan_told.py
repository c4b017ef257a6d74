"""Every run tells what was predicted, and what was measured beside it."""

import json
import re
from pathlib import Path

import pytest

from selfcorrect.planning import beside, cpu
from tests.run.conftest import Listener
from tests.support.runs import brief, go

pytestmark = pytest.mark.usefixtures("lucky")


@pytest.mark.parametrize("asked", ["", pytest.param("timed", marks=pytest.mark.nightly)])
def test_a_run_tells_its_plan_and_what_was_measured(
    asked: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a run that was soon over nothing is timed again, but where that is asked for."""
    monkeypatch.setenv("SELFCORRECT_PLAN", asked)
    monkeypatch.setattr(beside, "_WORTH", 1e9)  # times what a plan takes that another test may have made already
    monkeypatch.setattr(cpu, "_LEAST", 0.0)  # the figures are not compared
    hears = Listener()
    run = go(brief(tmp_path, model), hears)
    told = [line for line in hears.messages if line.startswith("plan: ")]
    ending = r" \(SELFCORRECT_PLAN=off leaves it out\) \.\.\."
    assert re.fullmatch(rf"plan: rehearsing a step, and timing some layers of this model{ending}", told[0])
    assert re.fullmatch(r"plan: up to [\d.]+ GiB \(.*\), [\d.]+ s a step", told[1])
    assert re.fullmatch(
        rf"plan: rehearsing a step{', and.*' if asked else ''} for the lengths that came \.\.\.", told[2]
    )
    pair = r"plan: ([\d.]+) GiB predicted for the lengths that came, ([\d.]+) measured \(([+-]\d+)%\); "
    found = re.fullmatch(
        pair + (r"[\d.]+ s a step predicted, [\d.]+ measured" if asked else r"[\d.]+ s a step measured"), told[3]
    )
    assert found, told
    kept = json.loads((run / "plan.json").read_text())
    assert float(found[1]) == pytest.approx(kept["predicted_at_lengths"]["peak_bytes"] / 2**30, abs=0.01)
    assert float(found[2]) == pytest.approx(kept["measured"]["peak_bytes"] / 2**30, abs=0.01)
    error = kept["predicted_at_lengths"]["peak_bytes"] / kept["measured"]["peak_bytes"] - 1  # as docs/plan.md has it
    assert int(found[3]) == round(100 * error)
    assert len(told) == 4
