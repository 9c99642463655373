"""Words of SRAM as kernels name them: slices, an address, and the banks it may lie in."""

from __future__ import annotations

from dataclasses import dataclass, field

from chip import isa

#: Every bank of a slice, one bit each.
ALL_BANKS = (1 << isa.BANKS) - 1


def banks_of(first: int, last: int, words_per_bank: int) -> int:
    """The banks, one bit each, that words ``first`` to ``last`` of a slice lie in."""
    low, high = first // words_per_bank, last // words_per_bank
    return (2 << high) - (1 << low)


@dataclass(frozen=True)
class Symbol:
    """A base address that differs from layer to layer; blocks refer to symbol + offset.

    banks: those that the words named by it lie in, in whatever layer; one bit each.
    """

    name: str
    banks: int = field(default=ALL_BANKS, compare=False)


@dataclass(frozen=True)
class Place:
    """Words on a tuple of MEM queues: byte plane i of word w is at (queues[i], address + w)."""

    queues: tuple[int, ...]
    address: int
    symbol: Symbol | None = None

    def at(self, offset: int) -> Place:
        """The same place ``offset`` words further."""
        return Place(self.queues, self.address + offset, self.symbol)

    def part(self, first: int, end: int | None = None, step: int = 1) -> Place:
        """The same words on some of the slices: byte planes ``first``, ``first + step``, ...

        end: before which plane; None: to the last.
        """
        return Place(self.queues[first:end:step], self.address, self.symbol)

    @property
    def position(self) -> int:
        """Stream position of the first byte plane."""
        return isa.slice_position(self.queues[0])

    @property
    def positions(self) -> tuple[int, ...]:
        """Stream position of each byte plane."""
        return tuple(isa.slice_position(queue) for queue in self.queues)

    @property
    def inward(self) -> int:
        """First stream code of the direction towards the VXM: 0 (east) or 32 (west)."""
        return 0 if self.queues[0] < 44 else 32

    @property
    def outward(self) -> int:
        """First stream code of the direction away from the VXM."""
        return 32 - self.inward
