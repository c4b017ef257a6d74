"""Log-probabilities of sampled tokens and the KL over the whole vocabulary, without logits in memory.

Both come from hidden states, tile by tile (tokens x vocabulary): a tile's logits of the policy and of the reference
exist once, and leave behind running sums for each token. With u and r the two at the sampling temperature,

    s = sum exp(u - m)    log p(y) = u_y - m - log s    E = E_p[u - r]    KL(p || q) = E - (m - m_r) - log s / s_r

where m is the largest u so far; a larger one rescales the sums. The backward pass makes each tile again:

    d/du = p * (g_kl * (u - r - E) - g_logprob) + g_logprob at the sampled token

Nobody's gradient reaches the reference. Axes: N tokens, V vocabulary, D hidden; n and v those of a tile.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from selfcorrect.models import products
from selfcorrect.models.fused import fusible
from selfcorrect.models.head import Head, HeadForm, States

KLEstimator = Literal["analytic", "k1"]


@dataclass(frozen=True, slots=True)
class Tiles:
    """Numbers of a tile (tokens x vocabulary), its widest span of vocabulary, and how many are kept for backward."""

    numbers: int
    widest: int
    kept: int

    def spans(self, tokens: int, vocabulary: int) -> Iterator[tuple[slice, list[slice]]]:
        """A span of tokens, and the spans of vocabulary that make its tiles."""
        wide = min(vocabulary, self.widest)
        tall = max(1, self.numbers // wide)
        columns = [slice(at, min(at + wide, vocabulary)) for at in range(0, vocabulary, wide)]
        for at in range(0, tokens, tall):
            yield slice(at, min(at + tall, tokens)), columns


def tiles_for(device: torch.device) -> Tiles:
    """On a CPU by measurement: a tile fits its cache. On a GPU tall ones: each casts its part of the head."""
    return Tiles(1 << 20, 1 << 12, 1 << 25) if device.type == "cpu" else Tiles(1 << 26, 1 << 13, 1 << 27)


def score(
    policy: States, reference: States | None, token_ids_N: Tensor, temperature: float, estimator: KLEstimator,
    tiles: Tiles | None = None, *, in_place: bool = False,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Log pi(token) [N] and the KL to the reference [N], float32 (float64 from float64 states).

    analytic: KL(pi || pi_ref) over the vocabulary, differentiable. k1: the log-ratio of the sampled token, a value
    alone. Without a reference the KL is 0. Both distributions are taken at `temperature`.

    in_place: the backward pass adds to the gradient of the head's weight itself (models/tables.py), and hands autograd
    none. For `.backward()`; `torch.autograd.grad` would not see it.
    """
    head = policy.head
    tensors = (policy.hidden_ND, head.weight_VD, head.bias_V) if head else (policy.hidden_ND, None, None)
    analytic = reference is not None and estimator == "analytic"
    tiles = tiles or tiles_for(token_ids_N.device)
    sum_VD = head.weight_VD.grad if head and in_place else None
    reads = [_Read(each.head.form if each.head else HeadForm(), temperature) for each in (policy, reference) if each]
    add, at_products = fusible(_add_tile), fusible(_at_products)
    work = _Work(head.form if head else None, reference, token_ids_N, reads, analytic, tiles, sum_VD, add, at_products)
    logprobs_N, kl_N = _Score.apply(*tensors, work)  # type: ignore[no-untyped-call]
    return logprobs_N, kl_N


class _Read(NamedTuple):
    """How logits at the temperature follow from the products of hidden states and head (models/head.py)."""

    form: HeadForm
    temperature: float

    def logits(self, products_nv: Tensor) -> Tensor:
        """Float32 at least; the products themselves where nothing is done to them."""
        logits_nv = self.form.applied(products_nv.to(_precise(products_nv)))
        return logits_nv if self.temperature == 1 else logits_nv / self.temperature


class _Sums(NamedTuple):
    """Running sums of some tokens over the vocabulary. m, s: see above; picked: the sampled token's logit."""

    m_n: Tensor
    s_n: Tensor
    picked_n: Tensor

    @classmethod
    def empty(cls, like_n: Tensor) -> "_Sums":
        # Not -inf, whose difference to itself is no number.
        lowest_n = torch.full_like(like_n, torch.finfo(like_n.dtype).min)
        return cls(lowest_n, torch.zeros_like(like_n), torch.zeros_like(like_n))

    def logprobs(self) -> Tensor:
        return self.picked_n - self.m_n - self.s_n.log()


