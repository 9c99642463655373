"""Vectors between chips: which Send block's vectors which Receive block takes, and when.

The k-th vector that is sent on a link is the k-th one that its other end receives: links keep
order, and nothing else addresses a vector.  Vectors that one Send block hands to one Receive block
one after another are a *flight*; a flight has both its ends, and its first vector arrives
``send_to_receive_cycles`` after it was sent, or the programs do not belong together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from chip._columns import expand_columns
from chip.isa import C2C_QUEUE, LINKS, Op
from chip.program import Program
from chip.spec import ChipSpec

I64 = NDArray[np.int64]


@dataclass(frozen=True)
class Flights:
    """Flights in the order of cables and time; int64 [flights] each.

    chip, link, block, sent: who sends, and the dispatch cycle of the first vector; to_chip,
    to_block, received: the other end; vectors: how many.
    """

    chip: I64
    link: I64
    block: I64
    sent: I64
    to_chip: I64
    to_link: I64
    to_block: I64
    received: I64
    vectors: I64

    def __len__(self) -> int:
        return len(self.chip)


class FlightError(Exception):
    """Programs whose vectors do not meet: who, where, and what would mend it, in one line."""


@dataclass(frozen=True)
class _Ends:
    """Vectors of one program by link: blocks and cycles in time order."""

    block: list[I64]
    cycle: list[I64]


def _ends(program: Program, op: Op) -> _Ends:
    wanted = np.flatnonzero(program.blocks["op"] == op)
    vectors = expand_columns(Program(program.blocks[wanted]))
    link = vectors.queue - C2C_QUEUE
    order = np.lexsort((vectors.block, vectors.cycle))
    rows = [order[link[order] == k] for k in range(LINKS)]
    return _Ends([wanted[vectors.block[r]] for r in rows], [vectors.cycle[r] for r in rows])


def find_flights(
    programs: Sequence[Program],
    program_of_chip: Sequence[int],
    cables: Sequence[tuple[int, int, int, int]],
    spec: ChipSpec,
) -> Flights:
    """All flights of one launch, in which chip c runs ``programs[program_of_chip[c]]``.

    Raises FlightError where a link carries vectors that nobody receives in time.
    """
    sends = [_ends(program, Op.SEND) for program in programs]
    receives = [_ends(program, Op.RECEIVE) for program in programs]
    parts = [np.zeros((0, 9), np.int64)]
    for a, link_a, b, link_b in cables:
        for ends in ((a, link_a, b, link_b), (b, link_b, a, link_a)):
            source, target = sends[program_of_chip[ends[0]]], receives[program_of_chip[ends[2]]]
            parts.append(_of_link(source, target, ends, spec))
    rows = np.concatenate(parts)
    return Flights(*(np.ascontiguousarray(rows[:, i]) for i in range(9)))


def _of_link(
    sends: _Ends, receives: _Ends, ends: tuple[int, int, int, int], spec: ChipSpec
) -> I64:
    """Flights of one direction of a cable, int64 [flights, 9] in the columns of ``Flights``."""
    chip, link, to_chip, to_link = ends
    sent, taken = sends.cycle[link], receives.cycle[to_link]
    where = f"chip {chip} link {link} to chip {to_chip} link {to_link}"
    if len(sent) != len(taken):
        raise FlightError(
            f"{where}: {len(sent)} vectors sent, {len(taken)} received; prove the programs with "
            "lpu check"
        )
    wrong = np.flatnonzero(taken - sent != spec.send_to_receive_cycles)
    if len(wrong):
        first = int(wrong[0])
        raise FlightError(
            f"{where}: a vector sent at cycle {sent[first]} is received at {taken[first]}, not "
            f"{spec.send_to_receive_cycles} cycles later; prove the programs with lpu check"
        )
    pairs = np.stack([sends.block[link], receives.block[to_link]], axis=1)
    begins = np.flatnonzero(np.r_[True, np.any(pairs[1:] != pairs[:-1], axis=1)][: len(pairs)])
    rows = np.empty((len(begins), 9), np.int64)
    rows[:, [0, 1, 4, 5]] = ends
    rows[:, 2], rows[:, 6] = pairs[begins, 0], pairs[begins, 1]
    rows[:, 3], rows[:, 7] = sent[begins], taken[begins]
    rows[:, 8] = np.diff(np.r_[begins, len(pairs)])
    return rows
