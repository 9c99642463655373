"""The reservation table: where a compiler puts instructions so that nothing collides.

A :class:`Schedule` places groups one after another, each at the earliest cycle, not before a given
one, at which nothing it takes is taken: queue issue slots, SRAM slice ports by bank, stream
diagonals by segment, plane buffers, installed planes, accumulators, ALUs.  A group's ALUs are
those it picked, or others that reach the same streams and are free.

It is stricter than the machine only where it does not know better: an address that is a symbol may
lie in any bank of its layers, and a segment of a diagonal carries one value however short its way.
So a layer's schedule stays legal when its addresses are relocated.  It knows nothing of models or
kernels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from chip import isa
from chip.program import BLOCK_DTYPE, BlockTable
from chip.scheduling.groups import ROWS, Claim, Group, Ints, resource_name
from chip.scheduling.places import Symbol

#: How many collisions of a start are looked at, and how far, to skip starts that collide as well.
_USES_TRIED, _SHIFT_TRIED = 64, 4096


@dataclass(frozen=True)
class _Choice:
    """An ALU that a group picked: the cycles it needs of it, and the ALUs that serve as well."""

    alu: int
    cycles: Ints
    others: tuple[int, ...]


@dataclass(frozen=True)
class Collision:
    """Why a pass began later: a resource that it needed, and the pass that had it."""

    cycles: int
    resource: str
    holder: str


@dataclass(frozen=True)
class PlacedPass:
    """A pass as it was placed: from when on it could begin, when it did, and its last cycle."""

    name: str
    wanted: int
    start: int
    end: int
    waits: tuple[Collision, ...]


class Schedule:
    """Placed blocks and the occupancy they cause.

    watched: keep what is asked of it in ``passes``, each with what it waited for.
    """

    def __init__(self, watched: bool = False) -> None:
        self.passes: list[PlacedPass] = []
        self._claims: list[tuple[str, int, Claim]] | None = [] if watched else None
        self._occupied = np.zeros((ROWS, 16384), np.uint8)
        self._blocks: list[dict[str, int]] = []
        self._symbols: list[Symbol | None] = []
        self._gang_ids: dict[tuple[int, ...], int] = {}
        self._tags = 0

    def tag(self) -> int:
        """A new name for a produced value."""
        self._tags += 1
        return self._tags

    def place(self, group: Group, earliest: int, name: str = "", claim: Claim | None = None) -> int:
        """Put ``group`` at the first free cycle >= earliest and return that cycle.

        name: of the kernel that asks, for whoever wants to know what passes wait for.  claim: the
        group's, where it is known.
        """
        claim = claim or group.claim()
        fixed, choices = _apart(claim, group)
        wanted = max(earliest, -int(claim.cycles.min()))
        last = int(claim.cycles.max())
        start, chosen, waits = self._find(fixed, choices, wanted, last)
        self._occupied[fixed.rows, fixed.cycles + start] |= fixed.parts
        for choice in choices:
            self._occupied[isa.VXM_QUEUE + chosen[choice.alu], choice.cycles + start] = 1
        for block, symbol, gang in zip(group.blocks, group.symbols, group.gang_of, strict=True):
            placed = _renumbered(block, chosen)
            placed["cycle"] += start
            if gang is not None:
                placed["gang"] = self._gang_ids.setdefault(gang, len(self._gang_ids))
            self._blocks.append(placed)
            self._symbols.append(symbol)
        if self._claims is not None:
            numbers = np.arange(ROWS)
            for alu, other in chosen.items():
                numbers[isa.VXM_QUEUE + alu] = isa.VXM_QUEUE + other
            self._claims.append((name, start, replace(claim, rows=numbers[claim.rows])))
            self.passes.append(PlacedPass(name, wanted, start, start + last, tuple(waits)))
        return start

    def free(self, group: Group, earliest: int, claim: Claim | None = None) -> int:
        """Where ``place`` would put ``group``."""
        claim = claim or group.claim()
        wanted = max(earliest, -int(claim.cycles.min()))
        return self._find(*_apart(claim, group), wanted, int(claim.cycles.max()))[0]

    def fork(self) -> Schedule:
        """A schedule of its own that begins with what is placed in this one, and its tags."""
        other = Schedule()
        used = np.flatnonzero(self._occupied.any(axis=0))
        other._occupied = self._occupied[:, : int(used.max(initial=0)) + 1].copy()
        other._blocks, other._symbols = list(self._blocks), list(self._symbols)
        other._gang_ids, other._tags = dict(self._gang_ids), self._tags
        return other

    def _find(
        self, fixed: Claim, choices: list[_Choice], wanted: int, last: int
    ) -> tuple[int, dict[int, int], list[Collision]]:
        """The first free cycle >= wanted, the ALUs for the choices, and what is in the way before.

        last: the last cycle of the group that is asked for.
        """
        rows, cycles, parts = fixed.rows, fixed.cycles, fixed.parts
        start = wanted
        waits: list[Collision] = []
        while True:
            while start + last + 1 > self._occupied.shape[1]:
                self._occupied = np.concatenate(
                    [self._occupied, np.zeros_like(self._occupied)], axis=1
                )
            taken = np.flatnonzero(self._occupied[rows, cycles + start] & parts)
            if len(taken):
                shift, use = self._least_shift(fixed, start, taken)
                self._note(waits, shift, int(rows[use]), int(cycles[use]) + start, int(parts[use]))
                start += shift
                continue
            chosen, shift = self._choose(choices, start)
            if not shift:
                return start, chosen, waits
            for choice in choices:
                at = choice.cycles + start
                busy = np.flatnonzero(self._occupied[isa.VXM_QUEUE + choice.alu, at])
                if len(busy):
                    self._note(waits, shift, isa.VXM_QUEUE + choice.alu, int(at[busy[0]]), 1)
                    break
            start += shift

    def _note(self, waits: list[Collision], shift: int, row: int, cycle: int, parts: int) -> None:
        """Add to ``waits`` a pass that has ``row`` in ``cycle``, where somebody wants to know."""
        for name, start, claim in self._claims or ():
            own = (claim.rows == row) & (claim.cycles + start == cycle)
            if (claim.parts[own] & parts).any():
                wait = Collision(shift, resource_name(row, parts), name)
                if waits and replace(waits[-1], cycles=shift) == wait:
                    wait = replace(wait, cycles=waits.pop().cycles + shift)
                waits.append(wait)
                return

    def _least_shift(self, claim: Claim, start: int, taken: NDArray[np.intp]) -> tuple[int, int]:
        """Cycles by which every start in between would meet some of the ``taken`` uses again, and
        the use that says so.
        """
        most, found = 1, int(taken[0])
        for use in taken[:: max(1, len(taken) // _USES_TRIED)]:
            at = int(claim.cycles[use]) + start
            busy = self._occupied[claim.rows[use], at : at + _SHIFT_TRIED] & claim.parts[use] > 0
            length = len(busy) if busy.all() else int(busy.argmin())
            if length > most:
                most, found = length, int(use)
        return most, found

    def _choose(self, choices: list[_Choice], start: int) -> tuple[dict[int, int], int]:
        """An ALU for each choice at ``start`` and 0, or the cycles by which to begin later."""
        shifts = [self._shift_of_alu(choice.alu, choice, start) for choice in choices]
        if not any(shifts):
            return {choice.alu: choice.alu for choice in choices}, 0
        most, free = 0, []
        for choice, shift in zip(choices, shifts, strict=True):
            each = [self._shift_of_alu(alu, choice, start) for alu in choice.others]
            free.append([choice.alu] * (not shift))
            free[-1] += [alu for alu, after in zip(choice.others, each, strict=True) if not after]
            most = max(most, min([shift, *each]))
        chosen: dict[int, int] = {}  # ALU taken -> number of the choice
        for number in range(len(choices)):
            if most or not _assign(number, free, chosen, set()):
                return {}, max(most, 1)
        return {choices[number].alu: alu for alu, number in chosen.items()}, 0

    def _shift_of_alu(self, alu: int, choice: _Choice, start: int) -> int:
        """Cycles by which a choice begins too early for ``alu`` at least; 0: it is free."""
        rows = self._occupied[isa.VXM_QUEUE + alu]
        taken = np.flatnonzero(rows[choice.cycles + start])
        most = 0
        for use in taken[:: max(1, len(taken) // _USES_TRIED)]:
            at = int(choice.cycles[use]) + start
            busy = rows[at : at + _SHIFT_TRIED] > 0
            most = max(most, len(busy) if busy.all() else int(busy.argmin()))
        return most

    def blocks(
        self, since: int = 0
    ) -> tuple[BlockTable, list[Symbol | None], list[tuple[int, ...]]]:
        """The placed blocks, the symbol of each block's address, and the gangs they name.

        since: from this one on, in the order in which they were placed.
        """
        table = np.zeros(len(self._blocks) - since, BLOCK_DTYPE)
        for i, block in enumerate(self._blocks[since:]):
            for name, value in block.items():
                table[i][name] = value
        return table, self._symbols[since:], list(self._gang_ids)

    def __len__(self) -> int:
        """Blocks placed so far."""
        return len(self._blocks)


def place_together(passes: Sequence[tuple[Schedule, Group]], earliest: int, name: str = "") -> int:
    """Put groups of several chips at the first cycle >= earliest that is free for all of them.

    Each goes to the schedule that it is named with.  Returns that cycle.
    """
    start, claims = earliest, [group.claim() for _, group in passes]
    while True:
        each = zip(passes, claims, strict=True)
        found = max(schedule.free(group, start, claim) for (schedule, group), claim in each)
        if found == start:
            break
        start = found
    for (schedule, group), claim in zip(passes, claims, strict=True):
        schedule.place(group, start, name, claim)
    return start


def _assign(number: int, free: list[list[int]], chosen: dict[int, int], asked: set[int]) -> bool:
    """Give choice ``number`` an ALU of ``free``; those that have one move on where that helps."""
    for alu in free[number]:
        if alu not in asked:
            asked.add(alu)
            if alu not in chosen or _assign(chosen[alu], free, chosen, asked):
                chosen[alu] = number
                return True
    return False


def _apart(claim: Claim, group: Group) -> tuple[Claim, list[_Choice]]:
    """What a group needs as it is, and the ALUs that may be others."""
    if not group.picked:
        return claim, []
    reached = _stream_groups(group)
    alus = claim.rows - isa.VXM_QUEUE
    of_vxm = (alus >= 0) & (alus < isa.ALUS)
    own = set(alus[of_vxm].tolist())
    barred = own - group.picked
    choices = [
        _Choice(
            alu,
            claim.cycles[alus == alu],
            tuple(
                other
                for other in range(isa.ALUS)
                if other != alu
                and other not in barred
                and reached[alu] <= set(isa.alu_stream_groups(other))
            ),
        )
        for alu in sorted(own & group.picked)
    ]
    fixed = ~(of_vxm & np.isin(alus, list(group.picked)))
    return Claim(claim.rows[fixed], claim.cycles[fixed], claim.parts[fixed]), choices


def _stream_groups(group: Group) -> dict[int, set[int]]:
    """The stream groups that each ALU of a group reads or writes."""
    reached: dict[int, set[int]] = {alu: set() for alu in range(isa.ALUS)}
    for block in group.blocks:
        if isa.VXM_QUEUE <= block["queue"] < isa.VXM_QUEUE + isa.ALUS:
            codes = (block["s0"], block["s1"], block["out"])
            reached[block["queue"] - isa.VXM_QUEUE] |= {
                code % 32 // 4 for code in codes if 0 <= code < isa.STREAMS
            }
    return reached


def _renumbered(block: dict[str, int], chosen: dict[int, int]) -> dict[str, int]:
    """A copy of a block with the ALUs that were chosen for those it names."""
    placed = dict(block)
    queue = block["queue"] - isa.VXM_QUEUE
    if 0 <= queue < isa.ALUS:
        placed["queue"] = isa.VXM_QUEUE + chosen.get(queue, queue)
        for name in ("s0", "s1"):
            alu = block[name] - isa.ALU0
            if 0 <= alu < isa.ALUS:
                placed[name] = isa.ALU0 + chosen.get(alu, alu)
    return placed
