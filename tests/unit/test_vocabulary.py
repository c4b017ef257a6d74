"""One pass over the vocabulary: values and gradients are those of autograd on whole logits, which are never made."""

import math
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from selfcorrect.learning.vocabulary import KLEstimator, Tiles, score
from selfcorrect.models.head import Head, HeadForm, States

FORMS = [HeadForm(), HeadForm(scale=0.25), HeadForm(softcap=3.0), HeadForm(scale=2.0, softcap=5.0)]


def whole_logits(states: States) -> Tensor:
    """As a model's own forward pass makes them."""
    if states.head is None:
        return states.hidden_ND
    head, dtype = states.head, states.hidden_ND.dtype
    bias_V = None if head.bias_V is None else head.bias_V.to(dtype)
    logits = torch.nn.functional.linear(states.hidden_ND, head.weight_VD.to(dtype), bias_V)
    logits = logits if dtype == torch.float64 else logits.float()
    scaled = logits * head.form.scale
    return scaled if head.form.softcap is None else head.form.softcap * torch.tanh(scaled / head.form.softcap)


def on_whole_logits(
    policy: States, reference: States | None, ids_N: Tensor, temperature: float, estimator: KLEstimator
) -> tuple[Tensor, Tensor]:
    """The oracle: log-softmax of whole logits, autograd."""
    logprobs_NV = (whole_logits(policy) / temperature).log_softmax(-1)
    logprobs_N = logprobs_NV.gather(1, ids_N[:, None])[:, 0]
    if reference is None:
        return logprobs_N, torch.zeros_like(logprobs_N)
    ref_NV = (whole_logits(reference) / temperature).log_softmax(-1)
    if estimator == "analytic":
        return logprobs_N, (logprobs_NV.exp() * (logprobs_NV - ref_NV)).sum(-1)
    return logprobs_N, (logprobs_N - ref_NV.gather(1, ids_N[:, None])[:, 0]).detach()


def case(
    tokens: int, hidden: int, vocabulary: int, form: HeadForm | None, *, bias: bool = False, spread: float = 3.0,
    shared: bool = False, dtype: torch.dtype = torch.float64,
) -> tuple[States, States, Tensor, list[Tensor]]:  # fmt: skip
    """Policy, reference, sampled tokens, and the policy's tensors that train. spread: of logits; shared: one head."""
    generator = torch.Generator().manual_seed(tokens + 97 * vocabulary)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator, dtype=torch.float64).to(dtype)

    ids_N = torch.randint(vocabulary, (tokens,), generator=generator)
    if form is None:
        logits_NV = (normal(tokens, vocabulary) * spread).requires_grad_()
        return States(logits_NV), States(normal(tokens, vocabulary) * spread), ids_N, [logits_NV]
    hidden_ND, weight_VD = normal(tokens, hidden).requires_grad_(), normal(vocabulary, hidden) * spread / hidden**0.5
    weight_VD.requires_grad_()
    bias_V = normal(vocabulary).requires_grad_() if bias else None
    near = weight_VD.detach() if shared else weight_VD.detach() + normal(vocabulary, hidden) * spread / hidden**0.5 / 4
    reference = States(normal(tokens, hidden), Head(near, None if bias_V is None else bias_V.detach(), form))
    trained = [hidden_ND, weight_VD, *([] if bias_V is None else [bias_V])]
    return States(hidden_ND, Head(weight_VD, bias_V, form)), reference, ids_N, trained


def outcome(found: tuple[Tensor, Tensor], trained: list[Tensor]) -> list[Tensor]:
    """log-probabilities, KL, and the gradient of a fixed mix of both at each tensor."""
    generator = torch.Generator().manual_seed(5)
    logprobs_N, kl_N = found
    mix_2N = torch.randn(2, len(logprobs_N), generator=generator, dtype=torch.float64).to(logprobs_N.dtype)
    value = (mix_2N[0] * logprobs_N).sum() + (mix_2N[1] * kl_N).sum()
    return [logprobs_N.detach(), kl_N.detach(), *torch.autograd.grad(value, trained)]


@given(
    tokens=st.integers(0, 40), hidden=st.integers(1, 9), vocabulary=st.integers(1, 60),
    form=st.sampled_from([None, *FORMS]), bias=st.booleans(), shared=st.booleans(), reference=st.booleans(),
    temperature=st.sampled_from([0.3, 0.7, 1.0, 2.0]), estimator=st.sampled_from(["analytic", "k1"]),
    numbers=st.integers(1, 200), widest=st.integers(1, 64), kept=st.sampled_from([0, 150, 10**6]),
    spread=st.sampled_from([0.0, 1.0, 8.0]),
)  # fmt: skip
def test_it_is_autograd_on_whole_logits(
    tokens: int, hidden: int, vocabulary: int, form: HeadForm | None, bias: bool, shared: bool, reference: bool,
    temperature: float, estimator: KLEstimator, numbers: int, widest: int, kept: int, spread: float,
) -> None:  # fmt: skip
    policy, other, ids_N, trained = case(tokens, hidden, vocabulary, form, bias=bias, shared=shared, spread=spread)
    arguments = (policy, other if reference else None, ids_N, temperature, estimator)
    found = outcome(score(*arguments, Tiles(numbers, widest, kept)), trained)
    expected = outcome(on_whole_logits(*arguments), trained)
    for mine, theirs in zip(found, expected, strict=True):
        allowed = 1e-12 * max([1.0, *theirs.abs().flatten().tolist()])
        torch.testing.assert_close(mine, theirs, rtol=0, atol=allowed)


