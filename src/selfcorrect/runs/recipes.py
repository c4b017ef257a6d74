"""Which recipe stands for what a caller names: a file, a mapping, a config, or the model it was trained by."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from selfcorrect.config import LAB_MODEL, TASK_KINDS, Config, TrainConfig
from selfcorrect.config.paths import at_home, check_asked_paths, run_above
from selfcorrect.config.recipe import load_recipe, validate
from selfcorrect.config.shipped import shipped_recipe, shipped_recipes
from selfcorrect.config.tasks import ATTEMPT_TOKENS
from selfcorrect.errors import ConfigError
from selfcorrect.models.files import model_of, resolve_path

Recipe = str | Path | Mapping[str, Any] | Config


def read_config(recipe: Recipe, *overrides: str) -> Config:
    """Anything that stands for a recipe -> the validated config."""
    if isinstance(recipe, Config):
        return validate(recipe.model_dump(mode="json"), overrides=overrides) if overrides else recipe
    if isinstance(recipe, Mapping):
        return validate(recipe, overrides=overrides)
    return load_recipe(recipe, overrides)


def train_config(recipe: Recipe, *overrides: str) -> TrainConfig:
    config = read_config(recipe, *overrides)
    if not isinstance(config, TrainConfig):
        raise ConfigError(f"this recipe is of kind {config.kind}; name one of kind train")
    return config


def config_for(
    model: str | Path, recipe: Recipe | None, overrides: Sequence[str], purpose: str, *, here: bool = True
) -> TrainConfig:
    """The recipe that was named, or that goes with a model, or a task's defaults where an override names the task.

    here: whether the model is to be loaded. Raises ConfigError where nothing names the task, what the task reads is not
    there, or an override names another model.
    """
    if other := next((each for each in overrides if each.startswith("model.path=")), None):
        raise ConfigError(f"override {other!r}: the model is named beside the settings, and is {model}; leave one out")
    config = _going_with(model_of(model) if here else model, recipe, overrides, purpose, here)
    if config.sampler != "recorded":  # whose rows may hold all that the task would be read for
        check_asked_paths(config, loaded=here)
    return config


def to_evaluate(model: str | Path, recipe: Recipe | None, overrides: Sequence[str], *, here: bool) -> TrainConfig:
    """What `evaluate` goes by, with the model that it evaluates: a recipe in the model's place, or `config_for`."""
    named = here and is_recipe(model)
    what = "evaluate it on"
    config = train_config(model, *overrides) if named else config_for(model, recipe, overrides, what, here=here)
    path = config.model.path if named else model_of(model) if here else str(model)
    if here and config.sampler == "transformers":
        resolve_path(path)  # a folder that is not there, or holds no model, is the first thing to say
    config = config.model_copy(update={"model": config.model.model_copy(update={"path": path})})
    if config.sampler != "recorded":
        check_asked_paths(config, loaded=here, evaluated=True)
    return config


def to_grade(task: str, overrides: Sequence[str]) -> TrainConfig:
    """A task alone, with its settings; its data may not be there, as rows may hold what it would be read for."""
    config = validate({"task": {"name": task}, "stages": []}, "grade", overrides=overrides)
    assert isinstance(config, TrainConfig)
    return config


def _going_with(
    model: str | Path, recipe: Recipe | None, overrides: Sequence[str], purpose: str, here: bool
) -> TrainConfig:  # fmt: skip
    if recipe is not None:
        return train_config(recipe, *overrides)
    if here:
        resolve_path(str(model))  # a folder that is not there, or holds no model, is the first thing to say
    beside = recipe_beside(model)
    if beside is not None:
        config = train_config(beside, *overrides)
        if any(override.startswith("model.chat_template=") for override in overrides):
            return config
        # the recipe's template was saved with the model, and its file may be gone
        return config.model_copy(update={"model": config.model.model_copy(update={"chat_template": None})})
    tasks = [value for key, _, value in (o.partition("=") for o in overrides) if key == "task.name"]
    if not tasks:
        kinds = ", ".join(f"task.name={name}" for name in TASK_KINDS)
        known = "" if not here or Path(str(model)).expanduser().exists() else "is no folder here and "
        raise ConfigError(
            f"{model} {known}lies in no run, so nothing says what to {purpose}; name a recipe with --recipe FILE, or a "
            f"task ({kinds}; `selfcorrect tasks` says what they are)"
        )
    limits = {"max_new_tokens": ATTEMPT_TOKENS[tasks[-1]]} if tasks[-1] in ATTEMPT_TOKENS else {}
    return train_config({"stages": [], "rollouts": limits}, *overrides)


def recipe_beside(model: str | Path) -> Path | None:
    """The recipe of the run that a model folder lies in; the lab's for the lab's models; None for every other."""
    folder = at_home(str(model), "model")
    if str(model) == LAB_MODEL:
        return shipped_recipe("demo")
    if folder.is_dir():
        if run := run_above(folder):
            return run / "config.yaml"
        if (folder / "recipe.json").is_file():  # written by lab/base.py
            return shipped_recipe("demo")
    return None


def trained_attempts(model: str | Path) -> int:
    """How many attempts a conversation had where a model was trained; without a bound where nothing tells."""
    beside = recipe_beside(model)
    try:
        return train_config(beside).rollouts.attempts if beside else sys.maxsize
    except ConfigError:  # a recipe of another version; another one may have been named
        return sys.maxsize


def is_recipe(model: str | Path) -> bool:
    """Whether what stands in a model's place is a recipe: a YAML file, or the name of a shipped one."""
    shipped = str(model) in shipped_recipes() and not Path(model).exists()
    return shipped or str(model).endswith((".yaml", ".yml"))
