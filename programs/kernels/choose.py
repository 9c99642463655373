"""Which experts a router chooses, found by the chip itself: ranks, shares and addresses.

A static machine cannot branch on a router's choice, but a Gather reads from wherever a map of
offsets says, and the chip can write that map.  Expert e's logit arrives on lane e.  Every logit,
in two fp16 pieces, is sent through a plane pair of ones, which brings it to all lanes; lane e
counts those that are greater than its own, or equal and of a lower index: its rank.  The lanes
whose rank is i then send their number and their logit through the ones again, so that every lane
knows which expert is the i-th and what its logit is.  Expert times stride is the offset of its
weights, written as bytes to the maps that Gathers sample.

Where groups of experts are chosen first, ranks within a group come from ones on the lanes of each
group alone; the greatest of a group, sent through these, are added up to its score on all of its
lanes, groups are ranked as experts are, and the experts of the others are ranked behind all.
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
FARTHEST = -65504.0
"""What an expert of a group that is not chosen is ranked by: the least fp16 number."""


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
class GroupPlaces:
    """What chooses ``kept`` of ``count`` groups of ``size`` experts by their ``best`` greatest.

    members, behind: bytes, word j is not zero on every group's j-th lane, and on those behind it
    (west); firsts, later: bytes, word g is not zero on the first lane of group g, and on the lanes
    of the groups behind it (west); ones: twenty words of high bytes, columns of ones on the lanes
    of their group; raw: an fp32 word; pieces, exact: two fp16 pieces of the groups' scores, and
    their sum (west); ranked, order: the same of what experts are ranked by.
    """

    count: int
    size: int
    best: int
    kept: int
    members: Place
    behind: Place
    firsts: Place
    later: Place
    ones: Place
    raw: Place
    pieces: Place
    exact: Place
    ranked: Place
    order: Place


@dataclass(frozen=True)
class ScorePlaces:
    """Of sigmoids that experts are chosen by: ``raw`` the sigmoids (an fp32 word), present: a byte
    word, not zero on lanes with experts (west), ranked: two fp16 pieces of sigmoid and bias.
    """

    raw: Place
    present: Place
    ranked: Place


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
    bias: of the logits, or of sigmoids, expert e's on lane e (west), where they have any;
    biases: as scales, of the chosen ones' biases; bias_sums: a word for each tile of x (west), the
    sums of shared biases;
    shared: how many of the slots, the last ones, have experts that no router chooses: ``indices``
    has their numbers from the start; gates: results, on all lanes, whose sum's sigmoid is their
    share (none: it is 1); sigmoid: the others' shares are sigmoids of their own logits;
    absent, every: where shares are those of the softmax over all experts, a constant, 0 on lanes
    with experts and -2^127 on others, and a word for the terms of its sum;
    held: where given, those of the experts that are here; a slot of another one has the offset of
    the first of them, and a share of 0; own: their numbers among those.
    turns: of experts that share words, see ``find_turns``.
    scores: where experts are chosen by sigmoids and a bias; ``pieces``, ``logits`` and ``weights``
    are those of the sigmoids then, ``exact`` has the bias; groups: where groups are chosen first.
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
    scores: ScorePlaces | None = None
    groups: GroupPlaces | None = None

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
    ranked, exact = places.pieces.at(1), places.exact
    if places.scores is not None:
        own, ranked = places.scores, places.scores.ranked
        ready = _pieces_of(schedule, spec, ready, own.raw, ranked, exact, places.bias)
    if places.groups is not None:
        values = ranked, exact
        ready = _without_groups(schedule, spec, ready, places, places.groups, values, constants)
        ranked, exact = places.groups.ranked, places.groups.order
    tables = places.one_hot, places.later
    ready = _ranks(
        schedule, spec, ready, (ranked, exact), tables, places.experts, places.ranks, constants
    )
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
    """Two fp16 pieces of the logits, and their sum; or of their sigmoids, and these."""
    p = Pass(schedule, spec)
    t = 40
    coarse = p.load(places.coarse, 32, t)
    if places.fine is None:
        logit, _ = p.op(Op.MOV, t, coarse)
    else:
        logit, _ = p.op(Op.ADD_F32, t, coarse, p.load(places.fine, 36, t))
    first_read = p.first_read()
    if places.scores is not None:
        logit, _ = p.op(Op.MUL_F32, t + 3, logit, imm=0.5)
        logit, _ = p.op(Op.TANH, t + 6, logit)
        logit, _ = p.op(Op.MUL_F32, t + 9, logit, imm=0.5)
        logit, _ = p.op(Op.ADD_F32, t + 12, logit, imm=0.5)
        t += 15
        _, out = p.op(Op.MASK, t, logit, p.load(places.scores.present, 8, t), out=16)
        p.keep(places.scores.raw, out, t)
        ready = schedule.place(p, ready - first_read, "sigmoids") + p.ready
        return _pieces_of(
            schedule, spec, ready, places.scores.raw, places.pieces.at(1), places.exact
        )
    if places.bias is not None:
        t += 3
        logit, _ = p.op(Op.ADD_F32, t, logit, p.load(places.bias, 8, t))
    _two_pieces(p, t + 3, logit, places.pieces.at(1), places.exact)
    return schedule.place(p, ready - first_read) + p.ready


def _two_pieces(p: Pass, t: int, value: Alu, pieces: Place, exact: Place) -> None:
    """Two fp16 pieces of a value that is chained at ``t`` to ``pieces``, their sum to ``exact``."""
    large, out = p.op(Op.CVT_F32_F16, t, value, out=8)
    p.keep(pieces, out, t)
    value, _ = p.op(Op.MOV, t, value)
    wide, _ = p.op(Op.CVT_F16_F32, t + 3, large)
    value, _ = p.op(Op.MOV, t + 3, value)
    rest, _ = p.op(Op.SUB_F32, t + 6, value, wide)
    wide, _ = p.op(Op.MOV, t + 6, wide)
    small, out = p.op(Op.CVT_F32_F16, t + 9, rest, out=12)
    p.keep(pieces.at(1), out, t + 9)
    wide, _ = p.op(Op.MOV, t + 9, wide)
    small, _ = p.op(Op.CVT_F16_F32, t + 12, small)
    wide, _ = p.op(Op.MOV, t + 12, wide)
    _, out = p.op(Op.ADD_F32, t + 15, wide, small, out=40)
    p.keep(exact, out, t + 15)


def _pieces_of(
    schedule: Schedule,
    spec: ChipSpec,
    ready: int,
    raw: Place,
    pieces: Place,
    exact: Place,
    bias: Place | None = None,
) -> int:
    """Two fp16 pieces of an fp32 word in the east, a bias in the west added, and their sum."""
    p = Pass(schedule, spec)
    t = 40
    word = p.load(raw, 32, t)
    if bias is None:
        value, _ = p.op(Op.MOV, t, word)
    else:
        value, _ = p.op(Op.ADD_F32, t, word, p.load(bias, 8, t))
    first_read = p.first_read()
    _two_pieces(p, t + 3, value, pieces, exact)
    return schedule.place(p, ready - first_read, "pieces") + p.ready


def _without_groups(
    schedule: Schedule,
    spec: ChipSpec,
    ready: int,
    places: ChoicePlaces,
    groups: GroupPlaces,
    values: tuple[Place, Place],
    constants: Constants,
) -> int:
    """What experts are ranked by, -65,504 for those of groups that are not chosen.

    values: two pieces of it for every expert, and their sum.
    """
    inside = groups.members, groups.behind
    ready = _ranks(
        schedule, spec, ready, values, inside, groups.size, places.ranks, constants, groups.ones
    )
    p = Pass(schedule, spec)
    t = 80
    rank = p.load(places.ranks, 4, t, n=2, dc=_APART)
    first_read = p.first_read()
    count, _ = p.op(Op.CVT_I32_F32, t, rank, n=2, dc=_APART)
    beyond, _ = p.op(Op.GE_F32, t + 3, count, imm=float(groups.best), n=2, dc=_APART)
    t += 6
    piece = p.load(values[0], 36, t, n=2, dc=_APART, da=1)
    tag = schedule.tag()
    p.op(Op.MASK_BAR, t, piece, beyond, n=2, dc=_APART, out=0, width=2, tag=tag)
    acc = _through_ones(p, spec, constants, t, 2, tag, groups.ones)
    score = Stream(32, 4, schedule.tag())
    _sum(p, acc, 1, 1, AccMode.SET)
    at = _sum(p, acc + _APART, 1, 1, AccMode.ADD_EMIT, score)
    _, out = p.op(Op.MOV, at, score, out=12)
    p.keep(groups.raw, out, at)
    ready = schedule.place(p, ready - first_read, "groups") + p.ready
    ready = _pieces_of(schedule, spec, ready, groups.raw, groups.pieces, groups.exact)
    of_groups, tables = (groups.pieces, groups.exact), (groups.firsts, groups.later)
    ready = _ranks(schedule, spec, ready, of_groups, tables, groups.count, places.ranks, constants)
    p = Pass(schedule, spec)
    t = 40
    rank = p.load(places.ranks, 4, t)
    first_read = p.first_read()
    count, _ = p.op(Op.CVT_I32_F32, t, rank)
    beyond, _ = p.op(Op.GE_F32, t + 3, count, imm=float(groups.kept))
    value, _ = p.op(Op.MASK_BAR, t + 6, p.load(values[1], 0, t + 6), beyond)
    far, _ = p.op(Op.CVT_I32_F32, t + 6, beyond)
    far, _ = p.op(Op.MUL_F32, t + 9, far, imm=FARTHEST)
    value, _ = p.op(Op.MOV, t + 9, value)
    _, out = p.op(Op.ADD_F32, t + 12, value, far, out=16)
    p.keep(groups.raw, out, t + 12)
    ready = schedule.place(p, ready - first_read, "chosen groups") + p.ready
    return _pieces_of(schedule, spec, ready, groups.raw, groups.ranked, groups.order)


def _through_ones(
    p: Pass,
    spec: ChipSpec,
    constants: Constants,
    dispatched: int,
    count: int,
    tag: int,
    ones: Place | None = None,
) -> int:
    """Multiply ``count`` fp16 vectors, driven by ALUs on E0 and E1, by ones; when their ACCs are.

    dispatched: the cycle of the first one's ALU; ones: see ``install_ones``.
    """
    meet = p.driven(dispatched) + isa.EAST_EDGE - isa.drive_position(isa.VXM_QUEUE, 0)
    install_ones(p, spec, constants, meet, ones)
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
    schedule: Schedule,
    spec: ChipSpec,
    ready: int,
    values: tuple[Place, Place],
    tables: tuple[Place, Place],
    n: int,
    ranks: Place,
    constants: Constants,
    ones: Place | None = None,
) -> int:
    """To ``ranks`` on every lane: how many of ``n`` are greater than its own, or equal and earlier.

    values: two fp16 pieces, and their sum.  tables: words of the lanes that each is on, and of
    those behind it.  ones: of the lanes that know of each other, if not all do.
    """
    (pieces, sums), (one_hot, behind) = values, tables
    p = Pass(schedule, spec)
    t = 80
    dc = 2 * _APART
    each, apart = (2, n), (_APART, dc)
    piece = p.load(pieces, 36, t, n=each, dc=apart, da=(1, 0))
    first_read = p.first_read(piece)
    own = p.load(one_hot, 8, t, n=each, dc=apart, da=(0, 1))
    tag = schedule.tag()
    p.op(Op.MASK, t, piece, own, n=each, dc=apart, out=0, width=2, tag=tag)
    acc = _through_ones(p, spec, constants, t, 2 * n, tag, ones)
    every = Stream(32, 4, schedule.tag())
    _sum(p, acc, n, dc, AccMode.SET)
    t = _sum(p, acc + _APART, n, dc, AccMode.ADD_EMIT, every)
    exact = p.load(sums, 4, t, n=n, dc=dc)
    greater, _ = p.op(Op.GT_F32, t, every, exact, n=n, dc=dc)
    enough, _ = p.op(Op.GE_F32, t, every, exact, n=n, dc=dc)
    later = p.load(behind, 12, t + 3, n=n, dc=dc, da=1)
    equal, _ = p.op(Op.MASK, t + 3, enough, later, n=n, dc=dc)
    greater, _ = p.op(Op.MOV, t + 3, greater, n=n, dc=dc)
    before, _ = p.op(Op.OR, t + 6, greater, equal, n=n, dc=dc)
    rank = p.pick()
    p.op(Op.MOV, t + 9, before, alu=rank)
    p.op(Op.ADD_I32, t + 9 + dc, before, Self(), alu=rank, n=n - 1, dc=dc)
    end = t + 9 + dc * (n - 1)
    p.hold_alu(rank, t + 9, end)
    _, out = p.op(Op.MOV, end + 3, Alu(rank), out=44)
    p.keep(ranks, out, end + 3)
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
    """exp(logit - greatest) of the chosen ones, or their sigmoids, by their sum or that of all."""
    of_all = places.absent is not None
    known = _sum_of_all(schedule, spec, ready, places, constants) if of_all else ready
    p = Pass(schedule, spec)
    t, k = 40, places.routed
    logit = p.load(places.logits, 32, t, n=k, dc=3, da=1)
    if places.scores is None:
        best = p.load(places.best, 36, t, n=k, dc=3)
        first_read = p.first_read(logit, best)
        a, _ = p.op(Op.SUB_F32, t, logit, best, n=k, dc=3)
        t += 3
        weight, out = p.op(Op.EXP, t, a, n=k, dc=3, out=8)
    else:
        first_read = p.first_read(logit)
        weight, out = p.op(Op.MOV, t, logit, n=k, dc=3, out=8)
    p.keep(places.weights, out, t, n=k, dc=3)
    if not of_all:
        total = p.pick()
        p.op(Op.MOV, t + 3, weight, alu=total)
        p.op(Op.ADD_F32, t + 6, weight, Self(), alu=total, n=k - 1, dc=3)
        end = t + 3 + 3 * (k - 1)
        p.hold_alu(total, t + 3, end)
        root, _ = p.op(Op.RSQRT, end + 3, Alu(total))
        _, out = p.op(Op.MUL_F32, end + 6, root, root, out=12)
        p.keep(places.inverse, out, end + 6)
    ready = max(known, schedule.place(p, ready - first_read) + p.ready)
    p, t = Pass(schedule, spec), 40
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
