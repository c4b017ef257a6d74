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
from selfcorrect.models.language_model import LanguageModel
from selfcorrect.models.packed import hindrance
from selfcorrect.models.placement import stack_of
from selfcorrect.models.recompute import layers_of
from selfcorrect.models.weights import cast_weights
from selfcorrect.models.windows import shape_of

_CPU_BUDGET = 4 << 30  # bytes for each of the two: a micro-batch's activations, the cache of the rows being sampled
_CPU_MICRO_BATCH = 1 << 30  # of a micro-batch's: more rows made nothing faster there (docs/log.md), but for
_CPU_ROWS = 8  # so many, which MKL is faster with than with one in float32
_MOST_TRAINED, _MOST_SAMPLED = 128, 512  # beyond these nothing gets faster
WIDE = 256  # hidden numbers of a token: from there on a CPU, too, gains by leaving the padding out (docs/log.md)
_DRAW_BYTES = 14  # of a row being sampled, for each word: the logit twice, its log-probability and its share


def sized(
    config: TrainConfig, lm: LanguageModel, tokens: int, trains: bool = True, budget: float | None = None,
    packs: bool | None = None, shards: int = 1,
) -> tuple[TrainConfig, list[str]]:  # fmt: skip
    """The config with every `auto` of a size settled, and notes on what was worked out for the update.

    tokens: the longest rollout, all attempts and prompts. trains: False where the model is only sampled from: then
    rows_at_once alone, and no memory is left for training. budget: bytes for a micro-batch's activations, and as many
    for the cache; by default what this device has free for them. packs: whether rows are packed, where that is known
    and the model not to be tried. shards: see `static`. Raises ConfigError where gradient checkpointing or packed rows
    are asked of a model that cannot.
    """
    here = budget is None
    budget = _budget(config, lm, trains, shards) if budget is None else budget
    notes: list[str] = []
    rollouts, optimizer = config.rollouts, config.optimizer
    if rollouts.rows_at_once == "auto":
        # Keys and values stay for the next attempt, and those of the rows at work come on top: on a CPU a step's, on a
        # card as many as are at work, while no activations are there, whose half of the budget takes them, and what a
        # forward pass of all rows takes; in the update the lanes leave a third of theirs to what is not counted with a
        # micro-batch: shared prompts, and casts of weights.
        kept = rollouts.problems_per_step * rollouts.rollouts_per_problem
        if trains and config.evaluation.every:
            kept = max(kept, config.evaluation.problems_between)
        kept = min(kept, _MOST_SAMPLED)
        shape = shape_of(lm.model.config)
        room = budget / (tokens * shape.token_bytes(lm.compute_dtype.itemsize) + _DRAW_BYTES * shape.vocabulary)
        rows = _power_of_two(room / 1.5 if lm.device.type == "cuda" else max(room - kept, room / 2), _MOST_SAMPLED)
        # vLLM has a cache of its own, and queues what has no room there; the base model is sampled by transformers.
        elsewhere = config.has_engine and not (trains and config.samples_reference)
        if elsewhere and (config.vllm.server or lm.device.type == "cuda"):
            rows = _MOST_SAMPLED
        rollouts = rollouts.model_copy(update={"rows_at_once": rows})
    if not trains:
        return config.model_copy(update={"rollouts": rollouts}), notes
    packed, told = _padding_free(optimizer, lm) if packs is None else (packs, [])
    again, note = _checkpointing(optimizer, lm, tokens, budget, packed)
    optimizer = optimizer.model_copy(update={"gradient_checkpointing": again, "padding_free": packed})
    notes += note + told
    if optimizer.micro_batch == "auto":
        row = tokens * _activation_bytes(lm, tokens, again, packed)
        rows = _power_of_two(budget / row, _MOST_TRAINED)
        if here and lm.device.type == "cpu":
            by_onednn = lm.compute_dtype == torch.float32 and products.faster()
            enough = _power_of_two(_CPU_MICRO_BATCH / row, _MOST_TRAINED)
            rows = min(rows, enough if by_onednn else max(enough, _CPU_ROWS))
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


