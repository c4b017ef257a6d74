"""Seconds of a step by phase, on cards: what is read and multiplied, over what a card does of either a second."""

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

from selfcorrect.config import RepairConfig, TrainConfig
from selfcorrect.models.windows import shape_of
from selfcorrect.planning import hardware
from selfcorrect.planning.hardware import Card, utilisation
from selfcorrect.planning.memory import Spread, in_engines_cache
from selfcorrect.planning.settled import FOUR_BITS, Dressed, static
from selfcorrect.planning.work import Step, filled, update_of
from selfcorrect.samplers.vllm_server import SIDE_BY_SIDE

LINKS, HOST = "the links between cards", "the memory of rank 0's machine, through which weights go to the server"
PASSING = "the reference's weights, which pass through the card for every micro-batch"
CORES = 16  # that grade, for each card; assumed
# Core-seconds of an answer: 0.6 ms measured for math (benchmarks/results/grade_math.json), 4 ms for a program that is
# right (judge.json), more for one that runs into its limit; the rest assumed.
_GRADES = {"math": 0.0006, "code": 0.05, "countdown": 0.0001, "custom": 0.01}


@dataclass(frozen=True, slots=True)
class Pace:
    """seconds: by phase. bound: what the longest phase waits for, in words. tokens: sampled in a step, by all."""

    seconds: dict[str, float]
    bound: str
    tokens: float

    @property
    def total(self) -> float:
        return sum(self.seconds.values())


@dataclass(frozen=True, slots=True)
class Decoding:
    """Of one attempt of all rows. steps: one after the other; rows: at work in the mean; context: tokens each sees."""

    steps: float
    rows: float
    context: float


def decoding(step: Step, lanes: int, attempt: int) -> Decoding:
    """Rows beyond the lanes wait for those that have ended; the last to begin may run to the limit."""
    lengths = step.lengths
    waves = max(0.0, step.rows / lanes - 1)
    steps = waves * lengths.attempt + min(lengths.limit, 2 * lengths.attempt)
    context = lengths.prompt + (attempt - 1) * (lengths.attempt + lengths.turn) + lengths.attempt / 2
    return Decoding(steps, step.rows * lengths.attempt / steps, context)


def pace(config: TrainConfig, model: Dressed, card: Card, step: Step, spread: Spread, nodes: int) -> Pace:
    """Seconds of a step by phase, on each device, as all work side by side. config: settled; step: of one device."""
    sampler = _Sampler(model, card, spread)
    rows, lengths = step.rows, step.lengths
    # A server has the rows of all ranks, of which some may have none.
    served = min(spread.devices, config.rollouts.problems_per_step / step.groups) if spread.beside else 1
    seconds, bounds = {"rollouts": 0.0}, dict[str, float]()
    share = replace(step, rows=round(rows * served))
    # Of what is asked at once, an engine takes what its cache has room for; one in the process, rows_at_once of it.
    room = most = config.rollouts.rows
    if spread.engine:
        room = max(1, int(in_engines_cache(config, model, card, spread, lengths.mean_row(step.attempts))))
    lanes = min(share.rows, room, SIDE_BY_SIDE * spread.devices if spread.beside else most)
    for attempt in range(1, step.attempts + 1) if step.samples else ():
        one = decoding(share, lanes, attempt)
        for why, took in sampler.step(one).items():
            seconds["rollouts"] += one.steps * took
            bounds[why] = bounds.get(why, 0.0) + one.steps * took
        if attempt == 1:
            fed = step.groups * lengths.prompt * served
        else:  # rows that a cache had no room to keep are read again from their beginning
            fed = share.rows * (lengths.turn + 1) + max(0, share.rows - room) * lengths.mean_row(attempt - 1)
        seconds["rollouts"] += sampler.flops * fed / sampler.rate
    flops = _flops(config, model, step, spread)
    rate = card.tflops * 1e12 * utilisation(model.spec.hidden)
    for phase, count in flops.items():
        seconds[phase] = count / rate
    passing = _passing(config, model, card, step, spread)
    if passing:
        seconds["reference"] += passing
    seconds["update"] += hardware.PER_STEP_SECONDS + _optimiser(model, card, spread)
    sent = sync(
        config, model, links(card, spread, nodes), step, spread, seconds["update"] + seconds.get("reference", 0)
    )
    seconds["sync"] = sum(sent.values())
    seconds["grading"] = grading(config, rows, CORES) if step.samples else 0.0
    longest = max(seconds, key=lambda phase: seconds[phase])
    why = {
        "rollouts": max(bounds, key=lambda name: bounds[name], default=""), "update": "the card's FLOPs",
        "reference": PASSING if 2 * passing > seconds.get("reference", 0) else "the card's FLOPs",
        "sync": max(sent, key=lambda name: sent[name]),
        "grading": "the graders' cores",
    }[longest]  # fmt: skip
    rows = config.rollouts.problems_per_step * config.rollouts.rollouts_per_problem
    return Pace(seconds, f"{longest}: {why}", rows * step.attempts * lengths.attempt * step.samples)


