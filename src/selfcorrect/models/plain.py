"""The weights of an ordinary model, one by one, whatever is trained here: what an engine of its own is given."""

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from selfcorrect.models.adapters import POLICY, adapted_layers, dequantised, four_bit_layers
from selfcorrect.models.language_model import LanguageModel


class PlainWeights:
    """Names and tensors as in the model's own files, in `dtype`, made as they are asked for; tied ones once a name.

    merged: the policy's adapter goes into them; without, they are those beneath it. 4-bit layers are dequantised.
    """

    def __init__(self, lm: LanguageModel, dtype: torch.dtype, *, merged: bool) -> None:
        self._lm, self._dtype, self.merged = lm, dtype, merged

    @torch.no_grad()
    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        adapted = {f"{prefix}.": layer for prefix, layer in adapted_layers(self._lm.model)} if self._lm.adapters else {}
        for prefix, layer in adapted.items():
            base = dequantised(layer.get_base_layer())
            weight = base.weight.float() + layer.get_delta_weight(POLICY).float() if self.merged else base.weight
            yield f"{prefix}weight", weight.detach().to(self._dtype)
            if base.bias is not None:
                yield f"{prefix}bias", base.bias.detach().to(self._dtype)
        bare = {
            f"{name}.": layer for name, layer in four_bit_layers(self._lm.model) if not name.startswith(tuple(adapted))
        }
        for prefix, layer in bare.items():
            for name, tensor in dequantised(layer).state_dict().items():
                yield f"{prefix}{name}", tensor.to(self._dtype)
        for name, tensor in self._lm.model.state_dict().items():
            if not name.startswith((*adapted, *bare)) and tensor.is_floating_point():
                yield name, tensor.detach().to(self._dtype)

    def write(self, folder: Path) -> None:
        """A model folder without tokenizer."""
        import copy

        from safetensors.torch import save_file

        folder.mkdir(parents=True, exist_ok=True)
        config = copy.deepcopy(self._lm.model.config)
        if hasattr(config, "quantization_config"):
            del config.quantization_config
        config.dtype = self._dtype
        config.save_pretrained(folder)
        state: dict[str, Tensor] = {}
        places: set[int] = set()
        for name, tensor in self:
            tied = tensor.data_ptr() in places  # written under both names: a reload takes no head from an embedding
            places.add(tensor.data_ptr())
            state[name] = tensor.cpu().clone() if tied else tensor.cpu().contiguous()
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
