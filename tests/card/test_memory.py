"""What the stand-in for a card counts of its memory (tests/support/card/memory.py)."""

import gc
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from tests.support.card import memory

pytestmark = pytest.mark.card
KIB = 1024
cuda = torch.cuda


def made(kib: float, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.zeros(int(kib * KIB / dtype.itemsize), dtype=dtype, device="cuda")


class Counted:
    """KiB beside what was there before."""

    def __init__(self) -> None:
        gc.collect()
        cuda.empty_cache()
        cuda.reset_peak_memory_stats()
        self._before = cuda.memory_allocated()

    def now(self) -> float:
        return (cuda.memory_allocated() - self._before) / KIB

    def peak(self) -> float:
        return (cuda.max_memory_allocated() - self._before) / KIB

    def reserved(self) -> float:
        return (cuda.memory_reserved() - self._before) / KIB


@pytest.fixture
def counted() -> Iterator[Counted]:
    yield (found := Counted())
    assert found.now() == 0  # with the test its tensors are gone


def test_a_storage_counts_once_in_blocks_as_long_as_a_tensor_has_it(counted: Counted) -> None:
    one, small = made(8), torch.zeros(3, device="cuda")
    assert counted.now() == 8.5
    view = one[512:].view(2, -1).t()
    parameter = torch.nn.Parameter(one)
    assert counted.now() == 8.5
    del one, parameter, small
    assert counted.now() == 8  # of a view all that it is a view of
    del view
    assert (counted.now(), counted.peak(), counted.reserved()) == (0, 8.5, 8.5)
    cuda.empty_cache()
    cuda.reset_peak_memory_stats()
    assert (counted.peak(), counted.reserved()) == (0, 0)


def test_what_is_written_to_takes_no_room_of_its_own(counted: Counted) -> None:
    one, two, out = made(8), made(8), made(8)
    torch.add(one, two, out=out)
    one.add_(two).mul_(2).relu_()
    torch.addmm(out.view(32, 64), one.view(32, 64), torch.zeros(64, 64, device="cuda"), out=out.view(32, 64))
    assert (counted.now(), counted.peak()) == (24, 40)
    one.data = two  # the storage of the first is gone
    assert counted.now() == 16
    assert one.data_ptr() == two.data_ptr()


def test_what_a_backward_pass_needs_stays_and_leaves_are_added_to(counted: Counted) -> None:
    weight = made(8).requires_grad_()
    middle = weight * weight
    total = middle.exp().sum()
    del middle  # its exponential is kept for the backward pass, and it is not
    assert counted.now() == 8 + 8 + 0.5
    total.backward()  # type: ignore[no-untyped-call]
    del total
    assert counted.now() == 16
    (weight * 1).sum().backward()  # type: ignore[no-untyped-call]
    assert counted.now() == 16
    assert weight.grad is not None
    assert weight.grad.device.type == "cuda"


def test_models_move_and_are_copied_whole(counted: Counted) -> None:
    import copy

    layer = torch.nn.Linear(64, 64, bias=False)
    assert counted.now() == 0
    layer.to("cuda")
    assert counted.now() == 16
    other = copy.deepcopy(layer)
    assert counted.now() == 32
    other.weight.data = other.weight.data.to("cpu")
    layer.to(torch.bfloat16)
    assert counted.now() == 8


def test_a_kernel_of_the_cards_own_counts_by_what_it_gives_back(counted: Counted) -> None:
    """No scores of attention, which are 16 times its output here: the kernel has them in pieces."""
    query, key, value = (torch.zeros(1, 2, 512, 16, device="cuda", requires_grad=True) for _ in range(3))
    mask = torch.zeros(1, 1, 512, 512, device="cuda").expand(1, 2, 512, 512)
    assert counted.now() == 3 * 64 + 1024
    attended = torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    assert counted.now() == 4 * 64 + 1024 + 4 + 1  # sums of 512 queries of 2 heads, and two seeds
    attended.sum().backward()  # type: ignore[no-untyped-call]
    assert counted.peak() < 9 * 64 + 1024


def test_a_pool_of_graphs_is_as_large_as_its_fullest_moment(counted: Counted) -> None:
    """What graphs read stays their maker's; steps of one pool share its room, and keep it while one of them lives."""
    table, held = made(8), list[Tensor]()
    graphs, pool = [cuda.CUDAGraph(), cuda.CUDAGraph()], cuda.graph_pool_handle()
    for graph, kib in zip(graphs, (16, 4), strict=True):
        with cuda.graph(graph, pool=pool):
            passing = made(kib) + 1  # two at once, and at the end neither
            held.append(table + 1)
            del passing
    del pool
    assert (counted.now(), counted.reserved()) == (8 + 8 + 8, 8 + 32)
    for graph in graphs:
        graph.replay()
    table = table * 1  # graphs hold no tensor of those that they read
    assert (counted.now(), counted.reserved()) == (24, 8 + 8 + 32)
    del held[:]
    cuda.empty_cache()
    assert (counted.now(), counted.reserved()) == (8, 8 + 32)
    del graphs[:], graph
    assert counted.reserved() == 8


def test_what_has_no_room_is_refused(counted: Counted, monkeypatch: pytest.MonkeyPatch) -> None:
    free, total = cuda.mem_get_info()
    room = 64 * KIB
    monkeypatch.setattr(memory.card, "total", total - free + room)
    assert cuda.mem_get_info() == (room, memory.card.total)
    one = made(48)
    with pytest.raises(torch.OutOfMemoryError, match=r"CUDA out of memory. Tried to allocate 0.03 MiB"):
        one[: 32 * KIB // 4] + 1
    assert counted.now() == 48
    assert cuda.mem_get_info()[0] == 16 * KIB
    one.add_(1)
    del one
    assert cuda.mem_get_info()[0] == 16 * KIB  # torch keeps it, for
    assert len(made(64)) == 64 * KIB / 4
