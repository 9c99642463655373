"""``lpu generate``: a prompt in, tokens out, with the exact cycles they took."""

from __future__ import annotations

from contextlib import closing
from time import perf_counter

import typer

from cluster import option_types
from cluster.commands import options
from cluster.commands.settings import takes_settings
from cluster.runs import GenerateSettings


@takes_settings
def generate(
    context_: typer.Context,
    settings: GenerateSettings,
    traced: option_types.LaunchTraceSettings,
    kept: option_types.ReportSettings,
    metrics: option_types.MetricsSettings,
    faults: option_types.Faults = None,
    strict_range: option_types.StrictRange = False,
    as_json: option_types.Json = False,
) -> None:
    """Generate text on emulated chips: one node, or a pipeline of nodes."""
    started = perf_counter()
    board = options.board_of(context_, metrics)

    # The heavy imports wait until the arguments are known to make sense.
    from cluster import runs
    from cluster.commands.output import Terminal, check_range, print_json, print_table
    from cluster.report import report_request
    from cluster.tracing import trace_request
    from programs.faults import load_fault_plan

    tracing = trace_request(traced.trace, traced.trace_window, traced.trace_launches)
    reporting = report_request(kept.save, kept.report)
    plan = None if faults is None else load_fault_plan(faults)
    with closing(Terminal(stream=not as_json)) as terminal:
        done = runs.generate(
            settings,
            faults=plan,
            tracing=tracing,
            with_memory=reporting.wanted,  # a report shows what lies in SRAM
            listener=terminal,
            board=board,
            started=started,
        )
    facts = runs.generation_facts(done)
    if reporting.wanted:
        from cluster.report import generation_run
        from programs.artifact import decoder_of
        from programs.models import architecture

        shape = architecture(done.directory)
        told = [*facts, ("text", settings.prompt + done.text)]
        title = f"{shape.name} on {done.result.chips} chips"
        reporting.finish(
            lambda: generation_run(
                told,
                title,
                done.artifact,
                done.launches,
                shape,
                decoder_of(done.artifact).dtype,
                settings.seed,
                len(done.prompt),
            )
        )
    if as_json:
        print_json(runs.generation_json(done))
    else:
        print_table("generated", facts)
    check_range(strict_range, done.saturated)
