"""A checkpoint's tensors in one safetensors file a rank, by torch.distributed.checkpoint: nothing in it is unpickled.

Each file says where in its tensors the pieces lie, so that any number of processes can read them: each its own pieces.
The one file that a process without shards writes is read in the same way.
"""

import errno
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from selfcorrect.errors import number_of, one_line


def write(folder: Path, tensors: Mapping[str, Any], group: Any) -> None:
    """Write this rank's pieces, in step with all of them. Raises OSError, on every rank, as the disk of any does."""
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
    from torch.distributed.checkpoint.state_dict_saver import save

    writer = HuggingFaceStorageWriter(str(folder), save_distributed=True)
    try:
        save(dict(tensors), storage_writer=writer, process_group=group)
    except CheckpointException as error:
        raise _of_disk(error) from error


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


def _of_disk(error: Any) -> OSError:
    """What the first rank's disk said. Others than OSError are kept as they are told."""
    rank, (cause, _) = sorted(error.failures.items())[0]
    number = number_of(cause) or errno.EIO
    text = cause.strerror if isinstance(cause, OSError) and cause.strerror else one_line(cause)
    return OSError(number, f"{text} on rank {rank}", getattr(cause, "filename", None))
