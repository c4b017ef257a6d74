"""`key=value` from the command line or a call, laid over a recipe's plain mapping."""

import types
from collections.abc import Sequence
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import BaseModel

from selfcorrect.config import CompareConfig, LabBaseConfig, RepairConfig, TrainConfig
from selfcorrect.config.yaml12 import load
from selfcorrect.errors import ConfigError

_TOPS: tuple[type[BaseModel], ...] = (TrainConfig, LabBaseConfig, CompareConfig)
# A comparison's settings that are plain mappings until they are laid together: what they will be read as.
_PLAIN: dict[str, type[BaseModel]] = {"common": TrainConfig, "repair": RepairConfig, "settings": TrainConfig}


def apply_override(data: dict[str, Any], override: str) -> str:
    """Set the value in `data`; returns the dotted path it went to.

    A setting that is text takes the value as it was typed, `#`, quotes and all; a setting that may be text or more
    (an option of a custom task) reads numbers, true, false, null, lists and mappings, and takes all else as typed.
    Raises ConfigError.
    """
    key, equals, value = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"override {override!r} must have the form key=value, for example seed=1")
    target: Any = data
    *parents, last = key.split(".")
    path: list[str] = []
    for part in parents:
        step: Any = _index(target, part, override) if isinstance(target, list) else part
        path.append(str(step))
        if isinstance(target, dict) and target.get(step) is None:  # a section that is named and left empty
            target[step] = {}
        target = target[step]
        if not isinstance(target, dict | list):
            raise ConfigError(f"override {override!r}: {part} is a single value and has no settings inside")
    step = _index(target, last, override) if isinstance(target, list) else last
    path.append(str(step))
    target[step] = _value(value, _kinds(path), override)
    return ".".join(path)


def is_text(name: str) -> bool:
    """Whether the setting of this dotted name is text, or nothing."""
    return _only_text(_kinds(name.split(".")))


def _only_text(kinds: Sequence[Any]) -> bool:
    return str in kinds and all(kind in (str, type(None)) for kind in kinds)


def _index(items: list[Any], part: str, override: str) -> int:
    """Stages are addressed by name or by position: stages.stage1.steps=10, stages.0.steps=10."""
    names = [item.get("name") if isinstance(item, dict) else None for item in items]
    if part in names:
        return names.index(part)
    if part.isascii() and part.isdigit() and int(part) < len(items):
        return int(part)
    raise ConfigError(f"override {override!r}: no entry {part!r}; there are {', '.join(map(str, names))}")


def _value(text: str, kinds: Sequence[Any], override: str) -> Any:
    """What was typed, as one of `kinds`: those that the setting may hold."""
    takes_text = any(kind is str for kind in kinds)
    if _only_text(kinds):
        none = type(None) in kinds and text.strip() in ("", "~", "null")
        return None if none else text
    try:
        read = load(text)
    except (yaml.YAMLError, ValueError, RecursionError):
        if takes_text or not kinds or Any in kinds:
            return text
        raise ConfigError(f"override {override!r}: the value is not valid YAML") from None
    if not (takes_text or Any in kinds):
        return read
    match read:
        case dict() | list():
            return read if text.lstrip()[:1] in ("[", "{") else text
        case str():
            return read if text.lstrip()[:1] in ("'", '"') else text
        case _:
            return text if "#" in text else read


def _kinds(path: Sequence[str]) -> list[Any]:
    """The types that the setting at a path may have, in whatever kind of recipe, stage or task; texts as str."""
    kinds: list[Any] = list(_TOPS)
    for part in path:
        kinds = [leaf for kind in kinds for leaf in _leaves(_inside(kind, part))]
    return kinds


def _inside(kind: Any, part: str) -> Any:
    """The type of the setting `part` in a value of this type; an empty choice where it has none."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        if part not in kind.model_fields:
            return Literal[()]
        return _PLAIN.get(part, kind.model_fields[part].annotation)
    if get_origin(kind) is tuple:
        return get_args(kind)[0]
    if get_origin(kind) is dict:
        return get_args(kind)[1]
    return Any if kind is Any else Literal[()]


def _leaves(kind: Any) -> list[Any]:
    """The members of a union; str for a closed choice of texts."""
    if get_origin(kind) is Annotated:
        return _leaves(get_args(kind)[0])
    if get_origin(kind) in (Union, types.UnionType):
        return [leaf for member in get_args(kind) for leaf in _leaves(member)]
    if get_origin(kind) is Literal:
        return [str] if get_args(kind) else []
    return [kind]
