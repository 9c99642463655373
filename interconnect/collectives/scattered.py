"""An all-reduce in two steps, for a decoder's schedule: each chip adds its own share, then gathers.

Of ``words`` words each of n chips *owns* w: chip c has words c * w to c * w + w - 1.  What remains,
fewer words than hops have time for, goes to everybody at once, as in ``node``.  All chips run one
program: the first words of a chip's partial sums are one for each neighbour in turn, then come
those for everybody, and those that the chip owns are last.  So the words of a chip lie in an order
of its own (:func:`word_order`), and the sums are brought into the common order by a Scatter whose
map (:func:`scatter_offsets`) is the only thing that differs.  Words leave as soon as they are
readable, while the product that makes the others is under way.

The sums are those of ``node.reduce``, added once, at their owner.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from chip import isa
from chip.isa import Op
from chip.scheduling import Pass, Place, ScatterWindow, Schedule
from chip.spec import ChipSpec
from interconnect.collectives.node import ReducePlaces, reduce, send_and_receive

#: Besides hops and links, as schedules have it: from what arrives to the sum of it; from the first
#: step's last vector to the second one's first; from the last vector to sums in the common order.
_SUM_CYCLES, _BETWEEN_CYCLES, _ORDER_CYCLES = 40, 40, 100


@dataclass(frozen=True)
class SharePlaces:
    """words: w of a chip; own: w words in the east for its sums; map: a pair of byte words for each
    distance, see :func:`scatter_offsets`.
    """

    words: int
    own: Place
    map: Place


def all_reduce_cycles(spec: ChipSpec, chips: int, words: int, share: int) -> int:
    """Cycles from partial sums to sums, about, each chip owning ``share`` words; 0: none."""
    word, hop = 4 * spec.send_spacing_cycles, spec.hop_cycles
    if not share:
        return hop + word * words + _SUM_CYCLES
    sent = word * (share + words - chips * share)
    summed = hop + word * share + _BETWEEN_CYCLES
    return max(sent, summed) + hop + word * share + _ORDER_CYCLES


def share_of(spec: ChipSpec, chips: int, words: int) -> int:
    """Words that each chip should own so that all are summed soonest; 0: everything at once."""
    if chips == 1:
        return 0
    shares = range(words // chips + 1)
    return min(shares, key=lambda share: all_reduce_cycles(spec, chips, words, share))


def word_order(chips: int, chip: int, share: int, words: int) -> list[int]:
    """The word that each word of a chip's partial sums is of."""
    others = [(chip ^ k) * share + i for i in range(share) for k in range(1, chips)]
    own = range(chip * share, (chip + 1) * share)
    return [*others, *range(chips * share, words), *own]


def scatter_offsets(chips: int, chip: int, share: int) -> list[int]:
    """Where the sums that come from each distance k lie, from the first one's word on."""
    return [(chip ^ k) * share for k in range(chips)]


def all_reduce_in_shares(
    schedule: Schedule,
    spec: ChipSpec,
    chips: int,
    ready: Sequence[int],
    places: ReducePlaces,
    shares: SharePlaces,
    target: Place | None,
    pace: int = 0,
) -> tuple[int, int]:
    """Sum the words of ``partial`` over the chips, and ``residual`` to ``target``.

    Behind its words ``partial`` has room for all that chips own.  ready: when each word is
    readable.  target: None: the sums stay alone, in place of ``residual``.  pace: least cycles
    between vectors that leave before the last word is readable.
    Returns the cycles from which all sums are on every chip, and from which the result is readable.
    """
    w, dealt = shares.words, chips * shares.words
    rest = len(ready) - dealt
    received = {k: place.at(2 * w) for k, place in places.received.items()}
    late, arrived = _send_first(schedule, spec, chips, ready, places, w, pace)
    own = replace(places, partial=places.partial.at(len(ready) - w))
    summed = reduce(schedule, spec, chips, w, arrived, own, target=shares.own, alone=True)
    gathered = {k: place.at(w) for k, place in places.received.items()}
    groups = [(group, shares.own) for group in _both_edges(chips)]
    known = send_and_receive(schedule, spec, summed, groups, w, gathered)
    terms = [shares.own, *(gathered[k] for k in range(1, chips))]
    alone = target is None
    goal = places.residual if target is None else places.partial.at(len(ready))
    done = _bring_into_order(schedule, spec, terms, known, shares, goal)
    if target is not None:
        done = reduce(schedule, spec, 1, dealt, done, replace(places, partial=goal), target=target)
    if rest:
        tail = ReducePlaces(places.partial.at(dealt - w), places.residual.at(dealt), received)
        last = None if target is None else target.at(dealt)
        end = reduce(schedule, spec, chips, rest, late, tail, target=last, alone=alone)
        done = max(done, end)
    return max(known, late), done


def _both_edges(chips: int) -> list[range]:
    """The neighbours whose links are on one edge, east first."""
    return [group for group in (range(4, chips), range(1, min(chips, 4))) if group]


def _send_first(
    schedule: Schedule,
    spec: ChipSpec,
    chips: int,
    ready: Sequence[int],
    places: ReducePlaces,
    share: int,
    pace: int,
) -> tuple[int, int]:
    """Send what is for everybody, and to each neighbour what it owns.

    Returns when the one and the other are readable where they go; see ``all_reduce_in_shares``.
    """
    others = share * (chips - 1)
    late = arrived = end = max(ready)
    for at in sorted(set(ready)):
        words = [word for word in range(len(ready) - share) if ready[word] == at]
        least = pace if at < end else 0
        for word in words:  # links apart, since those of an edge are free at other cycles
            if word < others:
                row, k = divmod(word, chips - 1)
                own = {n: place.at(row) for n, place in places.received.items()}
                to = [(range(k + 1, k + 2), places.partial.at(word))]
                there = send_and_receive(schedule, spec, at, to, 1, own, least)
                arrived = max(arrived, there)
        everybody = [word for word in words if word >= others]
        for _, run in groupby(enumerate(everybody), lambda numbered: numbered[1] - numbered[0]):
            (_, first), *more = run
            n = 1 + len(more)
            skipped = 2 * share + first - others
            received = {k: place.at(skipped) for k, place in places.received.items()}
            for group in _both_edges(chips):
                to = [(group, places.partial.at(first))]
                late = max(late, send_and_receive(schedule, spec, at, to, n, received, least))
    return late, arrived


def _bring_into_order(
    schedule: Schedule,
    spec: ChipSpec,
    terms: Sequence[Place],
    ready: int,
    shares: SharePlaces,
    goal: Place,
) -> int:
    """Scatter the shares of all chips, by distance, to their words of ``goal``."""
    p = Pass(schedule, spec)
    w = shares.words
    read = []
    for k, place in enumerate(terms):
        t = 60 + k * w
        value = p.load(place, 4 * k + place.inward, t, n=w, da=1)
        read.append(value)
        code = 4 * (k ^ 1)
        _, out = p.op(Op.MOV, t, value, n=w, out=code)
        position = isa.drive_position(isa.VXM_QUEUE, code)
        at = p.driven(t) + abs(goal.position - position)
        offsets = p.load(shares.map.at(k), 4 * (k ^ 5), at, goal.queues[0], n=w)
        window = ScatterWindow(offsets, len(terms) * w - 1)
        p.store(goal, out, p.driven(t), position, n=w, da=1, window=window)
    # what links bring was written by streams of the direction that it is read by
    first_read = min(p.first_read(read[0]), p.first_read(*read[1:], level=True))
    return schedule.place(p, ready - first_read, "order of sums") + p.ready
