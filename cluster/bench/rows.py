"""``lpu bench``: the performance table, measured here and now.

Every row is a value, what it is compared with, and their ratio (value / baseline).  Each figure
is measured by this command on this machine; the two aims that serve as baselines say so.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter

from chip.engine import Chip, Rings, warm_up
from chip.linking import link
from chip.reference import ReferenceChip
from chip.spec import ChipSpec
from cluster.bench.experiments import load_10000_requests, speculative_tokens_per_wall_second
from cluster.bench.fabric import allreduce_10440, allreduce_functional_vs_numpy, fabric_flit_hops
from cluster.bench.faults import recovery_seconds, snapshot_overhead
from cluster.bench.first_token import first_token_seconds, smollm2_first_token_seconds
from cluster.bench.metrics import metrics_overhead
from cluster.bench.plan import plan_70b, smollm2_token_seconds, timing_chip_cycles
from cluster.bench.published import (
    missing,
    prefill_vs_numpy,
    smollm2_tokens_per_wall_second,
    smollm2_vs_llamacpp,
)
from cluster.bench.row import Row
from cluster.errors import InputError, RunError
from cluster.listening import Listener
from cluster.processes import Placement
from cluster.runs import GenerationResult, launches_of, run_generation
from cluster.tracing import TraceRequest
from programs.artifact import Artifact
from programs.decoder import (
    Layout,
    PartitionedModel,
    compile_decoder,
    entry_at,
    join_images,
    partition_model,
    random_chip_weights,
)
from programs.models import ModelConfig, load_checkpoint, random_checkpoint, shipped_model
from programs.running import Generation

TINYLLAMA = ModelConfig(
    hidden_size=2048,
    layers=22,
    heads=32,
    kv_heads=4,
    head_dim=64,
    ffn=5632,
    vocab=32000,
    max_position=256,  # made for 2,048 it attends on the planes and does not fit eight chips
)
TINY = ModelConfig(hidden_size=64, layers=1, heads=2, kv_heads=1, head_dim=32, ffn=96, vocab=64)
CHIPS = 8
CONTEXT = 256
PROMPT = (1, 2)
#: Where in the context ``decode_vs_numpy`` decodes, on both sides.
POSITION = 120
#: Tokens of the run whose last step is traced for ``trace_overhead``, and how often it is.
TRACED_TOKENS = 32
TRACES = 9
AIM_TOKENS_PER_SECOND = 5.0


@dataclass(frozen=True)
class Subject:
    """A compiled model to measure; ``model`` where it is in no directory."""

    artifact: Artifact
    model: PartitionedModel | None = None


def tinyllama() -> Subject:
    """A random int8 model of TinyLlama-1.1B's shape, compiled for eight chips."""
    layout = Layout.of(TINYLLAMA, CHIPS)
    weights = {chip: random_chip_weights(layout, "int8", 0, chip) for chip in range(CHIPS)}
    model = PartitionedModel(random_checkpoint(TINYLLAMA, 0), layout, "int8", _built=weights)
    artifact = compile_decoder(model, ChipSpec(), CONTEXT)
    join_images(artifact)
    return Subject(artifact, replace(model, _built={}))


def shipped() -> Subject:
    """The shipped model, compiled for eight chips."""
    model = partition_model(load_checkpoint(shipped_model()), CHIPS, "int8")
    return Subject(compile_decoder(model, ChipSpec(), CONTEXT))


def _generate(
    subject: Subject, new_tokens: int, placement: Placement, prompt: tuple[int, ...] = PROMPT
) -> GenerationResult:
    job = Generation(prompt, new_tokens)
    return run_generation(
        subject.artifact, job, placement, Listener(), perf_counter(), subject.model
    )


def _token_seconds(
    subject: Subject, new_tokens: int, placement: Placement, prompt: tuple[int, ...] = PROMPT
) -> float:
    """Wall seconds per token after the first, which also links programs and touches memory."""
    return _generate(subject, new_tokens, placement, prompt).steady_token_seconds


