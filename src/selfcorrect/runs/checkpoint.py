"""Checkpoints: written atomically, verified on load, the newest damaged one passed over.

A folder appears under its final name only when every byte of it is on disk. It holds tensors.safetensors, or under
FSDP2 one shard-*.safetensors a rank (tensors-*.safetensors where hosts share no disk), state.json, and manifest.json
with the SHA-256 of the others; nothing in it is unpickled. Model folders carry a manifest as well.
"""

import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from selfcorrect.errors import CheckpointError, number_of
from selfcorrect.learning.record import Progress
from selfcorrect.models.language_model import LanguageModel
from selfcorrect.models.sharded import laid_out
from selfcorrect.models.weights import weights
from selfcorrect.parallel.ranks import Alone
from selfcorrect.waiting import cores

_TABLES = ("qmap1", "qmap2")  # of 8-bit moments: the same for all of them, and made anew
_DISK_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
PARTIAL = ".partial-"  # begins the names of folders that are being written, or being replaced


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """tensors: weights and optimiser moments by name, none of one that was read; state: plain JSON values, those of
    Progress, `due`: whether the step was one at which the best weights are looked for, and `base`: the fingerprint of
    what training began with.
    """

    step: int
    tensors: dict[str, Tensor]
    state: dict[str, Any]


@contextmanager
def atomic_folder(target: Path) -> Iterator[Path]:
    """A temporary folder beside `target` that takes its name once the block has ended and all is on disk."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f"{PARTIAL}{target.name}-", dir=target.parent))
    except OSError as error:  # of a name that the user has never heard of
        raise OSError(error.errno, f"cannot be made there: {error.strerror}", str(target)) from error
    try:
        temporary.chmod(0o755)
        yield temporary
        for file in (path for path in temporary.rglob("*") if path.is_file()):
            _sync(file)
        old = target.with_name(f"{PARTIAL}{target.name}-old")
        shutil.rmtree(old, ignore_errors=True)
        if target.exists():
            target.rename(old)
        temporary.rename(target)
        _sync(target.parent)
        shutil.rmtree(old, ignore_errors=True)
    except SafetensorError as error:  # what the disk says reaches Python as text
        number = number_of(error)
        raise OSError(number, os.strerror(number), str(target)) if number else error from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def sweep(folder: Path) -> None:
    """Remove what a killed process left half written in `folder`; a folder it was just replacing comes back."""
    for old in folder.glob(f"{PARTIAL}*-old"):
        target = old.with_name(old.name.removeprefix(PARTIAL).removesuffix("-old"))
        if not target.exists():
            old.rename(target)
    for partial in folder.glob(f"{PARTIAL}*"):
        shutil.rmtree(partial, ignore_errors=True)


def save(folder: Path, checkpoint: Checkpoint, keep: int, ranks: Alone) -> None:
    """Write folder/step-NNNNNN and remove all but the newest `keep`. Raises OSError as the disk does."""
    if not ranks.sharded:
        ranks.first(lambda: _save(folder, checkpoint, keep))
        return
    with ExitStack() as opened:  # on rank 0
        target = folder / f"step-{checkpoint.step:06d}"
        temporary = ranks.first(lambda: opened.enter_context(atomic_folder(target)))
        ranks.write(temporary, checkpoint.tensors)
        own = f"shard-{ranks.rank + 1:05d}-*"  # one rank alone would take as long as all write
        known = ranks.every(lambda: {file.name: _digest(file) for file in temporary.glob(own)})

        def finish() -> None:
            _end(temporary, checkpoint, {name: digest for each in known for name, digest in each.items()})
            opened.close()
            prune(folder, keep)

        ranks.first(finish)


def _save(folder: Path, checkpoint: Checkpoint, keep: int) -> None:
    from safetensors.torch import save_file

    target = folder / f"step-{checkpoint.step:06d}"
    with atomic_folder(target) as temporary:
        contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in checkpoint.tensors.items()}
        save_file(contiguous, temporary / "tensors.safetensors")
        _end(temporary, checkpoint)
    prune(folder, keep)


def _end(temporary: Path, checkpoint: Checkpoint, known: Mapping[str, str] = MappingProxyType({})) -> None:
    (temporary / "state.json").write_text(json.dumps(checkpoint.state))
    write_manifest(temporary, known)


def write_manifest(folder: Path, known: Mapping[str, str] = MappingProxyType({})) -> None:
    """manifest.json with the SHA-256 of every file of `folder`; those that are known are not read again."""
    digests = {file.name: known.get(file.name) or _digest(file) for file in sorted(folder.iterdir())}
    (folder / "manifest.json").write_text(json.dumps({"sha256": digests}))


def check_manifest(folder: Path) -> None:
    """Raises ValueError, OSError, KeyError and the like where a file is not as it was written."""
    digests = json.loads((folder / "manifest.json").read_text())["sha256"]
    if not any(name.endswith(".safetensors") for name in digests):
        raise ValueError("its manifest names no weights")
    with ThreadPoolExecutor(cores()) as pool:  # a shard each
        found = dict(zip(digests, pool.map(_digest, [folder / name for name in digests]), strict=True))
    if wrong := [name for name in digests if found[name] != digests[name]]:
        raise ValueError(f"{wrong[0]} does not match its checksum")


# What a damaged folder raises on the way.
DAMAGE = (OSError, ValueError, KeyError, TypeError, AttributeError)


def prune(folder: Path, keep: int) -> None:
    """Remove all checkpoints but the newest `keep`."""
    for old in saved(folder)[:-keep]:
        shutil.rmtree(old, ignore_errors=True)


def saved(folder: Path) -> list[Path]:
    """Checkpoints under `folder`, oldest first."""
    return sorted(path for path in folder.glob("step-*") if path.is_dir())


def load_newest(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest checkpoint whose bytes are as they were written, and a warning for each damaged one passed over.

    Its tensors stay on disk. Damaged ones take the name damaged-step-NNNNNN, so that they do not count among those to
    keep. Raises CheckpointError where there are checkpoints and none is whole.
    """
    damaged: dict[Path, str] = {}
    for path in reversed(saved(folder)):
        try:
            checkpoint = _load(path)
        except DAMAGE as error:
            damaged[path] = f"checkpoint {path.name} is damaged ({error})"
        else:
            for bad in damaged:
                aside = bad.with_name(f"damaged-{bad.name}")
                shutil.rmtree(aside, ignore_errors=True)
                bad.rename(aside)
            return checkpoint, [f"{why}; falling back to the one before" for why in damaged.values()]
    if damaged:
        raise CheckpointError(
            f"no checkpoint under {folder} is whole: {'; '.join(damaged.values())}; start the run afresh"
        )
    return None, []


