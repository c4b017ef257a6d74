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
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from selfcorrect.models import products
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
    work = _Work(head.form if head else None, reference, token_ids_N, temperature, analytic, tiles, sum_VD)
    logprobs_N, kl_N = _Score.apply(*tensors, work)  # type: ignore[no-untyped-call]
    return logprobs_N, kl_N


@dataclass(frozen=True, slots=True)
class _Work:
    """What a pass needs beside the policy's tensors. form: of the policy's head, None where it has none. sum_VD: what
    its weight's gradient is added to, None where autograd adds it.
    """

    form: HeadForm | None
    reference: States | None
    token_ids_N: Tensor
    temperature: float
    analytic: bool
    tiles: Tiles
    sum_VD: Tensor | None

    def policy(self, hidden_ND: Tensor, weight_VD: Tensor, bias_V: Tensor | None) -> States:
        return States(hidden_ND, Head(weight_VD, bias_V, self.form) if self.form else None)

    def logits(self, states: States, rows: slice, at: slice) -> Tensor:
        """A tile's logits at the temperature [n, v], in memory of its own."""
        hidden_nD, head = states.hidden_ND[rows], states.head
        if head is None:
            return hidden_nD[:, at].to(_precise(hidden_nD)) / self.temperature
        bias_v = None if head.bias_V is None else head.bias_V[at].to(hidden_nD.dtype)
        products_nv = products.product(hidden_nD, head.weight_VD[at].to(hidden_nD.dtype), bias_v)
        logits_nv = head.form.applied(products_nv.to(_precise(hidden_nD)))
        return logits_nv if self.temperature == 1 else logits_nv.div_(self.temperature)


class _Sums:
    """Running sums of some tokens over the vocabulary. m, s: see above; picked: the sampled token's logit."""

    def __init__(self, token_ids_n: Tensor, dtype: torch.dtype) -> None:
        self._ids_n = token_ids_n
        # Not -inf, whose difference to itself is no number.
        self.m_n = torch.full(token_ids_n.shape, torch.finfo(dtype).min, dtype=dtype, device=token_ids_n.device)
        self.s_n, self.picked_n = torch.zeros_like(self.m_n), torch.zeros_like(self.m_n)

    def add(self, logits_nv: Tensor, at: slice) -> tuple[Tensor, Tensor]:
        """exp(u - m) of this tile [n, v], and what older sums are to be multiplied by [n]."""
        inside_n, place_n = _inside(self._ids_n, at)
        self.picked_n = torch.where(inside_n, logits_nv.gather(1, place_n[:, None]).squeeze(1), self.picked_n)
        largest_n = torch.maximum(self.m_n, logits_nv.amax(1))
        shrink_n = (self.m_n - largest_n).exp_()
        weights_nv = (logits_nv - largest_n[:, None]).exp_()
        self.m_n, self.s_n = largest_n, self.s_n * shrink_n + weights_nv.sum(1)
        return weights_nv, shrink_n

    def logprobs(self) -> Tensor:
        return self.picked_n - self.m_n - self.s_n.log()


