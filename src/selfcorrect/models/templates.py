"""Which chat template a model is given, and which of a recipe's template options it can read."""

import contextlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selfcorrect.config import PLAIN_TEMPLATE, ModelConfig
from selfcorrect.errors import ModelError

# Only the assistant's turn ends with a token: it is the turn that is sampled, and a base model that met its
# end-of-document token right after the question would not look back at it.
_PLAIN = (
    "{% for message in messages %}"
    "{{ message.role | capitalize }}:\n{{ message.content }}{{ eos_token if message.role == 'assistant' }}\n\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}Assistant:\n{% endif %}"
)
_GIVEN = {  # what a template is rendered with in any case
    "messages", "add_generation_prompt", "tools", "documents", "raise_exception", "strftime_now",
}  # fmt: skip
_MEANT = {
    **dict.fromkeys(("0", "0.0", "no", "off", "none", "null", ""), False),
    **dict.fromkeys(("1", "1.0", "yes", "on"), True),
}
_SYSTEM, _USER, _ANSWER = "@@system-turn-7f3a@@", "@@user-turn-7f3a@@", "@@assistant-turn-7f3a@@"
_GENERATION_TAG = re.compile(r"\{%-?\s*(end)?generation\s*-?%\}")  # transformers' own; it reads nothing


@dataclass(frozen=True, slots=True)
class System:
    """What stands before every conversation: a system turn, or the beginning of the first question (first_user)."""

    text: str
    first_user: bool = False

    def before(self, messages: Sequence[Mapping[str, str]]) -> list[dict[str, str]]:
        """The messages of a conversation with it."""
        if not self.first_user:
            return [{"role": "system", "content": self.text}, *map(dict, messages)]
        first, *rest = map(dict, messages)
        return [{**first, "content": f"{self.text}\n\n{first['content']}"}, *rest]


def system_of(config: ModelConfig) -> System | None:
    """What model.system_prompt puts before every conversation."""
    text = config.system_prompt
    return None if text is None else System(text, config.system_as == "first_user")


def choose(tokenizer: Any, choice: str | None) -> None:
    """Give the tokenizer the template that model.chat_template names: `plain`, or a file. It is saved with the model.

    Of several of its own it keeps the one that conversations are rendered with. Raises ModelError where the file cannot
    be read, `plain` has no token to end a turn with, or none of several is the default.
    """
    if choice is None:
        if isinstance(getattr(tokenizer, "chat_template", None), dict):  # saved as a folder
            tokenizer.chat_template = template_of(tokenizer)
        return
    if choice != PLAIN_TEMPLATE:
        tokenizer.chat_template = _read(Path(choice), choice)
        return
    if not tokenizer.eos_token:
        raise ModelError("model.chat_template = 'plain' ends turns with the tokenizer's eos_token, and it has none")
    begins = str(begins_with_bos(tokenizer)).lower()
    tokenizer.chat_template = f"{{% if bos | default({begins}) %}}{{{{ bos_token }}}}{{% endif %}}{_PLAIN}"


def begins_with_bos(tokenizer: Any) -> bool:
    """Whether the tokenizer itself puts its beginning-of-sequence token before a text, as its model was trained."""
    bos = tokenizer.bos_token_id
    return bos is not None and list(tokenizer("a")["input_ids"])[:1] == [bos]


def lacks_bos(tokenizer: Any, options: Mapping[str, Any], first_prompt: Sequence[int]) -> str:
    """A note where a conversation begins without a token that the model may need before every text; else empty."""
    bos, token = tokenizer.bos_token_id, tokenizer.bos_token
    if bos is None or bos in first_prompt:
        return ""
    if begins_with_bos(tokenizer):
        return (
            f"the tokenizer puts {token} before every text, and the chat template writes none: if the model was "
            "trained with it, a template that begins with {{ bos_token }} serves better (model.chat_template: FILE)"
        )
    if str(tokenizer.chat_template).endswith(_PLAIN) and bos != tokenizer.eos_token_id and "bos" not in options:
        return (
            f"the tokenizer has {token} and does not put it before a text, so chat_template: plain does not either; a "
            f"model that was trained with it (Gemma, Llama) writes nonsense without: set model.template_options: "
            "{bos: true}, or bos: false where it was not"
        )
    return ""


