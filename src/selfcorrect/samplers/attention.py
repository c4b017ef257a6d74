"""Attention of one new token a row, or of a few, without copies of the cache.

Where several query heads read the same keys and values, transformers copies those for each of them, at every layer and
token: seven times the cache, for a model with 14 and 2 heads. The heads of a group can as well be taken for several
queries of one head: the same numbers, and the cache is read once.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

_NAMES = {"sdpa": "selfcorrect_sdpa", "eager": "selfcorrect_eager"}
_FEW = 16  # tokens a row: from there on copies of the mask are no smaller than copies of the cache
_OTHERWISE = ("softcap", "s_aux", "position_bias")  # what some models add; left to their own code


@contextmanager
def grouped_attention(config: Any) -> Iterator[None]:
    """Meanwhile the model of this config attends this way where it decodes."""
    from transformers import AttentionInterface

    before = config._attn_implementation
    for name, attend in (("selfcorrect_sdpa", _sdpa), ("selfcorrect_eager", _eager)):
        AttentionInterface.register(name, attend)
    try:
        config._attn_implementation = _NAMES.get(before, before)
        yield
    finally:
        config._attn_implementation = before


def _sdpa(module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **kwargs: Any) -> Any:
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    if not _is_grouped(query, key, attention_mask, kwargs):
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    mask = _for_groups(attention_mask, query, key)
    attended = torch.nn.functional.scaled_dot_product_attention(
        _by_group(query, key), key, value, attn_mask=mask, scale=kwargs.get("scaling")
    )
    return _by_head(attended, query), None


def _eager(module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **kwargs: Any) -> Any:
    if not _is_grouped(query, key, attention_mask, kwargs):
        own = sys.modules[type(module).__module__].eager_attention_forward  # each model file has one
        return own(module, query, key, value, attention_mask, **kwargs)
    scaling = kwargs.get("scaling") or query.shape[-1] ** -0.5
    scores = _by_group(query, key) @ key.transpose(2, 3) * scaling
    scores = scores + _for_groups(attention_mask, query, key)
    attended = scores.softmax(-1, dtype=torch.float32).to(query.dtype) @ value
    return _by_head(attended, query), None


def _is_grouped(query: Tensor, key: Tensor, mask: Any, kwargs: dict[str, Any]) -> bool:
    plain = all(kwargs.get(name) is None for name in _OTHERWISE)
    return query.shape[2] <= _FEW and query.shape[1] > key.shape[1] and mask is not None and plain


def _by_group(query_RHTD: Tensor, key: Tensor) -> Tensor:
    rows, heads, tokens, width = query_RHTD.shape
    return query_RHTD.reshape(rows, key.shape[1], heads // key.shape[1] * tokens, width)


def _for_groups(mask_R1TS: Tensor, query: Tensor, key: Tensor) -> Tensor:
    """The tokens' own, for each head of a group again."""
    return mask_R1TS if query.shape[2] == 1 else mask_R1TS.repeat(1, 1, query.shape[1] // key.shape[1], 1)


def _by_head(attended_RKMD: Tensor, query_RHTD: Tensor) -> Tensor:
    # [R, T, H, D], as the models' code expects; D is that of values, which some models have narrower than queries
    return attended_RKMD.reshape(*query_RHTD.shape[:3], -1).transpose(1, 2)
