"""A frozen model whose layers lie in the machine's memory, and pass through an accelerator one at a time."""

from functools import partial
from typing import Any

import torch

from selfcorrect.models.language_model import LanguageModel


def stream(lm: LanguageModel) -> None:
    """Moves the decoder's layers to the machine's memory; each is on the device while it computes.

    Embeddings and head stay, as they are used from without.
    """
    for layer in stack_of(lm.model):
        kept = {}
        for name, parameter in layer.named_parameters():
            resident = parameter.data.to("cpu")
            kept[name] = resident.pin_memory() if lm.device.type == "cuda" else resident
            parameter.data = kept[name]
        layer.register_forward_pre_hook(partial(_bring, kept, lm.device))
        layer.register_forward_hook(partial(_leave, kept))


def stack_of(model: Any) -> list[Any]:
    """The decoder's layers: its longest list of modules."""
    lists = [module for module in model.modules() if isinstance(module, torch.nn.ModuleList)]
    return list(max(lists, key=len, default=()))


def _bring(kept: dict[str, torch.Tensor], device: torch.device, layer: torch.nn.Module, *_: Any) -> None:
    for name, parameter in layer.named_parameters():
        parameter.data = kept[name].to(device, non_blocking=True)


def _leave(kept: dict[str, torch.Tensor], layer: torch.nn.Module, *_: Any) -> None:
    for name, parameter in layer.named_parameters():
        parameter.data = kept[name]
