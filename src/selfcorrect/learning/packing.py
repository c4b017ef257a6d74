"""Batches without padding: what trained_states and shared prompts (learning/prompts.py) do on packed rows.

Axes: N tokens of all rows end to end, M their keys with those of the rows' prefixes before them; else as in prompts.py.
"""

from itertools import accumulate

import torch
from torch import Tensor

from selfcorrect.learning.batching import Batch
from selfcorrect.learning.prompts import Prefixed, SharedPrompts, Taken, first_trained, prefixes_of
from selfcorrect.models.head import States
from selfcorrect.models.language_model import LanguageModel
from selfcorrect.models.packed import Packing


def packed_states(lm: LanguageModel, batch: Batch) -> States:
    """As policy.trained_states."""
    ids_N, place_N, trained_N, lengths = _laid_out(batch, torch.zeros_like(batch.length_B))
    with Packing(lengths, lengths).shown(lm.model.config):
        return lm.states(ids_N[None], trained_N[None], position_ids=place_N[None], use_cache=False)


class PackedPrompts(SharedPrompts):
    """Shared prompts whose prefixes lie end to end, and are continued by packed rows."""

    def _run(self, prefixes: list[tuple[int, ...]], cache: Taken) -> None:
        lengths = tuple(map(len, prefixes))
        self._starts = [0, *accumulate(lengths)]
        ids_N = torch.tensor([token for prefix in prefixes for token in prefix], device=self._lm.device)
        place_N = torch.cat([torch.arange(length) for length in lengths]).to(self._lm.device)
        with self._lm.autocast(), Packing(lengths, lengths).shown(self._lm.model.config):
            self._lm.model.get_decoder()(input_ids=ids_N[None], position_ids=place_N[None], **self._lm.given(cache))

    def states(self, batch: Batch) -> States:
        """As policy.trained_states."""
        ids_N, place_N, trained_N, lengths = _laid_out(batch, first_trained(batch) - 1)
        rows = [self._index[prefix] for prefix in prefixes_of(batch)]
        source, keys, own = [], [], self._starts[-1]
        for row, length in zip(rows, lengths, strict=True):
            start, end = self._starts[row : row + 2]
            source += [torch.arange(start, end), torch.arange(own, own + length)]
            keys.append(end - start + length)
            own += length
        past = _Interleaved(self._leaves, torch.cat(source).to(ids_N.device))
        with Packing(lengths, tuple(keys)).shown(self._lm.model.config):
            return self._lm.states(ids_N[None], trained_N[None], position_ids=place_N[None], **self._lm.given(past))


class _Interleaved(Prefixed):
    """Each row's prefix, then its own keys and values; rows: for each of the M keys its place among [prefixes, N]."""

    def _joined(self, leaf_1HPD: Tensor, own_1HND: Tensor) -> Tensor:
        both = torch.cat([leaf_1HPD, own_1HND], dim=2)
        # An embedding, for the order in which its gradient adds: see prompts.of_rows.
        flat_MX = torch.nn.functional.embedding(self._rows, both[0].transpose(0, 1).flatten(1))
        return flat_MX.reshape(len(self._rows), both.shape[1], both.shape[3]).transpose(0, 1)[None]


def _laid_out(batch: Batch, start_B: Tensor) -> tuple[Tensor, Tensor, Tensor, tuple[int, ...]]:
    """From each row's start on what predicts the next token: ids, places, whether that token trains; rows' lengths."""
    place_BT = torch.arange(batch.token_ids_BT.shape[1] - 1, device=start_B.device).expand(len(start_B), -1)
    inside_BT = (place_BT >= start_B[:, None]) & (place_BT < batch.length_B[:, None] - 1)
    ids_N, trained_N = batch.token_ids_BT[:, :-1][inside_BT], (batch.attempt_BT[:, 1:] > 0)[inside_BT]
    return ids_N, place_BT[inside_BT], trained_N, tuple(inside_BT.sum(1).tolist())
