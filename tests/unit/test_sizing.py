"""What `auto` works out from a model's shape: smaller for larger models and longer rollouts, never what the recipe set."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import Qwen2Config

from selfcorrect.config import TrainConfig
from selfcorrect.config.recipe import validate
from selfcorrect.models.sizing import sized

STAGE = {"name": "a", "objective": "stage1", "steps": 1, "learning_rate": 1.0}
SHAPES: dict[str, dict[str, int]] = {  # layers, widths and vocabularies of real models
    "lab": {"hidden_size": 128, "num_hidden_layers": 5, "num_attention_heads": 4, "num_key_value_heads": 4, "intermediate_size": 344, "vocab_size": 140},
    "135M": {"hidden_size": 576, "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3, "intermediate_size": 1536, "vocab_size": 49152},
    "1.5B": {"hidden_size": 1536, "num_hidden_layers": 28, "num_attention_heads": 12, "num_key_value_heads": 2, "intermediate_size": 8960, "vocab_size": 151936},
}  # fmt: skip


def sizes(shape: str, tokens: int, **settings: Any) -> tuple[int, int]:
    model = SimpleNamespace(config=Qwen2Config(**SHAPES[shape]))
    lm: Any = SimpleNamespace(model=model, device=torch.device("cpu"), compute_dtype=torch.float32)
    config = validate({"stages": [STAGE], "rollouts": {"max_new_tokens": max(1, tokens // 3)}, **settings})
    assert isinstance(config, TrainConfig)
    settled, notes = sized(config, lm, tokens)
    assert len(notes) == 2 - len(settings)
    return settled.rollouts.rows, settled.optimizer.rows


@pytest.mark.parametrize(
    ("shape", "tokens", "expected"),
    [("lab", 45, (512, 128)), ("135M", 300, (128, 4)), ("1.5B", 300, (64, 1)), ("1.5B", 100_000, (1, 1))],
)
def test_sizes_follow_from_the_shape(shape: str, tokens: int, expected: tuple[int, int]) -> None:
    rows, micro_batch = sizes(shape, tokens)
    assert (rows, micro_batch) == expected
    assert sizes(shape, tokens, optimizer={"micro_batch": 7}) == (rows, 7)


@pytest.mark.parametrize(("gigabytes", "most"), [(80, 128), (40, 32), (24, 1)])
def test_on_a_card_what_is_free_beside_training_counts(
    gigabytes: int, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1.5 billion weights that train take 27 GB, and rollouts of 2,400 tokens 69 MB each."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (gigabytes << 30, 80 << 30))
    model = SimpleNamespace(config=Qwen2Config(**SHAPES["1.5B"]))
    weights = [torch.empty(1_500_000_000, device="meta")]
    lm: Any = SimpleNamespace(
        model=model, device=torch.device("cuda"), compute_dtype=torch.bfloat16, parameters=lambda: weights
    )
    config = validate({"stages": [STAGE], "rollouts": {"max_new_tokens": 800}})
    assert isinstance(config, TrainConfig)
    settled, _ = sized(config, lm, 2400)
    assert settled.rollouts.rows == most
