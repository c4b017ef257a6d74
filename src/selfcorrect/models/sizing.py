"""How many rows a model takes side by side, where a recipe leaves it open (`auto`); and what its weights take.

Worked out from the model's shape, the recipe's lengths and, on a card, what is free there beside what training will
take. Neither number changes a result but for rounding; of rows_at_once, draws of sampled evaluations and of traces
also depend. An estimate on the safe side, not a measurement.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import psutil
import torch
from torch import Tensor

from selfcorrect.config import OptimizerConfig, TrainConfig
from selfcorrect.errors import ConfigError
from selfcorrect.models import products
from selfcorrect.models.loading import LanguageModel
from selfcorrect.models.packed import hindrance
from selfcorrect.models.recompute import layers_of

_CPU_BUDGET = 4 << 30  # bytes for each of the two: a micro-batch's activations, the cache of the rows being sampled
_ONEDNN_MICRO_BATCH = 1 << 30  # of a micro-batch's, where more rows made nothing faster (docs/log.md); by MKL they do
_MOST_TRAINED, _MOST_SAMPLED = 128, 512  # beyond these nothing gets faster
WIDE = 256  # hidden numbers of a token: from there on a CPU, too, gains by leaving the padding out (docs/log.md)
_DRAW_BYTES = 14  # of a row being sampled, for each word: the logit twice, its log-probability and its share


def sized(
    config: TrainConfig, lm: LanguageModel, tokens: int, trains: bool = True, budget: float | None = None,
    packs: bool | None = None,
) -> tuple[TrainConfig, list[str]]:  # fmt: skip
    """The config with every `auto` of a size settled, and notes on what was worked out for the update.

    tokens: the longest rollout, all attempts and prompts. trains: False where the model is only sampled from: then
    rows_at_once alone, and no memory is left for training. budget: bytes for a micro-batch's activations, and as many
    for the cache; by default what this device has free for them. packs: whether rows are packed, where that is known
    and the model not to be tried. Raises ConfigError where gradient checkpointing or packed rows are asked of a model
    that cannot.
    """
    here = budget is None
    budget = _budget(config, lm, trains) if budget is None else budget
    notes: list[str] = []
    rollouts, optimizer = config.rollouts, config.optimizer
    if rollouts.rows_at_once == "auto":
        # Keys and values of a step's rows stay for the next attempt; those of the rows at work come on top.
        kept = rollouts.problems_per_step * rollouts.rollouts_per_problem
        if trains and config.evaluation.every:
            kept = max(kept, config.evaluation.problems_between)
        kept = min(kept, _MOST_SAMPLED)
        room = budget / (tokens * _cache_bytes(lm) + _DRAW_BYTES * lm.model.config.get_text_config().vocab_size)
        rows = _power_of_two(max(room - kept, room / 2), _MOST_SAMPLED)
        if config.vllm.server:  # whose memory is not this device's, and which queues what has no room there
            rows = _MOST_SAMPLED
        rollouts = rollouts.model_copy(update={"rows_at_once": rows})
    if not trains:
        return config.model_copy(update={"rollouts": rollouts}), notes
    packed, told = _padding_free(optimizer, lm) if packs is None else (packs, [])
    again, note = _checkpointing(optimizer, lm, tokens, budget, packed)
    optimizer = optimizer.model_copy(update={"gradient_checkpointing": again, "padding_free": packed})
    notes += note + told
    if optimizer.micro_batch == "auto":
        by_onednn = here and lm.device.type == "cpu" and lm.compute_dtype == torch.float32 and products.faster()
        room = min(budget, _ONEDNN_MICRO_BATCH) if by_onednn else budget
        rows = _power_of_two(room / (tokens * _activation_bytes(lm, tokens, again, packed)), _MOST_TRAINED)
        optimizer = optimizer.model_copy(update={"micro_batch": rows})
        notes.append(f"optimizer.micro_batch: auto is {rows} for this model and rollouts of up to {tokens} tokens")
    return config.model_copy(update={"rollouts": rollouts, "optimizer": optimizer}), notes


_SIZES = {"rollouts": ("rows_at_once",), "optimizer": ("micro_batch", "gradient_checkpointing", "padding_free")}


def sizes_of(config: TrainConfig) -> dict[str, Any]:
    """What `sized` settles, by section."""
    return {section: {name: getattr(getattr(config, section), name) for name in _SIZES[section]} for section in _SIZES}


def with_sizes(config: TrainConfig, sizes: Mapping[str, Any]) -> TrainConfig:
    """The config with these in the place of `auto`."""
    changed = {}
    for section, values in sizes.items():
        old = getattr(config, section)
        open_ = {name: value for name, value in values.items() if getattr(old, name) == "auto"}
        changed[section] = old.model_copy(update=open_)
    return config.model_copy(update=changed)


def _checkpointing(
    optimizer: OptimizerConfig, lm: LanguageModel, tokens: int, budget: float, packs: bool
) -> tuple[bool, list[str]]:
    """Whether layers are run again in the backward pass, and a note where auto says so."""
    asked = optimizer.gradient_checkpointing
    rows = 1 if optimizer.micro_batch == "auto" else optimizer.micro_batch
    need = rows * tokens * _activation_bytes(lm, tokens, False, packs)
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


def _padding_free(optimizer: OptimizerConfig, lm: LanguageModel) -> tuple[bool, list[str]]:
    """Whether rows are packed in the update, and a note where auto would have liked to."""
    asked = optimizer.padding_free
    if asked is False or (asked == "auto" and lm.device.type != "cuda" and _shape(lm)["hidden"] < WIDE):
        return False, []
    why = hindrance(lm)
    if why and asked is True:
        raise ConfigError(f"optimizer.padding_free = true: {why}; set auto")
    return not why, [f"optimizer.padding_free: auto is off: {why}"] if why else []


@dataclass(frozen=True, slots=True)
class TrainingMemory:
    """Bytes that training takes beside activations and cache. available: of the device.

    optimizer: its moments, and float32 masters of weights stored in bfloat16. reference: that of a copy, 0 without.
    """

    weights: int
    gradients: int
    optimizer: int
    reference: int
    available: int

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimizer + self.reference

    @property
    def reference_goes_to(self) -> Literal["device", "cpu"]:
        """The device, unless less than half of its memory would be left for activations and cache."""
        return "cpu" if self.total > self.available / 2 else "device"

    def __str__(self) -> str:
        parts = {
            "weights": self.weights, "gradients": self.gradients, "optimiser": self.optimizer,
            "reference": self.reference,
        }  # fmt: skip
        told = ", ".join(f"{name} {size_text(size)}" for name, size in parts.items() if size)
        return f"{size_text(self.total)} ({told}); activations and cache apart"


def training_memory(config: TrainConfig, lm: LanguageModel) -> TrainingMemory:
    """For a recipe and its model, however it is tuned."""
    tensors = [*lm.model.parameters()]
    trained = [tensor for tensor in tensors if tensor.requires_grad]
    numbers = sum(tensor.numel() for tensor in trained)
    masters = sum(tensor.numel() for tensor in trained if tensor.dtype.itemsize < torch.float32.itemsize)
    moments = 8 if config.optimizer.name == "adamw" else 2
    stored = _bytes(tensors) + _bytes(lm.model.buffers())
    copied = config.uses_reference and lm.adapters is None
    return TrainingMemory(
        stored, 4 * numbers, moments * numbers + 4 * masters, stored if copied else 0, memory_of(lm.device)
    )


def parameter_count(lm: LanguageModel) -> int:
    """Of the model without its adapters; a 4-bit weight counts as what it stands for."""
    count = 0
    for name, parameter in lm.model.named_parameters():
        state = getattr(parameter, "quant_state", None)
        count += 0 if "lora_" in name else parameter.numel() if state is None else state.shape.numel()
    return count


def memory_of(device: torch.device) -> int:
    """Bytes of memory that the device has in all."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return int(psutil.virtual_memory().total)


