"""Which experts a router chooses, found by the chip itself: ranks, shares and addresses.

A static machine cannot branch on a router's choice, but a Gather reads from wherever a map of
offsets says, and the chip can write that map.  Expert e's logit arrives on lane e.  Every logit,
in two fp16 pieces, is sent through a plane pair of ones, which brings it to all lanes; lane e
counts those that are greater than its own, or equal and of a lower index: its rank.  The lanes
whose rank is i then send their number and their logit through the ones again, so that every lane
knows which expert is the i-th and what its logit is.  Expert times stride is the offset of its
weights, written as bytes to the maps that Gathers sample.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from chip import isa
from chip.isa import AccMode, Op
from chip.scheduling import (
    Alu,
    Operand,
    Pass,
    Place,
    ScatterWindow,
    Schedule,
    Self,
    Stream,
    offsets,
)
from chip.spec import ChipSpec
from programs.kernels.norm import Constants, factor_of_sum, install_ones
from programs.kernels.slots import divide, find_turns

_PAIR = 2  # the east plane pair holds the ones
_APART = 2  # cycles from one fp16 vector to the next


@dataclass(frozen=True)
class MapPlaces:
    """Offsets of the chosen experts, a word each: low bytes and high bytes, in both hemispheres.

    west, east: four slices, two pairs of low and high bytes, which hold the same.
    """

    west: Place
    east: Place
    stride: int
    """Words from an expert to the next one, where its weights lie."""
    turns: int = 1
    """Experts that share these words, side by side."""

    def pair(self, side: int, which: int, slot: int) -> Place:
        """The map of a slot: its low and its high byte on pair ``which`` of a hemisphere."""
        place = self.east if side else self.west
        queues = place.queues[2 * which : 2 * which + 2]
        return Place(queues, place.address).at(slot)


@dataclass(frozen=True)
class ChoicePlaces:
    """Words of a choice of ``chosen`` experts of ``experts``; fp32 words unless said otherwise.

    coarse, fine: the router's results, whose sum is the logits (fine: int8 only); pieces: a
    constant, the fp16 numbers of the lanes that have experts, and two fp16 pieces of the logits;
    exact: the sum of these (west); one_hot: bytes, word f is not zero on lane f (west); later:
    bytes, word f is not zero on the lanes behind f (west); ranks: whole numbers (west); indices,
    logits: of the chosen ones, in the order of their ranks; best: the greatest logit; weights:
    what shares are before they are divided by their sum; inverse: of the sum; shares;
    scales: of the chosen ones' column blocks (int8), which ``copy_chosen`` fills;
    bias: of the logits, expert e's on lane e (west), where they have any; biases: as scales, of the
    chosen ones' biases; bias_sums: a word for each tile of x (west), the sums of shared biases;
    shared: how many of the slots, the last ones, have experts that no router chooses: ``indices``
    has their numbers from the start; gates: results, on all lanes, whose sum's sigmoid is their
    share (none: it is 1); sigmoid: the others' shares are sigmoids of their own logits;
    absent, every: where shares are those of the softmax over all experts, a constant, 0 on lanes
    with experts and -2^127 on others, and a word for the terms of its sum;
    held: where given, those of the experts that are here; a slot of another one has the offset of
    the first of them, and a share of 0; own: their numbers among those.
    turns: of experts that share words, see ``find_turns``.
    """

    experts: int
    chosen: int
    coarse: Place
    fine: Place | None
    pieces: Place
    exact: Place
    one_hot: Place
    later: Place
    ranks: Place
    indices: Place
    logits: Place
    best: Place
    weights: Place
    inverse: Place
    shares: Place
    maps: tuple[MapPlaces, ...]
    scales: Place | None = None
    held: range | None = None
    bias: Place | None = None
    biases: Place | None = None
    bias_sums: Place | None = None
    own: Place | None = None
    turns: Place | None = None
    shared: int = 0
    gates: tuple[Place, ...] = ()
    sigmoid: bool = False
    absent: Place | None = None
    every: Place | None = None

    def targets(self) -> list[Place]:
        """Where the router's column blocks go."""
        own = [self.coarse] if self.fine is None else [self.coarse, self.fine]
        return [*own, *self.gates]

    @property
    def routed(self) -> int:
        """Slots whose experts the router chooses."""
        return self.chosen - self.shared


