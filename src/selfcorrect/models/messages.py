"""Conversations without a tokenizer (an endpoint's, recorded ones), as `play` has them: ids that grow.

One id a character, and ids behind the last character of Unicode between the turns, which no text can spell. What a
model reasoned apart from its answer stands before the answer, between two marks of its own.
"""

from collections.abc import Sequence
from itertools import pairwise

from selfcorrect.models.chat import Chat
from selfcorrect.models.templates import System
from selfcorrect.types import Completion

_SYSTEM, _USER, _ASSISTANT, _REASONING, _ANSWER = range(0x110000, 0x110005)
_ROLES = {_SYSTEM: "system", _USER: "user", _ASSISTANT: "assistant"}


class MessageChat(Chat):
    """A chat whose template and tokenizer are an endpoint's own, or not known."""

    def __init__(self, system: System | None = None) -> None:
        self.system = system
        self._eos_ids = frozenset()
        self.opens_thought = False  # a server that strips the opening of a thought leaves its end, which is enough
        self.notes = ()

    def first_prompt(self, user: str, system: str = "") -> tuple[int, ...]:
        """The first turn, behind the system turn where there is one."""
        turns = [{"role": "user", "content": user}]
        if system:
            turns = [{"role": "system", "content": system}, *turns]
        names = {name: mark for mark, name in _ROLES.items()}
        told = self.system.before(turns) if self.system else turns
        return (*(i for turn in told for i in (names[turn["role"]], *_ids(turn["content"]))), _ASSISTANT)

    def readable(self, user: str) -> bool:
        """What a tokenizer cannot read, the endpoint's server tells; what is recorded was read."""
        return True

    def next_prompt(self, prompt_ids: Sequence[int], completion_ids: Sequence[int], user: str) -> tuple[int, ...]:
        """The conversation so far, and the next question."""
        return (*prompt_ids, *completion_ids, _USER, *_ids(user), _ASSISTANT)

    def written(self, text: str) -> Completion:
        """A recorded text as if the endpoint had answered with it."""
        return answered(text)

    def turn_end(self) -> int | None:
        """None: the server ends turns."""
        return None

    def decode(self, ids: Sequence[int]) -> str:
        """The answer, without what was reasoned apart from it."""
        return _split(ids)[1]


def answered(text: str, reasoning: str = "", *, cut: bool = False) -> Completion:
    """An answer as a completion. cut: it ran into the limit."""
    ids = (*((_REASONING, *_ids(reasoning), _ANSWER) if reasoning else ()), *_ids(text))
    return Completion(ids, (0.0,) * len(ids), text, "length" if cut else "stop")


def messages(ids: Sequence[int], *, send_reasoning: bool) -> list[dict[str, str]]:
    """What `first_prompt` and `next_prompt` wrote, as an endpoint reads it: without the turn that is to be written."""
    found: list[dict[str, str]] = []
    starts = [place for place, i in enumerate(ids) if i in _ROLES]
    for start, stop in pairwise(starts):  # the last one is still to be written
        reasoning, text = _split(ids[start + 1 : stop])
        found.append({"role": _ROLES[ids[start]], "content": text})
        if reasoning and send_reasoning:
            found[-1]["reasoning_content"] = reasoning
    return found


def plain_text(text: str) -> str:
    """Halves of surrogate pairs joined where they are a pair, else replaced: what is left can be written and sent."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def _ids(text: str) -> tuple[int, ...]:
    return tuple(map(ord, plain_text(text)))


def _split(ids: Sequence[int]) -> tuple[str, str]:
    """Reasoning and answer."""
    apart = list(ids).index(_ANSWER) if _ANSWER in ids else 0
    reasoning, text = ids[:apart], ids[apart:]
    return _text(reasoning), _text(text)


def _text(ids: Sequence[int]) -> str:
    return "".join(chr(i) for i in ids if i < _SYSTEM)
