"""The numbers that a plan takes and does not work out: those that this plan used, by where they come from."""

from collections.abc import Iterator
from dataclasses import dataclass

from selfcorrect.planning import hardware
from selfcorrect.planning.hardware import Card
from selfcorrect.planning.memory import ENGINE_BYTES
from selfcorrect.planning.pace import CORES, grade_seconds
from selfcorrect.planning.plan import Plan
from selfcorrect.waiting import cores

_GIB = 2**30
_WHENCE = "the maker's figures, GiB as torch reports them, the network assumed"


@dataclass(frozen=True, slots=True)
class Number:
    """name: with its unit; told: value and unit in words."""

    name: str
    value: float
    told: str


@dataclass(frozen=True, slots=True)
class Source:
    """of: what the numbers are of; why: where they come from, in words."""

    of: str
    numbers: tuple[Number, ...]
    why: str


def sources(plan: Plan) -> Iterator[Source]:
    """All of a plan's; seconds' where it has them."""
    card = plan.devices.card
    if card is None:
        yield Source("memory", tuple(_memory(plan)), "measured; docs/plan.md")
        if plan.pace:
            yield Source("seconds", tuple(_on_processor(plan)), "docs/plan.md; all else was timed")
        return
    linked = plan.spread.devices > 1 or plan.spread.beside
    yield Source(card.name, tuple(_promised(plan, card, linked=linked)), _WHENCE)
    if plan.pace:
        yield Source("reached of them", tuple(_reached(plan, linked=linked)), "assumed; docs/plan.md")
        yield Source("seconds", tuple(_on_card(plan)), "measured or assumed, as docs/plan.md says")
    yield Source("memory", tuple(_memory(plan)), "assumed")
    if not card.rated:
        return
    price = plan.devices.hourly / (plan.devices.count + (plan.devices.serving or 0))
    given = "given" if plan.devices.price is not None else f"an assumption of {hardware.PRICED}; --price replaces it"
    told = f"{price:.2f} dollars a card and hour"
    yield Source("price", (Number("dollars_per_card_and_hour", price, told),), given)


def _promised(plan: Plan, card: Card, *, linked: bool) -> Iterator[Number]:
    yield Number("card_gib", card.gib, f"{card.gib:g} GiB")
    if plan.pace:
        yield Number("card_tflops", card.tflops, f"{card.tflops:g} TFLOPS bfloat16 dense")
        yield Number("card_gb_per_second", card.bandwidth, f"{card.bandwidth:,g} GB/s")
        ways = plan.devices.gpus * card.network  # of a machine to others, which may be wider than the links in it
        within = plan.devices.nodes == 1 or ways > card.link or 1 < plan.spread.shards < plan.spread.devices
        if linked and within:
            yield Number("links_gb_per_second", card.link, f"links {card.link:g} GB/s")
        if linked and plan.devices.nodes > 1:
            yield Number("network_gb_per_second", card.network, f"network {card.network:g} GB/s a card")


def _reached(plan: Plan, *, linked: bool) -> Iterator[Number]:
    flops = hardware.utilisation(plan.model.spec.hidden)
    yield Number("share_of_flops", flops, f"{flops:.0%} of FLOPs")
    yield Number("share_of_bandwidth", hardware.DECODE_BANDWIDTH, f"{hardware.DECODE_BANDWIDTH:.0%} of bandwidth")
    if linked:
        yield Number("share_of_links", hardware.LINK_SHARE, f"{hardware.LINK_SHARE:.0%} of links")


def _on_card(plan: Plan) -> Iterator[Number]:
    layer = hardware.ENGINE_LAYER_SECONDS if plan.spread.engine else hardware.LAYER_SECONDS
    yield Number("layer_milliseconds", 1e3 * layer, f"{1e3 * layer:g} ms a layer in a decoding step")
    own = hardware.PER_STEP_SECONDS
    yield Number("bookkeeping_seconds_per_step", own, f"{own:g} s of bookkeeping a step")
    if plan.spread.beside and plan.spread.shards > 1:
        host = hardware.HOST_BYTES / 1e9
        yield Number("host_gb_per_second", host, f"{host:g} GB/s between a card and its machine's memory")
    if plan.memory.static.place == "cpu":
        pinned = hardware.PINNED_BYTES / 1e9
        yield Number("pinned_gb_per_second", pinned, f"{pinned:g} GB/s from the reference in its machine's memory")
    yield from _grading(plan, CORES, "cores a card that grade")


def _on_processor(plan: Plan) -> Iterator[Number]:
    if plan.spread.devices > 1:
        summed, gathered = hardware.GLOO_SUM_BYTES / 1e9, hardware.GLOO_BYTES / 1e9
        if plan.spread.shards < plan.spread.devices:
            yield Number("gloo_summed_gb_per_second", summed, f"{summed:g} GB/s summed over processes (gloo)")
        if plan.spread.shards > 1:
            yield Number("gloo_gathered_gb_per_second", gathered, f"{gathered:g} GB/s gathered from processes (gloo)")
    yield from _grading(plan, cores(), "cores that grade")


def _grading(plan: Plan, cores: int, told: str) -> Iterator[Number]:
    answer = 1e3 * grade_seconds(plan.config)
    yield Number("grading_milliseconds_per_answer", answer, f"{answer:g} ms to grade an answer")
    yield Number("grading_cores", cores, f"{cores} {told}")


def _memory(plan: Plan) -> Iterator[Number]:
    needs, on_card = plan.memory, plan.devices.card is not None
    what = "CUDA context and cuBLAS" if on_card else "the process"
    yield Number("process_gib", needs.process / _GIB, f"{needs.process / _GIB:.2f} GiB of {what}")
    of = "" if on_card else " on what comes and goes"
    yield Number("allocator_slack_share", needs.slack, f"{100 * needs.slack:.3g}% of allocator's slack{of}")
    if plan.spread.engine:
        engine = ENGINE_BYTES / _GIB
        yield Number("engine_gib", engine, f"{engine:g} GiB of vLLM's graphs and workspaces")
