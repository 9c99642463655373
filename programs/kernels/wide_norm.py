"""Norms that scale fp32 words by one factor and gains of their own: after blocks, over all heads.

Their gains are not folded into a matrix.  A norm over all heads of all chips takes its squares lane
by lane on each chip; the chips' sums go round as vectors do, and their lanes are added last.
"""

from __future__ import annotations

from dataclasses import dataclass

from chip.isa import Op
from chip.scheduling import Pass, Place, Schedule, Self
from chip.spec import ChipSpec

#: Tiles of a pass: x is read from the slices that y was read from, so many cycles later.
_TILES_PER_PASS = 6


@dataclass(frozen=True)
class WideNormPlaces:
    """sums: two east words (of queries, of keys) for the chips' sums; factors: two of KV_QUAD;
    shares: a west word for each tile of keys, 1 on the lanes to be counted; normed: east words.
    """

    sums: Place
    factors: Place
    shares: Place
    normed: Place


def lane_squares(
    schedule: Schedule,
    spec: ChipSpec,
    x: Place,
    counts: tuple[int, int],
    ready: int,
    shares: Place,
    target: Place,
) -> int:
    """Sums of squares, lane by lane, of the tiles of queries and of those of keys.

    x: adjacent east fp32 words, ``counts`` of queries and of keys; target: two words of another
    east quad.  A key's square is multiplied by its tile's word of ``shares`` (west).
    """
    done = ready
    for word, (first, n) in enumerate(((0, counts[0]), counts)):
        p = Pass(schedule, spec)
        t = 40
        value = p.load(x.at(first), 32, t, n=n, dc=3, da=1)
        first_read = p.first_read(value)
        a, _ = p.op(Op.MUL_F32, t, value, value, n=n, dc=3)
        t += 3
        if word:
            share = p.load(shares, 8, t, n=n, dc=3, da=1)
            a, _ = p.op(Op.MUL_F32, t, a, share, n=n, dc=3)
            t += 3
        total, last = p.pick(16), t + 3 * (n - 1)
        if n == 1:
            _, out = p.op(Op.MOV, t, a, alu=total, out=16)
        else:
            p.op(Op.MOV, t, a, alu=total)
            if n > 2:
                p.op(Op.ADD_F32, t + 3, a, Self(), alu=total, n=n - 2, dc=3)
            _, out = p.op(Op.ADD_F32, last, a, Self(), alu=total, out=16)
            p.hold_alu(total, t + 1, last - 1)
        p.keep(target.at(word), out, last)
        done = max(done, schedule.place(p, ready - first_read, "lane squares") + p.ready)
    return done


def scale_words(
    schedule: Schedule,
    spec: ChipSpec,
    y: Place,
    tiles: int,
    ready: int,
    factor: Place,
    gains: Place,
    target: Place,
    residual: Place | None = None,
) -> int:
    """(y factor) gains, plus ``residual`` if there is one, to ``target``; when readable.

    y, residual, target: adjacent east fp32 words; factor: one of KV_QUAD; gains: west words.
    """
    done = ready
    for first in range(0, tiles, _TILES_PER_PASS):
        n = min(_TILES_PER_PASS, tiles - first)
        p = Pass(schedule, spec)
        t = 40
        value = p.load(y.at(first), 32, t, n=n, da=1)
        r = p.load(factor, 36, t, n=n)
        first_read = p.first_read(value, r)
        a, _ = p.op(Op.MUL_F32, t, value, r, n=n)
        gain = p.load(gains.at(first), 8, t + 3, n=n, da=1)
        if residual is None:
            when = t + 3
            _, out = p.op(Op.MUL_F32, when, a, gain, n=n, out=16)
        else:
            when = t + 6
            a, _ = p.op(Op.MUL_F32, t + 3, a, gain, n=n)
            x = p.load(residual.at(first), 40, when, n=n, da=1)
            _, out = p.op(Op.ADD_F32, when, a, x, n=n, out=16)
        p.keep(target.at(first), out, when, n=n)
        done = max(done, schedule.place(p, ready - first_read, "scale words") + p.ready)
    return done


def cap_words(
    schedule: Schedule, spec: ChipSpec, x: Place, words: int, ready: int, limit: float
) -> int:
    """Adjacent east fp32 words become limit tanh(x / limit), in their own places."""
    done = ready
    for first in range(0, words, _TILES_PER_PASS):
        n = min(_TILES_PER_PASS, words - first)
        p = Pass(schedule, spec)
        t = 40
        value = p.load(x.at(first), 36, t, n=n, da=1)
        first_read = p.first_read(value)
        a, _ = p.op(Op.MUL_F32, t, value, imm=1.0 / limit, n=n)
        a, _ = p.op(Op.TANH, t + 3, a, n=n)
        _, out = p.op(Op.MUL_F32, t + 6, a, imm=limit, n=n, out=16)
        p.keep(x.at(first), out, t + 6, n=n)
        done = max(done, schedule.place(p, ready - first_read, "cap words") + p.ready)
    return done
