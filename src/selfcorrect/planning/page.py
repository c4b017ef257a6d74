"""A plan in lines for a terminal, and as plain values for JSON."""

from collections.abc import Iterator
from typing import Any

from selfcorrect.config import SingleTurn, SupervisedStage, TrainConfig
from selfcorrect.planning.plan import Devices, Plan, Turn
from selfcorrect.planning.rests import sources
from selfcorrect.planning.work import Step

GIB = 2**30


def lines(plan: Plan) -> Iterator[str]:
    """What it comes to, by part and by phase, and the numbers it rests on."""
    config, of, needs, step = plan.config, plan.model.numbers, plan.memory, plan.step
    longest = step.lengths.longest_row(step.attempts)
    yield (
        f"{config.model.path}: {told_count(of.all)} weights, tuning {config.model.tuning}, {told_count(of.trained)} "
        f"train; on {devices(plan)}"
    )
    yield f"a step: {_of_step(config, step)}; memory is for rollouts of up to {longest:,.0f} tokens"
    yield from _other_stages(config, step)
    yield f"lengths: {step.lengths.told}"
    optimizer = config.optimizer
    yield (
        f"sizes: rows_at_once {config.rollouts.rows}, micro_batch {optimizer.rows}, gradient_checkpointing "
        f"{told(optimizer.gradient_checkpointing)}, padding_free {told(optimizer.padding_free)}"
    )
    yield ""
    yield from _by_phase(plan)
    if needs.static.place == "cpu":
        yield "  the reference lies in the machine's memory and passes through the card (model.reference)"
    if plan.server:
        left, each = plan.devices.bytes - plan.server, " each" if plan.spread.tensor > 1 else ""
        yield (
            f"  the server's {plan.spread.tensor} further {device(plan)}: {plan.server / GIB:.2f} GiB{each} with a "
            f"cache of one rollout, and {left / GIB:.1f} left for more"
            + ("" if left >= 0 else ": DOES NOT FIT; --serving gives it more cards")
        )
    elif plan.of_cache:
        held = 1 / plan.of_cache
        yield (
            f"  the engine's cache holds {held:.1f} of the longest rollouts (vllm.memory_share, vllm.kv_cache_gib)"
            + ("" if held >= 1 else ": DOES NOT FIT")
        )
    if plan.pace:
        yield ""
        yield f"seconds of a step: {plan.pace.total:,.1f}"
        for phase, seconds in plan.pace.seconds.items():
            yield f"  {phase:<28}{seconds:9.1f}  {seconds / plan.pace.total:4.0%}"
        yield f"  bound by {plan.pace.bound}; {plan.pace.tokens / plan.pace.total:,.0f} sampled tokens a second"
        if plan.devices.engine and not plan.devices.card:
            yield "  rollouts as transformers would sample them here: what vLLM takes on a processor is not known"
        cost = f", {plan.dollars:,.0f} dollars" if plan.devices.hourly else ""
        yield f"  {config.total_steps:,} steps: {plan.hours:,.1f} hours{cost}, evaluations and checkpoints apart"
    yield ""
    yield from resting_on(plan)


def _of_step(config: TrainConfig, step: Step) -> str:
    if not step.samples:
        return f"{max(stage.batch for stage in config.stages if isinstance(stage, SupervisedStage)):,} traces"
    rows = config.rollouts.problems_per_step * config.rollouts.rollouts_per_problem
    return f"{rows:,} rollouts of {step.attempts} attempt{'s' * (step.attempts > 1)}"


def _other_stages(config: TrainConfig, step: Step) -> Iterator[str]:
    """Stages whose steps are not the one that is planned."""
    supervised = [stage.name for stage in config.stages if isinstance(stage, SupervisedStage)]
    single = [stage.name for stage in config.stages if isinstance(stage, SingleTurn)]
    if supervised and step.samples:
        yield f"  {', '.join(supervised)}: supervised; each step counts as one of the others"
    if any(isinstance(stage, SupervisedStage) and not stage.traces for stage in config.stages):
        yield "  what is sampled for traces is not counted"
    if single and step.attempts > 1:
        yield f"  {', '.join(single)}: of one attempt; each step counts as one of the others"


_LAST = ("allocator's slack", "process")


