"""Every setting as plain facts, read off the models: key, type, range, default, meaning, the paper's symbol.

`selfcorrect explain`, docs/settings.md, `selfcorrect init` and error messages all take them from here.
"""

import types
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from selfcorrect.config import STAGE_KINDS, TASK_KINDS, CompareConfig, LabBaseConfig, TrainConfig
from selfcorrect.config.base import Paper
from selfcorrect.config.yaml12 import Dumper

_COUNTED_IN = 2**31 - 1  # the bound of every whole number, which no one need be told


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting. key: dotted, NAME standing for an entry of a list. kinds: of which tasks or objectives it is one;
    none where it is of all. inside: the section it opens, if it is one. default: None where it must be given.
    """

    key: str
    kinds: tuple[str, ...]
    takes: str
    default: str | None
    meaning: str
    paper: str
    inside: type[BaseModel] | None = None

    @property
    def name(self) -> str:
        return self.key.rpartition(".")[2]


@dataclass(frozen=True, slots=True)
class Section:
    """Settings that stand together. key: dotted, empty for the top level. kind: the task or objective it is of, or the
    kind of recipe.
    """

    key: str
    kind: str
    meaning: str
    settings: tuple[Setting, ...]

    @property
    def title(self) -> str:
        if self.key in _KINDS_OF:
            return f"{self.key}, {_KINDS_OF[self.key]}: {self.kind}"
        return self.key or f"kind: {self.kind}"


_KINDS_OF = {"task": "name", "stages.NAME": "objective"}


@cache
def sections() -> tuple[Section, ...]:
    """Every section there is, in the order of a recipe: those of kind train, then of compare and lab_base."""
    found = list(_of_model(TrainConfig, "", "train"))
    for kind, top in (("compare", CompareConfig), ("lab_base", LabBaseConfig)):
        found += [section for section in _of_model(top, "", kind) if section.key.partition(".")[0] != "task"]
    return tuple(found)


@cache
def settings() -> tuple[Setting, ...]:
    """Every setting there is; one that several kinds share stands once, with all of them."""
    merged: dict[tuple[str, str, str, str | None], Setting] = {}
    for setting in (setting for section in sections() for setting in section.settings):
        facts = (setting.key, setting.meaning, setting.takes, setting.default)
        before = merged.get(facts)
        kinds = (*(before.kinds if before else ()), *setting.kinds)
        merged[facts] = replace(setting, kinds=kinds)
    return tuple(merged.values())


def _of_model(model: type[BaseModel], key: str, kind: str = "") -> Iterator[Section]:
    """The section of a model and those inside it. kind: the recipe's, task's or objective's."""
    own = tuple(_setting(key, kind, name, info) for name, info in model.model_fields.items())
    yield Section(key, kind, _one_line((model.__doc__ or "").partition("\n\n")[0]), own)
    for setting in own:
        if setting.name == "task" and not key:
            for name, task in TASK_KINDS.items():
                yield from _of_model(task, "task", name)
        elif setting.name == "stages" and not key:
            for name, stage in STAGE_KINDS.items():
                yield from _of_model(stage, "stages.NAME", name)
        elif setting.inside is not None and not (key == "task" and setting.name == "of"):
            inner = f"{setting.key}.NAME" if setting.takes.startswith("list") else setting.key
            yield from _of_model(setting.inside, inner, "" if kind == "train" else kind)


def _setting(key: str, kind: str, name: str, info: FieldInfo) -> Setting:
    dotted = f"{key}.{name}" if key else name
    paper = next((item.told for item in info.metadata if isinstance(item, Paper)), "")
    return Setting(
        key=dotted,
        kinds=(kind,) if kind and kind != "train" else (),
        takes=_takes(info.annotation, info.metadata),
        default=None if info.is_required() else _default(info),
        meaning=_one_line(info.description or ""),
        paper=paper,
        inside=next(filter(_is_model, _members(info.annotation)), None),
    )


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _default(info: FieldInfo) -> str:
    value = info.get_default(call_default_factory=True)
    if isinstance(value, BaseModel):
        value = value.model_dump(mode="json", exclude_defaults=True)
    return as_yaml(list(value) if isinstance(value, tuple) else value)


def as_yaml(value: Any) -> str:
    """A value as it stands in a recipe, on one line."""
    text = yaml.dump(value, Dumper=Dumper, default_flow_style=True, sort_keys=False, allow_unicode=True, width=10**9)
    return text.removesuffix("...\n").strip()


def _is_model(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def _members(kind: Any) -> Iterator[Any]:
    """The types that stand anywhere in a type."""
    if get_origin(kind) is Annotated:
        yield from _members(get_args(kind)[0])
    elif get_origin(kind) in (Union, types.UnionType, tuple, dict):
        for member in get_args(kind):
            yield from _members(member)
    else:
        yield kind


def _takes(kind: Any, bounds: Sequence[Any] = ()) -> str:
    """What a setting of this type may hold, in words."""
    bounds = [bound for item in bounds for bound in (item.metadata if isinstance(item, FieldInfo) else [item])]
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return _takes(inner[0], [*bounds, *inner[1:]])
    if origin in (Union, types.UnionType):
        told = dict.fromkeys(_takes(member, bounds) for member in inner if member is not type(None))
        return " | ".join([*told, *(["null"] if type(None) in inner else [])])
    if origin is Literal:
        return " | ".join(map(str, inner))
    if origin is tuple:
        return f"list of {_takes(inner[0])}" if inner[1:] == (...,) else f"{len(inner)} of {_takes(inner[0])}"
    if origin is dict:
        return "mapping" if inner[1] is Any else f"mapping to {_takes(inner[1])}"
    if _is_model(kind):
        return "section"
    patterns = [bound.pattern for bound in bounds if getattr(bound, "pattern", None)]
    if kind is str and patterns:
        return "name of letters, digits, " + ("-, _ and (not first) dots" if "." in patterns[0] else "- and _")
    names = {bool: "true | false", int: "whole number", float: "number", str: "text", Any: "anything"}
    return names[kind] + (_range(kind, bounds) if kind in (int, float) else "")


def _range(kind: type, bounds: Sequence[Any]) -> str:
    low = next((f"from {bound.ge:g}" for bound in bounds if isinstance(bound, Ge)), "")
    above: Any = next((bound.gt for bound in bounds if isinstance(bound, Gt)), None)
    if above is not None:
        low = f"from {above + 1:g}" if kind is int else f"above {above:g}"
    high = next((f"to {bound.le:,}" for bound in bounds if isinstance(bound, Le) and bound.le != _COUNTED_IN), "")
    high = next((f"below {bound.lt:g}" for bound in bounds if isinstance(bound, Lt)), high)
    return f" {low}{', ' if above is not None and kind is float and high else ' ' if high else ''}{high}".rstrip()
