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
    model: options.Model = None,
    prompt: Annotated[str, typer.Option(help="Text to continue.")] = DEFAULT_PROMPT,
    max_new_tokens: Annotated[int, typer.Option(help="Tokens to generate at most.")] = 32,
    chips: options.Chips = 8,
    tp: options.Tp = None,
    pp: options.Pp = 1,
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
    faults: options.Faults = None,
    as_json: options.Json = False,
) -> None:
    """Generate text on a node of emulated chips."""
    started = perf_counter()
    tp_asked = options.check_parallelism(chips, tp, pp)
    options.check_choice("--dtype", dtype, ("int8", "fp16"))
    options.check_choice("--sync", sync, ("lookahead", "barrier"))
    options.check_at_least("--max-new-tokens", max_new_tokens, 1)
    options.check_at_least("--context", context, 1)
    if not temperature >= 0 or temperature == float("inf"):
        raise InputError(f"--temperature {temperature}: use a finite number, 0 or more")
    if not 0 <= seed < 2**63:
        raise InputError(f"--seed {seed}: use an integer from 0 to 2^63 - 1")
    packing = _packing(chips_per_actor)
    from programs.fault_plan import load_fault_plan

    plan = None if faults is None else load_fault_plan(faults)

    # The heavy imports wait until the arguments are known to make sense.
    from cluster.actor_session import Placement
    from cluster.actor_session import chips_per_actor as pack
    from cluster.compiling import adopt, compile_model, home_of, open_model
    from cluster.generation import run_generation
    from cluster.output import Terminal, print_json, print_table
    from programs.artifact import load
    from programs.runner import Generation

    compiled = None if artifact is None else load(artifact)
    directory = model or (options.shipped_model() if compiled is None else home_of(compiled))
    checkpoint = open_model(directory)
    tokenizer = checkpoint.tokenizer
    ids = tokenizer.encode(prompt).ids
    if not ids:
        raise InputError("--prompt is empty: give at least one character")
    need = len(ids) + max_new_tokens - 1
    terminal = Terminal(ids, tokenizer.decode, stream=not as_json)
    with closing(terminal):
        if compiled is not None:
            compiled = adopt(compiled, checkpoint, need)
        else:
            terminal.phase("compiling")
            compiled = compile_model(
                checkpoint, tp=tp_asked, dtype=dtype, context=context or need, chip=chip
            )
        job = Generation(
            prompt=tuple(ids),
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            seed=seed,
            stop=() if ignore_eos else options.end_tokens(_config(directory)),
            sync=sync,
        )
        placement = Placement(pack(compiled.chips, packing), address, in_process, faults=plan)
        result = run_generation(compiled, job, placement, terminal, started)
    text = tokenizer.decode(result.tokens)
    per_second = len(result.tokens) / result.virtual_seconds
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
            }
        )
        return
    low, high = min(result.cycles_per_token), max(result.cycles_per_token)
    cycles = f"{low:,}" if low == high else f"{low:,} to {high:,}"
    exact = result.cycles_per_token == result.predicted_cycles_per_token
    clock = compiled.spec.clock_hz / 1e6
    print_table(
        "generated",
        [
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
            *([("lost processes", f"{len(result.recoveries)} times replaced")]
              if result.recoveries else []),
            *([("faults", options.fault_summary(result.faults))] if result.faults else []),
            ("digest", result.digest),
        ],
    )


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
