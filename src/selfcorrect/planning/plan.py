"""A recipe's plan: memory and seconds on given devices, what to turn where it does not fit, and the reverse."""

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from selfcorrect.config import TrainConfig, VllmConfig
from selfcorrect.config.recipe import validate
from selfcorrect.errors import ConfigError
from selfcorrect.models.sizing import memory_of
from selfcorrect.parallel.launch import refuse_unserved
from selfcorrect.planning.hardware import CARDS, CPU, Card
from selfcorrect.planning.memory import Memory, Spread, in_engines_cache, memory, of_engine, of_server
from selfcorrect.planning.pace import Pace, pace
from selfcorrect.planning.settled import Dressed, dressed, settled, static
from selfcorrect.planning.spec import Spec, described
from selfcorrect.planning.work import Lengths, Step, assumed_lengths, step_of

_MOST_ROWS, _MOST_TOKENS = 512, 1 << 17
_SPLITS = (1, 2, 4, 8)  # cards of a server


@dataclass(frozen=True, slots=True)
class Devices:
    """card: None for this machine's processor. gpus: of a node; parallel: ddp, fsdp2 or hsdp; engine: whether vLLM
    samples; serving: further cards that its server runs on, None where it runs on the same.
    """

    card: Card | None
    gpus: int = 1
    nodes: int = 1
    parallel: str = "ddp"
    engine: bool = False
    serving: int | None = None
    price: float | None = None

    @property
    def count(self) -> int:
        return self.gpus * self.nodes

    @property
    def shards(self) -> int:
        """Over how many of them weights, gradients and moments lie in shards."""
        return {"fsdp2": self.count, "hsdp": self.gpus}.get(self.parallel, 1)

    @property
    def bytes(self) -> float:
        import torch

        return self.card.bytes if self.card else memory_of(torch.device("cpu"))

    @property
    def hourly(self) -> float:
        """Dollars for all of them; 0 for this machine's processor."""
        each = self.price if self.price is not None else self.card.price if self.card else 0.0
        return each * (self.count + (self.serving or 0))


@dataclass(frozen=True, slots=True)
class Plan:
    """config: with every `auto` settled. What the fields hold is of one device, but for pace.tokens."""

    config: TrainConfig
    devices: Devices
    model: Dressed
    step: Step
    spread: Spread
    memory: Memory
    pace: Pace | None

    @property
    def fits(self) -> bool:
        return self.fullest <= self.devices.bytes

    @property
    def fullest(self) -> float:
        """Bytes on the fullest card."""
        return max(self.training, self.server)

    @property
    def training(self) -> float:
        """Bytes on a card that trains; of an engine's share of one, as if the card had to grow with it."""
        return max(self.memory.peak, self.of_cache * self.devices.bytes)

    @property
    def longest(self) -> float:
        """Tokens of the longest rollout of a run: evaluations play all attempts, also where stages train on one."""
        return self.step.lengths.longest_row(self.config.rollouts.attempts)

    @property
    def of_cache(self) -> float:
        """How much of the cache of an engine in the process one longest rollout takes: more than all, and such a
        rollout ends the run; 0 without an engine there.
        """
        if not self.spread.engine or self.spread.beside:
            return 0.0
        room = in_engines_cache(self.config, self.model, self.devices.card, self.spread, self.longest)
        return 1 / room if room else math.inf

    @property
    def server(self) -> float:
        """Bytes on each of a server's cards; 0 without them, as on a processor, beside which nothing is known of it."""
        cards = self.spread.beside and self.devices.card
        return of_server(self.model, self.longest, self.spread) if cards else 0.0

    @property
    def hours(self) -> float:
        return (self.pace.total if self.pace else 0.0) * self.config.total_steps / 3600

    @property
    def dollars(self) -> float:
        return self.hours * self.devices.hourly


def devices_for(
    config: TrainConfig, gpu: str, gpus: int = 1, nodes: int = 1, price: float | None = None,
    serving: int | None = None,
) -> Devices:  # fmt: skip
    """serving: cards of the recipe's server; as few as hold its model by default.

    Raises ConfigError where there is no such card, or where the recipe does not train on so many.
    """
    if gpu != CPU and gpu not in CARDS:
        near = [name for name in CARDS if _alike(gpu, name)]
        meant = f"did you mean {' or '.join(near)}? " if near else ""
        raise ConfigError(f"--gpu {gpu}: not in the table; {meant}there are {', '.join([*CARDS, CPU])}")
    if gpu == CPU and gpus * nodes > 1:
        raise ConfigError(f"--gpu cpu is this machine's processor, of which there is one; leave out --gpus {gpus}")
    if serving and not config.vllm.server:
        raise ConfigError(f"--serving {serving}: the recipe has no vllm.server; leave it out")
    if gpus * nodes > 1:
        refuse_unserved(config)
    elif config.parallel != "auto":
        many = "" if gpu == CPU else "--gpus tells how many (--serving, how many a server has besides), or "
        raise ConfigError(
            f"parallel = {config.parallel!r} spreads training over several processes; {many}set parallel=auto for one"
        )
    found = as_used(config, Devices(CARDS.get(gpu), gpus, nodes, serving=serving, price=price))
    heads = described(config.model).heads if serving and found.card else 0
    if serving and heads % serving:
        able = [str(count) for count in _SPLITS if heads % count == 0]
        raise ConfigError(
            f"--serving {serving}: the model's {heads} heads are split over the server's cards, which {serving} "
            f"does not divide; take {' or '.join(able)}"
        )
    return found


