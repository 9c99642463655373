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
    link: Annotated[str, typer.Option(help="Link preset or TOML file.")] = "pcie5-x16",
    corrupt: Annotated[
        float, typer.Option(help="Probability that a message is cut short on its way.")
    ] = 0.0,
    gpu: load.Gpu = "h100",
    gpu_tp: load.GpuTp = 1,
    gpu_groups: load.Groups = 1,
    max_batch: load.MaxBatch = 64,
    chips: load.Chips = 1,
    pipelines: load.Pipelines = 1,
    dtype: options.Dtype = "int8",
    chip: options.ChipType = "groq-lpu-1",
    metrics_port: options.MetricsPort = 0,
    metrics_host: options.MetricsHost = options.METRICS_HOST,
    metrics_linger: options.MetricsLinger = options.METRICS_LINGER_SECONDS,
    as_json: options.Json = False,
) -> None:
    """Agents' requests routed step by step, against GPU-only and LPU-only; the text is real."""
    options.check_parallelism(chips, None, 1)
    options.check_choice("--dtype", dtype, ("int8", "fp16"))
    if not 1 <= requests <= MOST_REQUESTS:
        raise InputError(f"--requests {requests}: use 1 to {MOST_REQUESTS:,}")

    from cluster.experiments.agentic_graph import draw_requests
    from cluster.experiments.agentic_routing import make_router
    from cluster.experiments.agentic_site import AgentChoice, build_site, run_agentic
    from cluster.experiments.router_actor import actor_desk, split_name
    from cluster.output import print_json, stderr_console, working

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
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(
        title=f"{report['requests']:,} agents' requests, router {escape(report['router'])}, "
        "virtual time",
        title_justify="left",
    )
    table.add_column("")
    for name in report["runs"]:
        table.add_column(name)
    rows: dict[str, list[str]] = {}
    for run in report["runs"].values():
        for heading, cell in _cells(run, report["slo_s"]).items():
            rows.setdefault(heading, []).append(cell)
    for heading, cells in rows.items():
        table.add_row(heading, *map(escape, cells))
    Console(highlight=False).print(table)


def _cells(run: dict[str, Any], slo_s: float) -> dict[str, str]:
    def tail(name: str) -> str:
        return " / ".join(load.span(run[name][rank]) for rank in ("p50", "p90", "p99"))

    messages = run["messages"]
    return {
        "end to end p50/p90/p99": tail("end_to_end_s"),
        "answer's first token": tail("ttft_s"),
        "answer, per further token": tail("tpot_s"),
        f"goodput within {slo_s:g} s": f"{run['goodput_per_s']:,.4g}/s ({run['good_ratio']:.0%})",
        "steps": ", ".join(f"{sum(k.values())} {pool}" for pool, k in run["steps"].items()),
        "bytes": ", ".join(f"{way[5:]} {count:,}" for way, count in run["bytes"].items()),
        "busy": ", ".join(f"{name} {share:.0%}" for name, share in run["utilisation"].items()),
        "messages": f"{messages['accepted']:,} accepted, {messages['rejected']:,} rejected",
        "failed requests": f"{run['failed']:,}",
        "first answer": " ".join(run["first_answer"].split()),
    }
