"""What `auto` comes to on a card, as a run there would settle it (models/sizing.py)."""

from dataclasses import dataclass
from typing import Any, Literal

import torch

from selfcorrect.config import TrainConfig
from selfcorrect.learning.vocabulary import tiles_for
from selfcorrect.models import sizing
from selfcorrect.models.loading import pick_dtype
from selfcorrect.models.windows import layer_windows, sees_all
from selfcorrect.planning.hardware import Card
from selfcorrect.planning.rehearsal import Costume, Numbers, numbers, stand_in
from selfcorrect.planning.spec import Spec

FOUR_BITS = 0.516  # bytes a weight: NF4 with one 8-bit scale for 64 weights, those in turn scaled by 256


@dataclass(frozen=True, slots=True)
class Dressed:
    """A recipe's model on a device. on_card: whether that is a GPU; numbers: of its weights; attends_to_all: as
    LanguageModel's, with the implementation of attention that the run takes.
    """

    spec: Spec
    costume: Costume
    numbers: Numbers
    on_card: bool
    attends_to_all: bool


def dressed(config: TrainConfig, spec: Spec, card: Card | None) -> Dressed:
    """card: None for this machine's processor."""
    model, on_card = config.model, card is not None
    compute = torch.bfloat16 if on_card and model.precision == "auto" else _precision(config, on_card)
    attention = model.attention if model.attention != "auto" else "sdpa" if on_card else "eager"
    costume = Costume(
        spec.config, getattr(torch, model.weights), compute, "sdpa" if attention == "flash_attention_2" else attention,
        tiles_for(torch.device("cuda" if on_card else "cpu")),
        rank=0 if model.tuning == "full" else model.lora.rank, targets=model.lora.targets,
        four_bits=model.tuning == "qlora", reference=config.uses_reference, on_card=on_card,
        copies=model.sampling_copies,
    )  # fmt: skip
    attends_to_all = sees_all(layer_windows(spec.config, attention))
    return Dressed(spec, costume, numbers(costume, spec.layers), on_card, attends_to_all)


def _precision(config: TrainConfig, on_card: bool) -> torch.dtype:
    device = torch.device("cpu")
    if on_card:
        return torch.bfloat16 if "bfloat16" in (config.model.precision, config.model.weights) else torch.float32
    return pick_dtype(config.model.precision, device, config.model.weights)


@dataclass(frozen=True, slots=True)
class Static:
    """Bytes on one device that are there all the time, of a model on so many devices."""

    weights: float
    masters: float
    gradients: float
    optimizer: float
    reference: float
    casts: float
    place: Literal["device", "cpu", "same model", "none"]

    @property
    def total(self) -> float:
        return self.weights + self.masters + self.gradients + self.optimizer + self.reference + self.casts


def static(config: TrainConfig, model: Dressed, card: Card | None, shards: int) -> Static:
    """shards: over how many devices weights, gradients and moments lie (FSDP2), 1 for none."""
    of, costume = model.numbers, model.costume
    stored = of.all * costume.weights.itemsize
    if costume.four_bits:
        stored += of.linear * (FOUR_BITS - costume.weights.itemsize)
    full, adapter = config.model.tuning == "full", config.model.tuning != "full"
    weights = stored + (4 * of.trained if adapter else 0)
    masters = 4 * of.trained if full and costume.weights.itemsize < 4 else 0
    if masters and shards > 1:  # FSDP2's shards are the masters, gathered in bfloat16 (docs/parallel.md)
        weights, masters = masters, 0
    gradients = 4 * of.trained
    moments = (8 if config.optimizer.name == "adamw" else 2) * of.trained
    copied = stored if full and config.uses_reference else 0
    vllm = config.sampler == "vllm"  # then the reference alone is sampled from here
    lent = costume.compute.itemsize < costume.weights.itemsize and (not vllm or config.samples_reference)
    casts = 2 * of.cast if lent else 0
    available = card.bytes if card else sizing.memory_of(torch.device("cpu"))
    place: Any = "none"
    if config.uses_reference:
        place = "device" if full else "same model"
        asked = config.model.reference
        crowded = (weights + masters + gradients + moments + copied) / shards > available / 2
        if full and (asked == "cpu" or (asked == "auto" and crowded and card is not None)):
            place, copied = "cpu", 4 * of.outer + 2 * of.largest * costume.weights.itemsize
    if place == "device" and config.samples_reference and not vllm:
        casts *= 2
    weights, masters, gradients, moments, copied = (
        size / shards for size in (weights, masters, gradients, moments, copied)
    )
    return Static(weights, masters, gradients, moments, copied, casts, place)


def settled(config: TrainConfig, model: Dressed, card: Card | None, tokens: int, shards: int = 1) -> TrainConfig:
    """The config with every `auto` of a size settled. tokens: the longest rollout."""
    optimizer = config.optimizer
    packs = model.attends_to_all and (model.on_card or model.spec.hidden >= sizing.WIDE)
    if optimizer.padding_free != "auto":
        packs = optimizer.padding_free and model.attends_to_all
    budget = None
    if card:
        of = static(config, model, card, shards)
        free = card.bytes - 0.5 * 2**30 - of.weights
        to_come = (
            (2 * model.numbers.all if sizing.casts_weights(config) else 0)
            + of.gradients
            + of.optimizer
            + of.masters
            + of.reference
        )
        budget = sizing.half_of(free, to_come)
    done, _ = sizing.sized(config, stand_in_for(model), tokens, budget=budget, packs=packs)
    return done


def stand_in_for(model: Dressed) -> Any:
    """The model as models/sizing.py asks of it: a config with all of its layers, modules with one."""
    with torch.device("meta"):
        lm = stand_in(model.costume, 1)
    shape = model.spec.config
    shape._attn_implementation = model.costume.attention
    lm.model.config = shape
    return lm
