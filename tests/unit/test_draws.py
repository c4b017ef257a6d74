"""How a token is drawn from logits by a number that is given."""

import pytest
import torch

from selfcorrect.samplers.draws import draw, uniforms
from selfcorrect.types import SamplingParams


@pytest.mark.parametrize("vocabulary", [1, 2, 511, 512, 513, 1500])
def test_the_draw_is_where_the_running_sum_passes_the_number(vocabulary: int) -> None:
    torch.manual_seed(0)
    rows = 200
    logits = 3 * torch.randn(rows, vocabulary)
    logits[:, 1::3] = -torch.inf  # never drawn, whatever the number
    numbers = uniforms(rows, SamplingParams(1.0, 1, seed=4), logits.device)[:, 0]
    numbers[:3] = torch.tensor([0.0, 1.0, 1 - 2**-53], dtype=torch.float64)  # 1: what a number may be rounded to
    tokens, logprobs = draw(logits, 0.7, numbers)
    running = (logits.double() / 0.7).softmax(-1).cumsum(-1)
    below = torch.nn.functional.pad(running, (1, 0)).gather(1, tokens[:, None]).squeeze(1)
    above = running.gather(1, tokens[:, None]).squeeze(1)
    assert (below - 1e-6 <= numbers).all()
    assert (numbers <= above + 1e-6).all()
    assert logprobs.isfinite().all()
    torch.testing.assert_close(logprobs.exp().double(), above - below, rtol=1e-4, atol=1e-7)
