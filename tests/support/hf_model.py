"""A tiny model as a real folder of Hugging Face layout, with a tokenizer that reads any text and its own template."""

from pathlib import Path

import torch

from selfcorrect.models.loading import wrap
from tests.support.templates import PLAIN, byte_tokenizer


def save_qwen2(folder: Path, template: str = PLAIN, ends: int = 60, room: int = 8192) -> Path:
    """A random Qwen2 of two layers. ends: how many ids end a turn, so that most attempts do end."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    tokenizer = byte_tokenizer(template)
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, intermediate_size=48, max_position_embeddings=room, bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, tie_word_embeddings=True,
        )
    )  # fmt: skip
    turn_end = tokenizer.convert_tokens_to_ids("</turn>")
    model.generation_config.eos_token_id = [
        tokenizer.eos_token_id,
        turn_end,
        *range(len(tokenizer) - ends, len(tokenizer)),
    ]
    wrap(model, tokenizer).save(folder, torch.float32)
    return folder
