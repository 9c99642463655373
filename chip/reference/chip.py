"""The reference executor: the living definition of the instruction set.

Ticks every cycle and really moves every stream register one position per cycle, one instruction
at a time, straight from ``docs/machine.md``.  Slow, short, and shares no code with the engine
beyond the instruction set, the scalar number functions and the digest's mix.  It refuses at run
time whatever the rules forbid (:class:`ProgramFault`).

A cycle: writes that are due are committed; the instructions of the cycle are dispatched in
(queue, opcode) order and sample their operands; results that are due are put on their streams;
every stream moves on by one position.  Sampling before driving is what makes positions exclusive:
a unit never sees what its own position drives in that cycle.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

from chip import digest
from chip.errors import LpuError
from chip.faults import ProgramFault
from chip.isa import (
    ALU0,
    ALUS,
    C2C_QUEUE,
    EAST_EDGE,
    EAST_STREAMS,
    LANES,
    LANES_PER_SUPERLANE,
    MXM_QUEUE,
    PLANES,
    SELF,
    SLICES,
    STREAMS,
    SUPERLANES,
    VXM_ARITY,
    VXM_QUEUE,
    WEST_EDGE,
    AccMode,
    Op,
    drive_position,
    sample_position,
)
from chip.program import Program, expand
from chip.reference.forms import BrokenRule, Instruction, check_block, check_form
from chip.reference.math import (
    SATURATING,
    Words,
    alu_result,
    distributed,
    rotated,
    shifted,
    transposed,
)
from chip.reference.mxm import Plane, multiply
from chip.spec import ChipSpec

Bytes = NDArray[np.uint8]
_READS, _WRITES = (Op.READ, Op.GATHER), (Op.WRITE, Op.SCATTER)


@dataclass(frozen=True)
class ReferenceResult:
    """One launch: its length in cycles, the two digest sums, the instructions retired.

    saturated: lanes that conversions lost, by ``chip.saturation.KINDS``.
    """

    cycles: int
    digest_sums: tuple[int, int]
    retired: int
    saturated: tuple[int, int, int] = (0, 0, 0)


@dataclass
class Port:
    """A chip's end of a cable: vectors under way as (arrival cycle, uint8 [320]), oldest first."""

    sent: deque[tuple[int, Bytes]] = field(default_factory=deque)
    coming: deque[tuple[int, Bytes]] = field(default_factory=deque)