def newest_state(folder: Path) -> Progress | None:
    """Where the newest checkpoint stands, by what it says without being verified; None where there is none."""
    for path in reversed(saved(folder)):
        try:
            state = json.loads((path / "state.json").read_text(encoding="utf-8"))
            return progress_of(Checkpoint(state["step"], {}, state))
        except (*DAMAGE, CheckpointError):
            continue
    return None


def progress_of(checkpoint: Checkpoint | None) -> Progress | None:
    """Raises CheckpointError where the state is another version's."""
    if checkpoint is None:
        return None
    known = {name: value for name, value in checkpoint.state.items() if name not in ("due", "base")}
    try:
        return Progress(**known)
    except TypeError as error:
        raise CheckpointError(f"checkpoint {checkpoint.step} is of another version of selfcorrect ({error})") from error


def is_disk_full(error: OSError) -> bool:
    return error.errno in _DISK_FULL


def tensors_of(lm: LanguageModel, optimizer: torch.optim.Optimizer | None) -> dict[str, Tensor]:
    """What a checkpoint holds: the weights, and the optimiser's moments where it has more to do."""
    parts = {"model": weights(lm), "optimizer": optimizer_tensors(optimizer) if optimizer else {}}
    return {f"{part}/{name}": tensor for part, tensors in parts.items() for name, tensor in tensors.items()}


def parts_of(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The weights and the moments that `tensors_of` put together."""
    parts: dict[str, dict[str, Tensor]] = {"model": {}, "optimizer": {}}
    for name, tensor in tensors.items():
        part, _, rest = name.partition("/")
        parts[part][rest] = tensor
    return parts["model"], parts["optimizer"]


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimiser's moments by parameter index and name."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    return {
        f"{i}.{key}": torch.as_tensor(value)
        for i, parameter in enumerate(parameters)
        for key, value in optimizer.state.get(parameter, {}).items()
        if key not in _TABLES
    }


def load_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Put moments saved by `optimizer_tensors` back."""
    state: dict[int, dict[str, Any]] = {}
    for name, tensor in tensors.items():
        index, _, key = name.partition(".")
        state.setdefault(int(index), {})[key] = tensor
    if hasattr(optimizer, "init_state"):
        _load_8bit(optimizer, state)
        return
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for place, entry in state.items():
        state[place] = {key: laid_out(tensor, parameters[place]) for key, tensor in entry.items()}
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _load_8bit(optimizer: Any, state: Mapping[int, dict[str, Any]]) -> None:
    """Bitsandbytes' moments, into the buffers that it makes itself: paged ones stay paged."""
    parameters = [
        (group, place, parameter)
        for group, entry in enumerate(optimizer.param_groups)
        for place, parameter in enumerate(entry["params"])
    ]
    for index, entry in state.items():
        group, place, parameter = parameters[index]
        optimizer.init_state(optimizer.param_groups[group], parameter, group, place)
        into = optimizer.state[parameter]
        for key, tensor in entry.items():
            if isinstance(into[key], Tensor):
                into[key].copy_(tensor)
            else:
                into[key] = tensor.item()


def _load(path: Path) -> Checkpoint:
    check_manifest(path)
    state = json.loads((path / "state.json").read_text())
    if path.name != f"step-{state['step']:06d}":
        raise ValueError(f"it holds step {state['step']}")
    return Checkpoint(state["step"], {}, state)


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
