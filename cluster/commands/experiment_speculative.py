"""``lpu experiment speculative``: LPUs draft, GPUs verify, and what that is worth."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from cluster import option_checks, option_types
from cluster.commands import options
from cluster.commands.settings import takes_settings
from cluster.errors import InputError, RunError
from cluster.experiments.speculative import SpeculativeSettings

#: Rows of a sweep that people see; --json has all.
MOST_ROWS = 60
HEADINGS = (
    "variant",
    "gamma",
    "accepted",
    "tokens\nper step",
    "speed-up",
    "by\nformula",
    "tokens/s",
    "draft/\nverify/\nlink/\nhost, %",
)
PARTS = ("draft", "verify", "link", "host")
LOSSLESS = {True: "yes", False: "NO", None: "not proven"}
SWEEP_HEADINGS = (*HEADINGS[:5], "T", "link")


@takes_settings
def speculative(
    context: typer.Context,
    settings: SpeculativeSettings,
    *,
    plot: Annotated[
        Path | None,
        typer.Option(help="With --sweep: write a picture, .png or .svg.", show_default="none"),
    ] = None,
    save: option_types.Save = None,
    report: option_types.Report = None,
    metrics: option_types.MetricsSettings,
    as_json: option_types.Json = False,
) -> None:
    """Speculative decoding: drafts on LPUs, verification on GPUs, against either alone.

    Speed-ups are against the target alone on the same GPUs, with as many prompts at once;
    lpu-only is the target alone on LPUs, one prompt after another; lpu-verified (--lpu-verify) the
    same with a step's drafts judged together.
    """
    if plot is not None and not settings.sweep:
        raise InputError(f"--plot {plot}: the picture is of a sweep; add --sweep")
    option_checks.check_plot(plot)

    # The heavy imports wait until the arguments are known to make sense.
    from cluster.commands.output import print_json, stderr_console, working
    from cluster.experiments.speculative import speculative as experiment
    from cluster.plots import draw_speculative
    from cluster.report import report_request, speculative_run

    reporting = report_request(save, report)
    with working("reading prompts ...", stderr_console()) as tell:
        result = experiment(settings, (), tell, lambda: options.board_of(context, metrics))
    found = result.report
    if plot is not None:
        draw_speculative(found["rows"], plot)
    told = _facts(found)
    if found["text"]:
        told.append(("text", result.prompts[0] + found["text"][0]))
    reporting.finish(lambda: speculative_run(told, result))
    if as_json:
        print_json(found)
    else:
        _show(found, result.prompts)
    if found["lossless"] is False:
        raise RunError("the text is not the target's own: speculative decoding lost something")


def _show(result: dict[str, Any], prompts: Sequence[str]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    from cluster.commands.output import print_table

    if len(prompts) == 1 and result["text"]:
        typer.echo(prompts[0] + result["text"][0])
    rows = result["rows"]
    swept = len({(row["gamma"], row["temperature"], row["link"]) for row in rows}) > 3
    table = Table(
        title="speculative decoding, virtual time",
        title_justify="left",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    for heading in SWEEP_HEADINGS if swept else HEADINGS:
        table.add_column(heading, justify="left" if heading in ("variant", "link") else "right")
    for row in rows[:MOST_ROWS]:
        table.add_row(*_cells(row, swept))
    Console(highlight=False).print(table)
    if len(rows) > MOST_ROWS:
        typer.echo(f"{len(rows) - MOST_ROWS} more rows: see --json")
    print_table("result", _facts(result))


def _facts(result: dict[str, Any]) -> list[tuple[str, str]]:
    """The headline and what stands behind it, for people."""
    slower = result["crossover"]["slower"]
    checked = result["crossover"]["checked"]
    facts = [
        ("lossless", f"{LOSSLESS[result['lossless']]}: {result['lossless_check']}"),
        (
            "headline",
            f"{result['variant']}: decoding {result['speedup']:.2f} x as fast, "
            f"{result['end_to_end_speedup']:.2f} x with the prompt",
        ),
        ("it compares", result["compares"]),
        ("shipping KV", f"makes it slower than GPU-only in {len(slower)} of {checked} cases"),
        *[(f"  {case['link']}, gamma {case['gamma']}", _case(case)) for case in slower[:10]],
    ]
    if result["alpha"] is not None:
        cycles = result["lpu_cycles_per_token"]
        facts.insert(
            0,
            (
                "not measured",
                f"--alpha {result['alpha']:g} is given, no model ran; {result['draft_model']} "
                f"drafts for {result['gpu_model']}; LPU cycles per token: "
                + (
                    "of the shipped draft"
                    if cycles is None
                    else f"given with transfers, {cycles:,}"
                ),
            ),
        )
    if result["concurrent"] > 1:
        share = result["wait_seconds"] / result["decode_seconds"]
        facts += [
            ("waiting", f"{share:.0%} of the decoding time, for machines others use"),
            ("assumed", "the LPUs hold the draft's KV cache of every prompt under way"),
        ]
    facts += [
        (
            row["variant"],
            f"the target in int8 on LPUs; it agrees with the GPUs' on "
            f"{row['agreement']:.1%} of the tokens; one prompt after another",
        )
        for row in result["rows"]
        if "agreement" in row
    ]
    facts += [(f"no {name}", why) for name, why in result["left_out"].items()]
    if result["nodes_lost"]:
        replayed = result["positions_replayed"]
        facts.append(("GPU nodes lost", f"{result['nodes_lost']}; {replayed} positions replayed"))
    return facts


def _cells(row: dict[str, Any], swept: bool) -> list[str]:
    def number(name: str, form: str) -> str:
        value = row.get(name)
        return "-" if value is None else format(value, form)

    cells = [
        row["variant"],
        str(row["gamma"] or "-"),
        number("acceptance", ".1%"),
        number("tokens_per_step", ".2f"),
        number("speedup", ".2f"),
    ]
    if swept:
        return [*cells, number("temperature", "g"), row["link"] or "-"]
    parts = [row[f"{name}_seconds"] / row["decode_seconds"] for name in PARTS]
    return [
        *cells,
        number("formula_tokens_per_step", ".2f"),
        number("tokens_per_second", ",.0f"),
        "/".join(f"{100 * part:.0f}" for part in parts) if any(parts) else "-",
    ]


def _case(case: dict[str, Any]) -> str:
    if case["cause"] == "kv":
        return (
            f"{case['speedup_kv']:.2f} x ({case['speedup_tokens']:.2f} without): "
            f"{case['kv_bytes_per_step']:,.0f} bytes per step, "
            f"even at {case['break_even_kv_bytes_per_step']:,.0f}"
        )
    return (
        f"{case['end_to_end_speedup_kv']:.2f} x with the prompt "
        f"({case['end_to_end_speedup_tokens']:.2f} without): its KV is "
        f"{case['prompt_kv_bytes']:,} bytes"
    )
