"""A recipe to plan for, the dimensions of a small model, and plans without rehearsals."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from selfcorrect.config import TrainConfig
from selfcorrect.config.recipe import validate
from selfcorrect.planning import memory
from selfcorrect.planning.rehearsal import Costume, Line, stand_in

SMALL: dict[str, Any] = {
    "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 300, "bos_token_id": None,
    "eos_token_id": None,
}  # fmt: skip
ONE_ROW: dict[str, Any] = {  # auto would be settled anew for each number of devices, by rehearsals of seconds
    "rollouts": {"rows_at_once": 8}, "optimizer": {"micro_batch": 1, "gradient_checkpointing": True},
}  # fmt: skip
STAGE = {"name": "a", "objective": "stage2", "steps": 10, "learning_rate": 1e-6}


def recipe(**sections: Any) -> TrainConfig:
    config = validate({"stages": [STAGE], **sections})
    assert isinstance(config, TrainConfig)
    return config


def of_one_layer(costume: Costume, measure: Callable[[Any], dict[str, float]]) -> dict[str, float]:
    """A rehearsal of half the time, where what a layer more would add is not asked for."""
    with FakeTensorMode(), torch.random.fork_rng(devices=[]):
        return measure(stand_in(costume, 1))


def unrehearsed(patch: pytest.MonkeyPatch, size: float = 1e6) -> None:
    """For tests of all else: every moment that a plan rehearses, for a second or two, takes `size` bytes a layer."""
    layers = {name: Line(size, size) for name in ("prefill", "step", "peak 0", "gradients")}
    for name in ("_sampled", "_update_lines"):
        patch.setattr(memory, name, lambda *_: layers)