def too_large(config: TrainConfig, lm: LanguageModel, rows: int, attempts: int) -> list[str]:
    """A note where a micro-batch that the recipe sets is more than all the memory of the device, should its attempts
    reach their limit; raises ConfigError where it is more than four times that, as the estimate is on the safe side.

    config: settled; rows, attempts: of a step on this device. Prompts are left out, as rollouts may share them.
    """
    optimizer, tokens = config.optimizer, attempts * config.rollouts.max_new_tokens
    rows, again, there = min(optimizer.rows, rows), optimizer.gradient_checkpointing is True, memory_of(lm.device)
    need = rows * tokens * _activation_bytes(lm, tokens, again, optimizer.padding_free is True)
    told = (
        f"optimizer.micro_batch = {optimizer.micro_batch}: {rows} rollouts of up to {tokens:,} sampled tokens may keep "
        f"{size_text(need)}, {'even with' if again else 'without'} gradient checkpointing, and {size_text(there)} are "
        "there in all; set auto, or a lower one, which changes no result"
    )
    if need > 4 * there:
        raise ConfigError(told)
    return [told] if need > there else []


def _padding_free(optimizer: OptimizerConfig, lm: LanguageModel) -> tuple[bool, list[str]]:
    """Whether rows are packed in the update, and a note where auto would have liked to."""
    asked = optimizer.padding_free
    if asked is False or (asked == "auto" and lm.device.type != "cuda" and shape_of(lm.model.config).hidden < WIDE):
        return False, []
    why = hindrance(lm)
    if why and asked is True:
        raise unpacked(why)
    return not why, [f"optimizer.padding_free: auto is off: {why}"] if why else []


def unpacked(why: str) -> ConfigError:
    """Where packed rows were asked for."""
    return ConfigError(f"optimizer.padding_free = true: {why}; set auto")


@dataclass(frozen=True, slots=True)
class Counted:
    """Of a model. stored: bytes of its weights; trained: how many numbers train, rounded: those of them that are stored
    in bfloat16; cast: bytes of the casts that sampling lends; passing: bytes on a card of a reference whose layers pass
    through it.
    """

    stored: float
    trained: float
    rounded: float
    cast: float
    passing: float


@dataclass(frozen=True, slots=True)
class Static:
    """Bytes on one device that are there all through training, activations and cache apart.

    whole: a copy of the weights beside their shards, which is sampled from; loaded: what is there of the model as sizes
    are settled.
    """

    weights: float
    masters: float
    gradients: float
    optimizer: float
    reference: float
    casts: float
    whole: float
    loaded: float
    place: Literal["device", "cpu", "same model", "none"]

    @property
    def total(self) -> float:
        """Without the copy beside shards."""
        return self.weights + self.masters + self.gradients + self.optimizer + self.reference + self.casts

    @property
    def to_come(self) -> float:
        return self.total + self.whole - self.loaded

    def __str__(self) -> str:
        parts = {
            "weights": self.weights, "gradients": self.gradients, "optimiser": self.optimizer + self.masters,
            "reference": self.reference, "casts for sampling": self.casts,
        }  # fmt: skip
        told = ", ".join(f"{name} {size_text(size)}" for name, size in parts.items() if size)
        return f"{size_text(self.total)} ({told}); activations and cache apart"


def static(config: TrainConfig, of: Counted, available: float, *, on_card: bool, shards: int = 1) -> Static:
    """available: bytes of the device; shards: over how many weights, gradients and moments lie, 1 for none."""
    weights, masters = of.stored, 4 * of.rounded
    if shards > 1:  # which are the masters, gathered in bfloat16 (docs/parallel.md)
        weights, masters = weights + 2 * of.rounded, 0
    gradients, moments = 4 * of.trained, (8 if config.optimizer.name == "adamw" else 2) * of.trained
    place, copied = _reference(config, of, weights + masters + gradients + moments, available, on_card, shards)
    sampled = int(not config.has_engine)
    if config.samples_reference:  # with an adapter it is the same weights
        sampled = sampled + 1 if place == "device" else max(sampled, int(place == "same model"))
    elsewhere = shards > 1 and on_card and config.samples_elsewhere
    loaded = 0 if elsewhere else of.stored
    return Static(
        weights / shards, masters, gradients / shards, moments / shards, copied, sampled * of.cast,
        loaded if shards > 1 else 0, loaded, place,
    )  # fmt: skip


