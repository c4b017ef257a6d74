"""The sampler that a recipe names, over a model."""

from pathlib import Path
from typing import assert_never

import torch

from selfcorrect.config import TrainConfig
from selfcorrect.errors import ConfigError
from selfcorrect.models.language_model import LanguageModel
from selfcorrect.samplers.base import Sampler
from selfcorrect.samplers.transformers import TransformersSampler


def make_sampler(config: TrainConfig, lm: LanguageModel, max_rows: int = 512) -> Sampler:
    """max_rows: how many run side by side. An engine of its own starts at the first use. Raises UserError kinds."""
    match config.sampler:
        case "transformers" | "recorded" | "endpoint":  # the last two say whose attempts were evaluated
            return TransformersSampler(lm, max_rows=max_rows)
        case "vllm":
            return _vllm(config, lm, max_rows)
        case other:
            assert_never(other)


def _vllm(config: TrainConfig, lm: LanguageModel, max_rows: int) -> Sampler:
    from selfcorrect.samplers.vllm import Engine, VllmSampler
    from selfcorrect.samplers.vllm_engine import InProcess, need_vllm
    from selfcorrect.samplers.vllm_server import Server

    settings = config.vllm
    adapter_only = lm.adapters is not None and settings.adapter != "merged"
    if settings.transfer in ("nccl", "ipc") and lm.device.type != "cuda":
        raise ConfigError(
            f"vllm.transfer = {settings.transfer!r} sends from a GPU, and the model is on {lm.device.type}; set "
            "vllm.transfer=folder"
        )
    if not settings.server:
        need_vllm()  # its absence is the first thing to say
    elif lm.part_of:
        raise ConfigError(
            f"vllm.server = {settings.server!r}: the server runs model.path whole, a {lm.part_of}, whose weights have "
            "other names than its text model's, which is trained; leave vllm.server out, or set sampler: transformers"
        )

    def start(folder: Path, dtype: torch.dtype) -> Engine:
        if settings.server:
            return Server(
                settings, folder, lm.device, adapter_only=adapter_only, base_too=config.model.tuning == "qlora"
            )
        return InProcess(lm, settings, dtype, max_rows, folder / "model", adapter_only=adapter_only)

    return VllmSampler(lm, settings, start, adapter_only=adapter_only)
