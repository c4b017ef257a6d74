"""Conversations side by side, each in a lane that keeps its keys and values: from attempt to attempt, and for the next
request that begins with the same tokens.

Axes: R lanes that are fed, V vocabulary.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from selfcorrect.errors import ModelError
from selfcorrect.models.language_model import LanguageModel
from selfcorrect.samplers.ahead import drafts
from selfcorrect.samplers.draws import draw, precision
from selfcorrect.samplers.slots import SlotCache

_SLOTS = 512  # room that lanes begin with; it doubles as it is needed


def shared(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two sequences begin with together."""
    most = min(len(one), len(other))
    return next((place for place in range(most) if one[place] != other[place]), most)


class SlotLanes:
    """All lanes in one table that grows. held: by lane, the ids whose keys and values it has."""

    def __init__(self, lm: LanguageModel, count: int) -> None:
        self._lm = lm
        self.held: list[list[int]] = [[] for _ in range(count)]
        self._cache = SlotCache(lm, count, _SLOTS)

    def begin(self, lane: int, prompt: Sequence[int]) -> int:
        """The lane keeps what it shares with the prompt, all but its last token at most; returns how many tokens."""
        known = min(shared(self.held[lane], prompt), len(prompt) - 1)
        del self.held[lane][known:]
        return known

    def guess(self, lane: int, token: int, count: int) -> list[int]:
        """What may follow this token, which comes next in the lane."""
        ids = torch.tensor([[*self.held[lane], token]])
        follows: list[int] = drafts(ids, torch.tensor([ids.shape[1] - 1]), count)[0].tolist()
        return follows

    def keep(self, lane: int, tokens: int) -> None:
        """What comes after so many is no longer the lane's."""
        del self.held[lane][tokens:]

    def feed(self, lanes: list[int], added: list[list[int]], everywhere: bool = False) -> Tensor:
        """Each lane gets further tokens; logits [R, V] after the last of them, or [N, V] after each of all."""
        known = [len(self.held[lane]) for lane in lanes]
        self._make_room(max(have + len(new) for have, new in zip(known, added, strict=True)) + 1)
        logits_RV = self._cache.feed(self._lm, lanes, known, added, everywhere)
        for lane, new in zip(lanes, added, strict=True):
            self.held[lane] += new
        return logits_RV

    def _make_room(self, width: int) -> None:
        if width <= self._cache.slots:
            return
        every = torch.arange(len(self.held), device=self._lm.device)
        tables = self._cache.take(every, max(map(len, self.held)))
        self._cache = self._cache.emptied(max(width, 2 * self._cache.slots))
        if tables:
            self._cache.put(every, tables, every)

    def reset(self) -> None:
        """All lanes are empty."""
        self.held = [[] for _ in self.held]
        self._cache = self._cache.emptied(_SLOTS)  # also of numbers that are not finite, which no mask hides


class OwnCaches:
    """The same with a cache of the model's own kind for each lane: for layers that attend otherwise."""

    def __init__(self, lm: LanguageModel, count: int) -> None:
        self._lm = lm
        self.held: list[list[int]] = [[] for _ in range(count)]
        self._caches: list[Any] = [None] * count

    def begin(self, lane: int, prompt: Sequence[int]) -> int:
        have = len(self.held[lane])
        if have < len(prompt) and shared(self.held[lane], prompt) == have:
            return have
        self.held[lane], self._caches[lane] = [], None  # nothing can be taken out of such a cache
        return 0

    def reset(self) -> None:
        self.held, self._caches = [[] for _ in self.held], [None] * len(self._caches)

    def guess(self, lane: int, token: int, count: int) -> list[int]:
        """None: a wrong one could not be taken out of such a cache."""
        return []

    def keep(self, lane: int, tokens: int) -> None:
        """Always all."""

    def feed(self, lanes: list[int], added: list[list[int]], everywhere: bool = False) -> Tensor:
        """everywhere: of one token a lane alone."""
        return torch.cat([self._feed(lane, new) for lane, new in zip(lanes, added, strict=True)])

    def _feed(self, lane: int, new: list[int]) -> Tensor:
        have, device = len(self.held[lane]), self._lm.device
        whole = have + len(new)
        with self._lm.autocast():
            output = self._lm.model(
                input_ids=torch.tensor([new], device=device),
                attention_mask=torch.ones(1, whole, dtype=torch.long, device=device),
                position_ids=torch.arange(have, whole, device=device)[None],
                logits_to_keep=1, **self._lm.given(self._caches[lane]),
            )  # fmt: skip
        self._caches[lane] = self._lm.cache_in(output)
        if self._caches[lane] is None:
            raise ModelError(f"{type(self._lm.model).__name__} keeps no cache of keys and values, which serving needs")
        self.held[lane] += new
        logits_1V: Tensor = output.logits[:, -1].float()
        return logits_1V


Lanes = SlotLanes | OwnCaches


def make_lanes(lm: LanguageModel, count: int) -> Lanes:
    """One step for all lanes, where the model's attention allows it; else one cache and one step for each."""
    return OwnCaches(lm, count) if lm.windows is None else SlotLanes(lm, count)


def pick(logits_RV: Tensor, temperatures: list[float], top_ps: list[float], uniforms: list[float]) -> list[int]:
    """One token a row: greedy at temperature 0, else from the smallest set of tokens whose shares sum up to top_p."""
    token_R = logits_RV.argmax(-1)
    warm = [row for row, temperature in enumerate(temperatures) if temperature > 0]
    if warm:
        device = logits_RV.device
        divisor_R = torch.tensor([max(temperatures[row], 1e-4) for row in warm], device=device)
        scaled_RV = logits_RV[warm] / divisor_R[:, None]
        top_p_R = torch.tensor([top_ps[row] for row in warm], device=device)
        if float(top_p_R.min()) < 1:
            scaled_RV = _nucleus(scaled_RV, top_p_R)
        uniform_R = torch.tensor([uniforms[row] for row in warm], dtype=precision(device), device=device)
        token_R[warm] = draw(scaled_RV, 1.0, uniform_R)[0]
    tokens: list[int] = token_R.tolist()
    return tokens


def _nucleus(logits_RV: Tensor, top_p_R: Tensor) -> Tensor:
    sorted_RV, order_RV = logits_RV.sort(-1, descending=True)
    share_RV = sorted_RV.softmax(-1)
    before_RV = share_RV.cumsum(-1) - share_RV  # the likeliest token has nothing before it, and stays
    sorted_RV = sorted_RV.masked_fill(before_RV >= top_p_R[:, None], float("-inf"))
    return torch.empty_like(sorted_RV).scatter_(-1, order_RV, sorted_RV)