class _Score(torch.autograd.Function):
    """(hidden_ND, weight_VD, bias_V) -> log-probabilities, KL."""

    @staticmethod
    def forward(ctx: Any, hidden_ND: Tensor, weight_VD: Any, bias_V: Any, work: _Work) -> tuple[Tensor, Tensor]:
        dtype, policy = _precise(hidden_ND), work.policy(hidden_ND, weight_VD, bias_V)
        logprobs_N, kl_N, m_N, s_N, e_N = hidden_ND.new_zeros(5, len(hidden_ND), dtype=dtype)
        kept, room = {}, work.tiles.kept
        for rows, columns in work.tiles.spans(len(hidden_ND), policy.vocabulary):
            ids_n = work.token_ids_N[rows]
            mine, theirs, e_n = _Sums(ids_n, dtype), _Sums(ids_n, dtype), torch.zeros_like(kl_N[rows])
            for at in columns:
                u_nv = work.logits(policy, rows, at)
                r_nv = work.logits(work.reference, rows, at) if work.reference else None
                weights_nv, shrink_n = mine.add(u_nv, at)
                if r_nv is not None:
                    theirs.add(r_nv, at)
                    if work.analytic:
                        e_n = e_n * shrink_n + weights_nv.mul_(u_nv - r_nv).sum(1)
                room -= u_nv.numel()
                if room >= 0:
                    kept[rows.start, at.start] = u_nv, r_nv if work.analytic else None
            logprobs_N[rows], m_N[rows], s_N[rows], e_N[rows] = mine.logprobs(), mine.m_n, mine.s_n, e_n / mine.s_n
            if work.analytic:
                # The maxima's difference first: each is exact, and both are far larger than it.
                kl_N[rows] = e_N[rows] - (mine.m_n - theirs.m_n) - (mine.s_n / theirs.s_n).log()
            elif work.reference:
                kl_N[rows] = logprobs_N[rows] - theirs.logprobs()
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
        hidden, weight, bias = ctx.needs_input_grad[:3]
        d_hidden_ND = torch.zeros_like(hidden_ND, dtype=dtype) if hidden else None
        d_bias_V = torch.zeros_like(bias_V, dtype=dtype) if bias else None
        # As large as the vocabulary, so not zeroed: the first span of tokens writes all of it.
        room = torch.empty_like if len(hidden_ND) else torch.zeros_like
        d_weight_VD = work.sum_VD if work.sum_VD is not None or not weight else room(weight_VD, dtype=dtype)
        for rows, columns in work.tiles.spans(len(hidden_ND), policy.vocabulary):
            for at in columns:
                u_nv, r_nv = kept.pop((rows.start, at.start), (None, None))
                if u_nv is None:
                    u_nv = work.logits(policy, rows, at)
                    r_nv = work.logits(work.reference, rows, at) if work.analytic else None
                sums = [column[rows, None] for column in (*ctx.sums, g_logprob_N, g_kl_N)]
                d_nv = _at_products(u_nv, r_nv, sums, work, rows, at).to(hidden_ND.dtype)
                if d_hidden_ND is not None:
                    if policy.head is None:
                        d_hidden_ND[rows, at] = d_nv
                    else:
                        _add_product(d_hidden_ND[rows], d_nv, weight_VD[at].to(d_nv.dtype))
                if d_weight_VD is not None:
                    _add_product(d_weight_VD[at], d_nv.T, hidden_ND[rows], anew=work.sum_VD is None and rows.start == 0)
                if d_bias_V is not None:
                    d_bias_V[at] += d_nv.sum(0)
        return d_hidden_ND, d_weight_VD if work.sum_VD is None else None, d_bias_V, None


def _at_products(u_nv: Tensor, r_nv: Tensor | None, sums: list[Tensor], work: _Work, rows: slice, at: slice) -> Tensor:
    """The gradient at a tile's products of hidden states and head; u_nv and r_nv are used up."""
    m_n1, s_n1, e_n1, g_logprob_n1, g_kl_n1 = sums
    softcap = work.form and work.form.softcap
    slope_nv = 1 - (u_nv * (work.temperature / softcap)).square_() if softcap else None
    if r_nv is None:
        d_nv = u_nv.sub_(m_n1).exp_().mul_(-g_logprob_n1 / s_n1)
    else:
        d_nv = r_nv.neg_().add_(u_nv).sub_(e_n1).mul_(g_kl_n1).sub_(g_logprob_n1)
        d_nv.mul_(u_nv.sub_(m_n1).exp_().div_(s_n1))
    inside_n, place_n = _inside(work.token_ids_N[rows], at)
    d_nv.scatter_add_(1, place_n[:, None], g_logprob_n1 * inside_n[:, None])
    if slope_nv is not None:
        d_nv.mul_(slope_nv)
    scale = (work.form.scale if work.form else 1.0) / work.temperature
    return d_nv if scale == 1 else d_nv.mul_(scale)


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