def _reference(
    config: TrainConfig, of: Counted, others: float, available: float, on_card: bool, shards: int
) -> tuple[Literal["device", "cpu", "same model", "none"], float]:
    """Where it lies, and its bytes on the device."""
    if not config.uses_reference:
        return "none", 0
    if config.model.tuning != "full":
        return "same model", 0
    if shards > 1:
        return "device", of.stored if config.samples_reference else of.stored / shards
    asked = config.model.reference
    # Elsewhere, where less than half of the memory would be left for activations and cache.
    crowded = others + of.stored > available / 2
    if on_card and (asked == "cpu" or (asked == "auto" and crowded)):
        return "cpu", of.passing
    return "device", of.stored


def static_of(config: TrainConfig, lm: LanguageModel, shards: int = 1) -> Static:
    """Of a model that is loaded, however it is tuned."""
    on_card = lm.device.type != "cpu"
    return static(config, _counted(lm), memory_of(lm.device), on_card=on_card, shards=shards)


def _counted(lm: LanguageModel) -> Counted:
    tensors = [*lm.model.parameters()]
    trained = [tensor for tensor in tensors if tensor.requires_grad]
    stored, layers = _bytes(tensors) + _bytes(lm.model.buffers()), [_bytes(x.parameters()) for x in stack_of(lm.model)]
    return Counted(
        stored,
        sum(tensor.numel() for tensor in trained),
        sum(tensor.numel() for tensor in trained if tensor.dtype.itemsize < torch.float32.itemsize),
        _cast_bytes(lm),
        stored - sum(layers) + 2 * max(layers, default=0),
    )


def _cast_bytes(lm: LanguageModel) -> int:
    if lm.compute_dtype == torch.float32:
        return 0
    weights = {id(weight): weight for _, _, weight in cast_weights(lm.model)}
    return sum(weight.numel() for weight in weights.values()) * lm.compute_dtype.itemsize


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


def is_out_of_memory(error: Exception) -> bool:
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "DefaultCPUAllocator" in str(error)


def size_text(count: float) -> str:
    """Bytes as 1.6 GB or 12 MB."""
    for unit, size in (("TB", 10**12), ("GB", 10**9), ("MB", 10**6)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count / 1000:.1f} kB"


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _budget(config: TrainConfig, lm: LanguageModel, trains: bool, shards: int) -> float:
    if lm.device.type != "cuda":
        return _CPU_BUDGET
    sampled = 0 if config.has_engine else _cast_bytes(lm)
    free: float = torch.cuda.mem_get_info(lm.device)[0]
    return half_of(free, static_of(config, lm, shards).to_come if trains else sampled)


def half_of(free: float, to_come: float) -> float:
    """Bytes for a micro-batch's activations, and as many for the cache, of a card with so many free.

    Each of the two gets half, whoever holds memory meanwhile; what is not foreseen fits into the tenth that is left.
    to_come: what will lie there all the time.
    """
    return max(0.0, 0.9 * free - to_come) / 2


def _activation_bytes(lm: LanguageModel, tokens: int, again: bool, packs: bool) -> float:
    """What a token's forward pass keeps for the backward pass; of padded rows in eager attention its weights too.

    again: each layer keeps its input alone, as wide as weights are stored, and one at a time all the rest, with the
    gradients that its backward pass has at its fullest. Logits are not kept (vocabulary.py), but by models whose head
    is not known: in float32 the policy's, the reference's, and a gradient.
    """
    shape, width = shape_of(lm.model.config), lm.compute_dtype.itemsize
    layer = (14 * shape.hidden + 4 * shape.intermediate) * width + 8 * shape.hidden
    if not packs and getattr(lm.model.config, "_attn_implementation", "eager") == "eager":
        layer += 2 * shape.heads * tokens * 4
    # before the head, in float32: the policy's, the reference's and the gradient
    states = 12 * (shape.hidden if lm.head_form else shape.vocabulary)
    if not again:
        return states + layer * shape.layers
    stored = next((weight.dtype.itemsize for weight in lm.model.parameters()), width)
    # two gradients as wide as its widest part, and in half precision the float32 copy of it that an adapter reads
    fullest = (2 * width + (2 if width < 4 else 0)) * shape.intermediate
    return states + layer + fullest + shape.layers * shape.hidden * max(width, stored)


def _power_of_two(rows: float, most: int) -> int:
    """The largest power of two that is not above `rows`, at least 1 and at most `most`."""
    return min(most, 1 << max(0, int(rows).bit_length() - 1)) if rows >= 1 else 1
