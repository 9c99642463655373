"""A collective from its size to its proven timing: algorithm, launches, check, simulation.

``plan_collective`` takes the algorithm with the fewest cycles, proves its wire schedule legal and
plays it; ``compile_fastest`` makes the programs of the same choice, which take the same cycles.
Tensors larger than a chip's buffers go in launches of equal size, one after the other.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

from chip.isa import Op
from chip.spec import ChipSpec
from interconnect.collectives.algorithms import algorithms_for, collective_steps
from interconnect.collectives.bounds import Bound, collective_bounds
from interconnect.collectives.programs import (
    FabricCollective,
    compile_tree,
    lower,
    require_compilable,
)
from interconnect.collectives.schedule import (
    TimedSteps,
    least_cycles,
    schedule_steps,
    send_messages,
)
from interconnect.collectives.steps import PARTED, WORD_BYTES, WORD_VECTORS, Step
from interconnect.vectors import check_fabric
from interconnect.wires import (
    FabricRun,
    WireFinding,
    WireSchedule,
    check_wires,
    concatenate,
    count_conflicts,
    simulate,
    spread,
)
from interconnect.wiring import FabricError, Topology

#: Words of a chip's buffer: a quad of slices, one byte plane each (8,192 words of 1,280 B).
BUFFER_WORDS = 8192


@dataclass(frozen=True)
class CollectivePlan:
    """A planned, checked and simulated collective.

    latency_cycles: from cycle 0 until the last word of the last launch is readable.
    bandwidth_gb_s: ``nbytes`` in that time, 10^9 bytes a second (algorithm bandwidth).
    vectors, vector_hops, digest: over all launches (digest: sum modulo 2^64).  launch_words: words
    of each launch; launches of one size are one schedule, simulated once.  step_cycles: when the
    last chip ends each step of the largest launch.  schedule, run: of the largest launch.
    tree: the programs of a node's tree, where they take fewer cycles than any steps; then
    latency_cycles, vectors and vector_hops are theirs, digest, schedule and run those of the best
    steps.  wall_seconds: by phase, by the caller's clock (empty without one).
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
    tree: FabricCollective | None = None


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
class _Choice:
    """The algorithm with fewest cycles for one launch: steps as scheduled, or a node's tree."""

    algorithm: str
    steps: list[Step]
    launch: TimedSteps
    tree: FabricCollective | None = None

    @property
    def cycles(self) -> int:
        return self.launch.cycles if self.tree is None else self.tree.cycles


def _fastest(
    topology: Topology,
    operation: str,
    words: int,
    spec: ChipSpec,
    algorithm: str | None,
    root: int,
    watch: _Stopwatch,
) -> _Choice:
    """Exact schedules of all algorithms, but none that cannot win."""
    watch.start()
    names = algorithms_for(operation, topology) if algorithm is None else (algorithm,)
    choices = [
        (name, collective_steps(topology, operation, name, words, root=root)) for name in names
    ]
    choices.sort(key=lambda choice: least_cycles(choice[1], spec))
    watch.lap("traffic")
    found: _Choice | None = None
    for name, steps in choices:
        if found and least_cycles(steps, spec) >= found.cycles:
            continue
        launch = schedule_steps(topology, steps, spec, watch.lap)
        if found is None or launch.cycles < found.cycles:
            found = _Choice(name, steps, launch)
    assert found is not None
    if algorithm in (None, "one-shot"):
        tree = compile_tree(topology, operation, words, spec)
        if tree is not None and tree.cycles < found.cycles and _fits(tree):
            return replace(found, algorithm="one-shot", tree=tree)
    return found


def _fits(tree: FabricCollective) -> bool:
    cables = tree.topology.cables
    return not check_fabric(tree.programs, tree.program_of_chip, cables, tree.spec)


def _point_to_point(
    topology: Topology, words: int, spec: ChipSpec, root: int, destination: int | None
) -> _Choice:
    """One tensor over several paths at once, until it is readable at its destination."""
    to = topology.chips - 1 if destination is None else destination
    paths = spread(topology, root, to, words * WORD_VECTORS, spec)
    ends = np.full((2, len(paths.hops)), [[root], [to]], np.int64)
    routes = (paths.hops, paths.links)
    wires, arrived = send_messages(
        topology, spec, (ends[0], ends[1]), paths.vectors, routes, ready=0
    )
    return _Choice("direct", [], TimedSteps([wires], [arrived], [arrived]))


