"""Timing-only simulation of the fabric: every vector of a wire schedule over every hop.

Each directed link is a queue of vectors in flight.  Senders put the vectors of their runs into it
at the cycle of their Send, after looking whether an intermediate chip has the vector in SRAM;
receivers take out what arrives, as many cycles later as the link is long, and compare it with what
the schedule expects there and then.  Nothing is derived from the schedule that a chip would not
know, and nothing waits: whatever is too late, too early or somebody else's is a
``LockstepViolation``.  Carries vector numbers, not bytes.

Time advances in windows of at most the shortest link latency, so that whatever arrives in a window
was sent before it and links can be played in any order.  The digest is a sum over effects and is
the same for all windows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from chip.faults import LockstepViolation
from chip.isa import LINKS
from chip.jit import jit, jit_inline
from chip.spec import ChipSpec
from interconnect.wires.slots import Ints, WireSchedule, send_lead
from interconnect.wiring import Topology

#: A vector in flight is one number: message, hop and vector in 32, 5 and 26 bits.
_VECTOR_BITS, _HOP_BITS, _MESSAGE_BITS = 26, 5, 32
_NEVER = 1 << 62
_DONE, _COLLISION, _NOT_STORED, _NOT_EXPECTED, _ELSEWHERE = 0, 1, 2, 3, 4


@dataclass(frozen=True)
class FabricRun:
    """What a simulated schedule did.

    digest: 64-bit sum over the effects (message, vector, hop, link, cycle) of all Sends and
    Receives.  vector_hops: vectors received, counted at every hop.  cycles: when the last vector
    is readable in SRAM.  links: int64 [used], directed links; link_vectors: int64 [used], vectors
    received over each.  wall_seconds: by the caller's clock, 0.0 without one.
    """

    digest: int
    vector_hops: int
    cycles: int
    window: int
    links: Ints
    link_vectors: Ints
    cycles_per_vector: Fraction
    wall_seconds: float

    def busy_ratio(self, directed_link: int) -> Fraction:
        """Exact share of the run's cycles for which a directed link carried bits."""
        vectors = int(self.link_vectors[self.links == directed_link].sum())
        return vectors * self.cycles_per_vector / self.cycles if self.cycles else Fraction(0)

    def busiest(self) -> tuple[int, Fraction]:
        """(directed link, busy ratio) of the link with most vectors; (-1, 0) if none ran."""
        if not len(self.links):
            return -1, Fraction(0)
        link = int(self.links[self.link_vectors.argmax()])
        return link, self.busy_ratio(link)


class _Side(NamedTuple):
    """Rows of a schedule grouped by link, by cycle within a link; int64 columns.

    first: [used + 1], rows of a link.  other: of senders, where the receivers keep the hop before;
    of receivers, the chip that expects the run.
    """

    first: Ints
    cycle: Ints
    vectors: Ints
    code: Ints
    other: Ints


class _Pace(NamedTuple):
    """Cycles: of a window, between vectors of a run, of a link, from stored to sent on."""

    window: int
    spacing: int
    latency: int
    store_to_send: int


def _group(schedule: WireSchedule, links: Ints) -> tuple[_Side, Ints]:
    """The rows by link, ``other`` still the row of the schedule, which comes second."""
    directed = schedule.directed_link
    order = np.lexsort((schedule.message, schedule.cycle, directed)).astype(np.int64)
    first = np.searchsorted(directed[order], np.append(links, np.iinfo(np.int64).max))
    code = (schedule.message << _HOP_BITS | schedule.hop) << _VECTOR_BITS
    side = _Side(first, schedule.cycle[order], schedule.vectors[order], code[order], order)
    return side, order


def _before(senders: WireSchedule, receivers: WireSchedule, position: Ints) -> Ints:
    """For every row of ``senders``, where the receivers keep the hop before it; -1 if hop 0."""
    keys = receivers.message << _HOP_BITS | receivers.hop
    order = np.argsort(keys, kind="stable")
    wanted = (senders.message << _HOP_BITS | senders.hop) - 1
    if not len(keys):
        return np.full(len(wanted), -1, np.int64)
    at = np.minimum(np.searchsorted(keys[order], wanted), len(keys) - 1)
    found = keys[order][at] == wanted
    # A hop whose predecessor no receiver expects refers to row -2, which stores nothing.
    place = np.where(found, position[order[at]], -2)
    return np.where(senders.hop == 0, -1, place)


def _expected_chips(schedule: WireSchedule) -> Ints:
    """int64 [rows]: the chip that expects each run: sender of the next hop, or destination."""
    expected = schedule.destination[schedule.message]
    order = np.lexsort((schedule.hop, schedule.message))
    inner = order[:-1][
        (schedule.message[order[:-1]] == schedule.message[order[1:]])
        & (schedule.hop[order[:-1]] + 1 == schedule.hop[order[1:]])
    ]
    following = np.empty(len(order), np.int64)
    following[order[:-1]] = order[1:]
    expected[inner] = schedule.chip[following[inner]]
    return expected


