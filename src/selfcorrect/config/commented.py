"""A recipe as YAML with the meaning of each setting above it."""

import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

from selfcorrect.config.settings import Setting, as_yaml, settings

_TAGS = {"task": "name", "stages": "objective", "of": "name"}


def commented(recipe: Mapping[str, Any], notes: Mapping[str, str] | None = None) -> str:
    """The recipe's settings in their order. notes: further words on a setting, by dotted key (stages go by number)."""
    return "\n".join(_lines(recipe, "", "", str(recipe.get("kind", "train")), notes or {})) + "\n"


def _lines(part: Mapping[str, Any], path: str, general: str, kind: str, notes: Mapping[str, str]) -> Iterator[str]:
    """path: as written, with numbers; general: as the reference has it, with NAME."""
    depth = len([step for step in path.split(".") if step])
    indent = "  " * depth
    for name, value in part.items():
        own, known = f"{path}.{name}".lstrip("."), f"{general}.{name}".lstrip(".")
        setting = _found(known, kind)
        told = " ".join(filter(None, (setting.meaning if setting else "", notes.get(own))))
        yield from (f"{indent}# {line}" for line in textwrap.wrap(told, 116 - len(indent)))
        if isinstance(value, Mapping) and value and setting and setting.inside:
            yield f"{indent}{name}:"
            yield from _lines(value, own, "task" if known == "task.of" else known, _kind(name, value, kind), notes)
        elif isinstance(value, list | tuple) and value and all(isinstance(item, Mapping) for item in value):
            yield f"{indent}{name}:"
            for number, item in enumerate(value):
                yield f"{indent}  -"
                yield from _lines(item, f"{own}.{number}", f"{known}.NAME", _kind(name, item, kind), notes)
        else:
            yield f"{indent}{name}: {as_yaml(list(value) if isinstance(value, tuple) else value)}"


def _kind(name: str, value: Mapping[str, Any], kind: str) -> str:
    """The task or objective that a section is of; else what it stands in."""
    tag = _TAGS.get(name)
    return str(value.get(tag, "countdown" if name == "task" else "code")) if tag else kind


def _found(key: str, kind: str) -> Setting | None:
    """The setting of this key that is of this kind, or of all."""
    of_key = [setting for setting in settings() if setting.key == key]
    own = [setting for setting in of_key if kind in setting.kinds]
    return next(iter([*own, *(setting for setting in of_key if not setting.kinds)]), None)
