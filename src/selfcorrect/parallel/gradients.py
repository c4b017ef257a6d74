"""Gradients summed over ranks, after the last backward pass of a step.

Not DistributedDataParallel: a step has several backward passes (one a micro-batch, and one through the shared prompts,
which enters layers in their middle), and ranks may have different numbers of them. One sum at the end is exactly the
sum that one process comes to, up to the order of its terms; ranks need not march in step before it, and the model stays
the model that sampler and reference know. What it costs is that no communication hides behind the backward pass.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

from selfcorrect.models.sharded import own_part

BUCKET = 1 << 24  # numbers in one message


def sum_gradients(parameters: Sequence[Tensor], group: Any = None) -> None:
    """In place, over the ranks of `group` (None: all); of gradients in shards, whose ranks have the same shards.

    A weight that no rank has a gradient for stays without: an optimiser would move it even by zero.
    """
    device = parameters[0].device
    there = torch.tensor([parameter.grad is not None for parameter in parameters], dtype=torch.int32, device=device)
    dist.all_reduce(there, op=dist.ReduceOp.MAX, group=group)
    for parameter, somewhere in zip(parameters, there.tolist(), strict=True):
        if somewhere and parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    gradients = [own_part(parameter.grad) for parameter in parameters if parameter.grad is not None]
    for bucket in _buckets([gradient for gradient in gradients if gradient.numel()]):
        if len(bucket) == 1 and bucket[0].is_contiguous():
            dist.all_reduce(bucket[0], group=group)
            continue
        flat = torch.cat([gradient.flatten() for gradient in bucket])
        dist.all_reduce(flat, group=group)
        parts = torch.split(flat, [gradient.numel() for gradient in bucket])
        for gradient, part in zip(bucket, parts, strict=True):
            gradient.copy_(part.view_as(gradient))


def _buckets(gradients: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Runs of one dtype, and of so many numbers as go into a message; a larger gradient goes alone."""
    bucket: list[Tensor] = []
    for gradient in gradients:
        full = sum(each.numel() for each in bucket) + gradient.numel() > BUCKET
        if bucket and (full or bucket[0].dtype != gradient.dtype):
            yield bucket
            bucket = []
        bucket.append(gradient)
    if bucket:
        yield bucket
