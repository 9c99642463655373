"""Plans of models: a JSON row each, from the settings to a plan that was checked and run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from time import perf_counter
from typing import Any

from chip.engine import warm_up
from chip.scheduling import CompileError
from chip.spec import ChipSpec, SpecError, load_chip_spec
from cluster.errors import RunError
from cluster.planning.csv_rows import write_rows
from cluster.planning.prices import cost_row, read_prices
from cluster.planning.settings import PlanSettings
from cluster.planning.steps import PlanStep, specs_of
from interconnect.wiring import FabricError
from programs.models import config_of
from programs.plans import (
    ALONE,
    BATCHES,
    Plan,
    batch_plan,
    bucket_costs,
    check_plan,
    compile_plan,
    describe_machine,
    explain_block,
    prompt_costs,
    report_plan,
    run_timing,
    timing_programs,
    try_changes,
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
    "full_belt_sequences",
    "full_belt_sequences_that_fit",
    "full_belt_tokens_per_second",
    "joules_per_token",
    "joules_per_token_of_a_full_belt",
    "cost_per_million_tokens",
    "cost_per_million_tokens_of_a_full_belt",
    "cycles_per_floor",
    "mode",
    "sequences_per_stage",
    "batch_refused",
    "checked",
    "bottleneck",
    "problem",
)


def plan_models(settings: PlanSettings, tell: Callable[[str], None] = lambda _: None) -> list[Row]:
    """A row for every step; ``tell`` hears what goes on.

    Where there are several, a step that no machine fits, or whose chip cannot be, has what was
    asked and a ``problem``; a plan alone raises instead.  Raises InputError before the first plan
    where a chip has no prices although there is a file of them, and RunError where chips retire at
    other cycles than planned.
    """
    steps = settings.steps
    if settings.prices is not None:
        prices = read_prices(settings.prices)
        for spec in specs_of(steps):
            prices.of(spec)
    if not settings.axes:
        return [_plan(settings, steps[0], tell)]
    rows = []
    for number, step in enumerate(steps, 1):
        tell(f"plan {number} of {len(steps)} ...")
        try:
            row = _plan(settings, step, lambda _: None)
            rows.append({**row, **step.varied})
        except (CompileError, FabricError, SpecError) as error:
            rows.append({**step.asked, "problem": str(error)})
    return rows


def _plan(settings: PlanSettings, step: PlanStep, tell: Callable[[str], None]) -> Row:
    """One plan as its JSON object."""
    began = perf_counter()
    name, config = config_of(settings.model)
    spec = step.spec()
    tell("compiling ...")
    found = compile_plan(
        name,
        config,
        spec,
        dtype=step.dtype,
        context=step.context,
        batch=step.batch,
        chips=step.chips,
        tp=step.tp,
        wiring=step.wiring,
    )
    tell("checking ...")
    pieces = check_plan(found)
    batched, refused = batch_plan(found)
    if batched is not None:
        pieces += check_plan(batched)
    r = report_plan(found, batched)
    row: Row = {
        "model": name,
        "chip": spec.name,
        "changes": _changes(step, spec),
        "dtype": found.dtype,
        "context": found.context,
        "batch": found.batch,
        "chips": found.chips,
        "wiring": found.pipeline.topology.name,
        "tp": found.layout.tp,
        "pp": len(found.starts),
        "cycles_per_token": r.cycles_per_token,
        "initiation_interval_cycles": r.interval_cycles,
        "tokens_per_second_per_user": r.per_user,
        "tokens_per_second_total": r.total,
        "sram_used_ratio": found.sram_used_bytes / spec.sram_bytes,
        "bottleneck": str(r.bottleneck),
        "bottleneck_phases": list(r.bottleneck.phases),
        "bottleneck_machine_cycles": r.bottleneck.machine_cycles,
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
        "experts": config.experts,
        "experts_computed": config.experts_per_token + config.shared_experts,
        "experts_chosen": config.experts_per_token,
        "full_belt": asdict(r.belt),
        "energy": _energy(spec, found.chips, r.cycles_per_token, r.total, r.belt.total),
    }
    if batched is not None or refused:
        row["batches"] = None if batched is None else _batches(batched)
        row["batch_refused"] = refused or None
    if settings.prices is not None:
        prices = read_prices(settings.prices).of(spec)
        row["cost"] = cost_row(prices, found.chips, r.total, r.belt.total)
    if settings.buckets:
        tell("shorter contexts ...")
        row["buckets"] = [cost._asdict() for cost in bucket_costs(found)]
    if settings.prompts:
        tell("prompts ...")
        prompts = prompt_costs(found, settings.prompts, settings.chunk)
        row["prompts"] = [
            {**cost._asdict(), "seconds": cost.cycles / spec.clock_hz} for cost in prompts.costs
        ]
        row["chunk_refused"] = prompts.refused or None
        row["checked_pieces"] += prompts.pieces
    if settings.explain is not None:
        row["passes"] = [asdict(placed) for placed in explain_block(found, settings.explain)]
    if settings.advice and not settings.axes:
        tell("trying what would move the bottleneck ...")
        tried = try_changes(found, r.bottleneck)
        row["tried"] = [asdict(one) for one in tried]
    if settings.run:
        tell("running ...")
        serving = batched if batched is not None and r.mode == BATCHES else found
        row |= _run(found, [] if r.mode == ALONE else [serving])
    row["wall_seconds"] = perf_counter() - began
    return row


def _changes(step: PlanStep, spec: ChipSpec) -> Row:
    """Fields of the chip that are not its own: {name: [before, now]}, those that follow too."""
    own = load_chip_spec(step.chip)
    names = (f.name for f in fields(spec))
    return {
        name: [getattr(own, name), getattr(spec, name)]
        for name in names
        if getattr(own, name) != getattr(spec, name)
    }


def _batches(batched: Plan) -> Row:
    """What a stage takes at a time, where there are more sequences than stages."""
    turns = batched.pipeline.turns
    return {
        "sequences_per_stage": batched.pipeline.places.chunk,
        "groups": turns,
        "interval_cycles": batched.interval_cycles,
        "cycles": batched.cycles,
        "sram_used_ratio": batched.sram_used_bytes / batched.spec.sram_bytes,
    }


def _run(own: Plan, full: Sequence[Plan]) -> Row:
    """What a run of the plan without data says; ``full``: those whose full belt is run, too.

    Raises RunError where a chip retires at another cycle than planned.
    """
    row: Row = {}
    warm_up()
    for plan, belt in [(own, False), *((plan, True) for plan in full)]:
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


def _energy(
    spec: ChipSpec, chips: int, cycles: int, per_second: float, belt_per_second: float
) -> Row | None:
    """An estimate: every chip of the machine at its average power, whatever it does."""
    if not spec.average_power_w:
        return None
    watts = chips * spec.average_power_w
    return {
        "estimate": True,
        "machine_power_w": watts,
        "joules_per_token_of_one_user": watts * cycles / spec.clock_hz,
        "joules_per_token_in_all": watts / per_second,
        "joules_per_token_of_a_full_belt": watts / belt_per_second,
    }


def write_plans(rows: Sequence[Row], axes: Sequence[str], path: Path) -> None:
    """The rows as CSV with a heading, what varies first; an old file stays until this is whole."""
    write_rows([{**row, **_flat(row)} for row in rows], axes, PLAN_COLUMNS, path)


def _flat(row: Row) -> Row:
    """Nested figures that have a column."""
    if "problem" in row:
        return {}
    belt, energy, cost = row["full_belt"], row["energy"] or {}, row.get("cost", {})
    batches = row.get("batches") or {}
    return {
        "sequences_per_stage": batches.get("sequences_per_stage"),
        "full_belt_sequences": belt["sequences"],
        "full_belt_sequences_that_fit": belt["that_fit"],
        "full_belt_tokens_per_second": belt["total"],
        "joules_per_token": energy.get("joules_per_token_in_all"),
        "joules_per_token_of_a_full_belt": energy.get("joules_per_token_of_a_full_belt"),
        "cost_per_million_tokens": cost.get("per_million_tokens"),
        "cost_per_million_tokens_of_a_full_belt": cost.get("per_million_tokens_of_a_full_belt"),
    }
