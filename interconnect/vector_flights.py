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

from chip.isa import C2C_QUEUE, LINKS, Op
from chip.program import Program, expand_columns
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
    """Vectors of all programs by (program, link), in time order; ``first``: where each begins."""

    block: I64
    cycle: I64
    first: I64

    def of(self, program: I64, link: I64) -> tuple[I64, I64]:
        """Where the vectors of these ends begin, and how many they are."""
        end = program * LINKS + link
        return self.first[end], self.first[end + 1] - self.first[end]


def _ends(programs: Sequence[Program], op: Op) -> _Ends:
    blocks, cycles, counts = [], [], []
    for program in programs:
        wanted = np.flatnonzero(program.blocks["op"] == op)
        vectors = expand_columns(Program(program.blocks[wanted]))
        link = vectors.queue - C2C_QUEUE
        order = np.lexsort((vectors.block, vectors.cycle, link))
        blocks.append(wanted[vectors.block[order]])
        cycles.append(vectors.cycle[order])
        counts.append(np.bincount(link, minlength=LINKS))
    nothing = [np.zeros(0, np.int64)]
    first = np.cumsum(np.concatenate([[0], *counts]))
    return _Ends(np.concatenate(nothing + blocks), np.concatenate(nothing + cycles), first)


def find_flights(
    programs: Sequence[Program],
    program_of_chip: Sequence[int],
    cables: Sequence[tuple[int, int, int, int]],
    spec: ChipSpec,
) -> Flights:
    """All flights of one launch, in which chip c runs ``programs[program_of_chip[c]]``.

    Raises FlightError where a link carries vectors that nobody receives in time.
    """
    there = np.array(cables, np.int64).reshape(-1, 4)
    ends = np.stack([there, there[:, [2, 3, 0, 1]]], axis=1).reshape(-1, 4)
    chip, link, to_chip, to_link = ends.T
    of = np.array(program_of_chip, np.int64)
    sends, receives = _ends(programs, Op.SEND), _ends(programs, Op.RECEIVE)
    send, sent = sends.of(of[chip], link)
    receive, taken = receives.of(of[to_chip], to_link)
    uneven = np.flatnonzero(sent != taken)
    if len(uneven):
        i = int(uneven[0])
        raise FlightError(
            f"{_where(ends[i])}: {sent[i]} vectors sent, {taken[i]} received; prove the programs "
            "with lpu check"
        )
    way = np.repeat(np.arange(len(ends)), sent)  # of each vector
    nth = np.arange(len(way)) - np.repeat(np.cumsum(sent) - sent, sent)
    send, receive = send[way] + nth, receive[way] + nth
    leaves, arrives = sends.cycle[send], receives.cycle[receive]
    wrong = np.flatnonzero(arrives - leaves != spec.send_to_receive_cycles)
    if len(wrong):
        i = int(wrong[0])
        raise FlightError(
            f"{_where(ends[way[i]])}: a vector sent at cycle {leaves[i]} is received at "
            f"{arrives[i]}, not {spec.send_to_receive_cycles} cycles later; prove the programs "
            "with lpu check"
        )
    from_block, to_block = sends.block[send], receives.block[receive]
    new = np.ones(len(way), bool)
    new[1:] = (np.diff(way) != 0) | (np.diff(from_block) != 0) | (np.diff(to_block) != 0)
    begins = np.flatnonzero(new)
    at = way[begins]
    return Flights(
        chip[at], link[at], from_block[begins], leaves[begins], to_chip[at], to_link[at],
        to_block[begins], arrives[begins], np.diff(np.r_[begins, len(way)]),
    )  # fmt: skip


def _where(ends: I64) -> str:
    chip, link, to_chip, to_link = ends.tolist()
    return f"chip {chip} link {link} to chip {to_chip} link {to_link}"