def _alike(gpu: str, name: str) -> bool:
    """Whether what was typed is a card's name but for signs, capitals, and more or less of it."""
    typed, known = (re.sub(r"[^a-z0-9]", "", text.casefold()) for text in (gpu, name))
    return len(typed) > 2 and (typed in known or known in typed)


def as_used(config: TrainConfig, devices: Devices, spec: Spec | None = None) -> Devices:
    """The same cards as a recipe uses them: how it spreads training (auto: as they are told), whether vLLM samples,
    and on how many further cards its server runs: as told, else as few as leave half of a card to the cache.
    """
    kind = devices.parallel if config.parallel == "auto" else config.parallel
    serving = None
    if config.vllm.server:
        serving = devices.serving or 1
        if devices.card and not devices.serving:
            serving = _fewest(dressed(config, spec or described(config.model), devices.card), devices.card)
    return replace(devices, parallel=kind, engine=config.has_engine, serving=serving)


def _fewest(model: Dressed, card: Card) -> int:
    """Over how many cards a server splits the model, and its heads."""
    able = [count for count in _SPLITS if model.spec.heads % count == 0]
    return next((count for count in able if 2 * model.numbers.all / count <= 0.5 * card.bytes), able[-1])


def make_plan(
    config: TrainConfig, devices: Devices, lengths: Lengths | None = None, spec: Spec | None = None, *,
    timed: bool = True,
) -> Plan:  # fmt: skip
    """timed: False leaves out the seconds, which take seconds themselves where they are measured on a processor, and
    are not known of a card that is not in the table.

    Raises ConfigError where there is nothing to plan, or attempts are longer than the model reads; ModelError where it
    cannot be planned.
    """
    if config.sampler == "recorded" or not config.stages:
        raise ConfigError("this recipe trains nothing (no stages, or recorded attempts), so there is nothing to plan")
    spec, lengths = spec or described(config.model), lengths or assumed_lengths(config)
    fixed, model, step, spread = _laid_out(config, devices, lengths, spec)
    reads, attempts = getattr(spec.config, "max_position_embeddings", None), config.rollouts.attempts
    if reads and attempts * lengths.limit > reads:  # whatever the prompts are
        raise ConfigError(
            f"rollouts.max_new_tokens = {lengths.limit}: {attempts} attempts of that length are more than the "
            f"{reads} tokens that the model reads; lower max_new_tokens"
        )
    needs = memory(fixed, model, devices.card, step, spread)
    took = None
    if timed and devices.card and devices.card.rated:
        took = pace(fixed, model, devices.card, step, spread, devices.nodes)
    elif timed and not devices.card:
        from selfcorrect.planning.cpu import measured

        took = measured(fixed, model, step, spread, devices.nodes)
    return Plan(fixed, devices, model, step, spread, needs, took)


def _laid_out(
    config: TrainConfig, devices: Devices, lengths: Lengths, spec: Spec
) -> tuple[TrainConfig, Dressed, Step, Spread]:
    """The recipe with every `auto` settled, its model, what one device has of a step, and how devices share."""
    shards = devices.shards
    model = dressed(config, spec, devices.card)
    step = step_of(config, lengths, devices.count)
    fixed = settled(config, model, devices.card, int(lengths.longest_row(config.rollouts.attempts)), shards)
    spread = Spread(devices.count, shards, devices.engine, devices.serving or 1, devices.serving is not None)
    return fixed, model, step, spread


# Where it does not fit


@dataclass(frozen=True, slots=True)
class Turn:
    """Settings that make it fit, as KEY=VALUE, and in words what they cost. plan: with them."""

    overrides: tuple[str, ...]
    cost: str
    plan: Plan


