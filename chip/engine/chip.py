"""The fast executor: a chip's state, and runs of linked programs on one chip or many.

A ``Chip`` owns SRAM, accumulators and scratch.  It is told its links' ring numbers and nothing
else of the world: it runs until its program is done or until it would need a vector, a free
place in a transmit ring, or a later cycle than it was allowed to reach.  ``run_chips`` steps the
chips of a process in one compiled call.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chip.engine import frames, loop, native
from chip.engine.dot_fp16 import ACTIVATIONS, BLOCK
from chip.engine.dot_int8 import TILE_BYTES
from chip.engine.ring import Rings
from chip.faults import LockstepViolation, ProgramFault
from chip.isa import C2C_QUEUE, LANES, LINKS, PLANES, SLICES, Op
from chip.linking import PIECE_OP, LinkedProgram, describe
from chip.saturation import KINDS
from chip.spec import ChipSpec

#: Scratch rows reserved behind SRAM; pages cost nothing until they are used.
RESERVED_ROWS = 1 << 16
#: 32-bit scratch rows to begin with.
_WORD_ROWS = 1024
_FOREVER = (1 << 62) - 1
_ALONE = np.ones(1, np.int64)
_NO_RINGS = Rings.allocate(1, 1)
#: ``loop.run_chips``, or the same from a file.
_step: native.Step = loop.run_chips


class Status(IntEnum):
    """Why ``Chip.run`` returned."""

    DONE = frames.DONE
    WAIT_RECEIVE = frames.WAIT_RECEIVE
    WAIT_SEND = frames.WAIT_SEND
    WINDOW = frames.WINDOW


class Chip:
    """One LPU.  ``data=False`` runs the same table without moving data (timing only).

    ``dense``: most of SRAM will be used, so it is backed by large pages: faster to read, and
    every touched slice is taken whole.
    """

    def __init__(
        self, spec: ChipSpec, chip_id: int, *, data: bool = True, dense: bool = False
    ) -> None:
        self.spec = spec
        self.chip_id = chip_id
        self.data = data
        self._dense = dense
        self._sram_rows = SLICES * spec.words_per_slice
        self._reserve(RESERVED_ROWS if data else 2)
        self._words = np.zeros((_WORD_ROWS if data else 4, LANES), np.uint32)
        self._state = np.zeros(16, np.int64)
        self._links = np.zeros((4, LINKS), np.int64)
        self._links[[frames.TX, frames.RX]] = -1
        self._peers = np.full(LINKS, -1, np.int64)
        self._linked: LinkedProgram | None = None
        self._launch = 0
        #: The two running digest sums, uint64 [2], over all launches so far.
        self.digest_sums: NDArray[np.uint64] = np.zeros(2, np.uint64)
        #: Lanes that conversions saturated, int64 [parts, kinds], over all launches so far.
        self.saturated: NDArray[np.int64] = np.zeros((1, len(KINDS)), np.int64)
        #: Cycle at which the last finished launch retired.
        self.retired_cycles = 0
        self._code = np.zeros(1, np.int64)
        self._scratch = self._new_scratch()
        self._frame = self._new_frame()

    def _new_scratch(self) -> dict[int, NDArray[Any]]:
        """Arrays of the compiled loop that never move, by their position in the frame."""
        f = frames
        return {
            f.ACCUMULATORS: np.zeros((PLANES * self.spec.mxm_accumulator_rows, LANES), np.uint32),
            f.PRODUCTS: np.zeros((ACTIVATIONS, LANES), np.uint32),
            f.LAID: np.zeros((ACTIVATIONS, LANES), np.int16),
            f.TILE: np.zeros(TILE_BYTES, np.uint8),
            f.EXCESS: np.zeros(ACTIVATIONS, np.int32),
            f.FINITE: np.zeros(ACTIVATIONS, np.bool_),
            f.WIDE: np.zeros((ACTIVATIONS + 3, LANES), np.float64),
            f.TOTALS: np.zeros(ACTIVATIONS, np.float64),
            f.DOTS: np.zeros(ACTIVATIONS, np.float64),
            f.LIVE: np.zeros(LANES // BLOCK, np.int64),
            f.REPEATS: np.zeros(LANES, np.uint8),
            f.ADDRESSES: np.zeros(20, np.int64),
            f.STATE: self._state,
            f.LINK_STATE: self._links,
            f.SUMS: self.digest_sums,
        }

    def _new_frame(self) -> frames.Frame:
        """The frame of this chip, without a program."""
        f, frame = frames, np.zeros(frames.LENGTH, np.int64)
        for position, array in self._scratch.items():
            f.put(frame, position, array)
        frame[f.CHIP] = self.chip_id
        frame[f.HOP] = self.spec.send_to_receive_cycles
        frame[f.SLICE_WORDS] = self.spec.words_per_slice
        frame[f.DATA] = int(self.data)
        return frame

    def _reserve(self, scratch_rows: int) -> None:
        """Rows: SRAM, scratch, and a last row of zeros for vectors without data or use."""
        size = (self._sram_rows + scratch_rows + 1) * LANES
        memory = frames.own_memory(size, large_pages=self._dense)
        self._flat = np.frombuffer(memory, np.uint8).reshape(-1, LANES)

    @property
    def sram(self) -> NDArray[np.uint8]:
        """uint8 [88, words_per_slice, 320], a view; untouched words cost no memory and are zero."""
        return self._flat[: self._sram_rows].reshape(SLICES, -1, LANES)

    def write_words(self, slice_: int, address: int, rows: NDArray[np.uint8]) -> None:
        """Put ``rows`` uint8 [n, 320] at consecutive word addresses of a slice (0..87)."""
        self.sram[slice_, address : address + len(rows)] = rows

    def read_words(self, slice_: int, address: int, n: int) -> NDArray[np.uint8]:
        """A copy of ``n`` words of a slice, uint8 [n, 320]."""
        return self.sram[slice_, address : address + n].copy()

    def wire(
        self,
        tx: NDArray[np.int64] | list[int],
        rx: NDArray[np.int64] | list[int],
        peers: NDArray[np.int64] | list[int] | None = None,
    ) -> None:
        """Ring numbers of the 16 links, -1 where unwired; ``peers``: chip ids, for messages."""
        self._links[frames.TX] = tx
        self._links[frames.RX] = rx
        self._peers[:] = -1 if peers is None else peers

    def peer(self, link: int) -> int:
        """The chip at the other end of ``link`` (0..15), -1 where none was named."""
        return int(self._peers[link])

    def begin(self, linked: LinkedProgram, launch: int) -> None:
        """Start a launch.  SRAM stays; streams, planes and accumulators are as new."""
        if linked.spec != self.spec:
            raise ValueError(
                f"the program is linked for chip spec {linked.spec.name!r}, chip {self.chip_id} "
                f"is another ({self.spec.name!r}): link it with this chip's spec"
            )
        if self.data:
            if linked.byte_rows > len(self._flat) - self._sram_rows - 1:
                sram = self._flat[: self._sram_rows]
                self._reserve(2 * linked.byte_rows)
                self._flat[: self._sram_rows] = sram
            if linked.word_rows > len(self._words):
                self._words = np.zeros((linked.word_rows, LANES), np.uint32)
        self._linked = linked
        self._launch = launch
        self._state[:] = 0
        self._links[[frames.SENT, frames.RECEIVED]] = 0
        frame = self._frame
        parts = -(-linked.counters // len(KINDS)) - len(self.saturated)
        if parts > 0:
            self.saturated = np.pad(self.saturated, ((0, parts), (0, 0)))
        for position, array in (
            (frames.SATURATED, self.saturated.reshape(-1)),
            (frames.TABLE, linked.table),
            (frames.STARTS, linked.starts),
            (frames.ARGUMENTS, linked.arguments),
            (frames.WEIGHTS, linked.weights),
            (frames.MAPS, linked.maps),
            (frames.ROWS, self._flat),
            (frames.WORDS, self._words),
        ):
            frames.put(frame, position, array)
        frame[frames.LAUNCH_NUMBER] = launch

    @property
    def clock(self) -> int:
        """Start cycle of the oldest block not executed; the program's length when done."""
        if self._linked is None:
            return 0
        position = int(self._state[frames.PC])
        starts = self._linked.starts
        return int(starts[position]) if position < len(starts) else self._linked.cycles

    @property
    def waiting(self) -> tuple[int, int]:
        """(queue, cycle) of the SEND or RECEIVE that stopped the last run."""
        return int(self._state[frames.WAIT_QUEUE]), int(self._state[frames.WAIT_CYCLE])

    @property
    def receives(self) -> bool:
        """True when the oldest block not executed is a RECEIVE."""
        if self._linked is None:
            return False
        position = int(self._state[frames.PC])
        table = self._linked.table
        return position < len(table) and int(table[position, PIECE_OP]) == Op.RECEIVE

    def run(self, rings: Rings | None = None, until_cycle: int | None = None) -> Status:
        """``run_chips`` of this chip alone."""
        return run_chips([self], rings, until_cycle)[0]

    def _stopped(self, code: int) -> Status:
        """What a code of the compiled loop means; raises what it stands for."""
        p = self._linked
        assert p is not None
        if code == frames.FAULT:
            raise self._fault(p)
        if code == frames.LOCKSTEP:
            raise self._violation(p)
        if code == frames.DONE:
            self.retired_cycles = p.cycles
        return Status(code)

    def _fault(self, p: LinkedProgram) -> ProgramFault:
        queue, cycle = self.waiting
        piece = int(self._state[frames.PC])
        if p.table[piece, PIECE_OP] in (Op.SEND, Op.RECEIVE):
            text = f"{describe(p, piece)}: link {queue - C2C_QUEUE} is not wired"
            return ProgramFault("link", cycle, queue, text, chip=self.chip_id)
        word = int(self._state[frames.DETAIL])
        text = f"{describe(p, piece)}: word {word} lies outside its window"
        return ProgramFault("offset", cycle, queue, text, chip=self.chip_id)

    def _violation(self, p: LinkedProgram) -> LockstepViolation:
        queue, cycle = self.waiting
        s = self._state
        link = queue - C2C_QUEUE
        peer = int(self._peers[link])
        sender = f"chip {peer}" if peer >= 0 else "the chip at its other end"
        seen = int(s[frames.SEEN_CYCLE])
        expected = self._links[frames.RECEIVED, link]
        reason = {
            frames.OTHER_LAUNCH: f"it is of launch {s[frames.SEEN_LAUNCH]}, not {self._launch}",
            frames.OTHER_VECTOR: f"it is vector {s[frames.SEEN_SEQUENCE]}, not {expected}",
            frames.OTHER_CYCLE: f"it arrives at cycle {seen + self.spec.send_to_receive_cycles}",
            frames.FORGED: "its checksum does not match its bytes and the key of these links",
        }[int(s[frames.DETAIL])]
        text = (
            f"chip {self.chip_id}, cycle {cycle}: {describe(p, int(s[frames.PC]))} got a "
            f"vector on link {link} that SEND of {sender} issued at cycle {seen}: {reason}"
        )
        forged = int(s[frames.DETAIL]) == frames.FORGED
        return LockstepViolation(self.chip_id, peer, cycle, seen, text, forged=forged)


