"""From one group of chips to the next: the vectors every chip of a group holds, over real cables.

Every chip of a group holds the same words, and every chip of the next group is to hold them too.
*Carriers* are cables between the two groups, at most one at a chip: each takes a share of the
words across, and the chip it ends at spreads its share over its group while it still arrives.
Where every chip has a carrier, all words may cross on each instead; the shorter way is taken.

Groups are ``tp`` chips of one node, whose chips differ by XOR (see ``interconnect.wiring.node``).
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from chip import isa
from chip.isa import Op
from chip.program import BlockTable
from chip.scheduling import CompileError, Pass, Place, Schedule
from chip.spec import ChipSpec
from interconnect.collectives.node import (
    link_pace,
    receive_words,
    send_words,
    spread_words,
)
from interconnect.wiring import Topology

#: Cycle of a handover at which the first Send leaves: room for its Read.
LEAD = 40
#: Words that a pass adds to others: a longer one would write a slice while it still reads it.
_ADDED_WORDS = 10
#: Stream codes of what crosses, by the link's edge (west, east); no collective uses them.
_LEAVE, ARRIVE = (48, 12), (14, 50)
_PATH_STEPS = 200_000


@dataclass(frozen=True)
class Carrier:
    """Words first .. first + words - 1 from ``sender`` on ``link`` to ``receiver`` on ``entry``.

    sender, receiver: numbers of chips within their groups.
    """

    sender: int
    link: int
    receiver: int
    entry: int
    first: int
    words: int


@dataclass(frozen=True)
class Handover:
    """How ``words`` words get from one group to the next, a vector every ``pace`` cycles."""

    words: int
    carriers: tuple[Carrier, ...]
    spread: bool
    pace: int

    def leaving(self, chip: int) -> Carrier | None:
        """What chip ``chip`` of the first group sends."""
        return next((c for c in self.carriers if c.sender == chip), None)

    def arriving(self, chip: int) -> Carrier | None:
        """What chip ``chip`` of the second group receives."""
        return next((c for c in self.carriers if c.receiver == chip), None)


@dataclass(frozen=True)
class HandoverPlaces:
    """words: where they lie on every chip of both groups, an east quad; inbox: another east quad
    for what crosses; received[k]: for what neighbour k spreads; added: fp32 words, an east quad
    too, that what comes is added to.
    """

    words: Place
    inbox: Place
    received: dict[int, Place]
    added: Place | None = None


def group_path(topology: Topology, tp: int, groups: int) -> list[int]:
    """``groups`` groups of ``tp`` chips, by number, each joined to the next by a cable.

    The group after a group is the next one of its rack where a cable leads there, so that equal
    racks are passed alike.  Raises CompileError when the topology has no such path.
    """
    total = topology.chips // tp
    if groups > total:
        raise CompileError(
            f"{groups} pipeline stages of {tp} chips: {topology.chips} chips have {total} groups; "
            "use fewer stages or more chips"
        )
    ends = topology.cables[:, ::2].astype(np.int64) // tp
    joined: list[set[int]] = [set() for _ in range(total)]
    for a, b in ends[ends[:, 0] != ends[:, 1]].tolist():
        joined[a].add(b)
        joined[b].add(a)
    per_rack = max(1, topology.chips_per_node * topology.nodes_per_rack // tp)

    def onward(group: int, used: NDArray[np.bool_]) -> list[int]:
        rack = group // per_rack
        free = [g for g in joined[group] if not used[g]]
        key = [
            (g // per_rack != rack, (g // per_rack - rack) % total, (g - group) % per_rack)
            for g in free
        ]
        return [g for _, g in sorted(zip(key, free, strict=True), reverse=True)]

    used = np.zeros(total, bool)
    path, used[0] = [0], True
    choices = [onward(0, used)]
    for _ in range(_PATH_STEPS):
        if len(path) == groups:
            return path
        rest = [
            g
            for g in range(path[-1] // per_rack * per_rack, (path[-1] // per_rack + 1) * per_rack)
            if g < total and not used[g]
        ]
        # a rack is left when nothing of it remains, so that none is passed by
        while choices[-1] and choices[-1][-1] // per_rack != path[-1] // per_rack and rest:
            choices[-1].pop()
        if choices[-1]:
            group = choices[-1].pop()
            path.append(group)
            used[group] = True
            choices.append(onward(group, used))
            continue
        choices.pop()
        used[path.pop()] = False
        if not path:
            break
    found = _path_by_nodes(topology, tp, groups)
    if found is None:
        raise CompileError(
            f"topology {topology.name}: no path was found that joins {groups} groups of {tp} "
            "chips cable by cable; use fewer groups: fewer chips, or more of them in a group (--tp)"
        )
    return found


def _path_by_nodes(topology: Topology, tp: int, groups: int) -> list[int] | None:
    """As ``group_path``, node after node; None where there is none.

    A node is entered at one of its groups and left by another, and all of its groups are joined:
    only these two are to be chosen.  The search of ``group_path`` takes the next group in order,
    which may leave a node too soon to come back to it.
    """
    size = topology.chips_per_node // tp
    if size < 2:
        return None
    nodes = group_path(topology, topology.chips_per_node, -(-groups // size))
    ends = topology.cables[:, ::2].astype(np.int64) // tp
    pairs = np.unique(np.concatenate([ends, ends[:, ::-1]]), axis=0)
    # by node: each group it may be entered at, and from which (entry, exit) of the node before
    anywhere = range(nodes[0] * size, (nodes[0] + 1) * size)
    entered: list[dict[int, tuple[int, int]]] = [dict.fromkeys(anywhere, (-1, -1))]
    for node, after in itertools.pairwise(nodes):
        crossing = pairs[(pairs[:, 0] // size == node) & (pairs[:, 1] // size == after)]
        reached: dict[int, tuple[int, int]] = {}
        for leave, enter in crossing.tolist():
            entry = next((e for e in entered[-1] if e != leave), None)
            if entry is not None:
                reached.setdefault(enter, (entry, leave))
        entered.append(reached)
    if not entered[-1]:
        return None
    entry, leave, path = min(entered[-1]), -1, []
    for node, ways in zip(reversed(nodes), reversed(entered), strict=True):
        inside = [g for g in range(node * size, (node + 1) * size) if g not in (entry, leave)]
        path.append([entry, *inside, *([leave] if leave >= 0 else [])])
        entry, leave = ways[entry]
    return [group for part in reversed(path) for group in part][:groups]


def plan_handover(
    topology: Topology, tp: int, first: int, second: int, words: int, spec: ChipSpec
) -> Handover:
    """Carriers of ``words`` words from group ``first`` to group ``second``."""
    pairs: list[tuple[int, int, int, int]] = []
    senders: set[int] = set()
    receivers: set[int] = set()
    for sender in range(tp):
        chip = first * tp + sender
        for link in np.flatnonzero(topology.peer[chip] // tp == second).tolist():
            peer = int(topology.peer[chip, link])
            receiver, entry = peer - second * tp, int(topology.peer_link[chip, link])
            if peer < 0 or sender in senders or receiver in receivers:
                continue
            senders.add(sender)
            receivers.add(receiver)
            pairs.append((sender, link, receiver, entry))
    if not pairs:
        raise CompileError(f"no cable leads from group {first} of {tp} chips to group {second}")
    share = -(-words // len(pairs))
    spacing = spec.send_spacing_cycles
    if len(pairs) == tp and 4 * words * spacing <= 8 * share * spacing + spec.hop_cycles:
        return Handover(words, tuple(Carrier(*pair, 0, words) for pair in pairs), False, spacing)
    carriers = [
        Carrier(*pair, i * share, min(share, words - i * share))
        for i, pair in enumerate(pairs)
        if i * share < words
    ]
    return Handover(words, tuple(carriers), tp > 1, link_pace(spec, 4 * share))


def handover_blocks(
    spec: ChipSpec,
    tp: int,
    chip: int,
    out: Handover | None,
    into: Handover | None,
    places: HandoverPlaces,
    source: Place | None = None,
) -> tuple[BlockTable, list[tuple[int, ...]], int]:
    """Blocks of chip ``chip`` of a group: what it sends by ``out`` and takes by ``into``.

    Both begin at cycle 0, their first Sends at LEAD.  source: where the words of ``out`` lie, if
    not in ``places``.  Returns the blocks, their gangs, and the cycle at which the words of
    ``into`` are readable (the last dispatch without any).
    """
    schedule = Schedule()
    p = Pass(schedule, spec)
    leaving = None if out is None else out.leaving(chip)
    if out is not None and leaving is not None:
        east = leaving.link >= isa.LINKS // 2
        send_words(
            p,
            out.pace,
            (source or places.words).at(leaving.first),
            leaving.words,
            [leaving.link],
            _LEAVE[east],
            LEAD,
        )
    shares = [0] * tp
    if into is not None:
        arriving = into.arriving(chip)
        if arriving is not None:
            east = arriving.entry >= isa.LINKS // 2
            receive_words(
                p,
                spec,
                into.pace,
                places.inbox.at(arriving.first),
                arriving.words,
                arriving.entry,
                ARRIVE[east],
                LEAD,
            )
        if into.spread:
            for carrier in into.carriers:
                shares[carrier.receiver ^ chip] = carrier.words
            own = None if arriving is None else places.inbox.at(arriving.first)
            turn = _turn(spec, into.pace, places.inbox)
            spread_words(p, spec, into.pace, own, shares, LEAD + turn, places.received)
    end = 0
    if p.blocks:
        start = schedule.place(p, 0, "handover blocks")
        assert start == 0, "a handover collides with itself"
        end = max(p.ready, p.span())
    if into is not None:
        end = _copy(schedule, spec, chip, into, places, end)
    table, _, gangs = schedule.blocks()
    return table, gangs, end


def _turn(spec: ChipSpec, pace: int, inbox: Place) -> int:
    """Cycles from a Send across to the Send that spreads its vector.

    The least for which no Read of the inbox meets a Write to it, whichever edges are used.
    """
    hops = (inbox.position - isa.WEST_EDGE, isa.EAST_EDGE - inbox.position)
    written = [spec.send_to_receive_cycles + spec.receive_cycles + h for h in hops]
    least = max(written) + spec.write_cycles + spec.read_cycles + max(hops)
    for turn in range(least, least + pace):
        # east links are served one cycle before the west ones, or there are none of them
        reads = {turn + late - spec.read_cycles - h for late, h in ((0, hops[1]), (1, hops[0]))}
        reads.add(turn - spec.read_cycles - hops[0])
        if all((r - w) % pace for r in reads for w in written):
            return turn
    raise CompileError(
        f"chip.send_spacing_cycles is {spec.send_spacing_cycles}: too short to spread a vector"
    )


def _copy(
    schedule: Schedule,
    spec: ChipSpec,
    chip: int,
    into: Handover,
    places: HandoverPlaces,
    ready: int,
) -> int:
    """What arrived and what was spread, to its place among the words."""
    done = ready
    for carrier in into.carriers:
        k = carrier.receiver ^ chip
        if not into.spread and k:
            continue
        source = places.inbox.at(carrier.first) if k == 0 else places.received[k]
        most = carrier.words if places.added is None else _ADDED_WORDS
        for first in range(0, carrier.words, most):
            p, n, word = (
                Pass(schedule, spec),
                min(most, carrier.words - first),
                carrier.first + first,
            )
            value = p.load(source.at(first), 8 + source.inward, 40, n=n, da=1)
            first_read = p.first_read(value, level=True)
            if places.added is None:
                _, out = p.op(Op.MOV, 40, value, n=n, out=12)
            else:
                own = p.load(places.added.at(word), 36, 40, n=n, da=1)
                first_read = min(first_read, p.first_read(own))
                _, out = p.op(Op.ADD_F32, 40, value, own, n=n, out=12)
            p.keep(places.words.at(word), out, 40, n=n)
            done = max(done, schedule.place(p, ready - first_read, "copy") + p.ready)
    return done
