"""Models that are planned for without the hub: their dimensions, as their own config.json files have them."""

from typing import Any

# family -> what its config.json files share
_FAMILIES: dict[str, dict[str, Any]] = {
    "qwen2": {"model_type": "qwen2", "max_position_embeddings": 32768, "num_key_value_heads": 2, "vocab_size": 151936},
    "qwen3": {"model_type": "qwen3", "max_position_embeddings": 40960, "num_key_value_heads": 8, "head_dim": 128,
              "vocab_size": 151936},
    "llama": {"model_type": "llama", "max_position_embeddings": 131072, "num_key_value_heads": 8, "vocab_size": 128256},
    "smollm2": {"model_type": "llama", "max_position_embeddings": 8192, "vocab_size": 49152, "head_dim": 64},
    "gemma3": {"model_type": "gemma3_text", "max_position_embeddings": 32768, "num_attention_heads": 4,
               "num_key_value_heads": 1, "head_dim": 256, "vocab_size": 262144, "sliding_window": 512},
}  # fmt: skip
# hub name -> family, hidden size, layers, heads, intermediate size, whether head and embeddings are one, and the rest
_SHAPES: dict[str, tuple[Any, ...]] = {
    "Qwen/Qwen2.5-0.5B": ("qwen2", 896, 24, 14, 4864, True, {}),
    "Qwen/Qwen2.5-1.5B": ("qwen2", 1536, 28, 12, 8960, True, {}),
    "Qwen/Qwen2.5-3B": ("qwen2", 2048, 36, 16, 11008, True, {}),
    "Qwen/Qwen2.5-7B": ("qwen2", 3584, 28, 28, 18944, False, {"num_key_value_heads": 4, "vocab_size": 152064}),
    "Qwen/Qwen2.5-14B": ("qwen2", 5120, 48, 40, 13824, False, {"num_key_value_heads": 8, "vocab_size": 152064}),
    "Qwen/Qwen2.5-32B": ("qwen2", 5120, 64, 40, 27648, False, {"num_key_value_heads": 8, "vocab_size": 152064}),
    "Qwen/Qwen2.5-72B": ("qwen2", 8192, 80, 64, 29568, False, {"num_key_value_heads": 8, "vocab_size": 152064}),
    "Qwen/Qwen3-0.6B": ("qwen3", 1024, 28, 16, 3072, True, {}),
    "Qwen/Qwen3-1.7B": ("qwen3", 2048, 28, 16, 6144, True, {}),
    "Qwen/Qwen3-4B": ("qwen3", 2560, 36, 32, 9728, True, {}),
    "Qwen/Qwen3-8B": ("qwen3", 4096, 36, 32, 12288, False, {}),
    "Qwen/Qwen3-14B": ("qwen3", 5120, 40, 40, 17408, False, {}),
    "Qwen/Qwen3-32B": ("qwen3", 5120, 64, 64, 25600, False, {}),
    "meta-llama/Llama-3.2-1B": ("llama", 2048, 16, 32, 8192, True, {"head_dim": 64}),
    "meta-llama/Llama-3.2-3B": ("llama", 3072, 28, 24, 8192, True, {"head_dim": 128}),
    "meta-llama/Llama-3.1-8B": ("llama", 4096, 32, 32, 14336, False, {}),
    "meta-llama/Llama-3.1-70B": ("llama", 8192, 80, 64, 28672, False, {}),
    "meta-llama/Llama-3.3-70B": ("llama", 8192, 80, 64, 28672, False, {}),
    "mistralai/Mistral-7B-v0.3": ("llama", 4096, 32, 32, 14336, False, {"vocab_size": 32768}),
    "HuggingFaceTB/SmolLM2-135M": ("smollm2", 576, 30, 9, 1536, True, {"num_key_value_heads": 3}),
    "HuggingFaceTB/SmolLM2-360M": ("smollm2", 960, 32, 15, 2560, True, {"num_key_value_heads": 5}),
    "HuggingFaceTB/SmolLM2-1.7B": ("smollm2", 2048, 24, 32, 8192, True, {"num_key_value_heads": 32}),
    "google/gemma-3-270m": ("gemma3", 640, 18, 4, 2048, True, {}),
    "google/gemma-3-1b": ("gemma3", 1152, 26, 4, 6912, True, {}),
}
_TAILS = ("-instruct", "-it", "-base", "-pt", "-hf", "-2507")  # of names that differ in training alone
_WORDS = ("-coder", "-math")
_MATH_READS = 4096  # tokens: of Qwen2.5-Math, in config.json, where the other Qwen2.5 models have 32768


def known_config(name: str) -> dict[str, Any] | None:
    """The fields of config.json of a hub model in the table, whatever it was tuned for; None for others."""
    plain = name.casefold()
    for word in _WORDS:
        plain = plain.replace(word, "")
    while plain.endswith(_TAILS):
        plain = plain[: plain.rindex("-")]
    found = next((shape for known, shape in _SHAPES.items() if known.casefold() == plain), None)
    if found is None:
        return None
    family, hidden, layers, heads, intermediate, tied = found[:6]
    others: dict[str, Any] = found[6]
    told: dict[str, Any] = _FAMILIES[family] | {
        "hidden_size": hidden, "num_hidden_layers": layers, "num_attention_heads": heads,
        "intermediate_size": intermediate, "tie_word_embeddings": tied,
    }  # fmt: skip
    if "-math" in name.casefold():
        told["max_position_embeddings"] = _MATH_READS
    whole: dict[str, Any] = told | others
    return whole


def known_names() -> list[str]:
    """Hub names of the table; their instruct, base, coder and math kinds count as the same."""
    return list(_SHAPES)
