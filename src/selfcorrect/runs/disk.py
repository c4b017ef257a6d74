"""What a run takes of the disk: tried, told and checked before it begins; shared where files are equal; given back."""

import os
import shlex
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch

from selfcorrect.config import TrainConfig
from selfcorrect.config.paths import is_evaluation
from selfcorrect.errors import CheckpointError, ConfigError, ModelError, one_line
from selfcorrect.models.language_model import LanguageModel
from selfcorrect.models.sizing import size_text
from selfcorrect.models.weights import weights
from selfcorrect.runs.checkpoint import PARTIAL, atomic_folder, sweep, write_manifest
from selfcorrect.runs.interrupts import alone

_MOMENTS = 2  # AdamW keeps two float32 numbers beside every weight


@dataclass(frozen=True, slots=True)
class Need:
    """Bytes at the most crowded moment: while one more checkpoint, or another `best`, is being written."""

    checkpoint: int
    checkpoints: int
    model: int
    models: int

    @property
    def total(self) -> int:
        return self.checkpoint * self.checkpoints + self.model * self.models

    def __str__(self) -> str:
        return (
            f"up to {size_text(self.total)} ({self.checkpoints} checkpoints of {size_text(self.checkpoint)} while one "
            f"is replaced, {self.models} models of {size_text(self.model)})"
        )


def try_save(lm: LanguageModel, dtype: torch.dtype, path: Path) -> int:
    """Saves the model into the run folder and takes it away again; returns its bytes.

    Raises ModelError where it cannot be saved, OSError as the disk does.
    """
    with tempfile.TemporaryDirectory(prefix=f"{PARTIAL}try-", dir=path) as trial:
        try:
            lm.save(Path(trial), dtype)
        except OSError:
            raise
        except Exception as error:  # a config, generation config or tokenizer that its own library refuses to write
            raise ModelError(
                f"the model can be loaded but not saved, so nothing that it learns could be kept: {one_line(error)}; "
                "mend the file of the model's folder that this names"
            ) from error
        return used(Path(trial))


def need_of(config: TrainConfig, lm: LanguageModel, model: int) -> Need:
    """model: bytes of a saved one. Checkpoints keep float32 weights and moments, so that resuming is exact."""
    numbers = sum(tensor.numel() for tensor in weights(lm).values())
    trained = sum(parameter.numel() for parameter in lm.model.parameters() if parameter.requires_grad)
    checkpoint = 4 * (numbers + _MOMENTS * trained)
    return Need(checkpoint, config.checkpoint.keep + 1, model, len(config.stages) + 1)


def check_room(path: Path, need: Need, keep: int, taken: int) -> str:
    """A line on the need of a run. Raises CheckpointError where the disk has not so much room beside `taken` bytes.

    path: a folder on the disk; taken: what the run has of it already.
    """
    free = shutil.disk_usage(path).free
    if need.total - taken > free:
        raise CheckpointError(
            f"{path}: the run may take {need} of disk, and {size_text(free)} are free there; free some space, "
            f"lower checkpoint.keep (now {keep}), or set output to another disk"
        )
    return f"disk: {need}; {size_text(free)} free"


def save_model(lm: LanguageModel, dtype: torch.dtype, target: Path) -> None:
    """A model folder with a manifest, whole or not there."""
    with atomic_folder(target) as temporary:
        lm.save(temporary, dtype)
        write_manifest(temporary)


def share_model(source: Path, target: Path) -> None:
    """`source` under another name: the weights take no room twice where the disk knows hard links."""
    with atomic_folder(target) as temporary:
        for file in source.iterdir():
            if file.suffix == ".safetensors":
                try:
                    os.link(file, temporary / file.name)
                    continue
                except OSError:
                    pass
            shutil.copy2(file, temporary / file.name)


def prune_run(path: Path) -> tuple[int, int]:
    """Remove what a finished run keeps for resuming and extending; returns how many checkpoints and bytes went.

    Raises ConfigError where `path` holds no finished run, or one that is being trained.
    """
    if not (path / "config.yaml").is_file():
        inside = next((folder for folder in path.parents[:2] if (folder / "final").is_dir()), None)
        near = f"; `selfcorrect prune {shlex.quote(str(inside))}` is of the run it lies in" if inside else ""
        raise ConfigError(f"{path} holds no run to prune (no config.yaml in it){near}")
    if is_evaluation(path):
        raise ConfigError(
            f"{path} holds an evaluation, which keeps no checkpoints: there is nothing to prune; remove the folder "
            "when its rollouts and report are no longer needed"
        )
    with alone(path, ""):
        if not (path / "final").is_dir():
            raise ConfigError(
                f"{path} is not finished, and its checkpoints are what it goes on from; finish it with "
                f"`selfcorrect train --resume {shlex.quote(str(path))}`, or remove the folder"
            )
        before = used(path)
        checkpoints = path / "checkpoints"
        count = sum(file.is_dir() for file in checkpoints.iterdir()) if checkpoints.is_dir() else 0
        shutil.rmtree(checkpoints, ignore_errors=True)
        for folder in (path, path / "models"):
            sweep(folder)
        return count, before - used(path)


def used(folder: Path) -> int:
    """Bytes on disk under a folder; a file of several names counts once."""
    seen: dict[tuple[int, int], int] = {}
    for file in folder.rglob("*"):
        try:
            found = file.lstat()
        except FileNotFoundError:
            continue
        seen[found.st_dev, found.st_ino] = found.st_blocks * 512
    return sum(seen.values())
