"""What torchrun, accelerate or a cluster's own launcher says of the processes it started: environment variables."""

import os
from dataclasses import dataclass

from selfcorrect.errors import ConfigError

_NEEDED = ("WORLD_SIZE", "RANK", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True, slots=True)
class Launch:
    """size: how many processes there are in all; rank: which of them this one is; local: which on its host."""

    size: int
    rank: int
    local: int
    address: str


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
    return Launch(size, rank, _number("LOCAL_RANK", 0), os.environ["MASTER_ADDR"])


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
