"""Models that several threads make at once, and what is left of transformers' own state."""

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers.utils import logging

from selfcorrect.config import LabBaseConfig, ModelConfig
from selfcorrect.lab.base import build_model, build_tokenizer
from selfcorrect.learning.vocabulary import Tiles
from selfcorrect.models.loading import load_model
from selfcorrect.planning.rehearsal import Costume, stand_in
from tests.support.hf_model import save_qwen2

LAB = LabBaseConfig.model_validate({"kind": "lab_base", "hidden_size": 32, "layers": 1, "heads": 2})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_qwen2(tmp_path_factory.mktemp("model"), ends=0)


def planned() -> Any:
    config = transformers.LlamaConfig(
        vocab_size=40, hidden_size=32, intermediate_size=48, num_attention_heads=2, tie_word_embeddings=True
    )
    return stand_in(Costume(config, torch.float32, torch.float32, "eager", Tiles(1, 1, 1)), 1).model


WAYS: dict[str, Callable[[], Any]] = {
    "loaded": lambda: load_model(ModelConfig(path="lab", device="cpu")).model,
    "planned": planned,
    "the lab's": lambda: build_model(LAB, build_tokenizer(LAB.task.limit)),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_model_made_while_another_loads_is_whole(way: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers takes the tying of weights from every model of the process while it loads one."""
    begun, plain = threading.Event(), transformers.PreTrainedModel.tie_weights
    found: list[bool] = []

    def slow(self: Any, *given: Any, **how: Any) -> None:
        begun.set()
        time.sleep(0.3)
        original(self, *given, **how)

    def make() -> None:
        assert begun.wait(20)
        model = WAYS[way]()
        found.append(model.get_output_embeddings().weight is model.get_input_embeddings().weight)

    original = transformers.Qwen2ForCausalLM.__init__
    monkeypatch.setattr(transformers.Qwen2ForCausalLM, "__init__", slow)
    other = threading.Thread(target=make)
    other.start()
    load_model(ModelConfig(path=str(folder), device="cpu"))
    other.join()
    assert found == [True]
    assert transformers.PreTrainedModel.tie_weights is plain


def test_a_session_keeps_its_progress_bars(folder: Path, tmp_path: Path) -> None:
    logging.enable_progress_bar()
    try:
        load_model(ModelConfig(path=str(folder), device="cpu")).save(tmp_path / "copy", torch.float32)
        assert logging.is_progress_bar_enabled()
    finally:
        logging.disable_progress_bar()
