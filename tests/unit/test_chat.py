"""Contexts as token ids: later ones extend earlier ones token for token, whatever the model wrote."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfcorrect.errors import ModelError
from selfcorrect.lab.base import build_tokenizer
from selfcorrect.models.chat import Chat
from tests.support.templates import (
    FILLS_HISTORY,
    GEMMA_LIKE,
    LLAMA_LIKE,
    OPENS_THOUGHT,
    PLAIN,
    QWEN3_LIKE,
    REWRITES_QUESTION,
    byte_tokenizer,
)

TOKENIZER = build_tokenizer(12)
END = TOKENIZER.eos_token_id
USER, ASSISTANT, QUESTION = TOKENIZER.convert_tokens_to_ids(["<|user|>", "<|assistant|>", "?"])
STRIPS = TOKENIZER.chat_template.replace("{{ message.content }}", "{{ message.content | trim }}")
HIDES_EARLIER = TOKENIZER.chat_template.replace(
    "{{ message.content }}", "{{ message.content if message.role == 'user' or loop.last else '' }}"
)
SYSTEM_LATER = "{% if messages | length > 1 %}<|user|>1<|end|>{% endif %}" + TOKENIZER.chat_template


def chat_of(template: str | None) -> Chat:
    tokenizer: Any = build_tokenizer(12)
    tokenizer.chat_template = template
    return Chat(tokenizer, frozenset({tokenizer.eos_token_id}))


def test_first_prompt_is_the_template() -> None:
    five, colon = TOKENIZER.convert_tokens_to_ids(["5", ":"])
    assert chat_of(TOKENIZER.chat_template).first_prompt("5 : 5") == (USER, five, colon, five, END, ASSISTANT)


def test_a_finished_attempt_is_closed_once() -> None:
    chat = chat_of(TOKENIZER.chat_template)
    assert chat.next_prompt((USER, 1, END, ASSISTANT), (5, 6, END), "?") == (
        *(USER, 1, END, ASSISTANT), *(5, 6, END), *(USER, QUESTION, END, ASSISTANT),
    )  # fmt: skip


@pytest.mark.parametrize("completion", [(), (5, 6), (5, END, 6)])
def test_a_truncated_attempt_is_closed_by_the_template(completion: tuple[int, ...]) -> None:
    chat = chat_of(TOKENIZER.chat_template)
    assert chat.next_prompt((USER, 1, END, ASSISTANT), completion, "?") == (
        *(USER, 1, END, ASSISTANT), *completion, END, *(USER, QUESTION, END, ASSISTANT),
    )  # fmt: skip


def test_an_end_token_that_the_template_does_not_write_still_ends_the_turn_by_the_template() -> None:
    """The model may end with any of several ids; the template's own end is skipped only where it would double."""
    chat = Chat(TOKENIZER, frozenset({END, 7}))
    assert chat.next_prompt((1,), (5, 7), "?") == (1, 5, 7, USER, QUESTION, END, ASSISTANT)


@given(st.lists(st.integers(0, len(TOKENIZER) - 1), max_size=12), st.lists(st.integers(0, len(TOKENIZER) - 1)))
def test_any_ids_are_extended_token_for_token(prompt: list[int], completion: list[int]) -> None:
    extended = chat_of(TOKENIZER.chat_template).next_prompt(prompt, completion, "1 ?")
    assert extended[: len(prompt) + len(completion)] == (*prompt, *completion)
    assert extended[-1] == ASSISTANT


def test_every_correction_prompt_has_its_own_turn() -> None:
    chat = chat_of(TOKENIZER.chat_template)
    ends = [chat.next_prompt((), (END,), user)[-3:] for user in ("1", "2", "1")]
    assert ends == [(1, END, ASSISTANT), (2, END, ASSISTANT), (1, END, ASSISTANT)]


@pytest.mark.parametrize("template", [HIDES_EARLIER, SYSTEM_LATER], ids=["hides_earlier", "changes_the_opening"])
def test_a_template_that_rewrites_earlier_turns_is_refused(template: str) -> None:
    with pytest.raises(ModelError, match="rewrites earlier turns"):
        chat_of(template)


def test_a_template_that_strips_white_space_is_not_refused() -> None:
    assert chat_of(STRIPS).next_prompt((1,), (2, END), "?")[-1] == ASSISTANT


@pytest.mark.parametrize("template", [None, ""])
def test_no_template(template: str | None) -> None:
    with pytest.raises(ModelError, match="has no chat template"):
        chat_of(template)


def test_a_template_that_fails() -> None:
    with pytest.raises(ModelError, match="fails on a plain conversation: only questions"):
        chat_of("{{ raise_exception('only questions') }}")