def turns(plan: Plan, lengths: Lengths, say: Callable[[str], None] = lambda text: None) -> Iterator[Turn]:
    """What makes training fit where it does not, what costs least first, each of it tried, and told; at most two. A
    server that is too small wants more cards.
    """
    found = 0
    if plan.training <= plan.devices.bytes:
        return
    for overrides, cost in _candidates(plan):
        if (changed := _changed(plan.config, overrides)) is None:
            continue
        devices = as_used(changed, plan.devices, plan.model.spec)
        if _hopeless(changed, devices, plan.model.spec):
            continue
        say(f"trying {' '.join(overrides)}")
        other = make_plan(changed, devices, lengths, plan.model.spec, timed=False)
        if other.training <= other.devices.bytes and other.server <= max(plan.server, other.devices.bytes):
            found += 1
            yield Turn(tuple(overrides), cost, other)
        if found == 2:
            return


def _hopeless(config: TrainConfig, devices: Devices, spec: Spec) -> bool:
    """Whether what lies there all the time is more than there is."""
    model = dressed(config, spec, devices.card)
    return static(config, model, devices.card, devices.shards).total > devices.bytes


def _candidates(plan: Plan) -> Iterator[tuple[list[str], str]]:
    """Settings that change no gradient first, then those that do."""
    config, rows = plan.config, plan.config.rollouts.rows
    again, micro = "optimizer.gradient_checkpointing=true", config.optimizer.rows
    yield from _of_engine(plan)
    if plan.memory.fullest == "update":
        for size in sorted({max(1, micro // 2), max(1, micro // 4), 1} - {micro}, reverse=True):
            yield [f"optimizer.micro_batch={size}"], "the same gradient, a little slower"
        if config.optimizer.gradient_checkpointing is not True:
            yield [again], "the same gradient, a third more computation in the update"
    lanes = not plan.devices.engine  # which has a cache of its own
    for size in sorted({max(1, rows // 2), max(1, rows // 4)} - {rows} if lanes else (), reverse=True):
        yield [f"rollouts.rows_at_once={size}"], "slower sampling"
    tight = [again, "optimizer.micro_batch=1"] + [f"rollouts.rows_at_once={max(1, min(8, rows))}"] * lanes
    yield tight, "slower sampling and update" if lanes else "a slower update"
    for kind in ("hsdp", "fsdp2") if plan.devices.nodes > 1 else ("fsdp2",):  # one machine's links are the faster ones
        if plan.devices.shards < replace(plan.devices, parallel=kind).shards:
            for more in [[], ["model.weights=float32"]][: 2 if config.model.tuning == "full" else 1]:
                yield [*tight, *more, f"parallel={kind}"], "weights are gathered from the other cards as they are used"
    # An adapter leaves room for other sizes; its reference is its own model.
    anew = [*_ANEW, *["rollouts.rows_at_once=auto"] * lanes]
    anew += ["model.reference=auto"] if config.model.reference != "auto" else []
    if config.model.tuning == "full":
        away, cost = [*tight, "model.reference=cpu"], "the reference passes through the card layer by layer"
        yield away, cost
        yield [*away, "optimizer.name=adamw_8bit"], f"{cost}, and moments have 8 bits"
        yield (
            [*anew, "model.tuning=lora", "model.weights=bfloat16"],
            "an adapter trains, in place of all weights, with ten times the learning rate",
        )
    elif config.model.weights == "float32":
        yield [*tight, "model.weights=bfloat16"], "the frozen weights are rounded"
    anew += ["model.tuning=qlora", "model.weights=bfloat16"]
    four = "an adapter trains over weights in 4 bits (where all of them did, with ten times the learning rate)"
    if config.model.tuning != "qlora":
        yield anew, four
        yield from (
            (list(dict.fromkeys([*anew, *more])), f"{four}; {cost}") for more, cost in _of_engine(plan, shares=False)
        )
    if plan.devices.parallel != "ddp":
        yield [*anew, "parallel=ddp"], f"{four}, which every card holds whole"
    yield (
        [*tight, f"rollouts.max_new_tokens={max(1, config.rollouts.max_new_tokens // 2)}"],
        "attempts of half the length",
    )


_ANEW = ["optimizer.micro_batch=auto", "optimizer.gradient_checkpointing=auto"]


def _of_engine(plan: Plan, *, shares: bool = True) -> Iterator[tuple[list[str], str]]:
    """Where an engine is in the process: more of the card for it, unless that is left out, or none there, as it holds a
    second copy of the weights.
    """
    vllm, card = plan.config.vllm, plan.devices.card
    if not plan.devices.engine or plan.devices.serving is not None:
        return
    for share, rollouts in _shares(plan, card) if card and shares else ():
        unset = ["vllm.kv_cache_gib=null"] if vllm.kv_cache_gib else []
        yield [f"vllm.memory_share={share:g}", *unset], f"room for {rollouts} of the longest rollouts side by side"
    if plan.memory.fullest == "update":
        return  # when it sleeps
    plain = ["sampler=transformers"] + ["vllm={}"] * (vllm != VllmConfig())
    yield [*_ANEW, "rollouts.rows_at_once=auto", *plain], "slower sampling"
    if card:
        usual = VllmConfig().model_dump()
        own = {name: usual[name] for name in ("memory_share", "kv_cache_gib", "block_size", "max_model_len")}
        unset = [f"vllm.{name}={value or 'null'}" for name, value in own.items() if getattr(vllm, name) != value]
        more = _fewest(plan.model, card)
        yield ["vllm.server=http://HOST:8000", *unset], f"vLLM runs on {more} further cards: docs/vllm.md"


def _shares(plan: Plan, card: Card) -> Iterator[tuple[float, int]]:
    """Of a card, for an engine in the process; and for how many of the longest rollouts that is room."""
    token, taken = plan.model.spec.token_bytes(plan.model.costume.compute), of_engine(plan.config, plan.model, card)
    for rollouts in (64, 16, 1):
        needed = sum(taken.values()) - taken["KV cache"] + rollouts * token * plan.longest
        yield math.ceil(100 * needed / card.bytes) / 100, rollouts


def _changed(config: TrainConfig, overrides: list[str]) -> TrainConfig | None:
    """The config with other values; None where they contradict each other."""
    try:
        changed = validate(config.model_dump(mode="json"), overrides=overrides)
    except ConfigError:
        return None
    return changed if isinstance(changed, TrainConfig) else None


# The reverse


def largest_micro_batch(plan: Plan, say: Callable[[str], None] = lambda text: None) -> int:
    """Rollouts of a forward pass that still fit, the other settings as settled; 0 where not one does.

    Up to a sixteenth fewer than might. say: is told each number that is tried.
    """

    def peak(rows: int) -> float:
        say(f"trying a micro-batch of {rows}")
        optimizer = plan.config.optimizer.model_copy(update={"micro_batch": rows})
        return _peak(plan, plan.config.model_copy(update={"optimizer": optimizer}), plan.step.lengths)

    return _most(peak, plan.devices.bytes, min(_MOST_ROWS, plan.step.rows))


def longest_attempt(plan: Plan, say: Callable[[str], None] = lambda text: None) -> int:
    """max_new_tokens that still fit, in steps of 64, the other settings as settled; 0 where 64 do not.

    Up to a sixteenth fewer than might, and no more than the model can read.
    """
    room = getattr(plan.model.spec.config, "max_position_embeddings", None) or _MOST_TOKENS
    lengths, attempts = plan.step.lengths, plan.step.attempts
    most = int((room - lengths.longest - (attempts - 1) * lengths.turn) / attempts) // 64

    def peak(units: int) -> float:
        limit = 64 * units
        say(f"trying attempts of {limit:,} tokens")
        rollouts = plan.config.rollouts.model_copy(update={"max_new_tokens": limit})
        longer = replace(lengths, limit=limit, attempt=lengths.attempt * limit / lengths.limit)
        return _peak(plan, plan.config.model_copy(update={"rollouts": rollouts}), longer)

    return 64 * _most(peak, plan.devices.bytes, most)


def cheapest_card(
    plan: Plan, config: TrainConfig, lengths: Lengths, say: Callable[[str], None] = lambda text: None,
) -> Plan | None:  # fmt: skip
    """Of the cards on which the recipe fits, as many of them, the one whose run costs least; None where none does."""
    priced = []
    for card in CARDS.values():
        devices = replace(plan.devices, card=card, price=None)
        fixed, model, step, spread = _laid_out(config, devices, lengths, plan.model.spec)
        cost = devices.hourly * pace(fixed, model, card, step, spread, devices.nodes).total
        priced.append((cost, devices))
    for _, devices in sorted(priced, key=lambda pair: pair[0]):
        say(f"trying {devices.card.name if devices.card else CPU}")
        other = make_plan(config, devices, lengths, plan.model.spec)
        if other.fits:
            return other
    return None


def _peak(plan: Plan, config: TrainConfig, lengths: Lengths) -> float:
    """Of a training card, of a server's, or of an engine's share: whichever is fullest."""
    return make_plan(config, plan.devices, lengths, plan.model.spec, timed=False).fullest


def _most(peak: Callable[[int], float], room: float, most: int) -> int:
    """The largest number up to `most` whose peak has room, or up to a sixteenth less; 0 where none has.

    Peaks grow about in a line. Each guess lies on the line through what is known to fit and what is known not to; it
    is tried.
    """
    if most < 1 or (low_peak := peak(1)) > room:
        return 0
    low, high, trial = 1, most + 1, min(most, 4)
    for _ in range(8):
        if trial <= low or trial >= high:
            break
        found = peak(trial)
        slope = (found - low_peak) / (trial - low)
        if found <= room:
            low, low_peak = trial, found
        else:
            high = trial
        guess = low + int((room - low_peak) / slope) if slope > 0 else most
        trial = min(max(guess, low + 1), high - 1, most)
        if high - low <= max(1, low // 16):
            break
    return low