def run_chips(
    chips: Sequence[Chip],
    rings: Rings | None = None,
    until_cycle: int | None = None,
    *,
    rounds: int = _FOREVER,
    threads: int = 1,
    sleeps: int = 0,
) -> list[Status]:
    """Run begun chips, one after another and again, until none can go on; why each stopped.

    A chip stops when its program is done, at a block that starts at ``until_cycle`` or later, or
    where it lacks a vector or room in a ring of ``rings``.  ``rounds``: at most so many turns of
    each.  With several ``threads`` each steps its own share of the chips, to the same effect.
    ``sleeps``: how often one thread rather sleeps, where Linux can, until another process has sent
    or taken what lets a chip go on; it returns when nothing came for 20 ms.

    Raises ProgramFault for an offset outside its window or an unwired link, and
    LockstepViolation when a received vector is not the scheduled one.
    """
    for chip in chips:
        if chip._linked is None:
            raise RuntimeError("run before Chip.begin: begin a launch first")
    r = _NO_RINGS if rings is None else rings
    until = _FOREVER if until_cycle is None else until_cycle
    if len(chips) == 1:  # a process with one chip asks often; this way costs least
        (chip,) = chips
        chip._code[0] = frames.READY
        chip._frame[frames.KEY] = r.key
        _step(
            chip._frame.reshape(1, -1),
            chip._code,
            r.counts,
            r.meta,
            r.data,
            until,
            rounds,
            _ALONE,
            0,
            sleeps,
        )
        return [chip._stopped(int(chip._code[0]))]
    joined = np.array([chip._frame for chip in chips]).reshape(-1, frames.LENGTH)
    joined[:, frames.KEY] = r.key
    codes = np.full(len(chips), frames.READY, np.int64)
    shares = max(1, min(threads, len(chips)))
    moving = np.ones(shares, np.int64)
    moved = [False] * shares

    def run_share(own: int) -> None:
        share = slice(own * len(chips) // shares, (own + 1) * len(chips) // shares)
        moved[own] = _step(
            joined[share],
            codes[share],
            r.counts,
            r.meta,
            r.data,
            until,
            rounds,
            moving,
            own,
            sleeps if shares == 1 else 0,
        )

    while True:
        moving[:] = 1
        others = [Thread(target=run_share, args=(own,)) for own in range(1, shares)]
        for thread in others:
            thread.start()
        run_share(0)
        for thread in others:
            thread.join()
        # A thread may have given up waiting for one that went on: then all go on.
        found = codes.tolist()
        broken = [n for n, code in enumerate(found) if code in (frames.FAULT, frames.LOCKSTEP)]
        waits = frames.WAIT_RECEIVE in found or frames.WAIT_SEND in found
        if shares == 1 or rounds < _FOREVER or broken or not (waits and any(moved)):
            break
    for number in broken:
        chips[number]._stopped(found[number])
    return [chip._stopped(code) for chip, code in zip(chips, found, strict=True)]


def use_interpreter(path: Path) -> None:
    """Run chips with the interpreter that ``save_interpreter`` wrote, if it works here."""
    global _step
    _step = native.load_interpreter(path) or loop.run_chips


def warm_up() -> None:
    """Compile (or load from the cache) everything that linking and running need."""
    from chip.linking import link
    from chip.program import Program, new_blocks

    program = Program(new_blocks(0), [], [], 0)
    spec = ChipSpec()
    chip = Chip(spec, 0)
    chip.begin(link(program, spec), 0)
    chip.run()