def choose_experts(
    schedule: Schedule, spec: ChipSpec, ready: int, places: ChoicePlaces, constants: Constants
) -> tuple[list[int], int]:
    """The choice from the router's results: when each of its maps is readable, with turns if it
    has any, and its shares.
    """
    ready = _split(schedule, spec, ready, places)
    ready = _ranks(schedule, spec, ready, places, constants)
    ready = _pick(schedule, spec, ready, places, constants)
    numbered, indices = ready, places.indices
    mapped = []
    if places.own is not None and places.held is not None:
        numbered, indices = _own_numbers(schedule, spec, ready, places), places.own
    for target in places.maps:
        at = _write_map(schedule, spec, numbered, indices, places.chosen, target)
        mapped.append(at)
    if places.turns is not None:
        turns = find_turns(schedule, spec, numbered, indices, places.chosen, places.turns)
        mapped = [
            max(at, turns) if of.turns > 1 else at
            for at, of in zip(mapped, places.maps, strict=True)
        ]
    if places.sigmoid:
        shared = _sigmoid_shares(schedule, spec, ready, places)
    else:
        shared = _shares(schedule, spec, ready, places, constants)
    if places.shared:
        shared = max(shared, _shared_shares(schedule, spec, ready, places))
    return mapped, shared


def _split(schedule: Schedule, spec: ChipSpec, ready: int, places: ChoicePlaces) -> int:
    """Two fp16 pieces of the logits, and their sum."""
    p = Pass(schedule, spec)
    t = 40
    coarse = p.load(places.coarse, 32, t)
    if places.fine is None:
        logit, _ = p.op(Op.MOV, t, coarse)
    else:
        logit, _ = p.op(Op.ADD_F32, t, coarse, p.load(places.fine, 36, t))
    first_read = p.first_read()
    if places.bias is not None:
        t += 3
        logit, _ = p.op(Op.ADD_F32, t, logit, p.load(places.bias, 8, t))
    large, out = p.op(Op.CVT_F32_F16, t + 3, logit, out=8)
    p.keep(places.pieces.at(1), out, t + 3)
    logit, _ = p.op(Op.MOV, t + 3, logit)
    wide, _ = p.op(Op.CVT_F16_F32, t + 6, large)
    logit, _ = p.op(Op.MOV, t + 6, logit)
    rest, _ = p.op(Op.SUB_F32, t + 9, logit, wide)
    wide, _ = p.op(Op.MOV, t + 9, wide)
    small, out = p.op(Op.CVT_F32_F16, t + 12, rest, out=12)
    p.keep(places.pieces.at(2), out, t + 12)
    wide, _ = p.op(Op.MOV, t + 12, wide)
    small, _ = p.op(Op.CVT_F16_F32, t + 15, small)
    wide, _ = p.op(Op.MOV, t + 15, wide)
    _, out = p.op(Op.ADD_F32, t + 18, wide, small, out=40)
    p.keep(places.exact, out, t + 18)
    return schedule.place(p, ready - first_read) + p.ready


def _through_ones(
    p: Pass, spec: ChipSpec, constants: Constants, dispatched: int, count: int, tag: int
) -> int:
    """Multiply ``count`` fp16 vectors, driven by ALUs on E0 and E1, by ones; when their ACCs are.

    dispatched: the cycle of the first one's ALU.
    """
    meet = p.driven(dispatched) + isa.EAST_EDGE - isa.drive_position(isa.VXM_QUEUE, 0)
    install_ones(p, spec, constants, meet)
    queue = isa.MXM_QUEUE + 2 * _PAIR + 1
    last = meet + _APART * (count - 1) + 1
    for half in range(2):
        p.hold_plane(_PAIR + half, meet, last)
    p.emit(Op.ABC, queue, meet, n=count, dc=_APART, s0=0, w0=2, want0=tag)
    p.hold(queue + 2, meet, last)
    return meet + spec.mxm_multiply_cycles


