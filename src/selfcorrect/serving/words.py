"""Where a model's correction prompt comes from, and how it is filled in for a conversation (no torch)."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from string import Formatter
from typing import Any

import yaml

from selfcorrect.config import TrainConfig
from selfcorrect.config.recipe import validate
from selfcorrect.config.tasks import CustomConfig, RepairConfig, TaskConfig
from selfcorrect.config.yaml12 import load
from selfcorrect.errors import ConfigError, DataError
from selfcorrect.serving.protocol import invalid
from selfcorrect.tasks import Task
from selfcorrect.types import Problem

GENERAL = (
    "Your answer may be wrong or incomplete. Check it step by step, and put right what you find. Then give the whole "
    "answer once more."
)
# What a card may say of how its model is asked: words and numbers, nothing that names a file or lets code run.
_OF_MODEL = ("system_prompt", "system_as", "template_options")
_OF_TASK = ("name", "dataset", "split", "prompt", "correction_prompt", "max_number", "limit", "shots")
_OF_ROLLOUTS = ("attempts", "max_new_tokens")
_CARD_BYTES = 1 << 20
_READ_BACK = {"numbers": r"[0-9][0-9 ]{0,200}", "target": r"[0-9]{1,20}"}
_LONGEST = 20_000  # characters of a message that a task's prompt is looked for in


def recipe_of_card(folder: Path) -> TrainConfig | None:
    """The recipe in the card of an exported model, without anything but words and numbers; None where there is none."""
    try:
        with (folder / "README.md").open(encoding="utf-8", errors="replace") as file:
            card = file.read(_CARD_BYTES)
    except OSError:
        return None
    found = re.search(r"^The recipe:\n\n(`{3,})yaml\n(.*?)\n\1$", card, re.DOTALL | re.MULTILINE)
    try:
        told = load(found[2]) if found else None
    except (yaml.YAMLError, ValueError, RecursionError):
        return None
    if not isinstance(told, dict):
        return None
    parts = {"model": _OF_MODEL, "task": _OF_TASK, "rollouts": _OF_ROLLOUTS}
    data: dict[str, Any] = {"stages": []}
    for part, names in parts.items():
        given = told.get(part)
        data[part] = {name: given[name] for name in names if name in given} if isinstance(given, dict) else {}
    if data["task"].get("name") not in ("countdown", "math", "code"):
        return None
    try:
        config = validate(data, str(folder / "README.md"))
    except ConfigError:
        return None
    return config if isinstance(config, TrainConfig) else None


@dataclass(frozen=True, slots=True)
class Words:
    """The correction prompt. shown: as it is told of, and `source`: where it comes from.

    fill: the last user's message -> the prompt. Raises ApiError where that lacks what the prompt fills in.
    """

    shown: str
    source: str
    fill: Callable[[str], str]


def literal(text: str, source: str) -> Words:
    return Words(text, source, lambda last: text)


def words_of_task(task: Task, config: TaskConfig, source: str) -> Words:
    """The task's own correction prompt."""
    if isinstance(config, RepairConfig):
        config = config.of
    if isinstance(config, CustomConfig):
        return Words(f"as {config.file} says", source, lambda last: _custom(task, last))
    template, prompt = config.correction_prompt, config.prompt
    if not fields_of(template):
        return literal(template.format(), source)
    from selfcorrect.grading.math import FINAL_FORM

    return Words(template.replace("{final_form}", FINAL_FORM), source, lambda last: _filled(template, prompt, last))


def fields_of(template: str) -> set[str]:
    return {name for _, name, _, _ in Formatter().parse(template) if name}


def _custom(task: Task, last: str) -> str:
    try:
        return task.correction_prompt(Problem("asked", "custom", last, {}))
    except DataError as error:
        raise invalid(
            f"the task's own correction_prompt cannot serve this conversation ({error}); send a correction_prompt",
            "correction_prompt",
        ) from None


def _filled(template: str, prompt: str, last: str) -> str:
    """The template, filled in from the user's message: the task's prompt, or the user's own words."""
    from selfcorrect.grading.math import FINAL_FORM

    known = {"problem": last, "final_form": FINAL_FORM, **_read_back(prompt, last, FINAL_FORM)}
    lacking = sorted(fields_of(template) - set(known))
    if lacking:
        raise invalid(
            f"the correction prompt fills in {{{lacking[0]}}}, which the last message does not tell: write it as "
            f"{prompt[:120]!r}, or send a correction_prompt", "correction_prompt",
        )  # fmt: skip
    return template.format(**known)


def _read_back(prompt: str, last: str, final_form: str) -> Mapping[str, str]:
    if len(last) > _LONGEST:
        return {}
    pattern, seen = "", set[str]()
    for text, name, _, _ in Formatter().parse(prompt):
        pattern += re.escape(text)
        if name in seen:
            pattern += f"(?P={name})"
        elif name == "final_form":
            pattern += re.escape(final_form)
        elif name:
            pattern += f"(?P<{name}>{_READ_BACK.get(name, '.*')})"
            seen.add(name)
    found = re.fullmatch(pattern, last.strip(), re.DOTALL)
    return found.groupdict() if found else {}
