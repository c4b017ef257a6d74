"""What a run folder holds, before anything heavy is loaded: the settings to go on with, and what is refused there."""

import shlex
from collections.abc import Sequence
from pathlib import Path

from selfcorrect.config import TrainConfig
from selfcorrect.config.paths import USED, OwnFile, absolute, asked_by, is_evaluation, with_copies
from selfcorrect.config.recipe import load_recipe
from selfcorrect.errors import ConfigError
from selfcorrect.evaluation.kept import differences


def to_resume(path: Path, overrides: Sequence[str] = ()) -> TrainConfig:
    """What a run's config.yaml and the overrides say. Raises ConfigError where `path` holds no run."""
    if not (path / "config.yaml").is_file():
        near = [folder for folder in (Path("runs") / path, *path.parents[:3]) if (folder / "config.yaml").is_file()]
        what = f"`{resume_command(near[0])}` is of the run there" if near else "start one with `selfcorrect train`"
        raise ConfigError(f"{path} holds no run to resume (no config.yaml in it); {what}")
    if is_evaluation(path):
        raise ConfigError(
            f"{path} holds an evaluation, not a run: the same `selfcorrect evaluate` command goes on with it; "
            f"`selfcorrect train {shlex.quote(str(path / 'config.yaml'))} name=NEW` trains its model, if it is one here"
        )
    config = _recipe_of(path / "config.yaml", overrides)
    gone_by = asked_by(path)

    def is_old(own: OwnFile, kept: Path) -> bool:
        return own.told in gone_by and not is_kept(own.file, kept)

    return with_copies(config, path, overrides, is_old)


def is_kept(file: str, kept: Path) -> bool:
    """Whether all copies in a folder are of what lies by the file, and are the same."""
    there, copies = Path(file).parent, [copy for copy in kept.rglob("*.py") if copy.is_file()]
    others = [there / copy.relative_to(kept) for copy in copies]
    return all(o.is_file() and c.read_bytes() == o.read_bytes() for c, o in zip(copies, others, strict=True))


def used_by(path: Path) -> TrainConfig:
    """The settings that a run has gone by so far."""
    return _recipe_of(path / USED) if (path / USED).is_file() else _recipe_of(path / "config.yaml")


def used_if_known(path: Path) -> TrainConfig | None:
    try:
        return used_by(path)
    except ConfigError:
        return None


def refuse_others(path: Path, config: TrainConfig) -> None:
    """Raises ConfigError where a new run finds an evaluation, or a run that has ended."""
    if is_evaluation(path):
        raise ConfigError(f"{path} already holds an evaluation; choose another name=...")
    if (path / "config.yaml").exists() and (path / "final").is_dir():
        raise taken(path, absolute(config), used_if_known(path))


def taken(path: Path, config: TrainConfig, used: TrainConfig | None) -> ConfigError:
    """used: the settings of the run that is there, where they are known."""
    before, now = (each and each.model_dump(mode="json") for each in (used, config))
    other = f", {differences(before, now)}" if before and now and before != now else ""
    return ConfigError(
        f"{path} already holds a run{other}; resume it with `{resume_command(path)}` (in Python: "
        "resume_run=True), or choose another name=..."
    )


def resume_command(path: Path) -> str:
    return f"selfcorrect train --resume {shlex.quote(str(path))}"


def _recipe_of(file: Path, overrides: Sequence[str] = ()) -> TrainConfig:
    config = load_recipe(file, overrides)
    if not isinstance(config, TrainConfig):
        raise ConfigError(f"{file} is not the recipe of a training run")
    return config
