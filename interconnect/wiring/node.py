"""The cables of one node: up to eight chips, all to all.

Link k-1 of chip c (k = 1..7) goes to link k-1 of chip c XOR k, so every chip of a collective runs
the same program and the fixed summation tree by chip id is the same tree by k on every chip (fp32
addition commutes).  k = 1..3 use the west edge (links 0..2), k = 4..7 the east (links 8..11).
Link numbers per neighbour are assumed; 28 cables and seven local links per chip are published
(ISCA'22).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from chip.isa import LINKS

if TYPE_CHECKING:  # a wiring is looked at without chips
    from chip.engine import Chip

Cable = tuple[int, int, int, int]

#: Sizes a node can be partitioned into.
NODE_SIZES = (1, 2, 4, 8)


def link_to(k: int) -> int:
    """Link of a chip that leads to the chip whose id differs by XOR ``k`` (1..7)."""
    if not 1 <= k <= 7:
        raise ValueError(f"neighbour {k}: a node has neighbours 1..7")
    return k - 1 if k < 4 else k + 4


def node_cables(chips: int) -> list[Cable]:
    """Cables (chip a, link of a, chip b, link of b) of an all-to-all node, a < b."""
    if chips not in NODE_SIZES:
        raise ValueError(f"{chips} chips: a node has 1, 2, 4 or 8")
    return [
        (a, link_to(a ^ b), b, link_to(a ^ b)) for a in range(chips) for b in range(a + 1, chips)
    ]


def wire(chip: Chip, cables: Sequence[tuple[int, int, int, int]]) -> None:
    """Tell a chip the ring numbers of its links and who is at their other ends.

    Cable i, (a, link of a, b, link of b), uses ring 2i from a to b and ring 2i + 1 back.
    """
    tx, rx, peers = [-1] * LINKS, [-1] * LINKS, [-1] * LINKS
    for index, (a, link_a, b, link_b) in enumerate(cables):
        if a == chip.chip_id:
            tx[link_a], rx[link_a], peers[link_a] = 2 * index, 2 * index + 1, b
        if b == chip.chip_id:
            tx[link_b], rx[link_b], peers[link_b] = 2 * index + 1, 2 * index, a
    chip.wire(tx, rx, peers)
