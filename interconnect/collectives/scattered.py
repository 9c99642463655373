"""An all-reduce in two steps, for a decoder's schedule: each chip adds its own share, then gathers.

Of ``words`` words each of n chips *owns* w: chip c has words c * w to c * w + w - 1.  What remains,
fewer words than hops have time for, goes to everybody at once, as in ``node``.  All chips run one
program: word k * w + i of a chip's partial sums is for its neighbour at XOR distance k, so the
words of a chip lie in an order of its own (:func:`word_order`), and the sums are brought into the
common order by a Scatter whose map (:func:`scatter_offsets`) is the only thing that differs.

The sums are those of ``node.reduce``, added once, at their owner.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

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
    dealt = [(chip ^ k) * share + i for k in range(chips) for i in range(share)]
    return dealt + list(range(chips * share, words))


def scatter_offsets(chips: int, chip: int, share: int) -> list[int]:
    """Where the sums that come from each distance k lie, from the first one's word on."""
    return [(chip ^ k) * share for k in range(chips)]


def all_reduce_in_shares(
    schedule: Schedule,
    spec: ChipSpec,
    chips: int,
    words: int,
    ready: int,
    places: ReducePlaces,
    shares: SharePlaces,
    target: Place | None,
) -> tuple[int, int]:
    """Sum ``words`` words of ``partial`` over the chips, and ``residual`` to ``target``.

    target: None: the sums stay alone, in place of ``residual``.  Returns the cycles from which all
    sums are on every chip, and from which the result is readable.
    """
    w, dealt = shares.words, chips * shares.words
    apart = [range(k, k + 1) for k in range(1, chips)]
    once = [range(4, chips), range(1, min(chips, 4))]
    arrived = send_and_receive(
        schedule,
        spec,
        ready,
        [(group, places.partial.at(group[0] * w)) for group in apart],
        w,
        places.received,
    )
    rest, late = words - dealt, ready
    received = {k: place.at(2 * w) for k, place in places.received.items()}
    if rest:
        source = places.partial.at(dealt)
        groups = [(group, source) for group in once if group]
        late = send_and_receive(schedule, spec, ready, groups, rest, received)
    summed = reduce(schedule, spec, chips, w, arrived, places, target=shares.own, alone=True)
    gathered = {k: place.at(w) for k, place in places.received.items()}
    groups = [(group, shares.own) for group in once if group]
    known = send_and_receive(schedule, spec, summed, groups, w, gathered)
    terms = [shares.own, *(gathered[k] for k in range(1, chips))]
    goal = places.residual if target is None else places.partial
    ordered = _bring_into_order(schedule, spec, terms, known, shares, goal)
    tail = ReducePlaces(places.partial.at(dealt), places.residual.at(dealt), received)
    if target is None:
        done = ordered
        if rest:
            done = max(done, reduce(schedule, spec, chips, rest, late, tail, alone=True))
        return max(known, late), done
    done = reduce(schedule, spec, 1, dealt, ordered, replace(places, received={}), target=target)
    if rest:
        end = reduce(schedule, spec, chips, rest, late, tail, target=target.at(dealt))
        done = max(done, end)
    return max(known, late), done


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
    w, first_read = shares.words, 1 << 30
    for k, place in enumerate(terms):
        t = 60 + k * w
        value = p.load(place, 4 * k + place.inward, t, n=w, da=1)
        first_read = min(first_read, p.blocks[-1]["cycle"])
        code = 4 * (k ^ 1)
        _, out = p.op(Op.MOV, t, value, n=w, out=code)
        position = isa.drive_position(isa.VXM_QUEUE, code)
        at = p.driven(t) + abs(goal.position - position)
        offsets = p.load(shares.map.at(k), 4 * (k ^ 5), at, goal.queues[0], n=w)
        window = ScatterWindow(offsets, len(terms) * w - 1)
        p.store(goal, out, p.driven(t), position, n=w, da=1, window=window)
    return schedule.place(p, ready - first_read, "order of sums") + p.ready
