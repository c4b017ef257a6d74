"""After every sync: whether an engine with weights of its own gives the same tokens the policy's log-probabilities.

Two things are held against it. A gap: what sums in another order differ by is allowed, and half precisions differ by
more than one small update moves. So also whether it stands still: an engine that takes what it is sent does not answer
with the same numbers, to the last bit, while the policy's own move.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from selfcorrect.errors import SamplerFailed
from selfcorrect.models.language_model import LanguageModel

# Of the mean difference of a token's log-probability, in nats. Sums in another order differ by some roundings: about
# 1e-6 in float32 here. Half precisions round the hidden states of every layer.
ALLOWED = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 8e-2}
# How far the policy may move, the same mean, while the engine's numbers stay what they are. Weights that bfloat16
# rounds to other values change its sums by about 1e-2; less than this may be lost in an engine of fewer bits.
STILL = 1e-3
PROBES, PROBED = 4, 16  # rows and new tokens
TEMPERATURE = 0.7  # not 1, so that log-probabilities from before the temperature are seen


class Probed(NamedTuple):
    """What an engine wrote after a prompt: tokens, and the log-probability it gave to each."""

    prompt: tuple[int, ...]
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]


class Comparison:
    """dtype, policy_dtype: what the engine and the policy compute in; the coarser counts. sent: what a sync sends."""

    def __init__(self, dtype: torch.dtype, policy_dtype: torch.dtype, sent: str) -> None:
        self._dtype, self._sent = dtype, sent
        self._allowed = max(ALLOWED[dtype], ALLOWED[policy_dtype])
        self._moved: tuple[list[Probed], list[list[float]], float] = ([], [], 0.0)  # when the engine last gave others

    def judge(self, probed: Sequence[Probed], own: Sequence[Sequence[float]], weights: float, sync: int) -> None:
        """Raises SamplerFailed where the engine's log-probabilities are not the policy's `own`, or stand still.

        weights: `total` of those that were sent. Where it is what it was, nothing was learned: a policy that then gives
        other numbers has chosen other kernels.
        """
        gap = _mean_gap([found.logprobs for found in probed], own)
        if not gap <= self._allowed:
            raise SamplerFailed(
                f"sampler: vllm computes other log-probabilities than the policy after sync {sync}: they differ "
                f"by {gap:.2g} nats a token over {sum(map(len, own))} tokens, and {self._allowed:g} is allowed for "
                f"{str(self._dtype).removeprefix('torch.')}; it holds other {self._sent}, an old cache, or computes "
                "differently (server: --logprobs-mode processed_logprobs, the same model and dtype): start it anew, "
                "or set sampler: transformers"
            )
        before, then, sent = self._moved
        if before != list(probed):
            self._moved = (list(probed), [list(row) for row in own], weights)
            return
        moved = _mean_gap(then, own)
        if moved > STILL and weights != sent:
            raise SamplerFailed(
                f"sampler: vllm answers after sync {sync} as it did before, to the last bit, while the policy's "
                f"log-probabilities of the same tokens moved by {moved:.2g} nats a token: it did not take the "
                f"{self._sent} it was sent; look at its log and start it anew, or set sampler: transformers"
            )


def probes(prompts: Sequence[tuple[int, ...]], length: int, longest: int) -> list[tuple[int, ...]]:
    """Rows of `length` tokens, each beginning with another prompt, laid end to end with those after it."""
    distinct = list(dict.fromkeys(prompts))[:PROBES]
    rows = []
    for first in range(len(distinct)):
        ids: tuple[int, ...] = ()
        while len(ids) < length:
            for prompt in (*distinct[first:], *distinct[:first]):
                ids += prompt
        rows.append(ids[: max(1, min(length, longest))])
    return rows


@torch.no_grad()
def policy_logprobs(lm: LanguageModel, probed: Sequence[Probed]) -> list[list[float]]:
    """The policy's own of the same tokens, at the temperature of the comparison."""
    found = []
    for prompt, ids, _ in probed:
        table_1T = torch.tensor([[*prompt, *ids]], device=lm.device)
        place_T = torch.arange(table_1T.shape[1], device=lm.device)
        select_1T = ((place_T >= len(prompt) - 1) & (place_T < table_1T.shape[1] - 1))[None]
        logprobs_LV = (lm.logits(table_1T, select_1T) / TEMPERATURE).log_softmax(-1)
        found.append(logprobs_LV.gather(1, table_1T[0, len(prompt) :, None])[:, 0].tolist())
    return found


@torch.no_grad()
def total(model: Any) -> float:
    """The sum of all weights: another one after any update that changes a weight."""
    sums = [weight.sum(dtype=torch.float64) for weight in model.parameters() if weight.is_floating_point()]
    return float(torch.stack(sums).sum())  # a device is waited for once


def _mean_gap(one: Sequence[Sequence[float]], other: Sequence[Sequence[float]]) -> float:
    """Of a token's log-probability, in nats."""
    gaps = [abs(a - b) for mine, theirs in zip(one, other, strict=True) for a, b in zip(mine, theirs, strict=True)]
    return sum(gaps) / len(gaps)
