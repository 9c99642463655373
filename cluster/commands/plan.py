"""``lpu plan``: the chips a model takes, how it is split, and the cycles a token costs."""

from __future__ import annotations

import csv
import io
from dataclasses import fields, replace
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cluster import option_types
from cluster.commands import options
from cluster.errors import InputError, RunError

if TYPE_CHECKING:
    from chip.spec import ChipSpec

Row = dict[str, Any]

#: Keys of a row of a sweep.
COLUMNS = (
    "chips", "context", "batch", "tp", "pp", "cycles_per_token", "initiation_interval_cycles",
    "tokens_per_second_per_user", "tokens_per_second_total", "sram_used_ratio", "checked",
    "bottleneck", "problem",
)  # fmt: skip
SWEPT = ("chips", "context", "batch")
MOST_STEPS = 64


def plan(
    model: Annotated[
        str, typer.Option(help=options.MODEL_SHAPE)
    ],
    chip: option_types.ChipType = "groq-lpu-1",
    chips: Annotated[
        int | None, typer.Option(help="Chips to use.", show_default="the fewest that fit")
    ] = None,
    tp: Annotated[
        int | None, typer.Option(help="Chips that share every matrix.", show_default="up to 8")
    ] = None,
    context: Annotated[int, typer.Option(help="Positions of every sequence.")] = 2048,
    batch: Annotated[int, typer.Option(help="Sequences in flight.")] = 1,
    dtype: option_types.Dtype = "int8",
    sweep: Annotated[
        str | None,
        typer.Option(help="chips, context or batch over a range: chips=64..1024 (doubling).",
                     show_default="none"),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="What if: chip.FIELD=VALUE; again for more.",
                     show_default="none"),
    ] = None,
    run: Annotated[
        bool, typer.Option(help="Also run the programs on chips without data.")
    ] = True,
    csv_file: Annotated[
        Path | None, typer.Option("--csv", help="Write the rows as CSV.", show_default="none")
    ] = None,
    plot: option_types.Plot = None,
    as_json: option_types.Json = False,
) -> None:  # fmt: skip
    """Compile a model by its shape alone and say where its cycles go."""
    for option, value in (("--chips", chips), ("--context", context), ("--batch", batch)):
        options.check_at_least(option, value, 1)
    options.check_choice("--dtype", dtype, ("int8", "fp16"))
    if tp is not None and tp not in options.CHIPS:
        raise InputError(f"--tp {tp}: use 1, 2, 4 or 8")
    options.check_plot(plot)
    if csv_file is not None:
        from cluster.whole_files import check_writable

        check_writable(csv_file)
    swept, values = _range(sweep)
    from chip.scheduling import CompileError
    from chip.spec import load_chip_spec
    from cluster.commands.output import print_json, stderr_console, working
    from interconnect.wiring import FabricError

    spec = _changed(load_chip_spec(chip), set_ or [])
    asked: Row = {"chips": chips, "context": context, "batch": batch, "tp": tp, "dtype": dtype}
    with working("planning ...", stderr_console()) as tell:
        if swept is None:
            rows = [_plan(model, spec, asked, run, tell)]
        else:
            rows = []
            for value in values:
                step = {**asked, swept: value}
                try:
                    rows.append(_plan(model, spec, step, run, tell))
                except (CompileError, FabricError) as error:
                    rows.append({**step, "problem": str(error)})
    if csv_file is not None:
        _write_csv(csv_file, rows)
    if plot is not None:
        from cluster.plots import draw_plans

        draw_plans(rows, swept or "chips", plot)
    if as_json:
        print_json(rows[0] if swept is None else {"model": model, "sweep": swept, "plans": rows})
    elif swept is None:
        _show(rows[0])
    else:
        from cluster.commands.sweep_tables import print_plans

        print_plans(f"{model} by {swept}", swept, rows)


def _range(text: str | None) -> tuple[str | None, list[int]]:
    """What is swept, and over which numbers: from the first, doubling, to the last."""
    if text is None:
        return None, []
    name, _, span = text.partition("=")
    low, dots, high = span.partition("..")
    ends = (low, high if dots else low)
    numbers = [end for end in ends if end.isascii() and end.isdigit() and len(end) < 12]
    if name not in SWEPT or len(numbers) != 2 or not 1 <= int(low) <= int(numbers[1]) < 1 << 30:
        raise InputError(f"--sweep {text[:60]}: use {', '.join(SWEPT)} as in chips=64..1024")
    values, at = [], int(low)
    while at <= int(numbers[1]):
        values.append(at)
        at *= 2
    if name == "chips":
        from programs.decoder import machine_sizes

        sizes = machine_sizes()
        values = [next((s for s in sizes if s >= value), sizes[-1]) for value in values]
    return name, list(dict.fromkeys(values))[:MOST_STEPS]


def _changed(spec: ChipSpec, changes: list[str]) -> ChipSpec:
    """``spec`` with fields changed; the spec itself refuses what cannot be."""
    known = {f.name: f for f in fields(spec)}
    for change in changes:
        name, equals, text = change.partition("=")
        field = name.removeprefix("chip.")
        if not equals or not name.startswith("chip.") or field not in known:
            raise InputError(
                f"--set {change}: use chip.FIELD=VALUE with one of {', '.join(sorted(known))}"
            )
        kind = type(getattr(spec, field))
        try:
            if kind is tuple:
                value: Any = tuple(int(part) for part in text.split(",") if part)
            else:
                value = kind(text)
        except ValueError:
            raise InputError(f"--set {change}: {text!r} is no {kind.__name__}") from None
        spec = replace(spec, **{field: value})
    return spec


