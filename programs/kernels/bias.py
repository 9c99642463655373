"""Biases: fp32 words added to the results of products, in place."""

from __future__ import annotations

from chip.isa import Op
from chip.scheduling import Alu, Pass, Place, Schedule, Self
from chip.spec import ChipSpec

#: Tiles of a pass: a longer one would write a slice while it still reads it.
_TILES_PER_PASS = 10
#: Totals of one ALU that take turns: its last result but two is the one that it adds to.
_TOGETHER = 3


def add_bias(
    schedule: Schedule, spec: ChipSpec, x: Place, tiles: int, ready: int, bias: Place, step: int = 1
) -> int:
    """Add fp32 words ``bias`` to ``tiles`` adjacent ones ``x`` in the east.

    bias: constants in the west; or, with a ``step`` of 0 words from one to the next, one word on
    other slices of the east, which is readable when x is.  Returns when all are readable.
    """
    done = ready
    for first in range(0, tiles, _TILES_PER_PASS):
        n = min(_TILES_PER_PASS, tiles - first)
        p = Pass(schedule, spec)
        t = 40
        value = p.load(x.at(first), 36, t, n=n, da=1)
        constant = p.first_read(value)
        code = 8 if bias.inward == 0 else 40
        more = p.load(bias.at(step * first), code, t, n=n, da=step)
        _, out = p.op(Op.ADD_F32, t, value, more, n=n, out=12)
        p.keep(x.at(first), out, t, n=n)
        first_read = constant if step else p.first_read(value, more)
        done = max(done, schedule.place(p, ready - first_read, "add bias") + p.ready)
    return done


def shared_biases(
    schedule: Schedule,
    spec: ChipSpec,
    biases: tuple[Place, int],
    shares: Place,
    counts: tuple[int, int],
    ready: int,
    target: Place,
) -> int:
    """Biases of several slots, each times its slot's share, added up; returns when readable.

    biases: fp32 words in the west, a slot's tiles side by side, and how many words from one slot's
    first to the next slot's; shares: an fp32 word of each slot in the east; counts: tiles, slots;
    target: fp32 words in the west.
    """
    done = ready
    tiles, slots = counts
    place, step = biases
    for first in range(0, tiles, _TOGETHER):
        own = min(_TOGETHER, tiles - first)
        n, dc = (own, slots), (1, _TOGETHER)
        p = Pass(schedule, spec)
        t = 40
        bias = p.load(place.at(first), 8, t, n=n, dc=dc, da=(1, step))
        share = p.load(shares, 44, t, n=n, dc=dc, da=(0, 1))
        first_read = p.first_read()
        a, _ = p.op(Op.MUL_F32, t, bias, share, n=n, dc=dc)
        total = p.pick(40)
        p.op(Op.MOV, t + 3, a, alu=total, n=own)
        p.op(Op.ADD_F32, t + 6, a, Self(), alu=total, n=(own, slots - 1), dc=dc)
        end = t + 3 + _TOGETHER * (slots - 1)
        p.hold_alu(total, t + 3, end + _TOGETHER)
        _, out = p.op(Op.MOV, end + 3, Alu(total), n=own, out=40)
        p.keep(target.at(first), out, end + 3, n=own)
        done = max(done, schedule.place(p, ready - first_read, "shared biases") + p.ready)
    return done
