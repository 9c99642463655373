"""The fabric's rows of ``lpu bench``."""

from __future__ import annotations

from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from chip.isa import LANES, LINKS
from chip.spec import ChipSpec
from cluster.bench.row import Row
from cluster.errors import RunError
from cluster.processes import cores
from cluster.runs import Words, compile_functional, random_words
from interconnect.collectives import (
    OWN,
    RESULT,
    SOURCE,
    FabricCollective,
    collective_steps,
    plan_collective,
)
from interconnect.wires import schedule_messages, simulate
from interconnect.wiring import minimal_routes, topology_of
from programs.artifact import ENTRY_POINT, collective_artifact
from programs.running import LOOKAHEAD, Runner

MIB = 1 << 20
AIM_ALLREDUCE_SECONDS = 60.0
#: Flit-hops a second of BookSim 2 on a network of this size, one core of a machine of this kind.
BOOKSIM_FLIT_HOPS_PER_S = 84_000.0
MESSAGES, MESSAGE_VECTORS = 200_000, 16


def allreduce_10440() -> list[Row]:
    """All-reduce of 1 MiB per chip over 10,440 chips: wired, scheduled, checked, simulated."""
    began = perf_counter()
    plan = plan_collective(topology_of(10_440), "all-reduce", MIB, ChipSpec())
    seconds = perf_counter() - began
    if plan.findings or plan.link_conflicts:
        raise RunError(f"the all-reduce breaks rules: {plan.link_conflicts} link conflicts")
    text = f"the aim; {plan.vector_hops:,} vector-hops, {plan.latency_cycles:,} cycles"
    return [Row("allreduce_10440", seconds, "s", AIM_ALLREDUCE_SECONDS, text)]


def fabric_flit_hops() -> list[Row]:
    """Uniform random traffic on 264 chips, from messages to the end of the simulation."""
    wiring, spec = topology_of(264), ChipSpec()
    random = np.random.Generator(np.random.PCG64(0))

    def run(messages: int) -> float:
        ends = random.integers(0, wiring.chips, (2, messages))
        ends = ends[:, ends[0] != ends[1]]
        count = ends.shape[1]
        began = perf_counter()
        hops, links = minimal_routes(wiring, ends[0], ends[1], np.arange(count))
        schedule = schedule_messages(
            links,
            hops,
            wiring.peer_link,
            np.full(count, MESSAGE_VECTORS),
            np.zeros(count, int),
            spec,
            np.zeros(wiring.chips * LINKS, np.int64),
            sources=ends[0],
            destinations=ends[1],
        )
        played = simulate(schedule, wiring, spec)
        return played.vector_hops / (perf_counter() - began)

    run(1000)  # compiles
    return [
        Row(
            "fabric_flit_hops",
            run(MESSAGES),
            "vector-hops/s",
            BOOKSIM_FLIT_HOPS_PER_S,
            "flit-hops/s of BookSim 2 on a network of this size, as given; the value includes "
            "routing and slot scheduling",
        )
    ]


def _numpy_seconds(compiled: FabricCollective, data: NDArray[np.int32]) -> float:
    """An all-reduce of ``data`` [chips, words, 320] in NumPy; the fastest of three.

    The steps of the programs: each message copied hop by hop, then the same additions and copies
    into the same buffers; only the operations themselves are timed.  Raises RunError if the
    sums it ends with are not those of ``data``.
    """
    chips, words = compiled.topology.chips, compiled.source_words
    buffers = np.zeros((4, chips, words, LANES), np.int32)
    buffers[SOURCE] = data
    copies: list[list[tuple[Words, Words]]] = []
    sums: list[list[tuple[Words, list[Words]]]] = []
    algorithm = "one-shot" if compiled.algorithm == "tree" else compiled.algorithm
    for step in collective_steps(compiled.topology, "all-reduce", algorithm, words):
        numbers = np.arange(len(step.messages))
        source, destination = step.messages[:, 0], step.messages[:, 1]
        hops, _ = minimal_routes(compiled.topology, source, destination, numbers)
        landed: list[Words] = []
        copies.append([])
        for row, count in zip(step.messages.tolist(), hops.tolist(), strict=True):
            chip, _, buffer, first, inner = row[:5]
            part = buffers[buffer, chip, first : first + inner]
            for _ in range(count):
                copies[-1].append((np.zeros_like(part), part))
                part = copies[-1][-1][0]
            landed.append(part)
        terms: list[list[Words]] = [[] for _ in step.jobs]
        for job, message, buffer, first, _ in step.terms.tolist():
            size, chip = step.jobs[job, 2], step.jobs[job, 0]
            whole = buffers[buffer, chip] if message == OWN else landed[message]
            terms[job].append(whole[first : first + size])
        targets = [
            buffers[step.target, chip, first : first + size]
            for chip, first, size in step.jobs[:, :3].tolist()
        ]
        sums.append(list(zip(targets, terms, strict=True)))
    best = float("inf")
    for _ in range(3):
        began = perf_counter()
        for copied, added in zip(copies, sums, strict=True):
            for target, source in copied:
                np.copyto(target, source)
            for target, parts in added:
                np.copyto(target, parts[0])
                for part in parts[1:]:
                    np.add(target, part, out=target)
        best = min(best, perf_counter() - began)
    if not (buffers[RESULT] == data.sum(axis=0, dtype=np.int32)).all():
        raise RunError("the NumPy baseline of the all-reduce did not add up")
    return best


def allreduce_functional_vs_numpy() -> list[Row]:
    """All-reduce of 1 MiB over 64 chips with data, in one process; the fastest launch of ten."""
    wiring, spec = topology_of(64), ChipSpec()
    compiled = compile_functional(wiring, "all-reduce", MIB, spec, "int32")
    data = random_words(wiring.chips, compiled.source_words, "int32", 0)
    artifact = collective_artifact(compiled, data)
    threads = cores()
    runner = Runner.alone(artifact, threads=threads)
    seconds = float("inf")
    for number in range(10):  # the first also links the programs and touches the memory
        began = perf_counter()
        runner.launch(ENTRY_POINT, number, LOOKAHEAD)
        seconds = min(seconds, perf_counter() - began)
    return [
        Row(
            "allreduce_functional_vs_numpy",
            seconds,
            "s",
            _numpy_seconds(compiled, data),
            "NumPy doing the same all-reduce: the same copies, hop by hop, and additions; "
            f"the value with {threads} threads",
        )
    ]
