"""A key-value cache of lanes (used by the transformers sampler): one sequence a lane, one token a slot.

Slot s of a lane holds the token at position s of its sequence. So what a token may see follows from its position
alone, windows included; whatever else stands in later slots (padding, an earlier sequence) is overwritten before it
is seen. Lanes come and go by copying; nothing moves within a lane.

Where eager attention decodes on a CPU, keys lie across (the slots of one number side by side): the product of one query
with them reads memory up to 40 % faster there (docs/log.md).

Axes: N lanes, R of them in a forward, T tokens fed to each, H key-value heads, S slots, D head dimension, V vocabulary.
"""

import copy
from collections.abc import Sequence
from operator import add
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from selfcorrect.models.language_model import LanguageModel

Tables = list[Tensor]  # keys and values of layer 0, keys and values of layer 1, ...; each [R, H, S, D]


class SlotCache(Cache):  # type: ignore[misc]
    """The part of transformers' Cache that attention layers use (`update`), over lanes allocated once."""

    def __init__(self, lm: LanguageModel, lanes: int, slots: int) -> None:
        super().__init__(layers=[])
        self.lanes, self.slots = lanes, slots
        self._windows = lm.windows or {}
        self._dtype, self._device = lm.compute_dtype, lm.device
        self._across = self._device.type == "cpu" and str(lm.model.config._attn_implementation).endswith("eager")
        self._tables: Tables = []
        self._place_RT = torch.zeros(0, 0, dtype=torch.long)
        self._width = 0
        self._fed: slice | Tensor = slice(0)

    def open(self, fed: slice | Tensor, place_RT: Tensor, width: int) -> None:
        """The next forward feeds the lanes `fed` tokens at these positions; attention reads `width` slots."""
        self._fed, self._place_RT, self._width = fed, place_RT, width
        self._lane_R = torch.arange(self.lanes, device=self._device)[fed]
        self._flat: dict[int, Tensor] = {}

    def feed(
        self, lm: LanguageModel, lanes: Sequence[int], known: Sequence[int], added: Sequence[Sequence[int]],
        everywhere: bool = False,
    ) -> Tensor:  # fmt: skip
        """Feed lanes that hold `known` tokens what is added; logits [R, V] after the last of it, or after each token,
        one lane's after the other's.
        """
        device, most = self._device, max(map(len, added))
        width = max(map(add, known, map(len, added))) + 1  # more than any row fills: padding goes there
        ids_RT = torch.tensor([[*ids, *[0] * (most - len(ids))] for ids in added], device=device)
        step_T = torch.arange(most, device=device)
        place_RT = (torch.tensor(known, device=device)[:, None] + step_T).clamp(max=width - 1)
        leading = list(lanes) == list(range(len(lanes)))
        self.open(slice(len(lanes)) if leading else torch.tensor(lanes, device=device), place_RT, width)
        last_R1 = torch.tensor([len(ids) - 1 for ids in added], device=device)[:, None]
        wanted_RT = step_T <= last_R1 if everywhere else step_T == last_R1
        return lm.logits(ids_RT, wanted_RT, position_ids=place_RT, attention_mask=self.mask(), **lm.given(self))

    def mask(self) -> Tensor | dict[str, Tensor]:
        """What each token fed sees, additive [R, 1, T, S]; by kind of layer where the model has several."""
        ago_RTS = self._place_RT[:, :, None] - torch.arange(self._width, device=self._device)
        masks = {}
        for kind, window in self._windows.items():
            seen_RTS = ago_RTS >= 0 if window is None else (ago_RTS >= 0) & (ago_RTS < window)
            # Half of the lowest number: models that add two masks do not come to -inf.
            hidden = torch.zeros(seen_RTS.shape, dtype=self._dtype, device=self._device)
            masks[kind] = hidden.masked_fill_(~seen_RTS, torch.finfo(self._dtype).min / 2)[:, None]
        return masks if len(masks) > 1 else next(iter(masks.values()))

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Called by each attention layer: store what is new, return the slots that attention reads."""
        if len(self._tables) == 2 * layer_idx:
            # Zeros, as what is masked is still multiplied (by zero). In the precision that attention computes in:
            # rotated keys come in float32 under autocast, and all of them would be cast again at every token.
            self._tables += self._zeros([key_states, value_states])
        keys, values = self._tables[2 * layer_idx : 2 * layer_idx + 2]
        return self._write(keys, key_states), self._write(values, value_states)

    def _zeros(self, like: Tables) -> Tables:
        """Keys and values of some layers, for all lanes, with the heads and widths of `like`."""
        tables = []
        for number, new in enumerate(like):
            across = self._across and number % 2 == 0
            shape = (new.shape[3], self.slots) if across else (self.slots, new.shape[3])
            table = torch.zeros(self.lanes, new.shape[1], *shape, dtype=self._dtype, device=self._device)
            tables.append(table.transpose(2, 3) if across else table)
        return tables

    def _write(self, table: Tensor, new_RHTD: Tensor) -> Tensor:
        heads, width = table.shape[1], table.shape[3]
        if not table.is_contiguous():
            table.transpose(1, 2)[self._lane_R[:, None], self._place_RT] = new_RHTD.to(table.dtype).transpose(1, 2)
            return table[:, :, : self._width][self._fed]
        if heads not in self._flat:  # the rows of the table seen as [N * H * S, D]
            head_RH = self._lane_R[:, None] * heads + torch.arange(heads, device=self._device)
            self._flat[heads] = (head_RH[:, :, None] * self.slots + self._place_RT[:, None]).flatten()
        table.view(-1, width).index_copy_(0, self._flat[heads], new_RHTD.to(table.dtype).reshape(-1, width))
        return table[:, :, : self._width][self._fed]  # of a slice, the lanes themselves; of other lanes a copy

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return 0  # positions and masks are always given

    def emptied(self, slots: int) -> "SlotCache":
        """A cache of the same lanes, with `slots` slots, that holds nothing yet."""
        other = copy.copy(self)
        other.slots, other._tables = slots, []
        return other

    def take(self, lanes: Tensor, width: int) -> Tables:
        """A copy of the first `width` slots of some lanes."""
        return [table[:, :, :width][lanes] for table in self._tables]

    def put(self, lanes: Tensor, tables: Tables, rows: Tensor) -> None:
        """Fill lanes with rows of what was taken."""
        if not self._tables:
            self._tables = self._zeros(tables)
        for mine, taken in zip(self._tables, tables, strict=True):
            mine[:, :, : taken.shape[2]][lanes] = taken[rows]

    def copy(self, source: Tensor, target: Tensor, width: int) -> None:
        """Lane target[i] from now on holds what source[i] does, in its first `width` slots."""
        for table in self._tables:
            table[:, :, :width][target] = table[:, :, :width][source]
