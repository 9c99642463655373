"""``lpu experiment agentic``: graphs of steps, light ones on LPUs and heavy ones on GPUs."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Annotated, Any

import typer

from cluster.commands import experiment_load as load
from cluster.commands import options
from cluster.errors import InputError

MOST_REQUESTS = 10_000


def agentic(
    context: typer.Context,
    router: Annotated[
        str,
        typer.Option(
            help="rule, learned, or module:function of your own; actor, actor/learned or "
            "actor/module:function: the same in a Ray actor."
        ),
    ] = "rule",
    requests: Annotated[int, typer.Option(help="Requests of agents.")] = 8,
    rate: Annotated[float, typer.Option(help="Requests per second.")] = 50.0,
    seed: load.Seed = 0,
    slo: Annotated[float, typer.Option(help="SLO: seconds from end to end.")] = 0.1,
    link: load.Link = "pcie5-x16",
    corrupt: Annotated[
        float, typer.Option(help="Probability that a message is cut short on its way.")
    ] = 0.0,
    gpu: load.Gpu = "h100",
    gpu_tp: load.GpuTp = 1,
    gpu_groups: Annotated[int, typer.Option(help="GPU groups of each model.")] = 1,
    max_batch: load.MaxBatch = 64,
    chips: load.Chips = 1,
    pipelines: Annotated[int, typer.Option(help="LPU pipelines of each model.")] = 1,
    dtype: load.LpuDtype = "int8",
    chip: options.ChipType = "groq-lpu-1",
    metrics_port: options.MetricsPort = 0,
    metrics_host: options.MetricsHost = options.METRICS_HOST,
    metrics_linger: options.MetricsLinger = options.METRICS_LINGER_SECONDS,
    as_json: options.Json = False,
) -> None:
    """Agents' requests routed step by step, against GPU-only and LPU-only; the text is real.

    Light steps run on the draft model and heavy ones on the target, on whichever machines; the
    runs that end in -target have all steps on the target.
    """
    options.check_node(chips)
    options.check_choice("--dtype", dtype, ("int8", "fp16"))
    if not 1 <= requests <= MOST_REQUESTS:
        raise InputError(f"--requests {requests}: use 1 to {MOST_REQUESTS:,}")

    from cluster.commands.output import print_json, stderr_console, working
    from cluster.experiments.agentic import (
        AgentChoice,
        actor_desk,
        build_site,
        draw_requests,
        make_router,
        run_agentic,
        split_name,
    )

    policy, in_actor = split_name(router)
    if not 0 < slo < float("inf"):
        raise InputError(f"--slo {slo}: use a finite number of seconds above 0")
    drawn = draw_requests(rate, requests, seed)
    make_router(policy, seed)
    board = options.open_board(context, metrics_port, metrics_host, metrics_linger)
    with working("compiling ...", stderr_console()) as tell:
        choice = AgentChoice(
            gpu, gpu_tp, gpu_groups, max_batch, link, chips, pipelines, dtype, chip, corrupt
        )
        site = build_site(choice)
        with actor_desk(policy, seed) if in_actor else nullcontext() as desk:
            report = run_agentic(drawn, site, policy, seed, slo, tell, desk, board)
    if as_json:
        print_json(report)
    else:
        _show(report)


def _show(report: dict[str, Any]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from cluster.commands.output import print_table

    table = Table(
        title=f"{report['requests']:,} agents' requests, router {escape(report['router'])}, "
        f"virtual time; each to the 50th / 90th / 99th percentile; SLO {report['slo_s']:g} s",
        title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0),
    )  # fmt: skip
    table.add_column("run", no_wrap=True)
    for heading in HEADINGS:
        table.add_column(heading)
    for name, run in report["runs"].items():
        table.add_row(name, *_cells(run))
    Console(highlight=False).print(table)
    print_table("median end to end: every speed-up, and what it compares", [
        (f"{pair['of']} over {pair['over']}", f"{_times(pair['end_to_end'])}: {pair['compares']}")
        for pair in report["speedups"]
    ])  # fmt: skip
    print_table("what moved, what was written", [
        (name, _traffic(run)) for name, run in report["runs"].items()
    ])  # fmt: skip


def _times(ratio: float | None) -> str:
    return "-" if ratio is None else f"{ratio:.2f} x"


HEADINGS = (
    "end to end", "answer's\nfirst token", "its further\ntokens, each", "goodput", "steps",
)  # fmt: skip


def _cells(run: dict[str, Any]) -> list[str]:
    def tail(name: str) -> str:
        return "\n".join(load.span(run[name][rank]) for rank in ("p50", "p90", "p99"))

    steps = [f"{count} {name}" for name, count in run["steps_of_models"].items()]
    return [
        tail("end_to_end_s"), tail("ttft_s"), tail("tpot_s"),
        f"{run['goodput_per_s']:,.4g}/s\n({run['good_ratio']:.0%})",
        "\n".join([*steps, f"{sum(run['steps']['tool'].values())} tool"]),
    ]  # fmt: skip


def _traffic(run: dict[str, Any]) -> str:
    messages = run["messages"]
    busy = [f"{name} {share:.0%}" for name, share in run["utilisation"].items() if share]
    sent = [f"{way[5:]} {count:,}" for way, count in run["bytes"].items() if count]
    return "\n".join((
        f"busy: {', '.join(busy)}",
        f"JSON bytes: {', '.join(sent)}",
        f"host bytes: {load.host_cell(run['host_bytes'])}",
        f"messages: {messages['accepted']:,} accepted, {messages['rejected']:,} rejected; "
        f"requests failed: {run['failed']:,}",
        f"first answer: {' '.join(run['first_answer'].split())}",
    ))  # fmt: skip
