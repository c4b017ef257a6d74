"""A key-value cache in which rows can leave the batch and come back (used by the transformers sampler).

Axes: R rows now in the batch, H key-value heads, S slots, D head dimension. Slot s of row r counts only where
`bias_RS` is 0. While rows are out, `_home` keeps every row's slots; `_rows` says which of them are in.
"""

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache

_MASKED = float(torch.finfo(torch.float32).min) / 2


class SlotCache(Cache):  # type: ignore[misc]
    """The part of transformers' Cache that attention layers use (`update`), over preallocated slots."""

    def __init__(self, device: torch.device) -> None:
        super().__init__(layers=[])
        self._device = device
        self._keys: list[Tensor] = []  # one [R, H, S, D] a layer
        self._values: list[Tensor] = []
        self._bias_RS = torch.zeros(0, 0, device=device)
        self.position_R = torch.zeros(0, dtype=torch.long, device=device)
        self._used = 0  # slots opened so far
        self._new = 0  # of these, the ones being written by the current forward
        self._home: _Home | None = None

    def open_slots(self, rows: int, count: int, room: int, holds_RT: Tensor) -> None:
        """The next forward writes `count` slots; row r's slot t counts where holds_RT. Makes room for `room` more."""
        need = self._used + count + room
        if need > self._bias_RS.shape[1]:
            wider = torch.full((rows, need), _MASKED, device=self._device)
            if self._used:
                wider[:, : self._used] = self._bias_RS[:, : self._used]
            self._bias_RS = wider
            self._keys, self._values = ([_grow(t, need) for t in kind] for kind in (self._keys, self._values))
        self._bias_RS[:, self._used : self._used + count] = torch.where(holds_RT, 0.0, _MASKED)
        self._used, self._new = self._used + count, count

    def mask(self, count: int) -> Tensor:
        """Additive attention mask [R, 1, count, S] for the `count` slots just opened: causal among themselves."""
        bias = self._bias_RS[:, None, None, : self._used]
        if count == 1:
            return bias
        causal = torch.full((count, self._used), 0.0, device=self._device)
        causal[:, self._used - count :] = torch.full((count, count), _MASKED, device=self._device).triu(1)
        # Both masked would overflow to -inf in lower precision: take the smaller of the two instead of the sum.
        return torch.minimum(bias.expand(-1, 1, count, -1), causal)

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Called by each attention layer: store the new slots, return all slots opened so far."""
        if layer_idx == len(self._keys):
            rows, heads, _, width = key_states.shape
            slots = self._bias_RS.shape[1]
            self._keys.append(key_states.new_zeros(rows, heads, slots, width))
            self._values.append(value_states.new_zeros(rows, heads, slots, value_states.shape[-1]))
        keys, values = self._keys[layer_idx], self._values[layer_idx]
        keys[:, :, self._used - self._new : self._used] = key_states
        values[:, :, self._used - self._new : self._used] = value_states
        return keys[:, :, : self._used], values[:, :, : self._used]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self._used - self._new

    def expand(self, rows: Tensor) -> None:
        """Row r of the batch from now on is row rows[r] of it so far (rows may repeat)."""
        self._keys, self._values = ([t[rows] for t in kind] for kind in (self._keys, self._values))
        self._bias_RS, self.position_R = self._bias_RS[rows], self.position_R[rows]

    def narrow(self, keep_R: Tensor) -> None:
        """Only the rows where keep_R stay in the batch; the others wait at home."""
        if self._home is None:
            everyone = torch.arange(len(keep_R), device=self._device)
            self._home = _Home(self._keys, self._values, self._bias_RS, self.position_R, everyone)
        else:
            self._home.store(self._keys, self._values, self._bias_RS, self.position_R, ~keep_R)
        self._home.rows = self._home.rows[keep_R]
        self.expand(keep_R.nonzero().squeeze(1))

    def widen(self) -> None:
        """Every row is back in the batch."""
        if self._home is None:
            return
        home, self._home = self._home, None
        home.store(self._keys, self._values, self._bias_RS, self.position_R, torch.ones_like(self.position_R).bool())
        self._keys, self._values, self._bias_RS, self.position_R = home.keys, home.values, home.bias_RS, home.position_R


class _Home:
    """Every row's slots while some rows are out of the batch; rows[r] is the home row of batch row r."""

    def __init__(
        self, keys: list[Tensor], values: list[Tensor], bias_RS: Tensor, position_R: Tensor, rows: Tensor
    ) -> None:
        self.keys, self.values, self.bias_RS, self.position_R, self.rows = keys, values, bias_RS, position_R, rows

    def store(
        self, keys: list[Tensor], values: list[Tensor], bias_RS: Tensor, position_R: Tensor, which_R: Tensor
    ) -> None:
        """Write the batch rows `which_R` back to their places."""
        target = self.rows[which_R]
        for mine, theirs in ((self.keys, keys), (self.values, values)):
            for home, batch in zip(mine, theirs, strict=True):
                home[target] = batch[which_R]
        self.bias_RS[target] = bias_RS[which_R]
        self.position_R[target] = position_R[which_R]


def _grow(table: Tensor, slots: int) -> Tensor:
    wider = table.new_zeros(*table.shape[:2], slots, table.shape[3])
    wider[:, :, : table.shape[2]] = table
    return wider
