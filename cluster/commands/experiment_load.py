"""``lpu experiment load``: an open-loop request load on GPUs and on LPUs."""

from __future__ import annotations

from typing import Any

import typer

from cluster import option_checks, option_types
from cluster.commands import options
from cluster.commands.settings import takes_settings
from cluster.experiments.serving import LoadSettings


@takes_settings
def load(
    context_: typer.Context,
    settings: LoadSettings,
    *,
    plot: option_types.Plot = None,
    save: option_types.Save = None,
    report_page: option_types.Report = None,
    metrics: option_types.MetricsSettings,
    as_json: option_types.Json = False,
) -> None:
    """Serve an open-loop load: latencies, goodput under an SLO, queues, utilisation."""
    option_checks.check_plot(plot)

    # The heavy imports wait until the arguments are known to make sense.
    from cluster.commands.output import print_json, stderr_console, working
    from cluster.experiments import serving
    from cluster.plots import draw_load
    from cluster.report import load_run, report_request

    reporting = report_request(save, report_page)
    with working("compiling ...", stderr_console()) as tell:
        result = serving.load(settings, tell, lambda: options.board_of(context_, metrics))
    if plot is not None:
        draw_load(result.latencies, plot)
    reporting.finish(lambda: load_run(_facts(result.report), result))
    if as_json:
        print_json(result.report)
    else:
        _show(result.report)


def _facts(report: dict[str, Any]) -> list[tuple[str, str]]:
    """The figures of every pool, as its column of the table shows them."""
    facts = [("requests", f"{report['requests']:,}, {report['arrivals']}")]
    for name, pool in report["pools"].items():
        facts += [(f"{name}: machine", _machine(pool)), (f"{name}: costs", _costs(pool))]
        facts += [(f"{name}: {heading}", cell) for heading, cell in service_cells(pool).items()]
    return facts


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
            {
                "GPU groups up": f"up to {report['nodes_peak']:,}, {report['node_seconds']:,.4g} "
                "group-seconds"
            }
            if report.get("scaling")
            else {}
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
    whose = "of its full belt" if pool["initiation_interval"] == "compiled" else "given"
    return f"{pool['costs']}; interval of {pool['initiation_interval_cycles']:,} cycles {whose}"