@dataclass(frozen=True, slots=True)
class _Work:
    """What a pass needs beside the policy's tensors. form: of the policy's head, None where it has none. reads: of the
    policy, and of the reference. sum_VD: what its weight's gradient is added to, None where autograd adds it.
    """

    form: HeadForm | None
    reference: States | None
    token_ids_N: Tensor
    reads: list[_Read]
    analytic: bool
    tiles: Tiles
    sum_VD: Tensor | None
    add_tile: Any
    at_products: Any

    def policy(self, hidden_ND: Tensor, weight_VD: Tensor, bias_V: Tensor | None) -> States:
        return States(hidden_ND, Head(weight_VD, bias_V, self.form) if self.form else None)

    def products(self, states: States, rows: slice, at: slice) -> Tensor:
        """A tile's products of hidden states and head [n, v], in memory of its own."""
        hidden_nD, head = states.hidden_ND[rows], states.head
        if head is None:
            return hidden_nD[:, at].clone()
        bias_v = None if head.bias_V is None else head.bias_V[at].to(hidden_nD.dtype)
        return products.product(hidden_nD, head.weight_VD[at].to(hidden_nD.dtype), bias_v)


def _add_tile(
    products: list[Tensor],
    sums: list[_Sums],
    e_n: Tensor,
    inside_n: Tensor,
    place_n: Tensor,
    reads: list[_Read],
    analytic: bool,
) -> tuple[list[_Sums], Tensor]:
    """The sums with a tile's in them, and E; both times what older sums are to be multiplied by.

    products [n, v]: of the policy, and of the reference where there is one. inside_n, place_n: see `_inside`.
    """
    logits = [read.logits(products_nv) for read, products_nv in zip(reads, products, strict=True)]
    added: list[_Sums] = []
    for logits_nv, (m_n, s_n, picked_n) in zip(logits, sums, strict=True):
        here_n = logits_nv.gather(1, place_n[:, None]).squeeze(1)
        largest_n = torch.maximum(m_n, logits_nv.amax(1))
        shrink_n = (m_n - largest_n).exp_()
        weights_nv = (logits_nv - largest_n[:, None]).exp_()
        sum_n = s_n * shrink_n + weights_nv.sum(1)
        if analytic and not added:  # of the policy
            e_n = e_n * shrink_n + weights_nv.mul_(logits_nv - logits[1]).sum(1)
        added.append(_Sums(largest_n, sum_n, torch.where(inside_n, here_n, picked_n)))
    return added, e_n


class _Score(torch.autograd.Function):
    """(hidden_ND, weight_VD, bias_V) -> log-probabilities, KL."""

    @staticmethod
    def forward(ctx: Any, hidden_ND: Tensor, weight_VD: Any, bias_V: Any, work: _Work) -> tuple[Tensor, Tensor]:
        dtype, policy = _precise(hidden_ND), work.policy(hidden_ND, weight_VD, bias_V)
        logprobs_N, kl_N, m_N, s_N, e_N = hidden_ND.new_zeros(5, len(hidden_ND), dtype=dtype)
        states = [policy, work.reference] if work.reference else [policy]
        kept, room = {}, work.tiles.kept
        for rows, columns in work.tiles.spans(len(hidden_ND), policy.vocabulary):
            e_n = torch.zeros_like(kl_N[rows])
            sums = [_Sums.empty(e_n) for _ in states]
            for at in columns:
                products_nv = [work.products(each, rows, at) for each in states]
                inside = _inside(work.token_ids_N[rows], at)
                sums, e_n = work.add_tile(products_nv, sums, e_n, *inside, work.reads, work.analytic)
                room -= products_nv[0].numel()
                if room >= 0:
                    kept[rows.start, at.start] = products_nv if work.analytic else products_nv[:1]
                del products_nv  # before the next tile's are made
            mine, *theirs = sums
            logprobs_N[rows], m_N[rows], s_N[rows], e_N[rows] = mine.logprobs(), mine.m_n, mine.s_n, e_n / mine.s_n
            if work.analytic:
                # The maxima's difference first: each is exact, and both are far larger than it.
                kl_N[rows] = e_N[rows] - (mine.m_n - theirs[0].m_n) - (mine.s_n / theirs[0].s_n).log()
            elif theirs:
                kl_N[rows] = logprobs_N[rows] - theirs[0].logprobs()
            del sums, mine, theirs  # before the next rows'
        ctx.save_for_backward(hidden_ND, weight_VD, bias_V)
        ctx.work, ctx.kept, ctx.sums = work, kept, (m_N, s_N, e_N)
        if not work.analytic:
            ctx.mark_non_differentiable(kl_N)
        return logprobs_N, kl_N

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g_logprob_N: Tensor, g_kl_N: Tensor) -> tuple[Tensor | None, ...]:
        (hidden_ND, weight_VD, bias_V), work, kept = ctx.saved_tensors, ctx.work, ctx.kept
        ctx.kept = {}  # used up here: a second backward pass makes every tile again
        policy, dtype = work.policy(hidden_ND, weight_VD, bias_V), _precise(hidden_ND)
        states = [policy, work.reference] if work.analytic else [policy]
        hidden, weight, bias = ctx.needs_input_grad[:3]
        d_hidden_ND = torch.zeros_like(hidden_ND, dtype=dtype) if hidden else None
        d_bias_V = torch.zeros_like(bias_V, dtype=dtype) if bias else None
        # As large as the vocabulary, so not zeroed: the first span of tokens writes all of it.
        room = torch.empty_like if len(hidden_ND) else torch.zeros_like
        d_weight_VD = work.sum_VD if work.sum_VD is not None or not weight else room(weight_VD, dtype=dtype)
        for rows, columns in work.tiles.spans(len(hidden_ND), policy.vocabulary):
            for at in columns:
                products_nv = kept.pop((rows.start, at.start), None)
                if products_nv is None:
                    products_nv = [work.products(each, rows, at) for each in states]
                inside = _inside(work.token_ids_N[rows], at)
                sums = [column[rows, None] for column in (*ctx.sums, g_logprob_N, g_kl_N)]
                d_nv = work.at_products(products_nv, sums, *inside, work.reads)
                if d_hidden_ND is not None:
                    if policy.head is None:
                        d_hidden_ND[rows, at] = d_nv
                    else:
                        _add_product(d_hidden_ND[rows], d_nv, weight_VD[at].to(d_nv.dtype))
                if d_weight_VD is not None:
                    _add_product(d_weight_VD[at], d_nv.T, hidden_ND[rows], anew=work.sum_VD is None and rows.start == 0)
                if d_bias_V is not None:
                    d_bias_V[at] += d_nv.sum(0)
                del products_nv, d_nv
        return d_hidden_ND, d_weight_VD if work.sum_VD is None else None, d_bias_V, None


