"""Operations that a card has and a processor does not, by what they compute."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from tests.support.card import attention


def addmm(
    summed: Tensor, left: Tensor, right: Tensor, dtype: torch.dtype, *, beta: Any = 1, alpha: Any = 1, out: Tensor
) -> Tensor:
    """Half precision in, `dtype` out."""
    return torch.addmm(summed, left.to(dtype), right.to(dtype), beta=beta, alpha=alpha, out=out)


def in_single(product: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Half precision in and out, summed in float32: as a card has it, and on some processors five times as fast."""

    def made(*tensors: Tensor, **kwargs: Any) -> Tensor:
        kind = tensors[0].dtype
        if kind not in (torch.bfloat16, torch.float16):
            return product(*tensors, **kwargs)
        return product(*(tensor.float() for tensor in tensors), **kwargs).to(kind)

    return made


def rows_forward(
    query: Tensor, key: Tensor, value: Tensor, begin_q: Tensor, begin_k: Tensor, most_q: int, most_k: int,
    causal: bool = False, scale: float | None = None, *_: Any,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Attention of each row to itself alone, [tokens, heads, width]; a row's last query sees its last key."""
    _refuse(query, key, value, begin_q, begin_k, most_q, most_k)
    out = torch.empty_like(query)
    for q, k in _rows(begin_q, begin_k):
        out[q] = _attended(query[q].float(), key[k].float(), value[k].float(), causal, scale).to(query.dtype)
    return out, torch.zeros(query.shape[1], len(query)), torch.zeros(2, dtype=torch.uint64)


def rows_backward(
    d_out: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, _: Tensor, begin_q: Tensor, begin_k: Tensor,
    most_q: int, most_k: int, causal: bool, __: Tensor, scale: float | None = None, *___: Any,
) -> tuple[Tensor, ...]:  # fmt: skip
    gradients = [torch.zeros_like(table) for table in (query, key, value)]
    for q, k in _rows(begin_q, begin_k):
        d_q, own, keys, values = (table.float() for table in (d_out[q], query[q], key[k], value[k]))
        parts = _gradients(d_q, own, keys, values, causal, scale)
        for total, rows, part in zip(gradients, (q, k, k), parts, strict=True):
            total[rows] = part.to(total.dtype)
    return tuple(gradients)


def _refuse(
    query: Tensor, key: Tensor, value: Tensor, begin_q: Tensor, begin_k: Tensor, most_q: int, most_k: int
) -> None:
    """As the card's kernel does, and where it would read beyond a table without a word."""
    assert query.dtype in (torch.bfloat16, torch.float16), (
        f"FlashAttention only support fp16 and bf16, not {query.dtype}"
    )
    assert key.dtype == value.dtype == query.dtype, "query and key must have the same dtype"
    assert begin_q.dtype == begin_k.dtype == torch.int32, "cu_seqlens must have dtype int32"
    assert all(table.stride(-1) == 1 for table in (query, key, value)), (
        "input tensor must have contiguous last dimension"
    )
    for begins, table, most in ((begin_q, query, most_q), (begin_k, key, most_k)):
        assert begins.is_contiguous()
        assert (int(begins[0]), int(begins[-1])) == (0, len(table)), (begins, table.shape)
        assert int(begins.diff().max()) <= most, (begins, most)


def _rows(begin_q: Tensor, begin_k: Tensor) -> Iterator[tuple[slice, slice]]:
    sides = [[slice(*pair) for pair in zip(begins[:-1].tolist(), begins[1:].tolist(), strict=True)]
             for begins in (begin_q, begin_k)]  # fmt: skip
    return zip(*sides, strict=True)


def _attended(q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float | None) -> Tensor:
    share_HQK = _shares(q, k, causal, scale)
    return torch.einsum("hqk,khd->qhd", share_HQK, _spread(v, q.shape[1]))


def _gradients(d_out: Tensor, q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float | None) -> tuple[Tensor, ...]:
    """By hand: there is no autograd beneath an operation."""
    heads, factor = q.shape[1], scale or q.shape[-1] ** -0.5
    share_HQK = _shares(q, k, causal, scale)
    d_share_HQK = torch.einsum("qhd,khd->hqk", d_out, _spread(v, heads))
    d_score_HQK = share_HQK * (d_share_HQK - (share_HQK * d_share_HQK).sum(-1, keepdim=True)) * factor
    d_q = torch.einsum("hqk,khd->qhd", d_score_HQK, _spread(k, heads))
    d_k = torch.einsum("hqk,qhd->khd", d_score_HQK, q)
    d_v = torch.einsum("hqk,qhd->khd", share_HQK, d_out)
    return d_q, *(d.reshape(len(k), k.shape[1], -1, k.shape[2]).sum(2) for d in (d_k, d_v))


def _shares(q: Tensor, k: Tensor, causal: bool, scale: float | None) -> Tensor:
    score_HQK = torch.einsum("qhd,khd->hqk", q, _spread(k, q.shape[1])) * (scale or q.shape[-1] ** -0.5)
    seen = torch.ones(len(q), len(k), dtype=torch.bool).tril(len(k) - len(q) if causal else len(k))
    return score_HQK.masked_fill(~seen, -torch.inf).softmax(-1)


def _spread(table: Tensor, heads: int) -> Tensor:
    """Keys or values of each group of heads, repeated for each of its heads."""
    return table.repeat_interleave(heads // table.shape[1], dim=1)


KERNELS: dict[str, Callable[..., Any]] = {
    **attention.KERNELS,
    **{
        f"aten.{product.__name__}.default": in_single(product)
        for product in (torch.mm, torch.bmm, torch.addmm, torch.baddbmm)
    },
    "aten.addmm.dtype_out": addmm,
    "torch_attn._varlen_attn.default": rows_forward,
    "torch_attn._varlen_attn_backward.default": rows_backward,
}
