"""The gated product of the FFN: h = silu(gate) * up, or gelu(gate) * up (the tanh form).

gpt-oss's experts add biases first and cut what is too great: ``clamp_gates``.

silu(g) = g (tanh(g / 2) / 2 + 1/2) and gelu(g) = g (tanh(sqrt(2 / pi) (g + 0.044715 g^3)) / 2 +
1/2) differ in what the tanh is taken of.
"""

from __future__ import annotations

import math
from itertools import groupby

from chip.isa import Op
from chip.scheduling import Alu, Pass, Place, Schedule, Stream
from chip.spec import ChipSpec
from programs.models import CLAMPED_SILU, GELU_TANH

#: A pass reads the gate twice or three times from the same slices, at least so many cycles apart.
_TILES_PER_PASS = {False: 12, True: 9}
#: Of a pass that adds biases and cuts what is too great, before it writes where it reads.
_BIASED_PER_PASS = 12
_SCALED_PER_PASS = 10
#: gelu's inner polynomial is g (GELU_CUBIC g^2 + GELU_LINEAR); both are rounded to fp32.
GELU_LINEAR = math.sqrt(2 / math.pi)
GELU_CUBIC = 0.044715 * GELU_LINEAR
#: gpt-oss takes the sigmoid of 1.702 g, which is a tanh of half of that.
CLAMPED_SLOPE = 1.702 / 2


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
    """fp32 words gate, up (east quads) to ``target``; returns when it is readable.

    factors: fp32 words of a third east quad, by which each tile is multiplied last.
    """
    done = ready
    gelu = activation == GELU_TANH
    # operations are three cycles apart, and so are what they read of one quad
    most = 3 if gate.queues == up.queues else _TILES_PER_PASS[gelu]
    for first in range(0, tiles, most):
        n = min(most, tiles - first)
        p = Pass(schedule, spec)
        t = 40
        early = p.load(gate.at(first), 36, t, n=n, da=1)
        first_read = p.first_read(early)
        if gelu:
            a, t = _gelu_inner(p, gate.at(first), early, n, t)
        else:
            slope = CLAMPED_SLOPE if activation == CLAMPED_SILU else 0.5
            a, _ = p.op(Op.MUL_F32, t, early, imm=slope, n=n)
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


def clamp_gates(
    schedule: Schedule,
    spec: ChipSpec,
    x: Place,
    tiles: tuple[int, int],
    ready: int,
    biases: tuple[Place, int],
    limit: float,
    gate: bool,
) -> int:
    """Tiles of gates or ups with biases added and cut, in place; returns when they are readable.

    x: fp32 words in the east, of slot after slot; tiles: of each slot, and slots.  biases: fp32
    words in the west, and how many from a slot's first to the next slot's.  A gate becomes
    min(gate + bias, limit), an up max(min(up + bias, limit), -limit) + 1.
    """
    done = ready
    each, slots = tiles
    place, step = biases
    together = max(1, _BIASED_PER_PASS // each)
    for slot in range(0, slots, together):
        for first in range(0, each, _BIASED_PER_PASS):
            n = (min(_BIASED_PER_PASS, each - first), min(together, slots - slot))
            dc = (1, n[0])
            p = Pass(schedule, spec)
            t = 40
            target = x.at(slot * each + first)
            value = p.load(target, 36, t, n=n, dc=dc, da=(1, each))
            first_read = p.first_read(value)
            bias = p.load(place.at(slot * step + first), 8, t, n=n, dc=dc, da=(1, step))
            a, _ = p.op(Op.ADD_F32, t, value, bias, n=n, dc=dc)
            if gate:
                t += 3
                _, out = p.op(Op.MIN_F32, t, a, imm=limit, n=n, dc=dc, out=16)
            else:
                a, _ = p.op(Op.MIN_F32, t + 3, a, imm=limit, n=n, dc=dc)
                a, _ = p.op(Op.MAX_F32, t + 6, a, imm=-limit, n=n, dc=dc)
                t += 9
                _, out = p.op(Op.ADD_F32, t, a, imm=1.0, n=n, dc=dc, out=16)
            p.keep(target, out, t, n=n, dc=dc, da=(1, each))
            name = "clamp gates"
            done = max(done, schedule.place(p, ready - first_read, name) + p.ready)
    return done


def scale_slots(
    schedule: Schedule, spec: ChipSpec, x: Place, tiles: tuple[int, int], ready: int, shares: Place
) -> int:
    """Tiles of slot after slot, each times its slot's share, in place; when they are readable.

    x: fp32 words in the east; tiles: of each slot, and slots; shares: fp32 words of another quad.
    """
    done = ready
    each, slots = tiles
    together = max(1, _SCALED_PER_PASS // each)
    for slot in range(0, slots, together):
        for first in range(0, each, _SCALED_PER_PASS):
            n = (min(_SCALED_PER_PASS, each - first), min(together, slots - slot))
            dc = (1, n[0])
            p = Pass(schedule, spec)
            t = 40
            target = x.at(slot * each + first)
            value = p.load(target, 36, t, n=n, dc=dc, da=(1, each))
            share = p.load(shares.at(slot), 44, t, n=n, dc=dc, da=(0, 1))
            _, out = p.op(Op.MUL_F32, t, value, share, n=n, dc=dc, out=12)
            p.keep(target, out, t, n=n, dc=dc, da=(1, each))
            earliest = ready - p.first_read()
            done = max(done, schedule.place(p, earliest, "scale slots") + p.ready)
    return done
