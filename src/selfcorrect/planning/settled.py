"""What `auto` comes to on a card, as a run there would settle it (models/sizing.py)."""

from dataclasses import dataclass
from typing import Any

import torch

from selfcorrect.config import TrainConfig
from selfcorrect.learning.vocabulary import tiles_for
from selfcorrect.models import sizing
from selfcorrect.models.loading import pick_dtype
from selfcorrect.models.packed import of_kernel, of_model
from selfcorrect.models.sizing import Static
from selfcorrect.models.windows import layer_windows, sees_all, shape_of
from selfcorrect.planning.hardware import CONTEXT_BYTES, Card
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
    # Every card of the table multiplies bfloat16.
    precision = "bfloat16" if on_card and model.precision == "auto" else model.precision
    compute = pick_dtype(precision, torch.device("cpu"), model.weights)
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


def static(config: TrainConfig, model: Dressed, card: Card | None, shards: int) -> Static:
    """shards: over how many devices weights, gradients and moments lie, 1 for none."""
    of, costume = model.numbers, model.costume
    width, full = costume.weights.itemsize, config.model.tuning == "full"
    stored = width * of.all + (4 * of.trained if not full else 0)
    if costume.four_bits:
        stored += of.linear * (FOUR_BITS - width)
    counted = sizing.Counted(
        stored, of.trained, of.trained if full and width < 4 else 0,
        costume.compute.itemsize * of.cast if costume.compute.itemsize < width else 0,
        width * (of.outer + 2 * of.largest),
    )  # fmt: skip
    available = card.bytes if card else sizing.memory_of(torch.device("cpu"))
    return sizing.static(config, counted, available, on_card=model.on_card, shards=shards)


def settled(config: TrainConfig, model: Dressed, card: Card | None, tokens: int, shards: int = 1) -> TrainConfig:
    """The config with every `auto` of a size settled. tokens: the longest rollout.

    Raises ConfigError for packed rows where a run would.
    """
    asked, costume = config.optimizer.padding_free, model.costume
    why = of_model(model.spec.config, model.attends_to_all)
    if card:
        why = why or of_kernel(costume.compute, shape_of(model.spec.config).head_dim)
    if why and asked is True:
        raise sizing.unpacked(why)
    packs = not why and (asked is True or (asked == "auto" and (model.on_card or model.spec.hidden >= sizing.WIDE)))
    budget = None
    if card:
        of = static(config, model, card, shards)
        budget = sizing.half_of(card.bytes - CONTEXT_BYTES - of.loaded, of.to_come)
    done, _ = sizing.sized(config, stand_in_for(model), tokens, budget=budget, packs=packs)
    return done


def stand_in_for(model: Dressed) -> Any:
    """The model as models/sizing.py asks of it: a config with all of its layers, modules with one."""
    with torch.device("meta"):
        lm = stand_in(model.costume, 1)
    shape = model.spec.config
    shape._attn_implementation = model.costume.attention
    lm.model.config = shape
    if model.on_card:
        lm.device = torch.device("cuda")
    return lm
