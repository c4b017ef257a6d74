"""Rollouts -> one Batch of padded sequences, each carrying all its attempts.

    token_ids    p p p  a a e  c c c  b b e  0 0      p prompt, a attempt 1, c correction turn, b attempt 2, e end
    attempt      0 0 0  1 1 1  0 0 0  2 2 2  0 0      0: not sampled by the policy, never trained on
    attempt      0 0 0  0 0 0  0 0 0  2 2 2  0 0      the same where attempt 1 was given (offline repair)
Axes: B rollouts, T tokens of a sequence (padding on the right), A attempts.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from selfcorrect.types import Rollout


@dataclass(frozen=True, slots=True)
class Batch:
    """attempt_BT says which tokens train and which attempt pays for them; length_B where padding starts."""

    token_ids_BT: Tensor
    length_B: Tensor
    attempt_BT: Tensor
    advantages_BT: Tensor
    kl_coef_BT: Tensor
    sampler_logprobs_BT: Tensor

    def to(self, device: torch.device | str) -> "Batch":
        return Batch(*(getattr(self, field.name).to(device) for field in fields(self)))

    def select(self, rows: Tensor) -> "Batch":
        """These rows alone, trimmed to the longest of them."""
        longest = int(self.length_B[rows].max())
        columns = (getattr(self, field.name)[rows] for field in fields(self))
        return Batch(*(column[:, :longest] if column.dim() == 2 else column for column in columns))


def make_batch(
    rollouts: Sequence[Rollout], advantages_BA: Tensor, kl_coef_A: Sequence[float], included_B: Tensor
) -> Batch:
    """One row per rollout. Rows that are not included keep their tokens but train none of them."""
    sequences = [(*rollout.attempts[-1].prompt_ids, *rollout.attempts[-1].completion.token_ids) for rollout in rollouts]
    rows, width = len(rollouts), max(map(len, sequences))
    token_ids_BT = torch.zeros(rows, width, dtype=torch.long)
    attempt_BT = torch.zeros(rows, width, dtype=torch.long)
    sampler_logprobs_BT = torch.zeros(rows, width)
    for row, (rollout, sequence) in enumerate(zip(rollouts, sequences, strict=True)):
        token_ids_BT[row, : len(sequence)] = torch.tensor(sequence)
        for number, attempt in enumerate(rollout.attempts, start=1):
            start = len(attempt.prompt_ids)
            end = start + len(attempt.completion.token_ids)
            assert sequence[:end] == (*attempt.prompt_ids, *attempt.completion.token_ids)
            sampler_logprobs_BT[row, start:end] = torch.tensor(attempt.completion.logprobs)
            if included_B[row] and attempt.sampled:
                attempt_BT[row, start:end] = number
    # Column 0 of the padded tables stands for "not sampled".
    padded_advantages = torch.nn.functional.pad(advantages_BA, (1, 0))
    padded_coef = torch.tensor([0.0, *kl_coef_A], dtype=advantages_BA.dtype)
    return Batch(
        token_ids_BT=token_ids_BT,
        length_B=torch.tensor([len(sequence) for sequence in sequences]),
        attempt_BT=attempt_BT,
        advantages_BT=padded_advantages.gather(1, attempt_BT),
        kl_coef_BT=padded_coef[attempt_BT],
        sampler_logprobs_BT=sampler_logprobs_BT,
    )


def micro_batches(batch: Batch, size: int, packed_B: Tensor | None = None) -> Iterator[Batch]:
    """The batch in pieces of at most `size` rows of similar length; rows without trained tokens are dropped.

    The longest first: later pieces find room where the first one's tensors lay, and what does not fit fails at once.

    packed_B: the room that each row takes where rows lie end to end. Pieces then have as many rows as take no more
    than `size` of the largest do.
    """
    trained = (batch.attempt_BT > 0).any(1).nonzero().squeeze(1)
    by_length = trained[batch.length_B[trained].argsort(stable=True, descending=True)]
    if not len(by_length):
        return
    takes = [1] * len(by_length) if packed_B is None else packed_B[by_length].tolist()
    start, taken, room = 0, 0, size * max(takes)
    for place, more in enumerate(takes):
        if taken + more > room:
            yield batch.select(by_length[start:place])
            start, taken = place, 0
        taken += more
    yield batch.select(by_length[start:])
