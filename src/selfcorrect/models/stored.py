"""In which dtype a model's weights lie on disk: what is trained in float32 is kept as it came."""

from collections import Counter
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from selfcorrect.models import files
from selfcorrect.models.files import ADAPTER, resolve_path

_NAMES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


def stored_dtype(path: str) -> torch.dtype:
    """The dtype that most of the weights of a model folder or hub model have; float32 where that cannot be told.

    path: as in a recipe's model.path. Weights that are no plain numbers of 16 or 32 bits count as their config says.
    """
    source = files.find(resolve_path(path), path)
    adapter = None if source.has("config.json") else source.read_json(ADAPTER)
    if adapter is not None:
        return stored_dtype(adapter["base_model_name_or_path"])
    weights = source.file("model.safetensors")
    index = source.read_json("model.safetensors.index.json") if weights is None else None
    if index is not None:
        weights = source.file(next(iter(index["weight_map"].values())))
    counts = _counts(weights) if weights else Counter[str]()
    common = counts.most_common(1)[0][0] if counts else ""
    return _NAMES[common] if common in _NAMES else _configured(source.read_json("config.json") or {})


def _counts(weights: Path) -> Counter[str]:
    """Numbers by dtype, from the head of a safetensors file."""
    counts = Counter[str]()
    with safe_open(weights, "pt") as opened:
        for name in opened.keys():  # noqa: SIM118
            tensor = opened.get_slice(name)
            counts[tensor.get_dtype()] += prod(tensor.get_shape())
    return counts


def _configured(config: Mapping[str, Any]) -> torch.dtype:
    named = config.get("dtype") or config.get("torch_dtype")
    return next((dtype for dtype in _NAMES.values() if str(dtype) == f"torch.{named}"), torch.float32)
