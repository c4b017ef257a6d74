"""Two parts of gpu_step.py: which attention suits ragged rows, and the longest attempts that fit on the card."""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from gpu_parts import Found, peak_gigabytes, release
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from selfcorrect.config import ModelConfig
from selfcorrect.models.adapters import need_bitsandbytes
from selfcorrect.models.language_model import LanguageModel
from selfcorrect.models.loading import load_model
from selfcorrect.models.packed import Packing, _attend


def measure_attention(found: Found, heads: int, kv_heads: int, width: int, device: torch.device, dry: bool) -> None:
    """Milliseconds of one layer's attention, forward and backward, on ragged rows, each way in turn.

    Padded rows with causal attention, packed rows with torch's variable-length attention (a call a row on a CPU), and
    packed rows with FlexAttention, compiled, of which the first call is told apart.
    """
    generator = torch.Generator().manual_seed(0)
    lengths = tuple(torch.randint(4, 9, (3,), generator=generator).tolist() if dry
                    else torch.randint(150, 1100, (16,), generator=generator).tolist())  # fmt: skip
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    found |= {"rows": len(lengths), "tokens": sum(lengths), "padding": padding(lengths)}

    def tensors(rows: int, tokens: int) -> list[Tensor]:
        return [torch.randn(rows, count, tokens, width, device=device, dtype=dtype, requires_grad=True)
                for count in (heads, kv_heads, kv_heads)]  # fmt: skip

    def measure(name: str, shape: tuple[int, int], attend: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
        given, start = tensors(*shape), time.perf_counter()
        once(attend, given, device)
        found[f"{name}_first_ms"] = round(1000 * (time.perf_counter() - start), 3)
        found[f"{name}_ms"] = round(1000 * min(timed(attend, given, device) for _ in range(3 if dry else 20)), 3)

    packing, total = Packing(lengths, lengths), sum(lengths)
    measure("padded", (len(lengths), max(lengths)), lambda q, k, v: scaled_dot_product_attention(
        q, k, v, is_causal=True, enable_gqa=True))  # fmt: skip
    measure("variable_length", (1, total), lambda q, k, v: packed_attention(packing, q, k, v))
    if device.type == "cuda" and not dry:  # on a CPU the compiled kernel has no backward pass
        measure("flex", (1, total), flex(lengths, device))


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
    found: Found, make: Callable[[], LanguageModel], tuning: str, step: Callable[[LanguageModel, int], None], dry: bool
) -> None:
    """The most tokens of an attempt with which one problem of two rollouts still takes a full step, to an eighth.

    The model is saved, and loaded as a recipe with this tuning loads it. step: takes one at a limit of tokens.
    """
    if tuning == "qlora":
        need_bitsandbytes("tuning qlora")  # before gigabytes are made and saved
    found |= {"tuning": tuning, "attempt_tokens": 0, "peak_gigabytes": {}, "step_seconds": {}}
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        model = make()
        model.save(Path(scratch), torch.bfloat16)
        kind = model.device.type
        del model
        release()
        settings = {"path": scratch, "device": kind, "tuning": tuning, "weights": "bfloat16", "precision": "bfloat16"}
        lm = load_model(ModelConfig.model_validate(settings))
    lm.eos_ids = frozenset({-1})  # every attempt runs to the limit
    found["load_seconds"] = round(time.monotonic() - start, 1)
    search(found, lambda limit: step(lm, limit), 4 if dry else 512, 8 if dry else 65_536)


def search(found: Found, step: Callable[[int], None], limit: int, most: int) -> None:
    """Doubles the limit as long as a step fits, then halves what is open. too_many: a limit that did not fit."""
    found["stopped"], too_many = "size", 0
    while limit <= most:
        start = time.monotonic()
        try:
            step(limit)
        except torch.OutOfMemoryError:
            too_many, found["stopped"], found["too_many"] = limit, "memory", limit
        else:
            found["attempt_tokens"] = limit
            found["peak_gigabytes"][limit], found["step_seconds"][limit] = peak_gigabytes(), time.monotonic() - start
        release()
        fits = found["attempt_tokens"]
        if too_many and too_many - fits <= max(1, fits // 8):
            return
        limit = (fits + too_many) // 2 if too_many else 2 * limit