def _sum(p: Pass, at: int, n: int, dc: int, mode: AccMode, out: Stream | None = None) -> int:
    """``n`` ACCs of one row, ``dc`` cycles apart; when the VXM takes the first from ``out``."""
    columns: dict[str, Any] = {}
    if out is not None:
        columns = {"out": out.code, "wo": out.width, "tag": out.tag}
    queue = isa.MXM_QUEUE + 2 * _PAIR + 1
    p.emit(Op.ACC, queue, at, n=n, dc=dc, mode=int(mode), **columns)
    leave = at + p.spec.mxm_accumulate_cycles
    if out is not None:
        cells = leave + isa.EAST_EDGE + offsets(n, dc)
        p.drive(out.code, out.width, cells, isa.EAST_EDGE, 24)
    return leave + 21


def _ranks(
    schedule: Schedule, spec: ChipSpec, ready: int, places: ChoicePlaces, constants: Constants
) -> int:
    """On lane e: how many logits are greater than its own, or equal and of a lower index."""
    p = Pass(schedule, spec)
    t, n = 80, places.experts
    dc = 2 * _APART
    each, apart = (2, n), (_APART, dc)
    piece = p.load(places.pieces.at(1), 36, t, n=each, dc=apart, da=(1, 0))
    first_read = p.first_read(piece)
    own = p.load(places.one_hot, 8, t, n=each, dc=apart, da=(0, 1))
    tag = schedule.tag()
    p.op(Op.MASK, t, piece, own, n=each, dc=apart, out=0, width=2, tag=tag)
    acc = _through_ones(p, spec, constants, t, 2 * n, tag)
    every = Stream(32, 4, schedule.tag())
    _sum(p, acc, n, dc, AccMode.SET)
    t = _sum(p, acc + _APART, n, dc, AccMode.ADD_EMIT, every)
    exact = p.load(places.exact, 4, t, n=n, dc=dc)
    greater, _ = p.op(Op.GT_F32, t, every, exact, n=n, dc=dc)
    enough, _ = p.op(Op.GE_F32, t, every, exact, n=n, dc=dc)
    later = p.load(places.later, 12, t + 3, n=n, dc=dc, da=1)
    equal, _ = p.op(Op.MASK, t + 3, enough, later, n=n, dc=dc)
    greater, _ = p.op(Op.MOV, t + 3, greater, n=n, dc=dc)
    before, _ = p.op(Op.OR, t + 6, greater, equal, n=n, dc=dc)
    rank = p.pick()
    p.op(Op.MOV, t + 9, before, alu=rank)
    p.op(Op.ADD_I32, t + 9 + dc, before, Self(), alu=rank, n=n - 1, dc=dc)
    end = t + 9 + dc * (n - 1)
    p.hold_alu(rank, t + 9, end)
    _, out = p.op(Op.MOV, end + 3, Alu(rank), out=44)
    p.keep(places.ranks, out, end + 3)
    return schedule.place(p, ready - first_read) + p.ready


