"""An all-reduce in two steps, for a decoder's schedule: each chip adds its own share, then gathers.

Of ``words`` words each of n chips *owns* w: of the first n words, the first *turn*, chip c has word
c, of the next n word n + c, and so on.  What remains, fewer words than hops have time for, goes to
everybody at once, as in ``node``.  All chips run one program: of a chip's partial sums of a turn
the first are one for each neighbour and the last is the one that the chip owns; after all turns
come those for everybody.  So the words of a chip lie in an
order of its own (:func:`word_order`), and the sums are brought into the common order by a Scatter
whose map (:func:`scatter_offsets`) is the only thing that differs.  Words leave as soon as they are
readable, while the product that makes the others is under way, and so do their sums.

The sums are those of ``node.reduce``, added once, at their owner.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from chip import isa
from chip.isa import Op
from chip.scheduling import Pass, Place, ScatterWindow, Schedule
from chip.spec import ChipSpec
from interconnect.collectives.node import ReducePlaces, edges, reduce, send_and_receive

#: Besides hops and links, as schedules have it: from what arrives to the sum of it; from the first
#: step's last vector to the second one's first; from the last vector to sums in the common order.
_SUM_CYCLES, _BETWEEN_CYCLES, _ORDER_CYCLES = 40, 40, 100
#: Streams of the residual's words, inward; of the sums in order, and of the two maps, outward.
_RESIDUAL, _ORDERED, _MAPS = 36, 12, (18, 20)


@dataclass(frozen=True)
class SharePlaces:
    """words: w of a chip; own: w words in the east for its sums; map: a pair of byte words for each
    distance, see :func:`scatter_offsets`.
    """

    words: int
    own: Place
    map: Place


class Summed(NamedTuple):
    """When sums are on every chip, when the result of all words is readable, and that of each."""

    known: int
    done: int
    each: list[int]


def all_reduce_cycles(spec: ChipSpec, chips: int, words: int, share: int) -> int:
    """Cycles from partial sums to sums, about, each chip owning ``share`` words; 0: none."""
    word, hop = 4 * spec.send_spacing_cycles, spec.hop_cycles
    if not share:
        return hop + word * words + _SUM_CYCLES
    sent = word * (2 * share + words - chips * share)
    summed = hop + word * share + _BETWEEN_CYCLES
    return max(sent, summed + word) + hop + _ORDER_CYCLES


def share_of(spec: ChipSpec, chips: int, words: int) -> int:
    """Words that each chip should own so that all are summed soonest; 0: everything at once."""
    if chips == 1:
        return 0
    shares = range(words // chips + 1)
    return min(shares, key=lambda share: all_reduce_cycles(spec, chips, words, share))


def word_order(chips: int, chip: int, share: int, words: int) -> list[int]:
    """The word that each word of a chip's partial sums is of."""
    turns = [i * chips + (chip ^ (k + 1) % chips) for i in range(share) for k in range(chips)]
    return [*turns, *range(chips * share, words)]


def scatter_offsets(chips: int, chip: int) -> list[int]:
    """Where the sums that come from each distance k lie, from the first one of their turn on."""
    return [chip ^ k for k in range(chips)]


def all_reduce_in_shares(
    schedule: Schedule,
    spec: ChipSpec,
    chips: int,
    ready: Sequence[int],
    places: ReducePlaces,
    shares: SharePlaces,
    target: Place | None,
    pace: int = 0,
) -> Summed:
    """Sum the words of ``partial`` over the chips, and ``residual`` to ``target``.

    ready: when each word is readable, in any order.  target: None: the sums stay alone, in place of
    ``residual``.  pace: least cycles between vectors that leave before the last word is readable.
    """
    w, dealt, end = shares.words, chips * shares.words, max(ready)
    everybodys = {k: place.at(2 * w) for k, place in places.received.items()}
    late = known = done = end
    each = [end] * len(ready)
    made = [max(ready[i * chips : (i + 1) * chips]) for i in range(w)]
    arrived, left = list(made), list(range(w))  # words of the share that have not been added
    for at in [*sorted(set(ready)), 1 << 30]:
        for i in [i for i in left if made[i] < at and arrived[i] <= at]:  # all of a turn is sent
            left.remove(i)
            pause = end, pace
            there, ordered = _gather(schedule, spec, i, arrived[i], places, shares, target, pause)
            known, done = max(known, there), max(done, ordered)
            each[i * chips : (i + 1) * chips] = [ordered] * chips
        words = [word for word in range(len(ready)) if ready[word] == at]
        least = pace if at < end else 0
        for word in [word for word in words if word < dealt and (word + 1) % chips]:
            row, k = divmod(word, chips)
            received = {n: place.at(row) for n, place in places.received.items()}
            to = [([k + 1], places.partial.at(word))]
            # links apart, since those of an edge are free at other cycles
            there = send_and_receive(schedule, spec, at, to, 1, received, least)
            arrived[row] = max(arrived[row], there)
        for rest in _runs([word for word in words if word >= dealt]):
            received = {k: place.at(rest[0] - dealt) for k, place in everybodys.items()}
            for group in edges(range(1, chips)):
                to = [(group, places.partial.at(rest[0]))]
                there = send_and_receive(schedule, spec, at, to, len(rest), received, least)
                late = max(late, there)
    if dealt < len(ready):
        tail = ReducePlaces(places.partial.at(dealt), places.residual.at(dealt), everybodys)
        last = None if target is None else target.at(dealt)
        n, alone = len(ready) - dealt, target is None
        ended = reduce(schedule, spec, chips, n, late, tail, target=last, alone=alone)
        done = max(done, ended)
        each[dealt:] = [ended] * n
    return Summed(max(known, late), done, each)


