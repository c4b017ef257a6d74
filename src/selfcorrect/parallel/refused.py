"""What a recipe may not ask of several ranks, known before anything is loaded."""

from selfcorrect.config import TrainConfig
from selfcorrect.errors import ConfigError

# Five times this is the longest that rank 0 can be at a sync, begun anew included, and others wait three hours for it.
LONGEST = 1800.0  # seconds


def refuse_unserved(config: TrainConfig) -> None:
    """Raises ConfigError where ranks would not wait as long as the recipe's engine may take."""
    if config.sampler != "vllm":
        return
    if config.vllm.timeout > LONGEST:
        raise ConfigError(
            f"vllm.timeout = {config.vllm.timeout:g} with several processes: the others would give rank 0 up before "
            f"it could tell what the engine said; set at most {LONGEST:g}"
        )
