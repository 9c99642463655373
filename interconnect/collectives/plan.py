"""A collective from its size to its proven timing: routes, slots, check, simulation.

``plan_collective`` gives every step of a collective its routes and link slots, lets each chip add
what it received, starts the chip's next step when its words are there, proves the wire schedule
legal and plays it.  The algorithm is the one with the fewest cycles.  Tensors larger than a chip's
buffers go in launches of equal size, one after the other.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np

from chip.isa import LINKS
from chip.jit import jit
from chip.spec import ChipSpec
from interconnect.collectives.one_shot import compile_one_shot
from interconnect.collectives.programs import FabricCollective
from interconnect.collectives.traffic import (
    WORD_BYTES,
    WORD_VECTORS,
    Traffic,
    algorithms_for,
    collective_traffic,
    group_sizes,
)
from interconnect.vectors import check_fabric
from interconnect.wires import (
    FabricRun,
    Ints,
    Links,
    WireFinding,
    WireSchedule,
    check_wires,
    concatenate,
    count_conflicts,
    first_frames,
    schedule_messages,
    simulate,
    spread,
)
from interconnect.wiring import FabricError, Topology, hop_distances, minimal_routes

#: Words of a chip's buffer: a quad of slices, one byte plane each (8,192 words of 1,280 B).
BUFFER_WORDS = 8192

#: Read, way to the VXM, sums and way back to readable SRAM.  Assumed, and no field of the spec: the
#: compiled kernel of a node of eight takes 27 cycles for a word, whose terms lie near the VXM.
REDUCE_LATENCY = 60

#: Routes tried for a message that has several minimal ones.
ROUTE_CANDIDATES = 4

#: Cycles to add words on the VXM: (words, terms of each sum, spec), int64 arrays of one shape.
ReduceCycles = Callable[[Ints, Ints, ChipSpec], Ints]


def least_vxm_cycles(spec: ChipSpec) -> int:
    """SRAM to SRAM through one ALU, from the slice nearest to the VXM, a hop there and a hop back.

    12 for the default chip (published: 12 + 2*floor(s/4) for slice s).
    """
    through = spec.alu_entry_cycles + spec.alu_cycles
    return spec.read_cycles + 1 + through + 1 + spec.write_cycles


def reduce_cycles(words: Ints, terms: Ints, spec: ChipSpec) -> Ints:
    """Cycles from the last word received to the last sum readable: int64, as ``words``.

    Assumed: a fixed latency and one word per cycle for each pair of terms; no terms, no cycles.
    """
    pairs = np.asarray(words) * np.maximum(np.asarray(terms) - 1, 0)
    return np.where(pairs > 0, REDUCE_LATENCY + pairs, 0).astype(np.int64)


@dataclass(frozen=True)
class Bound:
    """A number of cycles nothing of this kind can beat, and how it is computed."""

    cycles: int
    formula: str


@dataclass(frozen=True)
class CollectivePlan:
    """A planned, checked and simulated collective.

    latency_cycles: from cycle 0 until the last word of the last launch is readable.
    bandwidth_gb_s: ``nbytes`` in that time, 10^9 bytes a second (algorithm bandwidth).
    vectors, vector_hops, digest: over all launches (digest: sum modulo 2^64).  launch_words: words
    of each launch; launches of one size are one schedule, simulated once.  step_cycles: when the
    last chip ends each step of the largest launch.  schedule, run: of the largest launch.
    compiled: programs that take fewer cycles than any schedule planned here (a node's one-shot
    all-reduce of a few words); latency_cycles, vectors and vector_hops are theirs then, digest,
    schedule and run those of the best schedule.  wall_seconds: by phase, by the caller's clock
    (empty without one).
    """

    operation: str
    algorithm: str
    chips: int
    nbytes: int
    latency_cycles: int
    latency_ns: float
    bandwidth_gb_s: float
    vectors: int
    vector_hops: int
    link_conflicts: int
    findings: list[WireFinding]
    bounds: dict[str, Bound]
    digest: int
    launch_words: list[int]
    step_cycles: list[int]
    schedule: WireSchedule
    run: FabricRun
    wall_seconds: dict[str, float]
    compiled: FabricCollective | None = None


@dataclass
class _Stopwatch:
    clock: Callable[[], float] | None
    seconds: dict[str, float] = field(default_factory=dict)
    last: float = 0.0

    def start(self) -> None:
        self.last = self.clock() if self.clock else 0.0

    def lap(self, phase: str) -> None:
        if self.clock:
            now = self.clock()
            self.seconds[phase] = self.seconds.get(phase, 0.0) + now - self.last
            self.last = now


@dataclass(frozen=True)
class _Launch:
    schedule: WireSchedule
    cycles: int
    step_cycles: list[int]


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


def _schedule(
    topology: Topology, traffic: Traffic, spec: ChipSpec, reduce: ReduceCycles, watch: _Stopwatch
) -> _Launch:
    """Slots for every step, each chip's step after its last one."""
    ready = np.zeros(topology.chips, np.int64)
    free = np.zeros(topology.chips * LINKS, np.int64)
    schedules, ends = [], []
    bounds = np.searchsorted(traffic.step, np.arange(len(traffic.steps) + 1))
    for number, step in enumerate(traffic.steps):
        part = slice(bounds[number], bounds[number + 1])
        source, target = traffic.source[part], traffic.destination[part]
        vectors = traffic.vectors[part]
        watch.start()
        if traffic.operation == "point-to-point":
            paths = spread(topology, int(source[0]), int(target[0]), int(vectors[0]), spec)
            hops, links, vectors = paths.hops, paths.links, paths.vectors
            source, target = source.repeat(len(hops)), target.repeat(len(hops))
        else:
            hops, links = balanced_routes(topology, source, target, vectors, traffic.via[part])
        watch.lap("routes")
        when = ready[source]
        schedule = schedule_messages(
            links, hops, topology.peer_link, vectors, first_frames(when, links[:, 0], spec), spec,
            free, sources=source, destinations=target, ready=when,
        )  # fmt: skip
        schedules.append(schedule)
        message = schedule.message
        last = schedule.hop == hops[message] - 1
        after = ready.copy()
        np.maximum.at(after, schedule.chip, schedule.last_send())
        np.maximum.at(
            after, target[message[last]], schedule.last_send()[last] + spec.hop_cycles
        )
        ready = after + reduce(step.words, step.terms, spec)
        ends.append(int(ready.max()))
        watch.lap("slots")
    return _Launch(concatenate(schedules), ends[-1], ends)