class ReferenceChip:
    """One chip.  ``sram`` uint8 [88, words_per_slice, 320] survives launches."""

    def __init__(self, spec: ChipSpec, chip_id: int = 0) -> None:
        self.spec = spec
        self.chip_id = chip_id
        self.sram: Bytes = np.zeros((SLICES, spec.words_per_slice, LANES), np.uint8)

    def run(
        self, program: Program, launch: int = 0, links: Mapping[int, Port] | None = None
    ) -> ReferenceResult:
        """Run one launch.  ``links``: this chip's end of the cable on each wired link."""
        self.begin(program, launch, links)
        while (cycle := self.next_cycle()) is not None:
            self.step(cycle)
        return self.finish()

    # ---- the launch ---------------------------------------------------------------------------

    def begin(
        self, program: Program, launch: int = 0, links: Mapping[int, Port] | None = None
    ) -> None:
        """Forget everything but the SRAM and load a program."""
        for block in program.blocks:
            if problem := check_block(block, program):
                code, message = problem
                raise ProgramFault(
                    code=code,
                    chip=self.chip_id,
                    cycle=int(block["cycle"]),
                    queue=int(block["queue"]),
                    message=message,
                )
        self._program = program
        self._launch = launch
        self._links = dict(links or {})
        self._table = [Instruction(*row) for row in expand(program).tolist()]
        for ins in self._table:
            if ins.cycle < 0:
                self._fault("bounds", ins, "it is dispatched before cycle 0")
        self._now = 0
        self._retired = 0  # instructions dispatched so far: the index of the next one
        self._last_effect = 0
        self._sums = np.zeros(2, np.uint64)
        self._saturated = [0, 0, 0]
        # Stream registers: [stream, position + 1]; producer is an index into _table or -1.
        self._data: Bytes = np.zeros((STREAMS, EAST_EDGE + 2, LANES), np.uint8)
        self._producer = np.full((STREAMS, EAST_EDGE + 2), -1, np.int64)
        self._drives: dict[int, list[tuple[int, int, int, Bytes]]] = {}
        self._commits: dict[int, list[tuple[Instruction, NDArray[np.int64], Bytes]]] = {}
        self._issued: dict[int, list[Instruction]] = {}  # this cycle's, by queue
        self._flying: list[tuple[Instruction, int, int]] = []  # writes not yet readable, window
        self._results: list[list[tuple[int, Words, int]]] = [[] for _ in range(ALUS)]
        self._planes = [Plane(self.spec) for _ in range(PLANES)]
        self._last_send: dict[int, int] = {}
        self._parked: dict[int, Instruction] = {}
        self._release: dict[int, int] = {}

    def next_cycle(self) -> int | None:
        """The next cycle in which anything can happen, or None when the launch is over."""
        times = [*self._drives, *self._commits]
        for plane in self._planes:
            times += plane.products
        if self._retired < len(self._table):
            times.append(self._table[self._retired].cycle)
        if not times:
            return None  # what is left on the streams falls off the edges unseen
        if (self._producer >= 0).any():
            return self._now
        return min(times)

    def step(self, now: int) -> None:
        """One tick of the clock."""
        self._now = now
        for ins, words, vector in self._commits.pop(now, []):
            self._store(ins.queue, words, vector)
        self._issued = {}
        while self._retired < len(self._table) and self._table[self._retired].cycle == now:
            self._dispatch(self._table[self._retired])
            self._retired += 1
        if any(ins.op == Op.NOTIFY for group in self._issued.values() for ins in group):
            for queue in self._parked:
                self._release.setdefault(queue, now + self.spec.notify_cycles)
        for plane in self._planes:
            if now in plane.products:
                ins = plane.products[now][0]
                self._fault("missing", ins, f"no ACC at cycle {now} takes the product of this ABC")
        driven: set[tuple[int, int]] = set()
        for stream, position, index, vector in self._drives.pop(now, []):
            if (stream, position) in driven:
                message = f"a second producer on stream {stream} at position {position}"
                self._fault("driver", self._table[index], message)
            driven.add((stream, position))
            self._data[stream, position + 1] = vector
            self._producer[stream, position + 1] = index
        self._move()
        self._now = now + 1

    def run_to(self, cycle: int) -> None:
        """Go on until ``cycle`` is about to begin: what is dispatched in it is still to come.

        Raises ProgramFault as ``run`` does, LpuError for a cycle that is already over.
        """
        if cycle < self._now:
            raise LpuError(f"cycle {cycle} is over; begin the launch again to look at it")
        while self._now < cycle:
            flowing = (self._producer >= 0).any()
            due = self._now if flowing else self.next_cycle()
            if due is None or due >= cycle:
                self._now = cycle
            else:
                self.step(due)

    def stream(self, code: int, position: int) -> Bytes | None:
        """What a unit at ``position`` would sample from stream ``code`` now: uint8 [320].

        Now is the cycle that ``run_to`` stopped before.  code: 0..31 eastward, 32..63 westward.
        position: -1 (west edge) to 45 (east edge).  None: no value is there; what was driven
        before has moved on, or fell off the edge.  Raises LpuError for what does not exist.
        """
        if not 0 <= code < STREAMS:
            raise LpuError(f"stream {code} does not exist; use 0..{STREAMS - 1}")
        if not WEST_EDGE <= position <= EAST_EDGE:
            raise LpuError(f"position {position} does not exist; use {WEST_EDGE}..{EAST_EDGE}")
        if self._producer[code, position + 1] < 0:
            return None
        return self._data[code, position + 1].copy()

    def finish(self) -> ReferenceResult:
        """The end of the launch."""
        for queue, ins in self._parked.items():
            if queue not in self._release:
                self._fault("sync", ins, "no NOTIFY ever releases this SYNC")
        cycles = max(self._last_effect, self._program.cycles)
        sums = (int(self._sums[0]), int(self._sums[1]))
        fp16, int32, int8 = self._saturated
        return ReferenceResult(cycles, sums, self._retired, (fp16, int32, int8))

    # ---- streams ------------------------------------------------------------------------------

    def _move(self) -> None:
        """Every live stream moves one position; what passes the edge is gone."""
        for stream in np.flatnonzero((self._producer >= 0).any(axis=1)):
            data, producer = self._data[stream], self._producer[stream]
            if stream < EAST_STREAMS:
                data[1:], producer[1:] = data[:-1].copy(), producer[:-1].copy()
                producer[0] = -1
            else:
                data[:-1], producer[:-1] = data[1:].copy(), producer[1:].copy()
                producer[-1] = -1

    def _sample(self, ins: Instruction, first: int, width: int, want: int) -> Bytes:
        """``width`` streams from ``first`` as they reach the instruction's unit: [width, 320]."""
        register = sample_position(ins.queue, first) + 1
        for stream in range(first, first + width):
            index = int(self._producer[stream, register])
            if index < 0:
                self._fault("missing", ins, f"nothing arrives on stream {stream}")
            tag = self._table[index].tag
            if want and tag != want:
                self._fault("want", ins, f"stream {stream} carries tag {tag}, not {want}")
        return self._data[first : first + width, register].copy()

    def _drive(self, ins: Instruction, delay: int, vectors: Bytes) -> None:
        """Put ``vectors`` [n, 320] on streams out..out+n-1, ``delay`` cycles from now."""
        position = drive_position(ins.queue, ins.out)
        due = self._drives.setdefault(self._now + delay, [])
        for i, vector in enumerate(vectors):
            due.append((ins.out + i, position, self._retired, vector))
        self._effect(delay)

    def _effect(self, delay: int) -> None:
        self._last_effect = max(self._last_effect, self._now + delay)

    def _record(self, ins: Instruction, vector: Bytes, place: int) -> None:
        """Add an architectural effect to the digest: a word written, sent or received."""
        self._sums += digest.mix_effect(
            vector, self.chip_id, self._launch, ins.cycle, ins.op, ins.queue, place
        )

    def _fault(self, code: str, ins: Instruction, message: str) -> NoReturn:
        raise ProgramFault(
            code=code, chip=self.chip_id, cycle=ins.cycle, queue=ins.queue, message=message
        )

    # ---- dispatch -----------------------------------------------------------------------------

    def _dispatch(self, ins: Instruction) -> None:
        if problem := check_form(ins, self._program, self.spec):
            self._fault(problem[0], ins, problem[1])
        together = self._issued.setdefault(ins.queue, [])
        together.append(ins)
        if len(together) > 1 and not _may_pair(together):
            self._fault("queue", ins, "the queue issues another instruction in this cycle")
        if ins.queue in self._parked:
            if self._now < self._release.get(ins.queue, self._now + 1):
                self._fault("sync", ins, "the queue is parked by a SYNC")
            del self._parked[ins.queue], self._release[ins.queue]
        self._effect(0)
        op = Op(ins.op)
        if op in _READS:
            self._read(ins)
        elif op in _WRITES:
            self._write(ins)
        elif op in VXM_ARITY:
            self._alu(ins)
        elif op == Op.SYNC:
            self._parked[ins.queue] = ins
        elif op == Op.NOTIFY:
            self._effect(self.spec.notify_cycles)
        elif op != Op.DESKEW:
            try:
                getattr(self, f"_{op.name.lower()}")(ins)
            except BrokenRule as broken:
                self._fault(broken.code, ins, broken.message)

    # ---- MEM ----------------------------------------------------------------------------------

    def _words(self, ins: Instruction) -> NDArray[np.int64]:
        """The word of each superlane [20]: ``a``, or ``a`` plus the map streams' offset."""
        words = np.full(SUPERLANES, ins.a, np.int64)
        if ins.op in (Op.GATHER, Op.SCATTER):
            maps = self._sample(ins, ins.s1, 2, ins.want1)[:, ::LANES_PER_SUPERLANE]
            words += maps[0] + 256 * maps[1].astype(np.int64)
            if (words < ins.lo).any() or (words > ins.hi).any():
                self._fault("offset", ins, f"words {words.tolist()} leave [{ins.lo}, {ins.hi}]")
        return words

    def _check_banks(self, ins: Instruction) -> None:
        words = self.spec.words_per_bank
        banks = [_window(other)[0] // words for other in self._issued[ins.queue]]
        if len(banks) == 2 and banks[0] == banks[1]:
            self._fault("bank", ins, f"a read and a write in bank {banks[0]} of the slice")

    def _read(self, ins: Instruction) -> None:
        self._check_banks(ins)
        lo, hi = _window(ins)
        for write, first, last in self._flying:
            landing = write.cycle + self.spec.write_cycles
            hit = write.queue == ins.queue and first <= hi and lo <= last
            if hit and write.cycle < self._now < landing:
                message = f"the write of cycle {write.cycle} is readable from cycle {landing}"
                self._fault("in-flight", ins, message)
        delay = self.spec.read_cycles if ins.op == Op.READ else self.spec.gather_cycles
        self._drive(ins, delay, self._load(ins.queue, self._words(ins))[None])

    def _write(self, ins: Instruction) -> None:
        self._check_banks(ins)
        words = self._words(ins)
        vector = self._sample(ins, ins.s0, 1, ins.want0)[0]
        delay = self.spec.write_cycles
        self._flying = [w for w in self._flying if w[0].cycle + delay > self._now]
        self._flying.append((ins, *_window(ins)))
        self._commits.setdefault(self._now + delay, []).append((ins, words, vector))
        self._effect(delay)
        place = ins.a if ins.op == Op.WRITE else digest.scatter_address(words)
        self._record(ins, vector, place)

    def _load(self, queue: int, words: NDArray[np.int64]) -> Bytes:
        tiles = self.sram[queue].reshape(-1, SUPERLANES, LANES_PER_SUPERLANE)
        vector: Bytes = tiles[words, np.arange(SUPERLANES)].reshape(LANES)
        return vector

    def _store(self, queue: int, words: NDArray[np.int64], vector: Bytes) -> None:
        tiles = self.sram[queue].reshape(-1, SUPERLANES, LANES_PER_SUPERLANE)
        tiles[words, np.arange(SUPERLANES)] = vector.reshape(SUPERLANES, LANES_PER_SUPERLANE)

    # ---- VXM ----------------------------------------------------------------------------------

    def _alu(self, ins: Instruction) -> None:
        alu = ins.queue - VXM_QUEUE
        x = self._operand(ins, ins.s0, ins.w0, ins.want0)
        y = x if VXM_ARITY[Op(ins.op)] == 1 else self._operand(ins, ins.s1, ins.w1, ins.want1)
        result = alu_result(Op(ins.op), x, y)
        if ins.op in SATURATING:
            kind, lost = SATURATING[Op(ins.op)]
            self._saturated[kind] += int(lost(x).sum())
        settled = self._now - self.spec.alu_cycles
        old = [r for r in self._results[alu] if r[0] <= settled]
        new = [r for r in self._results[alu] if r[0] > settled]
        self._results[alu] = [*old[-1:], *new, (self._now, result, ins.tag)]
        self._effect(self.spec.alu_cycles)
        if ins.wo:
            planes = result.astype("<u4").view(np.uint8).reshape(LANES, 4).T[: ins.wo]
            self._drive(ins, self.spec.alu_entry_cycles + self.spec.alu_cycles, planes.copy())

    def _operand(self, ins: Instruction, code: int, width: int, want: int) -> Words:
        """An ALU operand as uint32 [320]."""
        if code < STREAMS:
            planes = np.zeros((LANES, 4), np.uint8)
            planes[:, :width] = self._sample(ins, code, width, want).T
            return planes.view("<u4").reshape(LANES).astype(np.uint32)
        settled = self._now - self.spec.alu_cycles
        if code < SELF:
            found = [r for r in self._results[code - ALU0] if r[0] == settled]
            if not found:
                message = f"ALU {code - ALU0} dispatched nothing at cycle {settled}"
                self._fault("missing", ins, message)
            return self._wanted(ins, found[0], want)
        if code == SELF:
            own = self._results[ins.queue - VXM_QUEUE]
            found = [r for r in own if r[0] <= settled]
            if not found:
                self._fault("missing", ins, "this ALU has no result yet")
            return self._wanted(ins, found[-1], want)
        return np.full(LANES, ins.imm & 0xFFFFFFFF, np.uint32)

    def _wanted(self, ins: Instruction, result: tuple[int, Words, int], want: int) -> Words:
        """The words of an ALU's result, which must carry the wanted tag."""
        _, words, tag = result
        if want and tag != want:
            self._fault("want", ins, f"the ALU's result carries tag {tag}, not {want}")
        return words

    # ---- MXM ----------------------------------------------------------------------------------

    def _lw(self, ins: Instruction) -> None:
        weights = self._sample(ins, ins.s0, 16, ins.want0)
        self._planes[(ins.queue - MXM_QUEUE) // 2].load(self._now, ins.a, weights)

    def _iw(self, ins: Instruction) -> None:
        self._planes[(ins.queue - MXM_QUEUE) // 2].install(self._now, ins.a)
        self._effect(self.spec.mxm_install_cycles)

    def _abc(self, ins: Instruction) -> None:
        number = (ins.queue - MXM_QUEUE) // 2
        used = self._planes[number : number + ins.w0]
        activation = self._sample(ins, ins.s0, ins.w0, ins.want0)
        product = multiply(used, self._now, activation)
        used[0].products[self._now + self.spec.mxm_multiply_cycles] = (ins, product)

    def _acc(self, ins: Instruction) -> None:
        row = self._planes[(ins.queue - MXM_QUEUE) // 2].accumulate(self._now, ins.a, ins.mode)
        if ins.mode in (AccMode.SET_EMIT, AccMode.ADD_EMIT):
            planes = row.view(np.uint8).reshape(LANES, 4).T.copy()
            self._drive(ins, self.spec.mxm_accumulate_cycles, planes)

    # ---- SXM ----------------------------------------------------------------------------------

    def _distribute(self, ins: Instruction) -> None:
        lanes = self._sample(ins, ins.s1, 1, ins.want1)[0]
        vectors = self._sample(ins, ins.s0, ins.w0, ins.want0)
        self._drive(ins, self.spec.distribute_cycles, distributed(vectors, lanes))

    def _transpose(self, ins: Instruction) -> None:
        vectors = self._sample(ins, ins.s0, 16, ins.want0)
        self._drive(ins, self.spec.transpose_cycles, transposed(vectors))

    def _permute(self, ins: Instruction) -> None:
        vector = self._sample(ins, ins.s0, 1, ins.want0)
        self._drive(ins, self.spec.permute_cycles, vector[:, self._program.maps[ins.imm]])

    def _shift(self, ins: Instruction) -> None:
        vector = self._sample(ins, ins.s0, 1, ins.want0)[0]
        self._drive(ins, self.spec.shift_cycles, shifted(vector, ins.imm)[None])

    def _rotate(self, ins: Instruction) -> None:
        vector = self._sample(ins, ins.s0, 1, ins.want0)[0]
        self._drive(ins, self.spec.rotate_cycles, rotated(vector, ins.imm))

    # ---- C2C ----------------------------------------------------------------------------------

    def _send(self, ins: Instruction) -> None:
        link = ins.queue - C2C_QUEUE
        if link in self._last_send:
            earliest = self._last_send[link] + self.spec.send_spacing_cycles
            if self._now < earliest:
                self._fault("link", ins, f"the link is busy until cycle {earliest}")
        self._last_send[link] = self._now
        vector = self._sample(ins, ins.s0, 1, ins.want0)[0]
        if link in self._links:
            arrival = self._now + self.spec.send_to_receive_cycles
            self._links[link].sent.append((arrival, vector))
        self._record(ins, vector, link)

    def _receive(self, ins: Instruction) -> None:
        link = ins.queue - C2C_QUEUE
        coming = self._links[link].coming if link in self._links else deque()
        if not coming:
            self._fault("missing", ins, f"no vector is under way on link {link}")
        arrival, vector = coming.popleft()
        if arrival != self._now:
            self._fault("link", ins, f"the vector arrives at cycle {arrival}")
        self._record(ins, vector, link)
        self._drive(ins, self.spec.receive_cycles, vector[None])


def run_together(
    chips: Sequence[ReferenceChip],
    programs: Sequence[Program],
    cables: Sequence[tuple[int, int, int, int]],
    launch: int = 0,
) -> list[ReferenceResult]:
    """Run one launch on several chips in lockstep.

    cables: (index of chip a, its link, index of chip b, its link).
    """
    links: list[dict[int, Port]] = [{} for _ in chips]
    for chip_a, link_a, chip_b, link_b in cables:
        there, back = Port(), Port()
        there.coming, back.coming = back.sent, there.sent
        links[chip_a][link_a], links[chip_b][link_b] = there, back
    for chip, program, ports in zip(chips, programs, links, strict=True):
        chip.begin(program, launch, ports)
    while True:
        due = [chip.next_cycle() for chip in chips]
        cycles = [cycle for cycle in due if cycle is not None]
        if not cycles:
            return [chip.finish() for chip in chips]
        now = min(cycles)
        for chip, cycle in zip(chips, due, strict=True):
            if cycle == now:
                chip.step(now)


def _may_pair(together: list[Instruction]) -> bool:
    """A read with a write, or an ABC with an ACC, may leave a queue in one cycle."""
    ops = [ins.op for ins in together]
    reads, writes = sum(op in _READS for op in ops), sum(op in _WRITES for op in ops)
    return len(ops) == 2 and ((reads, writes) == (1, 1) or set(ops) == {Op.ABC, Op.ACC})


def _window(ins: Instruction) -> tuple[int, int]:
    """The words an access may touch, inclusive."""
    return (ins.lo, ins.hi) if ins.op in (Op.GATHER, Op.SCATTER) else (ins.a, ins.a)
