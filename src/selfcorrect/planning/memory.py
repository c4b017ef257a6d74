"""Bytes on one device: what lies there all the time, and what each phase of a step adds at its fullest moment."""

import math
from dataclasses import dataclass, replace
from functools import lru_cache

import torch

from selfcorrect.config import TrainConfig
from selfcorrect.models.freed import gives_back, is_whole
from selfcorrect.models.sizing import Static, free_memory_of_machine
from selfcorrect.parallel.gradients import BUCKET
from selfcorrect.planning.hardware import CONTEXT_BYTES, SLACK, Card
from selfcorrect.planning.rehearsal import CostumeKey, Line, by_layers, highest, sampling, update
from selfcorrect.planning.settled import Dressed, static
from selfcorrect.planning.work import Sampling, Step, Update, fullest_of, sampling_of, update_of
from selfcorrect.samplers.ahead import Pace
from selfcorrect.samplers.graphs import AS_THEY_ARE, FIXED
from selfcorrect.samplers.lanes import KEPT

# Of a process on a CPU that trains: Python, torch, transformers and data; measured (docs/plan.md).
PROCESS_BYTES = 0.44 * 2**30
TOKEN_BYTES = 1.1 * 2**10  # of the tokenizer, for each entry of the vocabulary; measured
PEFT_BYTES = 0.05 * 2**30  # more with PEFT and bitsandbytes imported; measured
CUDA_BUILD_BYTES = 0.34 * 2**30  # more with a torch that is built for CUDA, which no card is needed for; measured
# Of what comes and goes in a step, that glibc's heap holds beyond it: in a command that trains, in a process of another
# programme, and where freed memory is given back (docs/plan.md, models/freed.py). What stays lies side by side.
HEAP_SLACK, HEAP_SLACK_ELSEWHERE, HEAP_SLACK_GIVEN = 0.17, 0.65, 0.04
_WITHOUT_GRADIENTS = ("sampling", "evaluation", "saving")
ENGINE_BYTES = 1.5 * 2**30  # of vLLM: graphs and workspaces, assumed


