"""`selfcorrect explain`: what a setting is, in the terminal.

A key may be whole (stages.stage2.alpha), its end (lora.alpha, alpha), a section (rollouts, task.math), or what another
trainer calls it (num_generations).
"""

import difflib
import re
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

from selfcorrect.config import STAGE_KINDS, TASK_KINDS
from selfcorrect.config.familiar import FAMILIAR
from selfcorrect.config.settings import Section, Setting, as_yaml, sections, settings
from selfcorrect.config.shipped import shipped_recipe, shipped_recipes
from selfcorrect.config.yaml12 import load
from selfcorrect.errors import ConfigError

_INDENT = "  "
_GREEK = {0x3B1: "alpha", 0x3B2: "beta", 0x3B3: "gamma"}  # as the paper writes them


def overview() -> list[str]:
    """One line a section: its name, and what it is."""
    meanings = {_address(section): section.meaning for section in sections()}
    width = max(map(len, meanings))
    return [f"{address:<{width}}  {meaning}" for address, meaning in meanings.items()]


def explain(key: str) -> list[str]:
    """The lines that tell of one setting, of a section, or of all settings of a name. Raises ConfigError."""
    asked = re.sub(r"[][./\s]+", ".", key.partition("=")[0].lower().replace("-", "_").translate(_GREEK)).strip("._")
    if found := _section(asked):
        return [line for section in found for line in (*_of_section(section), "")][:-1]
    if named := found_settings(asked):
        return [line for setting in named for line in (*_of_setting(setting), "")][:-1]
    if (last := asked.rpartition(".")[2]) in FAMILIAR:
        return _of_another_name(last)
    shown = key if len(key) <= 80 else f"{key[:77]}..."
    raise ConfigError(f"{shown!r} is no setting and no section; {_nearest(asked)}")


def _address(section: Section) -> str:
    """The name that a section goes by here."""
    of = {"task": "task.", "stages.NAME": "stages."}.get(section.key)
    return f"{of}{section.kind}" if of else section.key or section.kind


def _section(asked: str) -> list[Section]:
    names = {asked, f"stages.{asked}", f"task.{asked}"} if asked in (*STAGE_KINDS, *TASK_KINDS) else {asked}
    if "." in asked:
        names.add(_general(asked))
    exact = [section for section in sections() if _address(section) in names]  # stages.stage2 is an objective, too
    found = exact or [section for section in sections() if section.key in names - {""}]
    if asked in ("stages", "task"):
        found = [section for section in sections() if section.key in ("task", "stages.NAME") and asked in section.key]
    return found


def _general(asked: str) -> str:
    """The key with NAME in place of a stage's or method's name; a task's settings under `of` are that task's."""
    parts = asked.split(".")
    if parts[0] in ("stages", "methods") and len(parts) > 1:
        parts[1] = "NAME"
    if parts[0] == "common" and len(parts) > 1:  # of a comparison: a recipe of kind train
        return _general(".".join(parts[1:]))
    if parts[:2] == ["task", "of"] and len(parts) > 2:
        del parts[1]
    if parts[0] == "task" and len(parts) > 2 and parts[1] in TASK_KINDS:
        del parts[1]
    return ".".join(parts)


def found_settings(asked: str) -> list[Setting]:
    """Those of the whole key; else those whose key ends so."""
    kind = next((part for part in asked.split(".")[1:-1] if part in (*STAGE_KINDS, *TASK_KINDS)), None)
    general = _general(asked)
    exact = [setting for setting in settings() if setting.key == general]
    ends = [setting for setting in settings() if f".{setting.key}".endswith(f".{asked}")]
    if not exact and "." in asked:  # what stands inside of a mapping is the user's own
        exact = [s for s in settings() if s.key == general.rpartition(".")[0] and s.takes.startswith("mapping")]
    of_kind = [setting for setting in exact if kind in setting.kinds]
    return of_kind or (exact if "." in asked else ends) or ends


def _nearest(asked: str) -> str:
    last = asked.rpartition(".")[2]
    keys = [*(setting.key for setting in settings()), *(_address(section) for section in sections())]
    by_key = difflib.get_close_matches(_general(asked), keys, n=3)
    by_name = difflib.get_close_matches(last, {setting.name: None for setting in settings()}, n=3)
    same = [setting.key for name in by_name for setting in settings() if setting.name == name]
    begun = [setting.key for setting in settings() if len(last) > 2 and setting.name.startswith(last)]
    near = list(dict.fromkeys([*(begun if len(begun) < 4 else ()), *by_key, *same]))
    if near:
        return f"did you mean {' or '.join(near[:3])}?"
    return "`selfcorrect explain` lists the sections"