def template_of(tokenizer: Any) -> str:
    """The template that conversations are rendered with. Raises ModelError where there is none."""
    name = getattr(tokenizer, "name_or_path", "?")
    if not getattr(tokenizer, "chat_template", None):
        raise ModelError(
            f"tokenizer of {name!r} has no chat template, so prompts cannot be built; use an instruction-tuned model, "
            "or set model.chat_template: plain (turns as plain text), or model.chat_template: FILE (a Jinja template)"
        )
    try:
        return str(tokenizer.get_chat_template())
    except ValueError as error:  # several, none of which is the default
        raise ModelError(f"tokenizer of {name!r}: {error}; set model.chat_template: FILE to one of them") from error


def refuse_unread(template: str, options: Mapping[str, Any]) -> None:
    """Raises ModelError where an option is none that the template reads."""
    if not options:
        return
    from jinja2 import Environment, TemplateSyntaxError, meta

    environment = Environment(extensions=["jinja2.ext.loopcontrols"])
    try:
        read = meta.find_undeclared_variables(environment.parse(_GENERATION_TAG.sub("", template)))
    except TemplateSyntaxError:
        return  # rendering it tells
    settable = sorted(read - _GIVEN - set(environment.globals))
    for name in options:
        if name not in settable:
            why = "is set by the program" if name in _GIVEN else "is nothing that the chat template reads"
            hint = f"it reads {', '.join(settable)}" if settable else "it reads no options"
            raise ModelError(f"model.template_options.{name} {why}, so it would change nothing; {hint}")


def refuse_unread_system(system: System, rendered: Callable[[Sequence[Mapping[str, str]]], str]) -> None:
    """Raises ModelError where the template has no system turn of its own, or moves it behind an earlier answer.

    rendered(messages): what the template makes of a conversation; it may raise ModelError.
    """
    if why := "" if system.first_user else _no_system_turn(rendered):
        raise ModelError(
            f"model.system_prompt: {why}; model.system_as: first_user writes it before the first question instead, and "
            "task.prompt can hold it too"
        )


def _no_system_turn(rendered: Callable[[Sequence[Mapping[str, str]]], str]) -> str:
    """Why a template cannot serve with a system turn; empty where it can."""

    def opening(role: str) -> str:
        return rendered([{"role": role, "content": _SYSTEM}, question])

    question = {"role": "user", "content": _USER}
    try:
        first = opening("system")
        more = [{"role": "assistant", "content": _ANSWER}, {"role": "user", "content": "another question"}]
        later = rendered([{"role": "system", "content": _SYSTEM}, question, *more])
    except ModelError as error:
        return f"the chat template has no system turn ({str(error.__cause__ or error).strip()})"
    if _SYSTEM not in first:
        return "the chat template leaves the system turn out"
    if first.find(_SYSTEM) > first.find(_USER):
        return "the chat template writes the system turn after the first question"
    if not 0 <= later.find(_SYSTEM) < later.find(_ANSWER):
        return "the chat template moves the system turn behind the first answer, which was written without it"
    for role, like in (("assistant", "an answer"), ("user", "a question")):
        with contextlib.suppress(ModelError):  # it insists on taking turns
            if opening(role) == first:
                return f"the chat template writes a system turn like {like}"
    return ""


def idle_options(options: Mapping[str, Any], rendered: Callable[[Mapping[str, Any]], str]) -> list[str]:
    """A note on each option that changes nothing. Raises ModelError where true or false in its place would.

    rendered(options): what the template makes of a conversation.
    """
    notes, whole = [], rendered(options)
    for name, value in options.items():
        if rendered({key: other for key, other in options.items() if key != name}) != whole:
            continue
        meant = None if isinstance(value, bool) else _MEANT.get(str(value).strip().casefold())
        if meant is not None and rendered({**options, name: meant}) != whole:
            word = str(meant).lower()
            raise ModelError(
                f"model.template_options.{name} = {value!r} changes nothing in what the chat template writes, where "
                f"{word} would; write {name}: {word}, or leave it out"
            )
        notes.append(f"model.template_options.{name} = {value!r} changes nothing in what the chat template writes")
    return notes


def _read(file: Path, shown: str) -> str:
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        why = "no such file" if isinstance(error, FileNotFoundError) else f"cannot be read: {error}"
        raise ModelError(
            f"model.chat_template = {shown!r}: {why}; name a file with a Jinja template, write plain, or null for the "
            "model's own (one that was trained here has its template with it)"
        ) from None
    if not text.strip():
        raise ModelError(f"model.chat_template = {shown!r}: the file is empty; it must hold a Jinja template")
    return text
