"""Every run tells what was predicted, and what was measured beside it."""

import json
import re
from pathlib import Path

import pytest

from selfcorrect.runs.display import Observer
from tests.support.runs import go, recipe

pytestmark = pytest.mark.usefixtures("lucky")


class Hears(Observer):
    def __init__(self) -> None:
        self.said: list[str] = []

    def message(self, text: str) -> None:
        self.said.append(text)


def test_a_run_tells_its_plan_and_what_was_measured(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SELFCORRECT_PLAN", raising=False)
    hears = Hears()
    run = go(recipe(tmp_path, model), hears)
    told = [line for line in hears.said if line.startswith("plan: ")]
    assert re.fullmatch(r"plan: up to [\d.]+ GiB \(.*\), [\d.]+ s a step", told[0])
    pair = r"plan: ([\d.]+) GiB predicted for the lengths that came, ([\d.]+) measured .*; [\d.]+ s a step predicted, [\d.]+ measured"
    found = re.fullmatch(pair, told[1])
    assert found, told
    kept = json.loads((run / "plan.json").read_text())
    assert float(found[1]) == pytest.approx(kept["predicted_at_lengths"]["peak_bytes"] / 2**30, abs=0.01)
    assert float(found[2]) == pytest.approx(kept["measured"]["peak_bytes"] / 2**30, abs=0.01)
    assert len(told) == 2
