"""``lpu belt``: several prompts at once on a conveyor belt of pipeline stages."""

from __future__ import annotations

from time import perf_counter
from typing import Annotated

import typer

from cluster import option_types
from cluster.commands import options
from cluster.errors import InputError

#: What rides the belt if nobody says.
DEFAULT_PROMPTS = ["def ", "import ", "class ", "for "]


def belt(
    model: option_types.Model = None,
    prompt: Annotated[
        list[str] | None, typer.Option(help="Text to continue; once for each sequence.",
                                       show_default="four of them"),
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Tokens for each prompt.")] = 16,
    tp: Annotated[int, typer.Option(help="Chips that share every matrix.")] = 8,
    pp: Annotated[int, typer.Option(help="Pipeline stages of tp chips each.")] = 2,
    dtype: option_types.Dtype = "int8",
    context: option_types.Context = None,
    chip: option_types.ChipType = "groq-lpu-1",
    as_json: option_types.Json = False,
) -> None:  # fmt: skip
    """Generate for several prompts at once, each in another stage of the pipeline."""
    started = perf_counter()
    from programs.decoder import check_parallelism

    check_parallelism(None, tp, pp)
    options.check_choice("--dtype", dtype, ("int8", "fp16"))
    for option, value in (("--max-new-tokens", max_new_tokens), ("--context", context)):
        options.check_at_least(option, value, 1)
    from chip.spec import load_chip_spec
    from cluster.commands.output import print_json, print_table, stderr_console, working
    from programs.decoder import compile_belt, partition_model
    from programs.models import open_model
    from programs.running import run_belt

    checkpoint = open_model(model or "target")
    tokenizer = checkpoint.tokenizer
    texts = prompt or DEFAULT_PROMPTS
    prompts = [tokenizer.encode(text).ids for text in texts]
    if not all(prompts):
        raise InputError("--prompt is empty: give at least one character")
    need = max(map(len, prompts)) + max_new_tokens - 1
    positions = context or need
    if need > positions or positions > checkpoint.config.max_position:
        raise InputError(
            f"the prompts and new tokens take {need} positions, --context is {positions} and the "
            f"model was made for {checkpoint.config.max_position}: use a --context from the first "
            "to the last of these, shorter prompts or fewer --max-new-tokens"
        )
    sequences = max(pp, len(prompts))
    with working("compiling ...", stderr_console()) as tell:
        partitioned = partition_model(checkpoint, tp, dtype)
        spec = load_chip_spec(chip)
        artifact = compile_belt(partitioned, spec, positions, pp, sequences=sequences)
        tell("running ...")
        result = run_belt(artifact, prompts, max_new_tokens, partitioned)
    one, every = result.tokens_per_second(spec.clock_hz, sequences)
    said = [tokenizer.decode(tokens) for tokens in result.tokens]
    exact = set(result.retired) == {result.interval_cycles}
    if as_json:
        print_json(
            {
                "chips": artifact.chips, "tp": tp, "pp": pp, "sequences": sequences,
                "prompts": texts, "tokens": result.tokens, "texts": said,
                "interval_cycles": result.interval_cycles,
                "latency_cycles": result.latency_cycles,
                "retired_as_predicted": exact,
                "tokens_per_second_per_user": one, "tokens_per_second_total": every,
                "beats": len(result.retired), "wall_seconds": perf_counter() - started,
            }
        )  # fmt: skip
        return
    print_table(
        f"{len(prompts)} prompts on a belt of {pp} stages",
        [
            *((repr(before), repr(after)) for before, after in zip(texts, said, strict=True)),
            ("a token leaves every", f"{result.interval_cycles:,} cycles "
             f"({'as' if exact else 'NOT as'} predicted, {len(result.retired)} beats)"),
            ("a token takes", f"{result.latency_cycles:,} cycles from first stage to last"),
            ("tokens per second", f"{one:,.0f} per user, {every:,.0f} in all, without the host"),
            ("machine", f"{artifact.chips} chips, {pp} stages of {tp}, in one process"),
            ("wall time", f"{perf_counter() - started:.1f} s"),
        ],
    )  # fmt: skip
