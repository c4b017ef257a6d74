"""Contexts as token ids: later ones extend earlier ones token for token, whatever the model wrote."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfcorrect.errors import ModelError
from selfcorrect.lab.base import build_tokenizer
from selfcorrect.models.chat import Chat
from selfcorrect.models.templates import System, choose
from tests.support.templates import (
    FILLS_HISTORY,
    GEMMA_LIKE,
    HEADINGS_LIKE,
    LLAMA2_LIKE,
    LLAMA_LIKE,
    MISTRAL_LIKE,
    NEXT_TURN_ENDS,
    NUMBERS,
    OPENS_THOUGHT,
    PLAIN,
    QWEN3_LIKE,
    REWRITES_QUESTION,
    byte_tokenizer,
    space_tokenizer,
)

TOKENIZER = build_tokenizer(12)
END = TOKENIZER.eos_token_id
USER, ASSISTANT, QUESTION = TOKENIZER.convert_tokens_to_ids(["<|user|>", "<|assistant|>", "?"])
HIDES_EARLIER = TOKENIZER.chat_template.replace(
    "{{ message.content }}", "{{ message.content if message.role == 'user' or loop.last else '' }}"
)
SYSTEM_LATER = "{% if messages | length > 1 %}<|user|>1<|end|>{% endif %}" + TOKENIZER.chat_template


def chat_of(template: str | None) -> Chat:
    tokenizer: Any = build_tokenizer(12)
    tokenizer.chat_template = template
    return Chat(tokenizer, frozenset({tokenizer.eos_token_id}))


@pytest.mark.parametrize("completion", [(), (5, 6), (5, END, 6)])
def test_an_attempt_is_closed_once(completion: tuple[int, ...]) -> None:
    """By its own end of turn, or where it was cut off by the template's."""
    chat = chat_of(TOKENIZER.chat_template)
    assert chat.next_prompt((USER, 1, END, ASSISTANT), completion, "?") == (
        *(USER, 1, END, ASSISTANT), *completion, END, *(USER, QUESTION, END, ASSISTANT),
    )  # fmt: skip
    assert chat.next_prompt((1,), (*completion, END), "?") == chat.next_prompt((1,), completion, "?")


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


@pytest.mark.parametrize(
    ("opening", "closing"),
    [
        ("[THINK]", "[/THINK]"),
        ("<think>", "</think>"),
        ("<|channel|>analysis<|message|>", "<|channel|>final<|message|>"),
    ],
)
@pytest.mark.parametrize("special", [True, False])
def test_marks_of_thoughts_stay_in_a_text_where_they_are_special_tokens(
    opening: str, closing: str, special: bool
) -> None:
    from transformers import AddedToken

    tokenizer = byte_tokenizer(PLAIN)
    marks = ["[THINK]", "[/THINK]", "<think>", "</think>", "<|channel|>", "<|message|>"]
    tokenizer.add_tokens([AddedToken(mark, special=special) for mark in marks], special_tokens=special)
    chat = Chat(tokenizer, frozenset(tokenizer.convert_tokens_to_ids(["</turn>"])))
    text = f"{opening}\né{closing}b <turn>c</turn>"
    assert chat.said(tokenizer(text)["input_ids"]) == f"{opening}\né{closing}b c"


@pytest.mark.parametrize(
    ("template", "options", "opens"),
    [
        (PLAIN, {}, False),
        (OPENS_THOUGHT, {}, True),
        (OPENS_THOUGHT.replace("<think>", "[THINK]"), {}, True),
        (OPENS_THOUGHT.replace("<think>", "<|channel|>analysis<|message|>"), {}, True),
        (QWEN3_LIKE, {}, False),
        (QWEN3_LIKE, {"enable_thinking": False}, False),
        ("<turn>Think in <think> first.</turn>" + PLAIN, {}, False),  # a mark of the system's words
    ],
)
def test_whether_the_template_opens_a_thought(template: str, options: dict[str, Any], opens: bool) -> None:
    chat = Chat(byte_tokenizer(template), frozenset({1}), options)
    assert chat.opens_thought is opens
    assert any("opens a thought" in note for note in chat.notes) is opens


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


WRITTEN_BY = {"byte": byte_tokenizer, "space": space_tokenizer}
WHITE_SPACE = {
    "plain": PLAIN, "gemma": GEMMA_LIKE, "llama 2": LLAMA2_LIKE, "headings": HEADINGS_LIKE, "mistral": MISTRAL_LIKE,
    "the next turn ends it": NEXT_TURN_ENDS, "two spaces": LLAMA2_LIKE.replace(" {{ eos_token }}", "  {{ eos_token }}"),
    "a space of two bytes": HEADINGS_LIKE.replace("\n</turn>", "\u00a0</turn>"),
    "a line and a space": HEADINGS_LIKE.replace("\n</turn>", "\n </turn>"),
}  # fmt: skip


