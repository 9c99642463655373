"""SRAM for workloads of many rows: strips of whole slices, taken as they are needed.

A strip is some slices of one hemisphere that are filled from word 0 up.  What must not meet at a
slice's port (weights, the activations of each plane, results) has strips of its own, named by a
key.  Nothing is refused until everything has been asked for, so that the refusal says how much is
missing in all.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field

from chip.isa import LANES, SLICES_PER_HEMISPHERE
from chip.scheduling import CompileError, Place
from chip.spec import ChipSpec

_WEIGHTS = 16  # slices of a strip of weights


@dataclass
class _Strip:
    queues: tuple[int, ...]
    used: int = 0


@dataclass
class Strips:
    """Slices of one chip that are not yet taken, and the strips made of the others.

    Slices nearest the VXM go first to strips of fewer than sixteen slices, those at the edge to
    the sixteen-slice strips of weights.  Slices in ``shared`` are for strips of weights only, and
    keep their last ``shared_words`` words for something else.
    """

    spec: ChipSpec
    free: list[list[int]] = field(init=False)
    missing_bytes: int = 0
    shared: frozenset[int] = frozenset()
    shared_words: int = 0
    _strips: dict[Hashable, list[_Strip]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        reserved = (self.spec.reserved_slices_west, self.spec.reserved_slices_east)
        self.free = [
            [
                side * SLICES_PER_HEMISPHERE + s
                for s in range(SLICES_PER_HEMISPHERE)
                if s not in reserved[side]
            ]
            for side in range(2)
        ]

    def take(
        self, key: Hashable, side: int, width: int, words: int, *, fresh: bool = False
    ) -> Place:
        """``words`` words on ``width`` slices of hemisphere ``side`` in a strip of ``key``.

        fresh: begin a strip of its own.  Where none is left the place is void and what is missing
        is noted; see ``settle``.
        """
        strips = self._strips.setdefault((key, side, width), [])
        most = self.spec.words_per_slice - (self.shared_words if width >= _WEIGHTS else 0)
        for strip in strips if not fresh else ():
            if strip.used + words <= most:
                place = Place(strip.queues, strip.used)
                strip.used += words
                return place
        if width >= _WEIGHTS:
            order = sorted(self.free[side], key=lambda s: (s in self.shared, s))
            usable = sorted(order[-width:])
        else:
            usable = [s for s in self.free[side] if s not in self.shared][:width]
        if words > most or width > len(usable):
            self.missing_bytes += width * words * LANES
            return Place(tuple(range(width)), 0)
        queues = tuple(usable)
        self.free[side] = [s for s in self.free[side] if s not in usable]
        strips.append(_Strip(queues, words))
        return Place(queues, 0)

    def used_bytes(self) -> int:
        """SRAM bytes taken so far."""
        each = (s.used * len(s.queues) for strips in self._strips.values() for s in strips)
        return LANES * sum(each)

    def settle(self, what: str, mend: str) -> None:
        """Raise CompileError if anything asked for had no room: ``what`` is the thing placed."""
        if self.missing_bytes:
            raise CompileError(
                f"{what} does not fit: {self.missing_bytes:,} bytes too many for a chip of "
                f"{self.spec.sram_bytes:,} ({self.used_bytes():,} placed); {mend}"
            )
