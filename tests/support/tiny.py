"""Tiny models of several architectures, with the lab's tokenizer and chat template."""

from pathlib import Path
from typing import Any

import torch

from selfcorrect.config import ModelConfig
from selfcorrect.lab.base import build_tokenizer
from selfcorrect.models.language_model import LanguageModel
from selfcorrect.models.loading import load_model, wrap

ARCHITECTURES = ("llama", "qwen2", "gpt2", "gemma3")
LIMIT = 12  # the tokenizer knows the numbers 0..LIMIT


def tiny_lm(
    architecture: str = "llama", attention: str = "eager", end_ids: tuple[int, ...] = (), seed: int = 0,
    hidden: int = 32, layers: int = 2,
) -> Any:  # fmt: skip
    """A random model with sharp preferences. end_ids: ends of turn beside the tokenizer's own."""
    tokenizer = build_tokenizer(LIMIT)
    torch.manual_seed(seed)
    model = _model(architecture, len(tokenizer), attention, hidden, layers)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() >= 2:  # the usual 0.02 would make every next token about as likely as any other
                parameter.normal_(0.0, 0.6 if "embed" in name or "wte" in name else 0.25)
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, *end_ids]
    language_model: LanguageModel = wrap(model, tokenizer)
    return language_model


def loaded(path: str | Path, tuning: str = "full", **settings: Any) -> LanguageModel:
    """A model folder, as a recipe would have it: on the processor, in float32 but where `settings` say otherwise."""
    plain = {"path": str(path), "tuning": tuning, "device": "cpu", "precision": "float32"}
    return load_model(ModelConfig.model_validate({**plain, **settings}))


def _model(architecture: str, vocabulary: int, attention: str, hidden: int, layers: int) -> Any:
    import transformers

    sizes: dict[str, Any] = {
        "vocab_size": vocabulary, "hidden_size": hidden, "num_hidden_layers": layers, "num_attention_heads": 4,
        "num_key_value_heads": 2, "intermediate_size": 48, "max_position_embeddings": 256, "bos_token_id": None,
        "attn_implementation": attention, "tie_word_embeddings": architecture == "llama",
    }  # fmt: skip
    match architecture:
        case "llama":  # grouped-query attention, tied embeddings
            return transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes))
        case "qwen2":  # biases
            return transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**sizes))
        case "gpt2":  # learned positions, no rotary embedding
            config = transformers.GPT2Config(
                vocab_size=vocabulary, n_embd=hidden, n_layer=layers, n_head=4, n_positions=256, bos_token_id=None,
                attn_implementation=attention, tie_word_embeddings=False,
            )  # fmt: skip
            return transformers.GPT2LMHeadModel(config)
        case "gemma3":  # every other layer sees only the last 6 tokens: each kind of layer has a mask of its own
            kinds = ["sliding_attention", "full_attention"]
            config = transformers.Gemma3TextConfig(**sizes, head_dim=8, sliding_window=6, layer_types=kinds)
            return transformers.Gemma3ForCausalLM(config)
    raise AssertionError(architecture)
