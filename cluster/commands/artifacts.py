"""``lpu compile``, ``check``, ``inspect`` and ``run``: making and looking at ``.lpu`` files."""

from __future__ import annotations

import re
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import typer

from cluster import option_checks, option_types
from cluster.commands import options
from cluster.commands.settings import takes_settings
from cluster.errors import InputError
from cluster.option_checks import DEFAULT_CONTEXT

FINDINGS_SHOWN = 50
#: Instructions and stream elements of a program; within them checking stays below 1 GiB.
MOST_ELEMENTS = 1 << 22

#: What a finding says of one instruction of a block: its stream, its cycle.
_OF_ONE = re.compile(r"\b[EW][0-9]+\b|at cycle -?[0-9]+")

File = Annotated[Path, typer.Argument(help="An .lpu file.", metavar="FILE")]
Entry = Annotated[
    str | None, typer.Option(help="Entry point.", show_default="the shortest decode, or the first")
]


def compile_(
    model: option_types.Model = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="File to write.")] = Path(
        "model.lpu"
    ),
    chips: option_types.Chips = None,
    tp: option_types.Tp = None,
    pp: option_types.Pp = None,
    dtype: option_types.Dtype = "int8",
    context: option_types.Context = None,
    chunk: option_types.Chunk = 1,
    chip: option_types.ChipType = "groq-lpu-1",
    as_json: option_types.Json = False,
) -> None:
    """Compile a checkpoint to one .lpu file."""
    from programs.decoder import check_parallelism

    width, stages = check_parallelism(chips, tp, pp)
    option_checks.check_choice("--dtype", dtype, ("int8", "fp16"))
    option_checks.check_at_least("--context", context, 1)
    option_checks.check_chunk(chunk)
    from cluster.commands.output import print_json, print_table, stderr_console, working
    from cluster.processes import carrying
    from programs.artifact import save
    from programs.decoder import compile_model
    from programs.models import open_model

    with working("compiling ...", stderr_console()) as tell:
        checkpoint = open_model(model or "target")
        positions = context or min(DEFAULT_CONTEXT, checkpoint.config.max_position)
        compiled = compile_model(
            checkpoint, tp=width, pp=stages, dtype=dtype, context=positions, chip=chip, chunk=chunk
        )
        tell("writing ...")
        save(carrying(compiled, checkpoint), output)
    used = [sum(rows.nbytes for _, _, rows in image) for image in compiled.memory]
    if as_json:
        print_json(
            {
                "artifact": str(output),
                "chips": compiled.chips,
                "predicted_cycles": compiled.predicted_cycles,
                "sram_used_bytes": max(used),
                "sram_bytes": compiled.spec.sram_bytes,
                "file_bytes": output.stat().st_size,
            }
        )
        return
    print_table(
        str(output),
        [
            ("chips", str(compiled.chips)),
            *((f"cycles of {name}", f"{n:,}") for name, n in compiled.predicted_cycles.items()),
            ("SRAM image per chip", f"{max(used):,} of {compiled.spec.sram_bytes:,} bytes"),
            ("file", f"{output.stat().st_size:,} bytes"),
        ],
    )


def check(
    file: File,
    most_elements: Annotated[
        int, typer.Option(help="Refuse programs that expand to more; a million take 0.2 GiB.")
    ] = MOST_ELEMENTS,
    as_json: option_types.Json = False,
) -> None:
    """Prove every program of an artifact legal, or say why not."""
    from chip.checker import ERROR
    from cluster.commands.output import print_json, stderr_console, working
    from cluster.runs import check_artifact
    from programs.artifact import load

    option_checks.check_at_least("--most-elements", most_elements, 1)
    with working("checking ...", stderr_console()) as tell:
        artifact = load(file)
        found = check_artifact(artifact, most_elements, lambda name: tell(f"checking {name} ..."))
    errors = [pair for pair in found if pair[1].severity == ERROR]
    if as_json:
        print_json(
            {
                "legal": not errors,
                "findings": [_finding(artifact, name, finding) for name, finding in found],
            }
        )
    else:
        told = _folded(found)
        for (name, finding), more in told[:FINDINGS_SHOWN]:
            typer.echo(f"{name}: {_sentence(artifact, finding, more)}")
        if len(told) > FINDINGS_SHOWN:
            typer.echo(f"... and {len(told) - FINDINGS_SHOWN} more")
        programs = sum(len(programs) for programs in artifact.programs.values())
        verdict = f"NOT legal: {len(errors)} errors" if errors else "legal"
        typer.echo(f"{file}: {programs} programs, {verdict}")
    if errors:
        raise typer.Exit(1)


