"""Messages -> token ids. A later attempt's ids extend the earlier ids token for token.

Texts that a model wrote are never tokenised again: the context of attempt 2 is the ids of attempt 1's
prompt, the ids that were sampled, and the ids of what the chat template puts after an assistant's turn up
to the next one. That last part is read off the template once per correction prompt, with a marker standing
in for the assistant's text.
"""

from collections.abc import Mapping, Sequence
from datetime import date
from typing import Any

from selfcorrect.errors import ModelError
from selfcorrect.grading.thoughts import is_mark, leaves_thought_open
from selfcorrect.types import Completion

_MARKER = "@@assistant-turn-7f3a@@"
_THOUGHT = "<think>\n@@thought-7f3a@@\n</think>\n\n"
_DATE = date(2024, 7, 26)  # any date would do; it must not change while a run goes on


def _fixed_date(form: str) -> str:
    """Stands in for a template's clock."""
    return _DATE.strftime(form)


class Chat:
    """A tokenizer's chat template as token ids.

    eos_ids: every id that ends an assistant's turn. options: variables for the template, like enable_thinking.
    opens_thought: whether the template begins the turn to be written inside of a thought.
    notes: what the template does that a user should know of. Raises ModelError where the tokenizer has no chat
    template, or has one that rewrites earlier turns.
    """

    def __init__(self, tokenizer: Any, eos_ids: frozenset[int], options: Mapping[str, Any] | None = None) -> None:
        if not getattr(tokenizer, "chat_template", None):
            raise ModelError(
                f"tokenizer of {getattr(tokenizer, 'name_or_path', '?')!r} has no chat template, so prompts cannot be "
                "built; use an instruction-tuned model, or add a chat_template.jinja to the folder"
            )
        self._tokenizer = tokenizer
        self._eos_ids = eos_ids
        self._options = dict(options or {})
        self._between: dict[str, tuple[int, ...]] = {}
        added = tokenizer.added_tokens_decoder
        self._special = {*tokenizer.all_special_ids, *(i for i, token in added.items() if token.special)}
        self._marks = {i for i in self._special if is_mark(str(tokenizer.convert_ids_to_tokens(i)))}
        self.opens_thought = leaves_thought_open(self._render([("user", _MARKER)]).rpartition(_MARKER)[2])
        self._between_turns("a question")  # a template that cannot serve is refused before anything is sampled
        self.notes = tuple(self._look_for_surprises())

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

    def written(self, text: str) -> Completion:
        """A recorded text as if it had been sampled: its ids, without an end token (the template closes the turn)."""
        ids = self._encode(text)
        return Completion(ids, (0.0,) * len(ids), text, "stop")

    def turn_end(self) -> int | None:
        """The special token that the template puts after an assistant's turn, if it puts one."""
        between = self._between_turns("a question")
        special = {*self._tokenizer.all_special_ids, *self._tokenizer.added_tokens_decoder}
        return between[0] if between and between[0] in special else None

    @property
    def vocabulary(self) -> int:
        """How many token ids there are."""
        return len(self._tokenizer)

    def readable(self, prompt_ids: Sequence[int]) -> bool:
        """False where the tokenizer had to write its unknown token."""
        unknown = self._tokenizer.unk_token_id
        return unknown is None or unknown not in prompt_ids

    def decode(self, ids: Sequence[int]) -> str:
        """Completion ids -> text without special tokens, but for those that mark thoughts."""
        if self._marks.isdisjoint(ids):
            return str(self._tokenizer.decode(list(ids), skip_special_tokens=True))
        kept = [i for i in ids if i in self._marks or i not in self._special]
        return str(self._tokenizer.decode(kept, skip_special_tokens=False))

    def said(self, ids: Sequence[int]) -> str:
        """The text of a completion: without the token that ends the turn, where it has one."""
        return self.decode(ids[:-1] if ids and ids[-1] in self._eos_ids else ids)

    def _between_turns(self, user: str) -> tuple[int, ...]:
        if user not in self._between:
            first = "a first question"
            whole = self._render([("user", first), ("assistant", _MARKER), ("user", user)])
            opening = self._render([("user", first)])
            head, marker, tail = whole.partition(_MARKER)
            # Some templates put a space before the assistant's text: the model then samples that itself.
            same = head.rstrip() == opening.rstrip() and head.startswith(opening)
            # Others open the turn to be written with a prefix (an empty think block) that earlier turns lack: the
            # model did see it, so it stays in the context, and the next turn opens with it too.
            prefix = opening[len(head) :] if opening.startswith(head) else ""
            if not marker or _MARKER in tail or not (same or (prefix and tail.endswith(prefix))):
                raise ModelError(
                    "the chat template rewrites earlier turns (the text before the second assistant turn differs from "
                    "the first prompt), so attempt 2 could not extend attempt 1's ids; use a template without that, or "
                    f"set model.template_options: with {self._options or 'none'} the first prompt ends with "
                    f"{opening[-40:]!r}, the earlier turn begins after {head[-40:]!r}"
                )
            self._between[user] = self._encode(tail)
        return self._between[user]

    def _look_for_surprises(self) -> list[str]:
        """Things a template does that change no id of ours, or that are taken care of, in one line each."""
        notes = []
        if self.opens_thought:
            notes.append("the chat template opens a thought: only what follows the mark that closes it is graded")
        question = [("user", "a question")]
        if self._render(question) != self._render(question, strftime_now=lambda form: "@@date@@"):
            notes.append(
                f"the chat template writes today's date; {_fixed_date('%d %b %Y')} is written instead, so that a run "
                "does not change overnight (model.template_options may set another)"
            )
        earlier = self._render([*question, ("assistant", _THOUGHT + _MARKER), *question])
        if _MARKER in earlier and _THOUGHT.split("\n")[1] not in earlier:
            notes.append(
                "the chat template strips the thoughts of earlier turns; here attempt 2 reads attempt 1 as it was "
                "written, thoughts included"
            )
        return notes

    def _render(self, turns: Sequence[tuple[str, str]], **options: Any) -> str:
        messages = [{"role": role, "content": content} for role, content in turns]
        given = {"strftime_now": _fixed_date, **self._options, **options}
        try:
            return str(
                self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **given)
            )
        except Exception as error:  # templates are programs of the model's author and may raise anything
            raise ModelError(f"the chat template fails on a plain conversation: {error}") from error

    def _encode(self, text: str) -> tuple[int, ...]:
        return tuple(self._tokenizer(text, add_special_tokens=False)["input_ids"])
