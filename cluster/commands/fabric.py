"""``lpu fabric``: topologies, routes, collectives and clocks, looked at from the command line."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cluster.commands import options
from cluster.errors import InputError

if TYPE_CHECKING:
    from chip.spec import ChipSpec
    from interconnect.collectives import CollectivePlan
    from interconnect.wiring import Topology
    from programs.artifact import Artifact

app = typer.Typer(help="The wires between chips.", no_args_is_help=True)

Chips = Annotated[
    str, typer.Option("--chips", help="Chips of a known wiring, lpx, or a cable list (TOML, JSON).")
]
Chip = Annotated[
    str | None,
    typer.Option("--chip", help="Chip preset or TOML file.", show_default="the wiring's"),
]
Seed = Annotated[int, typer.Option(help="Seed of everything drawn at random.")]

#: Largest tensor and longest message: what comes of them stays far inside 64 bits.
MOST_BYTES, MOST_VECTORS = 1 << 40, 1 << 32
#: GPUs beside a collective in its report, where none are named.
DEFAULT_GPU = "h100"


def _machine(chips: str, chip: str | None) -> tuple[Topology, ChipSpec]:
    from chip.spec import load_chip_spec
    from interconnect.wiring import cable_faults, named_topology

    wiring = named_topology(chips)
    spec = load_chip_spec(chip if chip is not None else wiring.chip_spec)
    faults = cable_faults(wiring, spec)
    if faults:
        raise InputError(f"--chips {chips}: {faults[0]} ({len(faults)} such faults)")
    return wiring, spec


@app.command()
def info(chips: Chips = "8", chip: Chip = None, as_json: options.Json = False) -> None:
    """Cables, hops and memory of a wiring."""
    from cluster.commands.output import print_json, print_table, stderr_console, working
    from interconnect.wiring import diameter

    with working("following cables ...", stderr_console()):
        wiring, spec = _machine(chips, chip)
        hops = diameter(wiring)
    hop_ns = 1e9 * spec.hop_cycles / spec.clock_hz
    facts: dict[str, Any] = {
        "topology": wiring.name,
        "chips": wiring.chips,
        "nodes": wiring.nodes,
        "racks": wiring.racks,
        "cables": len(wiring.cables),
        "diameter_hops": hops,
        "sram_bytes": wiring.chips * spec.sram_bytes,
        "chip": spec.name,
        "hop_cycles": spec.hop_cycles,
        "worst_latency_ns": hops * hop_ns,
        "link_bytes_per_s": spec.link_bytes_per_s,
    }
    if as_json:
        print_json(facts)
        return
    print_table(
        f"{wiring.chips:,} chips ({spec.name})",
        [
            ("nodes, racks", f"{wiring.nodes:,}, {wiring.racks:,}"),
            ("cables", f"{len(wiring.cables):,}"),
            ("diameter", f"{hops} hops of {spec.hop_cycles} cycles, {hops * hop_ns:,.0f} ns"),
            ("SRAM", f"{facts['sram_bytes']:,} bytes"),
            ("link", f"{spec.link_bytes_per_s / 1e9:g} GB/s each way"),
        ],
    )


@app.command()
def route(
    source: Annotated[int, typer.Argument(help="Chip to start from.")],
    destination: Annotated[int, typer.Argument(help="Chip to reach.")],
    chips: Chips = "8",
    chip: Chip = None,
    vectors: Annotated[int, typer.Option(help="Vectors (320 B) to send.")] = 1,
    salt: Annotated[int, typer.Option(help="Which of several equally short routes.")] = 0,
    as_json: options.Json = False,
) -> None:
    """The way from one chip to another, hop by hop, with cycles."""
    import numpy as np

    from chip.isa import LINKS
    from cluster.commands.output import print_json, print_table
    from interconnect.wires import schedule_messages
    from interconnect.wiring import minimal_routes

    wiring, spec = _machine(chips, chip)
    for name, number in (("source", source), ("destination", destination)):
        if not 0 <= number < wiring.chips:
            raise InputError(f"{name} {number}: the wiring has chips 0 to {wiring.chips - 1}")
    options.check_at_least("--vectors", vectors, 1)
    options.check_at_most("--vectors", vectors, MOST_VECTORS)
    ends = np.array([[source], [destination]])
    length, links = minimal_routes(wiring, ends[0], ends[1], np.array([salt]))
    wires = schedule_messages(
        links, length, wiring.peer_link, np.array([vectors]), np.zeros(1, np.int64), spec,
        np.zeros(wiring.chips * LINKS, np.int64), sources=ends[0], destinations=ends[1],
    )  # fmt: skip
    hops = [
        {
            "chip": int(c), "link": int(k), "to": int(wiring.peer[c, k]), "cycle": int(t),
            "arrives": int(t) + wires.latency,
        }
        for c, k, t in zip(wires.chip, wires.link, wires.cycle, strict=True)
    ]  # fmt: skip
    cycles = spec.hop_cycles * len(hops)
    if hops:
        first, last = hops[0]["cycle"], hops[-1]["cycle"]
        cycles = last - first + spec.hop_cycles + wires.spacing * (vectors - 1)
    facts = {
        "source": source, "destination": destination, "hops": len(hops), "cycles": cycles,
        "ns": 1e9 * cycles / spec.clock_hz, "vectors": vectors, "route": hops,
    }  # fmt: skip
    if as_json:
        print_json(facts)
        return
    rows = [
        (f"hop {i + 1}", f"chip {hop['chip']} link {hop['link']} -> chip {hop['to']}, Send at "
                         f"cycle {hop['cycle']:,}, Receive at {hop['arrives']:,}")
        for i, hop in enumerate(hops)
    ]  # fmt: skip
    rows.append(("in all", f"{cycles:,} cycles, {facts['ns']:,.0f} ns, SRAM to SRAM"))
    print_table(f"chip {source} to chip {destination}", rows)


@app.command()
def clocks(
    chips: Chips = "8",
    chip: Chip = None,
    ppm: Annotated[float, typer.Option(help="Greatest drift of an oscillator, either way.")] = 50.0,
    iterations: Annotated[int, typer.Option(help="Exchanges per link.")] = 100_000,
    program_cycles: Annotated[int, typer.Option(help="Length of the run.")] = 10_000_000,
    deskew_interval: Annotated[
        int, typer.Option(help="Cycles between RUNTIME_DESKEWs.")
    ] = 100_000,
    budget: Annotated[int, typer.Option(help="Cycles of drift a link's buffer absorbs.")] = 40,
    seed: Seed = 0,
    as_json: options.Json = False,
) -> None:
    """Characterise links, align counters, start together, and run against the drift budget."""
    from cluster.commands.output import print_json, print_table, stderr_console, working
    from interconnect.clocks import run_clocks

    for name, value in (
        ("--iterations", iterations), ("--program-cycles", program_cycles),
        ("--deskew-interval", deskew_interval), ("--budget", budget),
    ):  # fmt: skip
        options.check_at_least(name, value, 1)
    with working("exchanging counters ...", stderr_console()):
        wiring, spec = _machine(chips, chip)
        report = run_clocks(
            wiring.cables, wiring.chips, spec, seed=seed, ppm=ppm, iterations=iterations,
            program_cycles=program_cycles, deskew_interval_cycles=deskew_interval,
            budget_cycles=budget,
        )  # fmt: skip
    if as_json:
        print_json(report.as_json())
        return
    low, high = report.link_mean_cycles
    print_table(
        f"clocks of {report.chips:,} chips, drift up to {ppm:g} ppm",
        [
            ("links characterised", f"{report.links:,} with {report.iterations:,} exchanges each"),
            ("latency", f"mean {low:.2f} to {high:.2f}, least {report.link_min_cycles:g}, "
                        f"greatest {report.link_max_cycles:g} cycles"),
            ("alignment", f"tree of height {report.tree_height}, {report.exchanges:,} exchanges, "
                          f"worst residual {report.worst_residual_cycles:.2f} cycles"),
            ("synchronised start", f"{report.start_epochs} epochs, {report.start_cycles:,} cycles"),
            ("run", f"{report.program_cycles:,} cycles and {report.deskews:,} deskews of "
                    f"{report.deskew_cycles:,} cycles in all"),
            ("worst drift", f"{report.worst_drift_cycles:.2f} of {report.budget_cycles} cycles"),
        ],
    )  # fmt: skip


Operation = Annotated[
    str,
    typer.Option(
        "--op",
        help="all-reduce, reduce-scatter, all-gather, broadcast, all-to-all or point-to-point.",
    ),
]
Gpu = Annotated[
    str | None, typer.Option(help="Compare with as many GPUs: h100, b200 ... (an estimate).")
]


@app.command()
def collective(
    context: typer.Context,
    operation: Operation = "all-reduce",
    chips: Chips = "8",
    nbytes: Annotated[int, typer.Option("--bytes", help="Bytes of one chip's tensor.")] = 1 << 20,
    chip: Chip = None,
    algorithm: Annotated[
        str | None,
        typer.Option(help="hierarchical, one-shot or direct.", show_default="the fastest"),
    ] = None,
    gpu: Gpu = None,
    run: Annotated[
        bool, typer.Option("--run", help="Also run it with data on emulated chips.")
    ] = False,
    dtype: Annotated[str, typer.Option(help="With --run: int32 or fp32.")] = "int32",
    chips_per_actor: Annotated[
        int | None, typer.Option(help="With --run: chips per process.", show_default="as fits")
    ] = None,
    in_process: Annotated[
        bool, typer.Option(help="With --run: no actors; every core steps chips in a thread.")
    ] = False,
    sync: Annotated[str, typer.Option(help="With --run: lookahead or barrier.")] = "lookahead",
    metrics_port: options.MetricsPort = 0,
    metrics_host: options.MetricsHost = options.METRICS_HOST,
    metrics_linger: options.MetricsLinger = options.METRICS_LINGER_SECONDS,
    seed: Seed = 0,
    trace: options.Trace = None,
    trace_window: options.TraceWindow = None,
    save: options.Save = None,
    report: options.Report = None,
    faults: options.Faults = None,
    as_json: options.Json = False,
) -> None:
    """Schedule, check and simulate a collective; with --run, execute it and compare with NumPy."""
    from cluster.commands.output import print_json, print_table, stderr_console, working
    from cluster.errors import RunError
    from cluster.gpu import gpu_time
    from cluster.metrics import RunWatch
    from cluster.report import report_request
    from cluster.runs import collective_rows, run_functional
    from cluster.tracing import Launched, trace_request
    from interconnect.collectives import ALGORITHMS, OPERATIONS, plan_collective
    from programs.artifact import ENTRY_POINT
    from programs.faults import load_fault_plan
    from programs.running import SYNC_MODES

    options.check_choice("--op", operation, OPERATIONS)
    options.check_choice("--dtype", dtype, ("int32", "fp32"))
    options.check_choice("--sync", sync, SYNC_MODES)
    options.check_at_least("--bytes", nbytes, 1)
    options.check_at_most("--bytes", nbytes, MOST_BYTES)
    options.check_at_least("--seed", seed, 0)
    options.check_at_least("--chips-per-actor", chips_per_actor, 1)
    if algorithm is not None:
        options.check_choice("--algorithm", algorithm, ALGORITHMS)
    asked = dtype != "int32" or sync != "lookahead" or in_process or chips_per_actor is not None
    if (asked or faults is not None) and not run:
        raise InputError(
            "--dtype, --sync, --in-process, --chips-per-actor and --faults: only with --run"
        )
    fault_plan = None if faults is None else load_fault_plan(faults)
    tracing = trace_request(trace, trace_window, None)
    reporting = report_request(save, report)
    if not run and (tracing is not None or reporting.wanted):
        raise InputError("--trace, --save and --report: only with --run")
    traced = None
    compiled: list[tuple[Artifact, Topology]] = []

    def planned(artifact: Artifact, wiring: Topology) -> None:
        compiled.append((artifact, wiring))
        if tracing is not None:  # too large a trace is refused before the run
            tracing.plan(artifact, [Launched(ENTRY_POINT, artifact.predicted_cycles[ENTRY_POINT])])

    if not run and options.given(context, "metrics_port"):
        raise InputError("--metrics-port: without --run no chip runs; add --run")
    board = (
        options.open_board(context, metrics_port, metrics_host, metrics_linger) if run else None
    )
    with working("scheduling ...", stderr_console()) as tell:
        wiring, spec = _machine(chips, chip)

        def plan_on(wiring: Topology) -> CollectivePlan:
            try:
                return plan_collective(wiring, operation, nbytes, spec, algorithm=algorithm)
            except ValueError as error:
                raise InputError(f"--chips {chips} --op {operation}: {error}") from None

        compared = None if gpu is None else gpu_time(gpu, operation, wiring.chips, nbytes)
        plan = plan_on(wiring)
        functional = None
        if run:
            functional = run_functional(
                wiring, operation, nbytes, spec, dtype=dtype, seed=seed, sync=sync,
                chips_per_actor=chips_per_actor, in_process=in_process, phase=tell,
                algorithm=algorithm, planned=planned, faults=fault_plan,
                watch=None if board is None else RunWatch(board, "fabric collective"),
            )  # fmt: skip
            artifact, in_use = compiled[0]
            if in_use is not wiring:  # some of its nodes are spare
                plan = plan_on(in_use)
                compared = None if gpu is None else gpu_time(gpu, operation, plan.chips, nbytes)
            launched = Launched(ENTRY_POINT, functional["cycles"])
            if tracing is not None:
                tell("writing the trace ...")
                traced = tracing.write(artifact, [launched])
    facts: dict[str, Any] = {
        "op": operation, "chips": plan.chips, "bytes": nbytes, "algorithm": plan.algorithm,
        "latency_cycles": plan.latency_cycles, "latency_ns": plan.latency_ns,
        "bandwidth_gb_s": plan.bandwidth_gb_s, "vectors": plan.vectors,
        "vector_hops": plan.vector_hops, "link_conflicts": plan.link_conflicts,
        "findings": [str(finding) for finding in plan.findings],
        "bounds": {name: {"cycles": b.cycles, "formula": b.formula}
                   for name, b in plan.bounds.items()},
        "busiest_link_ratio": float(plan.run.busiest()[1]),
        "digest": f"{plan.digest:016x}", "launches": len(plan.launch_words),
    }  # fmt: skip
    if compared is not None:
        facts["gpu"] = {
            "name": compared.gpu, "gpus": plan.chips, "algorithm": compared.algorithm,
            "best_ns": 1e9 * compared.best_s, "p50_ns": 1e9 * compared.p50_s,
            "p99_ns": 1e9 * compared.p99_s, "estimate": True,
        }  # fmt: skip
    if functional is not None:
        facts["run"] = functional
    if traced is not None:
        facts["trace"] = traced.summary()
    rows = collective_rows(facts, plan)
    if reporting.wanted:
        from cluster.report import collective_run

        reporting.finish(
            lambda: collective_run(
                rows, operation, nbytes, artifact, launched, gpu or DEFAULT_GPU, seed
            )
        )
    if as_json:
        print_json(facts)
    else:
        print_table(f"{operation} of {nbytes:,} bytes on {plan.chips:,} chips", rows)
    if plan.findings:
        raise RunError(f"the schedule breaks a rule: {plan.findings[0]}")
    if functional is not None and not functional["equal"]:
        raise RunError(f"the chips' result differs from NumPy's on chip {functional['differs']}")


@app.command()
def sweep(
    operation: Operation = "all-reduce",
    chips: Chips = "8",
    chip: Chip = None,
    smallest: Annotated[int, typer.Option("--from", help="First size in bytes.")] = 320,
    largest: Annotated[int, typer.Option("--to", help="Last size in bytes.")] = 1 << 24,
    gpu: Gpu = "h100",
    csv: Annotated[Path | None, typer.Option(help="Write the table to this file.")] = None,
    plot: options.Plot = None,
    as_json: options.Json = False,
) -> None:
    """A collective over sizes, doubling, beside the estimate for as many GPUs."""
    from rich.console import Console
    from rich.table import Table

    from cluster.commands.output import print_json, stderr_console, working
    from cluster.runs import COLUMNS, draw_sweep, sweep_sizes, write_csv
    from interconnect.collectives import OPERATIONS

    options.check_choice("--op", operation, OPERATIONS)
    options.check_at_least("--from", smallest, 1)
    options.check_at_least("--to", largest, smallest)
    options.check_at_most("--to", largest, MOST_BYTES)
    options.check_plot(plot)
    with working("", stderr_console()) as tell:
        wiring, spec = _machine(chips, chip)
        try:
            rows = sweep_sizes(wiring, operation, spec, smallest, largest, gpu, tell)
        except ValueError as error:
            raise InputError(f"--chips {chips} --op {operation}: {error}") from None
    if csv is not None:
        write_csv(rows, csv)
    if plot is not None:
        draw_sweep(rows, operation, wiring.chips, plot)
    if as_json:
        print_json({"op": operation, "chips": wiring.chips, "rows": rows})
        return
    table = Table(title=f"{operation} on {wiring.chips:,} chips", title_justify="left")
    for name in COLUMNS:
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(*(
            "" if row[name] is None else f"{row[name]:,.6g}" if isinstance(row[name], float)
            else str(row[name]) for name in COLUMNS
        ))  # fmt: skip
    Console(highlight=False).print(table)
