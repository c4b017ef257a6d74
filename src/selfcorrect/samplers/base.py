"""What a sampler is. Engines differ in speed only; nothing above this file knows which one runs."""

import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

from selfcorrect.types import Completion, SamplingParams


class Far(NamedTuple):
    """How far a call of `sample` is. ended: rows that are done; rows: those side by side now, which have `tokens` new
    tokens in all.
    """

    ended: int
    rows: int
    tokens: int


@runtime_checkable
class Watched(Protocol):
    """A sampler that tells how far a call is, again and again, and does nothing differently for it."""

    watch: Callable[[Far], None] | None


@runtime_checkable
class Telling(Protocol):
    """A sampler that tells how many completions of a call are there, and what goes on in words."""

    tell: Callable[[int, str], None] | None


@runtime_checkable
class Resting(Protocol):
    """A sampler that holds memory of its own beside the policy's."""

    def rest(self) -> None:
        """Nothing is sampled before the next `load_weights`: until then its memory is the update's."""
        ...


class Sampler(Protocol):
    """Token ids in, token ids out.

    Keeping the KV cache from attempt to attempt, prefilling a prompt shared by a group once, and dropping
    finished rows happen inside, unseen.
    """

    def sample(self, prompts: Sequence[tuple[int, ...]], params: SamplingParams) -> list[Completion]:
        """One completion per prompt, in order. Prompts may repeat (a group) and may extend earlier ones."""
        ...

    def load_weights(self, model: Any) -> None:
        """From now on sample from this model's present weights; whatever was cached is dropped."""
        ...


def note(line: str) -> None:
    """What a user should know while it samples."""
    print(f"note: {line}", file=sys.stderr)
