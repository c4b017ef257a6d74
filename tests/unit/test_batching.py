"""Which tokens train, drawn row by row."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from selfcorrect.learning.batching import Batch, make_batch, micro_batches
from selfcorrect.parallel.sharding import Sharded
from selfcorrect.types import Rollout
from tests.support.rollouts import rollout_of_ids

EOS = 2


def batch_of(*rollouts: Rollout, included: list[bool] | None = None) -> Batch:
    """Rollout i pays 10 i + a for attempt a; KL weights 0.1, 0.2, ... of each attempt."""
    count, attempts = len(rollouts), len(rollouts[0].attempts)
    advantages_BA = torch.tensor([[10.0 * i + a for a in range(1, attempts + 1)] for i in range(count)])
    coef = [a / 10 for a in range(1, attempts + 1)]
    return make_batch(rollouts, advantages_BA, coef, torch.tensor(included or [True] * count))


def drawn(table_BT: Tensor) -> list[str]:
    return [" ".join(str(value) for value in row) for row in table_BT.tolist()]


def test_masks_of_two_rollouts() -> None:
    batch = batch_of(
        #               prompt  attempt 1   correction  attempt 2
        rollout_of_ids(((5, 6), (3, 4, EOS)), ((7, 7), (4, EOS))),
        rollout_of_ids(((5,), (EOS,)), ((7,), (3, 3, EOS))),  # ends at its first token
    )
    #                             p p a a e c c b e
    assert drawn(batch.token_ids_BT)[0] == "5 6 3 4 2 7 7 4 2"
    assert drawn(batch.attempt_BT)[0] == "0 0 1 1 1 0 0 2 2"
    #                             p e c b b e . . .
    assert drawn(batch.token_ids_BT)[1] == "5 2 7 3 3 2 0 0 0"
    assert drawn(batch.attempt_BT)[1] == "0 1 0 2 2 2 0 0 0"
    assert batch.length_B.tolist() == [9, 6]
    assert drawn(batch.advantages_BT[1].long()[None]) == ["0 11 0 12 12 12 0 0 0"]
    assert drawn((batch.kl_coef_BT[0] * 10).round().long()[None]) == ["0 0 1 1 1 0 0 2 2"]
    assert drawn((batch.sampler_logprobs_BT * -10).round().long()) == ["0 0 1 2 3 0 0 1 2", "0 1 0 1 2 3 0 0 0"]


@pytest.mark.parametrize("eos", [0, 2])
def test_the_end_token_trains_and_padding_does_not(eos: int) -> None:
    """Padding is written as 0: with eos 0 only lengths can tell them apart."""
    batch = batch_of(
        rollout_of_ids(((5,), (eos,)), ((7,), (eos,))),
        rollout_of_ids(((5,), (3, 3, eos)), ((7,), (3, 3, eos))),
    )
    #                                p e c e . . . .
    assert drawn(batch.attempt_BT) == ["0 1 0 2 0 0 0 0", "0 1 1 1 0 2 2 2"]
    assert batch.token_ids_BT[0, :4].tolist() == [5, eos, 7, eos]


def test_truncated_attempts_train_every_token_they_have() -> None:
    batch = batch_of(rollout_of_ids(((5,), (3, 4)), ((EOS, 7), (3, 3)), finish="length"))
    # The end of turn that the chat template adds after a cut-off attempt was not sampled.
    #                                 p a a e c b b
    assert drawn(batch.token_ids_BT) == ["5 3 4 2 7 3 3"]
    assert drawn(batch.attempt_BT) == ["0 1 1 0 0 2 2"]


def test_an_attempt_without_tokens() -> None:
    batch = batch_of(
        rollout_of_ids(((5,), ()), ((7,), (3, EOS))),
        rollout_of_ids(((5,), (3, EOS)), ((7,), ())),
        rollout_of_ids(((5,), ()), ((7,), ())),
    )
    #                                 p c b e    p a e c    p c
    assert drawn(batch.attempt_BT) == ["0 0 2 2", "0 1 1 0", "0 0 0 0"]
    assert sum(len(piece.length_B) for piece in micro_batches(batch, 2)) == 2


def test_three_attempts() -> None:
    batch = batch_of(rollout_of_ids(((5,), (3, EOS)), ((7,), (4, EOS)), ((7, 7), (EOS,))))
    #                                 p a e c b e c c d
    assert drawn(batch.attempt_BT) == ["0 1 1 0 2 2 0 0 3"]


def test_contexts_that_do_not_extend_each_other_are_refused() -> None:
    good = rollout_of_ids(((5,), (3,)), ((7,), (4,)))
    attempt = good.attempts[1]
    torn = replace(good, attempts=(good.attempts[0], replace(attempt, prompt_ids=(5, 9, 7))))
    with pytest.raises(AssertionError):
        batch_of(torn)


def test_rows_not_included_train_nothing() -> None:
    rollouts = [rollout_of_ids(((5,), (3, EOS)), ((7,), (4, EOS))) for _ in range(3)]
    batch = batch_of(*rollouts, included=[True, False, True])
    assert drawn(batch.attempt_BT) == ["0 1 1 0 2 2", "0 0 0 0 0 0", "0 1 1 0 2 2"]
    assert not batch.advantages_BT[1].any()
    assert not batch.kl_coef_BT[1].any()
    kept = list(micro_batches(batch, 8))
    assert [piece.advantages_BT[:, 1].tolist() for piece in kept] == [[1.0, 21.0]]
    assert list(micro_batches(batch_of(*rollouts, included=[False] * 3), 2)) == []


def test_micro_batches_hold_every_row_once_and_no_more_columns_than_they_need() -> None:
    lengths = [5, 1, 4, 2, 3, 1, 6]
    batch = batch_of(*[rollout_of_ids(((5,), (3,) * length), ((7,), (4,))) for length in lengths])
    pieces = list(micro_batches(batch, 3))
    assert [piece.length_B.tolist() for piece in pieces] == [[9, 8, 7], [6, 5, 4], [4]]  # the longest first
    assert all(piece.token_ids_BT.shape[1] == piece.length_B.max() for piece in pieces)
    # attempt 1 of rollout i is paid 10 i + 1
    assert sorted(v for piece in pieces for v in piece.advantages_BT[:, 1].tolist()) == [10 * i + 1 for i in range(7)]


def test_rows_end_to_end_fill_a_piece_up_to_the_room_of_so_many_of_the_longest() -> None:
    lengths = [5, 1, 4, 2, 3, 1, 6]  # of attempt 1, in rows of 3 tokens more
    batch = batch_of(*[rollout_of_ids(((5,), (3,) * length), ((7,), (4,))) for length in lengths])
    assert sorted(batch.length_B.tolist()) == [4, 4, 5, 6, 7, 8, 9]
    for size, whole, shared in ((1, [1, 1, 1, 1, 2, 1], [1, 1, 1, 2, 2]), (2, [2, 3, 2], [2, 4, 1]), (5, [7], [7])):
        for packed_B, expected in ((batch.length_B, whole), (batch.length_B - 2, shared)):
            pieces = list(micro_batches(batch, size, packed_B))
            assert [len(piece.length_B) for piece in pieces] == expected
            assert sorted(n for piece in pieces for n in piece.length_B.tolist()) == [4, 4, 5, 6, 7, 8, 9]
    nothing = batch_of(rollout_of_ids(((5,), (3,)), ((7,), (4,))), included=[False])
    assert list(micro_batches(nothing, 2, nothing.length_B)) == []


def test_in_shards_every_rank_makes_as_many_passes_as_the_busiest() -> None:
    """Six groups of two, very unequal, on three ranks; the groups of the last rank train nothing."""
    lengths = [9, 1, 1, 1, 1, 1, 8, 7, 3, 3, 3, 3]
    rollouts = [rollout_of_ids(((5,), (3,) * length), ((7,), (4,))) for length in lengths]
    batch = batch_of(*rollouts, included=[True] * 8 + [False] * 4)
    made = []
    for rank in range(3):
        ranks = Sharded.__new__(Sharded)
        ranks.rank, ranks.size = rank, 3

        def pieces(rows: Batch) -> int:
            return len(list(micro_batches(rows, 1, rows.length_B - 1)))

        idle = ranks.idle(batch, 2, pieces)
        assert all(len(piece.length_B) == 1 and not piece.advantages_BT.any() for piece in idle)
        made.append((pieces(ranks.own(batch, 2)), len(idle)))
    assert made == [(2, 1), (3, 0), (0, 3)]


def test_a_given_attempt_is_context_and_trains_nothing() -> None:
    """Offline repair: the policy did not write attempt 1, so its tokens have attempt 0 and carry nothing.

    token_ids  p p  g g  c  b e
    attempt    0 0  0 0  0  2 2
    """
    rollout = rollout_of_ids(((1, 2), (3, 4)), ((5,), (6, 7)))
    first, second = rollout.attempts
    given = replace(rollout, attempts=(replace(first, sampled=False), second))
    batch = make_batch([given], torch.tensor([[3.0, 5.0]]), (0.5, 0.25), torch.tensor([True]))
    assert batch.token_ids_BT.tolist() == [[1, 2, 3, 4, 5, 6, 7]]
    assert batch.attempt_BT.tolist() == [[0, 0, 0, 0, 0, 2, 2]]
    assert batch.advantages_BT.tolist() == [[0, 0, 0, 0, 0, 5, 5]]
    assert batch.kl_coef_BT.tolist() == [[0, 0, 0, 0, 0, 0.25, 0.25]]