def compile_fastest(
    operation: str,
    topology: Topology,
    words: int,
    spec: ChipSpec,
    *,
    algorithm: str | None = None,
    add: Op = Op.ADD_I32,
) -> FabricCollective:
    """Programs of the algorithm that ``plan_collective`` takes for a launch of ``words`` words.

    words, errors: as of ``compile_fabric_collective``.
    """
    require_compilable(operation, topology, words, spec, add)
    choice = _fastest(topology, operation, words, spec, algorithm, 0, _Stopwatch(None))
    if choice.tree is not None:
        tree = compile_tree(topology, operation, words, spec, add)
        assert tree is not None
        return tree
    return lower(
        operation, choice.algorithm, topology, words, spec, choice.steps, choice.launch, add
    )


def launch_sizes(operation: str, chips: int, nbytes: int) -> list[tuple[int, int]]:
    """Launches for a tensor of ``nbytes`` bytes: (words, how many launches), larger ones first.

    words: of the tensor, or of the part of one chip where every chip has one (PARTED): a part is
    whole words.  A launch has at least one word of every part.
    """
    parts = chips if operation in PARTED else 1
    words = -(-nbytes // (WORD_BYTES * parts))
    launches = -(-words // max(1, BUFFER_WORDS // parts))
    base, longer = divmod(words, launches)
    return [(w, n) for w, n in ((base + 1, longer), (base, launches - longer)) if n]


def plan_collective(
    topology: Topology,
    operation: str,
    nbytes: int,
    spec: ChipSpec,
    *,
    algorithm: str | None = None,
    root: int = 0,
    destination: int | None = None,
    window: int | None = None,
    clock: Callable[[], float] | None = None,
) -> CollectivePlan:
    """Plan ``operation`` on a tensor of ``nbytes`` bytes.

    nbytes: all-reduce, reduce-scatter, all-to-all: on every chip before; all-gather: on every chip
    after; broadcast, point-to-point: at chip ``root``.  destination: of point-to-point (default:
    the last chip).  algorithm: None takes the fastest.  window: of the simulation, in cycles.
    clock: seconds, for ``wall_seconds``.  Raises FabricError for what does not exist and
    LockstepViolation if the schedule were wrong.
    """
    if nbytes < 1:
        raise FabricError(f"{nbytes} bytes: a collective moves at least one")
    parts = topology.chips if operation in PARTED else 1
    watch = _Stopwatch(clock)
    cycles = vectors = hops = conflicts = digest = 0
    findings: list[WireFinding] = []
    launch_words: list[int] = []
    first: tuple[_Choice, WireSchedule, FabricRun] | None = None
    for size, count in launch_sizes(operation, topology.chips, nbytes):
        if operation == "point-to-point":
            choice = _point_to_point(topology, size, spec, root, destination)
        else:
            chosen = algorithm if first is None else first[0].algorithm
            choice = _fastest(topology, operation, size, spec, chosen, root, watch)
        watch.start()
        schedule = concatenate(choice.launch.wires)
        findings += check_wires(schedule, topology, spec)
        conflicts += count_conflicts(schedule)
        watch.lap("check")
        run = simulate(schedule, topology, spec, window=window)
        watch.lap("simulate")
        cycles += count * choice.cycles
        wires = schedule if choice.tree is None else choice.tree.wires
        vectors += count * int(wires.message_vectors.sum())
        hops += count * wires.vector_hops
        digest += count * run.digest
        launch_words += count * [parts * size]
        first = first or (choice, schedule, run)
    assert first is not None
    choice, schedule, run = first
    seconds = cycles / spec.clock_hz
    return CollectivePlan(
        operation=operation,
        algorithm=choice.algorithm,
        chips=topology.chips,
        nbytes=nbytes,
        latency_cycles=cycles,
        latency_ns=seconds * 1e9,
        bandwidth_gb_s=nbytes / seconds / 1e9,
        vectors=vectors,
        vector_hops=hops,
        link_conflicts=conflicts,
        findings=findings,
        bounds=collective_bounds(
            topology, operation, -(-nbytes // WORD_BYTES), spec, root, destination
        ),
        digest=digest % 2**64,
        launch_words=launch_words,
        step_cycles=choice.launch.ended,
        schedule=schedule,
        run=run,
        wall_seconds=watch.seconds,
        tree=choice.tree,
    )
