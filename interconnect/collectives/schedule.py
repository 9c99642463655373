"""When everything of a collective happens: routes and link slots of its steps, and its barriers.

Steps follow one another: after the cycle at which the last vector of a step is readable, known
here and the same for all chips, every chip adds or copies; when the last sum of all is readable
the next step begins.  Timing and programs both take their cycles from here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from chip.isa import LINKS
from chip.jit import jit
from chip.spec import ChipSpec
from interconnect.collectives.quads import BUFFERS, job_cycles, quads_of
from interconnect.collectives.steps import WORD_VECTORS, Step, words_of
from interconnect.wires import Ints, Links, WireSchedule, phases, schedule_messages
from interconnect.wiring import Topology, minimal_routes

#: Routes tried for a message that has several minimal ones.
ROUTE_CANDIDATES = 4


@dataclass(frozen=True)
class TimedSteps:
    """A scheduled collective, step by step.

    wires: the runs of each step.  arrived: cycles from which what a step brought is readable on
    every chip.  ended: cycles from which what it added or copied is.
    """

    wires: list[WireSchedule]
    arrived: list[int]
    ended: list[int]

    @property
    def cycles(self) -> int:
        """Until the last word is readable."""
        return self.ended[-1]


@jit
def _choose(candidates: Links, hops: Ints, vectors: Ints, load: Ints, chosen: Ints) -> None:
    """For each message the candidate whose busiest link stays least busy; adds to ``load``."""
    for m in range(candidates.shape[1]):
        best, worst = 0, np.int64(1 << 62)
        for c in range(candidates.shape[0]):
            top = np.int64(0)
            for h in range(hops[m]):
                top = max(top, load[candidates[c, m, h]])
            if top < worst:
                best, worst = c, top
        chosen[m] = best
        for h in range(hops[m]):
            load[candidates[best, m, h]] += vectors[m]


def balanced_routes(
    topology: Topology, sources: Ints, destinations: Ints, vectors: Ints, via: Ints
) -> tuple[Ints, Links]:
    """(hops int64 [n], links int32 [n, h]): of a few minimal routes the least loaded, in order.

    via: int64 [n], a directed link that is the whole route, or -1.
    """
    given = via >= 0
    free = np.flatnonzero(~given)
    hops = np.ones(len(sources), np.int64)
    if not len(free):
        return hops, via[:, None].astype(np.int32)
    salts = (free * ROUTE_CANDIDATES + np.arange(ROUTE_CANDIDATES)[:, None]).reshape(-1)
    tries = np.tile(free, ROUTE_CANDIDATES)
    count, found = minimal_routes(topology, sources[tries], destinations[tries], salts)
    candidates = found.reshape(ROUTE_CANDIDATES, len(free), -1)
    count = count[: len(free)]
    chosen = np.zeros(len(free), np.int64)
    load = np.zeros(topology.chips * LINKS, np.int64)
    _choose(candidates, count, vectors[free], load, chosen)
    links = np.full((len(sources), candidates.shape[2]), -1, np.int32)
    links[free] = candidates[chosen, np.arange(len(free))]
    hops[free] = count
    links[given, 0] = via[given]
    return hops, links


def send_messages(
    topology: Topology,
    spec: ChipSpec,
    ends: tuple[Ints, Ints],
    vectors: Ints,
    routes: tuple[Ints, Links],
    ready: int,
) -> tuple[WireSchedule, int]:
    """Slots for messages readable at ``ready``, and the cycle from which all have arrived.

    ends: (sources, destinations); routes: (hops, links) of each.
    """
    hops, links = routes
    quads, frame = quads_of(spec), spec.send_spacing_cycles
    first = links[:, 0] % LINKS if links.shape[1] else np.zeros(len(links), np.int64)
    start: Ints = -(-(ready + quads.lead[first] - phases(spec)[first]) // frame)
    wires = schedule_messages(
        links,
        hops,
        topology.peer_link,
        vectors,
        start,
        spec,
        np.zeros(topology.chips * LINKS, np.int64),
        sources=ends[0],
        destinations=ends[1],
        ready=np.full(len(hops), ready, np.int64),
    )
    if not len(wires.chip):
        return wires, ready
    last = np.flatnonzero(np.append(wires.message[1:] != wires.message[:-1], True))
    chip, link, cycle = wires.chip[last], wires.link[last], wires.cycle[last]
    entry = topology.peer_link[chip, link].astype(np.int64)
    plane = first_planes(link, cycle, spec)
    landed = cycle + quads.arrival[entry, plane] + (wires.vectors[last] - 1) * frame
    return wires, int(landed.max())


def first_planes(link: Ints, cycle: Ints, spec: ChipSpec) -> Ints:
    """int64 [n]: byte plane with which runs begin that are sent on ``link`` from ``cycle`` on."""
    quads = quads_of(spec)
    if quads.turns == 1:
        return np.zeros(len(link), np.int64)
    planes: Ints = (cycle // spec.send_spacing_cycles + quads.rotation[link]) % quads.turns
    return planes


def step_cycles(step: Step, spec: ChipSpec) -> int:
    """Cycles from all arrived to all added and copied."""
    if not len(step.jobs):
        return 0
    quads = quads_of(spec)
    chip, _, words, groups, _, terms = step.jobs.T
    busy = np.bincount(chip, job_cycles(words, groups, terms, spec)).max()
    return quads.vxm_lead + int(busy) - 1 + int(quads.store[min(step.target, BUFFERS - 1)])


def schedule_steps(
    topology: Topology,
    steps: list[Step],
    spec: ChipSpec,
    lap: Callable[[str], None] = lambda _: None,
    ready: int = 0,
) -> TimedSteps:
    """Routes and slots of all steps.

    lap: told the phase that ends, ``routes`` or ``slots``.  ready: the cycle from which the words
    of the first step are readable.
    """
    launch = TimedSteps([], [], [])
    for step in steps:
        source, target = np.ascontiguousarray(step.messages[:, :2].T)
        vectors = WORD_VECTORS * words_of(step.messages)
        routes = balanced_routes(topology, source, target, vectors, step.messages[:, 7])
        lap("routes")
        wires, arrived = send_messages(topology, spec, (source, target), vectors, routes, ready)
        ready = arrived + step_cycles(step, spec)
        launch.wires.append(wires)
        launch.arrived.append(arrived)
        launch.ended.append(ready)
        lap("slots")
    return launch


def least_cycles(steps: list[Step], spec: ChipSpec) -> int:
    """Cycles that the longest message and the jobs of every step need, without any contention."""
    total = 0
    for step in steps:
        vectors = WORD_VECTORS * int(words_of(step.messages).max(initial=0))
        if vectors:
            total += spec.hop_cycles + spec.send_spacing_cycles * (vectors - 1)
        total += step_cycles(step, spec)
    return total
