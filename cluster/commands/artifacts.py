"""``lpu compile``, ``check``, ``inspect`` and ``run``: making and looking at ``.lpu`` files."""

from __future__ import annotations

import re
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import typer

from cluster import option_types
from cluster.commands import options
from cluster.errors import InputError, RunError

DEFAULT_CONTEXT = 256
FINDINGS_SHOWN = 50
OUTPUTS_SHOWN = 8
#: Instructions and stream elements of a program; within them checking stays below 1 GiB.
MOST_ELEMENTS = 1 << 22

#: What a finding says of one instruction of a block: its stream, its cycle.
_OF_ONE = re.compile(r"\b[EW][0-9]+\b|at cycle -?[0-9]+")

File = Annotated[Path, typer.Argument(help="An .lpu file.", metavar="FILE")]
Entry = Annotated[str | None, typer.Option(help="Entry point.", show_default="the first one")]


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
    chip: option_types.ChipType = "groq-lpu-1",
    as_json: option_types.Json = False,
) -> None:
    """Compile a checkpoint to one .lpu file."""
    from programs.decoder import check_parallelism

    tp_asked, stages = check_parallelism(chips, tp, pp)
    options.check_choice("--dtype", dtype, ("int8", "fp16"))
    options.check_at_least("--context", context, 1)
    from cluster.commands.output import print_json, print_table, stderr_console, working
    from programs.artifact import save
    from programs.decoder import compile_model
    from programs.models import open_model

    with working("compiling ...", stderr_console()) as tell:
        checkpoint = open_model(model or "target")
        positions = context or min(DEFAULT_CONTEXT, checkpoint.config.max_position)
        compiled = compile_model(
            checkpoint, tp=tp_asked, dtype=dtype, context=positions, chip=chip, pp=stages
        )
        tell("writing ...")
        save(compiled, output)
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

    options.check_at_least("--most-elements", most_elements, 1)
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
        artifact, finding.chip,
    )  # fmt: skip


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
    options.check_at_least("--limit", limit, 0)
    from chip.encoding import disassemble
    from chip.encoding.data_lines import data_lines
    from chip.program import Program
    from cluster.commands.output import print_json, print_table
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


def entry_names(artifact: Any) -> list[str]:
    """Entry points by name, numbers inside names by value: decode-64 before decode-128."""

    def key(name: str) -> list[tuple[int, str]]:
        return [(int(p), "") if p.isdecimal() else (0, p) for p in re.split(r"([0-9]+)", name)]

    return sorted(artifact.programs, key=key)


def pick_entry(artifact: Any, entry: str | None) -> str:
    """The entry point asked for, or the first by name and number."""
    names = entry_names(artifact)
    if entry is None and names:
        return str(names[0])
    if entry in names:
        return str(entry)
    raise InputError(f"--entry {entry}: the entry points are {', '.join(names) or 'none'}")


def run(
    context: typer.Context,
    file: File,
    entry: Entry = None,
    trace: option_types.Trace = None,
    trace_window: option_types.TraceWindow = None,
    save: option_types.Save = None,
    report: option_types.Report = None,
    metrics_port: option_types.MetricsPort = 0,
    metrics_host: option_types.MetricsHost = option_types.METRICS_HOST,
    metrics_linger: option_types.MetricsLinger = option_types.METRICS_LINGER_SECONDS,
    as_json: option_types.Json = False,
) -> None:
    """Run one launch of an entry point with the inputs as stored."""
    from chip.faults import LockstepViolation, ProgramFault
    from cluster.commands.output import print_json, print_table, stderr_console, working
    from cluster.metrics import RunWatch
    from cluster.processes import Placement
    from cluster.report import report_request
    from cluster.runs import launch_everywhere
    from cluster.tracing import Launched, trace_request
    from programs.artifact import fault_text, load
    from programs.running import LOOKAHEAD

    tracing = trace_request(trace, trace_window, None)
    reporting = report_request(save, report)
    traced = None
    artifact = load(file)
    name = pick_entry(artifact, entry)
    board = options.open_board(context, metrics_port, metrics_host, metrics_linger)
    with working("running ...", stderr_console()) as tell:
        predicted = artifact.predicted_cycles.get(name)
        if tracing is not None and predicted is not None:
            tracing.plan(artifact, [Launched(name, predicted)])
        placement = Placement(artifact.chips, in_process=True)
        try:
            result = launch_everywhere(
                artifact, name, LOOKAHEAD, placement,
                watch=None if board is None else RunWatch(board, "run"),
            )  # fmt: skip
        except (LockstepViolation, ProgramFault) as fault:
            raise RunError(fault_text(fault, artifact)) from None
        launched = Launched(name, result.cycles)
        if tracing is not None:
            tell("writing the trace ...")
            traced = tracing.write(artifact, [launched])
    predicted = result.cycles if predicted is None else predicted
    facts = [
        ("entry point", name),
        ("cycles", f"{result.cycles:,} (predicted {predicted:,})"),
        ("digest", result.digest),
    ]
    facts += [
        (f"{name} of chip {output['chip']} ({described['type']})", _values(described))
        for output in result.outputs
        for name, described in output.items()
        if name != "chip"
    ][:OUTPUTS_SHOWN]
    if traced is not None:
        facts.append(("trace", f"{traced.events():,} events, {traced.block_events():,} blocks"))
    if reporting.wanted:
        from cluster.report import launch_run

        reporting.finish(lambda: launch_run(facts, artifact, launched))
    if as_json:
        print_json(
            {
                "entry": name,
                "chips": artifact.chips,
                "digest": result.digest,
                "cycles": result.cycles,
                "predicted_cycles": predicted,
                "outputs": result.outputs,
                **({} if traced is None else {"trace": traced.summary()}),
            }
        )
    else:
        print_table(str(file), facts)


def _values(described: dict[str, Any]) -> str:
    """The first values of an output, for people."""
    first = ", ".join(
        f"{value:g}" if isinstance(value, float) else str(value) for value in described["first"]
    )
    return f"{first}{', ...' if described['values'] > len(described['first']) else ''}"