def _by_phase(plan: Plan) -> Iterator[str]:
    """A table of memory: parts down, phases across in the order of a run."""
    needs, order = plan.memory, ("loading", "sampling", "evaluation", "update", "sync", "saving")
    phases = sorted(needs.phases, key=order.index)
    parts = {phase: needs.parts(phase) for phase in phases}
    names = list(dict.fromkeys(name for of in parts.values() for name in of if name not in _LAST))
    names += [last for last in _LAST if any(last in of for of in parts.values())]
    head = f"memory of one {device(plan)}, GiB"
    wide = max(map(len, (head, *(f"  {name}" for name in names)))) + 1
    yield f"{head:<{wide}}" + "".join(f"{phase:>11}" for phase in phases)
    for name in names:
        sizes = (f"{of[name] / GIB:11.2f}" if name in of else f"{'':11}" for of in parts.values())
        yield f"{f'  {name}':<{wide}}{''.join(sizes)}".rstrip()
    yield f"{'  in all':<{wide}}" + "".join(f"{needs.at(phase) / GIB:11.2f}" for phase in phases)
    verdict = "fits" if needs.peak <= plan.devices.bytes else "DOES NOT FIT"  # a server and a cache have their own
    yield f"  at its fullest ({needs.fullest}) {needs.peak / GIB:.2f} of {plan.devices.bytes / GIB:.1f}: {verdict}"


def resting_on(plan: Plan) -> Iterator[str]:
    """The numbers that are not worked out but taken."""
    if plan.devices.card is None:
        timed = ", and on this processor just now (seconds)" if plan.pace else ""
        yield f"rests on: layers of this model run on fake tensors (memory){timed}"
    else:
        yield "rests on:"
    for source in sources(plan):
        yield f"  {source.of}: {', '.join(number.told for number in source.numbers)} ({source.why})"
    if plan.devices.card and plan.spread.shards > 1:
        yield "  memory in shards is measured on a CPU with two processes, and on no card"


def turned(plan: Plan, turns: list[Turn]) -> Iterator[str]:
    """What to turn where training does not fit; of a server its own line says it."""
    if plan.training <= plan.devices.bytes:
        return
    yield ""
    if not turns:
        yield "nothing tried makes it fit; take a larger card, more of them with parallel=fsdp2, or a smaller model"
        return
    yield f"what makes {'training' if plan.server > plan.devices.bytes else 'it'} fit:"
    for turn in turns:
        yield f"  {' '.join(turn.overrides)}: {turn.plan.memory.peak / GIB:.1f} GiB, fits ({turn.cost})"


def device(plan: Plan) -> str:
    return plan.devices.card.name if plan.devices.card else "process"


def devices(plan: Plan) -> str:
    if plan.devices.card is None:
        return "this machine's processor"
    count = (
        f"{plan.devices.count} x {plan.devices.card.name}"
        if plan.devices.count > 1
        else f"one {plan.devices.card.name}"
    )
    nodes = f" in {plan.devices.nodes} machines" if plan.devices.nodes > 1 else ""
    return (
        count
        + nodes
        + (f", {plan.devices.parallel}" if plan.devices.count > 1 else "")
        + (f", vllm on {plan.devices.serving} more" if plan.spread.beside else ", vllm" if plan.spread.engine else "")
    )


def told(value: Any) -> str:
    return {True: "on", False: "off"}.get(value, str(value))


def told_count(count: float) -> str:
    return f"{count / 1e9:.2f} billion" if count >= 1e9 else f"{count / 1e6:.2f} million"


def asked_of(config: TrainConfig, devices: Devices) -> dict[str, Any]:
    """What a plan was made for, beside the model and the lengths. config: settled."""
    return {
        "devices": {"card": devices.card.name if devices.card else "cpu", "gpus": devices.gpus, "nodes": devices.nodes,
                    "serving": devices.serving, "parallel": devices.parallel, "bytes": devices.bytes},
        "sizes": {"rows_at_once": config.rollouts.rows, "micro_batch": config.optimizer.rows,
                  "gradient_checkpointing": config.optimizer.gradient_checkpointing,
                  "padding_free": config.optimizer.padding_free},
    }  # fmt: skip


def row(plan: Plan) -> dict[str, Any]:
    """The plan as plain values: bytes, seconds, dollars."""
    return {
        "model": plan.config.model.path, "tuning": plan.config.model.tuning, "weights": plan.model.numbers.all,
        "trained": plan.model.numbers.trained,
        **asked_of(plan.config, plan.devices),
        "lengths": {"prompt": plan.step.lengths.prompt, "attempt": plan.step.lengths.attempt,
                    "longest_row": plan.step.lengths.longest_row(plan.step.attempts)},
        "server_bytes": plan.server, "bytes": plan.memory.parts(), "peak_bytes": plan.memory.peak,
        "fullest": plan.memory.fullest,
        "bytes_by_phase": {phase: plan.memory.parts(phase) for phase in plan.memory.phases},
        "peak_bytes_by_phase": {phase: plan.memory.at(phase) for phase in plan.memory.phases}, "fits": plan.fits,
        "seconds": plan.pace.seconds if plan.pace else None, "step_seconds": plan.pace.total if plan.pace else None,
        "bound": plan.pace.bound if plan.pace else None, "hours": plan.hours, "dollars": plan.dollars,
        "rests_on": {number.name: number.value for source in sources(plan) for number in source.numbers},
    }  # fmt: skip
