"""Attention of rows laid end to end: each token attends to its own row alone, and nothing is padded.

    padded   a a a 0 0        packed   a a a b b b b b c c
             b b b b b
             c c 0 0 0

A row may have more keys than queries: those before its queries are there already (learning/packing.py), and its last
query sees them all. On CUDA torch's variable-length attention takes all rows in one call, in half precision; elsewhere
there is a call for each row.
"""

import inspect
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, replace
from functools import cache, cached_property
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from selfcorrect.errors import first_line
from selfcorrect.models.windows import shape_of

if TYPE_CHECKING:
    from selfcorrect.models.language_model import LanguageModel

_NAME = "selfcorrect_packed"


@dataclass(frozen=True)
class Packing:
    """How many queries, and how many keys, each row has."""

    queries: tuple[int, ...]
    keys: tuple[int, ...]

    @cached_property
    def masks(self) -> tuple[Tensor | None, ...]:
        """What each row's queries see, made once for all layers; None where that is plainly what came before."""
        pairs = zip(self.queries, self.keys, strict=True)
        return tuple(
            None if new == seen else torch.ones(new, seen, dtype=torch.bool).tril(seen - new) for new, seen in pairs
        )

    @cached_property
    def _begins(self) -> dict[torch.device, list[Tensor]]:
        return {}

    def begins(self, device: torch.device) -> list[Tensor]:
        """Where each row's queries and keys begin and the last end; once for all layers, as a card waits for it."""
        if device not in self._begins:
            self._begins[device] = [
                torch.tensor([0, *accumulate(rows)], dtype=torch.int32, device=device)
                for rows in (self.queries, self.keys)
            ]
        return self._begins[device]

    @contextmanager
    def shown(self, config: Any) -> Iterator[None]:
        """Meanwhile the model of this config attends this way. It gets no mask."""
        from transformers import AttentionInterface

        AttentionInterface.register(_NAME, _attend)
        before, token = config._attn_implementation, _current.set(self)
        try:
            config._attn_implementation = _NAME
            yield
        finally:
            config._attn_implementation = before
            _current.reset(token)


_current: ContextVar[Packing | None] = ContextVar("packing", default=None)


def as_now(config: Any) -> AbstractContextManager[None]:
    """What brings the packing of this moment back, if there is one: for layers that run again later."""
    packing = _current.get()
    return packing.shown(config) if packing else nullcontext()


def hindrance(lm: "LanguageModel") -> str:
    """Why this model cannot run on packed rows where it is, in words; empty where it can."""
    return of_model(lm.model.config, lm.attends_to_all) or _of_card(lm) or _found_on_trial(lm)


def of_model(config: Any, attends_to_all: bool) -> str:
    """What keeps a model from it on any device."""
    plain = attends_to_all and not getattr(config, "attn_logit_softcapping", None)
    return "" if plain else "its attention is not plain attention to the whole context"


def of_kernel(compute: torch.dtype, width: int) -> str:
    """What keeps a GPU's kernel from it. width: of a head."""
    if compute == torch.float32:
        return "a GPU's variable-length attention takes bfloat16 alone (model.precision)"
    if width % 8 or width > 256:
        return f"a GPU's variable-length attention takes heads of 8, 16, ... 256 numbers, and this model's have {width}"
    return ""


def _of_card(lm: "LanguageModel") -> str:
    """What keeps a GPU from it; empty on other devices."""
    if lm.device.type != "cuda":
        return ""
    if _variable_length() is None:
        return f"torch {torch.__version__} has no variable-length attention (torch 2.10 or newer has)"
    if why := of_kernel(lm.compute_dtype, shape_of(lm.model.config).head_dim):
        return why
    if torch.cuda.get_device_capability(lm.device) < (8, 0):
        return "its variable-length attention needs a GPU of compute capability 8.0 or newer"
    return ""