def _least_cycles(traffic: Traffic, spec: ChipSpec, reduce: ReduceCycles) -> int:
    """Cycles that the longest message and sum of every step need, without any contention."""
    total = 0
    for number, step in enumerate(traffic.steps):
        vectors = int(traffic.vectors[traffic.step == number].max(initial=0))
        if vectors:
            total += spec.hop_cycles + spec.send_spacing_cycles * (vectors - 1)
            total += int(reduce(step.words, step.terms, spec).max())
    return total


def _best(
    topology: Topology, operation: str, words: int, spec: ChipSpec, reduce: ReduceCycles,
    algorithm: str | None, root: int, destination: int | None, watch: _Stopwatch,
) -> tuple[Traffic, _Launch]:  # fmt: skip
    """The algorithm with fewest cycles: exact schedules, but none that cannot win."""
    watch.start()
    names = algorithms_for(operation, topology) if algorithm is None else (algorithm,)
    choices = [
        collective_traffic(topology, operation, name, words, root=root, destination=destination)
        for name in names
    ]
    choices.sort(key=lambda t: _least_cycles(t, spec, reduce))
    watch.lap("traffic")
    best: tuple[Traffic, _Launch] | None = None
    for traffic in choices:
        if best and _least_cycles(traffic, spec, reduce) >= best[1].cycles:
            continue
        launch = _schedule(topology, traffic, spec, reduce, watch)
        if best is None or launch.cycles < best[1].cycles:
            best = traffic, launch
    assert best is not None
    return best


