"""Rows that are decoded side by side, one a lane, and the step that takes each of them one token further.

All that a step reads and writes stays on the device and in its place: it can be recorded once as a CUDA graph and
played again, and the host looks only now and then which lanes have ended. A lane that has ended, or that no row has,
goes on computing at its place; nothing of it is kept.

Axes: N rows of a call, R lanes, L tokens of an attempt, E ids that end one, V vocabulary.
"""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from selfcorrect.models.language_model import LanguageModel
from selfcorrect.samplers.draws import draw, precision
from selfcorrect.samplers.slots import SlotCache

_PREFILLED = 1 << 15  # tokens fed at once: more do not make it faster, and take memory
KEPT = 2  # lanes up to so many times as large as what is asked for stay: those of every step differ a little


class Lanes:
    """Room for `lanes` rows at once, `slots` tokens each, in calls of up to `rows` rows and `limit` new tokens."""

    def __init__(self, lm: LanguageModel, lanes: int, slots: int, rows: int, limit: int) -> None:
        self.lm, self.size = lm, (lanes, slots, rows, limit)
        self.cache = SlotCache(lm, lanes, slots)
        zeros: Any = {"dtype": torch.long, "device": lm.device}
        self._token_R, self._place_R = torch.zeros(lanes, **zeros), torch.zeros(lanes, **zeros)
        self._count_R, self._row_R = torch.zeros(lanes, **zeros), torch.zeros(lanes, **zeros)
        self._alive_R = torch.zeros(lanes, dtype=torch.bool, device=lm.device)
        self._eos_E = torch.tensor(sorted(lm.eos_ids), device=lm.device)
        self._limit = torch.zeros((), **zeros)
        self._temperature = 1.0
        # One row more than a call has: lanes that are not alive write there.
        self.ids_NL = torch.zeros(rows + 1, limit, **zeros)
        self.logprobs_NL = torch.zeros(rows + 1, limit, device=lm.device)
        self.length_N = torch.zeros(rows + 1, **zeros)
        self._uniform_NL = torch.zeros(rows + 1, limit, dtype=precision(lm.device), device=lm.device)

    @property
    def slots(self) -> int:
        """Of all lanes."""
        return self.size[0] * self.size[1]

    def of(self, lm: LanguageModel) -> "Lanes":
        """The same lanes, in the same memory, for another model of the same shape."""
        other = copy.copy(self)
        other.lm = lm
        return other

    def begin(self, uniform_NL: Tensor, temperature: float) -> None:
        """A new call: its numbers to draw by, one a row and token."""
        rows, limit = uniform_NL.shape
        self._uniform_NL[:rows, :limit] = uniform_NL
        self._limit.fill_(limit)
        self._temperature = temperature
        self._alive_R.fill_(False)
        self._place_R.fill_(0)

    def step(self, rows: int, width: int) -> None:
        """Feed each of the first `rows` lanes its last token and draw its next; attention reads `width` slots."""
        lanes = slice(rows)
        place_R1 = self._place_R[lanes, None].clone()
        self.cache.open(lanes, place_R1, width)
        logits_RV = self.lm.logits(
            self._token_R[lanes, None], None, position_ids=place_R1, attention_mask=self.cache.mask(),
            **self.lm.given(self.cache),
        )  # fmt: skip
        self._place_R[lanes] += self._alive_R[lanes]
        self._record(lanes, logits_RV)

    def start(self, lanes: Tensor, rows: Tensor, places: Tensor, logits_RV: Tensor) -> None:
        """Rows begin in lanes that hold `places` tokens; draws the first token of each."""
        self._row_R[lanes], self._place_R[lanes] = rows, places
        self._count_R[lanes], self._alive_R[lanes] = 0, True
        self._record(lanes, logits_RV)

    def prefill(self, lanes: Sequence[int], known: Sequence[int], added: Sequence[Sequence[int]]) -> Tensor:
        """Feed lanes that hold `known` tokens what is added; logits [R, V] after the last of it."""
        at_once = max(1, _PREFILLED // max(map(len, added)))
        parts = [slice(start, start + at_once) for start in range(0, len(lanes), at_once)]
        return torch.cat([self.cache.feed(self.lm, lanes[part], known[part], added[part]) for part in parts])

    def _record(self, lanes: slice | Tensor, logits_RV: Tensor) -> None:
        alive_R, count_R = self._alive_R[lanes], self._count_R[lanes]
        row_R = torch.where(alive_R, self._row_R[lanes], len(self.ids_NL) - 1)
        place_R = torch.minimum(count_R, self._limit - 1)
        token_R, logprob_R = draw(logits_RV, self._temperature, self._uniform_NL[row_R, place_R])
        self.ids_NL[row_R, place_R], self.logprobs_NL[row_R, place_R] = token_R, logprob_R
        self._token_R[lanes] = token_R
        count_R = count_R + alive_R
        self.length_N[row_R] = count_R
        self._count_R[lanes] = count_R
        ended_R = (token_R[:, None] == self._eos_E).any(1) | (count_R >= self._limit)
        self._alive_R[lanes] = alive_R & ~ended_R

    def look(self, rows: int) -> tuple[list[int], list[int], list[int]]:
        """Of the first `rows` lanes: whether each goes on (0 or 1), tokens drawn, tokens that the cache holds."""
        state = torch.stack([self._alive_R[:rows].long(), self._count_R[:rows], self._place_R[:rows]])
        alive, counts, places = state.tolist()
        return alive, counts, places

    def clear(self, lanes: Tensor) -> None:
        """No row has these lanes from now on."""
        self._place_R[lanes] = 0

    def move(self, source: Tensor, target: Tensor, width: int) -> None:
        """The rows of the lanes `source` go on in the lanes `target`, with the first `width` slots."""
        self.cache.copy(source, target, width)
        for state in (self._token_R, self._place_R, self._count_R, self._row_R, self._alive_R):
            state[target] = state[source]
        self._alive_R[source] = False
        self.clear(source)
