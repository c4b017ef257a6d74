"""What models do to their head's products: read off the config, tried, and the same wherever logits are made."""

from typing import Any

import pytest
import torch
import transformers

from selfcorrect.lab.base import build_tokenizer
from selfcorrect.learning.vocabulary import Tiles, score
from selfcorrect.models.head import HeadForm, head_form
from selfcorrect.models.language_model import LanguageModel
from selfcorrect.models.loading import wrap

SIZES: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2,
    "intermediate_size": 48, "max_position_embeddings": 64,
}  # fmt: skip
FORMS: dict[str, tuple[dict[str, Any], HeadForm | None]] = {
    "Llama": ({}, HeadForm()),
    "Gemma2": ({"head_dim": 16, "final_logit_softcapping": 2.0}, HeadForm(softcap=2.0)),
    "Gemma": ({"head_dim": 16}, HeadForm()),
    "Cohere": ({"logit_scale": 0.0625}, HeadForm(scale=0.0625)),
    "Granite": ({"logits_scaling": 3.0}, HeadForm(scale=1 / 3)),
    "Phi": ({}, HeadForm()),  # with a bias
}


def model_of(kind: str, **changes: Any) -> Any:
    tokenizer = build_tokenizer(12)
    ids = {"bos_token_id": None, "pad_token_id": None, "eos_token_id": tokenizer.eos_token_id}
    config = getattr(transformers, f"{kind}Config")(vocab_size=len(tokenizer), **SIZES, **ids, **changes)
    torch.manual_seed(0)
    model = getattr(transformers, f"{kind}ForCausalLM")(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return model


@pytest.mark.parametrize("kind", FORMS)
def test_the_pass_over_tiles_is_the_models_own_logits(kind: str) -> None:
    changes, expected = FORMS[kind]
    model = model_of(kind, **changes)
    lm = wrap(model, build_tokenizer(12))
    assert lm.head_form == expected
    ids_BT = torch.randint(len(lm.tokenizer), (2, 7), generator=torch.Generator().manual_seed(1))
    select_BT = torch.ones(2, 6, dtype=torch.bool)
    logits_NV = model(input_ids=ids_BT[:, :-1]).logits[select_BT]
    allowed = 1e-5 * float(logits_NV.detach().abs().max())
    with torch.no_grad():
        torch.testing.assert_close(lm.logits(ids_BT[:, :-1], select_BT), logits_NV, rtol=0, atol=allowed)
    drawn_N = ids_BT[:, 1:][select_BT]
    plain_N = logits_NV.log_softmax(-1).gather(1, drawn_N[:, None])[:, 0]
    found_N, _ = score(lm.states(ids_BT[:, :-1], select_BT), None, drawn_N, 1.0, "analytic", Tiles(60, 10, 0))
    torch.testing.assert_close(found_N, plain_N, rtol=0, atol=allowed)
    parameters = list(model.parameters())
    for mine, theirs in zip(*(torch.autograd.grad(v.sum(), parameters) for v in (found_N, plain_N)), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-5 * max(1.0, float(theirs.abs().max())))


class Wrapped(torch.nn.Linear):
    """As an adapter's layer: more than its weight."""


def unknown(what: str) -> Any:
    model = model_of("Llama")
    if what == "a head that is more than its weight":
        head = Wrapped(model.lm_head.in_features, model.lm_head.out_features, bias=False)
        head.weight = model.lm_head.weight
        model.lm_head = head
    elif what == "a scale of another name":
        forward = model.forward

        def scaled(*args: Any, **kwargs: Any) -> Any:
            output = forward(*args, **kwargs)
            output.logits = output.logits * 0.5
            return output

        model.forward = scaled
    else:
        model.config.logits_scaling = 2.0  # named, but this model does not do it
    return model


@pytest.mark.parametrize(
    "what", ["a head that is more than its weight", "a scale of another name", "a scale that is named and not used"]
)
def test_what_is_not_known_goes_the_plain_way(what: str) -> None:
    model = unknown(what)
    assert head_form(model) is None
    lm: LanguageModel = wrap(model, build_tokenizer(12))
    ids_BT, select_BT = torch.tensor([[5, 6, 7, 8]]), torch.ones(1, 4, dtype=torch.bool)
    states = lm.states(ids_BT, select_BT)
    assert states.head is None
    assert torch.equal(states.hidden_ND, model(input_ids=ids_BT).logits[0])
