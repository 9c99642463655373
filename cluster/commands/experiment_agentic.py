"""``lpu experiment agentic``: graphs of steps, light ones on LPUs and heavy ones on GPUs."""

from __future__ import annotations

from typing import Any

import typer

from cluster import option_types
from cluster.commands import experiment_load as load
from cluster.commands import options
from cluster.commands.settings import takes_settings
from cluster.experiments.agentic import AgenticSettings


@takes_settings
def agentic(
    context: typer.Context,
    settings: AgenticSettings,
    *,
    metrics: option_types.MetricsSettings,
    as_json: option_types.Json = False,
) -> None:
    """Agents' requests routed step by step, against GPU-only and LPU-only; the text is real.

    Light steps run on the draft model and heavy ones on the target, on whichever machines; the
    runs that end in -target have all steps on the target.
    """
    # The heavy imports wait until the arguments are known to make sense.
    from cluster.commands.output import print_json, stderr_console, working
    from cluster.experiments.agentic import agentic as experiment

    with working("compiling ...", stderr_console()) as tell:
        report = experiment(settings, tell, lambda: options.board_of(context, metrics)).report
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
        title_justify="left",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    table.add_column("run", no_wrap=True)
    for heading in HEADINGS:
        table.add_column(heading)
    for name, run in report["runs"].items():
        table.add_row(name, *_cells(run))
    Console(highlight=False).print(table)
    print_table(
        "median end to end: every speed-up, and what it compares",
        [
            (
                f"{pair['of']} over {pair['over']}",
                f"{_times(pair['end_to_end'])}: {pair['compares']}",
            )
            for pair in report["speedups"]
        ],
    )
    print_table(
        "what moved, what was written",
        [(name, _traffic(run)) for name, run in report["runs"].items()],
    )


def _times(ratio: float | None) -> str:
    return "-" if ratio is None else f"{ratio:.2f} x"


HEADINGS = (
    "end to end",
    "answer's\nfirst token",
    "its further\ntokens, each",
    "goodput",
    "steps",
)


def _cells(run: dict[str, Any]) -> list[str]:
    def tail(name: str) -> str:
        return "\n".join(load.span(run[name][rank]) for rank in ("p50", "p90", "p99"))

    steps = [f"{count} {name}" for name, count in run["steps_of_models"].items()]
    return [
        tail("end_to_end_s"),
        tail("ttft_s"),
        tail("tpot_s"),
        f"{run['goodput_per_s']:,.4g}/s\n({run['good_ratio']:.0%})",
        "\n".join([*steps, f"{sum(run['steps']['tool'].values())} tool"]),
    ]


def _traffic(run: dict[str, Any]) -> str:
    messages = run["messages"]
    busy = [f"{name} {share:.0%}" for name, share in run["utilisation"].items() if share]
    sent = [f"{way[5:]} {count:,}" for way, count in run["bytes"].items() if count]
    return "\n".join(
        (
            f"busy: {', '.join(busy)}",
            f"JSON bytes: {', '.join(sent)}",
            f"host bytes: {load.host_cell(run['host_bytes'])}",
            f"messages: {messages['accepted']:,} accepted, {messages['rejected']:,} rejected; "
            f"requests failed: {run['failed']:,}",
            f"first answer: {' '.join(run['first_answer'].split())}",
        )
    )
