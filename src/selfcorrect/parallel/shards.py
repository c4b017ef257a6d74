"""A checkpoint's tensors in one safetensors file a rank, by torch.distributed.checkpoint: nothing in it is unpickled.

Each file says where in its tensors the pieces lie, so that any number of processes can read them: each its own pieces.
Files that hold whole tensors are read in the same way: those of a process without shards, and of rank 0 where hosts
share no disk and it gathers what the others hold.
"""

import errno
import os
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from selfcorrect.errors import number_of, one_line
from selfcorrect.models.sharded import whole

_PIECE = 1 << 30  # bytes that are gathered before they are written


def write(folder: Path, tensors: Mapping[str, Any], group: Any, named: Callable[[int], str]) -> None:
    """Write this rank's pieces, in step with all of them. Raises OSError, on every rank, as the disk of any does."""
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
    from torch.distributed.checkpoint.state_dict_saver import save

    writer = HuggingFaceStorageWriter(str(folder), save_distributed=True)
    try:
        save(dict(tensors), storage_writer=writer, process_group=group)
    except CheckpointException as error:
        raise _of_disk(error, named) from error


def gather(folder: Path, tensors: Mapping[str, Any], *, writes: bool) -> OSError | None:
    """All of them, whole, by the rank that `writes`; the others give it their shards. Returns what its disk said.

    It goes on gathering then: the others are in it.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    failed, held, size, number = None, dict[str, Tensor](), 0, 0
    last = next(reversed(list(tensors)), None)
    for name, tensor in tensors.items():
        gathered = whole(tensor)
        if not writes or failed:
            continue
        held[name] = gathered.detach().cpu().contiguous()
        size += held[name].nbytes
        if size >= _PIECE or name == last:
            number += 1
            try:
                save_file(held, folder / f"tensors-{number:05d}.safetensors")
            except (OSError, SafetensorError) as error:
                number_told = number_of(error) or errno.EIO
                failed = OSError(number_told, os.strerror(number_told), str(folder))
            held, size = {}, 0
    return failed


def tensors_in(folder: Path) -> dict[str, Tensor]:
    """All of a checkpoint's tensors, whole, by one process. Raises ValueError or SafetensorError of damaged ones."""
    from safetensors.torch import load_file

    if files := sorted(folder.glob("tensors*.safetensors")):
        return {name: tensor for file in files for name, tensor in load_file(file).items()}
    return read(folder, {})


def read(folder: Path, like: Mapping[str, Tensor], group: Any = None) -> dict[str, Tensor]:
    """All tensors there, those of `like` in its shards, others whole. group: of ranks that read together; None: alone.

    Raises ValueError where the files do not fit.
    """
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
    from torch.distributed.checkpoint.state_dict_loader import load

    told: dict[str, Any] = dict(HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata)
    found: dict[str, Tensor] = {}
    for name, about in told.items():
        size, dtype = about.size, about.properties.dtype
        shards = like.get(name)
        if shards is not None and shards.shape == size:
            found[name] = torch.zeros_like(shards, dtype=dtype, requires_grad=False)
        else:
            found[name] = torch.empty(size, dtype=dtype)
    reader = HuggingFaceStorageReader(str(folder))
    state: dict[str, Any] = dict(found)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a process which reads alone is alone
        load(state, storage_reader=reader, process_group=group, no_dist=group is None)
    return found


def _of_disk(error: Any, named: Callable[[int], str]) -> OSError:
    """What the first rank's disk said. Others than OSError are kept as they are told."""
    rank, (cause, _) = sorted(error.failures.items())[0]
    number = number_of(cause) or errno.EIO
    text = cause.strerror if isinstance(cause, OSError) and cause.strerror else one_line(cause)
    return OSError(number, f"{text} on {named(rank)}", getattr(cause, "filename", None))
