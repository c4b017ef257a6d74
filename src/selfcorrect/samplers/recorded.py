"""A sampler that replays recorded attempts: real texts go through the whole of an evaluation, without a model."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from selfcorrect.errors import DataError
from selfcorrect.models.chat import Chat
from selfcorrect.types import Completion, SamplingParams

_TURN = {"user": "\n[user]\n", "assistant": "\n[assistant]\n"}


class TextChat(Chat):
    """A chat without a tokenizer: one id a character. What is recorded can be read back exactly."""

    def __init__(self) -> None:
        self._eos_ids = frozenset()
        self._options = {}
        self._between_turns = self._read_between
        self._first = self._read_first
        self.notes = ()
        self.opens_thought = False

    def turn_end(self) -> int | None:
        return None

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(map(chr, ids))

    def _render(self, turns: Sequence[tuple[str, str]], options: Mapping[str, Any] | None = None) -> str:
        return "".join(f"{_TURN[role]}{content}" for role, content in turns) + _TURN["assistant"]

    def _ids(self, render: Callable[[str], str], user: str) -> tuple[tuple[int, ...], bool]:
        return self._encode(render(user)), True

    def _encode_tail(self, user: str) -> tuple[int, ...]:
        return self._encode(self._tail(user))

    def _encode(self, text: str) -> tuple[int, ...]:
        return tuple(map(ord, text))

    def _encode_plainly(self, text: str) -> tuple[int, ...]:
        return self._encode(text)

    def _leading_blanks(self, ids: Sequence[int]) -> int:
        return 0  # contexts are told apart by their ids alone


class RecordedSampler:
    """Answers each context with what was recorded there.

    attempts: for each problem its first prompt, its correction prompt and what was recorded, in order; of a completion
    its text and how it ended count.
    """

    def __init__(self, chat: TextChat, attempts: Iterable[tuple[str, str, Sequence[Completion]]]) -> None:
        self._recorded: Mapping[tuple[int, ...], list[Completion]] = defaultdict(list)
        for prompt, correction, recorded in attempts:
            context = chat.first_prompt(prompt)
            for told in recorded:
                completion = replace(chat.written(told.text), finish_reason=told.finish_reason)
                self._recorded[context].append(completion)  # problems with the same prompt answer in turn
                context = chat.next_prompt(context, completion.token_ids, correction)

    def sample(self, prompts: Sequence[tuple[int, ...]], params: SamplingParams) -> list[Completion]:
        """The recorded completions; temperature, length and seed do not matter. Raises DataError where none is."""
        taken: dict[tuple[int, ...], int] = defaultdict(int)
        found = []
        for prompt in prompts:
            here = self._recorded.get(prompt)
            if not here:
                shown = "".join(map(chr, prompt[:60])).strip()
                raise DataError(f"recorded: no attempt is recorded for the context that begins with {shown!r}")
            found.append(here[taken[prompt] % len(here)])
            taken[prompt] += 1
        return found

    def load_weights(self, model: Any) -> None:
        """Nothing to load."""
