"""What a model is given for the time of sampling: weights already in the precision of the forward pass.

Autocast casts the weight of every linear layer at every use. That is half of the work of a decoding step, so the
casts are made once for each version of the weights and lent to the layers while sampling; everything else stays with
autocast, so that log-probabilities are those of the policy's own forward pass. They take two bytes a linear weight.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn

from selfcorrect.models.language_model import LanguageModel
from selfcorrect.models.weights import cast_weights
from selfcorrect.samplers.attention import grouped_attention
from selfcorrect.samplers.prepacked import prepacked


class InferenceWeights:
    """Casts of the linear layers' weights, in memory that stays the same from version to version."""

    def __init__(self, lm: LanguageModel) -> None:
        self._lm = lm
        self._casts: list[tuple[nn.Module, str, Tensor]] = []
        self._stale = True
        self._addresses: list[int] = []
        self.moves = 0  # how often they have come to be other tensors

    def are_of(self, lm: LanguageModel) -> bool:
        """Whether another sampler, of this language model, may lend the same casts."""
        return lm.model is self._lm.model and lm.compute_dtype == self._lm.compute_dtype

    def new_version(self) -> None:
        """The model's weights have changed."""
        model = self._lm.model
        addresses = [id(model), *(tensor.data_ptr() for tensor in (*model.parameters(), *model.buffers()))]
        moved, self._addresses, self._stale = addresses != self._addresses, addresses, True
        if moved:
            self._casts, self.moves = [], self.moves + 1

    @contextmanager
    def lent(self, lm: LanguageModel) -> Iterator[None]:
        """Meanwhile the model's linear layers hold the casts. lm: the view of the model that is sampled from."""
        if self._stale:
            self._cast()
        own = [module._parameters[name] for module, name, _ in self._casts]
        try:
            for module, name, cast in self._casts:
                module._parameters[name] = cast  # type: ignore[assignment]  # no Parameter: nothing trains meanwhile
            laid_out = prepacked(lm) if lm.device.type == "cpu" else nullcontext()
            with grouped_attention(self._lm.model.config), laid_out:
                yield
        finally:
            for (module, name, _), parameter in zip(self._casts, own, strict=True):
                module._parameters[name] = parameter

    def _cast(self) -> None:
        dtype = self._lm.compute_dtype
        if not self._casts and dtype != torch.float32:
            made: dict[int, Tensor] = {}  # a weight that several layers share is cast once
            for module, name, weight in cast_weights(self._lm.model):
                cast = made.setdefault(id(weight), torch.empty_like(weight, dtype=dtype, requires_grad=False))
                self._casts.append((module, name, cast))
        for module, name, cast in self._casts:
            cast.copy_(module._parameters[name].detach())  # type: ignore[union-attr]
        self._stale = False
