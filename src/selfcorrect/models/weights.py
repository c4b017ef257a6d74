"""The weights of a model: taken out, put back, told apart."""

import hashlib
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from selfcorrect.errors import CheckpointError
from selfcorrect.models.loading import LanguageModel


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
