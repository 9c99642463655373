"""``lpu experiment load``: an open-loop request load on GPUs and on LPUs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cluster.commands import options
from cluster.errors import InputError
from cluster.gpu import GPU_PRESETS as GPUS
from cluster.gpu import LINK_PRESETS as LINKS

if TYPE_CHECKING:
    from cluster.experiments.serving import LpuChoice, Scaling, Trace

POOLS = ("gpu", "lpu", "both")

Model = Annotated[str, typer.Option(help=options.MODEL_SHAPE)]
GPU_HELP = f"GPU preset ({', '.join(GPUS)}) or TOML file."
Gpu = Annotated[str, typer.Option(help=GPU_HELP)]
Link = Annotated[str, typer.Option(help=f"Link preset ({', '.join(LINKS)}) or TOML file.")]
LpuDtype = Annotated[str, typer.Option(help="Number type of weights on LPUs: int8 or fp16.")]
LpuContext = Annotated[
    int | None,
    typer.Option(
        help="Positions of a request on an LPU pipeline at most.",
        show_default="the model's, at most 2,048",
    ),
]
GpuTp = Annotated[int, typer.Option(help="GPUs that share the model: a group.")]
Groups = Annotated[int, typer.Option(help="GPU groups behind one queue.")]
GpuDtype = Annotated[str, typer.Option(help="Number type of weights on GPUs.")]
MaxBatch = Annotated[int, typer.Option(help="Requests in a GPU group's batch at most.")]
Chips = Annotated[int, typer.Option(help="LPUs of one pipeline: 1, 2, 4, 8 or nodes of 8.")]
Pipelines = Annotated[int, typer.Option(help="LPU pipelines behind one queue.")]
CYCLES_HELP = "Cycles of one token on the LPUs, host transfers included."
LpuCycles = Annotated[int | None, typer.Option(help=CYCLES_HELP, show_default="compiled, exact")]
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
Requests = Annotated[int, typer.Option(help="How many requests.")]
Burst = Annotated[int, typer.Option(help="With bursts: requests that come at once.")]
PromptTokens = Annotated[int, typer.Option(help="Median tokens of a prompt.")]
OutputTokens = Annotated[int, typer.Option(help="Median tokens of an answer.")]
Spread = Annotated[float, typer.Option(help="Sigma of the lengths' logarithm.")]
SloTtft = Annotated[float, typer.Option(help="SLO: seconds to the first token.")]
SloTpot = Annotated[float, typer.Option(help="SLO: seconds per further token.")]
ReportPage = Annotated[
    Path | None, typer.Option("--report", help="Write an HTML report.", show_default="none")
]
Seed = Annotated[int, typer.Option(help="Seed of everything drawn at random.")]


def load(
    context_: typer.Context,
    pool: Annotated[str, typer.Option(help="gpu, lpu or both, each with the whole load.")] = "both",
    model: Annotated[
        str,
        typer.Option(
            "--model", "--gpu-model",
            help=options.MODEL_SHAPE,
        ),
    ] = "target",
    lpu_model: Annotated[
        str | None,
        typer.Option(help="Model of the LPU pool, if another.", show_default="--model"),
    ] = None,
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
    gpu_groups_max: Annotated[
        int | None,
        typer.Option(
            help="Let the GPU pool grow to so many groups and shrink to --gpu-groups.",
            show_default="it does not scale",
        ),
    ] = None,
    scale_queue: Annotated[
        int | None,
        typer.Option(
            help="Scaling: waiting requests per group that start one more.", show_default="4"
        ),
    ] = None,
    scale_wait: Annotated[
        float | None,
        typer.Option(
            help="Scaling: seconds that one waits until a group starts.", show_default="never"
        ),
    ] = None,
    scale_idle: Annotated[
        float | None,
        typer.Option(help="Scaling: idle seconds after which a group stops.", show_default="1"),
    ] = None,
    scale_start: Annotated[
        float | None,
        typer.Option(
            help="Scaling: seconds until a new group takes requests.", show_default="10"
        ),
    ] = None,
    gpu_dtype: GpuDtype = "fp16",
    max_batch: MaxBatch = 64,
    chips: Chips = 1,
    pipelines: Pipelines = 1,
    dtype: LpuDtype = "int8",
    context: LpuContext = None,
    chip: options.ChipType = "groq-lpu-1",
    lpu_cycles_per_token: LpuCycles = None,
    lpu_interval_cycles: LpuInterval = None,
    plot: options.Plot = None,
    save: options.Save = None,
    report_page: ReportPage = None,
    metrics_port: options.MetricsPort = 0,
    metrics_host: options.MetricsHost = options.METRICS_HOST,
    metrics_linger: options.MetricsLinger = options.METRICS_LINGER_SECONDS,
    as_json: options.Json = False,
) -> None:
    """Serve an open-loop load: latencies, goodput under an SLO, queues, utilisation."""
    options.check_choice("--pool", pool, POOLS)
    options.check_plot(plot)
    choice = lpu_choice(chips, chip, dtype, context, lpu_cycles_per_token, lpu_interval_cycles)

    from cluster.commands.output import print_json, stderr_console, working
    from cluster.experiments.serving import (
        GpuServers,
        LpuServers,
        RooflineCost,
        Slo,
        latencies,
        lpu_belt,
        publish_load,
        run_load,
        serve_load,
    )
    from cluster.gpu import GpuGroup, load_gpu_spec
    from cluster.plots import draw_load
    from cluster.report import report_request
    from programs.models import Need, find_model

    given = {"queue": scale_queue, "wait_s": scale_wait, "idle_s": scale_idle,
             "start_s": scale_start}  # fmt: skip
    scaling = _scaling(pool, gpu_groups, gpu_groups_max, given)
    reporting = report_request(save, report_page)
    slo = Slo(slo_ttft, slo_tpot)
    # What an LPU pool compiles needs kernels, whether or not there are weights.
    need: Need = "shape" if pool == "gpu" or lpu_cycles_per_token is not None else "kernels"
    served_by_lpus = find_model(lpu_model or model, need).name
    arch = find_model(model).architecture
    wanted = make_trace(
        trace, limit, arrivals, rate, requests, burst, (prompt_tokens, output_tokens, spread), seed
    )
    board = options.open_board(context_, metrics_port, metrics_host, metrics_linger)
    pools: dict[str, GpuServers | LpuServers] = {}
    group = GpuGroup(load_gpu_spec(gpu), gpu_tp, gpu_dtype)
    belt = None
    with working("compiling ...", stderr_console()) as tell:
        if pool != "lpu":
            pools["gpu"] = GpuServers(RooflineCost(group, arch, max_batch), gpu_groups, scaling)
        if pool != "gpu":
            belt = lpu_belt(lpu_model or model, choice)
            known = (chips, dtype) if lpu_cycles_per_token is None else ()
            pools["lpu"] = LpuServers(belt, served_by_lpus, pipelines, *known)
        tell(f"serving {len(wanted):,} requests ...")
        served = serve_load(wanted, pools)
        report = run_load(wanted, pools, slo, served)
    report["seed"] = seed
    took = {name: latencies(wanted, times) for name, times in served.items()}
    if board is not None:
        publish_load(board, report, took)
    if plot is not None:
        draw_load(took, plot)
    if reporting.wanted:
        from chip.spec import load_chip_spec
        from cluster.report import load_run

        reporting.finish(
            lambda: load_run(
                _facts(report), wanted, served, arch, group, gpu_groups, belt,
                load_chip_spec(chip), None if lpu_cycles_per_token else chips, pipelines, dtype,
            )
        )  # fmt: skip
    if as_json:
        print_json(report)
    else:
        _show(report)


def _scaling(
    pool: str, least: int, most: int | None, given: dict[str, float | None]
) -> Scaling | None:
    """The rule by which the GPU pool scales, if it does; given: figures that were named."""
    from cluster.experiments.serving import Scaling

    named: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if most is None:
        if named:
            option = "--scale-" + next(iter(named)).removesuffix("_s")
            raise InputError(f"{option}: the GPU pool does not scale; add --gpu-groups-max")
        return None
    if pool == "lpu":
        raise InputError("--gpu-groups-max with --pool lpu: no GPU serves; leave one out")
    return Scaling(least, most, **named)


def _facts(report: dict[str, Any]) -> list[tuple[str, str]]:
    """The figures of every pool, as its column of the table shows them."""
    facts = [("requests", f"{report['requests']:,}, {report['arrivals']}")]
    for name, pool in report["pools"].items():
        facts += [(f"{name}: machine", _machine(pool)), (f"{name}: costs", _costs(pool))]
        facts += [(f"{name}: {heading}", cell) for heading, cell in service_cells(pool).items()]
    return facts


def lpu_choice(
    chips: int, chip: str, dtype: str, context: int | None, cycles: int | None, interval: int | None
) -> LpuChoice:
    """The options about LPUs, checked."""
    options.check_at_least("--chips", chips, 1)
    options.check_choice("--dtype", dtype, ("int8", "fp16"))
    options.check_at_least("--context", context, 1)
    options.check_at_least("--lpu-cycles-per-token", cycles, 1)
    options.check_at_least("--lpu-interval-cycles", interval, 1)
    from cluster.experiments.serving import LpuChoice

    return LpuChoice(chips, chip, dtype, context, cycles, interval)


def make_trace(
    path: Path | None, limit: int | None, arrivals: str, rate: float, requests: int, burst: int,
    lengths: tuple[int, int, float], seed: int,
) -> Trace:  # fmt: skip
    """The requests that the options ask for; lengths: median prompt and answer, and spread."""
    from cluster.experiments.serving import Lengths, bursts, poisson, read_trace

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


def service_cells(report: dict[str, Any]) -> dict[str, str]:
    """What people see of a platform under load, by heading."""

    def tail(name: str) -> str:
        return " / ".join(span(report[name][rank]) for rank in ("p50", "p90", "p99"))

    return {
        "first token p50/p90/p99": tail("ttft_s"),
        "second token after first": tail("second_token_s"),
        "per further token": tail("tpot_s"),
        "end to end": tail("end_to_end_s"),
        "throughput": f"{report['tokens_per_s']:,.0f} tokens/s, "
        f"{report['requests_per_s']:,.4g} requests/s",
        "goodput under the SLO": f"{report['goodput_per_s']:,.4g} requests/s "
        f"({report['good_ratio']:.1%})",
        "utilisation": f"{report['utilisation']:.1%} of "
        + ("the groups that were up" if report.get("scaling") else f"{report['servers']:,}"),
        **{
            f"{name}: busy, queue mean, peak": stage_cell(stage)
            for name, stage in report["stages"].items()
            if stage["servers"]
        },
        **(
            {"GPU groups up": f"up to {report['nodes_peak']:,}, {report['node_seconds']:,.4g} "
                              "group-seconds"}
            if report.get("scaling") else {}
        ),
        "refused": f"{report['refused']:,}",
        "host traffic, bytes": host_cell(report["host_bytes"]),
    }


def stage_cell(stage: dict[str, Any]) -> str:
    """Utilisation and queue of one stage."""
    if not stage["servers"]:
        return "-"
    return f"{stage['utilisation']:.1%}, {stage['queue_mean']:,.2g}, {stage['queue_peak']:,}"


def host_cell(host: dict[str, int | None]) -> str:
    """Bytes between machines and their hosts, by kind."""
    known = [f"{kind.replace('_', ' ')} {count:,}" for kind, count in host.items() if count]
    return ", ".join(known) if None not in host.values() else "in the given cycles"


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
    for heading in dict.fromkeys(heading for column in columns for heading in column):
        table.add_row(heading, *(column.get(heading, "-") for column in columns))
    slo = next(iter(pools.values()))["slo"]
    table.caption = f"SLO: {slo['ttft_s']:g} s to the first token, {slo['tpot_s']:g} s per further"
    Console(highlight=False).print(table)


def counted(number: int, noun: str) -> str:
    """A number of things, for people."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _machine(pool: dict[str, Any]) -> str:
    if pool["kind"] == "gpu":
        size = f"{pool['groups']} x {pool['tensor_parallel']} {pool['gpu']}, {pool['dtype']}"
        scaled = pool["scaling"]
        if scaled is not None:
            size = size.replace(str(pool["groups"]), f"{scaled['least']} to {scaled['most']}", 1)
        return f"{size}, batch up to {pool['max_batch']}"
    chips = pool["chips_per_pipeline"]
    text = counted(pool["pipelines"], "pipeline")
    text += f" of {counted(chips, 'chip')}, {pool['dtype']}" if chips else ""
    places = pool["places_per_pipeline"]
    return text if places == 1 else f"{text}, {places} requests in each"


def _costs(pool: dict[str, Any]) -> str:
    if pool["kind"] == "gpu" or pool["initiation_interval"] == "none":
        return str(pool["costs"])
    return f"{pool['costs']}; interval of {pool['initiation_interval_cycles']:,} cycles given"
