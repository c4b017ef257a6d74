"""Weights as the sampler lays them out: cast, copied for decoding, given back; no logit changes."""

from dataclasses import replace
from typing import Any
from unittest.mock import Mock

import pytest
import torch

from selfcorrect.config import LoraConfig
from selfcorrect.models import products
from selfcorrect.models.adapters import FROZEN, OFF, POLICY, Adapters, fresh_config
from selfcorrect.models.recompute import standing_in
from selfcorrect.samplers import prepacked
from selfcorrect.samplers.inference import InferenceWeights
from tests.support.tiny import ARCHITECTURES, tiny_lm


@pytest.mark.parametrize("precise", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_weights_cast_beforehand_change_no_logit(architecture: str, precise: torch.dtype) -> None:
    lm = replace(tiny_lm(architecture, "sdpa"), compute_dtype=precise)
    ids, everywhere = torch.arange(1, 13).view(2, 6), None
    before = lm.logits(ids, everywhere, use_cache=False)
    weights, state = InferenceWeights(lm), dict(lm.model.named_parameters())
    with torch.no_grad(), weights.lent(lm):
        cast = [module.weight.dtype for module in lm.model.modules() if isinstance(module, torch.nn.Linear)]
        assert set(cast) <= {precise}
        assert torch.equal(lm.logits(ids, everywhere, use_cache=False), before)
    with pytest.raises(KeyboardInterrupt), weights.lent(lm):
        raise KeyboardInterrupt
    after = dict(lm.model.named_parameters())
    assert [name for name in state if after[name] is not state[name]] == []
    assert lm.model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("view", [POLICY, OFF, FROZEN, None])
@pytest.mark.parametrize("precise", [torch.float32, torch.bfloat16])
def test_weights_laid_out_for_decoding(view: str | None, precise: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """As they are now, with the adapter that the view shows; nothing is left behind."""
    assert products.works(torch.float32)
    monkeypatch.setattr(prepacked, "least", lambda _: 1 << 8)
    monkeypatch.setattr(prepacked, "LEAST_ADAPTED", 1 << 7)
    lm = replace(tiny_lm("qwen2", "sdpa"), compute_dtype=precise)
    if view is not None:
        lm.adapters = Adapters(lm.model, fresh_config(LoraConfig(), lm.model), "a base", 0)
        lm.adapters.load(lm.adapters.tensors(), FROZEN)
        lm = replace(lm, view=view)
    read = Mock(wraps=prepacked._forward)
    monkeypatch.setattr(prepacked, "_forward", read)
    draws = torch.Generator().manual_seed(1)
    ids, weights = torch.arange(1, 13).view(2, 6), InferenceWeights(lm)
    for _ in range(2):
        with torch.no_grad():
            for parameter in lm.model.parameters():  # biases and adapters too, and the second time once more
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=draws))
            before = lm.logits(ids, None, use_cache=False)
            weights.new_version()
            with weights.lent(lm):
                after = lm.logits(ids, None, use_cache=False)
        within = 1e-5 if precise == torch.float32 else 0.05
        torch.testing.assert_close(after, before, rtol=within, atol=within)
    # On a processor without AVX-512 oneDNN has no product in bfloat16, and all stays as it is.
    assert read.call_count >= 2 * len(lm.model.model.layers) if products.works(precise) else not read.called
    with pytest.raises(KeyboardInterrupt), weights.lent(lm):
        raise KeyboardInterrupt
    monkeypatch.setattr(prepacked, "free_memory_of_machine", lambda: 1000)
    assert not [name for name, module in lm.model.named_modules() if "forward" in vars(module)]
    with weights.lent(lm):  # no room for copies
        assert not [name for name, module in lm.model.named_modules() if "forward" in vars(module)]
    monkeypatch.setattr(prepacked, "free_memory_of_machine", lambda: 1 << 40)
    none = replace(lm, copies=False)  # nor where the recipe has none
    with weights.lent(none):
        assert not [name for name, module in lm.model.named_modules() if "forward" in vars(module)]


def test_a_new_version_of_the_weights_is_cast_into_the_same_memory() -> None:
    lm = replace(tiny_lm("llama", "sdpa"), compute_dtype=torch.bfloat16)
    weights, linear = InferenceWeights(lm), lm.model.model.layers[0].mlp.up_proj
    weights.new_version()
    assert weights.moves == 1
    with weights.lent(lm):
        first, address = linear.weight.clone(), linear.weight.data_ptr()
    with torch.no_grad():
        linear.weight.mul_(2)
    weights.new_version()
    assert weights.moves == 1
    with weights.lent(lm):
        assert linear.weight.data_ptr() == address
        assert torch.equal(linear.weight, 2 * first)
    linear.weight = torch.nn.Parameter(linear.weight.detach().clone())
    weights.new_version()
    assert weights.moves == 2  # what was recorded reads the old one


def test_what_stands_in_for_a_forward_pass_goes_as_it_came() -> None:
    module: Any = torch.nn.Identity()
    with standing_in([(module, "outer")]):
        with standing_in([(module, "inner")]):
            assert module.forward == "inner"
        assert module.forward == "outer"
    assert "forward" not in vars(module)
