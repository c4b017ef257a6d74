"""How a token is drawn: by one uniform number for each row and place, and nothing else.

So a row's tokens depend on its prompt, its number in the call and the seed, not on which rows run beside it.
"""

import torch
from torch import Tensor

from selfcorrect.types import SamplingParams

_BLOCK = 512  # tokens; the draw adds up blocks first and then looks into one


def uniforms(rows: int, params: SamplingParams, device: torch.device) -> Tensor:
    """Numbers in [0, 1) for every row and place of a call [rows, max_new_tokens], the same on every device."""
    generator = torch.Generator().manual_seed(params.seed)
    numbers_NL = torch.rand(params.first + rows, params.max_new_tokens, generator=generator, dtype=torch.float64)
    return numbers_NL[params.first :].to(precision(device)).to(device)


def precision(device: torch.device) -> torch.dtype:
    """That of uniform numbers and of sums over shares."""
    return torch.float32 if device.type == "mps" else torch.float64  # MPS has no float64


def draw(logits_RV: Tensor, temperature: float, uniform_R: Tensor) -> tuple[Tensor, Tensor]:
    """One token a row and its log-probability under softmax(logits / temperature); temperature 0 is greedy."""
    if temperature == 0:
        logprobs_RV = logits_RV.log_softmax(-1)
        token_R = logits_RV.argmax(-1)
    else:
        logprobs_RV = (logits_RV / temperature).log_softmax(-1)
        token_R = _pick(logprobs_RV, uniform_R)
    return token_R, logprobs_RV.gather(1, token_R[:, None]).squeeze(1)


def _pick(logprobs_RV: Tensor, uniform_R: Tensor) -> Tensor:
    """The token at which the running sum of the shares, in float64, passes the uniform number's part of the whole."""
    rows, vocabulary = logprobs_RV.shape
    block = min(_BLOCK, vocabulary)
    share_RV = logprobs_RV.new_zeros(rows, vocabulary + -vocabulary % block)  # in whole blocks, in one table
    torch.exp(logprobs_RV, out=share_RV[:, :vocabulary])
    block_RKV = share_RV.view(rows, -1, block)
    sum_RK = block_RKV.sum(-1, dtype=uniform_R.dtype).cumsum(-1)
    aim_R = uniform_R * sum_RK[:, -1]
    which_R = _passed(sum_RK, aim_R)
    before_R = torch.nn.functional.pad(sum_RK, (1, 0)).gather(1, which_R[:, None]).squeeze(1)
    inside_RV = block_RKV[torch.arange(rows, device=logprobs_RV.device), which_R]
    place_R = _passed(inside_RV.cumsum(-1, dtype=uniform_R.dtype), aim_R - before_R)
    return which_R * block + place_R


def _passed(sum_RK: Tensor, aim_R: Tensor) -> Tensor:
    """The first place whose running sum is above the aim: always one that has a share, whatever was rounded before."""
    below_R = sum_RK[:, -1] * (1 - torch.finfo(sum_RK.dtype).eps)
    return (sum_RK <= torch.minimum(aim_R, below_R)[:, None]).sum(-1)
