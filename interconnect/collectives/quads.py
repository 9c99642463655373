"""Where a collective's words lie on a chip, and what reading, receiving and adding them takes.

Four working quads near the VXM are the buffers of ``steps``; every link has a quad of its own for
what it receives (``interconnect.wires.frames``).  A *gang* is a quad from one of its byte planes
on.  These latencies are what compiled programs take: timing and programs read them here.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from chip import isa
from chip.isa import LINKS, slice_position
from chip.program import gang_skew
from chip.spec import ChipSpec
from interconnect.wires import (
    LINK_NUMBERS,
    Ints,
    Quad,
    inward_stream,
    link_frames,
    read_lead,
    write_delay,
)

#: Buffers that programs have; schedules without programs may use more.
BUFFERS = 4


class Quads:
    """Quads of a chip and their latencies, for one spec; arrays are int64.

    gangs: quads of ``turns`` gangs each, gang ``quad * turns + first plane``; the first BUFFERS
    quads are the working ones.  quad_of_link [16]: that takes what a link receives, or -1.
    read_to_send, send_to_write [gangs, 16]: of a gang's first slice.  lead [16]: the most cycles
    from words readable in a working quad to their Send on a link.  arrival [16, turns]: from the
    Send of a vector to its plane readable at the other end, by receiving link and first plane.
    vxm_lead: from words readable to their first term in the ALU.  store [BUFFERS]: from the last
    term in the ALU to the last sum readable.
    """

    def __init__(self, spec: ChipSpec) -> None:
        frames = link_frames(spec)
        self.spec, self.turns, self.rotation = spec, frames.turn_frames, frames.rotation
        self.working = frames.working[:BUFFERS]
        quads: list[Quad] = list(self.working)
        self.quad_of_link = np.full(LINKS, -1, np.int64)
        for link, quad in frames.received.items():
            self.quad_of_link[link] = len(quads)
            quads.append(quad)
        self.gangs = [quad[i:] + quad[:i] for quad in quads for i in range(self.turns)]
        positions = [slice_position(gang[0]) for gang in self.gangs]
        self.first_position: Ints = np.array(positions, np.int64)
        leads = [[read_lead(spec, link, p) for link in range(LINKS)] for p in positions]
        delays = [[write_delay(spec, link, p) for link in range(LINKS)] for p in positions]
        self.read_to_send: Ints = np.array(leads, np.int64)
        self.send_to_write: Ints = np.array(delays, np.int64)
        self.lead = self._leads()
        self.arrival = self._arrivals()
        self.vxm_lead = spec.read_cycles + max(
            abs(p - isa.sample_position(isa.VXM_QUEUE, _inward(p))) for p in positions
        )
        self.store = self._stores()

    def _leads(self) -> Ints:
        lead = np.zeros(LINKS, np.int64)
        for link in LINK_NUMBERS:
            lead[link] = max(
                read_lead(self.spec, link, slice_position(q)) for w in self.working for q in w
            )
        return lead

    def _arrivals(self) -> Ints:
        arrival = np.zeros((LINKS, self.turns), np.int64)
        for link in LINK_NUMBERS:
            stream = isa.EAST_STREAMS if inward_stream(link) >= isa.EAST_STREAMS else 0
            for plane in range(self.turns):
                gang = int(self.quad_of_link[link]) * self.turns + plane
                late = int(gang_skew(self.gangs[gang], stream).max())
                arrival[link, plane] = self.send_to_write[gang, link] + late
        return arrival + self.spec.write_cycles

    def _stores(self) -> Ints:
        spec, turns = self.spec, self.turns
        entry = spec.alu_entry_cycles + spec.alu_cycles + spec.write_cycles
        store = np.zeros(BUFFERS, np.int64)
        for buffer in range(BUFFERS):
            reach = int(np.abs(gang_skew(self.gangs[buffer * turns], 0)).max())
            store[buffer] = entry + self.to_store(buffer) + reach
        return store

    def to_store(self, buffer: int) -> int:
        """Stream hops from the VXM to the first slice of a working quad."""
        position = int(self.first_position[buffer * self.turns])
        outward = isa.EAST_STREAMS - _inward(position)
        return abs(position - isa.drive_position(isa.VXM_QUEUE, outward))


def _inward(position: int) -> int:
    """A stream code that flows from ``position`` to the VXM."""
    return 0 if position < isa.sample_position(isa.VXM_QUEUE, 0) else isa.EAST_STREAMS


@lru_cache(maxsize=16)
def quads_of(spec: ChipSpec) -> Quads:
    """The quads of a chip (cached)."""
    return Quads(spec)


def job_cycles(words: Ints, groups: Ints, terms: Ints, spec: ChipSpec) -> Ints:
    """Cycles for which jobs keep the ALU: int64 as ``words``.

    Sums of ``alu_cycles`` words take turns on it, so that each meets its own last sum; a copy
    takes a cycle a word.
    """
    turn = spec.alu_cycles
    whole = np.where(terms > 1, words // turn, 0)
    rest = words - turn * whole
    cycles: Ints = turn * terms * whole + np.where(rest > 0, turn * (terms - 1) + rest, 0)
    return groups * cycles
