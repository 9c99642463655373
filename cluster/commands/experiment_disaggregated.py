"""``lpu experiment disaggregated``: prefill on one kind of machine, decode on another."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from cluster.commands import experiment_load as load
from cluster.commands import options

if TYPE_CHECKING:
    from cluster.experiments.serving import Served

NAMES = ("gpu-only", "lpu-only", "gpu+lpu", "cpx+lpu", "gpu+lpu-ffn", "cpx+lpu+gpu")

#: What of the experiment's figures its report lists.
FACTS = (
    "model", "arrivals", "seed", "gpu", "cpx", "groups", "link", "handover", "pipelines",
    "lpu_costs",
)  # fmt: skip


def disaggregated(
    context_: typer.Context,
    platform: Annotated[
        list[str] | None,
        typer.Option(
            help=f"{', '.join(NAMES)}; may be repeated.", show_default="all"
        ),
    ] = None,
    model: load.Model = "target",
    handover: Annotated[
        str, typer.Option(help="KV cache after the prefill: layers (one by one) or serial.")
    ] = "layers",
    link: load.Link = "pcie5-x16",
    gpu: load.Gpu = "h100",
    cpx: Annotated[str, typer.Option(help="GPU preset or TOML file for cpx.")] = "rubin-cpx",
    gpu_tp: load.GpuTp = 1,
    gpu_groups: load.Groups = 1,
    gpu_dtype: load.GpuDtype = "fp16",
    max_batch: load.MaxBatch = 64,
    trace: load.TraceFile = None,
    limit: load.Limit = None,
    arrivals: load.Arrivals = "poisson",
    rate: load.Rate = 100.0,
    requests: load.Requests = 200,
    burst: load.Burst = 16,
    prompt_tokens: load.PromptTokens = 64,
    output_tokens: load.OutputTokens = 32,
    spread: load.Spread = 0.6,
    seed: load.Seed = 0,
    slo_ttft: load.SloTtft = 1.0,
    slo_tpot: load.SloTpot = 0.05,
    chips: load.Chips = 1,
    pipelines: Annotated[
        int | None,
        typer.Option(
            help="LPU pipelines; where layers are split, a multiple of the GPU groups.",
            show_default="one per GPU group",
        ),
    ] = None,
    dtype: load.LpuDtype = "int8",
    context: load.LpuContext = None,
    chip: options.ChipType = "groq-lpu-1",
    lpu_cycles_per_token: load.LpuCycles = None,
    lpu_interval_cycles: load.LpuInterval = None,
    lpu_ffn_cycles: Annotated[
        int | None,
        typer.Option(
            help="Cycles of one layer's FFN of a token.", show_default="its share of the weights"
        ),
    ] = None,
    plot: options.Plot = None,
    save: options.Save = None,
    report_page: load.ReportPage = None,
    metrics_port: options.MetricsPort = 0,
    metrics_host: options.MetricsHost = options.METRICS_HOST,
    metrics_linger: options.MetricsLinger = options.METRICS_LINGER_SECONDS,
    as_json: options.Json = False,
) -> None:
    """Prefill here, decode there, against GPU-only and LPU-only: one request, then a load.

    In a platform's name, prefill comes before the first plus and decode after it; -ffn, and the
    last gpu of three, mean that GPUs do the attention of a decode and LPUs its feed-forward part.
    """
    options.check_plot(plot)
    choice = load.lpu_choice(chips, chip, dtype, context, lpu_cycles_per_token, lpu_interval_cycles)
    options.check_choice("--handover", handover, ("serial", "layers"))
    options.check_at_least("--lpu-ffn-cycles", lpu_ffn_cycles, 1)

    from cluster.commands.output import print_json, stderr_console, working
    from cluster.experiments.serving import (
        PLATFORMS,
        Site,
        Slo,
        ffn_cycles_per_layer,
        latencies,
        lpu_belt,
        publish_disaggregated,
        run_disaggregated,
    )
    from cluster.gpu import GpuGroup, load_gpu_spec, load_link
    from cluster.plots import draw_disaggregated
    from cluster.report import report_request
    from programs.models import find_model

    for name in platform or ():
        options.check_choice("--platform", name, tuple(PLATFORMS))
    reporting = report_request(save, report_page)
    slo = Slo(slo_ttft, slo_tpot)
    arch = find_model(model, "kernels" if lpu_cycles_per_token is None else "shape").architecture
    lengths = (prompt_tokens, output_tokens, spread)
    wanted = load.make_trace(trace, limit, arrivals, rate, requests, burst, lengths, seed)
    board = options.open_board(context_, metrics_port, metrics_host, metrics_linger)
    with working("compiling ...", stderr_console()) as tell:
        belt = lpu_belt(model, choice)
        site = Site(
            arch,
            GpuGroup(load_gpu_spec(gpu), gpu_tp, gpu_dtype),
            GpuGroup(load_gpu_spec(cpx), gpu_tp, gpu_dtype),
            belt,
            load_link(link),
            lpu_ffn_cycles or ffn_cycles_per_layer(belt, arch),
            "given" if lpu_ffn_cycles else "estimated: the network's share of the weights",
            handover,
            gpu_groups,
            gpu_groups if pipelines is None else pipelines,
            max_batch,
        )
        tell("serving ...")
        served: dict[str, Served] = {}
        report = run_disaggregated(
            wanted, (prompt_tokens, output_tokens), site, slo, platform or list(PLATFORMS), served
        )
    if board is not None:
        publish_disaggregated(
            board, report, {name: latencies(wanted, times) for name, times in served.items()}
        )
    report["seed"] = seed
    if reporting.wanted:
        from chip.spec import load_chip_spec
        from cluster.report import disaggregated_run

        told = [(key, str(report[key])) for key in FACTS]
        given = lpu_cycles_per_token is not None
        reporting.finish(
            lambda: disaggregated_run(
                told, report, wanted, served, arch, site.gpu, gpu_groups, belt,
                load_chip_spec(chip), None if given else chips, site.pipelines, dtype,
                site.link.name,
            )
        )  # fmt: skip
    if plot is not None:
        draw_disaggregated(report, plot)
    if as_json:
        print_json(report)
    else:
        _show(report)


LATENCIES = ("first token p50/p90/p99", "per further token")


def _show(report: dict[str, Any]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    from cluster.commands.output import print_table
    from cluster.experiments.serving import STAGES

    platforms = report["platforms"]
    size = f"{report['prompt_tokens']:,} + {report['output_tokens']:,} tokens"
    table = Table(
        title=f"{report['model']}, one request alone of {size}", title_justify="left",
        box=SIMPLE_HEAD, padding=(0, 1, 0, 0),
    )  # fmt: skip
    table.add_column("platform", no_wrap=True)
    headings = ("first\ntoken", "second\nafter first", "per further\ntoken", "end to end",
                "KV\nexposed", "bytes over the link")  # fmt: skip
    for heading in headings:
        table.add_column(heading)
    for name, both in platforms.items():
        alone = both["alone"]
        times = (alone[key] for key in ("ttft_s", "second_token_s", "tpot_s", "end_to_end_s"))
        carried = [f"{kind} {count:,}" for kind, count in alone["bytes"].items()]
        table.add_row(
            name, *map(load.span, times), load.span(alone.get("kv_exposed_s")),
            "\n".join(carried) or "none",
        )  # fmt: skip
    loaded = Table(
        title=f"under load, {report['arrivals']}: p50 / p90 / p99 of latencies; of every stage "
        "utilisation, and mean / peak of its queue",
        title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0),
    )  # fmt: skip
    loaded.add_column("platform", no_wrap=True)
    for heading in ("first\ntoken", "per further\ntoken", "goodput", *STAGES):
        loaded.add_column(heading)
    for name, both in platforms.items():
        cells = load.service_cells(both["load"])
        loaded.add_row(
            name, *(cells[heading].replace(" / ", "\n") for heading in LATENCIES),
            f"{both['load']['goodput_per_s']:,.4g}/s\n({both['load']['good_ratio']:.1%})",
            *(load.stage_cell(stage).replace(", ", "\n", 1).replace(", ", " / ")
              for stage in both["load"]["stages"].values()),
        )  # fmt: skip
    console = Console(highlight=False)
    console.print(table)
    console.print(loaded)
    per_token = report["kv_bytes_per_token"]
    print_table(
        "machines",
        [
            ("GPUs", f"{report['groups']} x {report['tensor_parallel']} {report['gpu']}; "
                     f"cpx: {report['cpx']}"),
            ("LPUs", load.counted(report["pipelines"], "pipeline")),
            ("link", f"{report['link']}, handover {report['handover']}"),
            ("LPU costs", report["lpu_costs"]),
            ("FFN on LPU", f"{report['lpu_ffn_cycles_per_layer']:,} cycles per layer, "
                           f"{report['lpu_ffn_costs']}"),
            ("KV bytes per token", ", ".join(f"{n} {c:,}" for n, c in per_token.items())),
        ],
    )  # fmt: skip
