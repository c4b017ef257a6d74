"""Recipes: YAML and `key=value` overrides -> a validated config.

A recipe is refused before any model is loaded: unknown keys with the nearest known name, wrong types and
contradicting values, each with the file and line, or the override, it came from.
"""

import copy
import difflib
import json
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from selfcorrect.config import STAGE_KINDS, TASK_KINDS, Config, TrainConfig
from selfcorrect.config.familiar import FAMILIAR
from selfcorrect.config.overrides import apply_override
from selfcorrect.config.paths import anchored, with_copies
from selfcorrect.config.settings import sections, settings
from selfcorrect.config.shipped import find_recipe, like_recipe
from selfcorrect.config.yaml12 import Dumper, read
from selfcorrect.errors import ConfigError

_ADAPTER: TypeAdapter[Config] = TypeAdapter(Annotated[Config, Field(discriminator="kind")])
_TAGS = {"train", "lab_base", "compare", *STAGE_KINDS}
_MEMBER = re.compile(r"bool|int|float|str|constrained-int|(tuple|literal)\[.*")  # how a plain union's members are named
_DATA = re.compile(r"\.(jsonl|ndjson|parquet|csv|(jsonl?|parquet)\.gz)$", re.IGNORECASE)
_WITH_TASK = ("task", "of")  # settings that hold a task

Places = Mapping[str, str]  # dotted path of a setting -> "file:line", or the override it came from


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a YAML recipe, apply `key=value` overrides (dotted keys; config/overrides.py), validate.

    Relative paths in the file are of the file's folder, those of overrides of the current one. A shipped recipe is
    found by its name. Raises ConfigError, naming file and line (or the override), field, value, why and what to do.
    """
    file = find_recipe(Path(path))
    _refuse_data(file)
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        meant = f"did you mean {near}? " if (near := like_recipe(file)) else ""
        raise ConfigError(f"recipe {file}: no such file; {meant}`selfcorrect recipes` lists the shipped ones") from None
    except IsADirectoryError:
        run = (file / "config.yaml").is_file()
        way = (
            f"go on with the run by `selfcorrect train --resume {shlex.quote(str(file))}` (in Python: resume_run=True)"
            if run
            else "name a YAML file, or a recipe of `selfcorrect recipes`"
        )
        raise ConfigError(f"recipe {file}: is a folder; {way}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"recipe {file}: cannot be read: {error}") from None
    try:
        data, places = read(text, lambda node: dict(_places(node, str(file))))
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"recipe {file} is not valid YAML: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise ConfigError(f"recipe {file}: a value contains itself, or is nested too deeply") from None
    if isinstance(data, list) and file.suffix.lower() == ".json":
        raise _is_data(file)
    if data is None:
        raise ConfigError(f"recipe {file} must be a mapping of settings, and is empty")
    if not isinstance(data, dict):
        raise ConfigError(f"recipe {file} must be a mapping of settings, not {type(data).__name__}")
    config = validate(anchored(data, file.parent), str(file), places, overrides)
    if not isinstance(config, TrainConfig):
        return config
    return with_copies(config, file.parent, overrides, lambda own, kept: not Path(own.file).exists())  # of a run


def _refuse_data(file: Path) -> None:
    """Data in the recipe's place, or a folder of it. Raises ConfigError."""
    names = [path.name for path in file.glob("train[.-]*")] if file.is_dir() else [file.name]
    if file.exists() and any(map(_DATA.search, names)):
        raise _is_data(file)


def _is_data(file: Path) -> ConfigError:
    way = f"`selfcorrect init --model MODEL --data {shlex.quote(str(file))}` writes a recipe for it"
    return ConfigError(f"recipe {file}: is data, not a recipe; {way}")


