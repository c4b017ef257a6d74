"""A sampler that replays recorded attempts: real texts go through the whole of an evaluation, without a model."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from selfcorrect.errors import DataError
from selfcorrect.models.messages import MessageChat, messages
from selfcorrect.types import Completion, SamplingParams


class RecordedSampler:
    """Answers each context with what was recorded there.

    attempts: for each problem its first prompt, its correction prompt and what was recorded, in order; of a completion
    its text and how it ended count.
    """

    def __init__(self, chat: MessageChat, attempts: Iterable[tuple[str, str, Sequence[Completion]]]) -> None:
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
                shown = messages(prompt, send_reasoning=False)[0]["content"][:60]
                raise DataError(f"recorded: no attempt is recorded for the context that begins with {shown!r}")
            found.append(here[taken[prompt] % len(here)])
            taken[prompt] += 1
        return found

    def load_weights(self, model: Any) -> None:
        """Nothing to load."""
