"""Two parts of gpu_step.py: which attention suits ragged rows, and the longest attempts that fit on the card."""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from selfcorrect.config import ModelConfig
from selfcorrect.models.loading import LanguageModel, load_model
from selfcorrect.models.packed import Packing, _attend


def measure_attention(heads: int, kv_heads: int, width: int, device: torch.device, dry: bool) -> dict[str, Any]:
    """Milliseconds of one layer's attention, forward and backward, on ragged rows, each way in turn.

    Padded rows with causal attention, packed rows with torch's variable-length attention (a call a row on a CPU), and
    packed rows with FlexAttention, compiled, of which the first call is told apart.
    """
    generator = torch.Generator().manual_seed(0)
    lengths = tuple(torch.randint(4, 9, (3,), generator=generator).tolist() if dry
                    else torch.randint(150, 1100, (16,), generator=generator).tolist())  # fmt: skip
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    found: dict[str, Any] = {"rows": len(lengths), "tokens": sum(lengths), "padding": padding(lengths)}

    def tensors(rows: int, tokens: int) -> list[Tensor]:
        return [torch.randn(rows, count, tokens, width, device=device, dtype=dtype, requires_grad=True)
                for count in (heads, kv_heads, kv_heads)]  # fmt: skip

    packing, total = Packing(lengths, lengths), sum(lengths)
    ways: dict[str, tuple[tuple[int, int], Callable[[Tensor, Tensor, Tensor], Tensor]]] = {
        "padded": ((len(lengths), max(lengths)), lambda q, k, v: scaled_dot_product_attention(
            q, k, v, is_causal=True, enable_gqa=True)),
        "variable_length": ((1, total), lambda q, k, v: packed_attention(packing, q, k, v)),
    }  # fmt: skip
    if device.type == "cuda":  # on a CPU the compiled kernel has no backward pass
        ways["flex"] = ((1, total), flex(lengths, device))
    for name, (shape, attend) in ways.items():
        given, start = tensors(*shape), time.perf_counter()
        once(attend, given, device)
        found[f"{name}_first_ms"] = round(1000 * (time.perf_counter() - start), 3)
        found[f"{name}_ms"] = round(1000 * min(timed(attend, given, device) for _ in range(3 if dry else 20)), 3)
    return found


def padding(lengths: tuple[int, ...]) -> float:
    """The share of a padded batch that is padding."""
    return 1 - sum(lengths) / (len(lengths) * max(lengths))


def packed_attention(packing: Packing, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    class Config:
        _attn_implementation = "sdpa"

    with packing.shown(Config()), torch.autocast("cuda", torch.bfloat16, enabled=query.is_cuda):
        attended: Tensor = _attend(None, query, key, value, None)[0]
    return attended


def flex(lengths: tuple[int, ...], device: torch.device) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    row_of_N = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths)).to(device)

    def sees(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (row_of_N[query] == row_of_N[key]) & (query >= key)

    total = sum(lengths)
    mask = create_block_mask(sees, None, None, total, total, device=str(device))
    compiled = torch.compile(flex_attention)
    return lambda q, k, v: compiled(q, k, v, block_mask=mask, enable_gqa=True)


def once(attend: Callable[..., Tensor], given: list[Tensor], device: torch.device) -> None:
    attend(*given).float().sum().backward()  # type: ignore[no-untyped-call]
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def timed(attend: Callable[..., Tensor], given: list[Tensor], device: torch.device) -> float:
    start = time.perf_counter()
    once(attend, given, device)
    return time.perf_counter() - start


def longest_attempt(
    model: LanguageModel, tuning: str, step: Callable[[LanguageModel, int], None], dry: bool
) -> dict[str, Any]:
    """The most tokens of an attempt, by doubling, with which one problem of two rollouts still takes a full step.

    The model is saved, and loaded as a recipe with this tuning loads it. step: takes one at a limit of tokens.
    """
    with tempfile.TemporaryDirectory() as scratch:
        model.save(Path(scratch), torch.bfloat16)
        kind = model.device.type
        del model
        release(kind)
        settings = {"path": scratch, "device": kind, "tuning": tuning, "weights": "bfloat16", "precision": "bfloat16"}
        lm = load_model(ModelConfig.model_validate(settings))
    lm.eos_ids = frozenset({-1})  # every attempt runs to the limit
    found, limit, most = 0, 4 if dry else 512, 8 if dry else 16_384
    while limit <= most:
        try:
            step(lm, limit)
        except torch.OutOfMemoryError:
            break
        release(kind)
        found, limit = limit, 2 * limit
    return {"attempt_tokens": found, "tuning": tuning, "stopped": "memory" if limit <= most else "size"}


def release(device: str) -> None:
    if device == "cuda":
        torch.cuda.empty_cache()
