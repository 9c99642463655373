"""Collectives of a node compiled into Send and Receive: what moves, when, on which link.

Everything is one-shot: a chip sends its words straight to every neighbour they are for (one Read
is multicast to all links of an edge) and adds what it receives by the tree
((0+1)+(2+3))+((4+5)+(6+7)) over k, the XOR distance, which for every chip is the same tree over
chip ids (see interconnect.wiring).  This is the latency-optimal choice for the few kilobytes of one
token's residual.  ``exchange`` and ``reduce`` are kernels for a compiler's schedule;
``compile_collective`` makes whole programs of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from chip import isa
from chip.isa import Op
from chip.program import Program
from chip.scheduling import Operand, Pass, Place, Schedule, Stream, program_of
from chip.spec import ChipSpec
from interconnect.wiring import NODE_SIZES, link_to

#: Inward stream codes of what the links of an edge receive, and outward ones of what they send.
_RECEIVE = {1: 0, 2: 4, 3: 8, 4: 32, 5: 36, 6: 40, 7: 44}
_SEND = {1: 60, 2: 56, 3: 52, 4: 28, 5: 24, 6: 20, 7: 16}

#: Quads that hold what neighbour k sent: west of the VXM for k = 1..3, east for 4..7, so that all
#: eight terms reach the VXM on stream groups of their own.
RECEIVED_QUADS: dict[int, tuple[int, ...]] = {
    1: (8, 9, 10, 11),
    2: (12, 13, 14, 15),
    3: (17, 18, 19, 21),
    4: (56, 57, 58, 59),
    5: (61, 62, 63, 65),
    6: (66, 67, 69, 70),
    7: (71, 73, 74, 75),
}

OPERATIONS = ("all-reduce", "reduce-scatter", "all-gather", "broadcast")


@dataclass(frozen=True)
class ReducePlaces:
    """partial, residual: 4-byte words in east quads; received[k]: RECEIVED_QUADS[k].

    Both may lie in one quad (experts): ``reduce`` then reads the residual after the partial sums.
    """

    partial: Place
    residual: Place
    received: dict[int, Place]


def link_pace(spec: ChipSpec, vectors: int, least: int = 0) -> int:
    """Cycles between the vectors of a run that neighbours send each other at the same cycles.

    A link issues one instruction a cycle.  Where the way to the Receive is a multiple of the
    spacing, a chip would have to take a vector in the cycle in which it sends a later one of the
    same run: such a run goes as much slower as it takes to miss that.  least: cycles at least.
    """
    way, pace = spec.send_to_receive_cycles, max(spec.send_spacing_cycles, least)
    while way % pace == 0 and way < vectors * pace:
        pace += 1
    return pace


def edges(neighbours: Sequence[int]) -> list[list[int]]:
    """Neighbours grouped by the edge their links are on, east first."""
    groups = [[k for k in neighbours if k >= 4], [k for k in neighbours if k < 4]]
    return [group for group in groups if group]


def send_to(
    p: Pass, pace: int, source: Place, words: int, neighbours: Sequence[int], start: int
) -> None:
    """Send ``words`` words of ``source`` at ``start`` on the links to neighbours of one edge."""
    links = [link_to(k) for k in neighbours]
    send_words(p, pace, source, words, links, _SEND[neighbours[0]], start)


def send_words(
    p: Pass, pace: int, source: Place, words: int, links: Sequence[int], code: int, start: int
) -> None:
    """Send ``words`` words of ``source`` from ``start`` on over links of one edge at once.

    pace: cycles from vector to vector.  code: the outward stream, below 32 for links 8..15.
    """
    queue = isa.C2C_QUEUE + links[0]
    value = p.load(source, code, start, queue, n=words, dc=4 * pace, da=1, dsg=0, dcg=pace)
    for link in links:
        p.emit(
            Op.SEND,
            isa.C2C_QUEUE + link,
            start,
            n=4 * words,
            dc=pace,
            s0=code,
            w0=1,
            want0=value.tag,
        )
        p.hold_link(link, start, start + 4 * words * pace - 1)


def receive_from(
    p: Pass, spec: ChipSpec, pace: int, target: Place, words: int, k: int, sent: int
) -> None:
    """Take the ``words`` words that neighbour ``k`` sent from cycle ``sent`` on to ``target``."""
    receive_words(p, spec, pace, target, words, link_to(k), _RECEIVE[k], sent)


def receive_words(
    p: Pass, spec: ChipSpec, pace: int, target: Place, words: int, link: int, code: int, sent: int
) -> None:
    """Take ``words`` words sent from ``sent`` on over ``link``, by stream ``code``, to ``target``.

    pace: as they were sent.  code: inward from the edge of the link, so below 32 for links 0..7.
    """
    arrive = sent + spec.send_to_receive_cycles
    tag = p.schedule.tag()
    p.emit(Op.RECEIVE, isa.C2C_QUEUE + link, arrive, n=4 * words, dc=pace, out=code, wo=1, tag=tag)
    position = isa.WEST_EDGE if code < isa.EAST_STREAMS else isa.EAST_EDGE
    at = arrive + spec.receive_cycles
    diagonals = isa.diagonal(code, position, at) + pace * np.arange(4 * words)
    p.drive(code, 1, diagonals, position, tag=tag)
    p.store(target, Stream(code, 1, tag), at, position, n=words, dc=4 * pace, da=1, dcg=pace)


def spread_words(
    p: Pass,
    spec: ChipSpec,
    pace: int,
    source: Place | None,
    words: Sequence[int],
    start: int,
    received: dict[int, Place],
) -> None:
    """An all-gather of unequal shares: ``words[k]`` words of each neighbour k, to received[k].

    words: of all chips of the group, the own ones first.

    source: the own words[0] words, sent to every neighbour; None: nothing is sent.
    """
    for i, group in enumerate(edges(range(1, len(words)))):
        if source is not None:
            send_to(p, pace, source, words[0], group, start + i)
        for k in group:
            if words[k]:
                receive_from(p, spec, pace, received[k], words[k], k, start + i)


_START = 80  # room for a Read to reach an edge


def exchange(
    schedule: Schedule, spec: ChipSpec, chips: int, words: int, ready: int, places: ReducePlaces
) -> int:
    """Send ``words`` words of ``partial`` to all neighbours; returns when theirs are readable."""
    groups = [(group, places.partial) for group in edges(range(1, chips))]
    return send_and_receive(schedule, spec, ready, groups, words, places.received)


def runs_of(ready: Sequence[int]) -> list[tuple[int, range]]:
    """Words that follow each other and are readable from the same cycle on, and that cycle; the
    earliest first.
    """
    firsts = [n for n, at in enumerate(ready) if not n or at != ready[n - 1]]
    ends = [*firsts[1:], len(ready)]
    runs = [(ready[a], range(a, b)) for a, b in zip(firsts, ends, strict=True)]
    return sorted(runs, key=lambda run: (run[0], run[1].start))


def exchange_as_made(
    schedule: Schedule,
    spec: ChipSpec,
    chips: int,
    ready: Sequence[int],
    places: ReducePlaces,
    pace: int = 0,
) -> int:
    """As ``exchange`` of as many words as ``ready`` says when each is readable: those that are made
    first leave while a product makes the others.

    pace: least cycles between vectors that leave before the last word is readable.
    """
    end, spacing, free = max(ready), spec.send_spacing_cycles, 0
    runs = [(at, words, pace if at < end else 0) for at, words in runs_of(ready)]
    for at, words, least in runs:
        free = max(free, at) + 4 * len(words) * max(spacing, least)
    if free >= end + 4 * len(ready) * spacing:  # what leaves early would be in the others' way
        return exchange(schedule, spec, chips, len(ready), end, places)
    late = 0
    for at, words, least in runs:
        first = words.start
        received = {k: place.at(first) for k, place in places.received.items()}
        # links apart, since those of an edge are free at other cycles
        for group in edges(range(1, chips)):
            own = [(group, places.partial.at(first))]
            there = send_and_receive(schedule, spec, at, own, len(words), received, least)
            late = max(late, there)
    return late


def send_and_receive(
    schedule: Schedule,
    spec: ChipSpec,
    ready: int,
    groups: Sequence[tuple[Sequence[int], Place]],
    words: int,
    received: dict[int, Place],
    least_pace: int = 0,
) -> int:
    """Send ``words`` words of a place to each group of neighbours of one edge, and take as many
    from each of them to ``received``; returns when those are readable.
    """
    p = Pass(schedule, spec)
    pace = link_pace(spec, 4 * words, least_pace)
    for i, (group, source) in enumerate(groups):
        send_to(p, pace, source, words, group, _START + i)
        for k in group:
            receive_from(p, spec, pace, received[k], words, k, _START + i)
    return schedule.place(p, ready - p.first_read(), "exchange") + p.ready


#: Words a pass of ``reduce`` adds: a longer one would write a slice while it still reads it.
_WORDS_PER_PASS = 10


def reduce(
    schedule: Schedule,
    spec: ChipSpec,
    chips: int,
    words: int,
    ready: int,
    places: ReducePlaces,
    add: Op = Op.ADD_F32,
    target: Place | None = None,
    alone: bool = False,
) -> int:
    """Add the chips' words by the tree, then ``residual``; returns when the sums are readable.

    They go to ``target``, an east quad like the residual's, or take the residual's place.
    alone: nothing is added to them.
    """
    goal = places.residual if target is None else target
    done, most = ready, _WORDS_PER_PASS
    together = not alone and places.partial.queues == places.residual.queues
    levels = max(together, chips.bit_length() - 1)
    if together:  # the residual is read after the last of the partial sums
        most = min(most, levels * spec.alu_cycles)
    for first in range(0, words, most):
        n = min(most, words - first)
        p = Pass(schedule, spec)
        t = 40
        loaded = []
        for k in range(chips):
            place = (places.partial if k == 0 else places.received[k]).at(first)
            loaded.append(p.load(place, 4 * k + place.inward, t, n=n, da=1))
        # what links bring was written by streams of the direction that it is read by
        first_read = min(p.first_read(loaded[0]), p.first_read(*loaded[1:], level=True))
        terms: list[Operand] = [*loaded]
        when = t
        while len(terms) > 1:
            pairs = zip(terms[::2], terms[1::2], strict=True)
            terms = [p.op(add, when, a, b, n=n)[0] for a, b in pairs]
            when += spec.alu_cycles
        if when < t + levels * spec.alu_cycles:
            terms = [p.op(Op.MOV, when, terms[0], n=n)[0]]
            when += spec.alu_cycles
        if alone:
            _, out = p.op(Op.MOV, when, terms[0], n=n, out=12)
        else:
            residual = p.load(places.residual.at(first), 36, when, n=n, da=1)
            _, out = p.op(add, when, terms[0], residual, n=n, out=12)
        p.keep(goal.at(first), out, when, n=n, da=1)
        done = max(done, schedule.place(p, ready - first_read, "reduce") + p.ready)
    return done


@dataclass(frozen=True)
class Collective:
    """Programs of a collective, one per chip, and where its 4-byte words lie on every chip.

    source: the chip's own words (reduce-scatter: those for chip j from word j * words on);
    result: all-reduce and reduce-scatter: the sums (zero before the launch); broadcast: the
    root's words on the other chips; all-gather: the words of chip c XOR k are in received[k].
    """

    programs: list[Program]
    source: Place
    result: Place
    received: dict[int, Place]
    cycles: int


def compile_collective(
    operation: str, chips: int, words: int, spec: ChipSpec, *, add: Op = Op.ADD_F32, root: int = 0
) -> Collective:
    """Programs for one collective of ``words`` 4-byte words [words, 320] per chip.

    ``add`` is ADD_F32 or ADD_I32.  Raises ValueError for sizes a node does not have.
    """
    if operation not in OPERATIONS:
        raise ValueError(f"collective {operation!r}: known are {', '.join(OPERATIONS)}")
    if chips not in NODE_SIZES[1:]:
        raise ValueError(f"{chips} chips: a node's collective takes 2, 4 or 8")
    if not 1 <= words <= 512:
        raise ValueError(f"{words} words: a one-shot collective takes 1 to 512")
    source = Place((52, 53, 54, 55), 0)
    received = {k: Place(RECEIVED_QUADS[k], 0) for k in range(1, chips)}
    result = Place((44, 45, 46, 47), 0)
    places = ReducePlaces(source, result, received)
    programs = []
    cycles = 0
    for chip in range(chips):
        schedule = Schedule()
        own = places
        if operation in ("all-reduce", "all-gather"):
            end = exchange(schedule, spec, chips, words, 0, places)
        elif operation == "reduce-scatter":
            end = _scatter(schedule, spec, chips, chip, words, places)
            own = ReducePlaces(source.at(chip * words), result, received)
        else:
            end = _broadcast(schedule, spec, chips, chip, root, words, places)
        if operation in ("all-reduce", "reduce-scatter"):
            end = reduce(schedule, spec, chips, words, end, own, add)
        table, _, gangs = schedule.blocks()
        programs.append(program_of([table], gangs, end))
        cycles = max(cycles, end)
    return Collective(programs, source, result, received, cycles)


def _scatter(
    schedule: Schedule, spec: ChipSpec, chips: int, chip: int, words: int, places: ReducePlaces
) -> int:
    """To every neighbour its own words."""
    p = Pass(schedule, spec)
    pace = link_pace(spec, 4 * words)
    for k in range(1, chips):
        send_to(p, pace, places.partial.at((chip ^ k) * words), words, [k], _START + k)
        receive_from(p, spec, pace, places.received[k], words, k, _START + k)
    return schedule.place(p, 0, "scatter") + p.ready


def _broadcast(
    schedule: Schedule,
    spec: ChipSpec,
    chips: int,
    chip: int,
    root: int,
    words: int,
    places: ReducePlaces,
) -> int:
    """The root's words to everybody; all chips keep the same cycles."""
    p = Pass(schedule, spec)
    pace = spec.send_spacing_cycles  # nobody sends where it receives
    if chip == root:
        for i, group in enumerate(edges(range(1, chips))):
            send_to(p, pace, places.partial, words, group, _START + i)
    else:
        k = chip ^ root
        last = edges(range(1, chips)).index(
            next(group for group in edges(range(1, chips)) if k in group)
        )
        receive_from(p, spec, pace, places.residual, words, k, _START + last)
    start = schedule.place(p, 0, "broadcast")
    return start + max(p.ready, p.span())
