"""Norms of query and key heads: an RMS norm over each head's own lanes, before rope.

Heads lie side by side on the lanes, so the sum over a head is one product with a matrix of ones
where column and lane are of one head; it arrives on all lanes of its head.  The sum is cut into
fp16 pieces as in ``programs.kernels.norm``.
"""

from __future__ import annotations

from dataclasses import dataclass

from chip import isa
from chip.isa import Op
from chip.scheduling import Pass, Place, Schedule
from chip.spec import ChipSpec
from programs.kernels.norm import SUM_CYCLES, SUM_UNIT, Constants, lane_sums

_PAIR = 2  # the east plane pair holds the ones
#: Cycles from one tile to the next: what the pieces of a sum take.
_PERIOD = SUM_CYCLES
#: Tiles of a pass; more would keep the east planes from everything else for too long.
_TILES_PER_PASS = 6


@dataclass(frozen=True)
class HeadNormPlaces:
    """ones: high bytes of one head's ones a word, sixteen slices; normed: east fp32 words."""

    ones: Place
    slots: int
    head_lanes: int
    normed: Place


def norm_heads(
    schedule: Schedule,
    spec: ChipSpec,
    x: Place,
    counts: tuple[int, int],
    ready: int,
    inv_d: float,
    eps: float,
    gains: Place,
    constants: Constants,
    places: HeadNormPlaces,
) -> int:
    """Adjacent fp32 tiles ``x``, queries first, normed to ``places.normed``; when readable.

    counts: tiles of queries and of keys.  gains: fp32 words of the queries' and of the keys' gain,
    in lane order, west.
    """
    done = ready
    query_tiles, tiles = counts[0], sum(counts)
    for first in range(0, tiles, _TILES_PER_PASS):
        n = min(_TILES_PER_PASS, tiles - first)
        queries = max(0, min(n, query_tiles - first))
        p = Pass(schedule, spec)
        t = 40
        total = p.pick(32)
        value = p.load(x.at(first), 32, t, n=n, dc=_PERIOD, da=1)
        first_read = p.first_read(value)
        p.op(Op.MUL_F32, t, value, value, alu=total, n=n, dc=_PERIOD)

        def install(meet: int, p: Pass = p) -> None:
            _install_heads(p, spec, constants, places, meet)

        a, at = lane_sums(p, spec, total, t + 3, install, n, _PERIOD)
        a, _ = p.op(Op.MUL_F32, at, a, imm=inv_d * SUM_UNIT, n=n, dc=_PERIOD)
        a, _ = p.op(Op.ADD_F32, at + 3, a, imm=eps, n=n, dc=_PERIOD)
        a, _ = p.op(Op.RSQRT, at + 6, a, n=n, dc=_PERIOD)
        late = p.load(x.at(first), 36, at + 9, n=n, dc=_PERIOD, da=1)
        a, _ = p.op(Op.MUL_F32, at + 9, a, late, n=n, dc=_PERIOD)
        tag = schedule.tag()
        for word, start, count in ((0, 0, queries), (1, queries, n - queries)):
            if count:
                gain = p.load(
                    gains.at(word), 8, at + 12 + start * _PERIOD, n=count, dc=_PERIOD, tag=tag
                )
        _, out = p.op(Op.MUL_F32, at + 12, a, gain, n=n, dc=_PERIOD, out=16)
        p.keep(places.normed.at(first), out, at + 12, n=n, dc=_PERIOD)
        done = max(done, schedule.place(p, ready - first_read, "norm heads") + p.ready)
    return done


def _install_heads(
    p: Pass, spec: ChipSpec, constants: Constants, places: HeadNormPlaces, meet: int
) -> None:
    """The heads' fp16 ones on the east pair, in force at ``meet``."""
    per_head = places.head_lanes // 16
    groups = per_head * places.slots
    end = meet - spec.mxm_install_cycles
    start = end - groups
    for half, place in enumerate((constants.zero, places.ones)):
        plane = _PAIR + half
        queue = isa.MXM_QUEUE + 2 * plane
        ones = p.load(
            place,
            16 * half,
            start,
            queue,
            n=(per_head, places.slots),
            dc=(1, per_head),
            da=(0, half),
        )
        p.emit(Op.LW, queue, start, n=groups, da=1, a=0, s0=16 * half, w0=16, want0=ones.tag)
        p.emit(Op.IW, queue, end, a=groups)
        p.hold_buffer(plane, start, end + spec.mxm_reload_gap_cycles - 1)
        p.hold_plane(plane, end, meet)
