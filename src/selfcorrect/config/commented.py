"""A recipe as YAML with the meaning of each setting above it."""

import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

from selfcorrect.config.settings import as_yaml, settings

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
        yield from _comment(_meaning(known, kind), notes.get(own, ""), indent)
        if isinstance(value, Mapping) and value and _opens(known):
            yield f"{indent}{name}:"
            yield from _lines(value, own, "task" if known == "task.of" else known, _kind(name, value, kind), notes)
        elif isinstance(value, list | tuple) and value and all(isinstance(item, Mapping) for item in value):
            yield f"{indent}{name}:"
            for number, item in enumerate(value):
                lines = _lines(item, f"{own}.{number}", f"{known}.NAME", _kind(name, item, kind), notes)
                yield f"{indent}  -"
                yield from lines
        else:
            yield f"{indent}{name}: {as_yaml(list(value) if isinstance(value, tuple) else value)}"


def _comment(meaning: str, note: str, indent: str) -> Iterator[str]:
    text = " ".join(filter(None, (meaning, note)))
    yield from (f"{indent}# {line}" for line in textwrap.wrap(text, 116 - len(indent)))


def _kind(name: str, value: Mapping[str, Any], kind: str) -> str:
    """The task or objective that a section is of; else what it stands in."""
    tag = _TAGS.get(name)
    return str(value.get(tag, "countdown" if name == "task" else "code")) if tag else kind


def _found(key: str, kind: str) -> Any:
    of_key = [setting for setting in settings() if setting.key == key]
    wanted = () if kind == "train" else (kind,)
    return next((setting for setting in of_key if set(wanted) & set(setting.kinds)), None) or next(
        (setting for setting in of_key if not setting.kinds), None
    )


def _meaning(key: str, kind: str) -> str:
    setting = _found(key, kind)
    return str(setting.meaning) if setting else ""


def _opens(key: str) -> bool:
    return any(setting.key == key and setting.inside is not None for setting in settings())
