"""Plans of models: a JSON row each, from the settings to a plan that was checked and run."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from time import perf_counter
from typing import Any

from chip.engine import warm_up
from chip.scheduling import CompileError
from chip.spec import ChipSpec, load_chip_spec
from cluster.errors import InputError, RunError
from cluster.runs.settings import PlanSettings
from cluster.whole_files import replace_file
from interconnect.wiring import FabricError
from programs.models import config_of
from programs.plans import (
    BELT,
    Plan,
    bucket_costs,
    check_plan,
    compile_plan,
    describe_machine,
    report_plan,
    run_timing,
    timing_programs,
)

Row = dict[str, Any]

#: Columns of a sweep's CSV file.
PLAN_COLUMNS = (
    "chips",
    "context",
    "batch",
    "tp",
    "pp",
    "cycles_per_token",
    "initiation_interval_cycles",
    "tokens_per_second_per_user",
    "tokens_per_second_total",
    "sram_used_ratio",
    "cycles_per_floor",
    "checked",
    "bottleneck",
    "problem",
)


def plan_models(settings: PlanSettings, tell: Callable[[str], None] = lambda _: None) -> list[Row]:
    """A row for every step of the sweep, or the one row of a plan; ``tell`` hears what goes on.

    A step that no machine fits has what was asked and a ``problem``; a plan without a sweep raises
    instead.  Raises InputError for what-ifs that cannot be, RunError where chips retire at other
    cycles than planned.
    """
    spec = changed_spec(load_chip_spec(settings.chip), settings.set_ or [])
    if settings.sweep is None:
        return [_plan(settings, spec, tell)]
    rows = []
    for step in settings.steps:
        try:
            rows.append(_plan(step, spec, tell))
        except (CompileError, FabricError) as error:
            asked = ("chips", "context", "batch", "tp", "dtype")
            rows.append({**{name: getattr(step, name) for name in asked}, "problem": str(error)})
    return rows


def changed_spec(spec: ChipSpec, changes: Sequence[str]) -> ChipSpec:
    """``spec`` with fields changed as ``chip.FIELD=VALUE`` says.

    Raises InputError for a change that names no field or no value of it; the spec itself refuses
    what cannot be.
    """
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


def _plan(settings: PlanSettings, spec: ChipSpec, tell: Callable[[str], None]) -> Row:
    """One plan as its JSON object."""
    began = perf_counter()
    name, config = config_of(settings.model)
    tell("compiling ...")
    found = compile_plan(
        name,
        config,
        spec,
        dtype=settings.dtype,
        context=settings.context,
        batch=settings.batch,
        chips=settings.chips,
        tp=settings.tp,
    )
    tell("checking ...")
    pieces = check_plan(found)
    r = report_plan(found)
    row: Row = {
        "model": name,
        "chip": spec.name,
        "dtype": found.dtype,
        "context": found.context,
        "batch": found.batch,
        "chips": found.chips,
        "tp": found.layout.tp,
        "pp": len(found.starts),
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
        "floor_cycles": r.floor.cycles,
        "floor": asdict(r.floor),
        "cycles_per_floor": r.cycles_per_token / r.floor.cycles,
        "operations_per_byte": r.operations_per_byte,
        "instruction_bytes": r.instruction_bytes,
        "split_layers": len(found.pipeline.split),
        "experts_computed": config.experts,
        "experts_chosen": config.experts_per_token,
        "energy": _energy(spec, found.chips, r.cycles_per_token, r.total),
    }
    if settings.buckets:
        tell("shorter contexts ...")
        row["buckets"] = [cost._asdict() for cost in bucket_costs(found)]
    if settings.run:
        tell("running ...")
        row |= _run(found, r.mode == BELT)
    row["wall_seconds"] = perf_counter() - began
    return row


def _run(plan: Plan, full: bool) -> Row:
    """What a run of the plan without data says; ``full``: the full belt is run, too.

    Raises RunError where a chip retires at another cycle than planned.
    """
    row: Row = {}
    warm_up()
    for belt in (False, True) if full else (False,):
        programs = timing_programs(plan, belt)
        start = perf_counter()
        done = run_timing(plan, programs)
        seconds = perf_counter() - start
        used = [int(done.retired[c]) for c in range(plan.chips) if programs[c] is not None]
        cycles = plan.interval_cycles if belt else plan.cycles
        if set(used) != {cycles}:
            raise RunError(f"chips retired at cycles {sorted(set(used))}, not at {cycles}")
        if not belt:
            row["run_seconds"] = seconds
            row["run_cycles"] = cycles
            row["run_chip_cycles_per_second"] = plan.chips * cycles / seconds
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


def write_plans(rows: Sequence[Row], path: Path) -> None:
    """The rows as CSV with a heading; an old file stays until the new one is whole."""

    def write(target: Path) -> None:
        with target.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, PLAN_COLUMNS, extrasaction="ignore", lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)

    replace_file(path, write)
