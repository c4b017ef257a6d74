"""Rows that are decoded side by side, one a lane, and the step that takes each of them a token or some further.

All that a step reads and writes stays on the device and in its place: it can be recorded once as a CUDA graph and
played again, and the host looks only now and then which lanes have ended. A lane that has ended, or that no row has,
goes on computing at its place; nothing of it is kept.

Axes: N rows of a call, R lanes, S slots, T tokens of a lane in a step, L tokens of an attempt, E ids that end one,
V vocabulary.
"""

import copy
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from selfcorrect.models.head import States
from selfcorrect.models.language_model import LanguageModel
from selfcorrect.samplers.ahead import drafts
from selfcorrect.samplers.draws import draw, precision
from selfcorrect.samplers.slots import SlotCache

_PREFILLED = 1 << 15  # tokens fed at once: more do not make it faster, and take memory
DRAWN = 64  # tokens drawn at once, or as many as there are lanes: their logits are the memory of a step
KEPT = 2  # lanes up to so many times as large as what is asked for stay: those of every step differ a little


class Look(NamedTuple):
    """Of each lane whether it goes on (0 or 1), tokens drawn, tokens that the cache holds; of this call's guesses how
    many were right, and how many there were.
    """

    alive: list[int]
    counts: list[int]
    places: list[int]
    right: int
    guesses: int


