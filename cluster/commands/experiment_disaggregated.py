"""``lpu experiment disaggregated``: prefill on one kind of machine, decode on another."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from cluster.commands import experiment_load as load
from cluster.commands import options


def disaggregated(
    context_: typer.Context,
    platform: Annotated[
        list[str] | None,
        typer.Option(help="Platform, may be repeated.", show_default="all"),
    ] = None,
    model: load.Model = "target",
    handover: Annotated[
        str, typer.Option(help="KV cache after the prefill: layers (one by one) or serial.")
    ] = "layers",
    link: Annotated[str, typer.Option(help="Link preset or TOML file.")] = "pcie5-x16",
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
    prompt_tokens: load.PromptTokens = 128,
    output_tokens: load.OutputTokens = 64,
    spread: load.Spread = 0.6,
    seed: load.Seed = 0,
    slo_ttft: load.SloTtft = 1.0,
    slo_tpot: load.SloTpot = 0.05,
    chips: load.Chips = 1,
    pipelines: load.Pipelines = 1,
    dtype: options.Dtype = "int8",
    context: options.Context = None,
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
    metrics_port: options.MetricsPort = 0,
    metrics_host: options.MetricsHost = options.METRICS_HOST,
    metrics_linger: options.MetricsLinger = options.METRICS_LINGER_SECONDS,
    as_json: options.Json = False,
) -> None:
    """Prefill here, decode there, against GPU-only and LPU-only: one request, then a load."""
    options.check_plot(plot)
    choice = load.lpu_choice(chips, chip, dtype, context, lpu_cycles_per_token, lpu_interval_cycles)
    options.check_choice("--handover", handover, ("serial", "layers"))
    options.check_at_least("--lpu-ffn-cycles", lpu_ffn_cycles, 1)

    from cluster.experiments.disaggregated import PLATFORMS, Site, run_disaggregated
    from cluster.experiments.machines import ffn_cycles_per_layer, lpu_belt
    from cluster.experiments.pictures import draw_disaggregated
    from cluster.experiments.serving import Latencies, Slo
    from cluster.gpu.link import load_link
    from cluster.gpu.roofline import GpuGroup
    from cluster.gpu.spec import load_gpu_spec
    from cluster.metrics.serving import publish_disaggregated
    from cluster.output import print_json, stderr_console, working
    from programs.architectures import architecture

    for name in platform or ():
        options.check_choice("--platform", name, tuple(PLATFORMS))
    slo = Slo(slo_ttft, slo_tpot)
    arch = architecture(model)
    lengths = (prompt_tokens, output_tokens, spread)
    wanted = load.make_trace(trace, limit, arrivals, rate, requests, burst, lengths, seed)
    board = options.open_board(context_, metrics_port, metrics_host, metrics_linger)
    took: dict[str, Latencies] = {}
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
            pipelines,
            max_batch,
        )
        tell("serving ...")
        report = run_disaggregated(
            wanted, (prompt_tokens, output_tokens), site, slo, platform or list(PLATFORMS), took
        )
    if board is not None:
        publish_disaggregated(board, report, took)
    report["seed"] = seed
    if plot is not None:
        draw_disaggregated(report, plot)
    if as_json:
        print_json(report)
    else:
        _show(report)


def _show(report: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    from cluster.output import print_table

    platforms = report["platforms"]
    size = f"{report['prompt_tokens']:,} + {report['output_tokens']:,} tokens"
    table = Table(title=f"{report['model']}, one request alone of {size}", title_justify="left")
    headings = ("platform", "first token", "second after first", "per token", "end to end",
                "KV exposed", "bytes")  # fmt: skip
    for heading in headings:
        table.add_column(heading)
    for name, both in platforms.items():
        alone = both["alone"]
        times = (alone[key] for key in ("ttft_s", "second_token_s", "tpot_s", "end_to_end_s"))
        carried = [f"{kind} {count:,}" for kind, count in alone["bytes"].items()]
        table.add_row(
            name, *map(load.span, times), load.span(alone.get("kv_exposed_s")),
            ", ".join(carried) or "none",
        )  # fmt: skip
    loaded = Table(title=f"under load: {report['arrivals']}", title_justify="left")
    for heading in ("platform", "first token p50/p90/p99", "per token p50/p90/p99", "goodput",
                    "queue mean, peak", "prefill, link, decode busy"):  # fmt: skip
        loaded.add_column(heading)
    for name, both in platforms.items():
        cells = load.service_cells(both["load"])
        busy = [both["load"][key] for key in ("prefill_utilisation", "link_utilisation")]
        shares = ["-" if share is None else f"{share:.1%}" for share in busy]
        loaded.add_row(
            name, cells[0], cells[2], cells[5], cells[6],
            ", ".join([*shares, f"{both['load']['utilisation']:.1%}"]),
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
            ("link", f"{report['link']}, handover {report['handover']}"),
            ("LPU costs", report["lpu_costs"]),
            ("FFN on LPU", f"{report['lpu_ffn_cycles_per_layer']:,} cycles per layer, "
                           f"{report['lpu_ffn_costs']}"),
            ("KV bytes per token", ", ".join(f"{n} {c:,}" for n, c in per_token.items())),
        ],
    )  # fmt: skip
