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
from chip.isa import LINKS, Op
from chip.program import BlockTable, Program, new_blocks
from chip.scheduling import CompileError
from chip.spec import ChipSpec
from interconnect.collectives.quads import BUFFERS, job_cycles, quads_of
from interconnect.collectives.schedule import first_planes
from interconnect.collectives.steps import OWN, Step
from interconnect.wires import (
    PLANES_PER_WORD,
    Ints,
    WireSchedule,
    inward_stream,
    outward_stream,
)
from interconnect.wiring import Topology

#: The ALU that adds and copies, and its streams: row 2 reaches stream groups 4..7.
_ALU = 8
_LOAD, _STORE = 16, 20  # first codes of groups 4 and 5; plus 32 westward

#: Of a table without rows: no message has landed anywhere.
_NOWHERE = np.zeros((1, 2), np.int64)


class FabricBlocks:
    """Blocks of all chips as they grow step by step.

    link_first: the first word that the links' quads have for what is received.
    """

    def __init__(self, topology: Topology, spec: ChipSpec, link_first: int = 0) -> None:
        self.topology = topology
        self.spec = spec
        self.link_first = link_first
        self.quads = quads_of(spec)
        self._tables: list[BlockTable] = []
        self._chips: list[Ints] = []
        self._tag = 0
        self._landed = _NOWHERE  # (link quad, address) of each message of the step

    def _emit(self, chip: Ints, **columns: NDArray[np.integer] | int) -> BlockTable:
        table = new_blocks(len(chip))
        for name, column in columns.items():
            table[name] = column
        if "gang" in columns:
            table["queue"] = np.array([g[0] for g in self.quads.gangs], np.int64)[table["gang"]]
        self._tables.append(table)
        self._chips.append(chip)
        return table

    def _tags(self, n: int) -> Ints:
        tags = self._tag + 1 + np.arange(n, dtype=np.int64)
        self._tag += n
        return tags

    # -- messages -------------------------------------------------------------------------

    def move(self, step: Step, wire: WireSchedule) -> None:
        """Blocks that carry the step's messages as scheduled."""
        spec, quads, frame = self.spec, self.quads, self.spec.send_spacing_cycles
        if step.target >= BUFFERS or step.messages[:, 2].max(initial=0) >= BUFFERS:
            raise CompileError(f"a collective of more than {BUFFERS} buffers: too many levels")
        self._landed = np.zeros((max(1, len(step.messages)), 2), np.int64)
        chip, link = wire.chip, wire.link
        if not len(chip):
            return
        peer = self.topology.peer[chip, link].astype(np.int64)
        entry = self.topology.peer_link[chip, link].astype(np.int64)
        words = wire.vectors // PLANES_PER_WORD
        plane = first_planes(link, wire.cycle, spec)
        landed = self._allocate(peer, entry, wire.cycle, words)
        # where each hop reads: its message's own words, or where the hop before landed
        own = step.messages[wire.message]
        forwarded = wire.hop > 0
        before = np.where(forwarded, np.arange(len(chip)) - 1, 0)
        quad = np.where(forwarded, quads.quad_of_link[entry[before]], own[:, 2])
        address = np.where(forwarded, landed[before], own[:, 3])
        inner = np.where(forwarded, words, own[:, 4])
        outer = np.where(forwarded, 1, own[:, 5])
        last = np.append(wire.message[1:] != wire.message[:-1], True)
        self._landed[wire.message[last], 0] = quads.quad_of_link[entry[last]]
        self._landed[wire.message[last], 1] = landed[last]

        word = PLANES_PER_WORD * frame
        gang = quad * quads.turns + plane
        out = np.array([outward_stream(k) for k in range(LINKS)])[link]
        tag = self._tags(len(chip))
        self._emit(
            chip,
            op=Op.READ,
            cycle=wire.cycle - quads.read_to_send[gang, link],
            gang=gang,
            a=address,
            n1=inner,
            dc1=word,
            da1=1,
            n2=outer,
            dc2=inner * word,
            da2=own[:, 6],
            dcg=frame,
            out=out,
            wo=1,
            tag=tag,
        )
        self._emit(
            chip,
            op=Op.SEND,
            cycle=wire.cycle,
            queue=isa.C2C_QUEUE + link,
            n1=wire.vectors,
            dc1=frame,
            s0=out,
            w0=1,
            want0=tag,
        )
        gang = quads.quad_of_link[entry] * quads.turns + plane
        inward = np.array([inward_stream(k) for k in range(LINKS)])[entry]
        tag = self._tags(len(chip))
        self._emit(
            peer,
            op=Op.RECEIVE,
            cycle=wire.cycle + spec.send_to_receive_cycles,
            queue=isa.C2C_QUEUE + entry,
            n1=wire.vectors,
            dc1=frame,
            out=inward,
            wo=1,
            tag=tag,
        )
        self._emit(
            peer,
            op=Op.WRITE,
            cycle=wire.cycle + quads.send_to_write[gang, entry],
            gang=gang,
            a=landed,
            n1=words,
            dc1=word,
            da1=1,
            dcg=frame,
            s0=inward,
            w0=1,
            want0=tag,
        )

    def _allocate(self, chip: Ints, entry: Ints, cycle: Ints, words: Ints) -> Ints:
        """First word of every run in the buffer of the link it comes in on."""
        order = np.lexsort((cycle, entry, chip))
        end = np.cumsum(words[order])
        begin = end - words[order]
        key = (chip * LINKS + entry)[order]
        first = np.append(True, key[1:] != key[:-1])
        group = np.cumsum(first) - 1
        addresses = np.empty(len(chip), np.int64)
        addresses[order] = self.link_first + begin - begin[first][group]
        most = addresses + words
        if most.max() > self.spec.words_per_slice:
            worst = int(most.argmax())
            raise CompileError(
                f"link {entry[worst]} of chip {chip[worst]} receives "
                f"{most[worst] - self.link_first} words in one step, its buffer holds "
                f"{self.spec.words_per_slice - self.link_first}: use fewer words"
            )
        return addresses

    # -- adds and copies ------------------------------------------------------------------

    def compute(self, step: Step, arrived: int, add: Op) -> None:
        """Blocks of the step's jobs, whose words are all readable at cycle ``arrived``."""
        spec, turn = self.spec, self.spec.alu_cycles
        if len(step.jobs) == 0:
            return
        jobs, of_terms = _apart(step)
        chip, target_first, words, terms = jobs.T
        job, message, buffer, first_word = of_terms.T
        whole = np.where(terms > 1, words // turn, 0)  # groups of ``turn`` words in turns
        rest = words - turn * whole
        length = job_cycles(words, np.ones_like(words), terms, spec)
        end = np.cumsum(length)
        first = np.append(True, chip[1:] != chip[:-1])
        begin = end - length
        begin -= begin[first][np.cumsum(first) - 1]
        begin += arrived + self.quads.vxm_lead
        # one piece for the whole groups of a job, one for its rest
        number = np.arange(len(job)) - np.repeat(np.cumsum(terms) - terms, terms)
        own = message == OWN
        landed = self._landed[np.where(own, 0, message)]
        quad = np.where(own, buffer, landed[:, 0])
        address = first_word + np.where(own, 0, landed[:, 1])
        for n1, n2, skip in (
            (np.full_like(words, turn), whole, 0 * words),
            (rest, np.ones_like(words), whole),
        ):
            use = ((n1 > 0) & (n2 > 0))[job]
            j = job[use]
            when = begin[j] + turn * (terms[j] * skip[j] + number[use])
            shape = {"n1": n1[j], "dc1": 1, "n2": n2[j], "dc2": turn * terms[j]}
            reads = quad[use], address[use] + turn * skip[j]
            writes = step.target, target_first[j] + turn * skip[j]
            ends = number[use] == terms[j] - 1
            self._emit_terms(chip[j], when, reads, writes, shape, number[use] == 0, ends, add)

    def _emit_terms(
        self,
        chip: Ints,
        when: Ints,
        reads: tuple[Ints, Ints],
        writes: tuple[int, Ints],
        shape: dict[str, NDArray[np.integer] | int],
        begins: NDArray[np.bool_],
        ends: NDArray[np.bool_],
        add: Op,
    ) -> None:
        """Read, ALU and Write blocks of terms whose first word the ALU takes at ``when``.

        reads: quads and addresses of the terms; writes: buffer and addresses of their sums.
        """
        spec, turn = self.spec, self.spec.alu_cycles
        (quad, address), (target, target_address) = reads, writes
        if len(chip) == 0:
            return
        position = self.quads.first_position
        east = position > isa.sample_position(isa.VXM_QUEUE, 0)  # of the VXM: flows west to it
        load = np.where(east, _LOAD + 32, _LOAD)
        goal = np.where(
            east, isa.sample_position(isa.VXM_QUEUE, 32), isa.sample_position(isa.VXM_QUEUE, 0)
        )
        gang, to = quad * self.quads.turns, target * self.quads.turns
        store = _STORE if east[to] else _STORE + 32
        steps = {"da1": 1, "da2": turn}
        tag, sum_tag = self._tags(len(chip)), self._tags(len(chip))
        self._emit(
            chip,
            op=Op.READ,
            gang=gang,
            a=address,
            out=load[gang],
            wo=1,
            dsg=1,
            tag=tag,
            cycle=when - spec.read_cycles - np.abs(goal - position)[gang],
            **shape,
            **steps,
        )
        self._emit(
            chip,
            op=np.where(begins, int(Op.MOV), int(add)),
            queue=isa.VXM_QUEUE + _ALU,
            cycle=when,
            s0=load[gang],
            w0=4,
            want0=tag,
            s1=np.where(begins, -1, isa.SELF),
            out=np.where(ends, store, -1),
            wo=np.where(ends, 4, 0),
            tag=np.where(ends, sum_tag, 0),
            **shape,
        )
        kept = {name: c[ends] if isinstance(c, np.ndarray) else c for name, c in shape.items()}
        written = when[ends] + spec.alu_entry_cycles + spec.alu_cycles
        self._emit(
            chip[ends],
            op=Op.WRITE,
            gang=to,
            a=target_address[ends],
            s0=store,
            w0=1,
            want0=sum_tag[ends],
            dsg=1,
            cycle=written + self.quads.to_store(target),
            **kept,
            **steps,
        )

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
                programs.append(Program(blocks, list(self.quads.gangs), [], cycles))
            program_of_chip.append(number)
        return programs, program_of_chip


def _apart(step: Step) -> tuple[Ints, Ints]:
    """Jobs without groups, [j, 4]: chip, first word, words, terms; and their terms, [t, 4].

    Terms: job, message or OWN, buffer, first word.
    """
    _, _, _, groups, stride, terms = step.jobs.T
    job = np.repeat(np.arange(len(groups)), groups)
    group = np.arange(len(job)) - np.repeat(np.cumsum(groups) - groups, groups)
    jobs = step.jobs[job][:, [0, 1, 2, 5]]
    jobs[:, 1] += group * stride[job]
    count = terms[job]
    of = np.repeat(np.arange(len(job)), count)
    number = np.arange(len(of)) - np.repeat(np.cumsum(count) - count, count)
    rows = step.terms[(np.cumsum(terms) - terms)[job][of] + number]
    found = rows[:, :4].copy()
    found[:, 0] = of
    found[:, 3] += group[of] * rows[:, 4]
    return jobs, found
