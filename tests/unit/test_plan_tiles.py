"""A plan rehearses few tiles of the loss: the most that is alive at once is to the byte that of all of them."""

import random
from dataclasses import astuple, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from selfcorrect.learning.vocabulary import Tiles, score
from selfcorrect.models.head import Head, HeadForm, States
from selfcorrect.planning import rehearsal
from selfcorrect.planning.live import Live
from selfcorrect.planning.rehearsal import Costume, FewTiles, by_layers, update
from selfcorrect.planning.work import Update
from tests.support.tiny import tiny_lm


def peaks(
    tiles: Tiles, tokens: int, vocabulary: int, dtype: torch.dtype, *, refers: bool, softcap: float | None,
    in_place: bool, hidden: int,
) -> tuple[list[int], int]:  # fmt: skip
    """Bytes of the forward pass and of the backward pass, and what is left."""
    hidden_ND = torch.zeros(tokens, hidden, dtype=dtype, requires_grad=True)
    weight_VD, ids_N = torch.zeros(vocabulary, hidden, requires_grad=True), torch.zeros(tokens, dtype=torch.long)
    if in_place:
        weight_VD.grad = torch.zeros_like(weight_VD)
    form, known = HeadForm(softcap=softcap), list[Tensor]([hidden_ND, weight_VD, ids_N])
    mine = States(hidden_ND, Head(weight_VD, None, form))
    theirs = States(hidden_ND.detach(), Head(weight_VD.detach(), None, form)) if refers else None
    with Live() as live:
        live.known([*known, *([weight_VD.grad] if in_place else [])])
        logprobs_N, kl_N = score(mine, theirs, ids_N, 1.0, "analytic", tiles, in_place=in_place)
        live.mark()
        (logprobs_N + kl_N).sum().backward()  # type: ignore[no-untyped-call]
        live.mark()
        return live.peaks, live.now


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.nightly) for seed in range(1, 20))])
def test_the_tiles_that_are_left_out_take_no_more(seed: int) -> None:
    """Tokens and words that come out even and do not, more tiles kept than there are and none, tall tiles and flat."""
    draw, spared = random.Random(seed), 0
    for _ in range(8):
        wide, tall = draw.choice([64, 128, 256]), draw.choice([16, 64, 100])
        tiles = Tiles(wide * tall, wide, draw.choice([0, 1, 2, 5, 14]) * wide * tall + draw.choice([0, 17]))
        tokens = draw.choice([1, 7, tall, tall + 1, 2 * tall, draw.randint(1, 300)])
        vocabulary = draw.choice([50, 6 * wide, 5 * wide + 3, draw.randint(wide, 9 * wide)])
        how: dict[str, Any] = {
            "refers": draw.random() < 0.7, "softcap": draw.choice([None, 30.0]), "in_place": draw.random() < 0.5,
            "hidden": draw.choice([8, 300]),
        }  # fmt: skip
        few, dtype = FewTiles(*astuple(tiles)), draw.choice([torch.float32, torch.bfloat16])
        found = [peaks(each, tokens, vocabulary, dtype, **how) for each in (few, tiles)]
        assert found[0] == found[1], (tiles, tokens, vocabulary, dtype, how)
        made = [sum(len(columns) for _, columns in each.spans(tokens, vocabulary)) for each in (few, tiles)]
        spared += made[1] - made[0]
    assert spared > 1


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("architecture", "changes"),
    [("llama", {}), ("gemma3", {"again": True}), ("qwen2", {"packed": True, "prefixes": 2, "prefix": 9})],
)
def test_a_rehearsed_update_is_that_of_all_tiles(
    monkeypatch: pytest.MonkeyPatch, architecture: str, changes: dict[str, bool | int]
) -> None:
    config = tiny_lm(architecture, hidden=64).model.config
    config.vocab_size = 2_600
    costume = Costume(config, torch.float32, torch.float32, "eager", Tiles(1 << 12, 1 << 9, 1 << 12), on_card=True)
    work = replace(Update(4, 20, 6, 9, 0, 0, 2, packed=False, again=False, in_place=True), **changes)  # type: ignore[arg-type]
    few = by_layers(costume, update(costume, work))
    monkeypatch.setattr(rehearsal, "FewTiles", Tiles)
    assert few == by_layers(costume, update(costume, work))
