"""Where a chip's data lies: weight slices, data slices, temporary words.

The SDK keeps some slices for the system (``ChipSpec.reserved_slices_*``).  Of the others, the
seven or eight nearest the VXM of each hemisphere hold fp32 vectors and the KV cache; the next 32
hold weights, sixteen for each plane.  Weights grow from word 0 up, temporaries from the top down.

Workloads of many rows take strips of whole slices instead, as they are needed.  A strip is some
slices of one hemisphere that are filled from word 0 up.  What must not meet at a slice's port
(weights, the activations of each plane, results) has strips of its own, named by a key.  Nothing is
refused until everything has been asked for, so that the refusal says how much is missing in all.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field

from chip.isa import LANES, SLICES, SLICES_PER_HEMISPHERE
from chip.scheduling import ALL_BANKS, CompileError, Place, Symbol, banks_of
from chip.spec import ChipSpec

#: fp32 vectors lie on four slices of one MEM group, so their byte planes need no skew.
WEST_QUAD = (0, 1, 2, 3)
EAST_QUAD = (44, 45, 46, 47)
KV_QUAD = (48, 49, 50, 51)
MAP_PAIR = (4, 5)
_WEIGHTS = 16  # slices of a strip of weights


@dataclass
class SramPlacement:
    """Word allocation of one chip (the same on every chip): bottom-up and top-down pointers."""

    spec: ChipSpec
    maps: bool = False
    """Maps that steer Gathers of weights have the slices furthest out."""
    low: list[int] = field(default_factory=lambda: [0] * SLICES)
    high: list[int] = field(init=False)
    kept: list[int] = field(default_factory=lambda: [0] * SLICES)
    """Words above ``high`` that are no temporaries."""
    gaps: list[list[tuple[int, int]]] = field(default_factory=lambda: [[] for _ in range(SLICES)])
    """Words from each to before the other that are free below ``low``, of each slice."""

    def __post_init__(self) -> None:
        self.high = [self.words] * SLICES

    @property
    def words(self) -> int:
        """Words of a slice."""
        return self.spec.words_per_slice

    def weight_slices(self, plane: int) -> tuple[int, ...]:
        """The sixteen queues that feed ``plane`` (0, 1 west, 2, 3 east).

        Within ``map_slices`` where there are maps.  Those of odd planes are nearer then:
        activations lie there too, and meet these planes' gaps.
        """
        if not self.maps:
            return self.cached_slices(plane)
        return self._strip(plane // 2, self.map_slices(plane // 2)[0], plane % 2 == 1)

    def cached_slices(self, plane: int) -> tuple[int, ...]:
        """The sixteen queues that feed ``plane`` with keys and values, which lie as weights do.

        Those of maps are among them, idle while a token attends: words near the VXM meet keys.
        """
        side = plane // 2
        return self._strip(side, SLICES_PER_HEMISPHERE * (side + 1), plane % 2 == 0)

    def _strip(self, side: int, end: int, nearer: bool) -> tuple[int, ...]:
        """Of the last 32 slices of a hemisphere before ``end``, the nearer or the farther half."""
        base = SLICES_PER_HEMISPHERE * side
        reserved = self.spec.reserved_slices_east if side else self.spec.reserved_slices_west
        usable = [s for s in range(base, end) if s - base not in reserved][-2 * _WEIGHTS :]
        return tuple(usable[:_WEIGHTS] if nearer else usable[_WEIGHTS:])

    def map_slices(self, side: int) -> tuple[int, ...]:
        """The four slices of a hemisphere furthest out, all at one position: maps of experts."""
        last = SLICES_PER_HEMISPHERE * (side + 1)
        return tuple(range(last - 4, last))

    def bottom(self, queues: tuple[int, ...], words: int, one_bank: bool = False) -> Place:
        """``words`` words for keeping, at one address on all ``queues``."""
        if self.maps and (found := self._first_gap(queues, words, one_bank)) is not None:
            return found
        address = max(self.low[q] for q in queues)
        if one_bank and address < self.spec.words_per_bank < address + words:
            address = self.spec.words_per_bank
        self._check(queues, address + words, min(self.high[q] for q in queues), words)
        self._take(queues, address, words)
        return Place(queues, address)

    def _take(self, queues: tuple[int, ...], address: int, words: int) -> None:
        """Words are no longer free; what lies below them on a slice and was not used is a gap."""
        end = address + words
        for q in queues:
            kept = []
            for first, last in [*self.gaps[q], (self.low[q], max(end, self.low[q]))]:
                kept += [(first, min(last, address)), (max(first, end), last)]
            if self.maps:
                self.gaps[q] = [gap for gap in kept if gap[0] < gap[1]]
            self.low[q] = max(end, self.low[q])

    def _first_gap(self, queues: tuple[int, ...], words: int, one_bank: bool) -> Place | None:
        """The lowest words that are free on all ``queues``; weights share slices with others."""
        bank = self.spec.words_per_bank
        starts = {first for q in queues for first, _ in self.gaps[q]}
        for address in sorted(starts | {self.low[q] for q in queues} | {bank}):
            end = address + words
            whole = not one_bank or address // bank == (end - 1) // bank
            if whole and all(self._is_free(q, address, end) for q in queues):
                self._take(queues, address, words)
                return Place(queues, address)
        return None

    def _is_free(self, queue: int, first: int, last: int) -> bool:
        gaps = [*self.gaps[queue], (self.low[queue], self.high[queue])]
        return any(a <= first and last <= b for a, b in gaps)

    def top(self, queues: tuple[int, ...], words: int, one_bank: bool = False) -> Place:
        """``words`` temporary words at one address on all ``queues``."""
        end, bank = min(self.high[q] for q in queues), self.spec.words_per_bank
        address = (bank if one_bank and end - words < bank < end else end) - words
        self._check(queues, max(self.low[q] for q in queues), address, words)
        for q in queues:
            self.high[q] = address
        return Place(queues, address)

    def keep(self, queues: tuple[int, ...], words: int) -> Place:
        """``words`` words for keeping below the temporaries, at one address in one bank."""
        address = min(self.high[q] for q in queues)
        if address - words < self.spec.words_per_bank < address:
            address = self.spec.words_per_bank
        self._check(queues, max(self.low[q] for q in queues), address - words, words)
        for q in queues:
            self.kept[q] += self.high[q] - address + words
            self.high[q] = address - words
        return Place(queues, address - words)

    def banks(self, places: Iterable[Place], words: int) -> int:
        """The banks, one bit each, that ``words`` words of any of ``places`` lie in."""
        found = 0
        for place in places:
            last = place.address + words - 1
            found |= banks_of(place.address, last, self.spec.words_per_bank)
        return found

    def _check(self, queues: tuple[int, ...], low: int, high: int, words: int) -> None:
        if low > high:
            over = (low - high) * 320 * len(queues)
            raise CompileError(
                f"the model does not fit: {over:,} bytes too many on slices {queues[0]}.."
                f"{queues[-1]} of a chip (placing {words} words); use more chips, int8 weights "
                "or a shorter context"
            )

    def filled(self, queues: tuple[int, ...]) -> int:
        """Words for keeping on the fullest of some slices; where there are no maps, the first."""
        queues = queues if self.maps else queues[:1]
        gaps = [sum(b - a for a, b in self.gaps[q]) for q in queues]
        return max(self.low[q] - gap + self.kept[q] for q, gap in zip(queues, gaps, strict=True))

    def used_bytes(self) -> int:
        """SRAM bytes taken on the chip."""
        used = (lo + self.words - hi for lo, hi in zip(self.low, self.high, strict=True))
        return 320 * (sum(used) - sum(b - a for gaps in self.gaps for a, b in gaps))


class Symbols:
    """What every block has once: allocated block by block, then known by symbol."""

    def __init__(self, sequences: int, blocks: int) -> None:
        self.bases: list[list[dict[Symbol, int]]] = [
            [{} for _ in range(blocks)] for _ in range(sequences)
        ]

    def place(self, name: str, places: dict[int, Place], banks: int = ALL_BANKS) -> Place:
        """The symbol for the places that ``name`` has in some blocks, whatever the sequence."""
        for number in range(len(self.bases)):
            place = self.place_of(number, name, places, banks)
        return place

    def place_of(
        self, sequence: int, name: str, places: dict[int, Place], banks: int = ALL_BANKS
    ) -> Place:
        """The symbol for the places that ``name`` has for one sequence.

        banks: those that any of its places lies in, for any sequence; see ``SramPlacement.banks``.
        """
        symbol = Symbol(name, banks)
        for block, place in places.items():
            self.bases[sequence][block][symbol] = place.address
        return Place(next(iter(places.values())).queues, 0, symbol)


@dataclass
class _Strip:
    queues: tuple[int, ...]
    used: int = 0


@dataclass
class Strips:
    """Slices of one chip that are not yet taken, and the strips made of the others.

    Slices nearest the VXM go first to strips of fewer than sixteen slices, those at the edge to
    the sixteen-slice strips of weights.  Slices in ``shared`` are for strips of weights only, and
    keep their last ``shared_words`` words for something else; so do those in ``kept``, whatever
    strip they are of, their last ``kept_words``.
    """

    spec: ChipSpec
    free: list[list[int]] = field(init=False)
    missing_bytes: int = 0
    shared: frozenset[int] = frozenset()
    shared_words: int = 0
    kept: frozenset[int] = frozenset()
    kept_words: int = 0
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
        for strip in strips if not fresh else ():
            if strip.used + words <= self._room(strip.queues):
                place = Place(strip.queues, strip.used)
                strip.used += words
                return place
        if width >= _WEIGHTS:
            order = sorted(self.free[side], key=lambda s: (s in self.shared, s))
            usable = sorted(order[-width:])
        else:
            usable = [s for s in self.free[side] if s not in self.shared][:width]
        if words > self._room(usable) or width > len(usable):
            self.missing_bytes += width * words * LANES
            return Place(tuple(range(width)), 0)
        queues = tuple(usable)
        self.free[side] = [s for s in self.free[side] if s not in usable]
        strips.append(_Strip(queues, words))
        return Place(queues, 0)

    def _room(self, queues: Sequence[int]) -> int:
        """Words of a strip of these slices."""
        shared = self.shared_words if len(queues) >= _WEIGHTS else 0
        kept = 0 if self.kept.isdisjoint(queues) else self.kept_words
        return self.spec.words_per_slice - max(shared, kept)

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