class Lanes:
    """Room for `lanes` rows at once, `slots` tokens each, in calls of up to `rows` rows and `limit` new tokens."""

    def __init__(self, lm: LanguageModel, lanes: int, slots: int, rows: int, limit: int) -> None:
        self.lm, self.size = lm, (lanes, slots, rows, limit)
        self.cache = SlotCache(lm, lanes, slots)
        zeros: Any = {"dtype": torch.long, "device": lm.device}
        self._token_R, self._place_R = torch.zeros(lanes, **zeros), torch.zeros(lanes, **zeros)
        self._count_R, self._row_R = torch.zeros(lanes, **zeros), torch.zeros(lanes, **zeros)
        self._alive_R = torch.zeros(lanes, dtype=torch.bool, device=lm.device)
        self._ids_RS = torch.zeros(lanes, slots, **zeros)  # what stands in each slot, and after it the last token
        self._guesses_2 = torch.zeros(2, **zeros)  # right ones, all
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
        self._guesses_2.fill_(0)

    def step(self, rows: int, width: int, tokens: int = 0) -> None:
        """Feed each of the first `rows` lanes its last token and draw its next; attention reads `width` slots.

        tokens: so many of each lane, the later ones guessed; what is drawn after a wrong guess does not count. With 0
        it is one, and no guess is made.
        """
        lanes, place_R1 = slice(rows), self._place_R[:rows, None].clone()
        # What goes too far lies in the slot of the attempt's last token: that is never fed, so nothing sees the slot.
        left_R1 = (self._limit - self._count_R[lanes, None]).clamp(min=0)
        place_RT = place_R1 + torch.arange(max(1, tokens), device=place_R1.device).minimum(left_R1)
        fed_RT, guess_RT = self._token_R[lanes, None], None
        if tokens:
            guess_RT = drafts(self._ids_RS[lanes, :width], place_R1[:, 0], tokens)
            fed_RT = torch.cat([fed_RT, guess_RT[:, :-1]], 1)
        self.cache.open(lanes, place_RT, width)
        states = self.lm.states(
            fed_RT, None, position_ids=place_RT, attention_mask=self.cache.mask(), **self.lm.given(self.cache)
        )
        before_R = self._count_R[lanes].clone()
        self._record(lanes, place_R1[:, 0] + 1, self._draw(lanes, states, place_RT.shape[1]), guess_RT)
        self._place_R[lanes] += self._count_R[lanes] - before_R

    def know(self, lanes: Tensor, prompts: Sequence[Sequence[int]]) -> None:
        """What stands in these lanes, to guess from."""
        longest = max(map(len, prompts))
        padded = [[*prompt, *[0] * (longest - len(prompt))] for prompt in prompts]
        self._ids_RS[lanes, :longest] = torch.tensor(padded, device=self._ids_RS.device)

    def start(self, lanes: Tensor, rows: Tensor, places: Tensor, logits_RV: Tensor) -> None:
        """Rows begin in lanes that hold `places` tokens; draws the first token of each."""
        self._row_R[lanes], self._place_R[lanes] = rows, places
        self._count_R[lanes], self._alive_R[lanes] = 0, True
        self._record(lanes, places, self._draw(lanes, States(logits_RV, None), 1), None)

    def prefill(self, lanes: Sequence[int], known: Sequence[int], added: Sequence[Sequence[int]]) -> Tensor:
        """Feed lanes that hold `known` tokens what is added; logits [R, V] after the last of it."""
        at_once = max(1, _PREFILLED // max(map(len, added)))
        parts = [slice(start, start + at_once) for start in range(0, len(lanes), at_once)]
        return torch.cat([self.cache.feed(self.lm, lanes[part], known[part], added[part]) for part in parts])

    def _draw(self, lanes: slice | Tensor, states: States, tokens: int) -> tuple[Tensor, Tensor]:
        """The next `tokens` of each lane [R, T] and their log-probabilities, each by the number of its place."""
        count_RT = self._count_R[lanes][:, None] + torch.arange(tokens, device=self._count_R.device)
        uniform_M = self._uniform_NL[self._rows(lanes)[:, None], self._cell(count_RT)].flatten()
        at_once = max(DRAWN, len(count_RT))
        drawn = [
            draw(self.lm.logits_of(states.part(part)), self._temperature, uniform_M[part])
            for part in (slice(start, start + at_once) for start in range(0, len(uniform_M), at_once))
        ]
        ids_M, logprobs_M = (torch.cat(parts) for parts in zip(*drawn, strict=True))
        return ids_M.view_as(count_RT), logprobs_M.view_as(count_RT)

    def _rows(self, lanes: slice | Tensor) -> Tensor:
        return torch.where(self._alive_R[lanes], self._row_R[lanes], len(self.ids_NL) - 1)

    def _cell(self, count: Tensor) -> Tensor:
        return torch.minimum(count, self._limit - 1)

    def _record(
        self, lanes: slice | Tensor, at_R: Tensor, drawn: tuple[Tensor, Tensor], guess_RT: Tensor | None
    ) -> None:
        """at_R: the position of the first token drawn. A token counts if all guesses before it were right."""
        token_RT, logprob_RT = drawn
        alive_R, count_R, row_R = self._alive_R[lanes], self._count_R[lanes], self._rows(lanes)
        step_T = torch.arange(token_RT.shape[1], device=row_R.device)
        count_RT = count_R[:, None] + step_T
        ends_RT = (token_RT[..., None] == self._eos_E).any(-1) | (count_RT + 1 >= self._limit)
        counts_RT = alive_R[:, None]
        if guess_RT is not None:
            right_RT = (guess_RT == token_RT) & ~ends_RT
            counts_RT = counts_RT & torch.nn.functional.pad(right_RT[:, :-1], (1, 0), value=True).cumprod(1).bool()
            guessed_RT = counts_RT & ~ends_RT
            self._guesses_2 += torch.stack([(right_RT & counts_RT).sum(), guessed_RT.sum()])
        cell_RT, to_RT = self._cell(count_RT), torch.where(counts_RT, row_R[:, None], len(self.ids_NL) - 1)
        self.ids_NL[to_RT, cell_RT], self.logprobs_NL[to_RT, cell_RT] = token_RT, logprob_RT
        place_RT = (at_R[:, None] + step_T).clamp(max=self._ids_RS.shape[1] - 1)
        self._ids_RS[self._lane(lanes)[:, None], place_RT] = token_RT
        new_R = counts_RT.sum(1)
        self._token_R[lanes] = token_RT.gather(1, (new_R - 1).clamp(min=0)[:, None])[:, 0]
        count_R = count_R + new_R
        self.length_N[row_R] = count_R
        self._count_R[lanes] = count_R
        self._alive_R[lanes] = alive_R & ~(counts_RT & ends_RT).any(1)

    def _lane(self, lanes: slice | Tensor) -> Tensor:
        return torch.arange(len(self._token_R), device=self._token_R.device)[lanes]

    def look(self, rows: int) -> Look:
        """At the first `rows` lanes."""
        states = (self._alive_R[:rows].long(), self._count_R[:rows], self._place_R[:rows], self._guesses_2)
        *lanes, right, guesses = torch.cat(states).tolist()
        alive, counts, places = (lanes[start : start + rows] for start in range(0, 3 * rows, rows))
        return Look(alive, counts, places, right, guesses)

    def clear(self, lanes: Tensor) -> None:
        """No row has these lanes from now on."""
        self._place_R[lanes] = 0

    def move(self, source: Tensor, target: Tensor, width: int) -> None:
        """The rows of the lanes `source` go on in the lanes `target`, with the first `width` slots."""
        self.cache.copy(source, target, width)
        for state in (self._token_R, self._place_R, self._count_R, self._row_R, self._alive_R, self._ids_RS):
            state[target] = state[source]
        self._alive_R[source] = False
        self.clear(source)
