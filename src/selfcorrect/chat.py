"""Messages -> token ids (floor 1). A later attempt's ids extend the earlier ids token for token.

Texts that a model wrote are never tokenised again: the context of attempt 2 is the ids of attempt 1's
prompt, the ids that were sampled, and the ids of what the chat template puts after an assistant's turn up
to the next one. That last part is read off the template once per correction prompt, with a marker standing
in for the assistant's text.
"""

from collections.abc import Sequence
from typing import Any

from selfcorrect.errors import ModelError

_MARKER = "@@assistant-turn-7f3a@@"


class Chat:
    """A tokenizer's chat template as token ids.

    eos_ids: every id that ends an assistant's turn. Raises ModelError where the tokenizer has no chat
    template, or has one that rewrites earlier turns.
    """

    def __init__(self, tokenizer: Any, eos_ids: frozenset[int]) -> None:
        if not getattr(tokenizer, "chat_template", None):
            raise ModelError(
                f"tokenizer of {getattr(tokenizer, 'name_or_path', '?')!r} has no chat template, so prompts cannot be "
                "built; use an instruction-tuned model, or add a chat_template.jinja to the folder"
            )
        self._tokenizer = tokenizer
        self._eos_ids = eos_ids
        self._between: dict[str, tuple[int, ...]] = {}
        self._between_turns("a question")  # a template that cannot serve is refused before anything is sampled

    def first_prompt(self, user: str) -> tuple[int, ...]:
        """The context `x_1` of attempt 1 as ids [P]."""
        return self._encode(self._render([("user", user)]))

    def next_prompt(self, prompt_ids: Sequence[int], completion_ids: Sequence[int], user: str) -> tuple[int, ...]:
        """The context of the next attempt: prompt_ids + completion_ids + the correction turn, as ids.

        A completion that was cut off has no end token; the template's own end of turn then closes it.
        """
        between = self._between_turns(user)
        if completion_ids and completion_ids[-1] in self._eos_ids and between and between[0] in self._eos_ids:
            between = between[1:]
        return (*prompt_ids, *completion_ids, *between)

    def turn_end(self) -> int | None:
        """The special token that the template puts after an assistant's turn, if it puts one."""
        between = self._between_turns("a question")
        special = {*self._tokenizer.all_special_ids, *self._tokenizer.added_tokens_decoder}
        return between[0] if between and between[0] in special else None

    def readable(self, prompt_ids: Sequence[int]) -> bool:
        """False where the tokenizer had to write its unknown token."""
        unknown = self._tokenizer.unk_token_id
        return unknown is None or unknown not in prompt_ids

    def decode(self, ids: Sequence[int]) -> str:
        """Completion ids -> text without special tokens."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True))

    def _between_turns(self, user: str) -> tuple[int, ...]:
        if user not in self._between:
            first = "a first question"
            whole = self._render([("user", first), ("assistant", _MARKER), ("user", user)])
            opening = self._render([("user", first)])
            head, marker, tail = whole.partition(_MARKER)
            # Some templates put a space before the assistant's text: the model then samples that itself.
            if not marker or _MARKER in tail or head.rstrip() != opening.rstrip() or not head.startswith(opening):
                raise ModelError(
                    "the chat template rewrites earlier turns (the text before the second assistant turn differs from "
                    "the first prompt), so attempt 2 could not extend attempt 1's ids; use a template without that"
                )
            self._between[user] = self._encode(tail)
        return self._between[user]

    def _render(self, turns: Sequence[tuple[str, str]]) -> str:
        messages = [{"role": role, "content": content} for role, content in turns]
        try:
            return str(self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
        except Exception as error:  # templates are programs of the model's author and may raise anything
            raise ModelError(f"the chat template fails on a plain conversation: {error}") from error

    def _encode(self, text: str) -> tuple[int, ...]:
        return tuple(self._tokenizer(text, add_special_tokens=False)["input_ids"])