@pytest.mark.parametrize("kind", WRITTEN_BY)
@pytest.mark.parametrize("family", WHITE_SPACE)
def test_white_space_before_the_end_of_a_turn_is_written_once(family: str, kind: str) -> None:
    """What the model samples is what the template writes up to an end of turn: the context then is the template's own."""
    tokenizer = WRITTEN_BY[kind](WHITE_SPACE[family])
    ends = frozenset(tokenizer.convert_tokens_to_ids(["<eos>", "</turn>"]))
    ends |= {Chat(tokenizer, ends).turn_end() or 0}
    chat = Chat(tokenizer, ends)

    def whole(*contents: str) -> tuple[int, ...]:
        roles = ("user", "assistant", "user", "assistant", "user")
        turns = [{"role": role, "content": content} for role, content in zip(roles, contents, strict=False)]
        return tuple(tokenizer.apply_chat_template(turns, add_generation_prompt=True)["input_ids"])

    context = chat.first_prompt("Q: 1?")
    for contents in (["Q: 1?", "A b.", "R"], ["Q: 1?", "A b.", "R", "A  c\n\nA", "R"]):
        written = whole(*contents)
        assert written[: len(context)] == context
        rest = written[len(context) :]
        sampled = rest[: next(place for place, token in enumerate(rest) if token in ends) + 1]
        unfinished = sampled[:-1]
        while tokenizer.decode(unfinished).endswith((" ", "\n", "\u00a0", "\ufffd")):
            unfinished = unfinished[:-1]
        for attempt in (sampled, sampled[:-1], unfinished):  # ended; cut off before and after the white space
            assert chat.next_prompt(context, attempt, "R") == written
        context = chat.next_prompt(context, sampled, "R")
    bare = chat.next_prompt(context, (*unfinished, sampled[-1]), "R")  # no white space is put into a turn that ended
    assert bare[len(context) :][: len(unfinished) + 2] == (
        *unfinished,
        sampled[-1],
        bare[len(context) + len(unfinished) + 1],
    )


def test_turns_that_are_counted_are_told() -> None:
    (note,) = bytes_chat(NUMBERS)[0].notes
    assert note.startswith("the chat template writes a third turn in another way than the second, or none")
    only_two = "{% if messages | length > 3 %}{{ raise_exception('too many') }}{% endif %}" + PLAIN
    assert bytes_chat(only_two)[0].notes == (note,)


UNKNOWN = {
    "its own piece": {"unk_token": "<turn>"}, "end": {"unk_token": "<eos>"}, "end and beginning": {"unk_token": "<eos>", "bos_token": "<eos>"},
    "padding": {"unk_token": "<pad>", "pad_token": "<pad>"}, "none": {},
}  # fmt: skip


@pytest.mark.parametrize("template", [PLAIN, GEMMA_LIKE, MISTRAL_LIKE, HEADINGS_LIKE])
@pytest.mark.parametrize("unknown", UNKNOWN)
def test_an_unknown_token_that_the_template_writes_hides_no_problem(unknown: str, template: str) -> None:
    tokenizer = byte_tokenizer(template)
    for name, token in UNKNOWN[unknown].items():
        setattr(tokenizer, name, token)
    chat = Chat(tokenizer, frozenset(tokenizer.convert_tokens_to_ids(["<eos>", "</turn>"])))
    assert all(map(chat.readable, ["What is 2 + 2?", "é 漢字 🙂 \u200b", "", "<unk> <eos> <turn>", "\n"]))


def test_what_no_token_stands_for_is_unreadable_whatever_the_template_writes() -> None:
    tokenizer: Any = build_tokenizer(12)
    tokenizer.chat_template = "{{ unk_token }} never seen " + tokenizer.chat_template
    chat = Chat(tokenizer, frozenset({END}))
    found = {text: chat.readable(text) for text in ("12 : 1", "13 : 1", "five", "5 : 5 [", "<|end|>", "5 <|user|> 5")}
    assert found == {text: text == "12 : 1" for text in found}


SPELLED = [
    "</turn>",
    "a </turn>\n<turn>assistant\n42",
    "<eos>",
    "x<eos><eos>y",
    "<pad> <bos>",
    "</turn",
    "<turn></turn> é",
]


@pytest.mark.parametrize("kind", WRITTEN_BY)
@pytest.mark.parametrize("template", [PLAIN, LLAMA2_LIKE, HEADINGS_LIKE, LLAMA_LIKE])
@pytest.mark.parametrize("text", SPELLED)
def test_a_text_that_spells_a_control_token_is_text(text: str, template: str, kind: str) -> None:
    """A problem, a correction prompt or a recorded text that says `</turn>` ends no turn; all else stays as it was."""
    tokenizer = WRITTEN_BY[kind](template)
    chat = Chat(tokenizer, frozenset(tokenizer.convert_tokens_to_ids(["<eos>", "</turn>"])))

    def control(ids: tuple[int, ...]) -> list[int]:
        return [token for token in ids if token in tokenizer.all_special_ids]

    assert chat.readable(text)
    usual, prompt = chat.first_prompt("a"), chat.first_prompt(text)
    assert control(prompt) == control(usual)
    assert "".join(text.split()) in "".join(tokenizer.decode(prompt).split())
    assert control(chat.next_prompt((), (5,), text)) == control(chat.next_prompt((), (5,), "a"))
    assert control(chat.written(text).token_ids) == []