def grading(config: TrainConfig, rows: int, cores: int) -> float:
    """Seconds for the last attempts of a step; the others' are graded beside sampling."""
    return rows * grade_seconds(config) / cores


def grade_seconds(config: TrainConfig) -> float:
    """Of one core, for an answer."""
    task = config.task.of if isinstance(config.task, RepairConfig) else config.task
    return _GRADES.get(task.name, _GRADES["custom"])


class _Sampler:
    """Seconds of a decoding step, by what it waits for."""

    def __init__(self, model: Dressed, card: Card, spread: Spread) -> None:
        of, spec = model.numbers, model.spec
        table = spec.vocabulary * spec.hidden
        used = of.all - (table if of.outer >= 2 * table else 0)  # of an embedding with a head beside it a row is read
        weights = 2 * used
        if model.costume.four_bits and not spread.engine:  # read, written in 16 bits, and read again; an engine has 16
            weights += of.linear * (FOUR_BITS + 2)
        self._weights = weights / spread.tensor
        self._token = spec.token_bytes(model.costume.compute) / spread.tensor
        self._bandwidth = card.bandwidth * 1e9 * hardware.DECODE_BANDWIDTH
        self.rate = card.tflops * 1e12 * utilisation(spec.hidden)
        floor = hardware.ENGINE_LAYER_SECONDS if spread.engine else hardware.LAYER_SECONDS
        self._floor = floor * spec.layers * (1 if spread.tensor == 1 else 1.5)  # an all-reduce twice a layer
        self.flops = 2 * (used - of.idle) / spread.tensor  # of a token

    def step(self, one: Decoding) -> dict[str, float]:
        return {
            "launching kernels, layer after layer": self._floor,
            "reading the weights for every token": self._weights / self._bandwidth,
            "reading keys and values": one.rows * one.context * self._token / self._bandwidth,
            "the card's FLOPs": one.rows * self.flops / self.rate,
        }


def _flops(config: TrainConfig, model: Dressed, step: Step, spread: Spread) -> dict[str, float]:
    """Of one device's update and reference pass."""
    of, spec, lengths = model.numbers, model.spec, step.lengths
    row = lengths.mean_row(step.attempts)
    may_share = model.attends_to_all and spread.shards == 1
    shared = update_of(config, step, may_share, 1, in_place=False, longest=False).prefixes > 0
    tokens = step.rows * row - (step.rows - step.groups) * lengths.prompt * shared
    trained = step.rows * step.attempts * lengths.attempt
    shape = shape_of(spec.config)  # heads may be wider, all together, than a token
    attention = 2 * 2 * shape.layers * shape.heads * shape.head_dim * row / 2  # scores and sums, forward, causal
    forward = tokens * (2 * (of.all - of.idle - of.outer) + attention)  # not of nn.Linear alone
    head = 2 * trained * spec.vocabulary * spec.hidden
    full = config.model.tuning == "full"
    again = config.optimizer.gradient_checkpointing is True
    passes = 1 + (2 if full else 1) + (1 if again else 0)  # an adapter's layers need no gradient of their weights
    found = {}
    if step.reference:
        found["reference"] = forward + head
    found["update"] = passes * forward + head * ((4 if full else 3) + (1 if step.reference else 0))
    return found


