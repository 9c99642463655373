"""The fabric's rows of ``lpu bench``."""

from __future__ import annotations

from time import perf_counter

import numpy as np

from chip.isa import LANES, LINKS
from chip.ring import Rings
from chip.spec import ChipSpec
from cluster.bench_row import Row
from cluster.collective_runs import compile_functional, random_words
from cluster.errors import RunError
from interconnect.collective_plan import plan_collective
from interconnect.fabric_programs import FabricCollective
from interconnect.fabric_timing import simulate
from interconnect.routes import minimal_routes
from interconnect.slots import schedule_messages
from interconnect.topology import topology
from programs.collective_artifact import ENTRY_POINT, collective_artifact
from programs.runner import LOOKAHEAD, Alone, Runner

MIB = 1 << 20
AIM_ALLREDUCE_SECONDS = 60.0
#: Flit-hops a second of BookSim 2 on a network of this size, one core of a machine of this kind.
BOOKSIM_FLIT_HOPS_PER_S = 84_000.0
MESSAGES, MESSAGE_VECTORS = 200_000, 16


def allreduce_10440() -> list[Row]:
    """All-reduce of 1 MiB per chip over 10,440 chips: wired, scheduled, checked, simulated."""
    began = perf_counter()
    plan = plan_collective(topology(10_440), "all-reduce", MIB, ChipSpec())
    seconds = perf_counter() - began
    if plan.findings or plan.link_conflicts:
        raise RunError(f"the all-reduce breaks rules: {plan.link_conflicts} link conflicts")
    text = f"the aim; {plan.vector_hops:,} vector-hops, {plan.latency_cycles:,} cycles"
    return [Row("allreduce_10440", seconds, "s", AIM_ALLREDUCE_SECONDS, text)]


def fabric_flit_hops() -> list[Row]:
    """Uniform random traffic on 264 chips, from messages to the end of the simulation."""
    wiring, spec = topology(264), ChipSpec()
    random = np.random.Generator(np.random.PCG64(0))

    def run(messages: int) -> float:
        ends = random.integers(0, wiring.chips, (2, messages))
        ends = ends[:, ends[0] != ends[1]]
        count = ends.shape[1]
        began = perf_counter()
        hops, links = minimal_routes(wiring, ends[0], ends[1], np.arange(count))
        schedule = schedule_messages(
            links, hops, wiring.peer_link, np.full(count, MESSAGE_VECTORS), np.zeros(count, int),
            spec, np.zeros(wiring.chips * LINKS, np.int64), sources=ends[0], destinations=ends[1],
        )  # fmt: skip
        played = simulate(schedule, wiring, spec)
        return played.vector_hops / (perf_counter() - began)

    run(1000)  # compiles
    return [
        Row(
            "fabric_flit_hops", run(MESSAGES), "vector-hops/s", BOOKSIM_FLIT_HOPS_PER_S,
            "flit-hops/s of BookSim 2 on a network of this size, as given; the value includes "
            "routing and slot scheduling",
        )
    ]  # fmt: skip


def _numpy_seconds(compiled: FabricCollective) -> float:
    """The same copies, hop by hop, and the same additions, in NumPy; the fastest of three."""
    wires, chips = compiled.wires, compiled.topology.chips
    members = compiled.topology.chips_per_node
    words = compiled.source_words
    data = random_words(chips, words, "int32", 0)
    vectors = data.view(np.uint8).reshape(chips, -1, LANES)
    received = np.zeros_like(vectors)
    rows = [
        (int(chip), int(compiled.topology.peer[chip, link]), int(count))
        for chip, link, count in zip(wires.chip, wires.link, wires.vectors, strict=True)
    ]
    best = float("inf")
    for _ in range(3):
        sums = data.copy()
        filled = np.zeros(chips, np.int64)
        began = perf_counter()
        for sender, receiver, count in rows:
            at = int(filled[receiver])
            if at + count > vectors.shape[1]:
                at = 0
            filled[receiver] = at + count
            np.copyto(received[receiver, at : at + count], vectors[sender, at : at + count])
        arrived = received.view(np.int32).reshape(chips, -1, LANES)
        shard = words // members
        part = shard // (chips // members)
        for chip in range(chips):
            for k in range(1, members):
                sums[chip, :shard] += arrived[chip, k * shard : (k + 1) * shard]
            for k in range(1, chips // members):
                sums[chip, :part] += arrived[chip, k * part : (k + 1) * part]
        best = min(best, perf_counter() - began)
    return best


def allreduce_functional_vs_numpy() -> list[Row]:
    """All-reduce of 1 MiB over 64 chips with data, in one process; the fastest launch of four."""
    wiring, spec = topology(64), ChipSpec()
    compiled = compile_functional(wiring, "all-reduce", MIB, spec, "int32")
    data = random_words(wiring.chips, compiled.source_words, "int32", 0)
    artifact = collective_artifact(compiled, data)
    rings = Rings.allocate(2 * len(artifact.cables))
    runner = Runner(artifact, range(artifact.chips), rings, Alone())
    seconds = float("inf")
    for number in range(4):  # the first also links the programs and touches the memory
        began = perf_counter()
        runner.launch(ENTRY_POINT, number, LOOKAHEAD)
        seconds = min(seconds, perf_counter() - began)
    return [
        Row(
            "allreduce_functional_vs_numpy", seconds, "s", _numpy_seconds(compiled),
            "NumPy doing the same copies hop by hop and the same additions",
        )
    ]  # fmt: skip
