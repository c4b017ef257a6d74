"""A model by its config, as it runs or as it is planned: its dimensions, and how far back its layers see."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Shape:
    hidden: int
    heads: int
    layers: int
    vocabulary: int
    kv_heads: int
    head_dim: int
    intermediate: int

    def token_bytes(self, itemsize: int) -> int:
        """Of a token's keys and values in all layers."""
        return 2 * self.layers * self.kv_heads * self.head_dim * itemsize


def shape_of(config: Any) -> Shape:
    """What a config does not name is taken for the usual multiple of what it does."""
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    hidden, heads = config.hidden_size, config.num_attention_heads
    return Shape(
        hidden, heads, config.num_hidden_layers, config.vocab_size,
        kv_heads=getattr(config, "num_key_value_heads", None) or heads,
        head_dim=getattr(config, "head_dim", None) or hidden // heads,
        intermediate=getattr(config, "intermediate_size", None) or 4 * hidden,
    )  # fmt: skip


def layer_windows(config: Any, attention: str) -> dict[str, int | None] | None:
    """By kind of layer how many tokens back it sees, itself included (None: all of them).

    config: transformers' own, of the text model; attention: the implementation, by transformers' names. None where some
    layer works otherwise, or takes no mask of its own for each position.
    """
    if attention not in ("eager", "sdpa"):
        return None
    if getattr(config, "num_kv_shared_layers", 0):
        return None  # layers that read the keys of others
    if config.model_type in ("bloom", "mpt", "gpt_neo") or getattr(config, "alibi", False):
        return None  # their position bias, or window, is built from a plain mask
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None)
    if kinds is None:
        kind = "full_attention" if window is None else "sliding_attention"
        kinds = [kind] if hasattr(config, "num_attention_heads") else ["unknown"]
    seen = {"full_attention": None, "sliding_attention": window}
    return {kind: seen[kind] for kind in dict.fromkeys(kinds)} if set(kinds) <= set(seen) else None


def sees_all(windows: dict[str, int | None] | None) -> bool:
    """Whether every layer attends to the whole context, through attention code that takes a mask per position."""
    return windows == {"full_attention": None}
