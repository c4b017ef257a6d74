"""How training is spread over the processes that a launcher starts."""

from typing import Literal

Parallel = Literal["auto", "ddp", "fsdp2"]
"""ddp: every process holds the whole model. fsdp2: weights, gradients and moments are sharded over all of them.

auto: ddp where torchrun or accelerate started several processes.
"""
