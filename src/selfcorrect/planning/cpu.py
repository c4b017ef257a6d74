"""Seconds of a step by phase on this machine's processor: two models of some of the layers are run and timed.

Random weights, the recipe's rows and lengths, fewer of both; a model of L layers lies on the line through the two, and
the work of a step is so many times that which was timed. Takes half a minute, and minutes for wide models.
"""

import gc
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from statistics import median
from typing import Any

import torch

from selfcorrect.config import TrainConfig
from selfcorrect.errors import ModelError
from selfcorrect.models import products
from selfcorrect.models.freed import keep_freed_memory
from selfcorrect.models.language_model import LanguageModel
from selfcorrect.models.tables import begin
from selfcorrect.models.windows import layer_windows
from selfcorrect.planning.hardware import GLOO_BYTES, GLOO_SUM_BYTES
from selfcorrect.planning.memory import Spread
from selfcorrect.planning.pace import Links, Pace, decoding, grading, sync
from selfcorrect.planning.rehearsal import Costume, CostumeKey, Line, adapters, kinds, run_update, through
from selfcorrect.planning.settled import Dressed
from selfcorrect.planning.together import Apart, timing_together
from selfcorrect.planning.work import Step, Update, update_of
from selfcorrect.samplers.inference import InferenceWeights
from selfcorrect.samplers.lanes import Lanes
from selfcorrect.samplers.prepacked import LEAST_ADAPTED, laid_out, least
from selfcorrect.waiting import cores

# Of a timed update, but one row of it at the least. Gradients are added up once a micro-batch, of many rows or few.
_FLOPS = 4e11
_ROUNDS = 6  # at the most, after the first one
_LONG = 15.0  # seconds after which no further round begins, but for the one that counts at the least
_LEAST = 0.05  # seconds that a piece is timed for in a round
_MOST = 20  # times