def _at_products(
    products: list[Tensor], sums: list[Tensor], inside_n: Tensor, place_n: Tensor, reads: list[_Read]
) -> Tensor:
    """The gradient at a tile's products of hidden states and head, in their dtype; the products are used up.

    products [n, v]: of the policy, and of the reference where the KL has a gradient.
    """
    u_nv, *rest = (read.logits(products_nv) for read, products_nv in zip(reads, products, strict=False))
    m_n1, s_n1, e_n1, g_logprob_n1, g_kl_n1 = sums
    (form, temperature), *_ = reads
    slope_nv = 1 - (u_nv * (temperature / form.softcap)).square_() if form.softcap else None
    if not rest:
        d_nv = u_nv.sub_(m_n1).exp_().mul_(-g_logprob_n1 / s_n1)
    else:
        d_nv = rest[0].neg_().add_(u_nv).sub_(e_n1).mul_(g_kl_n1).sub_(g_logprob_n1)
        d_nv.mul_(u_nv.sub_(m_n1).exp_().div_(s_n1))
    d_nv.scatter_add_(1, place_n[:, None], g_logprob_n1 * inside_n[:, None])
    if slope_nv is not None:
        d_nv.mul_(slope_nv)
    scale = form.scale / temperature
    return (d_nv if scale == 1 else d_nv.mul_(scale)).to(products[0].dtype)


def _add_product(sum_: Tensor, left: Tensor, right: Tensor, anew: bool = False) -> None:
    """sum_ += left @ right, in place; anew: sum_ = left @ right, whatever it held.

    Each tile's product rounded to bfloat16 before it is added would bias the sum.
    """
    if _add_mixed(sum_, left, right, anew):
        return
    left, right = left.to(sum_.dtype), right.to(sum_.dtype)
    if products.fits(left, right.T):  # no larger than a tile is the product that is added
        made = products.product(left, right.T)
        sum_.copy_(made) if anew else sum_.add_(made)
    else:  # with beta = 0 what is not a number is not read
        sum_.addmm_(left, right, beta=0 if anew else 1)


def _add_mixed(sum_: Tensor, left: Tensor, right: Tensor, anew: bool) -> bool:
    """On a card factors of less precision than the sum need no casts; whether that was so."""
    if sum_.dtype == left.dtype or sum_.device.type != "cuda":
        return False
    torch.addmm(sum_, left, right, beta=0 if anew else 1, out_dtype=sum_.dtype, out=sum_)
    return True


def _inside(token_ids_n: Tensor, at: slice) -> tuple[Tensor, Tensor]:
    """Which tokens lie in a span of vocabulary, and where in it (anywhere for the others)."""
    inside_n = (token_ids_n >= at.start) & (token_ids_n < at.stop)
    return inside_n, (token_ids_n - at.start).clamp(0, at.stop - at.start - 1)


def _precise(states: Tensor) -> torch.dtype:
    """What logits are summed in."""
    return torch.float64 if states.dtype == torch.float64 else torch.float32
