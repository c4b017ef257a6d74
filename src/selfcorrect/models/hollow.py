"""A model whose weights another process has: their shapes here, and memory only once they are written."""

import mmap
from typing import Any

import torch
from torch import Tensor


def fill_with_nothing(model: Any) -> None:
    """Replaces a model's meta tensors by zeros, in place. The system gives them memory once something is written there.

    Tied weights stay tied. Weights and buffers are all the tensors that a model has: transformers loads no others.
    """
    made: dict[int, Tensor] = {}
    for module in model.modules():
        for held in (module._parameters, module._buffers):
            for key, tensor in held.items():
                if tensor is not None and tensor.is_meta:
                    held[key] = made.setdefault(id(tensor), _nothing(tensor))


def _nothing(like: Tensor) -> Tensor:
    size = like.numel() * like.element_size()
    pages = mmap.mmap(-1, max(1, size), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    tensor = torch.frombuffer(pages, dtype=torch.uint8)[:size].view(like.dtype).view(like.shape)
    if isinstance(like, torch.nn.Parameter):
        return torch.nn.Parameter(tensor, requires_grad=like.requires_grad)
    return tensor
