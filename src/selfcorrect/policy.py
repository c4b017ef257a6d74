"""The policy that trains, its frozen reference, and the optimiser (floor 5)."""

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from selfcorrect.batching import Batch
from selfcorrect.config import OptimizerConfig
from selfcorrect.errors import CheckpointError
from selfcorrect.models import LanguageModel
from selfcorrect.prompts import SharedPrompts


def trained_logits(lm: LanguageModel, batch: Batch, prompts: SharedPrompts | None = None) -> Tensor:
    """Logits [N, V] that predict the trained tokens of a batch, in row-major order of attempt_BT > 0.

    One forward over whole sequences serves all attempts. Padding stands on the right and attention is
    causal, so no trained position sees it and no mask is needed. With `prompts` it goes on from where they end.
    """
    if prompts:
        return prompts.logits(batch)
    return lm.logits(batch.token_ids_BT[:, :-1], batch.attempt_BT[:, 1:] > 0, use_cache=False)


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


def weights(lm: LanguageModel) -> dict[str, Tensor]:
    """The model's weights by name, tied ones once."""
    seen: set[int] = set()
    state: Mapping[str, Any] = lm.model.state_dict(keep_vars=True)
    kept = {}
    for name, tensor in state.items():
        if tensor.data_ptr() not in seen:
            seen.add(tensor.data_ptr())
            kept[name] = tensor.detach()
    return kept


def load_weights(lm: LanguageModel, state: Mapping[str, Tensor]) -> None:
    """Put weights saved by `weights` back in place. Raises CheckpointError where they are another model's."""
    try:
        missing, unexpected = lm.model.load_state_dict(dict(state), strict=False)
    except RuntimeError as error:  # shapes differ
        raise CheckpointError(f"the weights do not fit the model: {' '.join(str(error).split())[:300]}") from error
    untied = [name for name in missing if name not in (getattr(lm.model, "_tied_weights_keys", None) or ())]
    if unexpected or untied:
        raise CheckpointError(f"the weights do not fit the model: {[*unexpected, *untied][:5]}")


def fingerprint(lm: LanguageModel) -> str:
    """A digest of every weight's name, shape and some 64 of its values: a model that was trained on has another."""
    digest = hashlib.sha256()
    for name, tensor in weights(lm).items():
        flat = tensor.flatten()
        picked = flat[:: max(1, len(flat) // 64)].float().cpu()
        digest.update(f"{name} {tuple(tensor.shape)};".encode() + picked.numpy().tobytes())
    return digest.hexdigest()[:16]
