"""Which SEND meets which RECEIVE: one derivation for the proof, for traces and for reports.

The k-th vector sent on a link is the k-th that its other end receives: links keep order, and
nothing else addresses a vector.  ``check_fabric`` proves that each is received in its cycle;
``find_flights`` joins vectors that one Send block hands to one Receive block.  Knows the SEND and
RECEIVE instructions of real programs and the cables; sees no data and no SRAM (``chip.checker``
proves each program by itself).  Vectorised over all instructions of all chips; equal programs are
expanded once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from chip.checker import ERROR, FINDINGS_PER_RULE, Finding
from chip.isa import C2C_QUEUE, LINKS, Op
from chip.program import Program, expand_columns
from chip.spec import ChipSpec

Ints = NDArray[np.int64]


class _Vectors:
    """SEND or RECEIVE instructions of all chips, sorted by (end, cycle); end = chip * 16 + link."""

    def __init__(self, op: Op, end: Ints, cycle: Ints, block: Ints) -> None:
        order = np.lexsort((block, cycle, end))
        self.op = op
        self.end, self.cycle, self.block = end[order], cycle[order], block[order]

    def of(self, end: Ints) -> tuple[Ints, Ints]:
        """Where the vectors of these ends begin, and how many they are."""
        first: Ints = np.searchsorted(self.end, end)
        return first, np.searchsorted(self.end, end, side="right") - first

    def rank(self) -> Ints:
        """int64 [n]: how many of the same end come before each."""
        return np.arange(len(self.end), dtype=np.int64) - self.of(self.end)[0]

    def text(self, row: int) -> str:
        """Chip, link, instruction, cycle and block in words."""
        chip, link = divmod(int(self.end[row]), LINKS)
        return (
            f"chip {chip} c2c[{link}] {self.op.name} (block {self.block[row]}) "
            f"at cycle {self.cycle[row]}"
        )

    def finding(self, row: int, code: str, other: str, mend: str) -> Finding:
        """A finding about one instruction."""
        chip, link = divmod(int(self.end[row]), LINKS)
        block = int(self.block[row])
        what = f"{self.op.name} on link {link} (block {block})"
        cycle, queue = int(self.cycle[row]), C2C_QUEUE + link
        return Finding(code, chip, cycle, queue, what, other, mend, ERROR, block)


@dataclass(frozen=True)
class _Meetings:
    """Every vector of a launch with both its ends.

    peer: int64 [chips * 16], the end at the other side of each, or -1.  partner: int64 [sends],
    the row of ``receives`` that takes each vector, or -1.  alone: rows of ``receives``, wired,
    for which nothing is sent.
    """

    sends: _Vectors
    receives: _Vectors
    peer: Ints
    partner: Ints
    alone: Ints


def _meet(programs: Sequence[Program], program_of_chip: Ints, peer: Ints) -> _Meetings:
    """The n-th SEND of an end meets the n-th RECEIVE at its other end."""
    sends, receives = _vectors(programs, program_of_chip)
    first, count = receives.of(peer[sends.end])
    at = sends.rank()
    met = (peer[sends.end] >= 0) & (at < count)
    partner = np.where(met, first + at, -1)
    alone = peer[receives.end] >= 0
    alone[partner[met]] = False
    return _Meetings(sends, receives, peer, partner, np.flatnonzero(alone))


def _vectors(programs: Sequence[Program], program_of_chip: Ints) -> tuple[_Vectors, _Vectors]:
    columns: dict[Op, list[tuple[Ints, Ints, Ints]]] = {Op.SEND: [], Op.RECEIVE: []}
    for number, program in enumerate(programs):
        runs = np.flatnonzero(program_of_chip == number)
        blocks = program.blocks
        wanted = np.isin(blocks["op"], (Op.SEND, Op.RECEIVE))
        wanted &= (blocks["queue"] >= C2C_QUEUE) & (blocks["queue"] < C2C_QUEUE + LINKS)
        used = np.flatnonzero(wanted)
        if len(runs) == 0 or len(used) == 0:
            continue
        rows = expand_columns(replace(program, blocks=blocks[used]))
        for op, parts in columns.items():
            of = rows.op == op
            link, cycle, block = rows.queue[of] - C2C_QUEUE, rows.cycle[of], used[rows.block[of]]
            end = (runs[:, None] * LINKS + link).reshape(-1)
            parts.append((end, np.tile(cycle, len(runs)), np.tile(block, len(runs))))
    empty = (np.zeros(0, np.int64),) * 3
    found = []
    for op, parts in columns.items():
        end, cycle, block = (np.concatenate(c) for c in zip(empty, *parts, strict=True))
        found.append(_Vectors(op, end, cycle, block))
    return found[0], found[1]


def _peers(cables: Ints, chips: int) -> tuple[Ints, list[Finding]]:
    """int64 [chips * 16]: the end at the other side of each, or -1; and what is wrong."""
    peer = np.full(chips * LINKS, -1, np.int64)
    findings = []
    known = ((cables[:, ::2] >= 0) & (cables[:, ::2] < chips)).all(axis=1)
    known &= ((cables[:, 1::2] >= 0) & (cables[:, 1::2] < LINKS)).all(axis=1)
    for a, link_a, b, link_b in cables[~known].tolist():
        other = f"it leads to chip {b} link {link_b}"
        mend = f"use chips 0..{chips - 1} and links 0..{LINKS - 1}"
        findings.append(Finding("link", a, 0, C2C_QUEUE + link_a, "cable", other, mend))
    cables = cables[known]
    near, far = cables[:, 0] * LINKS + cables[:, 1], cables[:, 2] * LINKS + cables[:, 3]
    ends, others = np.concatenate([near, far]), np.concatenate([far, near])
    peer[ends] = others
    distinct, count = np.unique(ends, return_counts=True)
    for end in distinct[count > 1].tolist():
        chip, link = divmod(end, LINKS)
        other = f"two cables end at chip {chip} link {link}"
        mend = "give every link one cable"
        findings.append(Finding("link", chip, 0, C2C_QUEUE + link, "cable", other, mend))
    return peer, findings


# -- the proof -----------------------------------------------------------------------------------


def check_fabric(
    programs: Sequence[Program], program_of_chip: Sequence[int], cables: ArrayLike, spec: ChipSpec
) -> list[Finding]:
    """Findings about the vectors between chips; chip c runs ``programs[program_of_chip[c]]``.

    cables: integers [n, 4], (chip a, link of a, chip b, link of b).  For every directed link, the
    n-th SEND and the n-th RECEIVE at the other end are exactly ``send_to_receive_cycles`` apart and
    both exist; SENDs of a link are at least ``cycles_per_vector`` apart (2952/125 on the default
    chip, exactly); nothing uses a link without a cable.  A link on which one instruction is wrong
    gets one finding, about the first pair that does not match.  Errors only, by chip and cycle; at
    most 100 of a kind.
    """
    chips = len(program_of_chip)
    peer, findings = _peers(np.asarray(cables, np.int64).reshape(-1, 4), chips)
    meetings = _meet(programs, np.asarray(program_of_chip, np.int64), peer)
    for vectors, code in ((meetings.sends, "link"), (meetings.receives, "missing")):
        unwired = np.flatnonzero(peer[vectors.end] < 0)
        _add(findings, vectors, unwired, code, _no_cable, "use a wired link")
    _check_occupancy(meetings.sends, spec, findings)
    _check_meetings(meetings, spec, findings)
    return sorted(findings, key=lambda f: (f.chip or 0, f.cycle, f.queue, f.code))


def _no_cable(_: int) -> str:
    return "no cable leads from this link"


def _add(
    findings: list[Finding],
    vectors: _Vectors,
    rows: Ints,
    code: str,
    other: Callable[[int], str],
    mend: str,
) -> None:
    for row in rows[:FINDINGS_PER_RULE].tolist():
        findings.append(vectors.finding(row, code, other(row), mend))


def _check_occupancy(sends: _Vectors, spec: ChipSpec, findings: list[Finding]) -> None:
    rate = spec.cycles_per_vector
    apart = np.diff(sends.cycle) * rate.denominator < rate.numerator
    rows = np.flatnonzero(apart & (sends.end[1:] == sends.end[:-1])) + 1

    def nearer(row: int) -> str:
        return f"a vector occupies the link for {rate} cycles, and {sends.text(row - 1)} is nearer"

    _add(findings, sends, rows, "link", nearer, "send later")


def _check_meetings(meetings: _Meetings, spec: ChipSpec, findings: list[Finding]) -> None:
    """Both ends exist and are as far apart as the way between them is long."""
    sends, receives, peer = meetings.sends, meetings.receives, meetings.peer
    partner, delay = meetings.partner, spec.send_to_receive_cycles
    wrong = (peer[sends.end] >= 0) & ((partner < 0) | (_late(meetings, spec) != 0))
    bad, alone = np.flatnonzero(wrong), meetings.alone
    # of every link the first
    bad = bad[np.unique(sends.end[bad], return_index=True)[1]]
    alone = alone[np.unique(receives.end[alone], return_index=True)[1]]
    at = sends.rank()

    def received(row: int) -> str:
        chip, link = divmod(int(peer[sends.end[row]]), LINKS)
        arrives = f"arrives at chip {chip} link {link} at cycle {sends.cycle[row] + delay}"
        if partner[row] < 0:
            return f"vector {at[row]} of the link {arrives}, where no RECEIVE is left for it"
        text = receives.text(int(partner[row]))
        return f"vector {at[row]} of the link {arrives}, taken by {text}"

    def unsent(row: int) -> str:
        chip, link = divmod(int(peer[receives.end[row]]), LINKS)
        return (
            f"chip {chip} link {link} sends no vector for it, at cycle "
            f"{receives.cycle[row] - delay} or any other"
        )

    mend = f"dispatch the RECEIVE {delay} cycles after its SEND"
    _add(findings, sends, bad, "link", received, mend)
    _add(findings, receives, alone, "missing", unsent, mend)


def _late(meetings: _Meetings, spec: ChipSpec) -> Ints:
    """int64 [sends]: cycles that each vector is taken too late; 0 where nobody takes it."""
    if not len(meetings.receives.cycle):
        return np.zeros_like(meetings.partner)
    taken = meetings.receives.cycle[np.maximum(meetings.partner, 0)]
    late = taken - meetings.sends.cycle - spec.send_to_receive_cycles
    return np.where(meetings.partner >= 0, late, 0)


# -- flights -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Flights:
    """Vectors that one Send block hands to one Receive block one after another.

    In the order of cables and time; int64 [flights] each.  chip, link, block, sent: who sends, and
    the dispatch cycle of the first vector; to_chip, to_link, to_block, received: the other end;
    vectors: how many.
    """

    chip: Ints
    link: Ints
    block: Ints
    sent: Ints
    to_chip: Ints
    to_link: Ints
    to_block: Ints
    received: Ints
    vectors: Ints

    def __len__(self) -> int:
        return len(self.chip)


class FlightError(Exception):
    """Programs whose vectors do not meet: who, where, and what would mend it, in one line."""


def find_flights(
    programs: Sequence[Program], program_of_chip: Sequence[int], cables: ArrayLike, spec: ChipSpec
) -> Flights:
    """All flights of one launch, in which chip c runs ``programs[program_of_chip[c]]``.

    cables: as of ``check_fabric``.  Raises FlightError where a link carries vectors that nobody
    receives in time.
    """
    wired = np.asarray(cables, np.int64).reshape(-1, 4)
    peer, _ = _peers(wired, len(program_of_chip))
    meetings = _meet(programs, np.asarray(program_of_chip, np.int64), peer)
    sends, receives = meetings.sends, meetings.receives
    ends = np.stack([wired[:, :2], wired[:, 2:]], axis=1).reshape(-1, 2) @ np.array([LINKS, 1])
    _, sent = sends.of(ends)
    _, taken = receives.of(peer[ends])
    uneven = np.flatnonzero(sent != taken)
    if len(uneven):
        i = int(uneven[0])
        raise FlightError(
            f"{_where(ends[i], peer)}: {sent[i]} vectors sent, {taken[i]} received; prove the "
            "programs with lpu check"
        )
    place = np.zeros(len(peer), np.int64)  # of each end, in the order of the cables
    place[ends] = np.arange(len(ends))
    send = np.flatnonzero(peer[sends.end] >= 0)
    send = send[np.argsort(place[sends.end[send]], kind="stable")]
    receive = meetings.partner[send]
    wrong = np.flatnonzero(_late(meetings, spec)[send])
    if len(wrong):
        i = int(wrong[0])
        raise FlightError(
            f"{_where(sends.end[send[i]], peer)}: a vector sent at cycle {sends.cycle[send[i]]} is "
            f"received at {receives.cycle[receive[i]]}, not {spec.send_to_receive_cycles} cycles "
            "later; prove the programs with lpu check"
        )
    new = np.ones(len(send), bool)
    columns = (sends.end[send], sends.block[send], receives.block[receive])
    new[1:] = np.any([np.diff(column) != 0 for column in columns], axis=0)
    begins = np.flatnonzero(new)
    send, receive = send[begins], receive[begins]
    chip, link = np.divmod(sends.end[send], LINKS)
    to_chip, to_link = np.divmod(receives.end[receive], LINKS)
    return Flights(
        chip=chip,
        link=link,
        block=sends.block[send],
        sent=sends.cycle[send],
        to_chip=to_chip,
        to_link=to_link,
        to_block=receives.block[receive],
        received=receives.cycle[receive],
        vectors=np.diff(np.append(begins, len(new))),
    )


def _where(end: np.int64, peer: Ints) -> str:
    chip, link = divmod(int(end), LINKS)
    to_chip, to_link = divmod(int(peer[end]), LINKS)
    return f"chip {chip} link {link} to chip {to_chip} link {to_link}"