@dataclass(frozen=True, slots=True)
class Spread:
    """Over which devices. shards: of weights, gradients and moments; engine: whether vLLM samples; tensor: over how
    many devices it splits the model; beside: whether those are others, a server's.
    """

    devices: int = 1
    shards: int = 1
    engine: bool = False
    tensor: int = 1
    beside: bool = False


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes on one device. static: all the time; phases: the fullest moment of each phase, by part, static ones not
    among them; process: of the process itself. slack: what the allocator holds beyond what is alive, as a share of it,
    or on a CPU of what comes and goes.
    """

    static: Static
    phases: dict[str, dict[str, float]]
    process: float
    slack: float

    def at(self, phase: str) -> float:
        return self.process + sum(self.phases[phase].values()) + _lasting(self.static, phase)

    @property
    def fullest(self) -> str:
        return max(self.phases, key=self.at)

    @property
    def peak(self) -> float:
        return self.at(self.fullest)

    def parts(self, phase: str | None = None) -> dict[str, float]:
        """By part, at the fullest moment of a phase, by default of the fullest; they add up to `at`."""
        of, phase = self.static, phase or self.fullest
        parts = {
            "weights": of.weights, "float32 masters": of.masters, "gradients": of.gradients, "optimiser": of.optimizer,
            "reference": of.reference, "casts for sampling": of.casts,
        }  # fmt: skip
        if phase == "loading":
            parts = {"weights": of.weights}
        elif phase in _WITHOUT_GRADIENTS:
            del parts["gradients"]
        parts |= self.phases[phase] | {"process": self.process}
        return {name: size for name, size in parts.items() if size}


def _lasting(of: Static, phase: str) -> float:
    """Gradients are there during the update alone; as weights are loaded, nothing else is."""
    if phase == "loading":
        return of.weights
    return of.total - (of.gradients if phase in _WITHOUT_GRADIENTS else 0.0)


def _loose(of: Static, name: str, phase: dict[str, float], *, on_card: bool) -> float:
    """Bytes between which the allocator leaves holes: on a CPU those that come and go, as what stays lies side by side,
    and a file is not of the heap.
    """
    alive = sum(phase.values()) + _lasting(of, name)
    if on_card:
        return alive
    return 0.0 if name == "loading" else alive - _lasting(of, "sampling") - of.whole


def memory(config: TrainConfig, model: Dressed, card: Card | None, step: Step, spread: Spread) -> Memory:
    """config: settled."""
    of, phases = static(config, model, card, spread.shards), dict[str, dict[str, float]]()
    cache, awake = _cache(config, model, step), dict[str, float]()
    transient = (0.0, 0.0) if spread.engine else _transient(cache.work, model)
    copies = 0.0 if card else _copies(model)
    gathered, lasts = _gathered(model, spread), card is not None and not spread.engine
    held, graphs = (cache.lanes, transient[1]) if lasts else (0.0, 0.0)
    evaluated = replace(step, rows=_evaluated(config, spread), attempts=config.rollouts.attempts)
    if lasts and (evaluated.rows > step.rows or evaluated.attempts > step.attempts):
        wide, phases["evaluation"] = _evaluation(config, model, evaluated)
        phases["evaluation"]["whole copy for sampling"] = of.whole
        if wide <= KEPT * held:
            held, graphs = max(held, wide), max(graphs, phases["evaluation"]["CUDA graphs"])
    if spread.beside:
        phases["sampling"] = {"a weight gathered for sending": 4 * model.numbers.outer if spread.shards > 1 else 0.0}
        phases["sampling"]["whole copy for sampling"] = of.whole
    elif spread.engine:
        taken = of_engine(config, model, card)
        awake = {} if card else taken  # on a CPU nothing sleeps in the update
        phases["sampling"] = {**taken, "whole copy for sampling": of.whole}
    else:
        phases["sampling"] = {
            "copies laid out for sampling": copies, "KV cache": max(held, cache.lanes) + cache.kept,
            "one forward": max(transient),
            "whole copy for sampling": of.whole,
        }  # fmt: skip
    done = _updated(config, model, step, spread)
    done |= {"gathered by FSDP": gathered, "whole copy for sampling": of.whole}
    phases["update"] = {"KV cache": held, **awake, **done}
    if spread.devices > spread.shards:
        # After the last backward pass (parallel/gradients.py), whose activations are gone by then.
        message = 4 * min(BUCKET, model.numbers.trained / spread.shards)
        phases["sync"] = {"KV cache": held, **awake, "sync buffers": message, "whole copy for sampling": of.whole}
    if card is None and spread.shards > 1:
        # torch.distributed.checkpoint makes the bytes of a shard's file in memory, from tensors laid side by side.
        written = 2 * 12 * model.numbers.trained / spread.shards
        phases["saving"] = {**awake, "a checkpoint as it is written": written}
        phases["saving"]["whole copy for sampling"] = of.whole
    if card is None:
        phases["loading"] = {"the file as it is read": _file_bytes(model)}
        process = PROCESS_BYTES + TOKEN_BYTES * model.spec.vocabulary
        process += PEFT_BYTES if config.model.tuning != "full" else 0.0
        process += CUDA_BUILD_BYTES if torch.version.cuda else 0.0
        slack = HEAP_SLACK_GIVEN if gives_back() else HEAP_SLACK if is_whole() else HEAP_SLACK_ELSEWHERE
    else:
        process, slack = CONTEXT_BYTES, SLACK
    if lasts:
        for phase in phases.values():  # kept for the next step, as lanes are
            phase.setdefault("CUDA graphs", graphs)
    base = _of_base(config, model, step, spread)
    for name, phase in phases.items():
        phase.update({"KV cache of the base model": base} if base else {})
        phase["allocator's slack"] = slack * _loose(of, name, phase, on_card=card is not None)
    return Memory(of, phases, process, slack)


def of_server(model: Dressed, tokens: float, spread: Spread) -> float:
    """Bytes on each of a server's cards: its share of the engine, and of the cache of one longest rollout, of so many
    tokens.

    The cache takes what is left of a card; rows that find no room in it wait.
    """
    token = model.spec.token_bytes(model.costume.compute) / spread.tensor
    needed = 2 * model.numbers.all / spread.tensor + ENGINE_BYTES + token * tokens
    return CONTEXT_BYTES + (1 + SLACK) * needed


def of_engine(config: TrainConfig, model: Dressed, card: Card | None) -> dict[str, float]:
    """Bytes that an engine in the process takes: of a card the share that the recipe gives it, however much it needs
    (samplers/vllm_engine.py).
    """
    weights, asked = model.costume.compute.itemsize * model.numbers.all, config.vllm.kv_cache_gib
    if asked or card is None:
        cache = (asked or 1.0) * 2**30
    else:
        cache = max(0.0, config.vllm.memory_share * card.bytes - weights - ENGINE_BYTES)
    return {"engine's weights": weights, "KV cache": cache, "engine": ENGINE_BYTES}


def in_engines_cache(config: TrainConfig, model: Dressed, card: Card | None, spread: Spread, tokens: float) -> float:
    """How many rollouts of so many tokens vLLM has room for at once: in the process, or over a server's cards."""
    token = model.spec.token_bytes(model.costume.compute) / spread.tensor
    if spread.beside:
        assert card
        room = (card.bytes - CONTEXT_BYTES) / (1 + SLACK) - 2 * model.numbers.all / spread.tensor - ENGINE_BYTES
    else:
        room = of_engine(config, model, card)["KV cache"]
    return max(0.0, room) / (token * tokens)