def _pick(
    schedule: Schedule, spec: ChipSpec, ready: int, places: ChoicePlaces, constants: Constants
) -> int:
    """Number and logit of the expert of every rank below ``chosen``, on all lanes."""
    p = Pass(schedule, spec)
    t, k = 80, places.routed
    dc = 3 * _APART
    rank = p.load(places.ranks, 4, t, n=3 * k, dc=_APART)
    first_read = p.first_read(rank)
    match = p.pick(4)
    for i in range(k):
        p.op(Op.EQ, t + dc * i, rank, imm=i, alu=match, n=3, dc=_APART)
    t += 3
    words = p.load(places.pieces, 36, t, n=(3, k), dc=(_APART, dc), da=(1, 0))
    tag = schedule.tag()
    p.op(Op.MASK, t, words, Alu(match), n=3 * k, dc=_APART, out=0, width=2, tag=tag)
    acc = _through_ones(p, spec, constants, t, 3 * k, tag)
    found = Stream(32, 4, schedule.tag())
    at = _sum(p, acc, k, dc, AccMode.SET_EMIT, found)
    _, out = p.op(Op.MOV, at, found, n=k, dc=dc, out=8)
    p.keep(places.indices, out, at, n=k, dc=dc)
    _sum(p, acc + _APART, k, dc, AccMode.SET)
    found = Stream(32, 4, schedule.tag())
    at = _sum(p, acc + 2 * _APART, k, dc, AccMode.ADD_EMIT, found)
    _, out = p.op(Op.MOV, at, found, n=k, dc=dc, out=12)
    p.keep(places.logits, out, at, n=k, dc=dc)
    _, out = p.op(Op.MOV, at, found, out=4)
    p.keep(places.best, out, at)
    return schedule.place(p, ready - first_read) + p.ready


def _own_numbers(schedule: Schedule, spec: ChipSpec, ready: int, places: ChoicePlaces) -> int:
    """Numbers of the chosen experts among those held, to ``places.own``; 0 of others."""
    assert places.held is not None and places.own is not None
    p = Pass(schedule, spec)
    t, k = 40, places.chosen
    index = p.load(places.indices, 56, t, n=k, da=1)
    first_read = p.first_read()
    number, _ = p.op(Op.SUB_F32, t, index, imm=float(places.held.start), n=k)
    number = _if_held(p, t, index, number, places.held, k, 1)
    _, out = p.op(Op.MOV, t + 9, number, n=k, out=8)
    p.keep(places.own, out, t + 9, n=k)
    return schedule.place(p, ready - first_read, "own experts") + p.ready


def _write_map(
    schedule: Schedule, spec: ChipSpec, ready: int, indices: Place, k: int, target: MapPlaces
) -> int:
    """Index times stride as two bytes to the maps of both hemispheres."""
    p = Pass(schedule, spec)
    t = 40
    index: Operand = p.load(indices, 56, t, n=k, da=1)
    first_read = p.first_read()
    if target.turns > 1:
        _, index = divide(p, t, index, target.turns, k)
        t += 12
    offset, _ = p.op(Op.MUL_F32, t, index, imm=float(target.stride), n=k)
    for place, code in ((target.west, 40), (target.east, 8)):
        low, out = p.op(Op.CVT_F32_I32, t + 3, offset, n=k, out=code, width=1)
        p.keep(place.part(0, step=2), out, t + 3, n=k, copies=True)
        _, out = p.op(Op.ASR, t + 6, low, imm=8, n=k, out=code + 4, width=1)
        p.keep(place.part(1, step=2), out, t + 6, n=k, copies=True)
    return schedule.place(p, ready - first_read, "map of experts") + p.ready


