"""The policy that trains, its frozen reference, and the optimiser."""

import torch

from selfcorrect.config import OptimizerConfig, TrainConfig
from selfcorrect.errors import ConfigError
from selfcorrect.learning.batching import Batch
from selfcorrect.learning.packing import packed_states
from selfcorrect.learning.prompts import SharedPrompts
from selfcorrect.models.adapters import OFF, need_bitsandbytes
from selfcorrect.models.head import States
from selfcorrect.models.language_model import LanguageModel
from selfcorrect.models.placement import stream
from selfcorrect.models.sizing import size_text, static_of


def trained_states(
    lm: LanguageModel, batch: Batch, prompts: SharedPrompts | None = None, packed: bool = False
) -> States:
    """What a model predicts the trained tokens of a batch from, in row-major order of attempt_BT > 0.

    One forward over whole sequences serves all attempts. Padding stands on the right and attention is
    causal, so no trained position sees it and no mask is needed. With `prompts` it goes on from where they end.
    packed: without the padding (models/packed.py).
    """
    if prompts:
        return prompts.states(batch)
    if packed:
        return packed_states(lm, batch)
    return lm.states(batch.token_ids_BT[:, :-1], batch.attempt_BT[:, 1:] > 0, use_cache=False)


def make_reference(config: TrainConfig, lm: LanguageModel) -> tuple[LanguageModel | None, str]:
    """The policy as it is now, frozen, where anything needs it; and in a line, where it lies."""
    if not config.uses_reference:
        return None, "reference: none, as no stage has a KL weight"
    if lm.adapters:
        reference = lm.frozen_copy()
        seen = "off" if reference.view == OFF else "as it is now, beside the one that trains"
        return reference, f"reference: the same model, with its adapter {seen}; no second copy of the weights"
    needs, reference = static_of(config, lm), lm.frozen_copy()
    place = "card" if lm.device.type == "cuda" else lm.device.type
    if needs.place == "device":
        return reference, f"reference: a copy of the weights on the {place}, {size_text(needs.weights)}"
    stream(reference)
    return reference, (
        f"reference: a copy of the weights in the machine's memory, {size_text(needs.weights)}, passed through the "
        f"{place} layer by layer (model.reference)"
    )


def check_optimizer(config: OptimizerConfig, device: torch.device) -> None:
    """Raises ConfigError or ModelError where the recipe's optimiser cannot be had on this device."""
    if config.name == "adamw":
        return
    setting = f"optimizer.name = {config.name!r}"
    if config.name == "paged_adamw_8bit" and device.type != "cuda":
        raise ConfigError(
            f"{setting} pages moments out of a GPU's memory, and the device is {device.type}; set adamw_8bit"
        )
    if device.type == "mps":
        raise ConfigError(f"{setting}: bitsandbytes has none on {device.type}; set adamw")
    need_bitsandbytes(setting)


def make_optimizer(lm: LanguageModel, config: OptimizerConfig) -> torch.optim.Optimizer:
    """AdamW over the trainable weights, or their float32 masters; norms and biases are not decayed.

    Raises ConfigError or ModelError where the device has no such optimiser.
    """
    check_optimizer(config, lm.device)
    parameters = lm.parameters()
    groups = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    optimizer: torch.optim.Optimizer
    if config.name == "adamw":
        optimizer = torch.optim.AdamW(groups, lr=0.0, betas=config.betas, eps=config.epsilon, fused=True)
    else:
        kinds = need_bitsandbytes(f"optimizer.name = {config.name!r}").optim
        kind = kinds.AdamW8bit if config.name == "adamw_8bit" else kinds.PagedAdamW8bit
        optimizer = kind(groups, lr=0.0, betas=config.betas, eps=config.epsilon)
    masters = lm.masters
    if masters:
        optimizer.register_step_post_hook(lambda *_: masters.hand_out())
    return optimizer


def learning_rate(peak: float, step: int, steps: int, config: OptimizerConfig) -> float:
    """The rate of step 1..steps of a stage: linear warm-up to `peak`, then constant, linear or cosine to zero."""
    if step <= config.warmup_steps:
        return peak * step / (config.warmup_steps + 1)
    done = (step - config.warmup_steps - 1) / max(1, steps - config.warmup_steps)
    match config.schedule:
        case "constant":
            return peak
        case "linear":
            return peak * (1 - done)
        case "cosine":
            return peak * 0.5 * (1 + float(torch.cos(torch.tensor(torch.pi * done))))