@dataclass(frozen=True, slots=True)
class _Cache:
    work: Sampling
    lanes: float
    kept: float


def _cache(config: TrainConfig, model: Dressed, step: Step) -> _Cache:
    """Lanes, and what is kept for the next attempt, on a card of as many rows (samplers/transformers.py)."""
    work = sampling_of(config, step)
    shapes = FIXED if model.on_card else AS_THEY_ARE
    slots, lanes = shapes.width(work.slots), shapes.lanes(work.lanes)
    token = model.spec.token_bytes(model.costume.compute)
    kept = min(step.rows, lanes) if model.on_card else step.rows
    ahead = Pace(shapes.cost, model.spec.layers, model.numbers.all).fullest(lanes)
    rehearsed = Sampling(lanes, slots, min(lanes, work.prefilled), work.turn, ahead)
    return _Cache(rehearsed, token * lanes * slots, token * kept * step.lengths.mean_row(step.attempts))


def _of_base(config: TrainConfig, model: Dressed, step: Step, spread: Spread) -> float:
    """Lanes of transformers on a card, which samples first attempts of the base model beside an engine, and keeps them
    (samplers/transformers.py).
    """
    if not (model.on_card and spread.engine and config.samples_reference):
        return 0.0
    asked = config.evaluation
    rows = max((getattr(stage, "offline_first", 0.0) for stage in config.stages), default=0.0) * step.rows
    if asked.every:
        rows = max(rows, min(asked.problems_between, asked.problems) / spread.devices)
    return _cache(config, model, replace(step, rows=math.ceil(rows), attempts=1)).lanes


def _evaluated(config: TrainConfig, spread: Spread) -> int:
    """How many rows one device evaluates side by side: all devices share a chunk. How many problems a file holds is not
    known.
    """
    asked, most = config.evaluation, config.rollouts.rows
    known = not asked.external and not config.checkpoint.held_out
    return math.ceil((min(most, asked.problems * asked.samples) if known else most) / spread.devices)


