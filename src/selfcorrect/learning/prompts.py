"""A step's distinct first prompts, computed once for all the rollouts that begin with them.

The G rollouts of a problem share its prompt. Its keys and values are computed once a step; every micro-batch continues
from them with the rest of its rows, and hands back their gradient, which goes through the prompts in one last backward
pass. Nothing is approximated: the gradient is that of whole sequences (tests/run/test_update.py).

Axes: B rows, U distinct prefixes, P their padded length, T tokens of the rest of a row, H heads, D head dimension.
A prefix is a prompt without its last token: that one predicts the first sampled token, and stays with the row.
"""

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from selfcorrect.learning.batching import Batch
from selfcorrect.models.head import States
from selfcorrect.models.language_model import LanguageModel

_MASKED = float(torch.finfo(torch.float32).min) / 2


class SharedPrompts:
    """Keys and values of the distinct prefixes of a batch, for one model."""

    def __init__(self, lm: LanguageModel, prefixes: list[tuple[int, ...]]) -> None:
        self._lm = lm
        self._index = {prefix: number for number, prefix in enumerate(prefixes)}
        self._width = max(map(len, prefixes))
        cache = Taken()
        self._run(prefixes, cache)
        self._computed = [tensor for layer in range(len(cache.taken)) for tensor in cache.taken[layer]]
        # Micro-batches add to these leaves' gradients in float32 at least, whatever the precision of the forward pass.
        self._leaves = [
            t.detach().to(torch.promote_types(t.dtype, torch.float32)).requires_grad_(t.requires_grad)
            for t in self._computed
        ]

    def _run(self, prefixes: list[tuple[int, ...]], cache: "Taken") -> None:
        ids_UP = torch.tensor(
            [[*prefix, *[0] * (self._width - len(prefix))] for prefix in prefixes], device=self._lm.device
        )
        with self._lm.autocast():  # right padding and causal attention: no mask is needed
            self._lm.model.get_decoder()(input_ids=ids_UP, **self._lm.given(cache))

    @classmethod
    def of(cls, lm: LanguageModel, batch: Batch, micro_batch: int) -> "SharedPrompts | None":
        """None where sharing does not fit the model, does not pay, or would hold more than a micro-batch does."""
        prefixes = list(dict.fromkeys(prefixes_of(batch)))
        if not lm.attends_to_all or not prefixes or len(prefixes) > len(batch.token_ids_BT) // 2:
            return None
        width, tokens = max(map(len, prefixes)), batch.token_ids_BT.shape[1]
        fits = len(prefixes) * width <= min(micro_batch, len(batch.token_ids_BT)) * tokens
        return cls(lm, prefixes) if width > 1 and fits else None

    def states(self, batch: Batch) -> States:
        """As policy.trained_states: what predicts the trained tokens of a batch, in row-major order."""
        rows = torch.tensor([self._index[prefix] for prefix in prefixes_of(batch)], device=self._lm.device)
        length_B = first_trained(batch) - 1
        width = batch.token_ids_BT.shape[1] - int(length_B.min())
        place_BT = length_B[:, None] + torch.arange(width, device=length_B.device)
        inside_BT = place_BT < batch.token_ids_BT.shape[1]
        place_BT = place_BT.clamp(max=batch.token_ids_BT.shape[1] - 1)
        ids_BT, attempt_BT = batch.token_ids_BT.gather(1, place_BT), batch.attempt_BT.gather(1, place_BT) * inside_BT
        return self._lm.states(
            ids_BT[:, :-1],
            attempt_BT[:, 1:] > 0,
            position_ids=place_BT[:, :-1],
            attention_mask=self._mask(length_B, width - 1),
            **self._lm.given(Prefixed(self._leaves, rows)),
        )

    def backward(self) -> None:
        """Pass on what the micro-batches' backward passes left at the keys and values."""
        # Where only some layers have an adapter, the first keys and values come from weights that do not train.
        trained = [(t, leaf.grad) for t, leaf in zip(self._computed, self._leaves, strict=True) if t.requires_grad]
        if any(gradient is not None for _, gradient in trained):
            torch.autograd.backward(
                [t for t, _ in trained],
                [torch.zeros_like(t) if gradient is None else gradient.to(t.dtype) for t, gradient in trained],
            )

    def _mask(self, length_B: Tensor, tokens: int) -> Tensor:
        """Additive mask [B, 1, T, P + T]: a row sees its own prefix, and what came before in the rest of it."""
        beyond_BP = torch.arange(self._width, device=length_B.device) >= length_B[:, None]
        prefix_BP = torch.zeros(beyond_BP.shape, device=length_B.device).masked_fill(beyond_BP, _MASKED)
        later_TT = torch.full((tokens, tokens), _MASKED, device=length_B.device).triu(1)
        before = prefix_BP[:, None, None].expand(-1, 1, tokens, -1)
        return torch.cat([before, later_TT.expand(len(length_B), 1, -1, -1)], dim=3)


class Taken(Cache):  # type: ignore[misc]
    """Takes the keys and values of a forward pass over whole prefixes."""

    def __init__(self) -> None:
        super().__init__(layers=[])
        self.taken: dict[int, tuple[Tensor, Tensor]] = {}

    def update(self, keys: Tensor, values: Tensor, layer: int, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        self.taken.setdefault(layer, (keys, values))  # a layer that runs again in the backward pass adds nothing
        return keys, values

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return 0


class Prefixed(Cache):  # type: ignore[misc]
    """Puts each row's prefix before its keys and values. Keeps nothing: a layer may run again in the backward pass."""

    def __init__(self, leaves: list[Tensor], rows: Tensor) -> None:
        super().__init__(layers=[])
        self._leaves, self._rows = leaves, rows

    def update(self, keys: Tensor, values: Tensor, layer: int, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        before = self._leaves[2 * layer : 2 * layer + 2]
        keys, values = (self._joined(leaf, own) for leaf, own in zip(before, (keys, values), strict=True))
        return keys, values

    def _joined(self, leaf: Tensor, own: Tensor) -> Tensor:
        return torch.cat([of_rows(leaf, self._rows).to(own.dtype), own], dim=2)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self._leaves[0].shape[2]


def of_rows(table_UHPD: Tensor, rows: Tensor) -> Tensor:
    """Each row's prefix [B, H, P, D]: `table_UHPD[rows]`, whose gradient is the same to the bit at every run.

    Several rows add to one prefix's gradient. Indexing would let the threads of a CPU add in whatever order they
    arrive, and index_select those of a GPU; the gradient of an embedding adds in the order of the rows on both.
    """
    flat = torch.nn.functional.embedding(rows, table_UHPD.flatten(1))
    return flat.reshape(len(rows), *table_UHPD.shape[1:])


def first_trained(batch: Batch) -> Tensor:
    """Where each row's first sampled token stands [B]."""
    return (batch.attempt_BT > 0).int().argmax(1)


def prefixes_of(batch: Batch) -> list[tuple[int, ...]]:
    """Each row's prompt without its last token; rows that train nothing have none and are left out."""
    trained = (batch.attempt_BT > 0).any(1)
    rows = zip(batch.token_ids_BT[trained].tolist(), first_trained(batch)[trained].tolist(), strict=True)
    return [tuple(ids[: start - 1]) for ids, start in rows]
