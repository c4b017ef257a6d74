"""Cards, and how much of what they promise is counted on.

Figures are the makers' (dense bfloat16, memory's and links' bandwidth), gib is about what torch reports. What is usual
is assumed of the network, and of links that are PCI Express. So are prices: what an hour of one card was rented for,
without commitment, in November 2026, rounded; --price replaces it.
"""

from dataclasses import dataclass, replace

PRICED = "November 2026"


@dataclass(frozen=True, slots=True)
class Card:
    """tflops: dense bfloat16; bandwidth, link, network: GB/s of its memory, to its neighbours in the machine, and its
    share of the way to other machines. price: dollars an hour.
    """

    name: str
    tflops: float
    bandwidth: float
    gib: float
    link: float
    network: float
    price: float

    @property
    def bytes(self) -> float:
        return self.gib * 2**30

    @property
    def rated(self) -> bool:
        """Whether more than its memory is known."""
        return self.tflops > 0


CARDS = {
    card.name: card
    for card in (
        Card("h100", 989, 3350, 79.1, 450, 50, 2.50),
        Card("h200", 989, 4800, 139.8, 450, 50, 3.20),
        Card("a100-80", 312, 2039, 79.2, 300, 25, 1.50),
        Card("a100-40", 312, 1555, 39.4, 300, 25, 1.20),
        Card("l40s", 362, 864, 44.4, 32, 12, 0.90),
        Card("rtx-4090", 165, 1008, 23.6, 25, 3, 0.40),
        Card("rtx-3090", 71, 936, 23.6, 25, 3, 0.22),
        Card("l4", 121, 300, 22.0, 25, 3, 0.50),
        Card("mi300x", 1307, 5300, 191.5, 448, 50, 2.20),
    )
}
CPU = "cpu"

# What of the promised is reached. None of it is measured with this code on these cards, but where it is said.
DECODE_BANDWIDTH = 0.60  # of the memory's, while weights and cache are read
LINK_SHARE = 0.70  # of a link's, in collective operations
GLOO_BYTES = 0.4e9  # a second, between two busy processes of one CPU, in gatherings as FSDP does them: measured
GLOO_SUM_BYTES = 1.6e9  # the same in sums over both: measured
HOST_BYTES = 10e9  # a second, between a card and pageable memory of its machine: assumed
PINNED_BYTES = 20e9  # the same of pinned memory, as layers of a reference come from there: assumed
# The card's own time for a layer's kernels in a decoding step, whatever they read: 5 ms for 24 layers, profiled on an
# H200 with 128 rows (docs/log.md). Of the graph's launches nothing is left to see then.
LAYER_SECONDS = 2.0e-4
# An engine with fused kernels (vLLM): assumed.
ENGINE_LAYER_SECONDS = 4.0e-5
PER_STEP_SECONDS = 0.1  # an update's and a step's own bookkeeping: batches, checks, the optimiser's launches
CONTEXT_BYTES = 0.8 * 2**30  # CUDA's context, cuBLAS's workspaces
SLACK = 0.03  # of what is alive, that torch's allocator holds beyond it


def utilisation(hidden: int) -> float:
    """The share of a card's FLOPs that an update reaches, by the model's width.

    The line through two published measurements of another trainer on one H100, 11 % at 1,024 and 22 % at 2,560 numbers
    (prime-rl's benchmarks, adapters and full, with recomputing); no more than 40 %, which the largest runs report.
    """
    return min(0.40, 0.04 + 0.07 * hidden / 1024)


# In a GPU's name: of a kind that is slower than the card of the table, or a part of one.
_OTHER_KINDS = {"pcie", "nvl", "laptop", "d", "mig"}


def card_named(name: str, gib: float) -> Card:
    """The card of the table that torch's name for a GPU means, with so much memory; others with nothing else."""
    told = name.casefold().replace(" ", "-").split("-")  # an L40 is no L4, and other than an L40S
    plain = _OTHER_KINDS.isdisjoint(told)
    for card in CARDS.values():
        first, *more = card.name.split("-")
        if plain and first in told and all(word in told or f"{word}gb" in told for word in more):
            return replace(card, gib=gib)
    return Card(name, 0, 0, gib, 0, 0, 0)
