"""Messages -> token ids. A later attempt's ids extend the earlier ids token for token.

Texts that a model wrote are never tokenised again: the context of attempt 2 is the ids of attempt 1's
prompt, the ids that were sampled, and the ids of what the chat template puts after an assistant's turn up
to the next one. That last part is read off the template once per correction prompt, with a marker standing
in for the assistant's text.
"""

from collections.abc import Callable, Mapping, Sequence
from datetime import date
from functools import lru_cache
from typing import Any

from selfcorrect.errors import ModelError
from selfcorrect.grading.thoughts import is_mark, leaves_thought_open
from selfcorrect.models import templates
from selfcorrect.types import Completion

_MARKER = "@@assistant-turn-7f3a@@"
_USER_MARKER = "@@user-turn-7f3a@@"
_BEFORE = "a"  # stands before a tail that is tokenised, so that no tokenizer takes it for the beginning of a text
_THOUGHT = "<think>\n@@thought-7f3a@@\n</think>\n\n"
_DATE = date(2024, 7, 26)  # any date would do; it must not change while a run goes on


def _fixed_date(form: str) -> str:
    """Stands in for a template's clock."""
    return _DATE.strftime(form)


class Chat:
    """A tokenizer's chat template as token ids.

    eos_ids: every id that ends an assistant's turn. options: variables for the template, like enable_thinking.
    system: what stands before every conversation.
    opens_thought: whether the template begins the turn to be written inside of a thought.
    notes: what the template does that a user should know of. Raises ModelError where the tokenizer has no chat
    template, or has one that rewrites earlier turns, and where an option or the system prompt is not read or means
    something else.
    """

    system: templates.System | None = None

    def __init__(
        self, tokenizer: Any, eos_ids: frozenset[int], options: Mapping[str, Any] | None = None,
        system: templates.System | None = None,
    ) -> None:  # fmt: skip
        self._tokenizer = tokenizer
        self._eos_ids = eos_ids
        self._options = dict(options or {})
        templates.refuse_unread(templates.template_of(tokenizer), self._options)
        self._control = frozenset(
            {*tokenizer.all_special_ids}
            | {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
        )
        self._marks = {i for i in self._control if is_mark(str(tokenizer.convert_ids_to_tokens(i)))}
        if system is not None:
            self._render([("user", _MARKER)])  # a template that fails on this too has another fault
            templates.refuse_unread_system(system, self._text)
            if tokenizer.unk_token_id in self._encode(system.text):
                raise ModelError(
                    f"model.system_prompt = {system.text[:60]!r}: the tokenizer has no token for part of it; reword it"
                )
            self.system = system
        self.opens_thought = leaves_thought_open(self._render([("user", _MARKER)]).rpartition(_MARKER)[2])
        self._between_turns: Callable[[str], tuple[tuple[int, ...], int]] = lru_cache(maxsize=1024)(self._read_between)
        self._first: Callable[[str, str], tuple[tuple[int, ...], bool]] = lru_cache(maxsize=4096)(self._read_first)
        self._between_turns("a question")  # a template that cannot serve is refused before anything is sampled
        self.notes = tuple(self._look_for_surprises())

    def first_prompt(self, user: str, system: str = "") -> tuple[int, ...]:
        """The context `x_1` of attempt 1 as ids [P]. Raises ModelError where the template has no place for `system`."""
        return self._first(user, system)[0]

    def conversation(self, messages: Sequence[Mapping[str, str]]) -> tuple[int, ...]:
        """Any number of turns, {"role", "content"}, the user's last -> the context of the next answer as ids [P].

        A system turn of its own stands in place of `system`. Control tokens that a content spells out are read as plain
        text. Raises ModelError where the template has no place for a turn, or the tokenizer no token for part of one.
        """
        shown = [dict(message) for message in messages]
        if self.system and not any(message["role"] == "system" for message in shown):
            shown = self.system.before(shown)
        text = self._text(shown)
        for number, message in enumerate(messages):
            content = message["content"]
            if message["role"] != "assistant" and content.strip() not in text:
                raise ModelError(f"messages[{number}]: the chat template leaves out this {message['role']} turn")
            if self._tokenizer.unk_token_id in self._encode(content):
                raise ModelError(f"messages[{number}]: the model's tokenizer has no token for part of the content")
        if not any(self._control.intersection(self._encode(message["content"])) for message in shown):
            return self._encode(text)
        return self._plainly(text, shown)

    def _plainly(self, text: str, shown: Sequence[Mapping[str, str]]) -> tuple[int, ...]:
        """The rendered conversation as ids, in which no control token comes from a content."""
        markers = [f"{_MARKER}{number}@@" for number in range(len(shown))]
        pattern = self._text([{**turn, "content": marker} for turn, marker in zip(shown, markers, strict=True)])
        inside: list[tuple[int, int]] = []
        whole, place = "", 0
        for turn, marker in zip(shown, markers, strict=True):
            head, found, pattern = pattern.partition(marker)
            content = turn["content"]
            content = content if text.startswith(content, place + len(head)) else content.strip()
            whole += head + content
            place = len(whole)
            inside.append((place - len(content), place))
            if not found:
                break
        if whole + pattern != text or not self._tokenizer.is_fast:
            raise ModelError(
                "messages: a content spells out control tokens of the model, and the chat template changes it in a way "
                "that leaves no telling them apart from its own; leave them out"
            )
        return self._apart(text, inside)

    def readable(self, user: str) -> bool:
        """False where the tokenizer has no token for part of the user's text.

        A control token that the text spells out is read as plain text; where it cannot be, the text is not readable.
        """
        return self._first(user, "")[1]

    def next_prompt(self, prompt_ids: Sequence[int], completion_ids: Sequence[int], user: str) -> tuple[int, ...]:
        """The context of the next attempt: prompt_ids + completion_ids + the correction turn, as ids.

        A completion that was cut off has no end token; the template's own end of turn then closes it. White space that
        the template puts before its end of turn is the model's to write: it is not written a second time.
        """
        between, blank = self._between_turns(user)
        if completion_ids and completion_ids[-1] in self._eos_ids:
            if between[blank : blank + 1] and between[blank] in self._eos_ids:
                between = between[blank + 1 :]
        elif blank and completion_ids and (not (end := self.decode(completion_ids[-8:])) or end[-1].isspace()):
            between = between[blank:]
        return (*prompt_ids, *completion_ids, *between)

    def written(self, text: str) -> Completion:
        """A recorded text as if it had been sampled: its ids, without an end token (the template closes the turn)."""
        ids = self._encode_plainly(text)
        return Completion(ids, (0.0,) * len(ids), text, "stop")

    def turn_end(self) -> int | None:
        """The special token that the template puts after an assistant's turn, if it puts one."""
        between, blank = self._between_turns("a question")
        first = between[blank : blank + 1]
        special = {*self._tokenizer.all_special_ids, *self._tokenizer.added_tokens_decoder}
        return first[0] if first and first[0] in special else None

    @property
    def vocabulary(self) -> int:
        """How many token ids there are."""
        return len(self._tokenizer)

    def decode(self, ids: Sequence[int]) -> str:
        """Completion ids -> text without special tokens, but for those that mark thoughts."""
        if self._marks.isdisjoint(ids):
            return str(self._tokenizer.decode(list(ids), skip_special_tokens=True))
        kept = [i for i in ids if i in self._marks or i not in self._control]
        return str(self._tokenizer.decode(kept, skip_special_tokens=False))

    def said(self, ids: Sequence[int]) -> str:
        """The text of a completion: without the token that ends the turn, where it has one."""
        return self.decode(ids[:-1] if ids and ids[-1] in self._eos_ids else ids)

    def _read_between(self, user: str) -> tuple[tuple[int, ...], int]:
        """The ids that follow an assistant's text, and how many of them are white space before the end of its turn."""
        ids = self._encode_tail(user)
        return ids, self._leading_blanks(ids)

    def _encode_tail(self, user: str) -> tuple[int, ...]:
        """The tail's ids where a text stands before it: many tokenizers put a space before the beginning of a text."""
        before = self._encode(_BEFORE)
        ids = self._ids(lambda text: _BEFORE + self._tail(text), user)[0]
        if ids[: len(before)] == before and self._tokenizer.unk_token_id not in before:
            return ids[len(before) :]
        return self._ids(self._tail, user)[0]

    def _tail(self, user: str) -> str:
        """What the template puts after an assistant's text, up to that of the next turn."""
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
        return tail

    def _leading_blanks(self, ids: Sequence[int]) -> int:
        """How many ids stand before the first control token, if they are white space (of which an id may be a part)."""
        ends = self._eos_ids | self._control
        place = next((place for place, token in enumerate(ids) if token in ends), 0)
        return 0 if self.decode(ids[:place]).strip() else place

    def _read_first(self, user: str, system: str) -> tuple[tuple[int, ...], bool]:
        before = [("system", system)] if system else []
        if system.strip() not in self._render([*before, ("user", _USER_MARKER)]):
            raise ModelError("the chat template leaves out a system turn")
        return self._ids(lambda text: self._render([*before, ("user", text)]), user)

    def _ids(self, render: Callable[[str], str], user: str) -> tuple[tuple[int, ...], bool]:
        """render(user) as ids, in which no control token comes from the user's text; and whether that can be read."""
        text, unknown = render(user), self._tokenizer.unk_token_id
        own = self._encode(user)
        if not self._control.intersection(own):
            return self._encode(text), unknown not in own
        plain = self._encode_plainly(user)
        head, marker, tail = render(_USER_MARKER).partition(_USER_MARKER)
        readable = not self._control.intersection(plain)
        if not (readable and marker and self._tokenizer.is_fast and text.startswith(head) and text.endswith(tail)):
            return self._encode(text), False
        return self._apart(text, [(len(head), len(text) - len(tail))]), True

    def _apart(self, text: str, inside: Sequence[tuple[int, int]]) -> tuple[int, ...]:
        """A rendered text as ids, in which no control token comes from these spans of it."""
        read = self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        ids: list[int] = []
        for token, (begin, end) in zip(read["input_ids"], read["offset_mapping"], strict=True):
            spelled = token in self._control and any(low <= begin and end <= high for low, high in inside)
            ids += self._encode_plainly(text[begin:end]) if spelled else [token]
        return tuple(ids)

    def _look_for_surprises(self) -> list[str]:
        """Things a template does that change no id of ours, or that are taken care of, in one line each."""
        notes = []
        if self.opens_thought:
            notes.append("the chat template opens a thought: only what follows the mark that closes it is graded")
        question = [("user", "a question")]
        if self._render(question) != self._render(question, {**self._options, "strftime_now": lambda form: "@@date@@"}):
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
        answered = [*question, ("assistant", "an answer"), *question]
        third = self._shown([*answered, ("assistant", _MARKER), *question], self._options)
        if third.partition(_MARKER)[2] != self._tail("a question"):
            notes.append(
                "the chat template writes a third turn in another way than the second, or none; here attempt 3 and "
                "later ones are asked for as attempt 2 is"
            )
        if told := templates.lacks_bos(self._tokenizer, self._options, self.first_prompt("a")):
            notes.append(told)
        both = (question, answered)
        return notes + templates.idle_options(
            self._options, lambda options: "\n".join(self._shown(turns, options) for turns in both)
        )

    def _shown(self, turns: Sequence[tuple[str, str]], options: Mapping[str, Any]) -> str:
        """The conversation as text, or why the template has none for it."""
        try:
            return self._render(turns, options)
        except ModelError as error:
            return str(error)

    def _render(self, turns: Sequence[tuple[str, str]], options: Mapping[str, Any] | None = None) -> str:
        messages = [{"role": role, "content": content} for role, content in turns]
        return self._text(self.system.before(messages) if self.system else messages, options)

    def _text(self, messages: Sequence[Mapping[str, str]], options: Mapping[str, Any] | None = None) -> str:
        given = {"strftime_now": _fixed_date, **(self._options if options is None else options)}
        try:
            return str(
                self._tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True, **given)
            )
        except Exception as error:  # templates are programs of the model's author and may raise anything
            roles = ", ".join(message["role"] for message in messages)
            raise ModelError(
                f"the chat template fails on a plain conversation: {error} (turns: {roles}); "
                "model.chat_template: plain, or FILE, names another"
            ) from error

    def _encode(self, text: str) -> tuple[int, ...]:
        return tuple(self._tokenizer(text, add_special_tokens=False)["input_ids"])

    def _encode_plainly(self, text: str) -> tuple[int, ...]:
        """Text as text: control tokens that it spells out are letters like others."""
        return tuple(self._tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"])
