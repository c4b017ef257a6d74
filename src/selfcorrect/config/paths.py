"""Paths in a recipe: relative ones are of its folder; a run has them absolute, the same wherever it is resumed."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from pydantic import BaseModel

from selfcorrect.config.run import PLAIN_TEMPLATE, TrainConfig
from selfcorrect.config.stages import OwnObjective, SupervisedStage
from selfcorrect.config.tasks import CustomConfig, RepairConfig, TaskConfig
from selfcorrect.errors import ConfigError

PATHS = (  # settings that name a file or a folder, in whatever section they are
    "file",
    "data",
    "evaluate_data",
    "held_out",
    "traces",
    "recorded",
    "external",
    "chat_template",
    "sync_folder",
)
TASK_FILE, FILE_HOLDS = "the task's file", "what the file holds"  # digests of it: in asked.json, and of an evaluation
USED = "config.used.yaml"  # the settings that a run has gone by, so that an edited config.yaml is noticed
OWN = "own"  # within a run: Python files of the user's own, and what they import that lies beside them
ASKED = "asked.json"  # within a run: digests of what it has gone by beyond its settings, by their names in words
_FREE = ("options", "template_options", "columns", "correction_prompts")  # what stands inside is the user's own
_Section = TypeVar("_Section", bound=BaseModel)


def anchored(data: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """A recipe as read from a file of `folder`, its relative paths put behind that folder.

    What may also be a hub name (model.path, hub.path) is a path only where it begins with a dot.
    """
    return {key: value if key in _FREE else _anchored(str(key), value, folder) for key, value in data.items()}


def _anchored(key: str, value: Any, folder: Path) -> Any:
    if isinstance(value, Mapping):
        return anchored(value, folder)
    if isinstance(value, list):
        return [_anchored(key, item, folder) for item in value]
    if not isinstance(value, str) or not value or value[0] == "~" or (key, value) == ("chat_template", "plain"):
        return value
    is_path = key in PATHS or (key == "path" and value.startswith(("./", "../")))
    return str(folder / value) if is_path else value


class OwnFile(NamedTuple):
    """A Python file of the user's own. setting: what names it; told: what it is, in words; kept: within the run."""

    setting: str
    told: str
    kept: str
    file: str


def own_files(config: TrainConfig) -> list[OwnFile]:
    """Those of a recipe: its task's, and its stages'."""
    task = config.task
    found = [OwnFile("task.file", TASK_FILE, f"{OWN}/task", task.file)] if isinstance(task, CustomConfig) else []
    return found + [
        OwnFile(f"stages.{s.name}.file", objective_of(s.name), f"{OWN}/stages/{s.name}", s.file)
        for s in config.stages
        if isinstance(s, OwnObjective)
    ]


def objective_of(stage: str) -> str:
    """A stage's own objective, as it is told and as `ASKED` has it."""
    return f"the objective of stage {stage}"


def with_copies(
    config: TrainConfig, run: Path, overrides: Sequence[str], is_old: Callable[[OwnFile, Path], bool]
) -> TrainConfig:  # fmt: skip
    """The run's copies in the place of files of the user's own that are old; what an override names stays.

    is_old: of a file, and the folder with its copy.
    """
    keys = [override.partition("=")[0] for override in overrides]
    named = {key.partition(".")[0] for key in keys if key.endswith(".file") or "." not in key}
    copies = {
        own.setting: str(copy)
        for own in own_files(config)
        if own.setting.partition(".")[0] not in named
        and (copy := run / own.kept / Path(own.file).name).is_file()
        and is_old(own, copy.parent)
    }
    return with_own_files(config, copies)


def with_own_files(config: TrainConfig, files: Mapping[str, str]) -> TrainConfig:
    """The recipe with these in the place of files of the user's own. files: by the setting that names them."""

    def at(section: Any, setting: str) -> Any:
        return section.model_copy(update={"file": files[setting]}) if setting in files else section

    stages = tuple(at(stage, f"stages.{stage.name}.file") for stage in config.stages)
    return config.model_copy(update={"task": at(config.task, "task.file"), "stages": stages})