def _evaluation(config: TrainConfig, model: Dressed, step: Step) -> tuple[float, dict[str, float]]:
    """Its lanes, and the phase. step: of as many rows as are evaluated, which is more than a step of training has. An
    update is made beside such lanes unless they are far larger than a step's (samplers/transformers.py, `rest`).
    """
    cache = _cache(config, model, step)
    greedy = config.evaluation.temperature == 0 and not config.evaluation.controls
    turn, one = _transient(replace(cache.work, greedy=greedy), model)
    return cache.lanes, {"KV cache": cache.lanes + cache.kept, "one forward": max(turn, one), "CUDA graphs": one}


def _transient(work: Sampling, model: Dressed) -> tuple[float, float]:
    """To read the turn between attempts; for a step."""
    rehearsed = _sampled(work, CostumeKey(model.costume))
    return rehearsed["prefill"].at(model.spec.layers), rehearsed["step"].at(model.spec.layers)


@lru_cache(maxsize=64)
def _sampled(work: Sampling, key: CostumeKey) -> dict[str, Line]:
    return by_layers(key.costume, sampling(key.costume, work))


@lru_cache(maxsize=256)
def _update_lines(work: Update, key: CostumeKey) -> dict[str, Line]:
    return by_layers(key.costume, update(key.costume, work))


def _updated(config: TrainConfig, model: Dressed, step: Step, spread: Spread) -> dict[str, float]:
    """The update at its fullest, beside what is always there; gradients are of that."""
    tiles = model.costume.tiles
    scored = max(tiles.kept // model.spec.vocabulary, tiles.numbers // min(tiles.widest, model.spec.vocabulary)) + 1
    whole = spread.shards == 1
    key, layers = CostumeKey(model.costume), model.spec.layers
    works = fullest_of(step, update_of(config, step, model.attends_to_all and whole, scored, in_place=whole))
    found, work = max(((_rehearsed_update(work, key, layers), work) for work in works), key=lambda of: of[0]["peak"])
    tile = 4 * min(tiles.kept, work.scored * model.spec.vocabulary) * (2 if model.costume.reference else 1)
    beyond = found["peak"] - found["gradients"]
    further = (work.rows * work.trained - work.scored) * model.spec.hidden * 4 * 3
    return {"activations": max(0.0, beyond - tile) + further, "tiles of the loss": min(tile, beyond)}


_REHEARSED = 8  # rows that attend one by one; more are on the line through two smaller numbers of them


def _rehearsed_update(work: Update, key: CostumeKey, layers: int) -> dict[str, float]:
    by_row = work.packed and not key.costume.on_card
    few = min(work.rows, _REHEARSED) if by_row else work.rows
    points = [few] if few == work.rows else [few // 2, few]
    found = []
    for rows in points:
        scored = min(work.scored, rows * work.trained)
        lines = _update_lines(replace(work, rows=rows, scored=scored), key)
        at = {name: line.at(layers) for name, line in lines.items()}
        found.append({"peak": highest(at), "gradients": at["gradients"]})
    more = (work.rows - few) / max(1, few - points[0])
    return {name: last + more * (last - found[0][name]) for name, last in found[-1].items()}


def _gathered(model: Dressed, spread: Spread) -> float:
    """Whole layers while they compute: the one at work and the next, with embeddings and head, and a gradient."""
    if spread.shards == 1:
        return 0.0
    width = model.costume.weights.itemsize  # as they lie in shards; casts for computing are among the activations
    return width * (2 * model.numbers.largest + model.numbers.outer) + 4 * max(
        model.numbers.largest, model.numbers.outer
    )


def _copies(model: Dressed) -> float:
    """Of linear layers, laid out for sampling on a CPU (samplers/prepacked.py); none where memory is short."""
    size = model.numbers.packed * model.costume.compute.itemsize
    return size if size <= free_memory_of_machine() / 2 else 0.0


def _file_bytes(model: Dressed) -> float:
    """The safetensors file is mapped while weights are read from it. Most are in bfloat16."""
    stored = getattr(model.spec.config, "dtype", None) or torch.bfloat16
    return float(model.numbers.all * (stored.itemsize if isinstance(stored, torch.dtype) else 2))
