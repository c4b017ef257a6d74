"""How a model reads logits off its last hidden states.

    logits = softcap * tanh(scale * (hidden W^T + b) / softcap)        without softcap: scale * (hidden W^T + b)

Axes: N tokens, D hidden, V vocabulary.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class HeadForm:
    """What a model does to its head's products. Gemma 2 caps them, Cohere and Granite scale them."""

    scale: float = 1.0
    softcap: float | None = None

    def applied(self, products: Tensor) -> Tensor:
        """The logits from hidden W^T + b."""
        scaled = products if self.scale == 1 else products * self.scale
        return scaled if self.softcap is None else (scaled / self.softcap).tanh() * self.softcap


@dataclass(frozen=True, slots=True)
class Head:
    """weight_VD and bias_V: the model's own, with or without gradients."""

    weight_VD: Tensor
    bias_V: Tensor | None = None
    form: HeadForm = HeadForm()


@dataclass(frozen=True, slots=True)
class States:
    """What a model predicts N tokens from: hidden states and its head; with no head, hidden_ND are logits [N, V].

    The head's products are taken in the dtype of the hidden states.
    """

    hidden_ND: Tensor
    head: Head | None = None

    @property
    def vocabulary(self) -> int:
        return (self.hidden_ND if self.head is None else self.head.weight_VD.T).shape[1]

    def part(self, of: slice) -> "States":
        return States(self.hidden_ND[of], self.head)


@torch.no_grad()
def head_form(model: Any) -> HeadForm | None:
    """Read off the config, then tried on a few tokens; None where the model does something else."""
    try:
        head = model.get_output_embeddings()
        if type(head) is not torch.nn.Linear:
            return None  # an adapter's or a quantised layer is more than its weight
        config = model.config.get_text_config()
        form = _named(config)
        probe = torch.arange(1, 5, device=next(model.parameters()).device)[None] % config.vocab_size
        products = head(model.get_decoder()(input_ids=probe).last_hidden_state)
        theirs = model(input_ids=probe).logits
        if form == HeadForm():
            return form if torch.equal(products, theirs) else None
        # Dividing by a scale is multiplying by its inverse up to two roundings; tanh and the cap add a few.
        allowed = 8 * torch.finfo(theirs.dtype).eps * float(theirs.abs().max())
        return form if float((form.applied(products) - theirs).abs().max()) <= allowed else None
    except Exception:  # noqa: BLE001 - models of other shapes fail here in their own ways; the whole forward serves
        return None


def _named(config: Any) -> HeadForm:
    scale = getattr(config, "logit_scale", None) or getattr(config, "lm_head_multiplier", None) or 1.0
    divided = getattr(config, "logits_scaling", None) or 1.0
    return HeadForm(float(scale) / float(divided), getattr(config, "final_logit_softcapping", None))