def _folded(found: list[tuple[str, Any]]) -> list[tuple[tuple[str, Any], list[Any]]]:
    """Every finding with those that say the same of later instructions of its block."""
    alike: dict[tuple[Any, ...], list[tuple[str, Any]]] = {}
    for number, (name, f) in enumerate(found):
        own = (f.block, _OF_ONE.sub("", f.other), f.mend) if f.block >= 0 else number
        alike.setdefault((name, f.severity, f.code, f.chip, own), []).append((name, f))
    return [(pairs[0], [finding for _, finding in pairs[1:]]) for pairs in alike.values()]


def _finding(artifact: Any, entry: str, finding: Any) -> dict[str, Any]:
    from programs.artifact import place_of

    place = place_of(artifact, finding.chip, finding.block)
    return {
        "entry": entry,
        "code": finding.code,
        "severity": finding.severity,
        "chip": finding.chip,
        "cycle": finding.cycle,
        "queue": finding.queue,
        "block": finding.block if finding.block >= 0 else None,
        "file": None if place is None else place[0],
        "line": None if place is None else place[1],
        "instruction": finding.instruction,
        "other": finding.other,
        "mend": finding.mend,
    }


def _sentence(artifact: Any, finding: Any, more: list[Any]) -> str:
    from programs.artifact import with_places

    where = "" if finding.chip is None else f"chip {finding.chip}, "
    again = ""
    if more:
        last = max(other.cycle for other in more)
        again = f" ({len(more)} more such, the last at cycle {last})"
    return with_places(
        f"{finding.severity}: {where}cycle {finding.cycle}: {finding.code}: "
        f"{finding.instruction}: {finding.other}; {finding.mend}{again}",
        artifact,
        finding.chip,
    )


def inspect(
    file: File,
    entry: Entry = None,
    chip: Annotated[int, typer.Option(help="Chip number.")] = 0,
    limit: Annotated[int, typer.Option(help="Blocks to show at most, 0 for all.")] = 100,
    memory: Annotated[
        bool, typer.Option("--memory", help="Also SRAM before a launch, as .data: --limit lines.")
    ] = False,
    as_json: option_types.Json = False,
) -> None:
    """Show an artifact's program as assembler text."""
    option_checks.check_at_least("--limit", limit, 0)
    from chip.encoding import data_lines, disassemble
    from chip.program import Program
    from cluster.commands.output import print_json, print_table
    from cluster.runs import entry_names, pick_entry
    from programs.artifact import load

    artifact = load(file)
    name = pick_entry(artifact, entry)
    if not 0 <= chip < artifact.chips:
        raise InputError(f"--chip {chip}: {file} is for chips 0 to {artifact.chips - 1}")
    program = artifact.program(name, chip)
    total = len(program.blocks)
    shown = total if limit == 0 else min(limit, total)
    text = disassemble(Program(program.blocks[:shown], program.gangs, program.maps, program.cycles))
    if memory:
        data = islice(data_lines(artifact.memory[chip]), limit or None)
        text += "".join(f"{line}\n" for line in data)
    if as_json:
        print_json(
            {
                "entry_points": entry_names(artifact),
                "entry": name,
                "chip": chip,
                "blocks": total,
                "cycles": program.cycles,
                "assembly": text,
            }
        )
        return
    print_table(
        str(file),
        [
            ("entry points", ", ".join(entry_names(artifact))),
            ("shown", f"{name}, chip {chip}: {shown:,} of {total:,} blocks"),
            ("cycles", f"{program.cycles:,}"),
        ],
    )
    typer.echo(text)


@takes_settings
def run(
    context: typer.Context,
    *,
    file: File,
    entry: Entry = None,
    traced: option_types.TraceSettings,
    kept: option_types.ReportSettings,
    metrics: option_types.MetricsSettings,
    strict_range: option_types.StrictRange = False,
    as_json: option_types.Json = False,
) -> None:
    """Run one launch of an entry point with the inputs as stored."""
    from cluster.commands.output import (
        check_range,
        print_json,
        print_table,
        stderr_console,
        working,
    )
    from cluster.report import report_request
    from cluster.runs import pick_entry, run_stored
    from cluster.tracing import trace_request
    from programs.artifact import load

    tracing = trace_request(traced.trace, traced.trace_window, None)
    reporting = report_request(kept.save, kept.report)
    artifact = load(file)
    name = pick_entry(artifact, entry)
    board = options.board_of(context, metrics)
    with working("running ...", stderr_console()) as tell:
        done = run_stored(artifact, name, tracing, board, tell)
    if reporting.wanted:
        from cluster.report import launch_run

        reporting.finish(lambda: launch_run(done.rows, artifact, done.launched))
    if as_json:
        print_json(done.facts)
    else:
        print_table(str(file), done.rows)
    check_range(strict_range, done.saturated)
