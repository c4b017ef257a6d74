"""What torchrun, accelerate or a cluster's own launcher says of the processes it started: environment variables."""

import os
from dataclasses import dataclass

from selfcorrect.config import TrainConfig
from selfcorrect.config.parallel import Parallel
from selfcorrect.errors import ConfigError

_NEEDED = ("WORLD_SIZE", "RANK", "MASTER_ADDR", "MASTER_PORT")
# A sync and its comparison take twice this at the most, and others wait three hours for rank 0.
_LONGEST = 1800.0  # seconds


@dataclass(frozen=True, slots=True)
class Launch:
    """size: how many processes there are in all; rank: which of them this one is; local: which on its host.

    beside: how many its host has, 0 where the launcher does not say.
    """

    size: int
    rank: int
    local: int
    beside: int
    address: str
    port: int


def launched() -> Launch | None:
    """None where this process is alone. Raises ConfigError where the variables contradict each other."""
    size = _number("WORLD_SIZE", 1)
    if size == 1:
        return None
    for name in _NEEDED:
        if not os.environ.get(name):
            raise ConfigError(
                f"WORLD_SIZE is {size}, but {name} is not set: start all processes with torchrun or accelerate launch, "
                "or unset WORLD_SIZE to train in one"
            )
    rank = _number("RANK", 0)
    if rank >= size:
        raise ConfigError(f"RANK is {rank}, but WORLD_SIZE is {size}: ranks are 0 to {size - 1}; see to the launcher")
    local, beside = _number("LOCAL_RANK", 0), _number("LOCAL_WORLD_SIZE", 0)
    return Launch(size, rank, local, beside, os.environ["MASTER_ADDR"], _number("MASTER_PORT", 1))


def kind_of(parallel: Parallel) -> Parallel:
    """Ddp, fsdp2 or hsdp, for several processes: what the recipe names, else what accelerate was configured with.

    Raises ConfigError where the launcher was configured for what is not done here.
    """
    if os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true":
        raise ConfigError(
            "accelerate was configured with DeepSpeed, which is not used here; choose FSDP 2 or none of them in "
            "`accelerate config`, or start with torchrun"
        )
    if parallel != "auto" or os.environ.get("ACCELERATE_USE_FSDP") != "true":
        return "ddp" if parallel == "auto" else parallel
    version = os.environ.get("FSDP_VERSION", "1")
    if version != "2":
        raise ConfigError(f"accelerate was configured with fsdp_version: {version}; set fsdp_version: 2")
    return "fsdp2"


def refuse_several(what: str) -> None:
    """Raises ConfigError where several processes were started for what one does."""
    if (launch := launched()) is not None:
        raise ConfigError(
            f"{what} is done by one process, and {launch.size} were started; start it without torchrun or accelerate"
        )


def refuse_unserved(config: TrainConfig) -> None:
    """Raises ConfigError where ranks would not wait as long as the recipe's engine may take."""
    if config.has_engine and config.vllm.timeout > _LONGEST:
        raise ConfigError(
            f"vllm.timeout = {config.vllm.timeout:g} with several processes: the others would give rank 0 up before "
            f"it could tell what the engine said; set at most {_LONGEST:g}"
        )


def is_first() -> bool:
    """Whether this process is the one that speaks and writes."""
    told = launched()
    return told is None or told.rank == 0


def _number(name: str, least: int) -> int:
    text = os.environ.get(name) or str(least)
    if not (text.isascii() and text.isdigit() and int(text) >= least):
        raise ConfigError(
            f"{name} = {text!r}: must be a whole number from {least} on; see to the launcher, or unset it"
        )
    return int(text)