def _plan(model: str, spec: ChipSpec, asked: Row, run: bool, tell: Any) -> Row:
    """One plan as its JSON object."""
    began = perf_counter()
    from chip.engine import warm_up
    from programs.models import config_of
    from programs.plans import (
        BELT,
        check_plan,
        compile_plan,
        describe_machine,
        report_plan,
        run_timing,
        timing_programs,
    )

    name, config = config_of(model)
    tell("compiling ...")
    found = compile_plan(
        name, config, spec, dtype=asked["dtype"], context=asked["context"], batch=asked["batch"],
        chips=asked["chips"], tp=asked["tp"],
    )  # fmt: skip
    tell("checking ...")
    pieces = check_plan(found)
    row: Row = {
        "model": name,
        "chip": spec.name,
        "dtype": found.dtype,
        "context": found.context,
        "batch": found.batch,
        "chips": found.chips,
        "tp": found.layout.tp,
        "pp": len(found.starts),
    }
    r = report_plan(found)
    row |= {
        "cycles_per_token": r.cycles_per_token,
        "initiation_interval_cycles": r.interval_cycles,
        "tokens_per_second_per_user": r.per_user,
        "tokens_per_second_total": r.total,
        "sram_used_ratio": found.sram_used_bytes / spec.sram_bytes,
        "bottleneck": r.bottleneck,
        "checked": found.checked,
        "checked_pieces": pieces,
        "machine": describe_machine(found),
        "mode": r.mode,
        "phases": r.phases,
        "sram_bytes": r.sram,
        "units": r.units,
        "roofline_cycles": r.roofline_cycles,
        "operations_per_byte": r.operations_per_byte,
        "instruction_bytes": r.instruction_bytes,
        "split_layers": len(found.pipeline.split),
        "experts_computed": config.experts,
        "experts_chosen": config.experts_per_token,
        "energy": _energy(spec, found.chips, r.cycles_per_token, r.total),
    }
    if run:
        tell("running ...")
        warm_up()
        for belt in (False, True) if r.mode == BELT else (False,):
            programs = timing_programs(found, belt)
            start = perf_counter()
            done = run_timing(found, programs)
            seconds = perf_counter() - start
            used = [int(done.retired[c]) for c in range(found.chips) if programs[c] is not None]
            cycles = found.interval_cycles if belt else found.cycles
            if set(used) != {cycles}:
                raise RunError(f"chips retired at cycles {sorted(set(used))}, not at {cycles}")
            if not belt:
                row["run_seconds"] = seconds
                row["run_cycles"] = cycles
                row["run_chip_cycles_per_second"] = found.chips * cycles / seconds
    row["wall_seconds"] = perf_counter() - began
    return row


def _energy(spec: ChipSpec, chips: int, cycles: int, per_second: float) -> Row | None:
    """An estimate: every chip of the machine at its average power, whatever it does."""
    if not spec.average_power_w:
        return None
    watts = chips * spec.average_power_w
    return {
        "estimate": True,
        "machine_power_w": watts,
        "joules_per_token_of_one_user": watts * cycles / spec.clock_hz,
        "joules_per_token_in_all": watts / per_second,
    }


def _energy_text(row: Row) -> str:
    energy = row["energy"]
    if energy is None:
        return "no estimate: the chip spec gives no power (average_power_w)"
    return (
        f"about {energy['joules_per_token_of_one_user']:.3g} J per token of one user, "
        f"{energy['joules_per_token_in_all']:.3g} J in all (estimate: {row['chips']} chips at "
        f"their average power, {energy['machine_power_w'] / 1000:,.1f} kW)"
    )


def _write_csv(path: Path, rows: list[Row]) -> None:
    from cluster.whole_files import replace_file

    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    def write(target: Path) -> None:
        target.write_text(text.getvalue(), encoding="utf-8")

    replace_file(path, write)


def _show(row: Row) -> None:
    """The human table."""
    from cluster.commands.output import print_table
    from programs.plans import PHASES

    cycles = row["cycles_per_token"]
    phases = [
        (f"  {name.replace('_', ' ')}", f"{n:,} ({n / cycles:.1%}): {PHASES[name][0]}")
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
    experts = []
    if row["experts_computed"] > 1:
        text = f"all {row['experts_computed']} computed, {row['experts_chosen']} of them count"
        experts.append(("experts of a layer", text))
    print_table(
        f"{row['model']} on {row['chips']} {row['chip']}",
        [
            ("machine", row["machine"]),
            ("context, batch, weights", f"{row['context']:,}, {row['batch']}, {row['dtype']}"),
            ("cycles per token", f"{cycles:,}"),
            *phases,
            ("interval of a full belt", f"{row['initiation_interval_cycles']:,} cycles"),
            (
                "tokens per second",
                f"{row['tokens_per_second_per_user']:,.1f} per user, "
                f"{row['tokens_per_second_total']:,.1f} in all ({row['mode']})",
            ),
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
            ("bottleneck", row["bottleneck"]),
            *experts,
            ("layers with a split FFN", str(row["split_layers"])),
            ("checked", f"{row['checked_pieces']} distinct pieces and all links: legal"),
            ("timing-only run", ran),
            ("energy", _energy_text(row)),
            ("wall time", f"{row['wall_seconds']:.1f} s"),
        ],
    )  # fmt: skip
