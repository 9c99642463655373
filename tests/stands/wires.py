"""Plain Python beside the compiled fabric: one dictionary entry for every vector."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np

from chip.spec import ChipSpec
from interconnect.wires import WireSchedule, first_frames, phases, schedule_messages
from interconnect.wires.frames import forward_frames
from interconnect.wiring import Topology, minimal_routes

SPEC = ChipSpec()


def random_schedule(
    topology: Topology, seed: int, messages: int, *, spec: ChipSpec = SPEC, most: int = 40
) -> WireSchedule:
    """Messages between random chips, of 1..most vectors, readable at random cycles; of several,
    about one in eight has no vectors.
    """
    rng = np.random.default_rng(seed)
    source = rng.integers(0, topology.chips, messages)
    destination = (source + rng.integers(1, topology.chips, messages)) % topology.chips
    vectors = rng.integers(1, most + 1, messages)
    ready = rng.integers(0, 2000, messages)
    if messages > 2:
        vectors[rng.random(messages) < 1 / 8] = 0
    hops, links = minimal_routes(topology, source, destination, np.arange(messages))
    free = np.zeros(topology.chips * 16, np.int64)
    return schedule_messages(
        links,
        hops,
        topology.peer_link,
        vectors,
        first_frames(ready, links[:, 0], spec),
        spec,
        free,
        sources=source,
        destinations=destination,
        ready=ready,
    )


def rows_of(schedule: WireSchedule, rows: np.ndarray) -> WireSchedule:
    """The same schedule with these rows (repeated, reordered or left out)."""
    names = ("chip", "link", "cycle", "vectors", "message", "hop")
    return replace(schedule, **{name: getattr(schedule, name)[rows] for name in names})


def faults_of(schedule: WireSchedule, topology: Topology, spec: ChipSpec = SPEC) -> set[str]:
    """The rules a schedule breaks, vector by vector."""
    phase, forward = phases(spec), forward_frames(spec)
    lead = 11
    faults = set()
    sends: dict[tuple[int, int], list[int]] = {}
    path: dict[tuple[int, int], dict[int, list[tuple[int, int, int]]]] = {}
    for r in range(len(schedule.chip)):
        chip, link = int(schedule.chip[r]), int(schedule.link[r])
        if topology.peer[chip, link] < 0:
            return {"unwired"}
        for i in range(int(schedule.vectors[r])):
            cycle = int(schedule.cycle[r]) + schedule.spacing * i
            sends.setdefault((chip, link), []).append(cycle)
            message, hop = int(schedule.message[r]), int(schedule.hop[r])
            start = int(schedule.cycle[r])
            path.setdefault((message, i), {}).setdefault(hop, []).append((chip, link, cycle))
            if start % schedule.spacing != phase[link]:
                faults.add("phase")
    for cycles in sends.values():
        cycles.sort()
        if any(b - a < schedule.spacing for a, b in pairwise(cycles)):
            faults.add("overlap")
    for m in range(len(schedule.source)):
        for i in range(int(schedule.message_vectors[m])):
            hops = path.pop((m, i), {})
            at, readable = int(schedule.source[m]), int(schedule.ready[m])
            entry: tuple[int, int, int] | None = None
            for hop in range(len(hops)):
                if len(hops.get(hop, [])) != 1:
                    faults.add("route")
                    break
                chip, link, cycle = hops[hop][0]
                if chip != at:
                    faults.add("route")
                if cycle < readable + lead:
                    faults.add("early")
                if entry is not None:
                    before, landed, sent = entry
                    exact = 24 * forward[before, landed, link] + phase[link] - phase[before]
                    if cycle != sent + exact:
                        faults.add("late")
                at, readable = int(topology.peer[chip, link]), cycle + spec.hop_cycles
                entry = link, int(topology.peer_link[chip, link]), cycle
            if at != schedule.destination[m]:
                faults.add("route")
    if path:
        faults.add("vectors")
    return faults
