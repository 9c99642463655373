"""The gated product of the FFN: h = silu(gate) * up, or gelu(gate) * up (the tanh form).

silu(g) = g (tanh(g / 2) / 2 + 1/2) and gelu(g) = g (tanh(sqrt(2 / pi) (g + 0.044715 g^3)) / 2 +
1/2) differ in what the tanh is taken of.
"""

from __future__ import annotations

import math
from itertools import groupby

from chip.isa import Op
from chip.scheduling import Alu, Pass, Place, Schedule, Stream
from chip.spec import ChipSpec
from programs.models import GELU_TANH

#: A pass reads the gate twice or three times from the same slices, at least so many cycles apart.
_TILES_PER_PASS = {False: 12, True: 9}
#: gelu's inner polynomial is g (GELU_CUBIC g^2 + GELU_LINEAR); both are rounded to fp32.
GELU_LINEAR = math.sqrt(2 / math.pi)
GELU_CUBIC = 0.044715 * GELU_LINEAR


def _gelu_inner(p: Pass, gate: Place, early: Stream, n: int, t: int) -> tuple[Alu, int]:
    """What gelu takes the tanh of, from ``early`` on; and the cycle at which it is dispatched."""
    a, _ = p.op(Op.MUL_F32, t, early, early, n=n)
    a, _ = p.op(Op.MUL_F32, t + 3, a, imm=GELU_CUBIC, n=n)
    a, _ = p.op(Op.ADD_F32, t + 6, a, imm=GELU_LINEAR, n=n)
    again = p.load(gate, 36, t + 9, n=n, da=1)
    a, _ = p.op(Op.MUL_F32, t + 9, a, again, n=n)
    return a, t + 9


def _factor_stream(p: Pass, factors: list[Place], when: int) -> Stream:
    """One factor a cycle from ``when`` on; neighbouring equal ones are one Read with repeats."""
    tag = p.schedule.tag()
    at = 0
    for place, run in groupby(factors):
        n = len(list(run))
        stream = p.load(place, 44, when + at, n=n, tag=tag)
        at += n
    return stream


def gated_product(
    schedule: Schedule,
    spec: ChipSpec,
    activation: str,
    gate: Place,
    up: Place,
    tiles: int,
    ready: int,
    target: Place,
    factors: list[Place] | None = None,
) -> int:
    """fp32 words gate, up (different east quads) to ``target``; returns when it is readable.

    factors: fp32 words of a third east quad, by which each tile is multiplied last.
    """
    done = ready
    gelu = activation == GELU_TANH
    most = _TILES_PER_PASS[gelu]
    for first in range(0, tiles, most):
        n = min(most, tiles - first)
        p = Pass(schedule, spec)
        t = 40
        early = p.load(gate.at(first), 36, t, n=n, da=1)
        first_read = p.blocks[0]["cycle"]
        if gelu:
            a, t = _gelu_inner(p, gate.at(first), early, n, t)
        else:
            a, _ = p.op(Op.MUL_F32, t, early, imm=0.5, n=n)
        a, _ = p.op(Op.TANH, t + 3, a, n=n)
        a, _ = p.op(Op.MUL_F32, t + 6, a, imm=0.5, n=n)
        a, _ = p.op(Op.ADD_F32, t + 9, a, imm=0.5, n=n)
        late = p.load(gate.at(first), 36, t + 12, n=n, da=1)
        a, _ = p.op(Op.MUL_F32, t + 12, a, late, n=n)
        other = p.load(up.at(first), 40, t + 15, n=n, da=1)
        if factors is not None:
            a, _ = p.op(Op.MUL_F32, t + 15, a, other, n=n)
            t, other = t + 3, _factor_stream(p, factors[first : first + n], t + 18)
        _, out = p.op(Op.MUL_F32, t + 15, a, other, n=n, out=16)
        p.keep(target.at(first), out, t + 15, n=n)
        done = max(done, schedule.place(p, ready - first_read, "gated product") + p.ready)
    return done
