"""Chat templates of our own that behave like those of well-known families, and a tokenizer that reads any text."""

from typing import Any

SPECIAL = ["<bos>", "<eos>", "<pad>", "<turn>", "</turn>", "<think>", "</think>"]

_LOOP = "{% for message in messages %}"
_CLOSE = "{% endfor %}"

# Plain: role, newline, content, end of turn.
PLAIN = (
    _LOOP + "<turn>{{ message.role }}\n{{ message.content }}</turn>\n" + _CLOSE
    + "{% if add_generation_prompt %}<turn>assistant\n{% endif %}"
)  # fmt: skip
# Like Gemma's: begins with bos, calls the assistant `model`, trims, knows no system role, insists on taking turns.
GEMMA_LIKE = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + _LOOP
    + "{% if (message.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('take turns') }}{% endif %}"
    + "<turn>{{ 'model' if message.role == 'assistant' else message.role }}\n{{ message.content | trim }}</turn>\n"
    + _CLOSE + "{% if add_generation_prompt %}<turn>model\n{% endif %}"
)  # fmt: skip
# Like Llama 3's: a system turn with the day's date, contents trimmed.
LLAMA_LIKE = (
    "{% if date_string is not defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}"
    "{{ bos_token }}<turn>system\n\nToday is {{ date_string }}.</turn>" + _LOOP
    + "<turn>{{ message.role }}\n\n{{ message.content | trim }}</turn>" + _CLOSE
    + "{% if add_generation_prompt %}<turn>assistant\n\n{% endif %}"
)  # fmt: skip
# Like Qwen3's: thoughts are cut from earlier turns; without thinking, the turn to be written opens with an empty thought.
QWEN3_LIKE = (
    _LOOP + "<turn>{{ message.role }}\n{{ message.content.split('</think>')[-1].lstrip('\\n') }}</turn>\n" + _CLOSE
    + "{% if add_generation_prompt %}<turn>assistant\n"
    + "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)  # fmt: skip
# Always opens a thought, as some reasoning models do.
OPENS_THOUGHT = PLAIN.replace("<turn>assistant\n{% endif %}", "<turn>assistant\n<think>\n{% endif %}")
# Puts an empty thought into earlier turns only: what stood before attempt 1 would change.
FILLS_HISTORY = PLAIN.replace(
    "{{ message.content }}",
    "{{ '<think>\n\n</think>\n\n' if message.role == 'assistant' else '' }}{{ message.content }}",
)
# Adds a reminder to the first question once there is a second one.
REWRITES_QUESTION = PLAIN.replace(
    "{{ message.content }}", "{{ message.content }}{{ ' (answered)' if not loop.last else '' }}"
)
# Like Llama 2's chat form: an instruction in brackets, and white space around the answer before the end of its turn.
LLAMA2_LIKE = (
    _LOOP + "{% if message.role == 'user' %}{{ bos_token }}[Q] {{ message.content | trim }} [/Q]"
    + "{% elif message.role == 'assistant' %} {{ message.content | trim }} {{ eos_token }}"
    + "{% else %}{{ raise_exception('who is ' + message.role) }}{% endif %}" + _CLOSE
)  # fmt: skip
# Like deepseek-coder's: headings as text, a line break before the end of the answer's turn.
HEADINGS_LIKE = (
    "{{ bos_token }}" + _LOOP
    + "{% if message.role == 'user' %}## Asked:\n{{ message.content }}\n{% else %}## Answered:\n{{ message.content }}\n</turn>\n{% endif %}"
    + _CLOSE + "{% if add_generation_prompt %}## Answered:\n{% endif %}"
)  # fmt: skip
# Like some of Mistral's: no space before the end of turn, spaces inside of the brackets.
MISTRAL_LIKE = (
    "{{ bos_token }}" + _LOOP
    + "{% if message.role == 'user' %}[Q] {{ message.content }} [/Q]{% else %} {{ message.content }}{{ eos_token }}{% endif %}"
    + _CLOSE
)  # fmt: skip
# Like GLM's: the next turn's mark ends the assistant's, behind a line break.
NEXT_TURN_ENDS = (
    "{{ bos_token }}" + _LOOP + "<turn>{{ message.role }}\n{{ message.content }}\n" + _CLOSE
    + "{% if add_generation_prompt %}<turn>assistant\n{% endif %}"
)  # fmt: skip
# Numbers its turns.
NUMBERS = (
    _LOOP + "{% if message.role == 'user' %}<turn>{{ loop.index0 // 2 + 1 }}: {{ message.content }}\n"
    + "{% else %}{{ message.content }}</turn>\n{% endif %}" + _CLOSE
)  # fmt: skip


def byte_tokenizer(template: str = PLAIN) -> Any:
    """Byte-level BPE without merges: a token a byte, whatever the text; and SPECIAL."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {piece: number for number, piece in enumerate([*SPECIAL, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>",
        additional_special_tokens=["<turn>", "</turn>"], clean_up_tokenization_spaces=False,
    )  # fmt: skip
    fast.add_tokens(["<think>", "</think>"])
    fast.chat_template = template
    return fast


def space_tokenizer(template: str = PLAIN) -> Any:
    """Letters with `▁` for spaces, one put before every text, as SentencePiece does; bytes for what has no letter."""
    from tokenizers import Tokenizer, decoders, models, normalizers
    from transformers import PreTrainedTokenizerFast

    letters = [chr(code) for code in range(33, 127)]
    pieces = ["<unk>", *SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *letters, "▁▁", "▁A", "▁▁▁▁"]
    merges = [("▁", "▁"), ("▁▁", "▁▁"), ("▁", "A")]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<bos>", eos_token="<eos>", pad_token="<pad>",
        additional_special_tokens=["<turn>", "</turn>"], clean_up_tokenization_spaces=False,
    )  # fmt: skip
    fast.chat_template = template
    return fast