def _of_another_name(name: str) -> list[str]:
    """What other trainers call `name`, and the settings that it is here."""
    words = re.findall(r"[A-Za-z_0-9]+(?:\.[A-Za-z_0-9]+)+|`?\w+`?", FAMILIAR[name])
    whole = {s.key: s for s in settings() if s.kinds not in (("lab_base",), ("compare",))}
    keys = dict.fromkeys(
        key for word in words for key in (word, f"stages.NAME.{word}") if word not in ("name", "output")
    )
    named = [whole[key] for key in keys if key in whole and ("." in key or whole[key].takes != "section")]
    lines = [line for setting in named for line in ("", *_of_setting(setting))]
    return [f"what others call {name} is here: {FAMILIAR[name]}", *lines]


def _of_section(section: Section) -> Iterator[str]:
    yield section.title
    yield f"{_INDENT}{section.meaning}"
    width = max(len(setting.name) for setting in section.settings)
    for setting in section.settings:
        told = "must be given" if setting.default is None else _short(setting.default)
        yield f"{_INDENT}{setting.name:<{width}}  {setting.meaning} [{told}]"


def _short(text: str) -> str:
    one = " ".join(text.split())
    return one if len(one) <= 40 else f"{one[:37]}..."


def _of_setting(setting: Setting) -> Iterator[str]:
    yield setting.key + (f"  ({kinds_told(setting)})" if setting.kinds else "")
    yield f"{_INDENT}{setting.meaning}"
    yield f"{_INDENT}takes    {setting.takes}"
    yield f"{_INDENT}default  {'none: it must be given' if setting.default is None else setting.default}"
    if setting.paper:
        yield f"{_INDENT}paper    {setting.paper}"
    recipes = used_by(setting)
    for number, (value, names) in enumerate(recipes.items()):
        yield f"{_INDENT}{'' if number else 'recipes':<9}{_short(value)}: {', '.join(names)}"


def kinds_told(setting: Setting) -> str:
    """Which tasks, objectives or kinds of recipe a setting is of."""
    word = {"task": "task", "stages": "objective"}.get(setting.key.partition(".")[0], "kind")
    every = {"task": tuple(TASK_KINDS), "objective": tuple(STAGE_KINDS)}.get(word)
    return f"every {word}" if every and set(every) == set(setting.kinds) else f"{word} {', '.join(setting.kinds)}"


def used_by(setting: Setting) -> dict[str, list[str]]:
    """What the shipped recipes set a setting to: value -> names of recipes, and of a comparison's methods."""
    found: dict[str, list[str]] = {}
    for whose, part in _recipes():
        for value in dict.fromkeys(map(as_yaml, _values(part, setting))):
            found.setdefault(value, []).append(whose)
    return found


@cache
def _recipes() -> tuple[tuple[str, Mapping[str, Any]], ...]:
    """The shipped recipes as they are written, by name; after a comparison's, its common part and its methods."""
    files = {name: shipped_recipe(name).read_text(encoding="utf-8") for name in shipped_recipes()}
    return tuple(part for name, text in files.items() for part in _parts(name, load(text)))


def _parts(name: str, data: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    yield name, data
    if data.get("kind") == "compare":
        yield name, {"kind": "train", **data["common"]}
        yield from ((f"{name}/{method['name']}", {"kind": "train", **method["settings"]}) for method in data["methods"])


def _values(data: Mapping[str, Any], setting: Setting) -> Iterator[Any]:
    """Where a recipe sets it, at the top level, in a task of its kind or in stages of its objectives."""
    first, *rest = setting.key.split(".")
    whole = data.get("kind", "train")
    if first not in data or (first not in ("task", "stages") and setting.kinds not in ((), (whole,))):
        return
    if not setting.kinds and whole != "train":
        return
    parts = data[first] if isinstance(data[first], list) and rest[:1] == ["NAME"] else [data[first]]
    for part in parts:
        tag = {"task": "name", "stages": "objective"}.get(first)
        if tag and rest and isinstance(part, Mapping) and part.get(tag, "countdown") not in setting.kinds:
            continue
        value: Any = part
        for step in rest[1:] if rest[:1] == ["NAME"] else rest:
            value = value.get(step, _NOTHING) if isinstance(value, Mapping) else _NOTHING
        if value is not _NOTHING and not (setting.inside and isinstance(value, dict | list)):
            yield value


_NOTHING = object()
