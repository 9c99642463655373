"""Collectives of a node compiled into Send and Receive: what moves, when, on which link.

``all_reduce`` is the one-shot form: every chip multicasts its partial words to all neighbours
and adds what it receives by the tree ((0+1)+(2+3))+((4+5)+(6+7)) over k, the XOR distance, which
for every chip is the same tree over chip ids (see interconnect.node).  It is the latency-optimal
choice for the few kilobytes of one token's residual.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from chip import isa
from chip.isa import Op
from chip.passes import Operand, Pass, Stream
from chip.reservation import Place, Schedule
from chip.spec import ChipSpec
from interconnect.node import link_to

#: Send and Receive stream codes by edge (0 west, 1 east); a receive code per link of the edge.
_SEND = (60, 28)
_RECEIVE_WEST = (0, 4, 8)
_RECEIVE_EAST = (32, 36, 40, 44)


@dataclass(frozen=True)
class ReducePlaces:
    """partial, residual: fp32 words in different east quads; received[k]: a quad per neighbour,
    west for k = 1..3, east for k = 4..7."""

    partial: Place
    residual: Place
    received: dict[int, Place]


def exchange(
    schedule: Schedule, spec: ChipSpec, chips: int, words: int, ready: int, places: ReducePlaces
) -> int:
    """Send ``words`` fp32 words of ``partial`` to all neighbours; returns when theirs are readable."""
    p = Pass(schedule, spec)
    spacing = spec.send_spacing_cycles
    vectors = 4 * words
    start = 80
    tags: dict[int, int] = {}
    for edge in (1, 0):
        neighbours = [k for k in range(1, chips) if (k >= 4) == bool(edge)]
        if not neighbours:
            continue
        code = _SEND[edge]
        queue = isa.C2C_QUEUE + 8 * edge
        value = p.load(places.partial, code, start, queue, n=words, dc=4 * spacing, da=1, dsg=0,
                       dcg=spacing)  # fmt: skip
        for k in neighbours:
            link = link_to(k)
            p.emit(Op.SEND, isa.C2C_QUEUE + link, start, n=vectors, dc=spacing, s0=code, w0=1,
                   want0=value.tag)  # fmt: skip
            arrive = start + spec.send_to_receive_cycles
            inward = _RECEIVE_EAST[k - 4] if edge else _RECEIVE_WEST[k - 1]
            tags[k] = schedule.tag()
            p.emit(Op.RECEIVE, isa.C2C_QUEUE + link, arrive, n=vectors, dc=spacing, out=inward,
                   wo=1, tag=tags[k])  # fmt: skip
            position = isa.EAST_EDGE if edge else isa.WEST_EDGE
            at = arrive + spec.receive_cycles
            diagonals = isa.diagonal(inward, position, at) + spacing * np.arange(vectors)
            goal = places.received[k].position
            p.drive(inward, 1, diagonals, position, goal)
            p.store(places.received[k], Stream(inward, 1, tags[k]), at, position, n=words,
                    dc=4 * spacing, da=1, dcg=spacing)  # fmt: skip
        start += 1
    first_read = min(block["cycle"] for block in p.blocks if block["op"] == Op.READ)
    return schedule.place(p, ready - first_read) + p.ready


def reduce(
    schedule: Schedule, spec: ChipSpec, chips: int, words: int, ready: int, places: ReducePlaces
) -> int:
    """Add the chips' words by the tree, then to ``residual`` in place; returns when readable."""
    p = Pass(schedule, spec)
    t = 40
    terms: list[Operand] = []
    for k in range(chips):
        west = 1 <= k <= 3
        place = places.partial if k == 0 else places.received[k]
        terms.append(p.load(place, 4 * k + (0 if west else 32), t, n=words, da=1))
    first_read = min(block["cycle"] for block in p.blocks)
    level = 0
    while len(terms) > 1:
        terms = [
            p.op(Op.ADD_F32, t + 3 * level, terms[i], terms[i + 1], n=words)[0]
            for i in range(0, len(terms), 2)
        ]
        level += 1
    when = t + 3 * level
    residual = p.load(places.residual, 36, when, n=words, da=1)
    _, out = p.op(Op.ADD_F32, when, terms[0], residual, n=words, out=12, reach=33)
    p.keep(places.residual, out, when, n=words)
    return schedule.place(p, ready - first_read) + p.ready
