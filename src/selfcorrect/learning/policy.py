"""The policy that trains, its frozen reference, and the optimiser."""

import torch

from selfcorrect.config import OptimizerConfig
from selfcorrect.learning.batching import Batch
from selfcorrect.learning.prompts import SharedPrompts
from selfcorrect.models.head import States
from selfcorrect.models.loading import LanguageModel


def trained_states(lm: LanguageModel, batch: Batch, prompts: SharedPrompts | None = None) -> States:
    """What a model predicts the trained tokens of a batch from, in row-major order of attempt_BT > 0.

    One forward over whole sequences serves all attempts. Padding stands on the right and attention is
    causal, so no trained position sees it and no mask is needed. With `prompts` it goes on from where they end.
    """
    if prompts:
        return prompts.states(batch)
    return lm.states(batch.token_ids_BT[:, :-1], batch.attempt_BT[:, 1:] > 0, use_cache=False)


def make_optimizer(lm: LanguageModel, config: OptimizerConfig) -> torch.optim.AdamW:
    """AdamW over the trainable weights; norms and biases are not decayed."""
    parameters = lm.parameters()
    groups = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=0.0, betas=config.betas, fused=True)


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