@jit_inline
def _mix(code: int, place: int, cycle: int) -> np.uint64:
    """64 well-mixed bits of one effect (the finaliser of SplitMix64 over three odd multiples)."""
    x = np.uint64(code) * np.uint64(0x9E3779B97F4A7C15)
    x ^= np.uint64(cycle) * np.uint64(0xD6E8FEB86659FD93) + np.uint64(place)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@jit
def _blame(
    fault: Ints, kind: int, link: int, cycle: int, other: int, vector: int, found: int
) -> None:
    fault[0], fault[1], fault[2] = kind, link, cycle
    fault[3], fault[4], fault[5] = other, vector, found


@jit
def _play(
    pace: _Pace,
    links: Ints,
    delay: Ints,
    far_chip: Ints,
    senders: _Side,
    receivers: _Side,
    ring: Ints,
    received: Ints,
    fault: Ints,
) -> np.uint64:
    """Play everything; ``fault`` [6] gets what went wrong, see ``_blame``.

    ring: int64 [used, depth, 2] (vector, cycle of its Send); received: int64 [used], counts.
    One function: its state is kept in local variables, which is where its speed comes from.
    """
    window, spacing, latency, store_to_send = pace
    s_first, s_cycle, s_vectors, s_code, s_before = senders
    r_first, r_cycle, r_vectors, r_code, r_chip = receivers
    used = len(links)
    mask = ring.shape[1] - 1
    head = np.zeros(used, np.int64)
    tail = np.zeros(used, np.int64)
    s_row = s_first[:-1].copy()
    r_row = r_first[:-1].copy()
    s_index = np.zeros(used, np.int64)
    r_index = np.zeros(used, np.int64)
    free = np.full(used, -_NEVER)
    stored = np.zeros(len(r_cycle), np.int64)
    digest = np.uint64(0)
    now = _NEVER
    for k in range(used):
        if s_row[k] < s_first[k + 1]:
            now = min(now, s_cycle[s_row[k]])
        if r_row[k] < r_first[k + 1]:
            now = min(now, r_cycle[r_row[k]] + latency)
    while now < _NEVER:
        end = now + window
        following = _NEVER
        for k in range(used):
            row, index = r_row[k], r_index[k]
            first, last = head[k], tail[k]
            while True:
                arrival, expected = _NEVER, _NEVER
                if first < last:
                    arrival = ring[k, first & mask, 1] + delay[k]
                if row < r_first[k + 1]:
                    expected = r_cycle[row] + spacing * index + latency
                if min(arrival, expected) >= end:
                    break
                vector = ring[k, first & mask, 0]
                if arrival != expected or vector != r_code[row] + index:
                    wanted = r_code[row] + index if expected < _NEVER else -1
                    seen = vector if arrival < _NEVER else -1
                    _blame(fault, _NOT_EXPECTED, links[k], arrival, expected, seen, wanted)
                    return digest
                if r_chip[row] != far_chip[k]:
                    _blame(fault, _ELSEWHERE, links[k], arrival, expected, vector, r_chip[row])
                    return digest
                digest += _mix(vector, links[k] * 2 + 1, arrival)
                first += 1
                index += 1
                stored[row] = index
                if index == r_vectors[row]:
                    row += 1
                    index = 0
            received[k] += first - head[k]
            head[k], r_row[k], r_index[k] = first, row, index
        for k in range(used):
            row, index, last = s_row[k], s_index[k], tail[k]
            while row < s_first[k + 1]:
                cycle = s_cycle[row] + spacing * index
                if cycle >= end:
                    following = min(following, cycle)
                    break
                vector = s_code[row] + index
                if cycle < free[k]:
                    other = ring[k, (last - 1) & mask, 0]
                    _blame(fault, _COLLISION, links[k], cycle, free[k] - spacing, vector, other)
                    return digest
                before = s_before[row]
                if before != -1:
                    readable = _NEVER
                    if before >= 0 and stored[before] > index:
                        readable = r_cycle[before] + spacing * index + latency + store_to_send
                    if cycle < readable:
                        _blame(fault, _NOT_STORED, links[k], cycle, readable, vector, -1)
                        return digest
                free[k] = cycle + spacing
                ring[k, last & mask, 0] = vector
                ring[k, last & mask, 1] = cycle
                last += 1
                digest += _mix(vector, links[k] * 2, cycle)
                index += 1
                if index == s_vectors[row]:
                    row += 1
                    index = 0
            s_row[k], s_index[k], tail[k] = row, index, last
            if head[k] < last:
                following = min(following, ring[k, head[k] & mask, 1] + delay[k])
            if r_row[k] < r_first[k + 1]:
                coming = r_cycle[r_row[k]] + spacing * r_index[k] + latency
                following = min(following, coming)
        now = following
    return digest


