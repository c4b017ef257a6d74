"""How many rows a model takes side by side, where a recipe leaves it open (`auto`).

Worked out from the model's shape, the recipe's lengths and, on a card, what is free there beside what training will
take. Neither number changes a result but for rounding. An estimate on the safe side, not a measurement.
"""

from typing import Any

import torch

from selfcorrect.config import TrainConfig
from selfcorrect.models.loading import LanguageModel

_CPU_BUDGET = 4 << 30  # bytes for each of the two: a micro-batch's activations, the cache of the rows being sampled
_MOST_TRAINED, _MOST_SAMPLED = 128, 512  # beyond these nothing gets faster
_DRAW_BYTES = 14  # of a row being sampled, for each word: the logit twice, its log-probability and its share
_TRAINED_BYTES = 18  # of a weight that trains: gradient, two moments, the reference's, and casts of it at sampling
_LOGIT_BYTES = 16  # in float32: the policy's logit, the reference's, log-softmax and the gradient


def sized(config: TrainConfig, lm: LanguageModel, tokens: int) -> tuple[TrainConfig, list[str]]:
    """The config with rows_at_once and micro_batch as numbers, and a note for each that was worked out.

    tokens: the longest rollout, all attempts and prompts.
    """
    budget = _budget(lm)
    sampled = config.rollouts.attempts * config.rollouts.max_new_tokens
    notes = []
    rollouts, optimizer = config.rollouts, config.optimizer
    if rollouts.rows_at_once == "auto":
        # Keys and values of a step's rows stay for the next attempt; those of the rows at work come on top.
        kept = min(rollouts.problems_per_step * rollouts.rollouts_per_problem, _MOST_SAMPLED)
        room = budget / (tokens * _cache_bytes(lm) + _DRAW_BYTES * lm.model.config.vocab_size)
        rows = _power_of_two(max(room - kept, room / 2), _MOST_SAMPLED)
        rollouts = rollouts.model_copy(update={"rows_at_once": rows})
        notes.append(f"rollouts.rows_at_once: auto is {rows} for this model and rollouts of up to {tokens} tokens")
    if optimizer.micro_batch == "auto":
        need = tokens * _activation_bytes(lm, tokens) + sampled * _LOGIT_BYTES * lm.model.config.vocab_size
        rows = _power_of_two(budget / need, _MOST_TRAINED)
        optimizer = optimizer.model_copy(update={"micro_batch": rows})
        notes.append(f"optimizer.micro_batch: auto is {rows} for this model and rollouts of up to {tokens} tokens")
    return config.model_copy(update={"rollouts": rollouts, "optimizer": optimizer}), notes


def _budget(lm: LanguageModel) -> float:
    if lm.device.type != "cuda":
        return _CPU_BUDGET
    trained = sum(weight.numel() for weight in lm.parameters())
    free: float = torch.cuda.mem_get_info(lm.device)[0]
    # Each of the two gets half, whoever holds memory meanwhile; what is not foreseen fits into the tenth that is left.
    return max(0.0, 0.9 * free - _TRAINED_BYTES * trained) / 2


def _cache_bytes(lm: LanguageModel) -> int:
    """Of a token's keys and values in all layers."""
    shape = _shape(lm)
    return 2 * shape["layers"] * shape["kv_heads"] * shape["head_dim"] * lm.compute_dtype.itemsize


def _activation_bytes(lm: LanguageModel, tokens: int) -> float:
    """What a token's forward pass keeps for the backward pass; with eager attention its attention weights too."""
    shape, width = _shape(lm), lm.compute_dtype.itemsize
    layer = (14 * shape["hidden"] + 4 * shape["intermediate"]) * width + 8 * shape["hidden"]
    if getattr(lm.model.config, "_attn_implementation", "eager") == "eager":
        layer += 2 * shape["heads"] * tokens * 4
    return float(layer * shape["layers"])


def _shape(lm: LanguageModel) -> dict[str, int]:
    """The model's dimensions; what a config does not name is taken for the usual multiple of what it does."""
    config: Any = lm.model.config
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    hidden, heads = config.hidden_size, config.num_attention_heads
    return {
        "hidden": hidden,
        "heads": heads,
        "layers": config.num_hidden_layers,
        "kv_heads": getattr(config, "num_key_value_heads", None) or heads,
        "head_dim": getattr(config, "head_dim", None) or hidden // heads,
        "intermediate": getattr(config, "intermediate_size", None) or 4 * hidden,
    }


def _power_of_two(rows: float, most: int) -> int:
    """The largest power of two that is not above `rows`, at least 1 and at most `most`."""
    return min(most, 1 << max(0, int(rows).bit_length() - 1)) if rows >= 1 else 1
