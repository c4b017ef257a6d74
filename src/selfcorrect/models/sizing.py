"""How many rows a model takes side by side, where a recipe leaves it open (`auto`).

Worked out from the model's shape and the recipe's lengths alone, never from what happens to be free: the same recipe
gives the same numbers on the same kind of machine. An estimate on the safe side, not a measurement.
"""

from typing import Any

import torch

from selfcorrect.config import OptimizerConfig, TrainConfig
from selfcorrect.errors import ConfigError
from selfcorrect.models.loading import LanguageModel
from selfcorrect.models.recompute import layers_of

_CPU_BUDGET = 4 << 30  # bytes for each of the two: a micro-batch's activations, the cache of the rows being sampled
_MOST_TRAINED, _MOST_SAMPLED = 128, 512  # beyond these nothing gets faster


def sized(config: TrainConfig, lm: LanguageModel, tokens: int) -> tuple[TrainConfig, list[str]]:
    """The config with rows_at_once, micro_batch and gradient_checkpointing settled, and notes on what was worked out.

    tokens: the longest rollout, all attempts and prompts. Raises ConfigError where gradient checkpointing is asked of
    a model that cannot.
    """
    budget = _budget(lm.device)
    notes = []
    rollouts, optimizer = config.rollouts, config.optimizer
    if rollouts.rows_at_once == "auto":
        rows = _power_of_two(budget / (tokens * _cache_bytes(lm)), _MOST_SAMPLED)
        rollouts = rollouts.model_copy(update={"rows_at_once": rows})
        notes.append(f"rollouts.rows_at_once: auto is {rows} for this model and rollouts of up to {tokens} tokens")
    again, note = _checkpointing(optimizer, lm, tokens, budget)
    optimizer = optimizer.model_copy(update={"gradient_checkpointing": again})
    notes += note
    if optimizer.micro_batch == "auto":
        rows = _power_of_two(budget / (tokens * _activation_bytes(lm, tokens, again)), _MOST_TRAINED)
        optimizer = optimizer.model_copy(update={"micro_batch": rows})
        notes.append(f"optimizer.micro_batch: auto is {rows} for this model and rollouts of up to {tokens} tokens")
    return config.model_copy(update={"rollouts": rollouts, "optimizer": optimizer}), notes


def _checkpointing(optimizer: OptimizerConfig, lm: LanguageModel, tokens: int, budget: float) -> tuple[bool, list[str]]:
    """Whether layers are run again in the backward pass, and a note where auto says so."""
    asked = optimizer.gradient_checkpointing
    rows = 1 if optimizer.micro_batch == "auto" else optimizer.micro_batch
    need = rows * tokens * _activation_bytes(lm, tokens, again=False)
    if asked is False or (asked == "auto" and need <= budget):
        return False, []
    able = bool(layers_of(lm.model))
    if asked is True:
        if not able:
            raise ConfigError(
                "optimizer.gradient_checkpointing = true: this model's code does not mark its layers for it; set false"
            )
        return True, []
    what = "on" if able else "off, as this model's code does not mark its layers for it"
    size = f"{rows} rollout{'s' * (rows > 1)} of up to {tokens} tokens would keep {need / 2**30:.1f} GiB without it"
    return able, [f"optimizer.gradient_checkpointing: auto is {what}: {size}"]


def _budget(device: torch.device) -> float:
    if device.type != "cuda":
        return _CPU_BUDGET
    return torch.cuda.get_device_properties(device).total_memory / 4


def _cache_bytes(lm: LanguageModel) -> int:
    """Of a token's keys and values in all layers."""
    shape = _shape(lm)
    return 2 * shape["layers"] * shape["kv_heads"] * shape["head_dim"] * lm.compute_dtype.itemsize


def _activation_bytes(lm: LanguageModel, tokens: int, again: bool) -> float:
    """What a token's forward pass keeps for the backward pass; with eager attention its attention weights too.

    again: each layer keeps its input alone, and one at a time all the rest. Logits are not kept (vocabulary.py), but
    by models whose head is not known: in float32 the policy's, the reference's, and a gradient.
    """
    shape, width = _shape(lm), lm.compute_dtype.itemsize
    layer = (14 * shape["hidden"] + 4 * shape["intermediate"]) * width + 8 * shape["hidden"]
    if getattr(lm.model.config, "_attn_implementation", "eager") == "eager":
        layer += 2 * shape["heads"] * tokens * 4
    # before the head, in float32: the policy's, the reference's and the gradient
    states = 12 * (shape["hidden"] if lm.head_form else shape["vocabulary"])
    return states + (layer + shape["layers"] * shape["hidden"] * width if again else layer * shape["layers"])


def _shape(lm: LanguageModel) -> dict[str, int]:
    """The model's dimensions; what a config does not name is taken for the usual multiple of what it does."""
    config: Any = lm.model.config
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    hidden, heads = config.hidden_size, config.num_attention_heads
    return {
        "hidden": hidden,
        "heads": heads,
        "layers": config.num_hidden_layers,
        "vocabulary": config.vocab_size,
        "kv_heads": getattr(config, "num_key_value_heads", None) or heads,
        "head_dim": getattr(config, "head_dim", None) or hidden // heads,
        "intermediate": getattr(config, "intermediate_size", None) or 4 * hidden,
    }


def _power_of_two(rows: float, most: int) -> int:
    """The largest power of two that is not above `rows`, at least 1 and at most `most`."""
    return min(most, 1 << max(0, int(rows).bit_length() - 1)) if rows >= 1 else 1
