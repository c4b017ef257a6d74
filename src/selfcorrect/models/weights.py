"""The weights of a model: taken out, put back, told apart."""

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from selfcorrect.config import ModelConfig
from selfcorrect.errors import CheckpointError, one_line
from selfcorrect.models.adapters import FROZEN, POLICY, WEIGHTS
from selfcorrect.models.language_model import LanguageModel
from selfcorrect.models.loading import load_model
from selfcorrect.models.sharded import fill, from_first, in_shards, is_sharded, whole

_SAMPLED = 64  # values of a tensor that a digest reads


def weights(lm: LanguageModel) -> dict[str, Tensor]:
    """What trains by name: an adapter, or the model's weights, tied ones once, as exact as they are kept."""
    if lm.adapters:
        return {name: tensor.detach() for name, tensor in lm.adapters.tensors().items()}
    masters = lm.masters.by_name if lm.masters else {}
    return {name: masters.get(name, tensor).detach() for name, tensor in _distinct(lm)}


def load_weights(lm: LanguageModel, state: Mapping[str, Tensor]) -> None:
    """Put weights saved by `weights` back in place. Raises CheckpointError where they are another model's.

    Of a reference that is a view of the policy's model, they become the adapter it sees. A model in shards takes rank
    0's, and all ranks are in it together.
    """
    try:
        if lm.adapters:
            adapter = POLICY if lm.view == POLICY else FROZEN
            lm.adapters.load(state, adapter)
            lm.view = adapter
            return
        if in_shards(lm.model):
            _fill(lm, state)
            return
        missing, unexpected = lm.model.load_state_dict(dict(state), strict=False)
    except (RuntimeError, ValueError) as error:  # names or shapes differ
        raise CheckpointError(f"the weights do not fit the model: {one_line(error, 300)}") from error
    untied = [name for name in missing if name not in (getattr(lm.model, "_tied_weights_keys", None) or ())]
    if unexpected or untied:
        raise CheckpointError(f"the weights do not fit the model: {[*unexpected, *untied][:5]}")
    if lm.masters:
        for name, tensor in state.items():
            lm.masters.take(name, tensor)


def stored_weights(folder: Path, lm: LanguageModel, config: ModelConfig) -> dict[str, Tensor]:
    """What `weights` gave for a model that was saved to this folder, rounded as it was stored. config: the model's."""
    from safetensors.torch import load_file

    if lm.adapters:
        return dict(load_file(folder / WEIGHTS))
    # The files are mapped, and the model takes a tensor after the other: no second model beside this one.
    found = {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}
    if found.keys() == dict(_distinct(lm)).keys():
        return found
    # Transformers saves some models under other names than theirs. Shards take float32 from every rank alike.
    plain = {"path": str(folder), "weights": "float32", "precision": "float32", "device": "cpu"}
    return weights(load_model(config.model_copy(update=plain)))


def fingerprint(lm: LanguageModel) -> str:
    """A digest of every weight's name, shape and some 64 of its values: a model that was trained on has another.

    An adapter that changes nothing does not count.
    """
    found = list(_base(lm)) if lm.adapters else list(weights(lm).items())
    if lm.adapters and lm.view == POLICY and not lm.adapters.changes_nothing:
        found += lm.adapters.tensors().items()
    return _digest(found, torch.float32)


def base_digests(lm: LanguageModel) -> dict[str, str]:
    """Of the model beneath an adapter: its embeddings and norms, and its linear layers where they are not quantised.

    In bfloat16, so that they say the same however the weights are stored.
    """
    adapted, rest = list[tuple[str, Tensor]](), list[tuple[str, Tensor]]()
    for name, tensor in _base(lm):
        (adapted if tensor.dim() > 1 and "embed" not in name else rest).append((name, tensor))
    four_bits = any(not tensor.is_floating_point() for _, tensor in adapted)
    return {"base": _digest(rest, torch.bfloat16)} | (
        {} if four_bits else {"base_layers": _digest(adapted, torch.bfloat16)}
    )


def _base(lm: LanguageModel) -> Iterator[tuple[str, Tensor]]:
    """The weights beneath the adapters, by the names that they have without."""
    for name, tensor in _distinct(lm):
        if "lora_" not in name and not any(
            mark in name for mark in (".weight.absmax", ".weight.quant", ".weight.nested")
        ):
            yield name.replace(".base_layer.", "."), tensor.detach()


def _distinct(lm: LanguageModel) -> Iterator[tuple[str, Tensor]]:
    seen: set[int] = set()
    state: Mapping[str, Any] = lm.model.state_dict(keep_vars=True)
    for name, tensor in state.items():
        place = id(tensor) if is_sharded(tensor) else tensor.data_ptr()
        if place not in seen:
            seen.add(place)
            yield name, tensor


def _fill(lm: LanguageModel, state: Mapping[str, Tensor]) -> None:
    """Of a model in shards. Raises RuntimeError where names or shapes differ."""
    mine = dict(_distinct(lm))
    if other := sorted(mine.keys() ^ state.keys()):
        raise RuntimeError(", ".join(other[:5]))
    for name, tensor in mine.items():
        if is_sharded(tensor):
            fill(tensor, state[name])
        else:  # a buffer
            tensor.copy_(from_first(state[name], tensor.device))


def _digest(named: list[tuple[str, Tensor]], dtype: torch.dtype) -> str:
    digest = hashlib.sha256()
    for name, tensor in named:
        flat = whole(tensor).detach().flatten()
        picked = flat[:: max(1, len(flat) // _SAMPLED)].to(dtype).float().cpu()
        digest.update(f"{name} {tuple(tensor.shape)};".encode() + picked.numpy().tobytes())
    return digest.hexdigest()[:16]


def cast_weights(model: Any) -> Iterator[tuple[nn.Module, str, Tensor]]:
    """What autocast casts, by module and name: float32 weights of linear layers; quantised ones are other classes."""
    from transformers.pytorch_utils import Conv1D

    for module in model.modules():
        if type(module) in (nn.Linear, Conv1D):
            for name, weight in module._parameters.items():
                if weight is not None and weight.dtype == torch.float32:
                    yield module, name, weight
