"""Workloads other than a decoder, from their sizes to a checked artifact and a compared run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chip.checker import check
from chip.engine import Chip
from chip.spec import ChipSpec, load_chip_spec
from cluster.errors import RunError
from cluster.processes import cores
from cluster.runs.settings import WorkloadSettings
from interconnect.vectors import check_fabric
from programs.artifact import Artifact, Bindings, save
from programs.cholesky import CholeskyShape, compile_cholesky, golden_cholesky, read_cholesky
from programs.convnet import (
    Network,
    compile_network,
    golden_network,
    place_network,
    random_input,
    randomise,
    read_logits,
)
from programs.decoder import join_images
from programs.encoder import (
    EncoderShape,
    compile_encoder,
    golden_encoder,
    layers_of_chips,
    place_encoder,
    random_layers,
    random_tokens,
    read_encoder,
)
from programs.matmul import (
    GridShape,
    MatmulShape,
    compile_grid,
    compile_matmul,
    golden_grid,
    golden_matmul,
    peak_multiply_accumulates,
    plan_matmul,
    read_grid,
    read_matmul,
)
from programs.running import LOOKAHEAD, Runner

Values = NDArray[Any]


@dataclass(frozen=True)
class CompiledWorkload:
    """A compiled workload with random data.

    results: what the chips hold after a launch; golden: what they must hold; entry: the artifact's
    only entry point; idle: chips of the wiring that have nothing to do; error: how far results are
    from a float64 computation of the same.
    """

    name: str
    artifact: Artifact
    entry: str
    multiply_accumulates: int
    dtype: str
    results: Callable[[list[Chip]], Values]
    golden: Callable[[], Values]
    idle: int = 0
    error: Callable[[Values], float] | None = None


def random_matmul(
    shape: MatmulShape, spec: ChipSpec, seed: int, data: bool = True
) -> CompiledWorkload:
    """A product of random matrices: whole int8 range, or fp16 normal numbers."""
    a, b = _matrices(shape, seed) if data else (None, None)
    artifact = compile_matmul(shape, spec, a, b)

    def golden() -> Values:
        assert a is not None and b is not None
        return golden_matmul(a, b, shape.chips, shape.split)

    def results(chips: list[Chip]) -> Values:
        return read_matmul(plan_matmul(shape, spec), chips)

    macs = shape.multiply_accumulates
    return CompiledWorkload("matmul", artifact, "matmul", macs, shape.dtype, results, golden)


def random_grid(shape: GridShape, spec: ChipSpec, seed: int, data: bool = True) -> CompiledWorkload:
    """As ``random_matmul``, over rows and columns of chips."""
    a, b = _matrices(shape, seed) if data else (None, None)
    artifact, plan = compile_grid(shape, spec, a, b)

    def golden() -> Values:
        assert a is not None and b is not None
        return golden_grid(a, b, shape.rows)

    def results(chips: list[Chip]) -> Values:
        return read_grid(shape, plan, chips)

    macs, idle = shape.multiply_accumulates, artifact.chips - shape.chips
    return CompiledWorkload("matmul", artifact, "matmul", macs, shape.dtype, results, golden, idle)


def _matrices(shape: MatmulShape | GridShape, seed: int) -> tuple[Values, Values]:
    """Random a [m, k] and b [k, n]."""
    rng = np.random.Generator(np.random.Philox(key=[seed, 0]))
    sizes = ((shape.m, shape.k), (shape.k, shape.n))
    a: Values
    b: Values
    if shape.dtype == "int8":
        a, b = (rng.integers(-128, 128, size).astype(np.int8) for size in sizes)
    else:
        a, b = (rng.standard_normal(size, np.float32).astype(np.float16) for size in sizes)
    return a, b


def random_network(
    network: Network, spec: ChipSpec, seed: int, data: bool = True
) -> CompiledWorkload:
    """An int8 network with random weights and a random input."""
    image = random_input(network, seed)
    if data:
        randomise(network, image, seed)
    artifact = compile_network(network, spec, image if data else None)

    def golden() -> Values:
        return golden_network(network, image)[network.layers[-1].name]

    def results(chips: list[Chip]) -> Values:
        return read_logits(network, place_network(network, spec), chips[0])

    macs = network.multiply_accumulates()
    return CompiledWorkload(network.name, artifact, "network", macs, "int8", results, golden)


def random_encoder(
    shape: EncoderShape, spec: ChipSpec, chips: int, seed: int, data: bool = True
) -> CompiledWorkload:
    """An fp16 encoder with random weights and tokens, its layers in a pipeline of chips."""
    layers = random_layers(shape, seed) if data else []
    x = random_tokens(shape, seed)
    artifact = (
        compile_encoder(shape, spec, chips, layers, x)
        if data
        else compile_encoder(shape, spec, chips)
    )

    def golden() -> Values:
        return golden_encoder(shape, layers, x)

    def results(chips_run: list[Chip]) -> Values:
        places = place_encoder(shape, layers_of_chips(shape.layers, chips)[0], spec)
        return read_encoder(shape, places, chips_run[-1])

    macs = shape.multiply_accumulates
    return CompiledWorkload("encoder", artifact, "encoder", macs, "fp16", results, golden)


def random_cholesky(
    shape: CholeskyShape, spec: ChipSpec, seed: int, data: bool = True
) -> CompiledWorkload:
    """The factor of G G^T / 24 n + 1, G being random whole numbers from -8 to 8, of variance 24.

    Their products are exact: the matrix does not depend on the library that makes it.
    """
    a: Values | None = None
    if data:
        rng = np.random.Generator(np.random.Philox(key=[seed, 0]))
        g = rng.integers(-8, 9, (shape.n, shape.n)).astype(np.float64)
        a = (g @ g.T / (24 * shape.n) + np.eye(shape.n)).astype(np.float32)
    artifact = compile_cholesky(shape, spec, a)

    def golden() -> Values:
        assert a is not None
        return golden_cholesky(a)

    def results(chips: list[Chip]) -> Values:
        return read_cholesky(shape, spec, chips)

    def error(found: Values) -> float:
        assert a is not None
        exact = np.linalg.cholesky(a.astype(np.float64))
        # to two digits: others depend on the library
        return float(f"{np.abs(found - exact).max() / np.abs(exact).max():.1e}")

    macs = shape.multiply_accumulates
    return CompiledWorkload(
        "cholesky", artifact, "cholesky", macs, "fp16", results, golden, error=error
    )


def figures(workload: CompiledWorkload) -> dict[str, Any]:
    """Cycles, time at the chip's clock, and what share of the MXM's peak is useful."""
    artifact = workload.artifact
    cycles = artifact.predicted_cycles[workload.entry]
    seconds = cycles / artifact.spec.clock_hz
    peak = peak_multiply_accumulates(workload.dtype) * (artifact.chips - workload.idle)
    bindings = Bindings.of(artifact)
    own = {"layer_cycles": bindings.layer_cycles, "product_cycles": bindings.product_cycles}
    parts = {name: cycles for name, cycles in own.items() if cycles is not None}
    return {
        **parts,
        "cycles": cycles,
        "microseconds": 1e6 * seconds,
        "multiply_accumulates": workload.multiply_accumulates,
        "mxm_utilisation": workload.multiply_accumulates / (cycles * peak),
        "tera_operations_per_s": 2e-12 * workload.multiply_accumulates / seconds,
        "sram_used_bytes": bindings.sram_used_bytes,
    }


def check_workload(workload: CompiledWorkload) -> None:
    """Prove the programs legal; raises RunError with the first finding."""
    artifact, entry = workload.artifact, workload.entry
    findings = []
    for program in artifact.programs[entry]:
        findings += check(program, artifact.spec)
    findings += check_fabric(
        artifact.programs[entry], artifact.program_of_chip, artifact.cables, artifact.spec
    )
    if findings:
        raise RunError(f"{workload.name}: {len(findings)} findings, first: {findings[0]}")


def run_workload(workload: CompiledWorkload) -> dict[str, Any]:
    """Run one launch here and compare; raises RunError when anything differs from the golden model.

    Wall times are in seconds; the artifact must have its data.
    """
    artifact = workload.artifact
    runner = Runner.alone(artifact, threads=cores())
    began = perf_counter()
    retired = runner.launch(workload.entry, 0, LOOKAHEAD)
    wall = perf_counter() - began
    cycles = artifact.predicted_cycles[workload.entry]
    if set(retired.values()) != {cycles}:
        raise RunError(f"{workload.name}: chips retired at {retired}, predicted {cycles}")
    found, wanted = workload.results(runner.chips), workload.golden()
    same = found.shape == wanted.shape and found.dtype == wanted.dtype
    raw = np.dtype(f"u{wanted.dtype.itemsize}")
    differing = int((found.view(raw) != wanted.view(raw)).sum()) if same else wanted.size
    if differing:
        raise RunError(
            f"{workload.name}: {differing} of {wanted.size} values differ from the golden model"
        )
    said = {"equal_to_golden": True, "values": int(wanted.size), "launch_wall_seconds": wall}
    if workload.error is not None:
        said["error_against_float64"] = workload.error(found)
    return said


def measure_workload(
    build: Callable[[ChipSpec, int, bool], CompiledWorkload],
    settings: WorkloadSettings,
    tell: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Compile, check, perhaps run and write one workload; what there is to say of it.

    build: makes it for a chip, from a seed, with data or without.  tell: hears what goes on.
    """
    workload = build(load_chip_spec(settings.chip), settings.seed, settings.with_data)
    tell("checking ...")
    check_workload(workload)
    result = {**figures(workload), "checked": True}
    if settings.run:
        tell("running ...")
        result |= run_workload(workload)
    if settings.output is not None:
        tell("writing ...")
        join_images(workload.artifact)
        save(workload.artifact, settings.output)
        result["artifact"] = str(settings.output)
    return result


def workload_rows(result: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The result of ``measure_workload`` for people."""
    rows = [
        ("cycles", f"{result['cycles']:,}"),
        ("time at the chip's clock", f"{result['microseconds']:,.1f} us"),
        ("useful multiply-accumulates", f"{result['multiply_accumulates']:,}"),
        ("MXM utilisation", f"{100 * result['mxm_utilisation']:.1f}% of its peak"),
        ("rate", f"{result['tera_operations_per_s']:.1f} T op/s"),
        ("SRAM per chip", f"{result['sram_used_bytes']:,} bytes"),
        ("checked", "legal"),
    ]
    if "layer_cycles" in result:
        rows.insert(1, ("cycles of a layer", f"{result['layer_cycles']:,}"))
    if "product_cycles" in result:
        rows.insert(1, ("of which a chip's product", f"{result['product_cycles']:,}"))
    if "values" in result:
        rows.append(("run", f"all {result['values']:,} values equal the golden model's"))
    if "error_against_float64" in result:
        error = f"{result['error_against_float64']:.1e} of the largest element"
        rows.append(("error against float64", error))
    if "artifact" in result:
        rows.append(("file", result["artifact"]))
    return rows
