"""Every run: what was predicted, told at its start, and what was measured beside it, at its end."""

import contextlib
import json
import math
import os
import re
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from selfcorrect.config import TrainConfig
from selfcorrect.errors import ModelError, UserError, one_line
from selfcorrect.evaluation.kept import write_durably
from selfcorrect.models.freed import give_back
from selfcorrect.models.language_model import LanguageModel
from selfcorrect.parallel.launch import is_first, kind_of, launched
from selfcorrect.planning.hardware import CONTEXT_BYTES, CPU, Card
from selfcorrect.planning.page import asked_of, row
from selfcorrect.planning.plan import Devices, Plan, as_used, make_plan
from selfcorrect.planning.spec import Spec
from selfcorrect.planning.together import timing_together
from selfcorrect.planning.work import assumed_lengths

FILE = "plan.json"
PHASES = ("rollouts", "update")  # that both a plan and a step's record name
_WORTH = 10  # times what a plan takes: layers are timed again only at the end of a run that took so long
_GIB = 2**30


@contextmanager
def planned(
    config: TrainConfig, lm: LanguageModel, task: Any, path: Path, say: Callable[[str], None]
) -> Iterator[None]:
    """Around a run. config: settled. What fails here is told in a line and fails nothing else.

    SELFCORRECT_PLAN=off leaves it out, for runs that are over in seconds; `timed` times the lengths that came in short
    runs too. Of several processes the first one speaks and writes; those that share a processor with it do as it does,
    so that what is timed there goes as slowly as it will.
    """
    asked = os.environ.get("SELFCORRECT_PLAN", "").casefold()
    if asked == "off" or not (is_first() or _shares_first_ones_processor(lm.device)):
        yield
        return
    say = say if is_first() else _silent
    plan, steps, least = None, _steps(path), math.inf
    predicted = _kept(path, config, lm) if steps else None
    if predicted is None:
        say(f"plan: {_rehearsing(lm.device.type == CPU)} (SELFCORRECT_PLAN=off leaves it out) ...")
        start = time.perf_counter()
        try:
            plan = _plan(config, lm, task)
            predicted = row(plan)
            say(f"plan: {told(plan)}")
            if not steps:  # else what the run took so far still holds, until there is more of it
                _write(path, {"predicted": predicted})
            least = _WORTH * (time.perf_counter() - start)
        except Exception as error:  # noqa: BLE001 - a plan is never a reason for a run to stop
            say(f"plan: none ({_why(error)})")
        give_back()  # what was timed leaves some 70 MiB of small pieces behind, which the run would hold to its end
    yield
    try:
        if predicted and _steps(path) > steps:  # else nothing was left to do, and what it took before still holds
            made = plan or _plan(config, lm, task, timed=False)
            _tell_measured(made, predicted, config, path, say, 0.0 if made.devices.card or asked == "timed" else least)
    except Exception as error:  # noqa: BLE001 - as above
        say(f"plan: not compared with what was measured ({_why(error)})")


def _kept(path: Path, config: TrainConfig, lm: LanguageModel) -> dict[str, Any] | None:
    """What was predicted as a run began that goes on now as it was; None where it does not, or nothing was."""
    try:
        predicted: dict[str, Any] = json.loads((path / FILE).read_text(encoding="utf-8"))["predicted"]
        now = asked_of(config, _devices(config, lm))
        return predicted if {name: predicted.get(name) for name in now} == now else None
    except (OSError, ValueError, KeyError, UserError):
        return None


def _shares_first_ones_processor(device: torch.device) -> bool:
    launch = launched()
    return device.type == CPU and launch is not None and launch.rank < launch.beside


def _silent(_: str) -> None:
    pass


def _rehearsing(timed: bool) -> str:
    return "rehearsing a step" + (", and timing some layers of this model" if timed else "")


def _why(error: Exception) -> str:
    return one_line(error) if isinstance(error, UserError) else f"{type(error).__name__}: {one_line(error)}"


def told(plan: Plan) -> str:
    """In a line: the peak and its largest parts, the seconds of a step."""
    parts = sorted(plan.memory.parts().items(), key=lambda part: -part[1])[:3]
    largest = ", ".join(f"{name} {size / _GIB:.1f}" for name, size in parts)
    card = plan.devices.card
    unrated = f"; no seconds, as {card.name} is not in the table of cards" if card and not card.rated else ""
    seconds = f", {plan.pace.total:.3g} s a step" if plan.pace else unrated
    return f"up to {plan.memory.peak / _GIB:.2f} GiB ({largest}){seconds}"


def _plan(config: TrainConfig, lm: LanguageModel, task: Any, *, timed: bool = True) -> Plan:
    """With the prompts as they are, and attempts as long as is assumed."""
    drawn = task.draw(1, config.rollouts.problems_per_step, config.seed)
    prompts = [lm.chat.first_prompt(problem.prompt) for problem in drawn]
    longest = lm.chat.first_prompt(task.longest().prompt)
    turn = lm.chat.next_prompt(longest, (), task.correction_prompt(task.longest()))
    lengths = replace(
        assumed_lengths(config), prompt=sum(map(len, prompts)) / len(prompts), longest=len(longest),
        turn=len(turn) - len(longest),
    )  # fmt: skip
    return make_plan(config, _devices(config, lm), lengths, _spec(config, lm), timed=timed)