def test_the_reference_gets_no_gradient_and_a_second_backward_pass_is_the_first_again() -> None:
    policy, reference, ids_N, trained = case(9, 4, 30, HeadForm())
    assert reference.head
    reference.hidden_ND.requires_grad_()
    reference.head.weight_VD.requires_grad_()
    logprobs_N, kl_N = score(policy, reference, ids_N, 0.7, "analytic", Tiles(64, 16, 128))
    value = logprobs_N.sum() + kl_N.sum()
    first = torch.autograd.grad(value, trained, retain_graph=True)
    assert all(map(torch.equal, first, torch.autograd.grad(value, trained, retain_graph=True)))
    unused = torch.autograd.grad(value, [reference.hidden_ND, reference.head.weight_VD], allow_unused=True)
    assert [gradient is None for gradient in unused] == [True, True]


def test_in_place_the_gradient_of_the_head_is_added_to_what_is_there() -> None:
    """Over several spans of tokens and of vocabulary; autograd gets none to add."""
    policy, reference, ids_N, trained = case(37, 8, 50, HeadForm(scale=2.0, softcap=5.0), bias=True)
    tiles = Tiles(80, 16, 0)
    logprobs_N, kl_N = score(policy, reference, ids_N, 0.7, "analytic", tiles)
    (logprobs_N.square().sum() + kl_N.sum()).backward()  # type: ignore[no-untyped-call]
    expected = [torch.as_tensor(tensor.grad) for tensor in trained]
    weight_VD = trained[1]
    for tensor in trained:
        tensor.grad = None
    sum_VD = weight_VD.grad = torch.ones_like(weight_VD)
    logprobs_N, kl_N = score(policy, reference, ids_N, 0.7, "analytic", tiles, in_place=True)
    (logprobs_N.square().sum() + kl_N.sum()).backward()  # type: ignore[no-untyped-call]
    assert weight_VD.grad is sum_VD
    expected[1] = expected[1] + 1
    for tensor, gradient in zip(trained, expected, strict=True):
        torch.testing.assert_close(tensor.grad, gradient, rtol=0, atol=1e-12)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("estimator", ["analytic", "k1"])
def test_float32_is_the_whole_logits_within_rounding(estimator: KLEstimator, form: HeadForm) -> None:
    """Both paths are held to float64 at the same float32 inputs.

    Let L be the largest |u| or |r|, both at the temperature, and eps half the distance from 1 to the next float32.
    A logit is a sum of D products: it is off by at most d = D * eps * (sum of the products' sizes), and by a few
    eps * L from scale, cap and temperature. A log-sum-exp moves by no more than its logits do, and summing V positive
    terms, tile by tile, adds at most V * eps relative: V * eps absolute after the log. So a log-probability is off by
    no more than 2 * d + (V + 8) * eps * (1 + L), and the KL, a mean of differences of such, by twice that and
    V * eps * (largest |u - r|) <= 2 * V * eps * L for its own sum.
    """
    tokens, hidden, vocabulary, temperature = 64, 24, 300, 0.7
    policy, reference, ids_N, trained = case(tokens, hidden, vocabulary, form, dtype=torch.float32)

    def doubled(states: States) -> States:
        assert states.head
        return States(states.hidden_ND.double(), Head(states.head.weight_VD.double(), None, form))

    exact = outcome(on_whole_logits(doubled(policy), doubled(reference), ids_N, temperature, estimator), trained)
    sizes = policy.hidden_ND.abs() @ trained[1].abs().T
    largest = form.scale * float(sizes.detach().max()) / temperature
    eps = 2.0**-24
    allowed = 2 * hidden * eps * largest + (vocabulary + 8) * eps * (1 + largest)
    for path in (score(policy, reference, ids_N, temperature, estimator, Tiles(512, 64, 0)),
                 on_whole_logits(policy, reference, ids_N, temperature, estimator)):  # fmt: skip
        logprobs_N, kl_N, *gradients = outcome(path, trained)
        torch.testing.assert_close(logprobs_N.double(), exact[0], rtol=0, atol=allowed)
        torch.testing.assert_close(kl_N.double(), exact[1], rtol=0, atol=2 * allowed + 2 * vocabulary * eps * largest)
        for mine, theirs in zip(gradients, exact[2:], strict=True):
            # p is off by `allowed` relative, as is u - r - E absolute: to first order the gradient by their sum.
            torch.testing.assert_close(mine, theirs.float(), rtol=0, atol=4 * allowed * float(theirs.abs().max()))


