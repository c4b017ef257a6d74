"""What a run learned, as a folder for others: an adapter or a model, with a card; and sent to the hub."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from selfcorrect.config import ModelConfig, TrainConfig
from selfcorrect.config.paths import OWN, at_home, is_run, new_folder, run_above
from selfcorrect.config.recipe import load_recipe
from selfcorrect.errors import CheckpointError, ConfigError, DataError, ModelError, first_line
from selfcorrect.models import adapters
from selfcorrect.models.files import resolve_path
from selfcorrect.models.loading import load_model
from selfcorrect.models.stored import stored_dtype
from selfcorrect.report.card import card
from selfcorrect.report.load import Run, load_run
from selfcorrect.runs.checkpoint import DAMAGE, atomic_folder, check_manifest

_LEFT_OUT = {"manifest.json", "README.md"}  # of a run's own folder


def export(
    source: str | Path, target: str | Path, *, merge: bool = False, push: str | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> Path:  # fmt: skip
    """Writes the model of a run, or of a folder, with its card; returns the folder.

    merge: an adapter goes into its base model's weights, which makes an ordinary model. Over a 4-bit base it is the
    base as training saw it: quantised once, and dequantised; nothing is quantised again. push: the name of a repository
    on the hub, which is made where it is not there, and private. Raises UserError kinds.
    """
    out = new_folder(target)
    if push is not None:
        _check_name(push)
    folder = _model_folder(at_home(source, "source"))
    _check_whole(folder)
    is_adapter = not (folder / "config.json").is_file()
    run = _run_of(folder)
    about, base = adapters.stored_about(folder) if is_adapter else ({}, _base_of(run, folder))
    if about.get("part_of") and not merge:
        raise ConfigError(
            f"{folder}: its adapter is of the text model within {base}, a {about['part_of']}, whose layers have other "
            "names, so other tools would load nothing of it; --merge writes that text model with the adapter in it"
        )
    with atomic_folder(out) as temporary:
        if merge and is_adapter:
            say(f"merging {folder} with the weights of {base}, into {out}")
            _write_merged(folder, temporary)
        else:
            if merge:
                say(f"{folder} is an ordinary model, with nothing to merge; it is copied")
            for file in sorted(path for path in folder.iterdir() if path.is_file() and path.name not in _LEFT_OUT):
                shutil.copyfile(file, temporary / file.name)
        if run and (above := run_above(folder)) and (above / OWN).is_dir():
            shutil.copytree(above / OWN, temporary / OWN)
            say(f"the Python files of the run's task and objectives go along, in {out / OWN}")
        kind = "adapter" if is_adapter and not merge else "model"
        whole = folder.absolute()
        text = card(out.name, kind, base, run, whole.relative_to(run_above(folder) or whole).as_posix())
        (temporary / "README.md").write_text(text, encoding="utf-8")
    if push is not None:
        _push(out, push)
        say(f"sent to the hub: {push}")
    return out


def _model_folder(source: Path) -> Path:
    """The model that a run ended with, or the folder that was named."""
    if is_run(source):
        if not (source / "final").is_dir():
            kept = f"; its best so far is {source / 'best'}" if (source / "best").is_dir() else ""
            raise ConfigError(
                f"{source} is not finished, so it has no final model{kept}; finish it, or name that folder"
            )
        return source / "final"
    found = Path(resolve_path(str(source)))
    if not found.is_dir():
        raise ModelError(f"{source}: no such folder; name a run, or a model folder")
    return found


def _check_whole(folder: Path) -> None:
    """Raises CheckpointError where a file of a model that a run wrote is not as it was written."""
    if (folder / "manifest.json").is_file():
        try:
            check_manifest(folder)
        except DAMAGE as error:
            raise CheckpointError(
                f"{folder} is damaged ({error}), so it is not exported; where the run has whole checkpoints, remove "
                "that folder and resume the run, which writes it again"
            ) from None


def _run_of(folder: Path) -> Run | None:
    above = run_above(folder)
    try:
        return load_run(above) if above else None
    except DataError:
        return None


def _base_of(run: Run | None, folder: Path) -> str:
    model = run.config.get("model") if run else None
    return str(model.get("path", folder)) if isinstance(model, dict) else str(folder)


def _write_merged(folder: Path, out: Path) -> None:
    """The base with the adapter in it, in the dtype that the base came in."""
    about, _ = adapters.stored_about(folder)
    how: dict[str, Any] = {"tuning": about.get("tuning", "lora"), "weights": about.get("weights", "float32")}
    lm = load_model(ModelConfig(path=str(folder), device="cpu", trust_remote_code=_trusts(folder), **how))
    assert lm.adapters
    lm.adapters.merge(exact=True)
    lm.adapters = None
    lm.save(out, stored_dtype(str(folder)))


def _trusts(folder: Path) -> bool:
    """Whether the recipe that the adapter was trained by lets the model's own code run."""
    above = run_above(folder)
    config = load_recipe(above / "config.yaml") if above else None
    return isinstance(config, TrainConfig) and config.model.trust_remote_code


def _check_name(name: str) -> None:
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(name)
    except ValueError as error:
        raise ConfigError(f"--push {name}: {first_line(error)} Write OWNER/NAME") from None


def _push(folder: Path, name: str) -> None:
    from huggingface_hub import HfApi

    try:
        api = HfApi()
        api.create_repo(repo_id=name, private=True, exist_ok=True)
        api.upload_folder(repo_id=name, folder_path=folder, commit_message="Export from selfcorrect")
    except Exception as error:  # of the hub and the HTTP library under it, of many kinds
        raise ConfigError(
            f"--push {name}: the hub did not take it ({first_line(error)}); {folder} is written. Log in with "
            f"`hf auth login`, then `hf upload {name} {folder}`"
        ) from error
