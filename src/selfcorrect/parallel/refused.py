"""What a recipe may not ask of several ranks, known before anything is loaded."""

from selfcorrect.config import TrainConfig
from selfcorrect.errors import ConfigError

# A sync and its comparison take twice this at the most, and others wait three hours for rank 0.
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
