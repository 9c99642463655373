"""Biases: fp32 words added to the results of products, in place."""

from __future__ import annotations

from chip.isa import Op
from chip.scheduling import Pass, Place, Schedule
from chip.spec import ChipSpec

#: Tiles of a pass: a longer one would write a slice while it still reads it.
_TILES_PER_PASS = 10


def add_bias(
    schedule: Schedule, spec: ChipSpec, x: Place, tiles: int, ready: int, bias: Place
) -> int:
    """Add fp32 words ``bias`` in the west to ``tiles`` adjacent ones ``x`` in the east.

    Returns when all are readable.
    """
    done = ready
    for first in range(0, tiles, _TILES_PER_PASS):
        n = min(_TILES_PER_PASS, tiles - first)
        p = Pass(schedule, spec)
        t = 40
        value = p.load(x.at(first), 36, t, n=n, da=1)
        first_read = p.blocks[0]["cycle"]
        more = p.load(bias.at(first), 8, t, n=n, da=1)
        _, out = p.op(Op.ADD_F32, t, value, more, n=n, out=12)
        p.keep(x.at(first), out, t, n=n)
        done = max(done, schedule.place(p, ready - first_read, "add bias") + p.ready)
    return done
