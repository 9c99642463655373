"""A stream at a cycle, by the names of the assembler: what a debugger of programs asks first.

Everything is asked of the reference executor, which really moves every stream; a whole launch of a
large program takes it long, so look early or look at small programs.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from chip.errors import LpuError
from chip.isa import QUEUES, STREAMS, VXM_QUEUE, queue_name, sample_position, stream_name
from chip.program import Program
from chip.reference.chip import ReferenceChip
from chip.spec import ChipSpec

Bytes = NDArray[np.uint8]

_STREAM = {stream_name(code): code for code in range(STREAMS)}
_QUEUE = {"vxm": VXM_QUEUE} | {queue_name(queue): queue for queue in range(QUEUES)}


def look(
    program: Program,
    *,
    stream: str,
    at: str | int,
    cycle: int,
    spec: ChipSpec | None = None,
    memory: Sequence[tuple[int, int, Bytes]] = (),
) -> Bytes | None:
    """What the unit ``at`` would sample from ``stream`` in ``cycle`` of a launch: uint8 [320].

    stream: ``E0``..``E31``, ``W0``..``W31``.  at: ``vxm``, a queue such as ``mem_e[3]``, or a
    position from -1 to 45.  spec: of the chip, None for the default.  memory: SRAM before the
    launch as (slice 0..87, first word, uint8 [n, 320]), what ``read_assembly(text).memory`` is;
    the rest is zero.  None: no value is there in that cycle.

    Raises LpuError for names that do not exist, ProgramFault for a program that breaks a rule
    before ``cycle``.  One chip without cables: a RECEIVE finds nothing.
    """
    if stream not in _STREAM:
        raise LpuError(f"stream {stream!r} does not exist; use E0..E31 or W0..W31")
    if isinstance(at, str) and at not in _QUEUE:
        raise LpuError(f"at {at!r}: no such unit; use vxm, mem_e[3], alu[0] ... or a position")
    if cycle < 0:
        raise LpuError(f"cycle {cycle}: a launch begins at cycle 0")
    code = _STREAM[stream]
    chip = ReferenceChip(ChipSpec() if spec is None else spec)
    for place, address, rows in memory:
        chip.sram[place, address : address + len(rows)] = rows
    chip.begin(program)
    chip.run_to(cycle)
    return chip.stream(code, sample_position(_QUEUE[at], code) if isinstance(at, str) else at)
