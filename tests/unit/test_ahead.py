"""Several tokens of a row in one step: what is said is what one token a step says, with fewer steps."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from selfcorrect.samplers.ahead import CARD, ONE_BY_ONE, PROCESSOR, Cost, Pace, drafts, pace_of
from selfcorrect.samplers.attention import _eager, _sdpa
from selfcorrect.samplers.graphs import AS_THEY_ARE, Shapes
from selfcorrect.samplers.transformers import TransformersSampler
from selfcorrect.types import Completion, SamplingParams
from tests.support.tiny import ARCHITECTURES, tiny_lm

LIMIT, TEMPERATURE = 40, 0.4  # the tiny models repeat themselves at it, though not always
PROMPTS = ("5 2 1 : 8", "5 2 1 : 8", "12 11 10 9 8 7 : 2", "4 : 4", "9 6 : 3")
BOLD = Cost(reading=1e6, launching=0.0, choices=(1, 3, 7))  # takes what it can get
BOLD_WAYS = {
    "llama": (5, replace(AS_THEY_ARE, cost=BOLD)), "qwen2": (2, Shapes(True, 5, cost=BOLD)),
    "gpt2": (3, replace(AS_THEY_ARE, cost=BOLD)), "gemma3": (3, Shapes(True, 5, cost=BOLD)),
}  # fmt: skip


def play(lm: Any, sampler: TransformersSampler, attempts: int = 3) -> list[Completion]:
    contexts, said = [lm.chat.first_prompt(prompt) for prompt in PROMPTS], list[Completion]()
    for attempt in range(attempts):
        now = sampler.sample(contexts, SamplingParams(TEMPERATURE, LIMIT, 1 + attempt))
        contexts = [lm.chat.next_prompt(c, done.token_ids, "? 1") for c, done in zip(contexts, now, strict=True)]
        said += now
    return said


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_several_tokens_a_step_say_what_one_a_step_does(architecture: str) -> None:
    lm = tiny_lm(
        architecture, "sdpa" if architecture == "qwen2" else "eager", (3,) if architecture in ("llama", "gpt2") else ()
    )
    max_rows, shapes = BOLD_WAYS[architecture]
    played, looks = [], list[list[Any]]()
    for each in (shapes, replace(shapes, cost=ONE_BY_ONE)):
        sampler = TransformersSampler(lm, max_rows, replace(each, every=1))
        looks.append([])
        sampler.watch = looks[-1].append
        played.append(play(lm, sampler))
    for mine, theirs in zip(*played, strict=True):
        assert mine.token_ids == theirs.token_ids
        assert mine.logprobs == pytest.approx(theirs.logprobs, abs=2e-5)
        assert mine.finish_reason == theirs.finish_reason
    assert {each.finish_reason for each in played[0]} == {"stop", "length"}
    assert len(looks[0]) < 0.9 * len(looks[1])
    longer = TransformersSampler(lm, max_rows, shapes)
    assert [each.token_ids for each in play(lm, longer)] == [each.token_ids for each in played[0]]


@pytest.mark.parametrize("shapes", [AS_THEY_ARE, Shapes(True, 5)])
def test_no_position_is_fed_that_the_model_does_not_have(shapes: Shapes) -> None:
    """A learned one would be looked up outside of its table. Fixed shapes have slots for more."""
    lm, reads = replace(tiny_lm("gpt2"), eos_ids=frozenset({-1})), 200
    positions = lm.model.transformer.wpe
    positions.weight = torch.nn.Parameter(positions.weight[:reads])
    prompt = (*[4, 5, 6, 7] * 54,)[: reads - LIMIT]
    params = SamplingParams(0.0, LIMIT, 1)
    bold, one = (
        TransformersSampler(lm, 4, replace(shapes, cost=cost)).sample([prompt, prompt[:9]], params)
        for cost in (BOLD, ONE_BY_ONE)
    )
    assert [each.token_ids for each in bold] == [each.token_ids for each in one]


def test_a_draft_is_what_followed_the_longest_equal_stretch() -> None:
    known = [
        ([1, 2, 3, 4, 9, 2, 3, 5, 2, 3], [5, 2]),  # the latest of two
        ([7, 2, 3, 4, 9, 2, 3, 5, 7, 2, 3], [4, 9]),  # the longer
        ([6, 6, 6, 6], [6, 6]),  # what is known, again
        ([9, 4, 5, 4], [5, 4]),
    ]
    slots, stale = 16, [2, 3, 8, 8]  # what an earlier sequence left behind
    ids = torch.tensor([(row + [0] + stale + [0] * slots)[:slots] for row, _ in known])
    places = torch.tensor([len(row) - 1 for row, _ in known])
    assert drafts(ids, places, 2).tolist() == [follows for _, follows in known]
    slot_S = torch.arange(slots)
    assert drafts(ids, places, 9).equal(drafts(torch.where(slot_S > places[:, None], 1, ids), places, 9))
    assert drafts(ids[:, :10], places.clamp(max=9), 14).shape == (4, 14)  # more than there are slots
    assert drafts(ids, torch.zeros_like(places), 2).shape == (4, 2)  # nothing is known: any will do


def test_how_many_tokens_pay() -> None:
    def pace(cost: Cost, right: int = 0, guesses: int = 0) -> Pace:
        found = Pace(cost, layers=24, parameters=494e6)
        if guesses:
            found.hear(right, guesses)
        return found

    assert [pace(PROCESSOR, 99, 100).tokens(rows) for rows in (1, 4, 16, 128)] == [16, 16, 8, 0]
    assert [pace(CARD, 99, 100).tokens(rows) for rows in (1, 128, 512, 1 << 20)] == [16, 16, 4, 0]
    assert pace(PROCESSOR, 50, 100).tokens(16) < 8
    told = pace(PROCESSOR)
    assert told.tokens(16) == 1  # nothing is known yet
    for step in range(1, 40):
        told.hear(16 * step, 16 * step)
    assert told.tokens(16) == 8
    for step in range(1, 40):
        told.hear(16 * 39 + step, 16 * 39 + 16 * step)
    assert told.tokens(16) == 1
    assert pace(ONE_BY_ONE, 100, 100).tokens(1) == 0
    config = SimpleNamespace(get_text_config=SimpleNamespace)  # tells no number of layers
    other = SimpleNamespace(config=config, parameters=lambda: [torch.zeros(9)])
    assert pace_of(other, PROCESSOR).most(1) == 16
    assert (told.most(128), told.fullest(128), told.most(16), told.fullest(16)) == (1, 3, 8, 9)


@pytest.mark.parametrize("attend", [_eager, _sdpa])
def test_values_may_be_narrower_than_queries(attend: Any) -> None:
    """As MiMo's are. Of one token and of a few, against a copy of keys and values for each head."""
    torch.manual_seed(0)
    key, value = torch.randn(2, 2, 9, 8), torch.randn(2, 2, 9, 6)
    for tokens in (1, 3):
        query, mask = torch.randn(2, 4, tokens, 8), torch.randn(2, 1, tokens, 9)
        found, _ = attend(torch.nn.Identity(), query, key, value, mask, scaling=0.4)
        scores = query @ key.repeat_interleave(2, 1).mT * 0.4 + mask
        torch.testing.assert_close(found, (scores.softmax(-1) @ value.repeat_interleave(2, 1)).transpose(1, 2))
