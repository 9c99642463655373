"""The blocks of a fabric's chips: runs on links, and adds and copies, lowered to instructions.

Every hop of a run becomes a Read and a Send on one chip and a Receive and a Write on the next; a
chip on the way keeps the run in the buffer of the link it came in on and reads it again from
there.  Adds and copies take one ALU, one word per cycle; consecutive words take turns on it, so
each meets its own last sum as ``self``.

Blocks are made as columns for all chips at once, no object per message.  Producers are tagged and
consumers want those tags.  Knows no collective and does not choose links or barriers.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from chip import isa
from chip.isa import LINKS, Op, slice_position
from chip.program import BlockTable, Program, gang_skew, new_blocks
from chip.scheduling import CompileError
from chip.spec import ChipSpec
from interconnect.collectives.steps import OWN, Step, words_of
from interconnect.wires import (
    LINK_NUMBERS,
    PLANES_PER_WORD,
    Quad,
    WireSchedule,
    inward_stream,
    link_frames,
    outward_stream,
    phases,
    read_lead,
    schedule_messages,
    write_delay,
)
from interconnect.wiring import Topology, minimal_routes

Ints = NDArray[np.int64]

#: The ALU that adds and copies, and its streams: row 2 reaches stream groups 4..7.
_ALU = 8
_LOAD, _STORE = 16, 20  # first codes of groups 4 and 5; plus 32 westward


class FabricBlocks:
    """Blocks of all chips as they grow step by step."""

    def __init__(self, topology: Topology, spec: ChipSpec) -> None:
        self.topology = topology
        self.spec = spec
        self.frames = link_frames(spec)
        self.working = self.frames.working[:4]
        self.turns = self.frames.turn_frames
        quads: list[Quad] = list(self.working)
        self.quad_of_link = np.full(LINKS, -1, np.int64)
        for link, quad in self.frames.received.items():
            self.quad_of_link[link] = len(quads)
            quads.append(quad)
        #: Gang ``quad * turns + first plane``: the quad from that byte plane on.
        self.gangs = [q[i:] + q[:i] for q in quads for i in range(self.turns)]
        self.first_position = np.array([slice_position(g[0]) for g in self.gangs], np.int64)
        self._tables: list[BlockTable] = []
        self._chips: list[Ints] = []
        self._tag = 0
        self._messages = np.zeros((0, 7), np.int64)
        self._final = np.zeros((0, 2), np.int64)  # (link quad, address) of each message

    def _emit(self, chip: Ints, **columns: NDArray[np.integer] | int) -> BlockTable:
        table = new_blocks(len(chip))
        for name, column in columns.items():
            table[name] = column
        if "gang" in columns:
            table["queue"] = np.array([g[0] for g in self.gangs], np.int64)[table["gang"]]
        self._tables.append(table)
        self._chips.append(chip)
        return table

    def _tags(self, n: int) -> Ints:
        tags = self._tag + 1 + np.arange(n, dtype=np.int64)
        self._tag += n
        return tags

    # -- messages -------------------------------------------------------------------------

    def move(self, step: Step, ready: int, wires: list[WireSchedule]) -> int:
        """Blocks that carry the step's messages; the cycle from which all is readable."""
        spec, messages = self.spec, step.messages
        source, destination = messages[:, 0], messages[:, 1]
        hops, links = minimal_routes(
            self.topology, source, destination, np.arange(len(messages), dtype=np.int64)
        )
        if (hops < 1).any():
            lost = int(np.argmax(hops < 1))
            raise CompileError(f"no cables lead from chip {source[lost]} to {destination[lost]}")
        lead = np.array([self._lead(link) for link in range(LINKS)], np.int64)
        first_link = links[:, 0] % LINKS if len(messages) else np.zeros(0, np.int64)
        frame = spec.send_spacing_cycles
        start = -(-(ready + lead[first_link] - phases(spec)[first_link]) // frame)
        wire = schedule_messages(
            links, hops, self.topology.peer_link, PLANES_PER_WORD * words_of(messages), start, spec,
            np.zeros(self.topology.chips * LINKS, np.int64), sources=source,
            destinations=destination, ready=np.full(len(messages), ready, np.int64),
        )  # fmt: skip
        wires.append(wire)
        self._messages = messages
        self._final = np.zeros((len(messages), 2), np.int64)
        if len(wire.chip) == 0:
            return ready
        return self._emit_runs(wire)

    def _lead(self, link: int) -> int:
        if link not in LINK_NUMBERS:
            return 0
        return max(read_lead(self.spec, link, slice_position(q)) for g in self.working for q in g)

    def _emit_runs(self, wire: WireSchedule) -> int:
        spec, frame = self.spec, self.spec.send_spacing_cycles
        chip, link = wire.chip, wire.link
        peer = self.topology.peer[chip, link].astype(np.int64)
        entry = self.topology.peer_link[chip, link].astype(np.int64)
        words = wire.vectors // PLANES_PER_WORD
        plane = np.zeros(len(chip), np.int64)
        if self.turns > 1:
            plane = (wire.cycle // frame + self.frames.rotation[link]) % self.turns
        landed = self._allocate(peer, entry, wire.cycle, words)
        # where each hop reads: its message's own words, or where the hop before landed
        own = self._messages[wire.message]
        forwarded = wire.hop > 0
        before = np.where(forwarded, np.arange(len(chip)) - 1, 0)
        quad = np.where(forwarded, self.quad_of_link[entry[before]], own[:, 2])
        address = np.where(forwarded, landed[before], own[:, 3])
        inner = np.where(forwarded, words, own[:, 4])
        outer = np.where(forwarded, 1, own[:, 5])
        last = np.append(wire.message[1:] != wire.message[:-1], True)
        self._final[wire.message[last], 0] = self.quad_of_link[entry[last]]
        self._final[wire.message[last], 1] = landed[last]

        word = PLANES_PER_WORD * frame
        leads, delays = self._gang_delays()
        gang = quad * self.turns + plane
        out = np.array([outward_stream(k) for k in range(LINKS)])[link]
        tag = self._tags(len(chip))
        self._emit(chip, op=Op.READ, cycle=wire.cycle - leads[gang, link], gang=gang, a=address,
                   n1=inner, dc1=word, da1=1, n2=outer, dc2=inner * word, da2=own[:, 6], dcg=frame,
                   out=out, wo=1, tag=tag)  # fmt: skip
        self._emit(chip, op=Op.SEND, cycle=wire.cycle, queue=isa.C2C_QUEUE + link,
                   n1=wire.vectors, dc1=frame, s0=out, w0=1, want0=tag)  # fmt: skip
        gang = self.quad_of_link[entry] * self.turns + plane
        inward = np.array([inward_stream(k) for k in range(LINKS)])[entry]
        tag = self._tags(len(chip))
        self._emit(peer, op=Op.RECEIVE, cycle=wire.cycle + spec.send_to_receive_cycles,
                   queue=isa.C2C_QUEUE + entry, n1=wire.vectors, dc1=frame, out=inward, wo=1,
                   tag=tag)  # fmt: skip
        written = wire.cycle + delays[gang, entry]
        self._emit(peer, op=Op.WRITE, cycle=written, gang=gang, a=landed, n1=words, dc1=word, da1=1,
                   dcg=frame, s0=inward, w0=1, want0=tag)  # fmt: skip
        skew = np.array([[gang_skew(g, s).max() for s in (0, 32)] for g in self.gangs])
        late = skew[gang, (inward >= isa.EAST_STREAMS).astype(int)]
        return int((written + late + (wire.vectors - 1) * frame).max()) + spec.write_cycles

    def _gang_delays(self) -> tuple[Ints, Ints]:
        """int64 [gangs, 16] each: Read to Send, far Send to Write, of the gang's first slice."""
        spec, positions = self.spec, self.first_position.tolist()
        leads = [[read_lead(spec, link, p) for link in range(LINKS)] for p in positions]
        delays = [[write_delay(spec, link, p) for link in range(LINKS)] for p in positions]
        return np.array(leads, np.int64), np.array(delays, np.int64)

    def _allocate(self, chip: Ints, entry: Ints, cycle: Ints, words: Ints) -> Ints:
        """First word of every run in the buffer of the link it comes in on."""
        order = np.lexsort((cycle, entry, chip))
        end = np.cumsum(words[order])
        begin = end - words[order]
        key = (chip * LINKS + entry)[order]
        first = np.append(True, key[1:] != key[:-1])
        group = np.cumsum(first) - 1
        addresses = np.empty(len(chip), np.int64)
        addresses[order] = begin - begin[first][group]
        most = addresses + words
        if most.max() > self.spec.words_per_slice:
            worst = int(most.argmax())
            raise CompileError(
                f"link {entry[worst]} of chip {chip[worst]} receives {most[worst]} words in one "
                f"step, its buffer holds {self.spec.words_per_slice}: use fewer words"
            )
        return addresses

    # -- adds and copies ------------------------------------------------------------------

    def compute(self, step: Step, ready: int, add: Op) -> int:
        """Blocks of the step's jobs from cycle ``ready`` on; the cycle when all is readable."""
        spec, turn = self.spec, self.spec.alu_cycles
        if len(step.jobs) == 0:
            return ready
        chip, target, target_first, words = step.jobs.T
        job = step.terms[:, 0]
        terms = np.bincount(job, minlength=len(words))
        whole = np.where(terms > 1, words // turn, 0)  # groups of ``turn`` words in turns
        rest = words - turn * whole
        length = turn * terms * whole + np.where(rest > 0, turn * (terms - 1) + rest, 0)
        end = np.cumsum(length)
        first = np.append(True, chip[1:] != chip[:-1])
        begin = end - length
        begin -= begin[first][np.cumsum(first) - 1]
        base = ready + max(
            spec.read_cycles + abs(p - isa.sample_position(isa.VXM_QUEUE, _inward(p)))
            for p in self.first_position.tolist()
        )
        # one piece for the whole groups of a job, one for its rest
        number = np.arange(len(step.terms)) - np.repeat(np.cumsum(terms) - terms, terms)
        message = step.terms[:, 1]
        own = message == OWN
        landed = self._final[np.where(own, 0, message)] if len(self._final) else step.terms[:, 2:]
        quad = np.where(own, step.terms[:, 2], landed[:, 0])
        address = step.terms[:, 3] + np.where(own, 0, landed[:, 1])
        done = ready
        for n1, n2, skip in ((np.full_like(words, turn), whole, 0 * words),
                             (rest, np.ones_like(words), whole)):  # fmt: skip
            use = ((n1 > 0) & (n2 > 0))[job]
            j = job[use]
            when = base + begin[j] + turn * (terms[j] * skip[j] + number[use])
            shape = {"n1": n1[j], "dc1": 1, "n2": n2[j], "dc2": turn * terms[j]}
            ends = number[use] == terms[j] - 1
            done = max(done, self._emit_terms(
                chip[j], when, quad[use], address[use] + turn * skip[j], shape, number[use] == 0,
                ends, target[j], target_first[j] + turn * skip[j], add,
            ))  # fmt: skip
        return done

    def _emit_terms(
        self, chip: Ints, when: Ints, quad: Ints, address: Ints,
        shape: dict[str, NDArray[np.integer] | int], begins: NDArray[np.bool_],
        ends: NDArray[np.bool_], target: Ints, target_address: Ints, add: Op,
    ) -> int:  # fmt: skip
        """Read, ALU and Write blocks of terms whose first word the ALU takes at ``when``."""
        spec, turn = self.spec, self.spec.alu_cycles
        if len(chip) == 0:
            return 0
        position = self.first_position
        east = position > isa.sample_position(isa.VXM_QUEUE, 0)  # of the VXM: flows west to it
        load = np.where(east, _LOAD + 32, _LOAD)
        goal = np.where(east, isa.sample_position(isa.VXM_QUEUE, 32),
                        isa.sample_position(isa.VXM_QUEUE, 0))  # fmt: skip
        store = np.where(east, _STORE, _STORE + 32)
        driven = np.where(east, isa.drive_position(isa.VXM_QUEUE, 0),
                          isa.drive_position(isa.VXM_QUEUE, 32))  # fmt: skip
        gang, to = quad * self.turns, target * self.turns
        steps = {"da1": 1, "da2": turn}
        tag, sum_tag = self._tags(len(chip)), self._tags(len(chip))
        self._emit(chip, op=Op.READ, gang=gang, a=address, out=load[gang], wo=1, dsg=1, tag=tag,
                   cycle=when - spec.read_cycles - np.abs(goal - position)[gang],
                   **shape, **steps)  # fmt: skip
        self._emit(chip, op=np.where(begins, int(Op.MOV), int(add)), queue=isa.VXM_QUEUE + _ALU,
                   cycle=when, s0=load[gang], w0=4, want0=tag, s1=np.where(begins, -1, isa.SELF),
                   out=np.where(ends, store[to], -1), wo=np.where(ends, 4, 0),
                   tag=np.where(ends, sum_tag, 0), **shape)  # fmt: skip
        kept = {name: c[ends] if isinstance(c, np.ndarray) else c for name, c in shape.items()}
        to = to[ends]
        written = (when[ends] + spec.alu_entry_cycles + spec.alu_cycles
                   + np.abs(position - driven)[to])  # fmt: skip
        self._emit(chip[ends], op=Op.WRITE, gang=to, a=target_address[ends], s0=store[to], w0=1,
                   want0=sum_tag[ends], dsg=1, cycle=written, **kept, **steps)  # fmt: skip
        last = (np.asarray(kept["n1"]) - 1) + (np.asarray(kept["n2"]) - 1) * kept["dc2"]
        reach = np.array([np.abs(gang_skew(g, 0)).max() for g in self.gangs])[to]
        return int((written + last + reach).max()) + spec.write_cycles

    # -- programs -------------------------------------------------------------------------

    def programs(self, cycles: int) -> tuple[list[Program], list[int]]:
        """Every chip's program, equal ones once, and which of them each chip runs."""
        table, chip = np.concatenate(self._tables), np.concatenate(self._chips)
        order = np.lexsort((table["op"], table["queue"], table["cycle"], chip))
        table, chip = table[order], chip[order]
        borders = np.searchsorted(chip, np.arange(self.topology.chips + 1))
        makes = np.flatnonzero(table["tag"] > 0)  # tags are numbered anew in every program
        count = np.cumsum(table["tag"] > 0)
        before = np.append(0, count)[borders[:-1]]
        names = np.zeros(self._tag + 1, np.int64)
        names[table["tag"][makes]] = count[makes] - before[chip[makes]]
        table["tag"], table["want0"] = names[table["tag"]], names[table["want0"]]
        known: dict[bytes, int] = {}
        programs: list[Program] = []
        program_of_chip: list[int] = []
        for c in range(self.topology.chips):
            blocks = table[borders[c] : borders[c + 1]].copy()
            number = known.setdefault(blocks.tobytes(), len(programs))
            if number == len(programs):
                programs.append(Program(blocks, list(self.gangs), [], cycles))
            program_of_chip.append(number)
        return programs, program_of_chip


def _inward(position: int) -> int:
    """A stream code that flows from ``position`` to the VXM."""
    return 0 if position < isa.sample_position(isa.VXM_QUEUE, 0) else isa.EAST_STREAMS
