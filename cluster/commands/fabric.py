"""``lpu fabric``: topologies, routes, collectives and clocks, looked at from the command line."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cluster import option_checks, option_types
from cluster.commands import options
from cluster.commands.help_pages import Verb
from cluster.commands.settings import takes_settings
from cluster.errors import InputError
from cluster.runs import (
    MOST_BYTES,
    CollectiveSettings,
    ComparedGpu,
    Operation,
    Wiring,
    WiringChip,
)

if TYPE_CHECKING:
    from interconnect.clocks import ClockReport

app = typer.Typer(help="The wires between chips.", no_args_is_help=True)

Seed = Annotated[int, typer.Option(help="Seed of everything drawn at random.")]

#: Longest message: what comes of it stays far inside 64 bits.
MOST_VECTORS = 1 << 32
#: GPUs beside a collective in its report, where none are named.
DEFAULT_GPU = "h100"


@app.command(cls=Verb)
def info(chips: Wiring = "8", chip: WiringChip = None, as_json: option_types.Json = False) -> None:
    """Cables, hops and memory of a wiring."""
    from cluster.commands.output import print_json, print_table, stderr_console, working
    from cluster.runs import machine_of, wiring_facts

    with working("following cables ...", stderr_console()):
        wiring, spec = machine_of(chips, chip)
        facts = wiring_facts(wiring, spec)
    if as_json:
        print_json(facts)
        return
    hops, latency = facts["diameter_hops"], facts["worst_latency_ns"]
    bare = ", ".join(map(str, facts["links_without_frames"]))
    print_table(
        f"{wiring.chips:,} chips ({spec.name})",
        [
            ("nodes, racks", f"{wiring.nodes:,}, {wiring.racks:,}"),
            ("cables", f"{len(wiring.cables):,}"),
            ("diameter", f"{hops} hops of {spec.hop_cycles} cycles, {latency:,.0f} ns"),
            ("SRAM", f"{facts['sram_bytes']:,} bytes"),
            ("link", f"{spec.link_bytes_per_s / 1e9:g} GB/s each way"),
            *([("no collectives over", f"links {bare}; programs may use them")] if bare else []),
        ],
    )


@app.command(cls=Verb)
def route(
    source: Annotated[int, typer.Argument(help="Chip to start from.")],
    destination: Annotated[int, typer.Argument(help="Chip to reach.")],
    chips: Wiring = "8",
    chip: WiringChip = None,
    vectors: Annotated[int, typer.Option(help="Vectors (320 B) to send.")] = 1,
    salt: Annotated[int, typer.Option(help="Which of several equally short routes.")] = 0,
    as_json: option_types.Json = False,
) -> None:
    """The way from one chip to another, hop by hop, with cycles."""
    from cluster.commands.output import print_json, print_table
    from cluster.runs import follow_route, machine_of

    option_checks.check_at_least("--vectors", vectors, 1)
    option_checks.check_at_most("--vectors", vectors, MOST_VECTORS)
    wiring, spec = machine_of(chips, chip)
    facts = follow_route(wiring, spec, source, destination, vectors, salt)
    if as_json:
        print_json(facts)
        return
    rows = [
        (
            f"hop {i + 1}",
            f"chip {hop['chip']} link {hop['link']} -> chip {hop['to']}, Send at "
            f"cycle {hop['cycle']:,}, Receive at {hop['arrives']:,}",
        )
        for i, hop in enumerate(facts["route"])
    ]
    rows.append(("in all", f"{facts['cycles']:,} cycles, {facts['ns']:,.0f} ns, SRAM to SRAM"))
    print_table(f"chip {source} to chip {destination}", rows)


@app.command(cls=Verb)
def clocks(
    chips: Wiring = "8",
    chip: WiringChip = None,
    ppm: Annotated[float, typer.Option(help="Greatest drift of an oscillator, either way.")] = 50.0,
    iterations: Annotated[int, typer.Option(help="Exchanges per link.")] = 100_000,
    program_cycles: Annotated[int, typer.Option(help="Length of the run.")] = 10_000_000,
    deskew_interval: Annotated[int, typer.Option(help="Cycles between RUNTIME_DESKEWs.")] = 100_000,
    budget: Annotated[int, typer.Option(help="Cycles of drift a link's buffer absorbs.")] = 40,
    seed: Seed = 0,
    as_json: option_types.Json = False,
) -> None:
    """Characterise links, align counters, start together, and run against the drift budget."""
    from cluster.commands.output import print_json, print_table, stderr_console, working
    from cluster.runs import machine_of
    from interconnect.clocks import run_clocks

    for name, value in (
        ("--iterations", iterations),
        ("--program-cycles", program_cycles),
        ("--deskew-interval", deskew_interval),
        ("--budget", budget),
    ):
        option_checks.check_at_least(name, value, 1)
    with working("exchanging counters ...", stderr_console()):
        wiring, spec = machine_of(chips, chip)
        report = run_clocks(
            wiring.cables,
            wiring.chips,
            spec,
            seed=seed,
            ppm=ppm,
            iterations=iterations,
            program_cycles=program_cycles,
            deskew_interval_cycles=deskew_interval,
            budget_cycles=budget,
        )
    if as_json:
        print_json(report.as_json())
        return
    title = f"clocks of {report.chips:,} chips, drift up to {ppm:g} ppm"
    print_table(title, _clock_rows(report))


def _clock_rows(report: ClockReport) -> list[tuple[str, str]]:
    """What there is to say of clocks, for people."""
    low, high = report.link_mean_cycles
    return [
        ("links characterised", f"{report.links:,} with {report.iterations:,} exchanges each"),
        (
            "latency",
            f"mean {low:.2f} to {high:.2f}, least {report.link_min_cycles:g}, "
            f"greatest {report.link_max_cycles:g} cycles",
        ),
        (
            "alignment",
            f"tree of height {report.tree_height}, {report.exchanges:,} exchanges, "
            f"worst residual {report.worst_residual_cycles:.2f} cycles",
        ),
        ("synchronised start", f"{report.start_epochs} epochs, {report.start_cycles:,} cycles"),
        (
            "run",
            f"{report.program_cycles:,} cycles and {report.deskews:,} deskews of "
            f"{report.deskew_cycles:,} cycles in all",
        ),
        ("worst drift", f"{report.worst_drift_cycles:.2f} of {report.budget_cycles} cycles"),
    ]


@app.command(cls=Verb)
@takes_settings
def collective(
    context: typer.Context,
    *,
    settings: CollectiveSettings,
    metrics: option_types.MetricsSettings,
    seed: Seed = 0,
    traced: option_types.TraceSettings,
    kept: option_types.ReportSettings,
    faults: option_types.Faults = None,
    as_json: option_types.Json = False,
) -> None:
    """Schedule, check and simulate a collective; with --run, execute it and compare with NumPy."""
    from cluster.commands.output import print_json, print_table, stderr_console, working
    from cluster.report import report_request
    from cluster.runs import ONLY_WITH_RUN, run_collective
    from cluster.tracing import trace_request
    from programs.faults import load_fault_plan

    option_checks.check_at_least("--seed", seed, 0)
    if faults is not None and not settings.run:
        raise InputError(ONLY_WITH_RUN)
    plan = None if faults is None else load_fault_plan(faults)
    tracing = trace_request(traced.trace, traced.trace_window, None)
    reporting = report_request(kept.save, kept.report)
    if not settings.run and (tracing is not None or reporting.wanted):
        raise InputError("--trace, --save and --report: only with --run")
    if not settings.run and options.given(context, "metrics_port"):
        raise InputError("--metrics-port: without --run no chip runs; add --run")
    board = options.board_of(context, metrics) if settings.run else None
    with working("scheduling ...", stderr_console()) as tell:
        done = run_collective(
            settings, seed=seed, faults=plan, tracing=tracing, board=board, phase=tell
        )
    if reporting.wanted:
        from cluster.report import collective_run

        reporting.finish(lambda: collective_run(done, settings.gpu or DEFAULT_GPU, seed))
    if as_json:
        print_json(done.facts)
    else:
        title = f"{settings.operation} of {settings.nbytes:,} bytes on {done.plan.chips:,} chips"
        print_table(title, done.rows)
    done.require_right()


@app.command(cls=Verb)
def sweep(
    operation: Operation = "all-reduce",
    chips: Wiring = "8",
    chip: WiringChip = None,
    smallest: Annotated[int, typer.Option("--from", help="First size in bytes.")] = 320,
    largest: Annotated[int, typer.Option("--to", help="Last size in bytes.")] = 1 << 24,
    gpu: ComparedGpu = "h100",
    csv: Annotated[Path | None, typer.Option(help="Write the table to this file.")] = None,
    plot: option_types.Plot = None,
    as_json: option_types.Json = False,
) -> None:
    """A collective over sizes, doubling, beside the estimate for as many GPUs."""
    from cluster.commands.output import print_json, stderr_console, working
    from cluster.commands.sweep_tables import print_sweep
    from cluster.runs import machine_of, sweep_sizes, write_csv
    from interconnect.collectives import OPERATIONS

    option_checks.check_choice("--op", operation, OPERATIONS)
    option_checks.check_at_least("--from", smallest, 1)
    option_checks.check_at_least("--to", largest, smallest)
    option_checks.check_at_most("--to", largest, MOST_BYTES)
    option_checks.check_plot(plot)
    with working("", stderr_console()) as tell:
        wiring, spec = machine_of(chips, chip)
        try:
            rows = sweep_sizes(wiring, operation, spec, smallest, largest, gpu, tell)
        except ValueError as error:
            raise InputError(f"--chips {chips} --op {operation}: {error}") from None
    if csv is not None:
        write_csv(rows, csv)
    if plot is not None:
        from cluster.plots import draw_sweep

        draw_sweep(rows, operation, wiring.chips, plot)
    if as_json:
        print_json({"op": operation, "chips": wiring.chips, "rows": rows})
        return
    print_sweep(f"{operation} on {wiring.chips:,} chips", rows, gpu)