def test_a_small_kl_is_not_lost_in_rounding() -> None:
    """Large logits, a KL of 1e-7: the running maxima are subtracted from each other first, being exact."""
    generator = torch.Generator().manual_seed(0)
    ref_NV = 40 + 3 * torch.randn(50, 3000, generator=generator)
    logits_NV = ref_NV + 4e-4 * torch.randn(50, 3000, generator=generator)
    ids_N = torch.zeros(50, dtype=torch.long)
    exact_N = on_whole_logits(States(logits_NV.double()), States(ref_NV.double()), ids_N, 1.0, "analytic")[1]
    assert 1e-8 < float(exact_N.mean()) < 1e-6
    _, kl_N = score(States(logits_NV), States(ref_NV), ids_N, 1.0, "analytic")
    _, plain_N = on_whole_logits(States(logits_NV), States(ref_NV), ids_N, 1.0, "analytic")
    assert (kl_N - exact_N).abs().max() < (plain_N - exact_N).abs().max()


@pytest.mark.parametrize("estimator", ["analytic", "k1"])
def test_bfloat16_logits_are_those_of_a_linear_layer_under_autocast(estimator: KLEstimator) -> None:
    """Products are rounded to bfloat16, as the sampler's are; what follows is float32. Gradients: of bfloat16 products."""
    policy, reference, ids_N, trained = case(40, 24, 300, HeadForm(), dtype=torch.float32)

    def cast(states: States) -> States:
        return States(states.hidden_ND.to(torch.bfloat16), states.head)

    assert policy.head
    assert reference.head
    with torch.autocast("cpu", torch.bfloat16):
        both = [torch.nn.functional.linear(s.hidden_ND, s.head.weight_VD) for s in (policy, reference) if s.head]
    assert both[0].dtype == torch.bfloat16
    plain = outcome(on_whole_logits(States(both[0].float()), States(both[1].float()), ids_N, 0.7, estimator), trained)
    found = outcome(score(cast(policy), cast(reference), ids_N, 0.7, estimator, Tiles(900, 50, 0)), trained)
    for mine, theirs in zip(found[:2], plain[:2], strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-4)
    for mine, theirs in zip(found[2:], plain[2:], strict=True):
        assert mine.dtype == torch.float32
        assert (mine - theirs).norm() < 2**-7 * theirs.norm()  # a bfloat16 is off by 2**-9 of itself


class Sizes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """The most numbers in any tensor that an operation made, in memory of its own."""

    largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given = {value.untyped_storage().data_ptr() for value in args if isinstance(value, Tensor)}
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, Tensor) and tensor.untyped_storage().data_ptr() not in given:
                self.largest = max(self.largest, tensor.numel())
        return result


@pytest.mark.parametrize("trains", [True, False], ids=["head trains", "head is frozen"])
def test_nothing_larger_than_a_tile_or_the_weights_is_made(trains: bool) -> None:
    tokens, hidden, vocabulary, tiles = 40, 3, 2000, Tiles(1500, 500, 0)
    policy, reference, ids_N, trained = case(tokens, hidden, vocabulary, HeadForm())
    trained[1].requires_grad_(trains)
    with Sizes() as sizes:  # type: ignore[no-untyped-call]
        logprobs_N, kl_N = score(policy, reference, ids_N, 1.0, "analytic", tiles)
        (logprobs_N.sum() + kl_N.sum()).backward()  # type: ignore[no-untyped-call]
    assert (trained[1].grad is not None) == trains
    assert sizes.largest == (vocabulary * hidden if trains else 1500)


@pytest.mark.parametrize(("kept", "expected"), [(0, 0), (3999, 3500), (10**6, 20_000)])
def test_tiles_are_kept_for_backward_up_to_a_bound(kept: int, expected: int) -> None:
    """Small vocabularies are not computed twice; of large ones a fixed part is kept."""
    policy, reference, ids_N, _ = case(10, 3, 2000, HeadForm())
    logprobs_N, _ = score(policy, reference, ids_N, 1.0, "analytic", Tiles(500, 50, kept))
    pairs: Any = logprobs_N.grad_fn
    for side in (0, 1):
        assert sum(pair[side].numel() for pair in pairs.kept.values()) == expected
    logprobs_N.sum().backward()  # type: ignore[no-untyped-call]
    assert not pairs.kept


def test_a_masked_vocabulary_is_no_number_lost() -> None:
    """Logits of -inf in whole tiles, as models that mask part of their vocabulary give: log-softmax's own values."""
    logits_NV = torch.full((4, 40), -math.inf, dtype=torch.float64)
    logits_NV[:, 17:23] = torch.randn(4, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    logits_NV.requires_grad_()
    states, ids_N = States(logits_NV), torch.tensor([17, 18, 22, 20])
    found = outcome(score(states, None, ids_N, 0.7, "analytic", Tiles(12, 6, 0)), [logits_NV])
    expected = outcome(on_whole_logits(states, None, ids_N, 0.7, "analytic"), [logits_NV])
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-14)
