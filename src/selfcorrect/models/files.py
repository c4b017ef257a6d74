"""The small files of a model, read before transformers sees the folder: what would run code, ask, or wait is settled.

A model is a folder of Hugging Face layout or a name on the hub; both are read through the hub's cache functions.
"""

import json
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from selfcorrect.config import LAB_MODEL
from selfcorrect.config.paths import at_home, is_evaluation, is_run
from selfcorrect.errors import ModelError, first_line
from selfcorrect.hub import away

ADAPTER = "adapter_config.json"  # of PEFT; a folder with it and no config.json holds an adapter alone
_KEPT = ("final", "best")  # models of a run
_CONFIGS = ("config.json", "tokenizer_config.json")
_CODE = (
    "{where} Python code of its own{what}, which would run with your rights; it was not run. Read it, and set "
    "model.trust_remote_code: true to allow it, or take another model"
)


@dataclass(frozen=True, slots=True)
class Source:
    """Where a model's files are. path: folder or hub name; shown: the recipe's; cached_only: the hub is away."""

    path: str
    shown: str
    cached_only: bool = False

    @property
    def how(self) -> dict[str, Any]:
        """Arguments for every from_pretrained."""
        return {"local_files_only": True} if self.cached_only else {}

    def refusal(self, why: str) -> ModelError:
        return ModelError(f"model.path = {self.shown!r}: {why}")

    def file(self, name: str) -> Path | None:
        """A file of the model, here or in the hub's cache; None if it has none. Raises ModelError as the hub does."""
        from transformers.utils import cached_file

        quiet = {"_raise_exceptions_for_missing_entries": False, "_raise_exceptions_for_connection_errors": False}
        try:
            file = cached_file(self.path, name, **quiet, **self.how)
        except Exception as error:  # the hub's refusals (no such name, no access) are of many kinds
            raise self.not_loaded(error) from error
        return None if file is None else Path(file)

    def has(self, name: str) -> bool:
        return self.file(name) is not None

    def read_json(self, name: str) -> dict[str, Any] | None:
        """A JSON file of the model; None where it has none. Raises ModelError where it cannot be read."""
        file = self.file(name)
        if file is None:
            return None
        try:
            found = json.loads(file.read_text(encoding="utf-8-sig"))
        except (OSError, ValueError, RecursionError) as error:
            raise self.refusal(f"{name} is not valid JSON ({error}); mend the file, or fetch it again") from error
        if not isinstance(found, dict):
            raise self.refusal(f"{name} must hold an object, not {type(found).__name__}; fetch it again")
        return found

    def refuse_code(self) -> None:
        """Raises ModelError where the model has Python code of its own in place of a class that transformers has."""
        from transformers.models.auto.configuration_auto import CONFIG_MAPPING

        for name in _CONFIGS:
            found = self.read_json(name) or {}
            if not found.get("auto_map"):
                continue
            known = found.get("model_type") in CONFIG_MAPPING
            if name == "config.json" and known:
                continue  # transformers' own class is taken, and asks for nothing
            raise self.refusal(_CODE.format(where=f"{name} names", what=f" ({_listed(found['auto_map'])})"))

    def not_loaded(self, error: Exception) -> ModelError:
        """What transformers raised, in one line."""
        from safetensors import SafetensorError

        if "trust_remote_code" in str(error):
            return self.refusal(_CODE.format(where="it needs", what=""))
        if isinstance(error, SafetensorError) and (name := self._damaged()):
            return self.refusal(f"{name} is damaged ({first_line(error)}); copy or download it again")
        return self.refusal(f"cannot be loaded: {first_line(error)}")

    def _damaged(self) -> str:
        """The name of a safetensors file that cannot be opened; empty where all can."""
        from safetensors import SafetensorError, safe_open

        config = None if Path(self.path).is_dir() else self.file("config.json")
        for file in sorted((config.parent if config else Path(self.path)).glob("*.safetensors")):
            try:
                with safe_open(file, "pt"):
                    pass
            except SafetensorError:
                return file.name
        return ""


def model_of(named: str | Path) -> str:
    """What a command is to load: a run stands for the model that it ended with, or for its best so far."""
    folder = at_home(str(named), "model.path")
    kept = [folder / name for name in _KEPT if _is_model(folder / name) and not _is_model(folder)]
    return str(kept[0]) if kept else str(named)


def resolve_path(path: str) -> str:
    """The folder or hub name a recipe's model.path stands for. Raises ModelError where a folder is missing."""
    if path == LAB_MODEL:
        return str(resources.files("selfcorrect") / "assets" / "lab_base")
    looks_local = path.startswith((".", "/", "~")) or path.count("/") != 1
    folder = at_home(path, "model.path")
    if folder.is_dir():
        if not _is_model(folder):
            if is_evaluation(folder):
                raise ModelError(
                    f"model.path = {path!r} is an evaluation of a model, not a model; name the model itself, the "
                    f"model.path in {folder / 'config.yaml'}"
                )
            kept = [name for name in _KEPT if _is_model(folder / name)]
            if kept or (folder / "environment.json").is_file():
                here = f"name its model: {folder / kept[0]}" if kept else "it has kept no model yet"
                raise ModelError(f"model.path = {path!r} is a run, not a model; {here}")
            raise ModelError(
                f"model.path = {path!r}: the folder holds no config.json; name a folder of Hugging Face layout"
            )
        return str(folder)
    if (looks_local and "/" in path) or folder.is_file():
        raise ModelError(
            f"model.path = {path!r}: no such folder; name a folder of Hugging Face layout, a hub name, or lab"
        )
    if runs := _runs_beside(folder):
        raise ModelError(
            f"model.path = {path!r}: no such folder, and {folder.parent} holds runs: {', '.join(runs)}; name a run's "
            "model, as NAME/final, or a hub name"
        )
    return path


def _runs_beside(folder: Path) -> list[str]:
    """The newest runs of the folder above: `runs/NAME` was meant for one of them, and not for a name on the hub."""
    if folder.parent == Path() or not folder.parent.is_dir():
        return []
    runs = sorted(filter(is_run, folder.parent.iterdir()), key=lambda run: -run.stat().st_mtime)
    return [run.name for run in runs[:5]]


def _is_model(folder: Path) -> bool:
    """Whether a folder holds a model, or an adapter of one."""
    return any((folder / name).is_file() for name in ("config.json", ADAPTER))


def find(path: str, shown: str) -> Source:
    """The model's files, and whether the hub can be asked. Raises ModelError where neither hub nor cache has them."""
    if Path(path).is_dir():
        return Source(path, shown)
    why = away()
    if not why:
        return Source(path, shown)
    source = Source(path, shown, cached_only=True)
    if source.read_json("config.json") is None and source.read_json(ADAPTER) is None:
        raise source.refusal(f"is no folder here and not in the hub's cache, and {why}; name a folder, or mend that")
    return source


def _listed(auto_map: Any) -> str:
    """The classes that an auto_map names."""
    values = auto_map.values() if isinstance(auto_map, dict) else auto_map if isinstance(auto_map, list) else [auto_map]
    flat = [part for value in values for part in (value if isinstance(value, list) else [value]) if part]
    return ", ".join(str(part)[:80] for part in flat[:3])