def micro_batches(config: TrainConfig, step: Step) -> int:
    """Of a step on one device."""
    return math.ceil(step.rows / (filled(config, step.lengths, step.attempts) * config.optimizer.rows))


def _passing(config: TrainConfig, model: Dressed, card: Card, step: Step, spread: Spread) -> float:
    """Seconds in which a reference that lies in the machine's memory comes to the card, which waits for it
    (models/placement.py): once for shared prompts, and for each micro-batch.
    """
    if not step.reference or static(config, model, card, spread.shards).place != "cpu":
        return 0.0
    layers = model.costume.weights.itemsize * (model.numbers.all - model.numbers.outer)
    return (1 + micro_batches(config, step)) * layers / hardware.PINNED_BYTES


def _optimiser(model: Dressed, card: Card, spread: Spread) -> float:
    """Gradients read twice, weights and moments read and written: 32 bytes a number that trains."""
    return 32 * model.numbers.trained / spread.shards / (card.bandwidth * 1e9 * hardware.DECODE_BANDWIDTH)


class Links(NamedTuple):
    """Bytes a second of one device: as those that share a copy of the weights gather it, as copies sum their gradients,
    and as one device sends to a server.
    """

    gathered: float
    summed: float
    sent: float


def links(card: Card, spread: Spread, nodes: int) -> Links:
    """Rings over several machines leave each of them by the ways of all its cards, a part of the data by each. Of a
    machine's own shards, each card sums its own, by its own way.
    """
    here = spread.devices // nodes
    own, over_all = (card.network, min(card.link, here * card.network)) if nodes > 1 else (card.link, card.link)
    found = Links(
        gathered=card.link if spread.shards <= here else over_all,
        summed=own if 1 < spread.shards < spread.devices else over_all,
        sent=own,
    )
    return Links(*(rate * 1e9 * hardware.LINK_SHARE for rate in found))


def sync(
    config: TrainConfig, model: Dressed, links: Links, step: Step, spread: Spread, beside: float
) -> dict[str, float]:  # fmt: skip
    """Seconds between processes, and to a server, by what they pass through; to an engine in the process weights pass
    on the card itself. links: see `links`; beside: seconds of computation that FSDP's gathering hides behind.
    """
    parts = {LINKS: 0.0, HOST: 0.0}
    if spread.devices == 1 and not spread.beside:
        return parts
    of, full = model.numbers, config.model.tuning == "full"
    copies = spread.devices // spread.shards
    parts[LINKS] = 2 * 4 * of.trained / spread.shards * (copies - 1) / copies / links.summed
    if spread.shards > 1:
        share = (spread.shards - 1) / spread.shards
        passes, link = micro_batches(config, step), links.gathered
        gathers = 2 + (1 if step.reference else 0)
        bytes_ = passes * (gathers * model.costume.weights.itemsize * of.all + 4 * of.trained) * share
        parts[LINKS] += max(bytes_ / link - beside, 0.1 * bytes_ / link)
        # What trains is gathered into the whole copy that is sampled from, or sent (parallel/sharding.py).
        copied = (model.costume.weights.itemsize if full else 4) * of.trained
        parts[LINKS] += copied * share / link
        if spread.beside:  # that copy lies in the memory of rank 0's machine; it is cast there, and sent from the card
            parts[HOST] = (copied + (2 * of.trained if full else 0)) / hardware.HOST_BYTES
    if spread.beside:
        merged = full or config.vllm.adapter == "merged"
        parts[LINKS] += 2 * (of.all if merged else of.trained) / links.sent
    return parts