def free_memory_of_machine() -> int:
    """Bytes that programs could have now, without swapping."""
    return int(psutil.virtual_memory().available)


def size_text(count: int) -> str:
    """Bytes as 1.6 GB or 12 MB."""
    for unit, size in (("TB", 10**12), ("GB", 10**9), ("MB", 10**6)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count / 1000:.1f} kB"


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _budget(config: TrainConfig, lm: LanguageModel, trains: bool) -> float:
    if lm.device.type != "cuda":
        return _CPU_BUDGET
    casts = 2 * parameter_count(lm) if casts_weights(config) else 0  # of the weights at sampling
    to_come = casts
    if trains:
        needs, where = training_memory(config, lm), config.model.reference
        to_come += needs.gradients + needs.optimizer
        if (needs.reference_goes_to if where == "auto" else where) == "device":
            to_come += needs.reference
            if config.samples_reference and needs.reference:
                to_come += casts  # of those; its rows take the policy's place in memory
    free: float = torch.cuda.mem_get_info(lm.device)[0]
    return half_of(free, to_come)


def casts_weights(config: TrainConfig) -> bool:
    """Whether sampling on a card lends a model bfloat16 copies: weights that are stored in less need none."""
    samples_here = config.sampler != "vllm" or config.samples_reference
    return samples_here and config.model.weights == "float32" and config.model.tuning != "qlora"


def half_of(free: float, to_come: float) -> float:
    """Bytes for a micro-batch's activations, and as many for the cache, of a card with so many free.

    Each of the two gets half, whoever holds memory meanwhile; what is not foreseen fits into the tenth that is left.
    to_come: what will lie there all the time.
    """
    return max(0.0, 0.9 * free - to_come) / 2


def _cache_bytes(lm: LanguageModel) -> int:
    """Of a token's keys and values in all layers."""
    shape = _shape(lm)
    return 2 * shape["layers"] * shape["kv_heads"] * shape["head_dim"] * lm.compute_dtype.itemsize


def _activation_bytes(lm: LanguageModel, tokens: int, again: bool, packs: bool) -> float:
    """What a token's forward pass keeps for the backward pass; of padded rows in eager attention its weights too.

    again: each layer keeps its input alone, and one at a time all the rest. Logits are not kept (vocabulary.py), but
    by models whose head is not known: in float32 the policy's, the reference's, and a gradient.
    """
    shape, width = _shape(lm), lm.compute_dtype.itemsize
    layer = (14 * shape["hidden"] + 4 * shape["intermediate"]) * width + 8 * shape["hidden"]
    if not packs and getattr(lm.model.config, "_attn_implementation", "eager") == "eager":
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
