"""What compiled programs say for a report: machine, belt, SRAM, utilisation of units and links.

Everything here is exact: execution is static, and the run has checked that every chip retired when
its program said.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chip.isa import LINKS, SLICES, Op
from chip.program import Program, expand_columns
from chip.timeline import FAMILIES, SEND_UNIT, UNITS, busy_cycles, timeline
from cluster.report.run_file import MOST_ITEMS, MOST_STAGES, WORD_KINDS
from cluster.tracing import Launched, make_entry
from programs.artifact import Artifact, Bindings

Section = dict[str, Any]

BINS = 96
#: Rows of the SRAM map: cells of equal numbers of words.
CELLS = 64
(FREE, RESERVED, TEMPORARY, BY_POSITION, IMAGE, REWRITTEN, INPUT, OUTPUT) = range(len(WORD_KINDS))


def machine_section(artifact: Artifact, others: Sequence[Section] = ()) -> Section:
    """The chips and cables of an artifact; others: machines beside them."""
    spec = artifact.spec
    per_node = 8 if artifact.chips > 8 and artifact.chips % 8 == 0 else artifact.chips
    return {
        "chip": spec.name,
        "chips": artifact.chips,
        "chips_per_node": per_node,
        "clock_hz": spec.clock_hz,
        "topology": artifact.topology,
        "cables": [[int(value) for value in cable] for cable in artifact.cables],
        "others": list(others),
        "note": f"A cable carries {spec.link_bytes_per_s / 1e9:g} GB/s each way.",
    }


def belt_section(artifact: Artifact, launches: Sequence[Launched]) -> list[Section] | str:
    """The last launches that give tokens, or the last of any, on the belt of their stages."""
    if not launches:
        return "no launch ran"
    last = launches[-1]
    stages = make_entry(artifact, last.entry, last.cycles).stages
    if len(stages) > MOST_STAGES:
        return f"{len(stages):,} stages: too many to draw"
    bounds = [0, *(end for _, _, end in stages)]
    start = 0
    items = []
    for number, launch in enumerate(launches):
        own = bounds
        if launch.entry != last.entry:
            made = make_entry(artifact, launch.entry, launch.cycles).stages
            own = [0, *(end for _, _, end in made)]
        if len(own) == len(bounds):
            label = f"launch {number}" if launch.token is None else launch.token
            items.append({"label": label[:200], "times": [start + at for at in own]})
        start += launch.cycles
    return [
        {
            "name": "tokens on the machine" if len(launches) > 1 else "the launch on the machine",
            "unit": "cycles",
            "per_second": artifact.spec.clock_hz,
            "stages": [name for name, _, _ in stages],
            "items": items[-MOST_ITEMS:],
            "note": "A launch computes, exchanges vectors, and computes again; every boundary is "
            "the cycle at which a first vector is sent or a last one received.  Launches follow "
            "one another: one is in flight.",
        }
    ]


def _edges(cycles: int) -> NDArray[np.int64]:
    bins = min(BINS, max(cycles, 1))
    return np.unique(np.linspace(0, max(cycles, 1), bins + 1).round().astype(np.int64))


def utilisation_sections(artifact: Artifact, launch: Launched) -> tuple[Section, Section | str]:
    """How busy units and links were over the cycles of one launch."""
    edges = _edges(launch.cycles)
    spans = np.diff(edges)
    programs = artifact.programs[launch.entry]
    runs = Counter(artifact.program_of_chip)
    busy = {p: busy_cycles(programs[p], artifact.spec, edges) for p in runs}
    whole = sum((busy[p] * count for p, count in runs.items()), np.zeros((UNITS, len(spans))))
    families = []
    for name, first, end in FAMILIES:
        units = end - first
        if name.startswith("MEM"):
            units = SLICES // 2
        if name.startswith("C2C"):
            units = len({k for a, ka, b, kb in artifact.cables for k in (ka, kb)})
            if not units:
                continue
        ratio = whole[first:end].sum(axis=0) / (units * artifact.chips * spans)
        families.append(
            {
                "name": name,
                "units": units,
                "ratio": ratio.tolist(),
                "mean": float((ratio * spans).sum() / spans.sum()),
            }
        )
    section = {
        "entry": launch.entry,
        "edges": edges.tolist(),
        "families": families,
        "note": "Share of a family's units that an instruction or, on links, a vector occupied; "
        "a MEM slice may read and write in one cycle, which counts twice.",
    }
    if not artifact.cables:
        return section, "one chip has no links"
    ways = [(a, ka, b) for a, ka, b, _ in artifact.cables]
    ways += [(b, kb, a) for a, _, b, kb in artifact.cables]
    total = np.zeros(len(spans))
    most = np.zeros(len(spans))
    parts = []
    for chip, link, to in ways:
        row = busy[artifact.program_of_chip[chip]][SEND_UNIT + link % LINKS] / spans
        total += row
        most = np.maximum(most, row)
        mean = float((row * spans).sum() / spans.sum())
        parts.append({"chip": int(chip), "to": int(to), "ratio": mean})
    links = {
        "entry": launch.entry,
        "edges": edges.tolist(),
        "mean": (total / len(ways)).tolist(),
        "most": most.tolist(),
        "busy": parts,
        "note": "Share of the time in which a vector was on the wire, each direction of a cable by "
        "itself.",
    }
    return section, links


def sram_section(artifact: Artifact, entries: Sequence[str], chip: int = 0) -> Section:
    """What the words of a chip's SRAM are for, from its image, bindings and programs."""
    words = artifact.spec.words_per_slice
    kind = np.full((SLICES, words), FREE, np.int8)
    spec = artifact.spec
    for base, reserved in ((0, spec.reserved_slices_west), (44, spec.reserved_slices_east)):
        kind[[base + number for number in reserved]] = RESERVED
    image = np.zeros((SLICES, words), bool)
    for place, address, rows in artifact.memory[chip]:
        image[place, address : address + len(rows)] = True
    written = np.zeros((SLICES, words), bool)
    scattered = np.zeros((SLICES, words), bool)
    for name in entries:
        program = artifact.program(name, chip)
        stores = np.isin(program.blocks["op"], (Op.WRITE, Op.SCATTER))
        c = expand_columns(Program(program.blocks[stores], program.gangs))
        direct = c.op == Op.WRITE
        written[c.queue[direct], c.a[direct]] = True
        spread = np.flatnonzero(c.op == Op.SCATTER)
        windows = {
            (int(q), int(lo), int(hi))
            for q, lo, hi in zip(
                c.queue[spread], c.of("lo", spread), c.of("hi", spread), strict=True
            )
        }
        for queue, low, high in windows:
            scattered[queue, low : high + 1] = True
    kind[written] = TEMPORARY
    kind[scattered] = BY_POSITION
    kind[image] = IMAGE
    kind[image & (written | scattered)] = REWRITTEN
    bindings = Bindings.of(artifact)
    for named, code in ((bindings.inputs, INPUT), (bindings.outputs, OUTPUT)):
        for places in named.values():
            for place, address, count in places:
                kind[place, address : address + count] = code
    cell = -(-words // CELLS)
    cells = -(-words // cell)
    padded = np.full((SLICES, cell * cells), FREE, np.int8)
    padded[:, :words] = kind
    return {
        "words_per_slice": words,
        "cells": padded.reshape(SLICES, cells, cell).max(axis=2).tolist(),
        "words": [np.bincount(row, minlength=len(WORD_KINDS)).tolist() for row in kind],
        "word_bytes": spec.lanes,
        "note": f"Chip {chip}; a cell of {cell} words has the colour of the kind latest in the "
        "legend of any word in it, so that little things are seen.",
    }


def bytes_read(artifact: Artifact, entry: str) -> int:
    """Bytes that Reads and Gathers of one launch take out of the SRAM of all chips."""
    total = 0
    for program, chips in Counter(artifact.program_of_chip).items():
        own = artifact.programs[entry][program]
        reads = np.isin(own.blocks["op"], (Op.READ, Op.GATHER))
        words = int(timeline(own, artifact.spec).instructions[reads].sum())
        total += chips * words * artifact.spec.lanes
    return total