def test_reading() -> None:
    chat = chat_of(TOKENIZER.chat_template)
    assert chat.readable("12 : 1")
    assert not chat.readable("13 : 1")
    assert chat.decode([5, END, 6]) == "5 6"


def bytes_chat(template: str, **options: object) -> tuple[Chat, Any]:
    tokenizer = byte_tokenizer(template)
    return Chat(tokenizer, frozenset(tokenizer.convert_tokens_to_ids(["<eos>", "</turn>"])), options), tokenizer


FAMILIES: dict[str, tuple[str, dict[str, Any], str, str]] = {
    "plain": (PLAIN, {}, "<turn>user\nQ</turn>\n<turn>assistant\n", "</turn>\n<turn>user\nR</turn>\n<turn>assistant\n"),
    "gemma": (
        GEMMA_LIKE, {}, "<bos><turn>user\nQ</turn>\n<turn>model\n", "</turn>\n<turn>user\nR</turn>\n<turn>model\n",
    ),
    "llama": (
        LLAMA_LIKE, {}, "<bos><turn>system\n\nToday is 26 Jul 2024.</turn><turn>user\n\nQ</turn><turn>assistant\n\n",
        "</turn><turn>user\n\nR</turn><turn>assistant\n\n",
    ),
    "llama, own date": (
        LLAMA_LIKE, {"date_string": "1 May 2025"},
        "<bos><turn>system\n\nToday is 1 May 2025.</turn><turn>user\n\nQ</turn><turn>assistant\n\n",
        "</turn><turn>user\n\nR</turn><turn>assistant\n\n",
    ),
    "qwen3": (
        QWEN3_LIKE, {}, "<turn>user\nQ</turn>\n<turn>assistant\n", "</turn>\n<turn>user\nR</turn>\n<turn>assistant\n",
    ),
    "qwen3, not thinking": (
        QWEN3_LIKE, {"enable_thinking": False}, "<turn>user\nQ</turn>\n<turn>assistant\n<think>\n\n</think>\n\n",
        "</turn>\n<turn>user\nR</turn>\n<turn>assistant\n<think>\n\n</think>\n\n",
    ),
    "opens a thought": (
        OPENS_THOUGHT, {}, "<turn>user\nQ</turn>\n<turn>assistant\n<think>\n",
        "</turn>\n<turn>user\nR</turn>\n<turn>assistant\n<think>\n",
    ),
}  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_the_contexts_of_well_known_families(family: str) -> None:
    """What the model wrote stays as it is, thoughts and white space included; only then comes the next turn."""
    template, options, first, between = FAMILIES[family]
    chat, tokenizer = bytes_chat(template, **options)
    prompt = chat.first_prompt("Q")
    assert tokenizer.decode(prompt) == first
    written = tuple(tokenizer("<think>hm</think> A  ", add_special_tokens=False)["input_ids"])
    end = tokenizer.convert_tokens_to_ids("</turn>")
    for completion in ((*written, end), written):
        context = chat.next_prompt(prompt, completion, "R")
        assert tokenizer.decode(context) == f"{first}<think>hm</think> A  {between}"
    assert context[: len(prompt) + len(written)] == (*prompt, *written)
    assert chat.turn_end() == end
    # A third attempt goes on in the same way.
    third = chat.next_prompt(context, (*written, end), "R")
    assert tokenizer.decode(third) == f"{first}<think>hm</think> A  {between}<think>hm</think> A  {between}"


@pytest.mark.parametrize("template", [FILLS_HISTORY, REWRITES_QUESTION])
def test_a_template_that_changes_what_was_there_is_refused_with_both_texts(template: str) -> None:
    with pytest.raises(
        ModelError, match=r"rewrites earlier turns .* the first prompt ends with '.*', the earlier turn"
    ):
        bytes_chat(template)


def test_what_a_template_does_unasked_is_told() -> None:
    assert bytes_chat(PLAIN)[0].notes == bytes_chat(GEMMA_LIKE)[0].notes == ()
    (note,) = bytes_chat(LLAMA_LIKE)[0].notes
    assert "writes today's date; 26 Jul 2024 is written instead" in note
    assert bytes_chat(LLAMA_LIKE, date_string="1 May 2025")[0].notes == ()
    (note,) = bytes_chat(QWEN3_LIKE)[0].notes
    assert "strips the thoughts of earlier turns; here attempt 2 reads attempt 1 as it was written" in note


def test_a_recorded_text_is_written_without_an_end() -> None:
    chat, tokenizer = bytes_chat(PLAIN)
    written = chat.written("```\nx = 'é'\n```")
    assert tokenizer.decode(written.token_ids) == written.text == "```\nx = 'é'\n```"
    assert (len(written.logprobs), written.finish_reason) == (len(written.token_ids), "stop")
