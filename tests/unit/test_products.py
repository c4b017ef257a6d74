"""Products by oneDNN: those of torch's own linear layers up to rounding, gradients included, and nothing else's."""

import copy
import os
from typing import Any

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from selfcorrect.learning.vocabulary import score
from selfcorrect.models import products
from selfcorrect.models.head import Head, States
from selfcorrect.samplers.inference import InferenceWeights
from tests.support.tiny import tiny_lm

ROUNDING = 3e-6  # of sums of 192 products, relative to the whole


@pytest.fixture
def by_onednn(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Whatever this processor is, products of every size go to oneDNN; the shapes of what did."""
    if not products.works(torch.float32):
        pytest.skip("this torch has no oneDNN")
    shapes, own = list[tuple[int, ...]](), products.by_onednn

    def noted(x: torch.Tensor, *given: Any) -> torch.Tensor:
        shapes.append(tuple(x.shape))
        return own(x, *given)

    for name, value in (("faster", lambda: True), ("LEAST", 1), ("_WORK", 1), ("by_onednn", noted)):
        monkeypatch.setattr(products, name, value)
    return shapes


@pytest.mark.parametrize("trains", ["x", "weight", "bias", "x weight bias"])
@pytest.mark.parametrize(("rows", "inner", "outer"), [((7,), 192, 48), ((3, 5), 192, 48), ((4, 90), 8, 72)])
def test_products_and_gradients_are_torchs_own(
    trains: str, rows: tuple[int, ...], inner: int, outer: int, by_onednn: list[tuple[int, ...]]
) -> None:
    """The last rows are so many that their gradient comes lying across."""
    torch.manual_seed(0)
    tensors = {"x": torch.randn(*rows, inner), "weight": torch.randn(outer, inner), "bias": torch.randn(outer)}
    g, found = torch.randn(*rows, outer), []
    for dtype, multiply in ((torch.float32, products.product), (torch.float64, nn.functional.linear)):
        leaves = {name: t.to(dtype, copy=True).requires_grad_(name in trains.split()) for name, t in tensors.items()}
        made = multiply(*leaves.values())
        made.backward(g.to(dtype))  # type: ignore[no-untyped-call]
        found.append([made, *(leaf.grad for leaf in leaves.values())])
    assert len(by_onednn) == 1 + ("x" in trains.split()) + ("weight" in trains)  # and no product that nobody needs
    for mine, true in zip(*found, strict=True):
        assert (mine is None) == (true is None)
        if true is not None:
            assert mine.shape == true.shape
            assert (mine - true).norm() <= ROUNDING * true.norm()


def test_what_is_not_float32_goes_torchs_way(by_onednn: list[tuple[int, ...]]) -> None:
    x, weight = torch.randn(32, 64), torch.randn(48, 64)
    for dtype in (torch.float64, torch.bfloat16):
        assert torch.equal(products.product(x.to(dtype), weight.to(dtype)), x.to(dtype) @ weight.to(dtype).T)
    with torch.autocast("cpu", torch.bfloat16):
        assert products.product(x, weight).dtype == torch.bfloat16
    assert not by_onednn


def test_a_model_multiplies_so_with_its_own_weights(by_onednn: list[tuple[int, ...]]) -> None:
    """A copy does with the copy's; layers laid out for sampling come back to it."""
    lm, ids = tiny_lm("llama", "sdpa"), torch.arange(1, 13).view(2, 6)
    linear = [module for module in lm.model.modules() if type(module) is nn.Linear]
    for module in linear:
        vars(module).pop("forward", None)
    by_onednn.clear()
    plain = lm.logits(ids, None, use_cache=False)
    assert not by_onednn
    products.serve(lm.model)
    served = lm.logits(ids, None, use_cache=False)
    assert len(by_onednn) == len(linear)
    torch.testing.assert_close(served, plain, rtol=1e-5, atol=1e-5)
    other = copy.deepcopy(lm.model)
    with torch.no_grad():
        for parameter in lm.model.parameters():
            parameter.zero_()
    torch.testing.assert_close(other(input_ids=ids).logits.flatten(0, 1), plain, rtol=1e-5, atol=1e-5)
    assert not lm.logits(ids, None, use_cache=False).any()
    before = [vars(module)["forward"] for module in linear]
    with torch.no_grad(), InferenceWeights(lm).lent(lm):
        assert [vars(module)["forward"] for module in linear] != before
        by_onednn.clear()
        lm.logits(ids[:1, :1], None, use_cache=False)  # one row reads what is laid out too
        assert len(by_onednn) == len(linear)
    assert [vars(module)["forward"] for module in linear] == before


def test_the_pass_over_the_vocabulary_takes_it_too(by_onednn: list[tuple[int, ...]]) -> None:
    torch.manual_seed(0)
    hidden, weight, ids = torch.randn(40, 32), torch.randn(9000, 32), torch.randint(0, 9000, (40,))
    found = []
    for dtype in (torch.float32, torch.float64):
        leaves = [tensor.to(dtype, copy=True).requires_grad_() for tensor in (hidden, weight)]
        reference = States(0.2 * hidden.to(dtype), Head(weight.to(dtype)))
        logprobs, kl = score(States(leaves[0], Head(leaves[1])), reference, ids.to(torch.long), 1.0, "analytic")
        (logprobs.sum() + kl.sum()).backward()  # type: ignore[no-untyped-call]
        found.append([logprobs, kl, *(leaf.grad for leaf in leaves)])
    assert len(by_onednn) == 3 * (2 + 2)  # three spans of vocabulary: two heads, and two gradients
    for mine, true in zip(*found, strict=True):
        assert mine is not None
        assert true is not None
        assert (mine - true).norm() <= 1e-5 * true.norm()


@pytest.mark.parametrize(("vendor", "wide", "taken"), [("AuthenticAMD", "AVX512", True), ("AuthenticAMD", "AVX2", False),
                                                       ("GenuineIntel", "AVX512", False), ("", "AVX512", False)])  # fmt: skip
def test_it_is_the_processor_that_decides(vendor: str, wide: str, taken: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "_vendor", lambda: vendor)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: wide)
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: True)
    monkeypatch.setattr(products, "works", lambda dtype: True)
    monkeypatch.setenv(products._KERNELS, "7")  # so that what is set here is taken back
    monkeypatch.delenv(products._KERNELS)
    assert products.faster.__wrapped__() == taken
    assert os.environ.get(products._KERNELS) == ("64" if taken else None)
    monkeypatch.setattr(products, "faster", lambda: taken)
    model = nn.Sequential(nn.Linear(256, 256), nn.Linear(8, 8))
    products.serve(model)
    assert ["forward" in vars(layer) for layer in model] == [taken, False]


def test_a_plan_that_asks_first_is_answered_as_a_run_is() -> None:
    """What is asked on tensors without numbers is kept for all that comes after."""
    told = products.works(torch.float32)
    products.works.cache_clear()
    with FakeTensorMode():
        assert products.works(torch.float32) == told
    products.works.cache_clear()