def asked_by(run: Path) -> dict[str, str]:
    """What `ASKED` holds; empty where there is none, or it cannot be read."""
    try:
        found = json.loads((run / ASKED).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def absolute(section: _Section) -> _Section:
    """The same from whatever folder a run is resumed in: every path whole, those of the sections inside, too.

    What may also be a hub name is a path only where it names a folder here.
    """
    return section.model_copy(update={name: _absolute(name, value) for name, value in section})


def _absolute(name: str, value: Any) -> Any:
    if isinstance(value, BaseModel):
        return absolute(value)
    if isinstance(value, tuple):
        return tuple(_absolute(name, item) for item in value)
    if not isinstance(value, str) or not value or (name, value) == ("chat_template", PLAIN_TEMPLATE):
        return value
    if name == "path":  # as the command line has it, where that names the model
        folder = Path(value).expanduser()
        return str(folder.absolute()) if folder.is_dir() else value
    return str(Path(value).absolute()) if name in PATHS else value


def check_paths(config: TrainConfig, where: str = "", *, task: str = "task", traces: bool = True) -> None:
    """Raises ConfigError for a file or folder that a run's recipe names and that is not there.

    What a later stage reads of the run's own folder is not asked for: an earlier stage may write it. where: begins the
    line; task: what names the recipe's task; traces: whether this process reads those that stages name.
    """
    model, own = config.model.path, (Path(config.output) / config.name).resolve()
    read = [(stage.name, stage.traces) for stage in config.stages if traces and isinstance(stage, SupervisedStage)]
    named = [
        ("model.path", model if model.startswith((".", "/")) else None),  # else it may be a hub name
        *_asked(config, task),
        ("recorded", config.recorded),
        ("checkpoint.held_out", config.checkpoint.held_out),
        *((f"stages.{stage.name}.file", stage.file) for stage in config.stages if isinstance(stage, OwnObjective)),
        *(
            (f"stages.{name}.traces", path)
            for name, path in read
            if name == config.stages[0].name or not Path(path or "").resolve().is_relative_to(own)
        ),
    ]
    _refuse_missing(named, where)


def check_asked_paths(config: TrainConfig, *, loaded: bool = True, evaluated: bool = False) -> None:
    """The same where a model is asked and not trained. loaded: it is here, and no endpoint's; evaluated: by what the
    recipe's `evaluation` says. Raises ConfigError.
    """
    _refuse_missing(_asked(config, loaded=loaded, evaluated=evaluated))


def _asked(
    config: TrainConfig, task: str = "task", *, loaded: bool = True, evaluated: bool = True
) -> list[tuple[str, str | None]]:  # fmt: skip
    template = config.model.chat_template
    return [
        ("model.chat_template", template if loaded and template != PLAIN_TEMPLATE else None),
        *_paths_of_task(config.task, task),
        *(("evaluation.external", path) for path in config.evaluation.external if evaluated),
    ]


def _refuse_missing(named: Sequence[tuple[str, str | None]], where: str = "") -> None:
    for setting, path in named:
        if path is not None and not Path(path).exists():
            needed = "folder; name a folder of Hugging Face layout, a hub name, or lab"
            missing = needed if setting == "model.path" else "file or folder"
            raise ConfigError(f"{where}{setting} = {path!r}: no such {missing}")


def _paths_of_task(task: TaskConfig, setting: str) -> list[tuple[str, str | None]]:
    found = [(f"{setting}.{field}", getattr(task, field, None)) for field in ("data", "evaluate_data", "file")]
    return found + (_paths_of_task(task.of, f"{setting}.of") if isinstance(task, RepairConfig) else [])


def at_home(path: str | Path, named: str) -> Path:
    """The path, `~` in it as the home it stands for. named: what names it. Raises ConfigError where that is none."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        why = "no user of that name has a home here; write the whole path"
        raise ConfigError(f"{named} = {str(path)!r}: {why}") from None


def new_folder(path: str | Path) -> Path:
    """Raises ConfigError where it is there already."""
    folder = at_home(path, "target")
    if folder.exists():
        raise ConfigError(f"{folder} is there already; remove it, or name another folder")
    return folder


def is_evaluation(folder: Path) -> bool:
    """Whether a folder was written by `evaluate`: it has a recipe and nothing of a run's training."""
    told = (folder / "config.yaml").is_file() and any((folder / "evaluations").glob("*.json"))
    return told and not has_begun_training(folder)


def has_begun_training(folder: Path) -> bool:
    return any((folder / name).exists() for name in (USED, "checkpoints", "final"))


def is_run(folder: Path) -> bool:
    return (folder / "config.yaml").is_file() and (folder / "environment.json").is_file()


def run_above(model: Path) -> Path | None:
    """The run that a model's folder lies in, as runs/NAME/final or runs/NAME/models/STAGE; None where it is in none."""
    return next((folder for folder in list(model.absolute().parents)[:2] if is_run(folder)), None)
