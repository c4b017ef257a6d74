"""What may change when a run goes on: settings that change no result, and those of what has not begun.

The rule: with the new settings the run ends as if it had been begun with them, up to rounding. So steps may be added to
(or taken from) the stage under way where those that are done would have been the same, later stages are free, new ones
may come at the end; all else is refused.
"""

import json
import os
import shlex
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from selfcorrect.config import OwnObjective, Stage, TrainConfig
from selfcorrect.errors import ConfigError
from selfcorrect.evaluation.kept import flat
from selfcorrect.learning.record import Progress

_ROUNDING = "the same results up to rounding"
_SAME = "it must hold what the run has gone by"
_FREE = {  # setting, or section -> what a change of it means
    "threads": _ROUNDING, "parallel": _ROUNDING, "optimizer.micro_batch": _ROUNDING,
    "optimizer.gradient_checkpointing": _ROUNDING, "optimizer.padding_free": _ROUNDING, "optimizer.compile": _ROUNDING,
    "model.device": _ROUNDING, "model.attention": _ROUNDING,
    "model.reference": "where it lies changes no result",
    "rollouts.rows_at_once": f"{_ROUNDING}; other draws where an evaluation samples or a stage collects traces",
    "task.workers": "", "task.of.workers": "",
    "task.seconds": "verdicts so far stay", "task.file": _SAME,
    "checkpoint.keep": "", "checkpoint.minutes": "", "log": "", "evaluation.controls": "",
    "checkpoint.every": "`best` is chosen among the checkpoints there are",
    "vllm": _ROUNDING,
    "model.path": "its weights must be those the run began with",
}  # fmt: skip
_FIXED = {  # why the rest may not
    "name": "the folder has its name; move it by hand", "output": "the folder is where it is; move it by hand",
    "seed": "every draw so far came from it", "task": "problems, prompts and grades so far were made with it",
    "rollouts": "what was sampled so far was sampled with it", "model": "the weights so far came from it",
    "optimizer": "the steps so far were made with it", "algorithm": "the steps so far were made with it",
    "sampler": "what was sampled so far was sampled with it",
    "evaluation": "the run's evaluations must be comparable", "checkpoint": "the best weights so far were chosen by it",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Change:
    """One setting, by its dotted path, before and after; None where there was or is none. note: what it means."""

    field: str
    old: Any
    new: Any
    note: str = ""

    def __str__(self) -> str:
        return f"{self.field}: {shown(self.old)} -> {shown(self.new)}" + (f" ({self.note})" if self.note else "")


def judge(old: TrainConfig, new: TrainConfig, done: Progress | None, path: Path) -> list[Change]:
    """What changes, where all of it may. done: where the run stands; None before its first checkpoint.

    Raises ConfigError with a line for each setting that may not: old value, new one, why, and what to do.
    """
    allowed: list[Change] = []
    refused: list[tuple[Change, str]] = []
    for change in _outside_stages(old, new):
        note = next((_FREE[name] for name in _prefixes(change.field) if name in _FREE), None)
        if note is not None:
            allowed.append(replace(change, note=note))
        else:
            refused.append((change, _FIXED.get(change.field.split(".")[0], "what is done so far was done with it")))
    begun = 0 if done is None else done.stage + 1
    for index, stage in enumerate(old.stages[:begun]):
        assert done is not None
        for change, why in _begun(old, new, index, done):
            refused += [(change, why)] if why else []
            allowed += [] if why else [change]
        steps = new.stages[index].steps if index < len(new.stages) else stage.steps
        if not refused and steps != stage.steps:
            allowed.append(Change(f"stages.{stage.name}.steps", stage.steps, steps, _note(stage, steps, done)))
    if refused:
        raise ConfigError("\n".join(_refusal(change, why, path) for change, why in refused))
    return allowed + _to_come(old.stages[begun:], new.stages[begun:])


def settings_changed(old: TrainConfig, new: TrainConfig) -> list[Change]:
    """Every setting that differs, by its dotted path; of another task the name alone."""
    return [*_outside_stages(old, new), *_to_come(old.stages, new.stages)]


def _outside_stages(old: TrainConfig, new: TrainConfig) -> list[Change]:
    found = _differences(old, new)
    other_task = any(change.field == "task.name" for change in found)
    return [each for each in found if not other_task or each.field == "task.name" or not each.field.startswith("task.")]


def _begun(old: TrainConfig, new: TrainConfig, index: int, done: Progress) -> Iterator[tuple[Change, str]]:
    """What changes of a stage that is under way or done, and why it may not; empty where it may."""
    stage = old.stages[index]
    if index >= len(new.stages) or new.stages[index].name != stage.name:
        there = new.stages[index].name if index < len(new.stages) else None
        yield Change(f"stages.{index}.name", stage.name, there), "the stage is begun; it keeps its name and its place"
        return
    for change in _differences(stage, new.stages[index], f"stages.{stage.name}."):
        if isinstance(stage, OwnObjective) and change.field == f"stages.{stage.name}.file":
            yield replace(change, note=_SAME), ""
        elif index < done.stage:
            yield change, f"the stage is finished, and {old.stages[index + 1].name} goes on from its end"
        elif change.field != f"stages.{stage.name}.steps":
            yield change, f"{done.stage_step} of the stage's steps are done with the old value"
        elif why := _why_not(stage, change.new, done, new.optimizer.schedule):
            yield change, why


def _why_not(stage: Stage, steps: int, done: Progress, schedule: str) -> str:
    """Why the stage under way may not have so many steps; empty where it may."""
    later = "; add another stage at the end of config.yaml instead"
    if steps < done.stage_step:
        return f"{done.stage_step} steps are done already; that many is the least"
    if stage.steps_are_one:
        return stage.steps_are_one + later
    if schedule != "constant":
        return f"optimizer.schedule {schedule} lowers the rate over all of its steps, so those done had another{later}"
    return ""


def _note(stage: Stage, steps: int, done: Progress) -> str:
    if done.stage_step == stage.steps:
        return f"training goes on from step {stage.steps}; what it ended with then stays a candidate for `best`"
    return f"{steps - done.stage_step} to go"


def _to_come(old: Sequence[Stage], new: Sequence[Stage]) -> list[Change]:
    """Stages that have not begun may be anything."""
    before = {stage.name: stage for stage in old}
    after = {stage.name: stage for stage in new}
    found = []
    for name in dict.fromkeys([*before, *after]):
        if name in before and name in after:
            found += _differences(before[name], after[name], f"stages.{name}.")
        else:
            was, now = (_about(stages.get(name)) for stages in (before, after))
            found.append(Change(f"stages.{name}", was, now, "not begun" if was else ""))
    kept = [name for name in before if name in after]
    if kept != [name for name in after if name in before]:
        found.append(Change("stages", list(before), list(after), "none of them is begun"))
    return found


def _differences(old: TrainConfig | Stage, new: TrainConfig | Stage, within: str = "") -> list[Change]:
    """Of recipes but for their stages, or of one stage. within: what its settings' paths begin with."""
    was, now = (dict(flat(each.model_dump(mode="json", exclude={"stages"}))) for each in (old, new))
    fields = [field for field in dict.fromkeys([*was, *now]) if was.get(field) != now.get(field)]
    return [Change(f"{within}{field}", was.get(field), now.get(field)) for field in fields]


def set_aside(path: Path, old: TrainConfig, new: TrainConfig, step: int, say: Callable[[str], None]) -> None:
    """Before a run is extended: what it had ended with goes to earlier/step-NNNNNN, as it will be made anew.

    A kill in between leaves a run that makes the same things again, by whichever settings it then goes on.
    """
    before, after = ([(stage.name, stage.steps) for stage in config.stages] for config in (old, new))
    if before == after:
        return
    stages = [name for name, steps in before if (name, steps) not in after]
    moved = [path / "final", *(path / "models" / name for name in stages)]
    moved += [file for name in stages for file in sorted((path / "evaluations").glob(f"{name}[.@]*"))]
    moved = [source for source in moved if source.exists()]
    target = path / "earlier" / f"step-{step:06d}"
    for source in moved:
        place = target / source.relative_to(path)
        place.parent.mkdir(parents=True, exist_ok=True)
        if place.is_dir():
            shutil.rmtree(place)
        os.replace(source, place)
    if moved:
        say(f"kept: {', '.join(str(source.relative_to(path)) for source in moved)} as of step {step} in {target}")


def _prefixes(field: str) -> list[str]:
    parts = field.split(".")
    return [".".join(parts[:end]) for end in range(len(parts), 0, -1)]


def _about(stage: Stage | None) -> str | None:
    return f"{stage.objective}, {stage.steps} steps" if stage else None


def shown(value: Any) -> str:
    """A setting's value in a message, cut where it is long."""
    text = "none" if value is None else str(value) if isinstance(value, int | float | str) else repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _refusal(change: Change, why: str, path: Path) -> str:
    value = change.new if isinstance(change.new, str) else json.dumps(change.new)
    setting = f" {shlex.quote(f'{change.field}={value}')}"
    again = f"selfcorrect train {shlex.quote(str(path / 'config.yaml'))} name=NEW"
    other = "" if change.field in ("name", "output") else f", or begin another run with it: `{again}{setting}`"
    return f"{change} cannot change when {path} goes on: {why}; leave it as it was{other}"
