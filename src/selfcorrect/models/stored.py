"""In which dtype a model's weights lie on disk: what is trained in float32 is kept as it came."""

import json
import struct
from collections import Counter
from math import prod
from pathlib import Path

import torch

from selfcorrect.models.adapters import CONFIG
from selfcorrect.models.loading import resolve_path

_NAMES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


def stored_dtype(path: str) -> torch.dtype:
    """The dtype that most of the weights of a model folder or hub model have; float32 where that cannot be told.

    path: as in a recipe's model.path. Weights that are no plain numbers of 16 or 32 bits count as their config says.
    """
    name = resolve_path(path)
    adapter = None if _file(name, "config.json") else _file(name, CONFIG)
    if adapter is not None:
        return stored_dtype(json.loads(adapter.read_text(encoding="utf-8"))["base_model_name_or_path"])
    weights = _file(name, "model.safetensors")
    index = _file(name, "model.safetensors.index.json") if weights is None else None
    if index is not None:
        parts = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
        weights = _file(name, next(iter(parts)))
    counts = _counts(weights) if weights else Counter[str]()
    common = counts.most_common(1)[0][0] if counts else ""
    return _NAMES[common] if common in _NAMES else _configured(name)


def _file(name: str, file: str) -> Path | None:
    from transformers.utils.hub import cached_file

    try:
        found = cached_file(name, file)
    except OSError:
        return None
    return Path(found) if found else None


def _counts(weights: Path) -> Counter[str]:
    """Numbers by dtype, from the head of a safetensors file."""
    with weights.open("rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        head = json.loads(stream.read(length))
    counts: Counter[str] = Counter()
    for tensor, about in head.items():
        if tensor != "__metadata__":
            counts[about["dtype"]] += prod(about["shape"])
    return counts


def _configured(name: str) -> torch.dtype:
    file = _file(name, "config.json")
    config = json.loads(file.read_text(encoding="utf-8")) if file else {}
    named = config.get("dtype") or config.get("torch_dtype")
    return next((dtype for dtype in _NAMES.values() if str(dtype) == f"torch.{named}"), torch.float32)
