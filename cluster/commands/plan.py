"""``lpu plan``: the chips a model takes, how it is split, and the cycles a token costs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from cluster import option_checks, option_types
from cluster.commands.settings import takes_settings
from cluster.planning import PlanSettings, check_frontier, check_power, specs_of, unknown_chips
from cluster.whole_files import check_writable

Row = dict[str, Any]


@takes_settings
def plan(
    settings: PlanSettings,
    csv_file: Annotated[
        Path | None, typer.Option("--csv", help="Write the rows as CSV.", show_default="none")
    ] = None,
    frontier: Annotated[
        list[Path] | None,
        typer.Option(
            help="Write tokens/s of a user against tokens/s for a kW: .csv, .png or .svg.",
            show_default="none",
        ),
    ] = None,
    plot: option_types.Plot = None,
    as_json: option_types.Json = False,
) -> None:
    """Compile a model by its shape alone and say where its cycles go."""
    option_checks.check_plot(plot)
    if csv_file is not None:
        check_writable(csv_file)
    for path in frontier or ():
        check_frontier(path)
    if frontier:
        check_power(settings.steps)
    _tell_unknown_prices(settings)
    from cluster.commands.output import print_json, stderr_console, working
    from cluster.planning import plan_models, write_plans

    with working("planning ...", stderr_console()) as tell:
        rows = plan_models(settings, tell)
    axes = [axis.name for axis in settings.axes]
    if csv_file is not None:
        write_plans(rows, axes, csv_file)
    if plot is not None:
        from cluster.plots import draw_plans

        draw_plans(rows, axes or ["chips"], plot)
    if as_json:
        print_json({"model": settings.model, "axes": axes, "plans": rows} if axes else rows[0])
    elif not axes:
        _show(rows[0])
        if settings.explain is not None:
            from cluster.commands.sweep_tables import print_passes

            print_passes(f"passes of the {settings.explain}, x at cycle 0", rows[0]["passes"])
    else:
        from cluster.commands.sweep_tables import print_plans

        print_plans(f"{settings.model} by {' and '.join(axes)}", axes, rows)
    if frontier:
        _write_frontier(rows, axes, frontier)


def _tell_unknown_prices(settings: PlanSettings) -> None:
    """On stderr, the chips that a file of prices names and nobody knows."""
    if settings.prices is None:
        return
    for name in unknown_chips(settings.prices, specs_of(settings.steps)):
        typer.echo(f"{settings.prices}: [chip.{name}] is of no chip that is known", err=True)


def _write_frontier(rows: Sequence[Row], axes: Sequence[str], paths: Sequence[Path]) -> None:
    from cluster.planning import frontier_points, write_frontier
    from cluster.plots import draw_frontier

    points = frontier_points(rows)
    for path in paths:
        if path.suffix == ".csv":
            write_frontier(points, axes, path)
        else:
            draw_frontier(points, axes or ["chips"], path)


def _belt_text(row: Row) -> str:
    from programs.plans import BATCHES

    belt, energy = row["full_belt"], row["energy"]
    joules = (
        ""
        if energy is None
        else f", {energy['joules_per_token_of_a_full_belt']:.3g} J per token (estimate)"
    )
    room = (
        "the chips have caches for all of them"
        if belt["that_fit"] >= belt["sequences"]
        else f"these chips have caches for {belt['that_fit']:,} at this context: --batch "
        f"{belt['sequences']} without --chips plans a machine for all"
    )
    if belt["sequences"] > row["pp"] and row["mode"] != BATCHES:
        room += f"; one sequence at a stage, so more than {row['pp']} take turns"
    return (
        f"{belt['sequences']:,} sequences: {belt['per_user']:,.1f} tokens/s for each, "
        f"{belt['total']:,.1f} in all{joules}; {room}"
    )


def _batches(row: Row) -> list[tuple[str, str]]:
    """Where there are more sequences than stages."""
    refused = row.get("batch_refused")
    if row.get("batches") is None:
        return [("batches", f"none: {refused}")] if refused else []
    found = row["batches"]
    own = row["initiation_interval_cycles"] * found["sequences_per_stage"]
    return [
        (
            "batches",
            f"{found['sequences_per_stage']} sequences a stage: a token of each every "
            f"{found['interval_cycles']:,} cycles ({found['interval_cycles'] / own:.0%} of what "
            f"one at a time takes); {found['sram_used_ratio']:.1%} of the fullest chip's SRAM"
            + (f"; more at a time: none, {refused}" if refused else ""),
        )
    ]


def _cost(row: Row) -> list[tuple[str, str]]:
    """Where prices were given."""
    if "cost" not in row:
        return []
    cost, unit = row["cost"], row["cost"]["currency"]
    return [
        (
            "cost of a million tokens",
            f"{cost['per_million_tokens']:,.4g} {unit}, with a full belt "
            f"{cost['per_million_tokens_of_a_full_belt']:,.4g} {unit} (by your prices)",
        )
    ]


def _energy_text(row: Row) -> str:
    energy = row["energy"]
    if energy is None:
        return "no estimate: the chip spec gives no power (average_power_w)"
    return (
        f"about {energy['joules_per_token_of_one_user']:.3g} J per token of one user, "
        f"{energy['joules_per_token_in_all']:.3g} J in all (estimate: {row['chips']} chips at "
        f"their average power, {energy['machine_power_w'] / 1000:,.1f} kW)"
    )


def _changes(row: Row) -> list[tuple[str, str]]:
    """Fields of the chip that are not its own."""
    lines = [f"{name} {was:,} -> {now:,}" for name, (was, now) in _plain(row["changes"])]
    lines += [f"{name} changed" for name, (was, _) in row["changes"].items() if not _number(was)]
    return [("what if", "; ".join(lines))] if lines else []


def _plain(changes: Row) -> list[tuple[str, tuple[float, float]]]:
    return [(name, (was, now)) for name, (was, now) in changes.items() if _number(was)]


def _number(value: object) -> bool:
    return isinstance(value, (int, float))


def _floor(row: Row) -> list[tuple[str, str]]:
    """What no schedule could beat, and its terms."""
    from programs.plans import FLOOR_TERMS

    above = f"{row['cycles_per_floor']:.2f}"
    terms = {name: n for name, n in row["floor"].items() if name in FLOOR_TERMS}
    return [
        (
            "floor of the machine",
            f"{row['floor_cycles']:,} cycles; this schedule takes {above} times as many",
        ),
        *[(f"  {name}", f"{n:,}: {FLOOR_TERMS[name]}") for name, n in terms.items()],
    ]


def _tried(row: Row) -> list[tuple[str, str]]:
    """What was planned to move the bottleneck, and what came of it."""
    lines = []
    for one in row.get("tried", ()):
        if one["problem"]:
            lines.append(("  tried", f"{one['change']}: no plan, {one['problem']}"))
            continue
        token = _against(one["cycles"], row["cycles_per_token"])
        beat = _against(one["interval_cycles"], row["initiation_interval_cycles"])
        lines.append(
            ("  tried", f"{one['change']}: {token} a token, {beat} between tokens of a full belt")
        )
    return lines


def _against(cycles: int, before: int) -> str:
    """Cycles, and how many fewer or more they are."""
    gain = 1 - cycles / before
    if round(gain, 3) == 0:
        return f"{cycles:,} cycles (no change)"
    return f"{cycles:,} cycles ({abs(gain):.1%} {'fewer' if gain > 0 else 'more'})"


def _buckets(row: Row) -> list[tuple[str, str]]:
    """What a token costs at its own length, where that was asked for."""
    lines = [
        (
            f"  below {bucket['positions']:,}",
            f"{bucket['cycles']:,} cycles, {bucket['prefill_cycles']:,} without the head; "
            f"interval of a full belt {bucket['interval_cycles']:,}",
        )
        for bucket in row.get("buckets", ())
    ]
    if lines:
        lines.insert(0, ("a token at a position", "schedules over the same caches, checked"))
    return lines


def _prompts(row: Row) -> list[tuple[str, str]]:
    """When first tokens come, where that was asked for."""
    lines = []
    for cost in row.get("prompts", ()):
        how = f"{cost['launches']:,} launches" if cost["launches"] > 1 else "one launch"
        if cost["chunk"] > 1:
            how += f" of {cost['chunk']} tokens"
        if cost["cycles"] < cost["one_by_one_cycles"]:
            how += f"; one token after another {cost['one_by_one_cycles']:,}"
        lines.append(
            (
                f"first token after {cost['tokens']:,}",
                f"{cost['cycles']:,} cycles, {1000 * cost['seconds']:,.4g} ms: {how}",
            )
        )
    if row.get("chunk_refused"):
        lines.append(("no chunks", row["chunk_refused"]))
    return lines


def _experts(row: Row) -> list[tuple[str, str]]:
    if row["experts"] == 1:
        return []
    text = f"{row['experts_chosen']} of {row['experts']}, those that the router chooses"
    if shared := row["experts_computed"] - row["experts_chosen"]:
        text += f", and {shared} that every token takes"
    return [("experts of a layer", text)]


def _show(row: Row) -> None:
    """The human table."""
    from cluster.commands.output import print_table
    from programs.plans import PHASES

    cycles = row["cycles_per_token"]
    phases = [
        (f"  {name.replace('_', ' ')}", f"{n:,} ({n / cycles:.1%}): {PHASES[name]}")
        for name, n in row["phases"].items()
    ]
    sram = [
        (f"  {name.replace('_', ' ')}", f"{n:,} bytes") for name, n in row["sram_bytes"].items()
    ]
    units = [(f"  {name.replace('_', ' ')}", f"{n:.1%}") for name, n in row["units"].items()]
    ran = "not run"
    if "run_seconds" in row:
        rate = row["run_chip_cycles_per_second"]
        ran = f"all chips retired at cycle {cycles:,} ({rate:.2g} chip-cycles/s)"
    print_table(
        f"{row['model']} on {row['chips']} {row['chip']}",
        [
            ("machine", row["machine"]),
            *_changes(row),
            ("context, batch, weights", f"{row['context']:,}, {row['batch']}, {row['dtype']}"),
            ("cycles per token", f"{cycles:,}"),
            *phases,
            ("interval of a full belt", f"{row['initiation_interval_cycles']:,} cycles"),
            *_buckets(row),
            *_prompts(row),
            (
                "tokens per second",
                f"{row['tokens_per_second_per_user']:,.1f} per user, "
                f"{row['tokens_per_second_total']:,.1f} in all ({row['mode']})",
            ),
            *_batches(row),
            ("full belt", _belt_text(row)),
            ("SRAM of the fullest chip", f"{row['sram_used_ratio']:.1%} used"),
            *sram,
            ("instruction words", f"at most {row['instruction_bytes']:,} bytes on a chip"),
            ("load of the slowest stage", ""),
            *units,
            (
                "roofline",
                f"weights alone stream in {row['roofline_cycles']:,} cycles "
                f"({row['roofline_cycles'] / cycles:.1%} of a token's), "
                f"{row['operations_per_byte']:g} operations per byte",
            ),
            *_floor(row),
            ("bottleneck", row["bottleneck"]),
            *_tried(row),
            *_experts(row),
            ("layers with a split FFN", str(row["split_layers"])),
            ("checked", f"{row['checked_pieces']} distinct pieces and all links: legal"),
            ("timing-only run", ran),
            ("energy", _energy_text(row)),
            *_cost(row),
            ("wall time", f"{row['wall_seconds']:.1f} s"),
        ],
    )