def measured(config: TrainConfig, model: Dressed, step: Step, spread: Spread, nodes: int = 1) -> Pace:
    """The seconds of a step of this recipe here; the reference's pass counts as the update's. step: of one process.

    Of several processes each is to time its own share at once with the others, as they share a processor and its way to
    the memory (beside.py); what they send each other comes on top.

    Raises ModelError for a model that is sampled without lanes, which are what is timed here.
    """
    if layer_windows(model.spec.config, model.costume.attention) is None:
        raise ModelError(
            f"model.path = {model.spec.path!r}: no plan for this processor, as layers of "
            f"type {model.spec.config.model_type} attend otherwise than those whose sampling is timed; plan for "
            "a card (--gpu)"
        )
    keep_freed_memory()  # as a run does
    many = spread.devices // nodes  # of this machine
    shares = model.attends_to_all and spread.shards == 1
    work = update_of(config, step, shares, 1 << 30, in_place=spread.shards == 1, longest=False)
    of_token = 8 * 2 * model.numbers.largest
    of_row = work.rest * of_token + work.trained * 8 * model.spec.vocabulary * model.spec.hidden
    rows = max(1, min(work.rows, int(_FLOPS / of_row)))
    prefixes = min(work.prefixes, max(1, int(_FLOPS / (max(1, work.prefix) * of_token))))
    timed = replace(work, rows=rows, scored=rows * work.trained, prefixes=prefixes)
    row, limit = math.ceil(step.lengths.mean_row(step.attempts)), step.lengths.limit
    lanes = min(config.rollouts.rows, step.rows)
    with torch.random.fork_rng(devices=[]):
        # Tiles of the loss that are not kept are computed again: the same share of them is kept, of fewer tokens.
        tiles = replace(model.costume.tiles, kept=model.costume.tiles.kept * rows // work.rows)
        key = CostumeKey(replace(model.costume, tiles=tiles))
        found = _timings(timed, key, _layers(model), lanes, row, limit, torch.get_num_threads())
    of = {name: line.at(model.spec.layers) for name, line in found.items()}
    seconds, tokens = {"rollouts": 0.0}, 0.0
    for attempt in range(1, step.attempts + 1) if step.samples else ():
        one = decoding(step, lanes, attempt)
        share = max(0.0, (one.rows - 1) / max(1, lanes - 1))
        seconds["rollouts"] += one.steps * (of["step one row"] + share * max(0.0, of["step"] - of["step one row"]))
        fed = step.groups * step.lengths.prompt if attempt == 1 else step.rows * (step.lengths.turn + 1)
        seconds["rollouts"] += of["lay out"] + of["prefill"] * fed / max(1, lanes * _FED)
        tokens += spread.devices * step.rows * step.lengths.attempt
    # Prompts that are shared are computed once a step, before all micro-batches and after them.
    seconds["update"] = of["rollouts' passes"] * step.rows / rows + of["optimiser"] / spread.shards
    seconds["update"] += of["prompts' passes"] * work.prefixes / max(1, prefixes)
    gloo = Links(GLOO_BYTES, GLOO_SUM_BYTES, GLOO_SUM_BYTES)
    seconds["sync"] = sum(sync(config, model, gloo, step, spread, 0.0).values())
    seconds["grading"] = grading(config, many * step.rows, cores()) if step.samples else 0.0
    longest = max(seconds, key=lambda phase: seconds[phase])
    why = "what processes send each other" if longest == "sync" else "this processor, as just measured"
    return Pace(seconds, f"{longest}: {why}", tokens)


_FED = 8  # tokens of a row in the prefill that is timed


def _layers(model: Dressed) -> tuple[int, int]:
    """Of the two models. They are to hold less than the run does beside its weights, which with adapters is little more
    than copies.
    """
    least, layers = kinds(model.costume.config), model.spec.layers
    share = layers * 2 // (5 if model.costume.rank else 3)
    return least, max(least + 1, min(layers, max(least + 4, share)))


@lru_cache(maxsize=64)
def _timings(
    work: Update, key: CostumeKey, layers: tuple[int, int], lanes: int, width: int, limit: int, threads: int
) -> dict[str, Line]:
    """The optimiser's step is AdamW's, whichever the recipe names. threads: those there are, as times hang on them."""
    costume = key.costume

    def times(makers: Sequence[Callable[[], LanguageModel]]) -> list[dict[str, float]]:
        try:
            return _of_both([make() for make in makers], costume, work, lanes, width, limit)
        finally:
            gc.collect()  # a model's parts hold each other, and the run needs the memory

    return through(costume, times, layers)


def _of_both(
    lms: Sequence[Any], costume: Costume, work: Update, lanes: int, width: int, limit: int
) -> list[dict[str, float]]:
    """Of rounds in which every piece of both has its turn, the medians: what else the machine does slows both models
    alike, and lasts for seconds. The first round does not count, as memory is taken in it.
    """
    for lm in lms:
        products.serve(lm.model)
        for part in ("get_input_embeddings", "get_output_embeddings"):  # of small models the most
            getattr(lm.model, part)().weight = getattr(lms[-1].model, part)().weight
    rounds, start = list[list[dict[str, float]]](), time.perf_counter()
    with timing_together() as others:
        while others.agreed(len(rounds) < 2 or (len(rounds) <= _ROUNDS and time.perf_counter() - start < _LONG)):
            sampled = _sampling(lms, lanes, width, limit, others)
            learned = [_learning(lm, costume, work, others) for lm in lms]
            rounds.append([found | more for found, more in zip(sampled, learned, strict=True)])
        of_each = [
            {name: median(found[name] for found in each[1:]) for name in each[0]} for each in zip(*rounds, strict=True)
        ]
        for lm, found in zip(lms, of_each, strict=True):
            found["optimiser"] = _moving(lm, others)  # one by one, as both models' moments were more than a run's
    return of_each


def _sampling(lms: Sequence[Any], lanes: int, width: int, limit: int, others: Apart) -> list[dict[str, float]]:
    found = [{"lay out": _burst(_to_lay_out(lm), others)} for lm in lms]
    for name, rows in (("step", lanes), ("step one row", 1)):
        for lm, times in zip(lms, found, strict=True):
            room = _seated(lm, rows, width, limit)
            with torch.no_grad(), _as_sampled(lm), InferenceWeights(lm).lent(lm):
                if name == "step":
                    times["prefill"] = _burst(lambda: _fill(room, rows, _FED), others)  # noqa: B023 - called at once
                _fill(room, rows, 1)
                start_at = torch.full((rows,), max(1, width // 2))
                nothing_RV = torch.zeros(rows, lm.model.config.vocab_size)
                room.start(torch.arange(rows), torch.arange(rows), start_at, nothing_RV)
                times[name] = _burst(lambda: room.step(rows, width), others)  # noqa: B023
    return found


def _summed(lm: Any) -> list[tuple[Any, str, Any]]:
    """Layers whose adapter a copy for sampling holds too, W + BA, so that it is not multiplied with by itself."""
    whole = lm.copies and lm.compute_dtype == torch.float32 and products.works(lm.compute_dtype)
    found: list[Any] = adapters(lm.model) if whole else []
    return [each for each in found if each[2].base.weight.numel() >= LEAST_ADAPTED]


@contextmanager
def _as_sampled(lm: Any) -> Iterator[None]:
    found = _summed(lm)
    try:
        for parent, name, layer in found:
            setattr(parent, name, layer.base)
        yield
    finally:
        for parent, name, layer in found:
            setattr(parent, name, layer)


def _learning(lm: Any, costume: Costume, work: Update, others: Apart) -> dict[str, float]:
    added = work.micro_batches > 1
    for tensor in lm.parameters():  # as at all micro-batches but the first, or at the only one
        tensor.grad = (tensor.grad if tensor.grad is not None else torch.zeros_like(tensor)) if added else None
    if work.in_place:
        begin(lm, on_card=False)  # once a step, and not with each of its prompts
    others.begin()
    at = [time.perf_counter()]
    run_update(lm, work, costume, lambda: at.append(time.perf_counter()))
    start, ready, _, learned, end = at
    return {"rollouts' passes": learned - ready, "prompts' passes": ready - start + end - learned}


def _moving(lm: Any, others: Apart) -> float:
    trained = lm.parameters()
    optimizer = torch.optim.AdamW(trained, lr=0.0, fused=True)

    def move() -> None:
        torch.nn.utils.clip_grad_norm_(trained, 1e9)
        optimizer.step()

    move()
    took = median(_burst(move, others) for _ in range(_ROUNDS))
    optimizer.zero_grad(set_to_none=True)
    return took


def _to_lay_out(lm: Any) -> Callable[[], None]:
    weights = InferenceWeights(lm)

    def lay_out() -> None:
        weights.new_version()
        with torch.no_grad(), weights.lent(lm):  # the large ones without their adapters
            for _, _, layer in _summed(lm):  # and no more than one sum at once, as the run has none beside its copy
                both = layer.base.weight + layer.up.weight @ layer.down.weight
                if both.numel() < least(lm.compute_dtype):
                    laid_out(both)

    return lay_out


def _seated(lm: Any, rows: int, width: int, limit: int) -> Lanes:
    limit = max(limit, _MOST)
    room = Lanes(lm, rows, width + _FED + _MOST, rows, limit)
    room.begin(torch.full((rows, limit), 0.5, dtype=torch.float64), 1.0)
    return room


def _fill(room: Lanes, rows: int, tokens: int) -> None:
    room.prefill(range(rows), [0] * rows, [[1] * tokens] * rows)


def _burst(piece: Callable[[], Any], others: Apart) -> float:
    """Seconds of a piece: the mean of some times one after the other; of one, if that is long."""
    others.begin()
    start, times = time.perf_counter(), 0
    while not times or (times < _MOST and time.perf_counter() - start < _LEAST):
        piece()
        times += 1
    return (time.perf_counter() - start) / times
