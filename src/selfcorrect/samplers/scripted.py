"""A sampler that plays back given texts: the engine's test double."""

from collections.abc import Callable, Sequence
from typing import Any

from selfcorrect.types import Completion, SamplingParams


class ScriptedSampler:
    """`script(prompt_ids, params)` returns the token ids of the completion, the end token included or not."""

    def __init__(
        self,
        script: Callable[[tuple[int, ...], SamplingParams], Sequence[int]],
        decode: Callable[[Sequence[int]], str],
        eos_ids: frozenset[int],
    ) -> None:
        self._script, self._decode, self._eos_ids = script, decode, eos_ids
        self.calls: list[list[tuple[int, ...]]] = []

    def sample(self, prompts: Sequence[tuple[int, ...]], params: SamplingParams) -> list[Completion]:
        self.calls.append(list(prompts))
        return [self._complete(prompt, params) for prompt in prompts]

    def load_weights(self, model: Any) -> None:
        """Nothing to load."""

    def _complete(self, prompt: tuple[int, ...], params: SamplingParams) -> Completion:
        ids = tuple(self._script(prompt, params))[: params.max_new_tokens]
        ended = bool(ids) and ids[-1] in self._eos_ids
        text = self._decode(ids[:-1] if ended else ids)
        return Completion(ids, (0.0,) * len(ids), text, "stop" if ended else "length")
