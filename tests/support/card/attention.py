"""scaled_dot_product_attention as a card has it: which kernel takes what, and what each keeps.

Torch's own choice knows no card here, and would write the scores out.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

aten: Any = torch.ops.aten
_HALF = (torch.float16, torch.bfloat16)
_ALIGNED = 16  # a mask's rows begin at multiples of so many numbers


def attend(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0,
    is_causal: bool = False, *, scale: float | None = None, enable_gqa: bool = False,
) -> Any:  # fmt: skip
    """By the first that takes it: flash, memory-efficient, written out."""
    own = query.requires_grad or key.requires_grad or value.requires_grad
    if attn_mask is not None and attn_mask.dtype == torch.bool:  # as torch does before it chooses
        attn_mask = torch.zeros_like(attn_mask, dtype=query.dtype).masked_fill(~attn_mask, -torch.inf)
    fits = query.dim() == 4 and query.shape[-1] % 8 == 0 and query.shape[-1] == value.shape[-1]
    if attn_mask is None and query.dtype in _HALF and fits:
        return aten._scaled_dot_product_flash_attention(query, key, value, dropout_p, is_causal, scale=scale)[0]
    if fits and query.shape[1] == key.shape[1] and query.dtype != torch.float64:
        seen = _aligned(attn_mask, query, key)
        kept = own and torch.is_grad_enabled()
        return aten._scaled_dot_product_efficient_attention(
            query, key, value, seen, kept, dropout_p, is_causal, scale=scale
        )[0]
    how = {"scale": scale, "enable_gqa": enable_gqa}
    return aten._scaled_dot_product_attention_math(query, key, value, attn_mask, dropout_p, is_causal, **how)[0]


def _aligned(mask: Tensor | None, query: Tensor, key: Tensor) -> Tensor | None:
    if mask is None:
        return None
    assert mask.dtype == query.dtype, f"invalid dtype for bias - should match query's dtype, not {mask.dtype}"
    if mask.shape[-1] % _ALIGNED:
        mask = pad(mask, (0, -mask.shape[-1] % _ALIGNED))[..., : mask.shape[-1]]
    return mask.expand(*query.shape[:3], key.shape[2])


def flash(
    query: Tensor, key: Tensor, value: Tensor, dropout: float = 0.0, causal: bool = False, _: bool = False, *,
    scale: float | None = None,
) -> Any:  # fmt: skip
    """Half precision alone, no mask; fewer heads of keys than of queries as they are."""
    spread = [_spread(table, query.shape[1]) for table in (key, value)]
    out, lse = aten._scaled_dot_product_flash_attention_for_cpu(query, *spread, dropout, causal, scale=scale)
    seed = torch.zeros(2, dtype=torch.uint64)
    return out, lse, None, None, query.shape[2], key.shape[2], seed, torch.zeros(0), torch.zeros(0)


def flash_backward(
    d_out: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, lse: Tensor, _: Any, __: Any, ___: int,
    ____: int, dropout: float, causal: bool, *_____: Any, scale: float | None = None,
) -> Any:  # fmt: skip
    spread = [_spread(table, query.shape[1]) for table in (key, value)]
    d_q, *d_kv = aten._scaled_dot_product_flash_attention_for_cpu_backward(
        d_out, query, *spread, out, lse, dropout, causal, scale=scale
    )
    return d_q, *(d.unflatten(1, (key.shape[1], -1)).sum(2) for d in d_kv)


def efficient(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, keeps: bool, dropout: float = 0.0,
    causal: bool = False, *, scale: float | None = None,
) -> Any:  # fmt: skip
    """As many heads of keys as of queries; keeps: the sums that a backward pass needs, of 32 queries each."""
    out, lse = aten._scaled_dot_product_flash_attention_for_cpu(
        query, key, value, dropout, causal, attn_mask=mask, scale=scale
    )
    seed = torch.zeros((), dtype=torch.long)
    return out, pad(lse, (0, -lse.shape[-1] % 32)) if keeps else lse[..., :0].clone(), seed, seed.clone()


def efficient_backward(
    d_out: Tensor, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, out: Tensor, lse: Tensor, _: Any,
    __: Any, dropout: float, ___: Any, causal: bool = False, *, scale: float | None = None,
) -> Any:  # fmt: skip
    made = aten._scaled_dot_product_flash_attention_for_cpu_backward(
        d_out, query, key, value, out, lse[..., : query.shape[2]].contiguous(), dropout, causal, attn_mask=mask,
        scale=scale,
    )  # fmt: skip
    return *made, None


def _spread(table: Tensor, heads: int) -> Tensor:
    return table.repeat_interleave(heads // table.shape[1], dim=1)


KERNELS = {
    f"aten._scaled_dot_product_{name}.default": kernel
    for name, kernel in (
        ("flash_attention", flash), ("flash_attention_backward", flash_backward),
        ("efficient_attention", efficient), ("efficient_attention_backward", efficient_backward),
    )
}  # fmt: skip


def plug_in() -> Any:
    """The registration, which lasts as long as it is held."""
    library: Any = torch.library.Library("aten", "IMPL")  # type: ignore[no-untyped-call]
    for key in ("AutogradCUDA", "CUDA"):
        library.impl("scaled_dot_product_attention", attend, key)
    return library
