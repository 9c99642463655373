"""The proof that programs of many chips fit each other: each vector sent is received in its cycle.

Knows the SEND and RECEIVE instructions of real programs and the cables; sees no data and no SRAM
(``chip.checker`` proves each program by itself).  Vectorised over all instructions of all chips;
equal programs are expanded once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

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
        order = np.lexsort((cycle, end))
        self.op = op
        self.end, self.cycle, self.block = end[order], cycle[order], block[order]

    def rank(self) -> Ints:
        """int64 [n]: how many of the same end come before each."""
        number = np.arange(len(self.end), dtype=np.int64)
        ranks: Ints = number - np.searchsorted(self.end, self.end)
        return ranks

    def text(self, row: int) -> str:
        """Chip, link, instruction, cycle and block in words."""
        chip, link = divmod(int(self.end[row]), LINKS)
        return (f"chip {chip} c2c[{link}] {self.op.name} (block {self.block[row]}) "
                f"at cycle {self.cycle[row]}")  # fmt: skip

    def finding(self, row: int, code: str, other: str, mend: str) -> Finding:
        """A finding about one instruction."""
        chip, link = divmod(int(self.end[row]), LINKS)
        block = int(self.block[row])
        return Finding(code, chip, int(self.cycle[row]), C2C_QUEUE + link,
                       f"{self.op.name} on link {link} (block {block})", other, mend, ERROR,
                       block)  # fmt: skip


def check_fabric(
    programs: Sequence[Program],
    program_of_chip: Sequence[int],
    cables: ArrayLike,
    spec: ChipSpec,
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
    sends, receives = _vectors(programs, np.asarray(program_of_chip, np.int64))
    for vectors, code in ((sends, "link"), (receives, "missing")):
        _add(findings, vectors, np.flatnonzero(peer[vectors.end] < 0), code,
             lambda row: "no cable leads from this link", "use a wired link")  # fmt: skip
    _check_occupancy(sends, spec, findings)
    _match(sends, receives, peer, spec, findings)
    return sorted(findings, key=lambda f: (f.chip or 0, f.cycle, f.queue, f.code))


def _peers(cables: Ints, chips: int) -> tuple[Ints, list[Finding]]:
    """int64 [chips * 16]: the end at the other side of each, or -1; and what is wrong."""
    peer = np.full(chips * LINKS, -1, np.int64)
    findings = []
    known = ((cables[:, ::2] >= 0) & (cables[:, ::2] < chips)).all(axis=1)
    known &= ((cables[:, 1::2] >= 0) & (cables[:, 1::2] < LINKS)).all(axis=1)
    for a, link_a, b, link_b in cables[~known].tolist():
        findings.append(Finding(
            "link", a, 0, C2C_QUEUE + link_a, "cable", f"it leads to chip {b} link {link_b}",
            f"use chips 0..{chips - 1} and links 0..{LINKS - 1}",
        ))  # fmt: skip
    cables = cables[known]
    near, far = cables[:, 0] * LINKS + cables[:, 1], cables[:, 2] * LINKS + cables[:, 3]
    ends, others = np.concatenate([near, far]), np.concatenate([far, near])
    peer[ends] = others
    distinct, count = np.unique(ends, return_counts=True)
    for end in distinct[count > 1].tolist():
        chip, link = divmod(end, LINKS)
        findings.append(Finding("link", chip, 0, C2C_QUEUE + link, "cable",
                                f"two cables end at chip {chip} link {link}",
                                "give every link one cable"))  # fmt: skip
    return peer, findings


def _vectors(programs: Sequence[Program], program_of_chip: Ints) -> tuple[_Vectors, _Vectors]:
    columns: dict[Op, list[tuple[Ints, Ints, Ints]]] = {Op.SEND: [], Op.RECEIVE: []}
    for number, program in enumerate(programs):
        runs = np.flatnonzero(program_of_chip == number)
        blocks = program.blocks
        used = np.flatnonzero(
            np.isin(blocks["op"], (Op.SEND, Op.RECEIVE)) & (blocks["queue"] >= C2C_QUEUE)
            & (blocks["queue"] < C2C_QUEUE + LINKS)
        )  # fmt: skip
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


def _add(
    findings: list[Finding], vectors: _Vectors, rows: Ints, code: str,
    other: Callable[[int], str], mend: str,
) -> None:  # fmt: skip
    for row in rows[:FINDINGS_PER_RULE].tolist():
        findings.append(vectors.finding(row, code, other(row), mend))


def _check_occupancy(sends: _Vectors, spec: ChipSpec, findings: list[Finding]) -> None:
    rate = spec.cycles_per_vector
    apart = np.diff(sends.cycle) * rate.denominator < rate.numerator
    rows = np.flatnonzero(apart & (sends.end[1:] == sends.end[:-1])) + 1
    _add(findings, sends, rows, "link",
         lambda row: f"a vector occupies the link for {rate} cycles, and {sends.text(row - 1)} "
         "is nearer", "send later")  # fmt: skip


def _match(
    sends: _Vectors, receives: _Vectors, peer: Ints, spec: ChipSpec, findings: list[Finding]
) -> None:
    """The n-th SEND of an end against the n-th RECEIVE at its other end."""
    delay = spec.send_to_receive_cycles
    at_sender = peer[receives.end]
    wired = np.flatnonzero(at_sender >= 0)
    wired = wired[np.lexsort((receives.cycle[wired], at_sender[wired]))]
    owner = at_sender[wired]
    rank = np.arange(len(wired)) - np.searchsorted(owner, owner)
    # partners by (end, rank): the n-th of one end is at the end's first row plus n
    first = np.searchsorted(owner, sends.end)
    count = np.searchsorted(owner, sends.end, side="right") - first
    at = sends.rank()
    partner = np.full(len(sends.end), -1, np.int64)
    partner[at < count] = wired[(first + at)[at < count]]
    taken = np.where(partner >= 0, receives.cycle[np.maximum(partner, 0)], 0)
    wrong = (peer[sends.end] >= 0) & ((partner < 0) | (taken - sends.cycle != delay))
    bad = np.flatnonzero(wrong)
    bad = bad[np.unique(sends.end[bad], return_index=True)[1]]  # the first of every link

    def received(row: int) -> str:
        chip, link = divmod(int(peer[sends.end[row]]), LINKS)
        arrives = f"arrives at chip {chip} link {link} at cycle {sends.cycle[row] + delay}"
        if partner[row] < 0:
            return f"vector {at[row]} of the link {arrives}, where no RECEIVE is left for it"
        text = receives.text(int(partner[row]))
        return f"vector {at[row]} of the link {arrives}, taken by {text}"

    mend = f"dispatch the RECEIVE {delay} cycles after its SEND"
    _add(findings, sends, bad, "link", received, mend)
    sent = np.searchsorted(sends.end, owner, side="right") - np.searchsorted(sends.end, owner)
    alone = wired[rank == sent]  # the first RECEIVE of a link beyond its SENDs

    def unsent(row: int) -> str:
        chip, link = divmod(int(peer[receives.end[row]]), LINKS)
        return (f"chip {chip} link {link} sends no vector for it, at cycle "
                f"{receives.cycle[row] - delay} or any other")  # fmt: skip

    _add(findings, receives, alone, "missing", unsent, mend)