def _found_on_trial(lm: "LanguageModel") -> str:
    """What goes wrong with two rows, in words; empty where each comes out as it does alone. Some models attend in code
    of their own, or add to attention what no function that is put in its place knows of.

    That is the model's code, not its precision: the trial is in float32 where the weights are, as bfloat16 alone moves
    hidden states of real models by a tenth, and those of control tokens by two thirds.
    """
    lm = replace(lm, device=next(lm.model.parameters()).device)  # shards go to a card from the machine's memory
    tries = [(lm, 0.25)]  # bfloat16 rounds up to 0.1; rows that see each other differ by 0.35 and more
    if all(weight.dtype.itemsize >= torch.float32.itemsize for weight in lm.model.parameters()):
        exact = lm if lm.compute_dtype == torch.float64 else replace(lm, compute_dtype=torch.float32)
        tries = [(exact, 1e-3), *(tries if lm.device.type == "cuda" else [])]
    return next((told for each, allowed in tries if (told := _trial(each, allowed))), "")


@torch.no_grad()
def _trial(lm: "LanguageModel", allowed: float) -> str:
    vocabulary, lengths = lm.model.config.get_text_config().vocab_size, (5, 3)
    ids_N = (torch.arange(1, 9, device=lm.device) * max(1, vocabulary // 9) + 7) % vocabulary
    place_N = torch.cat([torch.arange(length) for length in lengths]).to(lm.device)
    try:
        alone = [lm.states(ids[None], None, use_cache=False).hidden_ND for ids in ids_N.split(lengths)]
        with Packing(lengths, lengths).shown(lm.model.config):
            together = lm.states(ids_N[None], None, position_ids=place_N[None], use_cache=False).hidden_ND
    except Exception as error:  # noqa: BLE001 - models and kernels fail here in their own ways; padded rows serve
        return f"a trial of two rows failed: {type(error).__name__}: {first_line(error)}"
    expected = torch.cat(alone).float()
    same = (together.float() - expected).norm() <= allowed * expected.norm()
    return "" if same else "its code does not take its attention from without"


@cache
def _variable_length() -> Any:
    """None where this torch has none."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    return varlen_attn


def _attend(module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **kwargs: Any) -> Any:
    """Query [1, H, N, D], key and value [1, K, M, D] -> [1, N, H, D], as the models' code expects it."""
    packing = _current.get()
    assert packing is not None, "packed attention outside of its packing"
    inner = _on_cuda if query.device.type == "cuda" and torch.is_autocast_enabled("cuda") else _row_by_row
    return inner(packing, query, key, value, kwargs.get("scaling")), None


def _row_by_row(packing: Packing, query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> Tensor:
    pairs = ((query, packing.queries), (key, packing.keys), (value, packing.keys))
    attended = []
    rows = zip(*(torch.split(table, list(rows), dim=2) for table, rows in pairs), packing.masks, strict=True)
    for q, k, v, mask in rows:
        seen = None if mask is None else mask.to(q.device)
        attended.append(
            scaled_dot_product_attention(q, k, v, attn_mask=seen, is_causal=mask is None, scale=scale, enable_gqa=True)
        )
    return torch.cat(attended, dim=2).transpose(1, 2)


def _on_cuda(packing: Packing, query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> Tensor:
    attend, half = _variable_length(), torch.get_autocast_dtype("cuda")
    q, k, v = (t[0].transpose(0, 1).to(half) for t in (query, key, value))
    takes = _takes(attend)
    if "enable_gqa" not in takes and k.shape[1] != q.shape[1]:
        k, v = (t.repeat_interleave(q.shape[1] // t.shape[1], dim=1) for t in (k, v))
    how: dict[str, Any] = {"window_size": (-1, 0)} if "window_size" in takes else {"is_causal": True}
    how |= {"enable_gqa": True} if "enable_gqa" in takes else {}
    if "scale" in takes:
        how |= {"scale": scale}
    elif scale is not None:  # the function divides by the root of the width by itself
        q = q * (scale * q.shape[-1] ** 0.5)
    attended: Tensor = attend(q, k, v, *packing.begins(q.device), max(packing.queries), max(packing.keys), **how)
    return attended[None]


@cache
def _takes(function: Any) -> frozenset[str]:
    return frozenset(inspect.signature(function).parameters)
