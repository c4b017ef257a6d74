"""A sampler that tells how many of the completions of a long piece of work are there, within a call too."""

import time
from collections.abc import Callable, Sequence
from typing import Any

from selfcorrect.samplers.base import Far, Sampler, Telling, Watched
from selfcorrect.types import Completion, SamplingParams

_BETWEEN = 0.25  # seconds between two looks within a call: nobody reads faster

Told = Callable[[int, int, str, float], None]
"""Completions done, completions in all, what goes on now in words, and the share of completions that is done of it."""


class Counted:
    """total: completions to come."""

    def __init__(self, sampler: Sampler, told: Told, total: int) -> None:
        self._sampler, self._told, self._total = sampler, told, total
        self._before = self._since = 0

    def sample(self, prompts: Sequence[tuple[int, ...]], params: SamplingParams) -> list[Completion]:
        sampler = self._sampler
        if isinstance(sampler, Watched) and prompts:
            self._tell(
                f"reading {len(prompts):,} prompt{'s' * (len(prompts) > 1)} of up to {max(map(len, prompts)):,} tokens"
            )
            sampler.watch = self._watching(params.max_new_tokens)
        if isinstance(sampler, Telling):
            sampler.tell = lambda ended, now: self._tell(now, 0.0, ended)
        try:
            found = sampler.sample(prompts, params)
        finally:
            if isinstance(sampler, Watched):
                sampler.watch = None
            if isinstance(sampler, Telling):
                sampler.tell = None
        self._since += len(prompts)
        self._tell()
        return found

    def load_weights(self, model: Any) -> None:
        self._sampler.load_weights(model)

    def reach(self, cost: int) -> None:
        """A chunk of so many completions is done; those of problems that cannot be read were not sampled."""
        self._before, self._since = self._before + cost, 0
        self._tell()

    def _watching(self, limit: int) -> Callable[[Far], None]:
        last = time.monotonic()

        def watch(far: Far) -> None:
            nonlocal last
            if far.rows and time.monotonic() - last >= _BETWEEN:
                last = time.monotonic()
                each = far.tokens // far.rows
                self._tell(
                    f"{far.rows:,} side by side at token {each:,} of up to {limit:,}", far.tokens / limit, far.ended
                )

        return watch

    def _tell(self, now: str = "", share: float = 0.0, ended: int = 0) -> None:
        self._told(self._before + self._since + ended, self._total, now, share)
