"""Several tokens of a row in one step: the next ones are guessed, and all guesses checked in a single forward pass.

A second attempt repeats most of the first. So what followed the same words before is a good guess of what follows them
now (speculative decoding, with drafts looked up in the row's own context). As a token is drawn by its row's and place's
own uniform number (draws.py), the one drawn after a right guess is the very token that a step of its own would have
drawn: drafts change how many tokens a step yields, and rounding, never the distribution.

Decoding a few rows takes as long as the weights are read, and further tokens in the same pass cost little. How many are
worth their while follows from how many rows there are and how often guesses have been right in this call so far.

Axes: R lanes, S slots, T tokens of a lane in one step.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

_REACH = 8  # tokens that are compared before the last one: the longest equal stretch tells what follows
_AT_FIRST = (2.4, 8.0)  # guesses that count as right, and as made, before any was: drafts have to earn their place
_FADES = 0.9  # from look to look, so that a preamble of an attempt's own is forgotten once it copies
_SURE = 0.97  # no better than this is ever counted on
_PAYS = 1.1  # times as many tokens a second, by the estimate, or a step takes one
_PAYS_AT_BEST = 1.3  # if all guesses are right, or none is made: where rows are many, looking for them costs, too


def drafts(ids_RS: Tensor, place_R: Tensor, count: int) -> Tensor:
    """What may follow the token at `place` of each row [R, count]: what followed the longest equal stretch before it,
    the latest of several. Behind what is known that begins anew, as in a loop. Where nothing is equal, any token.
    """
    slots, device = ids_RS.shape[1], ids_RS.device
    before_RSN = torch.nn.functional.pad(ids_RS, (_REACH - 1, 0), value=-1).unfold(1, _REACH, 1)
    tail_R1N = before_RSN[torch.arange(len(ids_RS), device=device), place_R][:, None]
    equal_RS = (before_RSN == tail_R1N).flip(-1).cumprod(-1, dtype=torch.int32).sum(-1)
    slot_S = torch.arange(slots, device=device)
    best_R = torch.where(slot_S < place_R[:, None], equal_RS * slots + slot_S, -1).argmax(1)
    step_RT = torch.arange(count, device=device) % (place_R - best_R).clamp(min=1)[:, None]
    return ids_RS.gather(1, (best_R[:, None] + 1 + step_RT).clamp(max=slots - 1))


@dataclass(frozen=True, slots=True)
class Cost:
    """What a step takes, in the time that one more token in it does: `reading` for the weights, whatever their size,
    and for each layer `launching` divided by the model's parameters. choices: tokens of a row that a step may take.
    """

    reading: float
    launching: float
    choices: tuple[int, ...]


# Measured on an AMD EPYC with AVX2: Qwen2.5-Coder-0.5B's step takes 180 ms and 9.2 ms a token (docs/log.md).
PROCESSOR = Cost(reading=20.0, launching=25e6, choices=(1, 2, 4, 8, 16))
# By the data sheets of H100 and 4090 alike, some 200 times as many multiplications as bytes; not measured on a card.
CARD = Cost(reading=200.0, launching=9e9, choices=(1, 4, 16))
ONE_BY_ONE = Cost(reading=0.0, launching=0.0, choices=(1,))


class Pace:
    """How many tokens of a row each step takes.

    It hangs on what was drawn and on nothing else, no clock: the same call takes the same steps again.
    """

    def __init__(self, cost: Cost, layers: int, parameters: float) -> None:
        self._fixed = cost.reading + cost.launching * layers / max(1, parameters)
        self._choices = cost.choices
        self._right, self._made = _AT_FIRST
        self._known = (0, 0)

    def hear(self, right: int, made: int) -> None:
        """Guesses so far, and how many of them were right."""
        self._right = _FADES * self._right + right - self._known[0]
        self._made = _FADES * self._made + made - self._known[1]
        self._known = (right, made)

    def tokens(self, rows: int) -> int:
        """Of a row in the next step; 0: a single one, and no guess can pay however good it is."""
        return self._best(rows, self._share, _PAYS) if self.most(rows) > 1 else 0

    def yields(self, tokens: int) -> float:
        """Tokens of a row that a step of so many gains, if guesses are right as often as they were."""
        return _yields(max(1, tokens), self._share)

    def most(self, rows: int) -> int:
        """Tokens of each of so many rows in any step."""
        return self._best(rows, _SURE, _PAYS_AT_BEST)

    def fullest(self, rows: int) -> int:
        """Tokens of each of so many rows, so that no step of fewer rows has more in all."""
        return max(math.ceil(few * self.most(few) / rows) for few in range(1, rows + 1))

    @property
    def _share(self) -> float:
        return min(_SURE, self._right / self._made)

    def _best(self, rows: int, share: float, pays: float) -> int:
        def a_second(tokens: int) -> float:
            return _yields(tokens, share) / (self._fixed + rows * tokens)

        best = max(self._choices, key=a_second)
        return best if a_second(best) > pays * a_second(1) else 1


def pace_of(model: Any, cost: Cost) -> Pace:
    """Of a transformers model."""
    # A model with code of its own may name the number otherwise.
    layers = getattr(model.config.get_text_config(), "num_hidden_layers", 0)
    return Pace(cost, layers, sum(weight.numel() for weight in model.parameters()))


def _yields(tokens: int, share: float) -> float:
    return (1 - share**tokens) / (1 - share)