def _shares(
    schedule: Schedule, spec: ChipSpec, ready: int, places: ChoicePlaces, constants: Constants
) -> int:
    """exp(logit - greatest) of the chosen ones, and that by their sum or the sum of all."""
    of_all = places.absent is not None
    known = _sum_of_all(schedule, spec, ready, places, constants) if of_all else ready
    p = Pass(schedule, spec)
    t, k = 40, places.routed
    logit = p.load(places.logits, 32, t, n=k, dc=3, da=1)
    best = p.load(places.best, 36, t, n=k, dc=3)
    first_read = p.first_read(logit, best)
    a, _ = p.op(Op.SUB_F32, t, logit, best, n=k, dc=3)
    weight, out = p.op(Op.EXP, t + 3, a, n=k, dc=3, out=8)
    p.keep(places.weights, out, t + 3, n=k, dc=3)
    if not of_all:
        total = p.pick()
        p.op(Op.MOV, t + 6, weight, alu=total)
        p.op(Op.ADD_F32, t + 9, weight, Self(), alu=total, n=k - 1, dc=3)
        end = t + 6 + 3 * (k - 1)
        p.hold_alu(total, t + 6, end)
        root, _ = p.op(Op.RSQRT, end + 3, Alu(total))
        _, out = p.op(Op.MUL_F32, end + 6, root, root, out=12)
        p.keep(places.inverse, out, end + 6)
    ready = max(known, schedule.place(p, ready - first_read) + p.ready)
    p = Pass(schedule, spec)
    inverse: Operand = p.load(places.inverse, 36, t, n=k, dc=2)
    if of_all:  # it is the root
        inverse, _ = p.op(Op.MUL_F32, t, inverse, inverse, n=k, dc=2)
        t += 3
    # every other cycle: indices and weights lie on the same slices
    weight_again = p.load(places.weights, 32, t, n=k, dc=2, da=1)
    if places.held is None:
        share, out = p.op(Op.MUL_F32, t, weight_again, inverse, n=k, dc=2, out=4)
    else:
        share, _ = p.op(Op.MUL_F32, t, weight_again, inverse, n=k, dc=2)
        share, _ = p.op(Op.MOV, t + 3, share, n=k, dc=2)
        index = p.load(places.indices, 40, t + 3, n=k, dc=2, da=1)
        share = _if_held(p, t + 3, index, share, places.held, k, 2)
        t += 12
        _, out = p.op(Op.MOV, t, share, n=k, dc=2, out=4)
    p.keep(places.shares, out, t, n=k, dc=2)
    return schedule.place(p, ready - p.first_read()) + p.ready


def _sigmoid_shares(schedule: Schedule, spec: ChipSpec, ready: int, places: ChoicePlaces) -> int:
    """The sigmoid of every chosen expert's logit; when readable."""
    p = Pass(schedule, spec)
    t, n = 40, places.routed
    logit = p.load(places.logits, 32, t, n=n, dc=2, da=1)
    first_read = p.first_read(logit)
    a, _ = p.op(Op.MUL_F32, t, logit, imm=0.5, n=n, dc=2)
    a, _ = p.op(Op.TANH, t + 3, a, n=n, dc=2)
    a, _ = p.op(Op.MUL_F32, t + 6, a, imm=0.5, n=n, dc=2)
    t += 9
    if places.held is None:
        _, out = p.op(Op.ADD_F32, t, a, imm=0.5, n=n, dc=2, out=4)
    else:
        share, _ = p.op(Op.ADD_F32, t, a, imm=0.5, n=n, dc=2)
        share, _ = p.op(Op.MOV, t + 3, share, n=n, dc=2)
        index = p.load(places.indices, 40, t + 3, n=n, dc=2, da=1)
        share = _if_held(p, t + 3, index, share, places.held, n, 2)
        t += 12
        _, out = p.op(Op.MOV, t, share, n=n, dc=2, out=4)
    p.keep(places.shares, out, t, n=n, dc=2)
    return schedule.place(p, ready - first_read, "shares") + p.ready


def _sum_of_all(
    schedule: Schedule, spec: ChipSpec, ready: int, places: ChoicePlaces, constants: Constants
) -> int:
    """The inverse root of the sum of exp(logit - greatest) over all experts; when readable."""
    assert places.absent is not None and places.every is not None
    p = Pass(schedule, spec)
    t = 40
    exact = p.load(places.exact, 4, t)
    a, _ = p.op(Op.ADD_F32, t, exact, p.load(places.absent, 32, t))
    best = p.load(places.best, 36, t + 3)
    first_read = p.first_read()
    a, _ = p.op(Op.SUB_F32, t + 3, a, best)
    _, out = p.op(Op.EXP, t + 6, a, out=12)
    p.keep(places.every, out, t + 6)
    ready = schedule.place(p, ready - first_read) + p.ready
    return factor_of_sum(schedule, spec, places.every, ready, constants, 1.0, 0.0, places.inverse)


