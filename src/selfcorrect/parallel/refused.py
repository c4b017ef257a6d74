"""What a recipe may not ask of several ranks, known before anything is loaded."""

from selfcorrect.config import TrainConfig
from selfcorrect.errors import ConfigError

# Five times this is the longest that rank 0 can be at a sync, begun anew included, and others wait three hours for it.
LONGEST = 1800.0  # seconds


def refuse_unserved(config: TrainConfig) -> None:
    """Raises ConfigError where the recipe's engine cannot serve several ranks."""
    if config.sampler != "vllm":
        return
    if not config.vllm.server:
        raise ConfigError(
            "sampler: vllm in this process is for one process, and several were started: the engine would begin a "
            "process group of its own under the same variables of the launcher; set vllm.server, or sampler: "
            "transformers"
        )
    if config.vllm.timeout > LONGEST:
        raise ConfigError(
            f"vllm.timeout = {config.vllm.timeout:g} with several processes: the others would give rank 0 up before "
            f"it could tell what the server said; set at most {LONGEST:g}"
        )


def refuse_unsharded(config: TrainConfig) -> None:
    """Raises ConfigError where a setting cannot be had in shards (FSDP2)."""
    model, way_out = config.model, "; set parallel=ddp"
    if model.tuning == "qlora":
        raise ConfigError(
            "model.tuning = 'qlora' with parallel: fsdp2: bitsandbytes' 4-bit weights are no tensors that fully_shard "
            f"can split and gather{way_out}, or model.tuning=lora"
        )
    if model.tuning == "full" and model.weights == "bfloat16":
        raise ConfigError(
            "model.weights = 'bfloat16' with parallel: fsdp2: float32 masters are not sharded yet; set "
            "model.weights=float32 (which is in shards)"
        )
    if config.optimizer.name != "adamw":
        raise ConfigError(
            f"optimizer.name = {config.optimizer.name!r} with parallel: fsdp2: bitsandbytes does not step sharded "
            f"weights; set optimizer.name=adamw (whose moments are in shards){way_out}"
        )
    if model.tuning == "lora" and config.algorithm.reference == "previous_stage":
        raise ConfigError(
            "algorithm.reference = 'previous_stage' with model.tuning: lora and parallel: fsdp2: the second adapter "
            f"would have to be sharded in a running model{way_out}"
        )
