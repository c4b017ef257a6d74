"""How far back the layers of a model see, by its config: for the model as it runs, and for one that is planned."""

from typing import Any


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