def _shared_shares(schedule: Schedule, spec: ChipSpec, ready: int, places: ChoicePlaces) -> int:
    """The share of every shared expert, 0 of those that are not here; when readable."""
    p = Pass(schedule, spec)
    t, n = 40, places.shared
    if places.gates:
        a: Operand = p.load(places.gates[0], 32, t, n=n)
        if len(places.gates) > 1:
            a, _ = p.op(Op.ADD_F32, t, a, p.load(places.gates[1], 36, t, n=n), n=n)
            t += 3
        first_read = p.first_read()
        a, _ = p.op(Op.MUL_F32, t, a, imm=0.5, n=n)
        a, _ = p.op(Op.TANH, t + 3, a, n=n)
        a, _ = p.op(Op.MUL_F32, t + 6, a, imm=0.5, n=n)
        a, _ = p.op(Op.ADD_F32, t + 9, a, imm=0.5, n=n)
        t += 12
    else:  # exp(0) = 1
        best = p.load(places.best, 36, t, n=n)
        first_read = p.first_read()
        a, _ = p.op(Op.MUL_F32, t, best, imm=0.0, n=n)
        a, _ = p.op(Op.EXP, t + 3, a, n=n)
        t += 6
    held = places.held or range(places.experts + n)
    start, stop = (min(max(end - places.experts, 0), n) for end in (held.start, held.stop))
    for first, last, factor in ((0, start, 0.0), (start, stop, 1.0), (stop, n, 0.0)):
        if first < last:
            count = last - first
            _, out = p.op(Op.MUL_F32, t + first, a, imm=factor, n=count, out=4)
            p.keep(places.shares.at(places.routed + first), out, t + first, n=count)
    return schedule.place(p, ready - first_read) + p.ready


def _if_held(p: Pass, t: int, index: Operand, value: Alu, held: range, n: int, dc: int) -> Alu:
    """``value`` of what an expert of ``held`` has, else +0; chained at ``t`` + 9.

    index: taken at ``t``, when ``value`` is dispatched too.
    """
    enough, _ = p.op(Op.GE_F32, t, index, imm=float(held.start), n=n, dc=dc)
    beyond, _ = p.op(Op.GE_F32, t, index, imm=float(held.stop), n=n, dc=dc)
    value, _ = p.op(Op.MASK, t + 3, value, enough, n=n, dc=dc)
    beyond, _ = p.op(Op.MOV, t + 3, beyond, n=n, dc=dc)
    value, _ = p.op(Op.MASK_BAR, t + 6, value, beyond, n=n, dc=dc)
    return value


def copy_chosen(
    schedule: Schedule,
    spec: ChipSpec,
    ready: int,
    table: Place,
    experts: int,
    chosen: int,
    maps: MapPlaces,
    target: Place,
) -> int:
    """Words of the chosen experts, from a table of ``maps.stride`` words each, one after another.

    table, target: fp32 words on the slices nearest the VXM of the west.
    """
    done = ready
    words = maps.stride
    for slot in range(chosen):
        p = Pass(schedule, spec)
        t = 60
        at = p.gathered(table, 20, t)
        steered = p.load(maps.pair(0, 0, slot), 24, at, table.queues[0], n=words, dc=2)
        first_read = p.first_read(steered)
        window = ScatterWindow(steered, experts * words - 1)
        copied = p.gather(table, 20, t, window, n=words, dc=2, da=1)
        # two steps: the Writes then fall between the Gathers
        a, _ = p.op(Op.MOV, t, copied, n=words, dc=2)
        _, out = p.op(Op.MOV, t + 3, a, n=words, dc=2, out=44)
        p.keep(target.at(slot * words), out, t + 3, n=words, dc=2)
        done = max(done, schedule.place(p, ready - first_read) + p.ready)
    return done