def validate(
    data: Mapping[str, Any], source: str = "config", places: Places | None = None, overrides: Sequence[str] = ()
) -> Config:
    """A plain mapping, with overrides applied -> the frozen config. Raises ConfigError as load_recipe does."""
    changed, where, typed = copy.deepcopy(dict(data)), dict(places or {}), dict[str, str]()
    before = copy.deepcopy(changed)
    _name_the_tasks(before)
    for override in overrides:
        path = apply_override(changed, override)
        for known in (where, typed):  # but for what stood inside of a section that is replaced
            for key in [key for key in known if key.startswith(f"{path}.")]:
                del known[key]
        where[path], typed[path] = f"override {override!r}", override.partition("=")[0]
    _name_the_tasks(changed)
    try:
        # Through JSON: strict on types, yet a YAML list may fill a tuple.
        text = json.dumps({"kind": "train", **changed}, default=_path)
    except (TypeError, ValueError, RecursionError) as error:
        raise ConfigError(f"{source}: keys must be text and values plain YAML: {error}") from None
    try:
        return _ADAPTER.validate_json(text)
    except ValidationError as error:
        found = [dict(item) for item in error.errors()]
    # A list whose only entry is wrong is also called too short: tell the mistake, not its shadow.
    inner = [item for item in found if item["type"] != "too_short"]
    told = [item for item in found if item in inner or not any(_within(other, item) for other in inner)]
    left, lines = _of_another_kind(_of_unions(told), where, typed, before, changed)
    names = _stage_names(changed)
    raise ConfigError("\n".join([*lines, *(_explain(item, source, where, typed, names) for item in left)]))


def _stage_names(data: Mapping[str, Any]) -> dict[str, str]:
    """By position the names of stages, where they have some that overrides can say: what a user knows them by."""
    stages = data.get("stages")
    given = (
        [stage.get("name") if isinstance(stage, dict) else None for stage in stages] if isinstance(stages, list) else []
    )
    return {
        str(place): name for place, name in enumerate(given)
        if isinstance(name, str) and re.fullmatch(r"[\w-]*[A-Za-z_-][\w-]*", name) and given.count(name) == 1
    }  # fmt: skip


def _of_another_kind(
    errors: Sequence[dict[str, Any]], places: Places, typed: Mapping[str, str], before: Any, data: Any
) -> tuple[list[dict[str, Any]], list[str]]:
    """Where an override made a task or a stage another kind, the recipe's own lines are not at fault; one line each.

    Returns the errors that are left, and those lines.
    """
    tags = {
        path.rpartition(".")[0]: path for path in typed
        if path.rpartition(".")[2] in ("name", "objective") and _at(before, path) not in (None, _at(data, path))
    }  # fmt: skip
    left, unfit = [], dict[str, dict[str, None]]()
    for item in errors:
        parts = _parts_of(item)
        tag = next((tags[section] for section in _prefixes(parts[:-1]) if section in tags), None)
        where = next((key for key in _prefixes(parts) if key in typed), "")
        if tag is None or where.startswith(tag.rpartition(".")[0] + ".") or item["type"] == "missing":
            left.append(item)
        else:
            unfit.setdefault(tag, {})[".".join([*typed[tag].split(".")[:-1], parts[-1]])] = None
    return left, [f"{places[tag]}: {_unfit(tag, list(names), typed[tag], data)}" for tag, names in unfit.items()]


def _unfit(tag: str, names: Sequence[str], typed: str, data: Any) -> str:
    """tag: the path of the setting that says of which kind its section is."""
    section, _, key = typed.rpartition(".")
    data = _at(data, tag.rpartition(".")[0])
    told = {name: data[name] for name in ("name", "objective", "steps", "learning_rate") if name in data}
    whole = shlex.quote(f"{section}={{{', '.join(f'{name}: {value}' for name, value in told.items())}}}")
    more = f" and {len(names) - 4} more" if len(names) > 4 else ""
    return (
        f"{typed} is now {data[key]}, and the recipe's {', '.join(names[:4])}{more} are of another kind and do not fit "
        f"it; write {whole} instead, before other settings of it, to leave all of the recipe's {section} out, or take "
        f"a recipe made for {data[key]}"
    )


def _at(data: Any, path: str) -> Any:
    """The value at a dotted path; None where there is none."""
    for part in path.split("."):
        if isinstance(data, list):
            data = data[int(part)] if part.isdigit() and int(part) < len(data) else None
        else:
            data = data.get(part) if isinstance(data, dict) else None
    return data