def plan_collective(
    topology: Topology, operation: str, nbytes: int, spec: ChipSpec, *,
    algorithm: str | None = None, root: int = 0, destination: int | None = None,
    reduce: ReduceCycles = reduce_cycles, window: int | None = None,
    clock: Callable[[], float] | None = None,
) -> CollectivePlan:  # fmt: skip
    """Plan ``operation`` on ``nbytes`` bytes (see ``collective_traffic`` for whose bytes).

    algorithm: None takes the fastest.  window: of the simulation, in cycles.  clock: seconds, for
    ``wall_seconds``.  Raises FabricError for what does not exist and LockstepViolation if the
    schedule were wrong.
    """
    if nbytes < 1:
        raise FabricError(f"{nbytes} bytes: a collective moves at least one")
    words = -(-nbytes // WORD_BYTES)
    launches = -(-words // BUFFER_WORDS)
    base, longer = divmod(words, launches)
    watch = _Stopwatch(clock)
    cycles = vectors = hops = conflicts = digest = 0
    findings: list[WireFinding] = []
    first: tuple[Traffic, _Launch, FabricRun] | None = None
    for size, count in ((base + 1, longer), (base, launches - longer)):
        if count == 0:
            continue
        chosen = algorithm if first is None else first[0].algorithm
        traffic, launch = _best(
            topology, operation, size, spec, reduce, chosen, root, destination, watch
        )
        watch.start()
        findings += check_wires(launch.schedule, topology, spec)
        conflicts += count_conflicts(launch.schedule)
        watch.lap("check")
        run = simulate(launch.schedule, topology, spec, window=window)
        watch.lap("simulate")
        cycles += count * launch.cycles
        vectors += count * int(launch.schedule.message_vectors.sum())
        hops += count * run.vector_hops
        digest += count * run.digest
        first = first or (traffic, launch, run)
    assert first is not None
    traffic, launch, run = first
    compiled = None
    if algorithm in (None, "one-shot"):
        compiled = compile_one_shot(topology, operation, words, spec)
    if compiled is not None and (
        compiled.cycles >= cycles
        or check_fabric(compiled.programs, compiled.program_of_chip, topology.cables, spec)
    ):
        compiled = None
    if compiled is not None:
        cycles = compiled.cycles
        vectors = hops = int(compiled.wires.vectors.sum())
    seconds = cycles / spec.clock_hz
    return CollectivePlan(
        operation=operation, algorithm="one-shot" if compiled else traffic.algorithm,
        chips=topology.chips, nbytes=nbytes, compiled=compiled,
        latency_cycles=cycles, latency_ns=seconds * 1e9,
        bandwidth_gb_s=nbytes / seconds / 1e9 if cycles else 0.0, vectors=vectors,
        vector_hops=hops, link_conflicts=conflicts, findings=findings,
        bounds=collective_bounds(topology, operation, words, spec, root, destination),
        digest=digest % 2**64, launch_words=[base + 1] * longer + [base] * (launches - longer),
        step_cycles=launch.step_cycles, schedule=launch.schedule, run=run,
        wall_seconds=watch.seconds,
    )  # fmt: skip


def collective_bounds(
    topology: Topology, operation: str, words: int, spec: ChipSpec, root: int = 0,
    destination: int | None = None,
) -> dict[str, Bound]:  # fmt: skip
    """``bandwidth`` and ``latency``: cycles no schedule of the operation can beat."""
    return {
        "bandwidth": _bandwidth_bound(topology, operation, words, spec),
        "latency": _latency_bound(topology, operation, spec, root, destination),
    }


def _bandwidth_bound(topology: Topology, operation: str, words: int, spec: ChipSpec) -> Bound:
    """The tightest cut: vectors that must leave a chip, node or rack over the links it has."""
    vectors, chips = words * WORD_VECTORS, topology.chips
    directed = np.flatnonzero(topology.peer.reshape(-1) >= 0)
    far = topology.peer.reshape(-1)[directed]
    best = Bound(0, "one chip sends nothing")
    unit = 1
    for size, name in zip(group_sizes(topology), ("chip", "node", "rack"), strict=False):
        parts = chips // unit
        leaving = directed[directed // LINKS // unit != far // unit] // LINKS // unit
        links = int(np.bincount(leaving, minlength=1).max()) if len(leaving) else 0
        share = Fraction(parts - 1, parts)
        amount, text = {
            "all-reduce": (2 * vectors * share, f"2 * {vectors} vectors * {share}"),
            "all-to-all": (unit * vectors * share, f"{unit} * {vectors} vectors * {share}"),
            "broadcast": (Fraction(vectors), f"{vectors} vectors"),
            "point-to-point": (Fraction(vectors), f"{vectors} vectors"),
        }.get(operation, (vectors * share, f"{vectors} vectors * {share}"))
        if links and parts > 1:
            cycles = -(-amount * spec.cycles_per_vector // links)
            formula = f"{text} * {spec.cycles_per_vector} cycles / {links} links of a {name}"
            best = max(best, Bound(int(cycles), formula), key=lambda b: b.cycles)
        unit *= size
    return best


def _latency_bound(
    topology: Topology, operation: str, spec: ChipSpec, root: int, destination: int | None
) -> Bound:
    """Hops to the farthest chip, the vectors of one word, the tree of the chips of a node."""
    distance = hop_distances(topology, [root])[0]
    hops = int(distance.max())
    if operation == "point-to-point":
        hops = int(distance[topology.chips - 1 if destination is None else destination])
    if hops == 0:
        return Bound(0, "nothing crosses a cable")
    rest = spec.send_spacing_cycles * (WORD_VECTORS - 1)
    text = f"{hops} hops * {spec.hop_cycles} + {WORD_VECTORS - 1} vectors * "
    text += f"{spec.send_spacing_cycles}"
    if operation in ("all-reduce", "reduce-scatter"):
        terms = group_sizes(topology)[0]
        levels = max(terms - 1, 0).bit_length()
        if levels:
            tree = least_vxm_cycles(spec) + spec.alu_cycles * (levels - 1)
            rest += tree
            text += f" + {tree} for a tree of {levels} sums from SRAM to SRAM"
    return Bound(hops * spec.hop_cycles + rest, text)
