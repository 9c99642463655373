"""The static check of a wire schedule: proves it legal without playing it.

Knows the rules of ``docs/fabric.md`` about wires and slots; sees columns, never single vectors.
Every rule is a mask or a sort with neighbour comparison, so the check is near-linear in the rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chip.isa import LINKS
from chip.spec import ChipSpec
from interconnect.wires.frames import forward_frames, phases
from interconnect.wires.slots import Ints, WireSchedule, send_lead
from interconnect.wiring import Topology

Bools = NDArray[np.bool_]

#: Rule codes of the findings.
CODES = ("bounds", "unwired", "overlap", "capacity", "phase", "route", "early", "late", "vectors")

#: Findings kept per rule; :func:`count_conflicts` counts all.
FINDINGS_PER_RULE = 100


@dataclass(frozen=True)
class WireFinding:
    """One broken rule: which, on which chips, on which link of the first of them, when."""

    code: str
    chips: tuple[int, ...]
    link: int
    cycles: tuple[int, ...]
    text: str

    def __str__(self) -> str:
        """One line: rule, place, what is wrong."""
        chips = ", ".join(str(c) for c in self.chips)
        cycles = ", ".join(str(c) for c in self.cycles)
        return f"[{self.code}] chips {chips} link {self.link} cycles {cycles}: {self.text}"


class _Findings:
    def __init__(self, schedule: WireSchedule, topology: Topology) -> None:
        self.schedule = schedule
        self.topology = topology
        self.found: list[WireFinding] = []

    def add(
        self, code: str, rows: NDArray[Any], text: Callable[[int], str], others: Ints | None = None
    ) -> None:
        """One finding per row; ``text(i)`` words the i-th; ``others``: what they collide with."""
        s = self.schedule
        for i, row in enumerate(rows[:FINDINGS_PER_RULE].tolist()):
            chip, link = int(s.chip[row]), int(s.link[row])
            peer = -1
            if 0 <= chip < self.topology.chips and 0 <= link < LINKS:
                peer = int(self.topology.peer[chip, link])
            involved = [row] if others is None else [row, int(others[i])]
            cycles = tuple(int(s.cycle[r]) for r in involved)
            words = f"message {s.message[row]} hop {s.hop[row]}: {text(i)}"
            self.found.append(WireFinding(code, (chip, peer), link, cycles, words))


def _neighbours(order: Ints, *keys: Ints) -> tuple[Ints, Ints]:
    """Pairs of rows that follow each other in ``order`` and agree in every key."""
    a, b = order[:-1], order[1:]
    same = np.ones(len(a), np.bool_)
    for key in keys:
        same &= key[a] == key[b]
    return a[same], b[same]


def _by_link(s: WireSchedule) -> tuple[Ints, Ints]:
    """Rows sorted by link and cycle, and the latest row before each that is last to end.

    Returns (rows, blockers): blockers[i] is the row on the same link, earlier in the order, whose
    last vector leaves last; -1 for the first row of a link.
    """
    directed = s.directed_link
    order = np.lexsort((s.message, s.cycle, directed))
    if not len(order):
        return order, order
    begins = np.ones(len(order), np.bool_)
    begins[1:] = directed[order[1:]] != directed[order[:-1]]
    group = np.cumsum(begins) - 1
    last = s.last_send()[order]
    span = int(last.max() - last.min()) + 1
    key = group * span + (last - last.min())
    top = np.maximum.accumulate(key)
    # The position that holds the running maximum: the last one that raised it.
    raised = np.where(key == top, np.arange(len(order)), 0)
    holder = np.maximum.accumulate(raised)
    blockers = np.full(len(order), -1, np.int64)
    blockers[1:] = order[holder[:-1]]
    blockers[begins] = -1
    return order, blockers


def _overlaps(s: WireSchedule) -> tuple[Ints, Ints]:
    rows, blockers = _by_link(s)
    bad = (blockers >= 0) & (s.cycle[rows] < s.last_send()[blockers] + s.spacing)
    return rows[bad], blockers[bad]


def count_conflicts(schedule: WireSchedule) -> int:
    """Runs that start on a directed link before an earlier run has left it."""
    return len(_overlaps(schedule)[0])


def check_wires(schedule: WireSchedule, topology: Topology, spec: ChipSpec) -> list[WireFinding]:
    """All findings about a schedule (at most 100 per rule); an empty list means it is legal.

    Codes: ``bounds`` (no such chip, link, message, hop or number of vectors), ``unwired``,
    ``overlap`` (two runs on a directed link at once), ``capacity`` (m vectors in less than m *
    cycles_per_vector), ``phase`` (not at the link's cycle of a frame), ``route`` (a message's hops
    missing, double, not connected, or not from its source to its destination), ``early`` (a Send
    before its vector can be read), ``late`` (a hop that is not the forward delay after the one
    before), ``vectors`` (a message's vectors do not all travel every hop).
    """
    report = _Findings(schedule, topology)
    _check_bounds(report)
    if report.found:
        return report.found
    _check_links(report, spec)
    _check_routes(report, spec)
    return report.found


def _outside(name: str, values: Ints, low: int, high: int) -> Callable[[int], str]:
    return lambda i: f"{name} {values[i]} is not in {low}..{high - 1}"


def _check_bounds(report: _Findings) -> None:
    s, messages = report.schedule, len(report.schedule.source)
    for name, low, high in (
        ("chip", 0, report.topology.chips),
        ("link", 0, LINKS),
        ("message", 0, messages),
        ("hop", 0, 1 << 30),
        ("vectors", 1, 1 << 30),
        ("cycle", 0, 1 << 60),
    ):
        values: Ints = getattr(s, name)
        wrong = np.flatnonzero((values < low) | (values >= high))
        report.add("bounds", wrong, _outside(name, values[wrong], low, high))
    far = report.topology.peer[np.clip(s.chip, 0, report.topology.chips - 1), s.link % LINKS]
    report.add("unwired", np.flatnonzero(far < 0), lambda i: "no cable leads from this link")


def _check_links(report: _Findings, spec: ChipSpec) -> None:
    s = report.schedule
    rows, blockers = _overlaps(s)
    report.add(
        "overlap",
        rows,
        lambda i: (
            f"starts at cycle {s.cycle[rows[i]]} while message {s.message[blockers[i]]} hop "
            f"{s.hop[blockers[i]]} is on the link until cycle {s.last_send()[blockers[i]]}"
        ),
        blockers,
    )
    exact = spec.cycles_per_vector
    if s.spacing < exact:
        many = np.flatnonzero(s.vectors > 1)
        report.add("capacity", many, lambda i: f"a vector takes {exact} cycles, not {s.spacing}")
    order = np.lexsort((s.cycle, s.directed_link))
    a, b = _neighbours(order, s.directed_link)
    short = (s.cycle[b] - s.cycle[a]) * exact.denominator < s.vectors[a] * exact.numerator
    a, b = a[short], b[short]
    report.add(
        "capacity",
        b,
        lambda i: (
            f"{s.vectors[a[i]]} vectors from cycle {s.cycle[a[i]]} occupy the link for "
            f"{s.vectors[a[i]] * exact} cycles"
        ),
        a,
    )
    off = np.flatnonzero(s.cycle % s.spacing != phases(spec)[s.link] % s.spacing)
    report.add(
        "phase",
        off,
        lambda i: f"link {s.link[off[i]]} sends at {phases(spec)[s.link[off[i]]]} of a frame",
    )


def _check_routes(report: _Findings, spec: ChipSpec) -> None:
    s, peer = report.schedule, report.topology.peer
    order = np.lexsort((s.hop, s.message))
    message = s.message[order]
    first = np.ones(len(order), np.bool_)
    first[1:] = message[1:] != message[:-1]
    begin = np.maximum.accumulate(np.where(first, np.arange(len(order)), 0))
    wrong = order[s.hop[order] != np.arange(len(order)) - begin]
    report.add("route", wrong, lambda i: "a hop of the message is missing or double")
    start = order[first]
    away = start[s.chip[start] != s.source[s.message[start]]]
    report.add("route", away, lambda i: f"the message is at chip {s.source[s.message[away[i]]]}")
    last = order[np.append(first[1:], True)] if len(order) else order
    far = peer[s.chip[last], s.link[last]]
    missed = last[far != s.destination[s.message[last]]]
    report.add(
        "route", missed, lambda i: f"does not end at chip {s.destination[s.message[missed[i]]]}"
    )
    a, b = _neighbours(order, s.message)
    broken = peer[s.chip[a], s.link[a]] != s.chip[b]
    report.add("route", b[broken], lambda i: "does not start where the hop before ends", a[broken])
    _check_times(report, spec, start, a, b)
    lost = np.flatnonzero(s.vectors != s.message_vectors[s.message])
    report.add(
        "vectors",
        lost,
        lambda i: f"{s.vectors[lost[i]]} of {s.message_vectors[s.message[lost[i]]]} vectors",
    )
    travels = (s.message_vectors > 0) & (s.source != s.destination)
    present = np.zeros(len(s.source), np.bool_)
    present[s.message] = True
    for m in np.flatnonzero(travels & ~present)[:FINDINGS_PER_RULE].tolist():
        chips = (int(s.source[m]), int(s.destination[m]))
        text = f"message {m}: none of {s.message_vectors[m]} vectors is sent"
        report.found.append(WireFinding("vectors", chips, -1, (int(s.ready[m]),), text))


def _check_times(report: _Findings, spec: ChipSpec, start: Ints, a: Ints, b: Ints) -> None:
    """Sends after their vector is readable: at the source (start), and hop b after hop a."""
    s = report.schedule
    lead = send_lead(spec)
    soon = start[s.cycle[start] < s.ready[s.message[start]] + lead]
    report.add(
        "early",
        soon,
        lambda i: (
            f"the words are readable at cycle {s.ready[s.message[soon[i]]]}, {lead} before a Send"
        ),
    )
    least = spec.hop_cycles + lead
    gap = s.cycle[b] - s.cycle[a]
    soon_a, soon_b = a[gap < least], b[gap < least]
    report.add(
        "early",
        soon_b,
        lambda i: f"{s.cycle[soon_b[i]] - s.cycle[soon_a[i]]} cycles after a hop of {least}",
        soon_a,
    )
    entry = report.topology.peer_link[s.chip[a], s.link[a]].astype(np.int64)
    frames = forward_frames(spec)[s.link[a], entry, s.link[b]]
    exact = frames * s.spacing + phases(spec)[s.link[b]] - phases(spec)[s.link[a]]
    other = np.flatnonzero((gap != exact) & (gap >= least))
    report.add(
        "late",
        b[other],
        lambda i: f"{gap[other[i]]} cycles after the hop before; not {exact[other[i]]}",
        a[other],
    )
