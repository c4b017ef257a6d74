"""What `serve MODEL` stands for: the model's folder, its recipe, its base, and the task of the page."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from selfcorrect.config import LAB_MODEL, TASK_KINDS, RepairConfig, TaskConfig, TrainConfig
from selfcorrect.errors import ConfigError, UserError
from selfcorrect.models.files import ADAPTER, model_of, resolve_path
from selfcorrect.runs.recipes import recipe_beside, train_config
from selfcorrect.serving.words import GENERAL, Words, literal, recipe_of_card, words_of_task
from selfcorrect.tasks import Task, make_task

if TYPE_CHECKING:
    from selfcorrect.models.language_model import LanguageModel

_RUN = "its run's recipe"
LIMIT = 1024  # tokens of an attempt where no recipe names a number


@dataclass(frozen=True, slots=True)
class Source:
    """A model to serve. path: what is loaded; name: under which it is listed.

    source: where the recipe comes from, empty where there is none; poses: whether a task is known; limit: tokens of
    an attempt where a request names none.
    """

    path: str
    name: str
    config: TrainConfig
    source: str
    poses: bool
    limit: int

    @property
    def attempts(self) -> int:
        return self.config.rollouts.attempts

    @property
    def is_adapter(self) -> bool:
        return (Path(self.path).expanduser() / ADAPTER).is_file()

    @property
    def base(self) -> str | None:
        """What it was trained from, where that is another model."""
        path = self.config.model.path
        return path if self.source == _RUN and not self.is_adapter and path != self.path else None


def find(
    model: str, recipe: Path | None, overrides: Sequence[str], task: str | None = None, *, upstream: bool = False
) -> Source:
    """What MODEL is, and the recipe that goes with it.

    task: the page's, where it was named; where it is another than the recipe's, overrides of task settings are its.
    upstream: MODEL may be a name that only another server knows. Raises ConfigError and ModelError.
    """
    if task is not None and task not in TASK_KINDS:
        raise ConfigError(f"--task {task}: must be one of {', '.join(TASK_KINDS)}")
    path = model_of(model)
    elsewhere = upstream and not Path(path).expanduser().exists() and path != LAB_MODEL
    if not elsewhere:
        resolve_path(path)  # a folder that is not there, or holds no model, is the first thing to say
    beside = None if elsewhere else recipe_beside(path)
    card = None if elsewhere or recipe or beside else recipe_of_card(Path(path).expanduser())
    if recipe is not None:
        config, source = _train(recipe, overrides, task), f"the recipe {recipe.name}"
    elif beside is not None:
        config = _train(beside, overrides, task)
        source = _RUN if beside.name == "config.yaml" else "the lab's recipe"
        if not any(override.startswith("model.chat_template=") for override in overrides):
            # the recipe's template was saved with the model, and its file may be gone
            config = config.model_copy(update={"model": config.model.model_copy(update={"chat_template": None})})
    elif card is not None:
        config, source = _train(card, overrides, task), "its card"
    else:
        config, source = _train({"stages": [], **({"task": {"name": task}} if task else {})}, overrides, None), ""
    poses = bool(source or task or any(override.startswith("task.") for override in overrides))
    limited = source or any(override.startswith("rollouts.max_new_tokens=") for override in overrides)
    limit = config.rollouts.max_new_tokens if limited else LIMIT
    return Source(path, _name(path), config, source, poses, limit)


def _train(recipe: "Path | TrainConfig | dict[str, object]", overrides: Sequence[str], task: str | None) -> TrainConfig:
    rest = [override for override in overrides if not override.startswith("task.")]
    config = train_config(recipe, *rest)
    differ = rest != list(overrides) and task in (None, config.task.name)
    return train_config(recipe, *overrides) if differ else config


def _name(path: str) -> str:
    folder = Path(path).expanduser()
    if not folder.is_dir():
        return path
    folder = folder.absolute()
    if folder.name in ("final", "best"):
        return folder.parent.name
    return (
        f"{folder.parents[1].name}-{folder.name}"
        if folder.parent.name == "models" and recipe_beside(path)
        else folder.name
    )


def words(source: Source, shown: "PageTask | None", given: str | None) -> Words:
    """The correction prompt: that which was given, the recipe's, the page's task's, or one for everything."""
    if given is not None:
        if not given.strip():
            raise ConfigError("--correction-prompt is empty; write what asks for the next attempt")
        return literal(given, "--correction-prompt")
    if shown is not None and shown.trained_on(source):
        return words_of_task(shown.task, shown.config, source.source or f"the task {shown.config.name}")
    if source.source:
        return words_of_task(make_task(source.config.task), source.config.task, source.source)
    return literal(GENERAL, "a general one, as nothing says how the model was trained (--correction-prompt, --recipe)")


@dataclass(frozen=True, slots=True)
class PageTask:
    """Where the page's problems and grades come from."""

    task: Task
    config: TaskConfig

    def trained_on(self, source: Source) -> bool:
        """Whether its words are those that the model was trained with, as far as is known."""
        return not source.source or self.config == _asked(source.config.task)


def page_task(source: Source, name: str | None, overrides: Sequence[str]) -> PageTask | None:
    """The task of the page: that which was named, or the recipe's; None where there is none."""
    if not source.poses:
        return None
    config = source.config.task
    if name not in (None, config.name):
        settings = [override for override in overrides if override.startswith("task.")]
        config = _train({"stages": [], "task": {"name": name}}, settings, name).task
    config = _asked(config)
    return PageTask(make_task(config), config)


def _asked(config: TaskConfig) -> TaskConfig:
    """Repair is asked as the task is that its first attempts are at."""
    return config.of if isinstance(config, RepairConfig) else config


def load(source: Source) -> "LanguageModel":
    """The model; an adapter stays one, so that its base is there too."""
    from selfcorrect.models import adapters
    from selfcorrect.models.loading import load_model, use_threads

    use_threads(source.config.threads)
    settings = {"path": source.path}
    if not source.is_adapter:
        settings["tuning"] = "full"
    elif source.config.model.tuning == "full":
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