def _of_unions(errors: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """A value that fits no member of a union is one mistake, not one a member."""
    found: dict[tuple[Any, ...], dict[str, Any]] = {}
    for item in errors:
        member = bool(_MEMBER.fullmatch(str(item["loc"][-1]))) if item["loc"] else False
        loc = item["loc"][:-1] if member else item["loc"]
        key = loc if member else (*loc, item["type"], item["msg"])
        if key in found:
            found[key]["msg"] += f", or {item['msg'].removeprefix('Input should be ')}"
        else:
            found[key] = {**item, "loc": loc}
    return list(found.values())


def _path(value: Any) -> str:
    """A path stands for its text; nothing else that YAML or a caller may bring does."""
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{value!r} is neither text, number, true, false, null, list nor mapping")


def _name_the_tasks(data: dict[str, Any]) -> None:
    """A task without a name is countdown; one that is repaired, code."""
    task = data.get("task")
    if data.get("kind", "train") != "train" or not isinstance(task, dict):
        return
    task.setdefault("name", "countdown")
    if isinstance(task.get("of"), dict):
        task["of"].setdefault("name", "code")


def dump(config: Config) -> str:
    """The resolved recipe as YAML; loading it gives the same config."""
    plain = config.model_dump(mode="json")
    return yaml.dump(plain, Dumper=Dumper, sort_keys=False, allow_unicode=True, width=100)


def _places(node: Any, file: str, path: str = "") -> Iterator[tuple[str, str]]:
    if node is not None and path:
        yield path, f"{file}:{node.start_mark.line + 1}"
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            child = f"{path}.{key.value}".lstrip(".")
            yield from _places(value, file, child)
            yield child, f"{file}:{key.start_mark.line + 1}"
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            yield from _places(value, file, f"{path}.{index}")


def _within(inner: dict[str, Any], outer: dict[str, Any]) -> bool:
    return bool(inner["loc"][: len(outer["loc"])] == outer["loc"])


def _parts_of(error: dict[str, Any]) -> list[str]:
    """The path of the setting that an error is about."""
    location = [str(part) for part in error["loc"]]
    # A discriminated union puts its tag into the location right after the field or index it stands for.
    return [part for i, part in enumerate(location) if not _is_tag(location[:i], part)]


def _place(
    parts: Sequence[str], error: dict[str, Any], source: str, places: Places, typed: Mapping[str, str],
    names: Mapping[str, str],
) -> tuple[str, str]:  # fmt: skip
    """Where a setting was written, and its name: as an override has it, else with the stage's own name."""
    found = next((key for key in _prefixes(parts) if key in places), None)
    unknown = ".".join(parts)
    if error["type"] == "extra_forbidden" and unknown not in places:  # a section that an override has made
        inside = [key for key in typed if key.startswith(f"{unknown}.")]
        if inside:
            return places[inside[0]], ".".join(typed[inside[0]].split(".")[: len(parts)])
    tags = [f"{section}.{tag}" for section in _prefixes(parts[:-1]) for tag in ("name", "objective")]
    made_by = next((key for key in tags if key in typed), None)  # an override that has made its section another kind
    if error["type"] == "missing" and found not in typed and made_by is not None:
        section = typed[made_by].split(".")[:-1]
        return places[made_by], ".".join([*section, *parts[len(section) :]])
    if error["type"] == "value_error" and found not in typed:  # of a whole section: an override inside may have made it
        inside = [key for key in typed if key.startswith(".".join([*parts, ""])) and parts]
        told = str(error["ctx"]["error"])
        said = [key for key in inside if re.search(rf"\b{re.escape(key.rpartition('.')[2])}\b", told)]
        if made := said or [key for key in inside if places[key].partition("=")[2].rstrip("'\"") in told.split()]:
            found = made[-1]
    written = list(parts)
    if parts[0:1] == ["stages"] and len(parts) > 1 and parts[2:] != ["name"]:
        written[1] = names.get(parts[1], parts[1])
    if found is not None and found in typed:
        typed_parts = typed[found].split(".")
        written[: len(typed_parts)] = typed_parts[: len(parts)]
    return places[found] if found else source, ".".join(written) or "the recipe"


def _explain(
    error: dict[str, Any], source: str, places: Places, typed: Mapping[str, str], names: Mapping[str, str]
) -> str:
    """One pydantic error as one line a user can act on."""
    parts = _parts_of(error)
    where, field = _place(parts, error, source, places, typed, names)
    value = error.get("input")
    shown = "" if isinstance(value, dict | list | BaseModel) else f" = {value!r}"
    match error["type"]:
        case "extra_forbidden":
            return f"{where}: unknown key {field!r}; {_hint(parts)}"
        case "missing":
            return f"{where}: {field} is missing; add it{_meaning(parts)}"
        case "union_tag_invalid":
            context = error["ctx"]
            tag = str(context["discriminator"]).strip("'")
            where = places.get(".".join([*parts, tag]), where)
            return f"{where}: {field}: {tag} = {context['tag']!r} must be one of {context['expected_tags']}"
        case "union_tag_not_found":
            kinds = ", ".join(map(repr, STAGE_KINDS))
            return f"{where}: {field}: objective is missing; it must be one of {kinds}"
        case "value_error":
            text = str(error["ctx"]["error"])
            if not parts:  # a contradiction between sections: the message starts with the field it is about
                about = text.split(maxsplit=1)[0].rstrip(":")
                inside = (key for key in typed if key.startswith(f"{about}."))  # or about a section that overrides made
                where = next((places[key] for key in (*_prefixes(about.split(".")), *inside) if key in places), source)
            return f"{where}: {field}: {text}"
        case _:
            told = f"{where}: {field}{shown}: {error['msg'][0].lower()}{error['msg'][1:]}"
            match error["type"]:
                case "bool_type" if value in ("yes", "no", "on", "off"):
                    return f"{told}; write true or false"
                case "string_type" if shown:
                    return f"{told}; put it in quotes as it is meant"
                case "string_pattern_mismatch":
                    last = "-, _ and (not first) dots" if "." in error["ctx"]["pattern"] else "- and _"
                    return f"{where}: {field}{shown}: must be letters, digits, {last}"
                case "tuple_type" | "list_type":
                    write = f"; write [{value}]" if shown and isinstance(value, str) else ""
                    return f"{where}: {field}{shown}: must be a list{write}{_meaning(parts)}"
            return f"{told}{_meaning(parts)}"


def _meaning(parts: Sequence[str]) -> str:
    """What a setting is, in brackets; empty for one that is none."""
    general = ".".join("NAME" if part.isdigit() else part for part in parts).replace("task.of.", "task.")
    found = next((setting.meaning for setting in settings() if setting.key == general), "")
    first = re.split(r"[;.:,] |\.$", found)[0]
    return f" ({first})" if first else ""


def _is_tag(before: Sequence[str], part: str) -> bool:
    """Whether a part of a location names the member of a union rather than a setting."""
    if not before or before[-1].isdigit():
        return part in _TAGS
    return part in TASK_KINDS and before[-1] in _WITH_TASK


def _prefixes(parts: Sequence[str]) -> list[str]:
    return [".".join(parts[:end]) for end in range(len(parts), 0, -1)]


def _hint(parts: Sequence[str]) -> str:
    """Where an unknown key belongs: by its name here, by what other trainers call it, or by a name that is near."""
    key, fields = parts[-1], list(_fields())
    owners = sorted({owner for name, owner in fields if name == key})
    stages = {f"stages with objective {name}" for name in STAGE_KINDS}
    if stages <= set(owners):
        return f"{key} is a setting of every stage (stages.NAME.{key})"
    if owners:
        return f"{key} is a setting of {' and of '.join(owners)}"
    if key in FAMILIAR:
        return f"here it is {FAMILIAR[key]}"
    section = next((part for part in reversed(parts[:-1]) if not part.isdigit()), "the recipe's top level")
    owner = {"stages": "stages with", "task": "tasks with", "of": "tasks with"}.get(section, section)
    of_section, all_names = {name for name, of in fields if of.startswith(owner)}, {name for name, _ in fields}
    for names, likeness in ((of_section, 0.6), (all_names, 0.75)):
        if near := difflib.get_close_matches(key, sorted(names), n=1, cutoff=likeness):
            return f"did you mean {near[0]!r}?"
    return "`selfcorrect check` prints every setting"


def _fields() -> Iterator[tuple[str, str]]:
    """Every setting and the section it belongs to."""
    for section in sections():
        key, kind = section.key, section.kind
        top = "the recipe's top level" if kind == "train" else f"recipes of kind {kind}"
        of = {"": top, "task": f"tasks with name {kind}", "stages.NAME": f"stages with objective {kind}"}
        owner = of.get(key, key.removesuffix(".NAME").rpartition(".")[2])
        yield from ((setting.name, owner) for setting in section.settings)
