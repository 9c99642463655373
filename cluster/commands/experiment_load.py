"""``lpu experiment load``: an open-loop request load on GPUs and on LPUs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cluster.commands import options
from cluster.errors import InputError

if TYPE_CHECKING:
    from cluster.experiments.arrivals import Trace
    from cluster.experiments.machines import LpuChoice

POOLS = ("gpu", "lpu", "both")

Model = Annotated[
    str, typer.Option(help="target, draft, a checkpoint directory, or a shape by name.")
]
Gpu = Annotated[str, typer.Option(help="GPU preset or TOML file.")]
GpuTp = Annotated[int, typer.Option(help="GPUs that share the model: a group.")]
Groups = Annotated[int, typer.Option(help="GPU groups behind one queue.")]
GpuDtype = Annotated[str, typer.Option(help="Number type of weights on GPUs.")]
MaxBatch = Annotated[int, typer.Option(help="Requests in a GPU group's batch at most.")]
Chips = Annotated[int, typer.Option(help="LPUs of one pipeline: 1, 2, 4 or 8.")]
Pipelines = Annotated[int, typer.Option(help="LPU pipelines behind one queue.")]
LpuCycles = Annotated[
    int | None,
    typer.Option(
        help="Cycles of a token on a pipeline, with transfers.", show_default="compiled, exact"
    ),
]
LpuInterval = Annotated[
    int | None,
    typer.Option(
        help="Cycles between tokens of different requests in a pipeline.", show_default="no overlap"
    ),
]
TraceFile = Annotated[
    Path | None,
    typer.Option("--trace", help="CSV of requests (Azure LLM columns).", show_default="none"),
]
Limit = Annotated[
    int | None, typer.Option(help="With --trace: the first so many.", show_default="all")
]
Arrivals = Annotated[str, typer.Option(help="poisson or bursts.")]
Rate = Annotated[float, typer.Option(help="Requests per second.")]
Requests = Annotated[int, typer.Option(help="Requests.")]
Burst = Annotated[int, typer.Option(help="With bursts: requests that come at once.")]
PromptTokens = Annotated[int, typer.Option(help="Median tokens of a prompt.")]
OutputTokens = Annotated[int, typer.Option(help="Median tokens of an answer.")]
Spread = Annotated[float, typer.Option(help="Sigma of the lengths' logarithm.")]
SloTtft = Annotated[float, typer.Option(help="SLO: seconds to the first token.")]
SloTpot = Annotated[float, typer.Option(help="SLO: seconds per further token.")]
Seed = Annotated[int, typer.Option(help="Seed of everything drawn at random.")]


def load(
    context_: typer.Context,
    pool: Annotated[str, typer.Option(help="gpu, lpu or both, each with the whole load.")] = "both",
    model: Model = "target",
    trace: TraceFile = None,
    limit: Limit = None,
    arrivals: Arrivals = "poisson",
    rate: Rate = 200.0,
    requests: Requests = 1000,
    burst: Burst = 16,
    prompt_tokens: PromptTokens = 64,
    output_tokens: OutputTokens = 32,
    spread: Spread = 0.6,
    seed: Seed = 0,
    slo_ttft: SloTtft = 1.0,
    slo_tpot: SloTpot = 0.05,
    gpu: Gpu = "h100",
    gpu_tp: GpuTp = 1,
    gpu_groups: Groups = 1,
    gpu_dtype: GpuDtype = "fp16",
    max_batch: MaxBatch = 64,
    chips: Chips = 1,
    pipelines: Pipelines = 1,
    dtype: options.Dtype = "int8",
    context: options.Context = None,
    chip: options.ChipType = "groq-lpu-1",
    lpu_cycles_per_token: LpuCycles = None,
    lpu_interval_cycles: LpuInterval = None,
    plot: options.Plot = None,
    metrics_port: options.MetricsPort = 0,
    metrics_host: options.MetricsHost = options.METRICS_HOST,
    metrics_linger: options.MetricsLinger = options.METRICS_LINGER_SECONDS,
    as_json: options.Json = False,
) -> None:
    """Serve an open-loop load: latencies, goodput under an SLO, queues, utilisation."""
    options.check_choice("--pool", pool, POOLS)
    options.check_plot(plot)
    choice = lpu_choice(chips, chip, dtype, context, lpu_cycles_per_token, lpu_interval_cycles)

    from cluster.experiments.load import GpuServers, LpuServers, RooflineCost, run_load, serve_load
    from cluster.experiments.machines import lpu_belt
    from cluster.experiments.pictures import draw_load
    from cluster.experiments.serving import Slo, latencies
    from cluster.gpu.roofline import GpuGroup
    from cluster.gpu.spec import load_gpu_spec
    from cluster.metrics.serving import publish_load
    from cluster.output import print_json, stderr_console, working
    from programs.architectures import architecture

    slo = Slo(slo_ttft, slo_tpot)
    arch = architecture(model)
    wanted = make_trace(
        trace, limit, arrivals, rate, requests, burst, (prompt_tokens, output_tokens, spread), seed
    )
    board = options.open_board(context_, metrics_port, metrics_host, metrics_linger)
    pools: dict[str, GpuServers | LpuServers] = {}
    with working("compiling ...", stderr_console()) as tell:
        if pool != "lpu":
            group = GpuGroup(load_gpu_spec(gpu), gpu_tp, gpu_dtype)
            pools["gpu"] = GpuServers(RooflineCost(group, arch, max_batch), gpu_groups)
        if pool != "gpu":
            belt = lpu_belt(model, choice)
            given = lpu_cycles_per_token is not None
            pools["lpu"] = LpuServers(belt, arch.name, pipelines, None if given else chips)
        tell(f"serving {len(wanted):,} requests ...")
        served = serve_load(wanted, pools)
        report = run_load(wanted, pools, slo, served)
    report["seed"] = seed
    took = {name: latencies(wanted, times) for name, times in served.items()}
    if board is not None:
        publish_load(board, report, took)
    if plot is not None:
        draw_load(took, plot)
    if as_json:
        print_json(report)
    else:
        _show(report)


def lpu_choice(
    chips: int, chip: str, dtype: str, context: int | None, cycles: int | None, interval: int | None
) -> LpuChoice:
    """The options about LPUs, checked."""
    options.check_parallelism(chips, None, 1)
    options.check_choice("--dtype", dtype, ("int8", "fp16"))
    options.check_at_least("--context", context, 1)
    options.check_at_least("--lpu-cycles-per-token", cycles, 1)
    options.check_at_least("--lpu-interval-cycles", interval, 1)
    from cluster.experiments.machines import LpuChoice

    return LpuChoice(chips, chip, dtype, context, cycles, interval)


def make_trace(
    path: Path | None, limit: int | None, arrivals: str, rate: float, requests: int, burst: int,
    lengths: tuple[int, int, float], seed: int,
) -> Trace:  # fmt: skip
    """The requests that the options ask for; lengths: median prompt and answer, and spread."""
    from cluster.experiments.arrivals import Lengths, bursts, poisson, read_trace

    options.check_choice("--arrivals", arrivals, ("poisson", "bursts"))
    options.check_at_least("--limit", limit, 1)
    drawn = Lengths(*lengths)  # checked beside a trace too: they may be a lone request's
    if path is not None:
        return read_trace(path, limit)
    if limit is not None:
        raise InputError("--limit is of a --trace: name one, or use --requests")
    if arrivals == "bursts":
        return bursts(rate, requests, drawn, seed, burst)
    return poisson(rate, requests, drawn, seed)


def span(seconds: float | None) -> str:
    """A time for people, in the unit that suits it."""
    if seconds is None:
        return "-"
    for unit, scale in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if abs(seconds) >= scale:
            return f"{seconds / scale:,.3g} {unit}"
    return f"{seconds / 1e-9:,.3g} ns"


def service_cells(report: dict[str, Any]) -> list[str]:
    """A pool's cells for the rows of `SERVICE_ROWS`."""

    def tail(name: str) -> str:
        return " / ".join(span(report[name][rank]) for rank in ("p50", "p90", "p99"))

    return [
        tail("ttft_s"), tail("second_token_s"), tail("tpot_s"), tail("end_to_end_s"),
        f"{report['tokens_per_s']:,.0f} tokens/s, {report['requests_per_s']:,.4g} requests/s",
        f"{report['goodput_per_s']:,.4g} requests/s ({report['good_ratio']:.1%})",
        f"{report['queue_mean']:,.3g}, {report['queue_peak']:,}",
        f"{report['utilisation']:.1%} of {report['servers']:,}",
        f"{report['refused']:,}",
    ]  # fmt: skip


