"""What `auto` works out from a model's shape: smaller for larger models and longer rollouts, never what the recipe set."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import Qwen2Config
from transformers.modeling_layers import GradientCheckpointingLayer

from selfcorrect.config import TrainConfig
from selfcorrect.config.recipe import validate
from selfcorrect.errors import ConfigError
from selfcorrect.models.head import HeadForm
from selfcorrect.models.sizing import sized

STAGE = {"name": "a", "objective": "stage1", "steps": 1, "learning_rate": 1.0}
SHAPES: dict[str, dict[str, int]] = {  # layers, widths and vocabularies of real models
    "lab": {"hidden_size": 128, "num_hidden_layers": 5, "num_attention_heads": 4, "num_key_value_heads": 4, "intermediate_size": 344, "vocab_size": 140},
    "135M": {"hidden_size": 576, "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3, "intermediate_size": 1536, "vocab_size": 49152},
    "1.5B": {"hidden_size": 1536, "num_hidden_layers": 28, "num_attention_heads": 12, "num_key_value_heads": 2, "intermediate_size": 8960, "vocab_size": 151936},
}  # fmt: skip


class Model(torch.nn.Module):
    """A shape, with a layer that can be run again or without."""

    def __init__(self, shape: str, able: bool) -> None:
        super().__init__()
        self.config = Qwen2Config(**SHAPES[shape])
        self.layer = GradientCheckpointingLayer() if able else torch.nn.Identity()


def settle(
    shape: str, tokens: int, *, able: bool = True, known: bool = True, **settings: Any
) -> tuple[TrainConfig, list[str]]:
    lm: Any = SimpleNamespace(
        model=Model(shape, able), device=torch.device("cpu"), compute_dtype=torch.float32,
        head_form=HeadForm() if known else None,
    )  # fmt: skip
    config = validate({"stages": [STAGE], "rollouts": {"max_new_tokens": max(1, tokens // 3)}, **settings})
    assert isinstance(config, TrainConfig)
    return sized(config, lm, tokens)


@pytest.mark.parametrize(
    ("shape", "tokens", "expected"),
    [
        ("lab", 45, (512, 128, False)), ("135M", 300, (256, 4, False)), ("1.5B", 300, (128, 2, False)),
        ("1.5B", 1000, (64, 8, True)), ("1.5B", 100_000, (1, 1, True)),
    ],
)  # fmt: skip
def test_sizes_follow_from_the_shape(shape: str, tokens: int, expected: tuple[int, int, bool]) -> None:
    settled, notes = settle(shape, tokens)
    again = settled.optimizer.gradient_checkpointing
    assert (settled.rollouts.rows, settled.optimizer.rows, again) == expected
    assert len(notes) == 2 + expected[2]
    settled, _ = settle(shape, tokens, optimizer={"micro_batch": 7})
    assert (settled.rollouts.rows, settled.optimizer.rows) == (expected[0], 7)


def test_gradient_checkpointing_by_memory() -> None:
    def told(**optimizer: Any) -> tuple[Any, list[str]]:
        able = optimizer.pop("able", True)
        settled, notes = settle("1.5B", 300, able=able, optimizer={"micro_batch": 8, **optimizer})
        return settled.optimizer.gradient_checkpointing, notes[1:]

    size = "8 rollouts of up to 300 tokens would keep 15.2 GiB without it"
    assert told() == (True, [f"optimizer.gradient_checkpointing: auto is on: {size}"])
    assert told(micro_batch=1) == (False, [])
    assert told(gradient_checkpointing=False) == (False, [])
    assert told(gradient_checkpointing=True, micro_batch=1) == (True, [])
    unmarked = "off, as this model's code does not mark its layers for it"
    assert told(able=False) == (False, [f"optimizer.gradient_checkpointing: auto is {unmarked}: {size}"])
    with pytest.raises(ConfigError, match="gradient_checkpointing = true: this model's code does not mark its layers"):
        told(able=False, gradient_checkpointing=True)


def test_whole_logits_count_where_the_head_is_not_known() -> None:
    rows = [settle("1.5B", 300, known=known)[0].optimizer.rows for known in (True, False)]
    assert rows == [2, 1]