def _numpy_token_seconds() -> float:
    """A token of a plain float32 forward on one thread, in a process of its own."""
    c = TINYLLAMA
    shape = [c.hidden_size, c.layers, c.heads, c.kv_heads, c.head_dim, c.ffn, c.vocab, POSITION, 5]
    threads = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "OPENBLAS", "MKL")}
    done = subprocess.run(
        [sys.executable, "-m", "cluster.bench.numpy_baseline", *map(str, shape)],
        env={**os.environ, **threads},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RunError(f"the NumPy baseline failed: {done.stderr.strip()[-200:]}")
    return float(done.stdout)


def decode_vs_numpy() -> list[Row]:
    """Emulated decoding between two runs of a plain float32 forward, one thread each."""
    subject, prompt = tinyllama(), tuple(range(1, POSITION))
    before = _numpy_token_seconds()
    value = _token_seconds(subject, 6, Placement(CHIPS, in_process=True), prompt)
    baseline = (before + _numpy_token_seconds()) / 2
    return [
        Row(
            "decode_vs_numpy",
            value,
            "s per token",
            baseline,
            "plain NumPy float32 forward of TinyLlama-1.1B's shape, one thread, two layers' "
            "random weights serving all 22 layers in turn, before and after; all at position "
            f"{POSITION}",
        )
    ]


def engine_vs_reference() -> list[Row]:
    """Single instructions per second, fast engine against the cycle-by-cycle reference."""
    artifact = compile_decoder(partition_model(random_checkpoint(TINY, 0), 1), ChipSpec(), 64)
    program = artifact.program(entry_at(artifact, 0, False), 0)
    linked = link(program, artifact.spec)
    warm_up()
    chip, rings = Chip(artifact.spec, 0), Rings.allocate(1)
    slow = ReferenceChip(artifact.spec, 0)
    for place, address, rows in artifact.memory[0]:
        chip.write_words(place, address, rows)
        slow.sram[place, address : address + len(rows)] = rows
    best = float("inf")
    for launch in range(5):
        began = perf_counter()
        chip.begin(linked, launch)
        chip.run(rings)
        best = min(best, perf_counter() - began)
    began = perf_counter()
    slow.run(program)
    reference = perf_counter() - began
    return [
        Row(
            "engine_vs_reference",
            linked.elements / best,
            "instructions/s",
            linked.elements / reference,
            "the reference interpreter on the same program",
        )
    ]


def tokens_per_wall_second() -> list[Row]:
    """The shipped model on eight chips in eight actors."""
    result = _generate(shipped(), 64, Placement(1))
    return [
        Row(
            "tokens_per_wall_second",
            len(result.tokens) / result.token_wall_seconds,
            "tokens/s",
            AIM_TOKENS_PER_SECOND,
            "the aim for eight actors",
        )
    ]


def actors_vs_one_process() -> list[Row]:
    """Eight chips in eight actors against eight chips in one process."""
    rows = []
    for name, make, tokens in (
        ("actors_vs_one_process", tinyllama, 8),
        ("actors_vs_one_process_small", shipped, 64),
    ):
        subject = make()
        one = _token_seconds(subject, tokens, Placement(CHIPS, in_process=True))
        eight = _token_seconds(subject, tokens, Placement(1))
        model = "TinyLlama-1.1B's shape" if make is tinyllama else "the shipped model"
        rows.append(Row(name, eight, "s per token", one, f"{model}, all chips in one process"))
    return rows


def trace_overhead() -> list[Row]:
    """A decode step of eight chips with its trace written, against the step alone."""
    subject = shipped()
    result = _generate(subject, TRACED_TOKENS, Placement(CHIPS, in_process=True))
    launches = launches_of(result, [""] * len(result.tokens))
    spans = []
    with TemporaryDirectory() as directory:
        for i in range(1 + TRACES):
            request = TraceRequest(Path(directory) / f"trace{i}.json")
            began = perf_counter()
            request.write(subject.artifact, launches[-1:])
            spans.append(perf_counter() - began)
    step = result.steady_token_seconds
    return [
        Row(
            "trace_overhead",
            step + median(spans[1:]),
            "s per step",
            step,
            "the step without; one launch as Chrome JSON, every block of every chip, made and "
            "written for that step alone (after a first trace that loads the code)",
        )
    ]


ROWS: dict[str, Callable[[], list[Row]]] = {
    "decode_vs_numpy": decode_vs_numpy,
    "prefill_vs_numpy": prefill_vs_numpy,
    "engine_vs_reference": engine_vs_reference,
    "tokens_per_wall_second": tokens_per_wall_second,
    "first_token_seconds": first_token_seconds,
    "actors_vs_one_process": actors_vs_one_process,
    "allreduce_10440": allreduce_10440,
    "fabric_flit_hops": fabric_flit_hops,
    "allreduce_functional_vs_numpy": allreduce_functional_vs_numpy,
    "plan_70b": plan_70b,
    "timing_chip_cycles": timing_chip_cycles,
    "smollm2_token_seconds": smollm2_token_seconds,
    "smollm2_tokens_per_wall_second": smollm2_tokens_per_wall_second,
    "smollm2_first_token_seconds": smollm2_first_token_seconds,
    "smollm2_vs_llamacpp": smollm2_vs_llamacpp,
    "speculative_tokens_per_wall_second": speculative_tokens_per_wall_second,
    "load_10000_requests": load_10000_requests,
    "trace_overhead": trace_overhead,
    "metrics_overhead": metrics_overhead,
    "recovery_seconds": recovery_seconds,
    "snapshot_overhead": snapshot_overhead,
}


def select(names: Sequence[str]) -> tuple[list[str], list[str]]:
    """The rows asked for, in the order asked, and a line for each that has to be left out.

    When none are named: all that can be measured.  Raises InputError for a row that is none, and
    for one that needs what is not installed.
    """
    for name in names:
        if name not in ROWS:
            raise InputError(f"bench {name}: no such row; the rows are {', '.join(ROWS)}")
        if need := missing(name):
            raise InputError(f"bench {name}: {need}")
    if names:
        return list(names), []
    needs = {name: missing(name) for name in ROWS}
    left_out = [f"{name} is left out: {need}" for name, need in needs.items() if need]
    return [name for name, need in needs.items() if not need], left_out


def measure(name: str) -> list[Row]:
    """Measure one row (some come in two)."""
    return ROWS[name]()