SERVICE_ROWS = (
    "first token p50/p90/p99", "second token after first", "per further token", "end to end",
    "throughput", "goodput under the SLO", "queue mean, peak", "utilisation", "refused",
)  # fmt: skip


def _show(report: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    pools = report["pools"]
    table = Table(
        title=f"{report['requests']:,} requests, {report['arrivals']}, virtual time",
        title_justify="left",
    )
    table.add_column("")
    for name, pool in pools.items():
        table.add_column(f"{name}: {pool['model']}")
    table.add_row("machine", *(_machine(pool) for pool in pools.values()))
    table.add_row("costs", *(_costs(pool) for pool in pools.values()))
    columns = [service_cells(pool) for pool in pools.values()]
    for number, heading in enumerate(SERVICE_ROWS):
        table.add_row(heading, *(column[number] for column in columns))
    slo = next(iter(pools.values()))["slo"]
    table.caption = f"SLO: {slo['ttft_s']:g} s to the first token, {slo['tpot_s']:g} s per further"
    Console(highlight=False).print(table)


def _machine(pool: dict[str, Any]) -> str:
    if pool["kind"] == "gpu":
        size = f"{pool['groups']} x {pool['tensor_parallel']} {pool['gpu']}, {pool['dtype']}"
        return f"{size}, batch up to {pool['max_batch']}"
    chips = pool["chips_per_pipeline"]
    text = f"{pool['pipelines']} pipelines" + (f" of {chips} chips" if chips else "")
    places = pool["places_per_pipeline"]
    return text if places == 1 else f"{text}, {places} requests in each"


def _costs(pool: dict[str, Any]) -> str:
    if pool["kind"] == "gpu" or pool["initiation_interval"] == "none":
        return str(pool["costs"])
    return f"{pool['costs']}; interval of {pool['initiation_interval_cycles']:,} cycles given"
