"""``lpu generate``: a prompt in, tokens out, with the exact cycles they took."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path
from time import perf_counter
from typing import Annotated

import typer

from cluster.commands import options
from cluster.errors import InputError

DEFAULT_PROMPT = "def "


def generate(
    context_: typer.Context,
    model: options.Model = None,
    prompt: Annotated[str, typer.Option(help="Text to continue.")] = DEFAULT_PROMPT,
    max_new_tokens: Annotated[int, typer.Option(help="Tokens to generate at most.")] = 32,
    chips: options.Chips = None,
    tp: options.Tp = None,
    pp: options.Pp = None,
    chips_per_actor: Annotated[str, typer.Option(help="Chips per process, or auto.")] = "auto",
    sync: Annotated[str, typer.Option(help="lookahead or barrier.")] = "lookahead",
    dtype: options.Dtype = "int8",
    address: Annotated[
        str | None,
        typer.Option(help="Ray cluster to join, or auto.", show_default="a private local Ray"),
    ] = None,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.0,
    seed: Annotated[int, typer.Option(help="Seed of the sampling.")] = 0,
    context: options.Context = None,
    chip: options.ChipType = "groq-lpu-1",
    artifact: Annotated[
        Path | None,
        typer.Option(
            help="Run this .lpu file instead of compiling the model.", show_default="none"
        ),
    ] = None,
    in_process: Annotated[
        bool, typer.Option("--in-process", help="All chips in this process, without Ray.")
    ] = False,
    ignore_eos: Annotated[
        bool, typer.Option("--ignore-eos", help="Go on after an end-of-text token.")
    ] = False,
    trace: options.Trace = None,
    trace_window: options.TraceWindow = None,
    trace_launches: options.TraceLaunches = None,
    save: options.Save = None,
    report: options.Report = None,
    metrics_port: options.MetricsPort = 0,
    metrics_host: options.MetricsHost = options.METRICS_HOST,
    metrics_linger: options.MetricsLinger = options.METRICS_LINGER_SECONDS,
    faults: options.Faults = None,
    as_json: options.Json = False,
) -> None:
    """Generate text on emulated chips: one node, or a pipeline of nodes."""
    started = perf_counter()
    from programs.decoder import check_parallelism

    tp_asked, stages = check_parallelism(chips, tp, pp)
    options.check_choice("--dtype", dtype, ("int8", "fp16"))
    options.check_choice("--sync", sync, ("lookahead", "barrier"))
    options.check_at_least("--max-new-tokens", max_new_tokens, 1)
    options.check_at_least("--context", context, 1)
    if not temperature >= 0 or temperature == float("inf"):
        raise InputError(f"--temperature {temperature}: use a finite number, 0 or more")
    if not 0 <= seed < 2**63:
        raise InputError(f"--seed {seed}: use an integer from 0 to 2^63 - 1")
    packing = _packing(chips_per_actor)
    board = options.open_board(context_, metrics_port, metrics_host, metrics_linger)

    # The heavy imports wait until the arguments are known to make sense.
    from cluster.commands.output import Terminal, print_json, print_table
    from cluster.metrics import RunWatch
    from cluster.processes import Placement
    from cluster.processes import chips_per_actor as pack
    from cluster.report import report_request
    from cluster.runs import (
        SERVED,
        generate_on_spares,
        launches_of,
        planned_launches,
        publish_generation,
        run_generation,
    )
    from cluster.tracing import trace_request
    from programs.artifact import load
    from programs.decoder import adopt, compile_model, compile_model_apart, home_of
    from programs.faults import fault_summary, load_fault_plan, loses_nodes
    from programs.models import open_model
    from programs.running import Generation

    tracing = trace_request(trace, trace_window, trace_launches)
    reporting = report_request(save, report)
    fault_plan = None if faults is None else load_fault_plan(faults)
    compiled = None if artifact is None else load(artifact)
    checkpoint = open_model(model or ("target" if compiled is None else home_of(compiled)))
    directory = checkpoint.path
    assert directory is not None
    tokenizer = checkpoint.tokenizer
    ids = tokenizer.encode(prompt).ids
    if not ids:
        raise InputError("--prompt is empty: give at least one character")
    need = len(ids) + max_new_tokens - 1
    terminal = Terminal(ids, tokenizer.decode, stream=not as_json)
    with closing(terminal):
        images = None
        if compiled is not None:
            compiled = adopt(compiled, checkpoint, need)
        else:
            terminal.phase("compiling")
            compiled, images = compile_model_apart(
                checkpoint, tp=tp_asked, dtype=dtype, context=context or need, chip=chip, pp=stages
            )
            if reporting.wanted:  # it shows what lies in SRAM
                compiled.memory, images = images.of(range(compiled.chips)), None
        job = Generation(
            prompt=tuple(ids),
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            seed=seed,
            stop=() if ignore_eos else options.end_tokens(_config(directory)),
            sync=sync,
        )
        if tracing is not None:  # too large a trace is refused before the run, not after it
            tracing.plan(compiled, planned_launches(compiled, job))
        placement = Placement(
            pack(compiled.chips, packing), address, in_process, faults=fault_plan
        )
        watch = None if board is None else RunWatch(board, "generate", SERVED)
        nodes: list[int] = []
        if artifact is None and loses_nodes(fault_plan, compiled.chips):
            survived = generate_on_spares(
                lambda wiring: compile_model(
                    checkpoint, tp=tp_asked, dtype=dtype, context=context or need, chip=chip,
                    pp=stages, wiring=wiring,
                ),
                compiled.chips, job, placement, terminal, started, watch=watch,
            )  # fmt: skip
            compiled, result, nodes = survived.artifact, survived.result, survived.nodes
        else:
            result = run_generation(
                compiled, job, placement, terminal, started, watch=watch, images=images
            )
        launches = launches_of(result, [tokenizer.decode([token]) for token in result.tokens])
        traced = None
        if tracing is not None:
            terminal.phase("writing the trace")
            traced = tracing.write(compiled, launches)
    if board is not None:
        publish_generation(board, result, len(ids))
    text = tokenizer.decode(result.tokens)
    per_second = len(result.tokens) / result.virtual_seconds
    low, high = min(result.cycles_per_token), max(result.cycles_per_token)
    cycles = f"{low:,}" if low == high else f"{low:,} to {high:,}"
    exact = result.cycles_per_token == result.predicted_cycles_per_token
    clock = compiled.spec.clock_hz / 1e6
    facts = [
        ("tokens", f"{len(result.tokens)} after a prompt of {len(ids)}"),
        ("cycles per token", f"{cycles} ({'as' if exact else 'NOT as'} predicted)"),
        (
            "virtual speed",
            f"{len(result.tokens) / result.decode_seconds:,.0f} tokens/s decoding, "
            f"{per_second:,.0f} with the prompt ({clock:g} MHz, PCIe included)",
        ),
        ("wall speed", f"{len(result.tokens) / result.token_wall_seconds:,.1f} tokens/s"),
        (
            "wall time",
            f"{result.wall_seconds:.1f} s, first token at {result.first_token_seconds:.1f} s",
        ),
        ("machine", f"{result.chips} chips, {_processes(result.actors)}, {sync}"),
        ("digest", result.digest),
    ]
    if result.recoveries:
        facts.append(("lost processes", f"{len(result.recoveries)} times replaced"))
    if result.faults:
        facts.append(("faults", fault_summary(result.faults)))
    if nodes:
        facts.append(("nodes in use", ", ".join(map(str, nodes))))
    if traced is not None:
        facts.append(("trace", f"{traced.events():,} events, {traced.block_events():,} blocks"))
    if reporting.wanted:
        from cluster.report import generation_run
        from programs.artifact import decoder_of
        from programs.models import architecture

        shape = architecture(directory)
        told = [*facts, ("text", prompt + text)]
        reporting.finish(
            lambda: generation_run(
                told, f"{shape.name} on {result.chips} chips", compiled, launches, shape,
                decoder_of(compiled).dtype, seed,
            )
        )  # fmt: skip
    if as_json:
        print_json(
            {
                "tokens": result.tokens,
                "text": text,
                "chips": result.chips,
                "actors": result.actors,
                "cycles_per_token": result.cycles_per_token,
                "predicted_cycles_per_token": result.predicted_cycles_per_token,
                "digest": result.digest,
                "virtual_seconds": result.virtual_seconds,
                "tokens_per_second": per_second,
                "decode_tokens_per_second": len(result.tokens) / result.decode_seconds,
                "wall_seconds": result.wall_seconds,
                "first_token_seconds": result.first_token_seconds,
                "wall_tokens_per_second": len(result.tokens) / result.token_wall_seconds,
                "prompt_tokens": len(ids),
                "sync": sync,
                "recoveries": len(result.recoveries),
                "recovery_seconds": [recovery.seconds for recovery in result.recoveries],
                "refused": dict(zip(("attachments", "vectors"), result.refused, strict=True)),
                "faults": result.faults or None,
                "nodes": nodes or None,
                **({} if traced is None else {"trace": traced.summary()}),
            }
        )
        return
    print_table("generated", facts)


def _packing(text: str) -> int | None:
    if text == "auto":
        return None
    if text.isascii() and text.isdigit() and int(text) in options.CHIPS:
        return int(text)
    raise InputError(f"--chips-per-actor {text}: use 1, 2, 4, 8 or auto")


def _processes(actors: int) -> str:
    if actors == 0:
        return "in one process without Ray"
    return f"{actors} {'actor' if actors == 1 else 'actors'}"


def _config(directory: Path) -> dict[str, object]:
    """The model's ``config.json``; the checkpoint reader has checked that it is an object."""
    value: dict[str, object] = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    return value