def _runs(words: Sequence[int]) -> list[range]:
    """Ascending numbers as ranges of those that follow each other."""
    firsts = [word for word in words if word - 1 not in words]
    lasts = [word for word in words if word + 1 not in words]
    return [range(a, b + 1) for a, b in zip(firsts, lasts, strict=True)]


def _gather(
    schedule: Schedule,
    spec: ChipSpec,
    number: int,
    arrived: int,
    places: ReducePlaces,
    shares: SharePlaces,
    target: Place | None,
    pause: tuple[int, int],
) -> tuple[int, int]:
    """Add word ``number`` of the share, whose terms are there from ``arrived`` on, and gather it.

    pause: the end of the product under way, and the least cycles between vectors until then.
    Returns as ``all_reduce_in_shares``.
    """
    w, chips = shares.words, len(places.received) + 1
    own = ReducePlaces(
        places.partial.at((number + 1) * chips - 1),
        places.residual,
        {k: place.at(number) for k, place in places.received.items()},
    )
    there = shares.own.at(number)
    summed = reduce(schedule, spec, chips, 1, arrived, own, target=there, alone=True)
    gathered = {k: place.at(w + number) for k, place in places.received.items()}
    groups = [(group, there) for group in edges(range(1, chips))]
    least = pause[1] if summed < pause[0] else 0
    known = send_and_receive(schedule, spec, summed, groups, 1, gathered, least)
    terms = [there, *(gathered[k] for k in range(1, chips))]
    to = places.residual if target is None else target
    residual = None if target is None else places.residual.at(number * chips)
    done = _bring_into_order(
        schedule, spec, terms, (summed, known), shares, residual, to.at(number * chips)
    )
    return known, done


def _bring_into_order(
    schedule: Schedule,
    spec: ChipSpec,
    terms: Sequence[Place],
    ready: tuple[int, int],
    shares: SharePlaces,
    residual: Place | None,
    goal: Place,
) -> int:
    """Scatter a word of the share of every chip, by distance, to their words from ``goal`` on.

    ready: the chip's own and the others'.  residual: the first of the words that are added to
    them, if any.
    """
    p, t, n = Pass(schedule, spec), 60, len(terms)
    last = n - 1
    alu, tag = p.pick(_RESIDUAL, _ORDERED), schedule.tag()
    loaded = [p.load(place, 4 * k + place.inward, t + k) for k, place in enumerate(terms)]
    # what links bring was written by streams of the direction that it is read by
    first_reads = p.first_read(loaded[0]), p.first_read(*loaded[1:], level=True)
    moved = [p.op(Op.MOV, t + k, value)[0] for k, value in enumerate(loaded)]
    t += spec.alu_cycles
    added = None
    if residual is not None:
        passing = p.gathered(residual, _RESIDUAL, t)
        offsets = p.load(shares.map, _MAPS[0], passing, residual.queues[0], n=n, da=1)
        added = p.gather(residual, _RESIDUAL, t, ScatterWindow(offsets, last), n=n)
    for k, mover in enumerate(moved):
        add = Op.MOV if added is None else Op.ADD_F32
        _, out = p.op(add, t + k, mover, added, alu=alu, out=_ORDERED, tag=tag)
    position = isa.drive_position(isa.VXM_QUEUE, _ORDERED)
    at = p.driven(t) + abs(goal.position - position)
    offsets = p.load(shares.map, _MAPS[1], at, goal.queues[0], n=n, da=1)
    p.store(goal, out, p.driven(t), position, n=n, da=0, window=ScatterWindow(offsets, last))
    earliest = max(at - first for at, first in zip(ready, first_reads, strict=True))
    return schedule.place(p, earliest, "order of sums") + p.ready
