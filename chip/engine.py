"""The fast executor: a chip's state, and runs of linked programs on it.

A ``Chip`` owns SRAM, accumulators and scratch.  It is told its links' ring numbers and nothing
else of the world: it runs until its program is done or until it would need a vector, a free
place in a transmit ring, or a later cycle than it was allowed to reach.
"""

from __future__ import annotations

import mmap
from contextlib import suppress
from enum import IntEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chip import _kernels
from chip._mxm import ACTIVATIONS
from chip.faults import LockstepViolation, ProgramFault
from chip.isa import LANES, LINKS, PLANES, SLICES, Op
from chip.loader import LinkedProgram, describe
from chip.ring import Rings
from chip.spec import ChipSpec

#: Scratch rows reserved behind SRAM; pages cost nothing until they are used.
RESERVED_ROWS = 1 << 16
_FOREVER = (1 << 62) - 1
_EXECUTE: Any = _kernels.execute  # its arguments are handed over in groups
_NO_RINGS = Rings.allocate(1, 1)


class Status(IntEnum):
    """Why ``Chip.run`` returned."""

    DONE = _kernels.DONE
    WAIT_RECEIVE = _kernels.WAIT_RECEIVE
    WAIT_SEND = _kernels.WAIT_SEND
    WINDOW = _kernels.WINDOW


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
        self._words = np.zeros((_kernels_words(data), LANES), np.uint32)
        rows = spec.mxm_accumulator_rows
        self._accumulators = np.zeros((PLANES, rows, LANES), np.uint32)
        self._products = np.zeros((ACTIVATIONS, LANES), np.uint32)
        self._widened = np.zeros((2, LANES), np.int16)
        self._bits = np.zeros((ACTIVATIONS + 1, LANES), np.uint16)
        self._values = np.zeros((ACTIVATIONS + 1, LANES), np.float32)
        self._finite = np.zeros(ACTIVATIONS, np.bool_)
        self._repeats = np.zeros(LANES, np.bool_)
        self._addresses = np.zeros(20, np.int64)
        self._state = np.zeros(16, np.int64)
        self._sent = np.zeros(LINKS, np.int64)
        self._received = np.zeros(LINKS, np.int64)
        self._tx = np.full(LINKS, -1, np.int64)
        self._rx = np.full(LINKS, -1, np.int64)
        self._peers = np.full(LINKS, -1, np.int64)
        self._linked: LinkedProgram | None = None
        self._launch = 0
        #: The two running digest sums, uint64 [2], over all launches so far.
        self.digest_sums: NDArray[np.uint64] = np.zeros(2, np.uint64)
        #: Cycle at which the last finished launch retired.
        self.retired_cycles = 0
        self._operands: tuple[NDArray[Any], ...] = ()
        self._counters = (
            self._tx, self._rx, self._sent, self._received, self._state,
            self.digest_sums.reshape(1, 2), chip_id,
        )  # fmt: skip

    def _reserve(self, scratch_rows: int) -> None:
        """Rows: SRAM, scratch, and a last row of zeros for vectors without data or use."""
        size = (self._sram_rows + scratch_rows + 1) * LANES
        memory = mmap.mmap(-1, size)  # pages are zero and cost nothing until they are used
        advice = "MADV_HUGEPAGE" if self._dense else "MADV_NOHUGEPAGE"
        if hasattr(mmap, advice):  # Linux
            # A kernel without large pages refuses the advice; it is only about speed.
            with suppress(OSError):
                memory.madvise(getattr(mmap, advice))
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
        self._tx[:] = tx
        self._rx[:] = rx
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
        self._operands = self._views_of(linked)
        self._state[:] = 0
        self._sent[:] = 0
        self._received[:] = 0

    def _views_of(self, p: LinkedProgram) -> tuple[NDArray[Any], ...]:
        """What the compiled loop takes of a program and this chip; made once per launch."""
        words, products = self._words, self._products
        return (
            p.table, p.starts, p.arguments, p.weights, p.maps, self._flat,
            self._flat.view(np.int8), self._flat.view(np.uint32), words,
            words.view(np.float32), words.view(np.int32), self._accumulators,
            self._accumulators.view(np.float32), products.view(np.int32), products,
            products.view(np.float32), self._widened, self._bits, self._values, self._finite,
            self._repeats, self._addresses,
        )  # fmt: skip

    @property
    def clock(self) -> int:
        """Start cycle of the oldest block not executed; the program's length when done."""
        if self._linked is None:
            return 0
        position = int(self._state[_kernels.PC])
        starts = self._linked.starts
        return int(starts[position]) if position < len(starts) else self._linked.cycles

    @property
    def waiting(self) -> tuple[int, int]:
        """(queue, cycle) of the SEND or RECEIVE that stopped the last run."""
        return int(self._state[_kernels.WAIT_QUEUE]), int(self._state[_kernels.WAIT_CYCLE])

    @property
    def receives(self) -> bool:
        """True when the oldest block not executed is a RECEIVE."""
        if self._linked is None:
            return False
        position = int(self._state[_kernels.PC])
        table = self._linked.table
        return position < len(table) and int(table[position, 0]) == Op.RECEIVE

    def run(self, rings: Rings | None = None, until_cycle: int | None = None) -> Status:
        """Execute blocks in order until done, a wait, or a block starting at ``until_cycle``.

        Raises ProgramFault for an offset outside its window or an unwired link, and
        LockstepViolation when a received vector is not the scheduled one.
        """
        p = self._linked
        if p is None:
            raise RuntimeError("Chip.run before Chip.begin: begin a launch first")
        r = _NO_RINGS if rings is None else rings
        code = _EXECUTE(
            *self._operands, r.counts, r.meta, r.data, *self._counters, self._launch,
            _FOREVER if until_cycle is None else until_cycle, self.spec.send_to_receive_cycles,
            self.spec.words_per_slice, self.data,
        )  # fmt: skip
        if code == _kernels.FAULT:
            raise self._fault(p)
        if code == _kernels.LOCKSTEP:
            raise self._violation(p)
        if code == _kernels.DONE:
            self.retired_cycles = p.cycles
        return Status(code)

    def _fault(self, p: LinkedProgram) -> ProgramFault:
        queue, cycle = self.waiting
        piece = int(self._state[_kernels.PC])
        if p.table[piece, 0] in (Op.SEND, Op.RECEIVE):
            text = f"{describe(p, piece)}: link {queue - 128} is not wired"
            return ProgramFault("link", cycle, queue, text, chip=self.chip_id)
        word = int(self._state[_kernels.DETAIL])
        text = f"{describe(p, piece)}: word {word} lies outside its window"
        return ProgramFault("offset", cycle, queue, text, chip=self.chip_id)

    def _violation(self, p: LinkedProgram) -> LockstepViolation:
        queue, cycle = self.waiting
        s = self._state
        link = queue - 128
        peer = int(self._peers[link])
        sender = f"chip {peer}" if peer >= 0 else "the chip at its other end"
        seen = int(s[_kernels.SEEN_CYCLE])
        reason = (
            f"it is of launch {s[_kernels.SEEN_LAUNCH]}, not {self._launch}",
            f"it is vector {s[_kernels.SEEN_SEQUENCE]}, not {self._received[link]}",
            f"it arrives at cycle {seen + self.spec.send_to_receive_cycles}",
            "its checksum does not match its bytes",
        )[int(s[_kernels.DETAIL])]
        text = (
            f"chip {self.chip_id}, cycle {cycle}: {describe(p, int(s[_kernels.PC]))} got a "
            f"vector on link {link} that SEND of {sender} issued at cycle {seen}: {reason}"
        )
        return LockstepViolation(self.chip_id, peer, cycle, seen, text)


def _kernels_words(data: bool) -> int:
    return 1024 if data else 4


def warm_up() -> None:
    """Compile (or load from the cache) everything that linking and running need."""
    from chip.loader import link
    from chip.program import Program, new_blocks

    program = Program(new_blocks(0), [], [], 0)
    spec = ChipSpec()
    chip = Chip(spec, 0)
    chip.begin(link(program, spec), 0)
    chip.run()
