"""Tensors that lie in shards on several processes (DTensors): as whole ones, and whole ones laid out like them."""

import sys
from typing import Any

import torch
from torch import Tensor


def is_sharded(tensor: Any) -> bool:
    """Whether other processes hold parts of it."""
    loaded = sys.modules.get("torch.distributed.tensor")  # where nothing imported it, nothing is
    return loaded is not None and isinstance(tensor, loaded.DTensor)


def in_shards(model: Any) -> bool:
    """Whether other processes hold parts of a model's weights."""
    return any(map(is_sharded, model.parameters()))


def whole(tensor: Any) -> Tensor:
    """All of it. Of a sharded one, every process must ask in the same order."""
    found: Tensor = tensor.full_tensor() if is_sharded(tensor) else tensor
    return found


def own_part(tensor: Any) -> Tensor:
    """What this process holds of it, itself and no copy."""
    found: Tensor = tensor.to_local() if is_sharded(tensor) else tensor
    return found


def laid_out(tensor: Tensor, like: Any) -> Tensor:
    """A whole tensor in the shards of another one, of which every process keeps its own; no process is asked."""
    if not is_sharded(like) or is_sharded(tensor) or tensor.shape != like.shape:
        return tensor
    from torch.distributed.tensor import distribute_tensor

    mesh = like.device_mesh
    return distribute_tensor(tensor.to(mesh.device_type), mesh, like.placements, src_data_rank=None)


@torch.no_grad()
def fill(target: Any, source: Tensor) -> None:
    """`target` takes the values of `source`: where it lies in shards and `source` is whole, of rank 0's.

    Every process must call in the same order then. Raises RuntimeError where shapes differ.
    """
    if target.shape != source.shape:
        raise RuntimeError(f"shapes {tuple(source.shape)} and {tuple(target.shape)} differ")
    if is_sharded(target) and not is_sharded(source):
        source = from_first(source, target.device)
    target.copy_(laid_out(source, target))


@torch.no_grad()
def from_first(tensor: Tensor, device: torch.device) -> Tensor:
    """Rank 0's values on this device, on every rank; of others' `tensor` shape and dtype count."""
    first = torch.distributed.get_rank() == 0
    told = tensor.to(device).contiguous() if first else torch.empty(tensor.shape, dtype=tensor.dtype, device=device)
    torch.distributed.broadcast(told, src=0)
    return told
