"""``lpu experiment disaggregated``: prefill on one kind of machine, decode on another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import typer

from cluster import option_checks, option_types
from cluster.commands import experiment_load as load
from cluster.commands import options
from cluster.commands.settings import takes_settings
from cluster.experiments.serving import DisaggregatedSettings

if TYPE_CHECKING:
    from rich.table import Table

#: What of the experiment's figures its report lists.
FACTS = (
    "model",
    "arrivals",
    "seed",
    "gpu",
    "cpx",
    "groups",
    "link",
    "handover",
    "pipelines",
    "lpu_costs",
)


@takes_settings
def disaggregated(
    context_: typer.Context,
    settings: DisaggregatedSettings,
    *,
    plot: option_types.Plot = None,
    save: option_types.Save = None,
    report_page: option_types.Report = None,
    metrics: option_types.MetricsSettings,
    as_json: option_types.Json = False,
) -> None:
    """Prefill here, decode there, against GPU-only and LPU-only: one request, then a load.

    In a platform's name, prefill comes before the first plus and decode after it; -ffn, and the
    last gpu of three, mean that GPUs do the attention of a decode and LPUs its feed-forward part.
    """
    option_checks.check_plot(plot)

    # The heavy imports wait until the arguments are known to make sense.
    from cluster.commands.output import print_json, stderr_console, working
    from cluster.experiments import serving
    from cluster.plots import draw_disaggregated
    from cluster.report import disaggregated_run, report_request

    reporting = report_request(save, report_page)
    with working("compiling ...", stderr_console()) as tell:
        result = serving.disaggregated(settings, tell, lambda: options.board_of(context_, metrics))
    told = [(key, str(result.report[key])) for key in FACTS]
    reporting.finish(lambda: disaggregated_run(told, result))
    if plot is not None:
        draw_disaggregated(result.report, plot)
    if as_json:
        print_json(result.report)
    else:
        _show(result.report)


LATENCIES = ("first token p50/p90/p99", "per further token")


def _show(report: dict[str, Any]) -> None:
    from rich.console import Console

    from cluster.commands.output import print_table

    console = Console(highlight=False)
    console.print(_alone(report))
    console.print(_loaded(report))
    per_token = report["kv_bytes_per_token"]
    print_table(
        "machines",
        [
            (
                "GPUs",
                f"{report['groups']} x {report['tensor_parallel']} {report['gpu']}; "
                f"cpx: {report['cpx']}",
            ),
            ("LPUs", load.counted(report["pipelines"], "pipeline")),
            ("link", f"{report['link']}, handover {report['handover']}"),
            ("LPU costs", report["lpu_costs"]),
            (
                "FFN on LPU",
                f"{report['lpu_ffn_cycles_per_layer']:,} cycles per layer, "
                f"{report['lpu_ffn_costs']}",
            ),
            ("KV bytes per token", ", ".join(f"{n} {c:,}" for n, c in per_token.items())),
        ],
    )


def _table(title: str, headings: Sequence[str]) -> Table:
    """A table whose first column names platforms."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("platform", no_wrap=True)
    for heading in headings:
        table.add_column(heading)
    return table


def _alone(report: dict[str, Any]) -> Table:
    """One request on each platform."""
    size = f"{report['prompt_tokens']:,} + {report['output_tokens']:,} tokens"
    table = _table(
        f"{report['model']}, one request alone of {size}",
        (
            "first\ntoken",
            "second\nafter first",
            "per further\ntoken",
            "end to end",
            "KV\nexposed",
            "bytes over the link",
        ),
    )
    for name, both in report["platforms"].items():
        alone = both["alone"]
        times = (alone[key] for key in ("ttft_s", "second_token_s", "tpot_s", "end_to_end_s"))
        carried = [f"{kind} {count:,}" for kind, count in alone["bytes"].items()]
        table.add_row(
            name,
            *map(load.span, times),
            load.span(alone.get("kv_exposed_s")),
            "\n".join(carried) or "none",
        )
    return table


def _loaded(report: dict[str, Any]) -> Table:
    """All requests on each platform."""
    from cluster.experiments.serving import STAGES

    table = _table(
        f"under load, {report['arrivals']}: p50 / p90 / p99 of latencies; of every stage "
        "utilisation, and mean / peak of its queue",
        ("first\ntoken", "per further\ntoken", "goodput", *STAGES),
    )
    for name, both in report["platforms"].items():
        cells = load.service_cells(both["load"])
        table.add_row(
            name,
            *(cells[heading].replace(" / ", "\n") for heading in LATENCIES),
            f"{both['load']['goodput_per_s']:,.4g}/s\n({both['load']['good_ratio']:.1%})",
            *(
                load.stage_cell(stage).replace(", ", "\n", 1).replace(", ", " / ")
                for stage in both["load"]["stages"].values()
            ),
        )
    return table