def _spec(config: TrainConfig, lm: LanguageModel) -> Spec:
    return Spec(config.model.path, lm.model.config.get_text_config())


def _devices(config: TrainConfig, lm: LanguageModel) -> Devices:
    """What the launcher started, and what the run does with it; of a server as few cards as hold the model."""
    launch = launched()
    many = launch.size if launch else 1
    here = min(many, launch.beside or many) if launch else 1
    kind = kind_of(config.parallel) if launch else "ddp"
    found = Devices(_card(lm.device), here, -(-many // here), kind)
    return as_used(config, found, _spec(config, lm) if found.card else None)


def _card(device: torch.device) -> Card | None:
    """The device as a card, with the memory that it has; of one that is not in the table nothing else is known."""
    if device.type == CPU:
        return None
    from selfcorrect.planning.hardware import card_named

    if device.type != "cuda":
        raise ModelError(f"a {device.type} device is neither a card of CUDA nor a processor")
    about = torch.cuda.get_device_properties(device)
    return card_named(about.name, about.total_memory / _GIB)


def _tell_measured(
    plan: Plan, predicted: dict[str, Any], config: TrainConfig, path: Path, say: Callable[[str], None], least: float
) -> None:  # fmt: skip
    """The same plan for the lengths that came, beside what was measured. predicted: as the run began; least: seconds
    that a run takes whose steps are worth timing layers for again.
    """
    steps = sampled_steps(path)
    if len(steps) < 2:
        return  # the first step alone is no measure: memory is taken for the first time in it
    with timing_together() as others:  # each process has its own clock
        timed = others.agreed(sum(step["seconds"] for step in steps) >= least)
    say(f"plan: {_rehearsing(timed and not plan.devices.card)} for the lengths that came ...")
    peak = measured_peak(plan.devices.card)  # before anything is timed again
    seconds = _median(step["seconds"] for step in steps[1:])
    again = at_lengths_that_came(plan, config, steps, timed=timed)
    lengths = again.step.lengths
    found = {
        "predicted": predicted, "predicted_at_lengths": row(again),
        "measured": {
            "peak_bytes": peak, "step_seconds": seconds, "steps": len(steps), "attempt": lengths.attempt,
            "longest_row": max(step["longest"] for step in steps),
            "seconds": {phase: _median(step["seconds_by_part"][phase] for step in steps[1:]) for phase in PHASES},
        },
    }  # fmt: skip
    _write(path, found)
    took = f"; {again.pace.total:.3g} s a step predicted, {seconds:.3g} measured" if again.pace else ""
    took = took or f"; {seconds:.3g} s a step measured"
    say(
        f"plan: {again.memory.peak / _GIB:.2f} GiB predicted for the lengths that came, {peak / _GIB:.2f} measured "
        f"({again.memory.peak / peak - 1:+.0%}){took}"
    )


def sampled_steps(path: Path) -> list[dict[str, Any]]:
    """Rows of metrics.jsonl, the last ones of a run that sampled; a supervised step does not."""
    rows = map(json.loads, (path / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    return [step for step in rows if step.get("sampled_tokens") and step.get("longest")][-200:]


def at_lengths_that_came(plan: Plan, config: TrainConfig, steps: Sequence[dict[str, Any]], *, timed: bool) -> Plan:
    """The same plan for the lengths of these steps' rollouts."""
    came = plan.step.lengths
    attempt = sum(step["sampled_tokens"] for step in steps) / max(1, sum(step["completions"] for step in steps))
    fullest = max(step["sampled_tokens"] / max(1, step["completions"]) for step in steps)
    longest = max(step["longest"] for step in steps)
    limit = (longest - came.longest - (plan.step.attempts - 1) * came.turn) / plan.step.attempts
    limit = max(1, min(config.rollouts.max_new_tokens, round(limit)))
    lengths = replace(came, attempt=attempt, limit=limit, fullest=fullest)
    return make_plan(config, plan.devices, lengths, plan.model.spec, timed=timed)


def _steps(path: Path) -> int:
    file = path / "metrics.jsonl"
    return len(file.read_text(encoding="utf-8").splitlines()) if file.is_file() else 0


def _median(seconds: Iterable[float]) -> float:
    return statistics.median_high(list(seconds))


def measured_peak(card: Card | None) -> float:
    """Bytes: of this process on a CPU, since it began; of torch's allocator on a GPU, with the context added."""
    if card is not None:
        return float(torch.cuda.max_memory_reserved() + CONTEXT_BYTES)
    with contextlib.suppress(OSError):
        # Not ru_maxrss, where there is this: a process begins with what its parent held as it was forked.
        held = re.search(r"^VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="utf-8"), re.MULTILINE)
        if held:
            return 1024.0 * int(held[1])
    import resource

    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024))


def _write(path: Path, found: dict[str, Any]) -> None:
    if is_first():
        write_durably(path / FILE, json.dumps(found, indent=1) + "\n")
