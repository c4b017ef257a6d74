"""What runs hold of a card's memory: as planned, and what they do with one that is too small."""

import gc
from pathlib import Path

import pytest
import torch

from selfcorrect.errors import MemoryExhausted
from tests.benchmarks.conftest import Script
from tests.benchmarks.conftest import script as script  # noqa: PLC0414 - a fixture
from tests.card.test_on_the_card import model as model  # noqa: PLC0414
from tests.support.card import memory
from tests.support.runs import go, read_rows, recipe

pytestmark = [pytest.mark.card, pytest.mark.nightly]  # minutes; `make card` runs them


@pytest.mark.parametrize(
    "case", ["full, wider evaluations", "full, padded, checkpointing", "full, float32", "qlora, checkpointing"]
)
def test_a_plan_says_what_a_run_holds(
    case: str, script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In each phase, to 5 %: benchmarks/card_memory.py has more of them."""
    monkeypatch.setenv("SELFCORRECT_PLAN", "timed")
    found = script("benchmarks/card_memory.py").case(case, tmp_path)
    assert found.keys() == {"sampling", "update"} | ({"evaluation"} if "evaluations" in case else set())
    for phase, at in found.items():
        assert at["predicted"] == pytest.approx(at["measured"], rel=0.05), (phase, at)


def test_auto_fits_a_card_that_is_full_with_a_larger_size(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The larger one ends the run in a line, as on a card; rows of 213 tokens, eight a step."""
    for micro_batch in (128, "auto"):
        settings = recipe(tmp_path, model, name=str(micro_batch))
        settings["rollouts"] |= {"max_new_tokens": 100, "rows_at_once": "auto"}
        settings["optimizer"] |= {"micro_batch": micro_batch, "gradient_checkpointing": "auto"}
        settings["model"] |= {"device": "cuda", "attention": "sdpa"}
        settings["stages"] = [settings["stages"][1] | {"steps": 2}]
        settings["evaluation"]["problems"] = 1
        gc.collect()
        torch.cuda.empty_cache()
        with monkeypatch.context() as patch:
            patch.setattr(memory.card, "total", memory.card.total - memory.card.free + (2 << 20))
            if micro_batch == "auto":
                assert len(read_rows(go(settings) / "metrics.jsonl")) == 2
                continue
            with pytest.raises(MemoryExhausted) as caught:
                go(settings)
            told = str(caught.value)
            assert told.startswith("the memory does not suffice (CUDA out of memory. Tried to allocate "), told
            assert "a lower optimizer.micro_batch (now 128, " in told
            del caught
