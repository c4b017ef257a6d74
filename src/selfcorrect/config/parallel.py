"""How training is spread over the processes that a launcher starts."""

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from selfcorrect.config.run import TrainConfig

Parallel = Literal["auto", "ddp", "fsdp2", "hsdp"]
"""ddp: every process holds the whole model. fsdp2: weights, gradients and moments are sharded over all of them.
hsdp: over those of a machine, so that every machine holds the whole.

auto: ddp where torchrun or accelerate started several processes.
"""


def not_in_shards(config: "TrainConfig") -> str:
    """Why a recipe cannot be trained under fsdp2 or hsdp, and what to set; empty where it can."""
    model = config.model
    kind = "hsdp" if config.parallel == "hsdp" else "fsdp2"
    if config.optimizer.name != "adamw":
        return (
            f"optimizer.name = {config.optimizer.name!r} with parallel: {kind}: bitsandbytes does not step sharded "
            "weights; set optimizer.name=adamw (whose moments are in shards), or parallel=ddp"
        )
    if model.tuning != "full" and config.algorithm.reference == "previous_stage":
        return (
            f"algorithm.reference = 'previous_stage' with model.tuning: {model.tuning} and parallel: {kind}: the "
            "second adapter would have to be sharded in a running model; set parallel=ddp"
        )
    return ""