def simulate(
    schedule: WireSchedule,
    topology: Topology,
    spec: ChipSpec,
    *,
    window: int | None = None,
    expected: WireSchedule | None = None,
    link_cycles: Ints | None = None,
    clock: Callable[[], float] | None = None,
) -> FabricRun:
    """Play ``schedule`` on ``topology``; raises LockstepViolation for anything out of step.

    window: cycles advanced at once; at most the shortest latency of a link, which is the default
    (every chip looks ahead as far as it can); smaller ones are the windows of a barrier.
    expected: what the receivers go by (default: the same schedule).  link_cycles: int64
    [chips * 16], actual cycles from Send to arrival (default: as scheduled everywhere).
    Memory: about 1 kB per directed link used and 150 B per row, whatever the number of vectors.
    """
    started = clock() if clock else 0.0
    receivers = schedule if expected is None else expected
    for side in (schedule, receivers):
        _require_codes(side)
    links = np.union1d(schedule.directed_link, receivers.directed_link).astype(np.int64)
    if len(links) and not 0 <= links[0] <= links[-1] < topology.chips * LINKS:
        raise ValueError(f"directed links outside 0..{topology.chips * LINKS - 1}")
    delay = np.full(len(links), schedule.latency, np.int64)
    if link_cycles is not None:
        delay = link_cycles[links].astype(np.int64)
    shortest = int(delay.min(initial=schedule.latency))
    window = shortest if window is None else window
    if not 1 <= window <= shortest:
        raise ValueError(f"window of {window} cycles: a link takes {shortest}, so 1..{shortest}")
    far = topology.peer[links // LINKS, links % LINKS].astype(np.int64)
    senders, _ = _group(schedule, links)
    receiving, order = _group(receivers, links)
    position = np.empty(len(order), np.int64)
    position[order] = np.arange(len(order))
    senders = senders._replace(other=_before(schedule, receivers, position)[senders.other])
    receiving = receiving._replace(other=_expected_chips(receivers)[order])
    in_flight = int(delay.max(initial=1)) // schedule.spacing + 1
    ring = np.zeros((len(links), 1 << in_flight.bit_length(), 2), np.int64)
    received = np.zeros(len(links), np.int64)
    fault = np.zeros(6, np.int64)
    store_to_send = spec.hop_cycles - spec.send_to_receive_cycles + send_lead(spec)
    pace = _Pace(window, schedule.spacing, schedule.latency, store_to_send)
    digest = _play(pace, links, delay, far, senders, receiving, ring, received, fault)
    if fault[0] != _DONE:
        raise _violation(fault, topology, schedule.latency)
    last = int(schedule.last_send().max(initial=-spec.hop_cycles))
    return FabricRun(
        int(digest),
        int(received.sum()),
        last + spec.hop_cycles,
        window,
        links,
        received,
        spec.cycles_per_vector,
        clock() - started if clock else 0.0,
    )


def _require_codes(schedule: WireSchedule) -> None:
    for name, bits, first, mend in (
        ("vectors", _VECTOR_BITS, 1, "send fewer at once"),
        ("hop", _HOP_BITS, 0, "add cables that make the routes shorter"),
        ("message", _MESSAGE_BITS, 0, "schedule fewer at once"),
    ):
        values: NDArray[np.int64] = getattr(schedule, name)
        if len(values) and not first <= values.min() <= values.max() < 1 << bits:
            raise ValueError(
                f"{name} {values.min()}..{values.max()}: a run has {first}..{(1 << bits) - 1}; "
                f"{mend}"
            )


def _vector_name(code: int) -> str:
    if code < 0:
        return "nothing"
    row = code >> _VECTOR_BITS
    hop, vector = row & ((1 << _HOP_BITS) - 1), code & ((1 << _VECTOR_BITS) - 1)
    return f"vector {vector} of message {row >> _HOP_BITS} (hop {hop})"


def _violation(fault: Ints, topology: Topology, latency: int) -> LockstepViolation:
    kind, directed, cycle, other, vector, found = (int(x) for x in fault)
    chip, link = directed // LINKS, directed % LINKS
    peer = int(topology.peer[chip, link])
    name = _vector_name(vector)
    if kind == _COLLISION:
        text = (
            f"chip {chip} sends {name} on link {link} to chip {peer} at cycle {cycle}, but the "
            f"link is taken by {_vector_name(found)}, sent at cycle {other}"
        )
        return LockstepViolation(chip, peer, cycle, other, text)
    if kind == _NOT_STORED:
        when = "never" if other >= _NEVER else f"not before cycle {other}"
        text = (
            f"chip {chip} sends {name} on link {link} to chip {peer} at cycle {cycle}, but can "
            f"read it from SRAM {when}"
        )
        return LockstepViolation(chip, peer, cycle, cycle, text)
    if kind == _ELSEWHERE:
        text = (
            f"chip {peer} gets {name} from chip {chip}, link {link}, at cycle {cycle}, but it is "
            f"chip {found} that expects it"
        )
        return LockstepViolation(peer, chip, cycle, cycle - latency, text)
    arrival = "never" if cycle >= _NEVER else f"at cycle {cycle}"
    expectation = "never" if other >= _NEVER else f"at cycle {other}"
    text = (
        f"chip {peer} expects {_vector_name(found)} {expectation} from chip {chip}, link {link}, "
        f"and what arrives is {name}, {arrival}"
    )
    seen, sent = min(cycle, other), (cycle if cycle < _NEVER else other) - latency
    return LockstepViolation(peer, chip, seen, sent, text)
