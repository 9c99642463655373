"""Collectives for people: sizes swept against GPUs, and functional runs compared with NumPy."""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chip.checker import check
from chip.isa import LANES, Op
from chip.spec import ChipSpec
from cluster.errors import InputError, RunError
from cluster.gpu import gpu_time
from cluster.metrics import RunWatch
from cluster.processes import Placement, chips_per_actor
from cluster.runs.launch import Launch, launch_everywhere
from cluster.runs.settings import CollectiveSettings
from cluster.whole_files import replace_file
from interconnect.collectives import (
    PARTED,
    CollectivePlan,
    FabricCollective,
    compile_fastest,
    launch_sizes,
    plan_collective,
)
from interconnect.vectors import check_fabric
from interconnect.wiring import Topology
from programs.artifact import ENTRY_POINT, Artifact, collective_artifact
from programs.faults import FaultPlan, fault_summary, linked_onto_spares, loses_nodes

#: Columns of a sweep; the gpu ones are estimates and empty without a GPU.
COLUMNS = (
    "bytes",
    "algorithm",
    "latency_cycles",
    "latency_ns",
    "bandwidth_gb_s",
    "link_conflicts",
    "gpu_best_ns",
    "gpu_p50_ns",
    "gpu_p99_ns",
)

Row = dict[str, Any]


def sweep_sizes(
    wiring: Topology,
    operation: str,
    spec: ChipSpec,
    smallest: int,
    largest: int,
    gpu: str | None,
    tell: Callable[[str], None],
) -> list[Row]:
    """A row of ``COLUMNS`` per size: ``smallest``, doubled up to ``largest`` bytes."""
    rows: list[Row] = []
    nbytes = smallest
    while nbytes <= largest:
        tell(f"{nbytes:,} bytes ...")
        plan = plan_collective(wiring, operation, nbytes, spec)
        row: Row = dict.fromkeys(COLUMNS)
        row |= {
            "bytes": nbytes,
            "algorithm": plan.algorithm,
            "latency_cycles": plan.latency_cycles,
            "latency_ns": plan.latency_ns,
            "bandwidth_gb_s": plan.bandwidth_gb_s,
            "link_conflicts": plan.link_conflicts,
        }
        if gpu is not None:
            other = gpu_time(gpu, operation, wiring.chips, nbytes)
            row |= {
                "gpu_best_ns": 1e9 * other.best_s,
                "gpu_p50_ns": 1e9 * other.p50_s,
                "gpu_p99_ns": 1e9 * other.p99_s,
            }
        rows.append(row)
        nbytes *= 2
    return rows


def write_csv(rows: list[Row], path: Path) -> None:
    """The sweep as CSV with a heading; an old file stays until the new one is whole."""

    def write(target: Path) -> None:
        with target.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(rows)

    replace_file(path, write)


Words = NDArray[Any]
_WORD_BYTES = 4 * LANES
#: Chips that are run with data: the largest system of nodes all to all.
MOST_CHIPS = 264


