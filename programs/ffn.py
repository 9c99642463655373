"""The gated product of the FFN: h = silu(gate) * up, with silu(g) = g * (tanh(g/2)/2 + 1/2)."""

from __future__ import annotations

from chip.isa import Op
from chip.passes import Pass
from chip.reservation import Place, Schedule
from chip.spec import ChipSpec

#: A pass reads the gate twice, twelve cycles apart, from the same slices.
_TILES_PER_PASS = 12


def swiglu(
    schedule: Schedule, spec: ChipSpec, gate: Place, up: Place, tiles: int, ready: int,
    target: Place,
) -> int:  # fmt: skip
    """fp32 words gate, up (different east quads) to ``target``; returns when it is readable."""
    done = ready
    for first in range(0, tiles, _TILES_PER_PASS):
        n = min(_TILES_PER_PASS, tiles - first)
        p = Pass(schedule, spec)
        t = 40
        early = p.load(gate.at(first), 36, t, n=n, da=1)
        first_read = p.blocks[0]["cycle"]
        a, _ = p.op(Op.MUL_F32, t, early, imm=0.5, n=n)
        a, _ = p.op(Op.TANH, t + 3, a, n=n)
        a, _ = p.op(Op.MUL_F32, t + 6, a, imm=0.5, n=n)
        a, _ = p.op(Op.ADD_F32, t + 9, a, imm=0.5, n=n)
        late = p.load(gate.at(first), 36, t + 12, n=n, da=1)
        a, _ = p.op(Op.MUL_F32, t + 12, a, late, n=n)
        other = p.load(up.at(first), 40, t + 15, n=n, da=1)
        _, out = p.op(Op.MUL_F32, t + 15, a, other, n=n, out=16, reach=33)
        p.keep(target.at(first), out, t + 15, n=n)
        done = max(done, schedule.place(p, ready - first_read) + p.ready)
    return done