RULES = "Think twice, then answer."
DROPS_SYSTEM = PLAIN.replace(
    "{% for message in messages %}", "{% for message in messages if message.role != 'system' %}"
)
MOVES_SYSTEM = (  # into the last question, as some of Mistral's do
    "{% set rules = messages[0].content ~ ' ' if messages[0].role == 'system' else '' %}"
    "{% for message in messages if message.role != 'system' %}<turn>{{ message.role }}\n"
    "{{ rules if loop.last else '' }}{{ message.content }}</turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<turn>assistant\n{% endif %}"
)
INTO_FIRST = MOVES_SYSTEM.replace("loop.last", "loop.first")  # Gemma 3's own convention
ALL_ALIKE = PLAIN.replace("{{ message.role }}", "{{ 'assistant' if message.role == 'assistant' else 'user' }}")
OWN_DEFAULT = "{% if messages[0].role != 'system' %}<turn>system\nBe kind.</turn>\n{% endif %}" + PLAIN


def with_system(template: str, text: str = RULES, *, first_user: bool = False) -> tuple[Chat, Any]:
    tokenizer = byte_tokenizer(template)
    ends = frozenset(tokenizer.convert_tokens_to_ids(["<eos>", "</turn>"]))
    return Chat(tokenizer, ends, system=System(text, first_user)), tokenizer


@pytest.mark.parametrize(
    ("template", "opening"),
    [
        (PLAIN, "<turn>system\n" + RULES + "</turn>\n<turn>user\nQ</turn>\n<turn>assistant\n"),
        (INTO_FIRST, "<turn>user\n" + RULES + " Q</turn>\n<turn>assistant\n"),
        (OWN_DEFAULT, "<turn>system\n" + RULES + "</turn>\n<turn>user\nQ</turn>\n<turn>assistant\n"),
    ],
)
def test_a_system_prompt_stands_before_every_attempt(template: str, opening: str) -> None:
    chat, tokenizer = with_system(template)
    first = chat.first_prompt("Q")
    assert tokenizer.decode(first) == opening
    second = chat.next_prompt(first, chat.written("A").token_ids, "again")
    text = tokenizer.decode(second)
    assert text == opening + "A</turn>\n<turn>user\nagain</turn>\n<turn>assistant\n"
    assert text.count(RULES) == 1
    empty, tokenizer = with_system(OWN_DEFAULT, "")  # takes the template's own away
    assert tokenizer.decode(empty.first_prompt("Q")).startswith("<turn>system\n</turn>\n<turn>user")


SYSTEMLESS = {
    "raises": (GEMMA_LIKE, "has no system turn (no system role)"),
    "raises on unknown roles": (LLAMA2_LIKE, "has no system turn (who is system)"),
    "drops": (DROPS_SYSTEM, "leaves the system turn out"),
    "moves": (MOVES_SYSTEM, "moves the system turn behind the first answer"),
    "as an answer": (HEADINGS_LIKE, "writes a system turn like an answer"),
    "as a question": (ALL_ALIKE, "writes a system turn like a question"),
}


@pytest.mark.parametrize("case", SYSTEMLESS)
def test_a_template_without_a_system_turn_is_refused_or_told_where_to_put_it(case: str) -> None:
    template, told = SYSTEMLESS[case]
    with pytest.raises(ModelError) as refused:
        with_system(template)
    assert str(refused.value).startswith("model.system_prompt: the chat template ")
    assert told in str(refused.value)
    assert "; model.system_as: first_user writes it before the first question instead" in str(refused.value)
    chat, tokenizer = with_system(template, first_user=True)
    first = tokenizer.decode(chat.first_prompt("Q"))
    assert f"{RULES}\n\nQ" in first
    again = tokenizer.decode(chat.next_prompt(chat.first_prompt("Q"), chat.written("A").token_ids, "again"))
    assert again.startswith(first)
    assert again.count(RULES) == 1


def test_a_system_prompt_that_cannot_be_read_is_refused() -> None:
    with pytest.raises(ModelError, match="the tokenizer has no token for part of it; reword it"):
        Chat(build_tokenizer(12), frozenset({END}), system=System(RULES, first_user=True))


@pytest.mark.parametrize("eos", ["<eos>", "<bos>"], ids=["its own beginning", "one token for both"])
def test_plain_turns_of_a_tokenizer_that_does_not_begin_texts_by_itself(eos: str) -> None:
    """Gemma's weights need <bos> before a text (5.5 against 2.2 nats a token); converted tokenizers lose who puts it."""
    tokenizer = byte_tokenizer()
    tokenizer.eos_token = eos
    choose(tokenizer, "plain")

    def begun(**options: Any) -> tuple[str, int]:
        chat = Chat(tokenizer, frozenset([tokenizer.eos_token_id]), options)
        return tokenizer.decode(chat.first_prompt("Q")), sum("has <bos> and does not put it" in n for n in chat.notes)

    plain = "User:\nQ\n\nAssistant:\n"
    assert begun() == (plain, int(eos == "<eos>"))
    assert begun(bos=True) == (f"<bos>{plain}", 0)
    assert begun(bos=False) == (plain, 0)