def expected_results(
    operation: str, data: Words, members: int, between: Topology | None = None, tree: bool = False
) -> list[Words]:
    """What NumPy makes of ``data`` [chips, words, 320]: the result [words, 320] of every chip.

    Sums are taken one after another over the chips of a node, then over the nodes; or by the
    ``tree`` of one node; or over the cables of ``between``, one-shot.  int32 wraps.  Chips of one
    result share one array.
    """
    chips = len(data)

    def total(parts: Words) -> Words:
        if tree:
            terms = list(parts)
            while len(terms) > 1:
                terms = [a + b for a, b in zip(terms[::2], terms[1::2], strict=True)]
            return np.asarray(terms[0])
        return _added(_node_sums(parts, members))

    words = data.shape[1] // chips
    if operation == "all-reduce":
        if between is not None and members < chips:
            sums = _sums_over_cables(_node_sums(data, members), between.cables, members)
            return [sums[chip // members] for chip in range(chips)]
        return [total(data)] * chips
    if operation == "reduce-scatter":
        return [total(data[:, c * words : (c + 1) * words]) for c in range(chips)]
    if operation == "all-gather":
        return [data.reshape(-1, LANES)] * chips
    if operation == "broadcast":
        return [data[0]] * chips
    parts = data.reshape(chips, chips, words, LANES)
    return [parts[:, c].reshape(-1, LANES) for c in range(chips)]


def _added(parts: Words | list[Words]) -> Words:
    """The sum of arrays, one after another."""
    whole: Words = parts[0].copy()
    for part in parts[1:]:
        whole += part
    return whole


def _node_sums(parts: Words, members: int) -> list[Words]:
    return [_added(parts[first : first + members]) for first in range(0, len(parts), members)]


def _sums_over_cables(nodes: list[Words], cables: NDArray[np.int32], members: int) -> list[Words]:
    """Each node's sum of all nodes' sums [words, 320], as they come in over ``cables``.

    Of two nodes with k cables each carries a share of the words.  A chip adds what its cables
    bring, in ascending order of nodes; the node's own sum comes first, then those of its chips.
    """
    words = len(nodes[0])
    brought: dict[tuple[int, int], list[tuple[int, int, int]]] = {}  # by (from, to)
    for a, link_a, b, link_b in sorted(cables.tolist()):
        if a // members != b // members:
            brought.setdefault((a // members, b // members), []).append((a, link_a, b))
            brought.setdefault((b // members, a // members), []).append((b, link_b, a))
    sums = []
    for to in range(len(nodes)):
        whole = nodes[to].copy()
        landed = [np.zeros_like(whole) for _ in range(members)]
        held = np.zeros((members, words), bool)
        for source in range(len(nodes)):
            ends = sorted(brought.get((source, to), ()))
            for rank, (_, _, chip) in enumerate(ends):
                share = slice(words * rank // len(ends), words * (rank + 1) // len(ends))
                place, have = landed[chip % members], held[chip % members]
                part = nodes[source][share]
                place[share] = np.where(have[share, None], place[share] + part, part)
                have[share] = True
        for place, have in zip(landed, held, strict=True):
            whole[have] += place[have]
        sums.append(whole)
    return sums


def random_words(chips: int, words: int, dtype: str, seed: int) -> Words:
    """Seeded data [chips, words, 320]: int32 over the whole range, or fp32 around zero."""
    random = np.random.Generator(np.random.PCG64(seed))
    if dtype == "int32":
        info = np.iinfo(np.int32)
        return random.integers(info.min, info.max, (chips, words, LANES), np.int32, endpoint=True)
    return random.standard_normal((chips, words, LANES), np.float32)


def compile_functional(
    wiring: Topology,
    operation: str,
    nbytes: int,
    spec: ChipSpec,
    dtype: str,
    algorithm: str | None = None,
) -> FabricCollective:
    """Programs for a tensor of ``nbytes``, those that ``plan_collective`` has planned."""
    if operation == "point-to-point":
        raise InputError("--run --op point-to-point: not built; lpu fabric route shows its cycles")
    if wiring.chips > MOST_CHIPS:
        raise InputError(
            f"--run on {wiring.chips} chips: data are moved on {MOST_CHIPS} or fewer; leave out "
            "--run for the schedule without data"
        )
    parts = wiring.chips if operation in PARTED else 1
    (words, launches), *more = launch_sizes(operation, wiring.chips, nbytes)
    if launches > 1 or more or words * parts > spec.words_per_slice:
        most = spec.words_per_slice // parts
        raise InputError(
            f"--run --bytes {nbytes}: {operation} on {wiring.chips} chips runs with data in one "
            f"launch, whose buffers hold {most * parts * _WORD_BYTES} bytes; use no more"
        )
    add = Op.ADD_I32 if dtype == "int32" else Op.ADD_F32
    return compile_fastest(operation, wiring, words, spec, algorithm=algorithm, add=add)


def run_functional(
    wiring: Topology,
    spec: ChipSpec,
    settings: CollectiveSettings,
    *,
    seed: int,
    phase: Callable[[str], None] = lambda _: None,
    planned: Callable[[Artifact, Topology], None] = lambda *_: None,
    watch: RunWatch | None = None,
    faults: FaultPlan | None = None,
) -> Row:
    """Compile, prove legal, run with data, and compare every chip with NumPy.

    settings: their wiring and chip are not looked at.  planned: called with the artifact and the
    cables it runs on, before it does.  faults: what befalls the modelled machine; with them a
    wiring of several nodes keeps ``spare_nodes`` of its nodes spare, the last ones.
    """

    operation, dtype, sync = settings.operation, settings.dtype, settings.sync

    def programs_on(part: Topology) -> tuple[FabricCollective, NDArray[Any], Artifact]:
        phase("compiling programs")
        compiled = compile_functional(
            part, operation, settings.nbytes, spec, dtype, settings.algorithm
        )
        phase("checking programs")
        _require_legal(compiled, part, spec)
        data = random_words(part.chips, compiled.source_words, dtype, seed)
        return compiled, data, collective_artifact(compiled, data)

    linked = None
    if faults is not None and loses_nodes(faults, wiring.chips):
        linked = linked_onto_spares(
            wiring, faults, programs_on, lambda made: made[2], lambda _: [ENTRY_POINT]
        )
        faults = linked.plan
        if watch is not None:
            watch.replaced_nodes(linked.lost)
    compiled, data, artifact = programs_on(wiring) if linked is None else linked.programs
    wiring = compiled.topology
    planned(artifact, wiring)
    placement = Placement(
        chips_per_actor(wiring.chips, settings.chips_per_actor),
        in_process=settings.in_process,
        faults=faults,
    )
    launched: Launch = launch_everywhere(artifact, ENTRY_POINT, sync, placement, phase, watch)
    members = wiring.chips_per_node if wiring.chips_per_node > 1 else wiring.chips
    between = wiring if compiled.algorithm == "one-shot" else None
    expected = expected_results(operation, data, members, between, compiled.algorithm == "tree")
    hashes: dict[int, str] = {}
    differs = [
        number
        for number, result in enumerate(expected)
        if launched.outputs[number]["result"]["sha256"]
        != hashes.setdefault(id(result), hashlib.sha256(result.tobytes()).hexdigest())
    ]
    return {
        "dtype": dtype,
        "seed": seed,
        "sync": sync,
        "actors": launched.actors,
        "programs": len(compiled.programs),
        "cycles": launched.cycles,
        "predicted_cycles": compiled.cycles,
        "digest": launched.digest,
        "equal": not differs,
        "differs": differs[0] if differs else None,
        "launch_seconds": launched.launch_seconds,
        "wall_seconds": launched.wall_seconds,
        "chips": wiring.chips,
        "recoveries": launched.recoveries,
        "nodes": list(range(wiring.nodes)) if linked is None else linked.nodes,
        "faults": (linked.counted(launched.faults) if linked else launched.faults) or None,
    }


def collective_rows(facts: dict[str, Any], plan: CollectivePlan) -> list[tuple[str, str]]:
    """The facts of a collective for people."""
    rows = [
        ("algorithm", f"{plan.algorithm}, {len(plan.launch_words):,} launches"),
        ("time", f"{plan.latency_cycles:,} cycles, {plan.latency_ns:,.0f} ns"),
        ("bandwidth", f"{plan.bandwidth_gb_s:.2f} GB/s of one chip's tensor"),
        ("vectors", f"{plan.vectors:,} sent, {plan.vector_hops:,} vector-hops"),
        ("link conflicts", f"{plan.link_conflicts}"),
    ]
    rows += [
        (f"{name} bound", f"{bound.cycles:,} cycles ({bound.formula})")
        for name, bound in plan.bounds.items()
    ]
    if (other := facts.get("gpu")) is not None:
        rows.append(
            (
                f"{plan.chips} x {other['name']} (estimate)",
                f"{other['best_ns']:,.0f} ns by {other['algorithm']}; with late kernels p50 "
                f"{other['p50_ns']:,.0f}, p99 {other['p99_ns']:,.0f} ns",
            )
        )
    if (run := facts.get("run")) is not None:
        rows += [
            (
                "executed",
                f"{run['cycles']:,} cycles, predicted "
                f"{run['predicted_cycles']:,}, {run['actors']} actors",
            ),
            ("equals NumPy", "bit for bit" if run["equal"] else "NO"),
            ("digest", run["digest"]),
        ]
        if run["recoveries"]:
            rows.append(("lost processes", f"{run['recoveries']} times replaced"))
        if run["faults"]:
            rows += [
                ("faults", fault_summary(run["faults"])),
                ("nodes in use", ", ".join(map(str, run["nodes"]))),
            ]
    if (trace := facts.get("trace")) is not None:
        rows.append(("trace", f"{trace['events']:,} events, {trace['blocks']:,} blocks"))
    return rows


def _require_legal(compiled: FabricCollective, wiring: Topology, spec: ChipSpec) -> None:
    findings = [str(finding) for program in compiled.programs for finding in check(program, spec)]
    findings += [
        str(finding)
        for finding in check_fabric(
            compiled.programs, compiled.program_of_chip, wiring.cables, spec
        )
    ]
    if findings:
        raise RunError(f"the programs break a rule: {findings[0]}")
