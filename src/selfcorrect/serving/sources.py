"""What `serve MODEL` stands for: the model's folder, its recipe, its base, and the task of the page."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from selfcorrect.api import read_config, recipe_beside
from selfcorrect.config import TASK_KINDS, RepairConfig, TrainConfig
from selfcorrect.errors import ConfigError, ModelError, UserError
from selfcorrect.models import adapters
from selfcorrect.models.loading import resolve_path
from selfcorrect.serving.words import GENERAL, Words, literal, recipe_of_card, words_of_task
from selfcorrect.tasks import Task, make_task

if TYPE_CHECKING:
    from selfcorrect.models.loading import LanguageModel

LIMIT = 1024  # tokens of an attempt where no recipe names a number


@dataclass(frozen=True, slots=True)
class Source:
    """A model to serve. path: what is loaded; name: under which it is listed; source: where the recipe comes from.

    has_recipe: whether anything but defaults says how it is asked.
    """

    path: str
    name: str
    config: TrainConfig
    source: str
    has_recipe: bool

    @property
    def limit(self) -> int:
        return self.config.rollouts.max_new_tokens if self.has_recipe else LIMIT

    @property
    def attempts(self) -> int:
        return self.config.rollouts.attempts

    @property
    def is_adapter(self) -> bool:
        return (Path(self.path).expanduser() / adapters.CONFIG).is_file()

    @property
    def base(self) -> str | None:
        """What it was trained from, where that is another model."""
        path = self.config.model.path
        return path if self.has_recipe and not self.is_adapter and path != self.path else None


def find(model: str, recipe: Path | None, overrides: Sequence[str], *, upstream: bool = False) -> Source:
    """What MODEL is, and the recipe that goes with it. upstream: it may be a name that only another server knows.

    Raises ConfigError and ModelError.
    """
    path = _model_of(model)
    there = upstream and not Path(path).expanduser().exists() and recipe is None
    if not upstream:
        resolve_path(path)  # a folder that is not there, or holds no model, is the first thing to say
    beside = None if there else recipe_beside(path)
    if recipe is not None:
        config, source = _train(recipe, overrides), f"the recipe {recipe}"
    elif beside is not None:
        config, source = _train(beside, overrides), "the lab's recipe" if path == "lab" else f"its run's {beside}"
        if not any(override.startswith("model.chat_template=") for override in overrides):
            # the recipe's template was saved with the model, and its file may be gone
            config = config.model_copy(update={"model": config.model.model_copy(update={"chat_template": None})})
    elif not there and (found := recipe_of_card(Path(path).expanduser())) is not None:
        config, source = _train(found, overrides), "its card"
    else:
        asked = any(override.startswith("task.") for override in overrides)
        config, source = _train({"stages": []}, overrides), "the task's defaults" if asked else ""
    return Source(path, _name(path), config, source, bool(source))


def _train(recipe: "Path | TrainConfig | dict[str, object]", overrides: Sequence[str]) -> TrainConfig:
    config = read_config(recipe, *overrides)
    if not isinstance(config, TrainConfig):
        raise ConfigError(f"this recipe is of kind {config.kind}; name one of kind train")
    return config


def _model_of(model: str) -> str:
    """A run stands for the model that it ended with, or for its best so far."""
    folder = Path(model).expanduser()
    if (folder / "config.yaml").is_file() and (folder / "environment.json").is_file():
        for name in ("final", "best"):
            if (folder / name).is_dir():
                return str(folder / name)
        raise ModelError(f"{model} is a run that has kept no model yet; wait for its end, or name a model folder")
    return model


def _name(path: str) -> str:
    folder = Path(path).expanduser()
    if not folder.is_dir():
        return path
    folder = folder.absolute()
    if folder.name in ("final", "best"):
        return folder.parent.name
    return f"{folder.parents[1].name}-{folder.name}" if folder.parent.name == "models" and recipe_beside(path) else folder.name


def words(source: Source, task: Task | None, given: str | None) -> Words:
    """The correction prompt: that which was given, the recipe's, or one for everything."""
    if given is not None:
        if not given.strip():
            raise ConfigError("--correction-prompt is empty; write what asks for the next attempt")
        return literal(given, "--correction-prompt")
    if source.has_recipe:
        task = task if task is not None else make_task(source.config.task)
        return words_of_task(task, source.config.task, source.source)
    return literal(GENERAL, "a general one, as nothing says how the model was trained (--correction-prompt, --recipe)")


def page_task(source: Source, name: str | None, overrides: Sequence[str]) -> Task | None:
    """The task of the page: that which was named, or the recipe's; None where there is none."""
    if name is not None and name not in TASK_KINDS:
        raise ConfigError(f"--task {name}: must be one of {', '.join(TASK_KINDS)}")
    config = source.config.task
    if name is not None and name != config.name:
        settings = [override for override in overrides if override.startswith("task.")]
        config = _train({"stages": [], "task": {"name": name}}, settings).task
    elif name is None and not source.has_recipe:
        return None
    return make_task(config.of if isinstance(config, RepairConfig) else config)


def load(source: Source) -> "LanguageModel":
    """The model; an adapter stays one, so that its base is there too."""
    from selfcorrect.models.loading import load_model, use_threads

    use_threads(source.config.threads)
    settings = {"path": source.path}
    if source.is_adapter and source.config.model.tuning == "full":
        about, _ = adapters.stored_about(Path(source.path).expanduser())
        settings["tuning"] = "qlora" if about.get("tuning") == "qlora" else "lora"
    return load_model(source.config.model.model_copy(update=settings))


def load_base(source: Source, lm: "LanguageModel", named: str | None) -> tuple[str, "LanguageModel"] | None:
    """The base's name and itself; None where it is not known. named: --base. Raises what loading raises."""
    from selfcorrect.models.adapters import OFF
    from selfcorrect.models.loading import load_model

    if named is None and lm.adapters is not None:
        return _name(lm.adapters.base), replace(lm, view=OFF)
    path = named or source.base
    if path is None:
        return None
    plain = {"path": path, "tuning": "full"}
    try:
        return _name(path), load_model(source.config.model.model_copy(update=plain))
    except UserError:
        if named is not None:
            raise
        return None
