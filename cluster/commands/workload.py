"""``lpu workload``: products, an MLP, ResNet-50 and an encoder on the compiler's path.

Each verb compiles one workload with random (seeded) data, proves its programs legal and says what
it costs; ``--run`` executes it and compares every value with the golden model.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cluster import option_types
from cluster.commands import options
from cluster.commands.help_pages import Verb
from cluster.errors import InputError
from cluster.whole_files import check_writable

if TYPE_CHECKING:
    from chip.spec import ChipSpec
    from cluster.runs import CompiledWorkload

app = typer.Typer(help="Matrix products, an MLP, ResNet-50, BERT.", no_args_is_help=True)

Output = Annotated[
    Path | None, typer.Option("--output", "-o", help="Write an .lpu file.", show_default="none")
]
Run = Annotated[bool, typer.Option("--run", help="Run it and compare with the golden model.")]
Seed = Annotated[int, typer.Option(help="Seed of the random data.")]
#: Layers, hidden values and heads of the published models.
_BERT = {"base": (12, 768, 12), "large": (24, 1024, 16)}
#: Most products of one sweep.
_MOST_SWEPT = 10_000


@app.command(cls=Verb)
def matmul(
    m: Annotated[int, typer.Option(help="Rows of A.")] = 2304,
    k: Annotated[int, typer.Option(help="Columns of A, rows of B.")] = 4096,
    n: Annotated[int, typer.Option(help="Columns of B.")] = 1376,
    dtype: option_types.Dtype = "fp16",
    chips: option_types.Chips = 1,
    split: Annotated[
        str, typer.Option(help="How chips share B: columns, or rows (sums are then added).")
    ] = "columns",
    sweep: Annotated[
        str | None, typer.Option(help="N from:to:step instead of --n.", show_default="none")
    ] = None,
    run: Run = False,
    output: Output = None,
    seed: Seed = 0,
    chip: option_types.ChipType = "groq-lpu-1",
    as_json: option_types.Json = False,
) -> None:
    """[M x K] times [K x N] with exact int8 or fp16 products."""
    options.check_choice("--dtype", dtype, ("int8", "fp16"))
    options.check_choice("--split", split, ("columns", "rows"))
    if chips not in options.CHIPS:
        raise InputError(f"--chips {chips}: a node has 1, 2, 4 or 8 chips; use one of these")
    for option, value in (("--m", m), ("--k", k), ("--n", n), ("--seed", seed + 1)):
        options.check_at_least(option, value, 1)
    if sweep is not None and (run or output is not None):
        raise InputError("--sweep compiles and checks many products: leave out --run and --output")
    from cluster.runs import random_matmul
    from programs.matmul import MatmulShape

    data = run or output is not None

    def build(columns: int) -> Callable[[ChipSpec], CompiledWorkload]:
        shape = MatmulShape(m, k, columns, dtype, chips, split)
        return lambda spec: random_matmul(shape, spec, seed, data)

    if sweep is None:
        title = f"[{m} x {k}] x [{k} x {n}] {dtype}, {chips} chip{'s' * (chips > 1)}"
        _report(build(n), title, chip, run, output, as_json)
        return
    rows = []
    for columns in _swept(sweep):
        rows.append({"n": columns, **_measure(build(columns), chip, False, None)})
        if not as_json:
            row = rows[-1]
            typer.echo(
                f"N {columns:>6}  {row['cycles']:>10,} cycles  {row['microseconds']:>9.1f} us  "
                f"MXM {100 * row['mxm_utilisation']:5.1f}%  "
                f"{row['tera_operations_per_s']:6.1f} T op/s"
            )
    if as_json:
        from cluster.commands.output import print_json

        print_json({"m": m, "k": k, "dtype": dtype, "chips": chips, "split": split, "rows": rows})


@app.command(cls=Verb)
def mlp(
    batch: Annotated[int, typer.Option(help="Inputs at once.")] = 256,
    sizes: Annotated[str, typer.Option(help="Sizes from input to output.")] = "784,2048,2048,10",
    run: Run = False,
    output: Output = None,
    seed: Seed = 0,
    chip: option_types.ChipType = "groq-lpu-1",
    as_json: option_types.Json = False,
) -> None:
    """An int8 multi-layer perceptron with ReLU, on one chip."""
    options.check_at_least("--batch", batch, 1)
    options.check_at_least("--seed", seed, 0)
    parts = sizes.split(",")
    if len(parts) < 2 or not all(_positive(part) for part in parts):
        raise InputError(
            f"--sizes {sizes[:60]}: use two or more numbers of 1 to 1,000,000, for instance 784,10"
        )
    from cluster.runs import random_network
    from programs.convnet import mlp as build

    network = build(batch, tuple(int(part) for part in parts))
    _report(
        lambda spec: random_network(network, spec, seed, run or output is not None),
        f"MLP {sizes}, batch {batch}, int8", chip, run, output, as_json,
    )  # fmt: skip


@app.command(cls=Verb)
def resnet50(
    size: Annotated[int, typer.Option(help="Height and width of the image.")] = 224,
    run: Run = False,
    output: Output = None,
    seed: Seed = 0,
    chip: option_types.ChipType = "groq-lpu-1",
    as_json: option_types.Json = False,
) -> None:
    """ResNet-50 in int8, batch 1, on one chip; the host lays out the first layer's patches."""
    options.check_at_least("--seed", seed, 0)
    if size < 32 or size % 32:
        raise InputError(f"--size {size}: use a multiple of 32")
    from cluster.runs import random_network
    from programs.convnet import resnet50 as build

    network = build(size)
    _report(
        lambda spec: random_network(network, spec, seed, run or output is not None),
        f"ResNet-50, {size} x {size}, int8", chip, run, output, as_json,
    )  # fmt: skip


@app.command(cls=Verb)
def bert(
    model: Annotated[str, typer.Option(help="base or large.")] = "base",
    layers: Annotated[int | None, typer.Option(help="Layers.", show_default="the model's")] = None,
    tokens: Annotated[int, typer.Option(help="Tokens of the one sequence.")] = 128,
    chips: option_types.Chips = 8,
    run: Run = False,
    output: Output = None,
    seed: Seed = 0,
    chip: option_types.ChipType = "groq-lpu-1",
    as_json: option_types.Json = False,
) -> None:
    """A BERT encoder in fp16, batch 1; chips are a pipeline of consecutive layers."""
    options.check_choice("--model", model, tuple(_BERT))
    options.check_at_least("--layers", layers, 1)
    options.check_at_least("--seed", seed, 0)
    if chips not in options.CHIPS:
        raise InputError(f"--chips {chips}: a node has 1, 2, 4 or 8 chips; use one of these")
    from cluster.runs import random_encoder
    from programs.encoder import EncoderShape

    depth, hidden, heads = _BERT[model]
    shape = EncoderShape(layers or depth, hidden, heads, 4 * hidden, tokens)
    _report(
        lambda spec: random_encoder(shape, spec, chips, seed, run or output is not None),
        f"BERT {model}, {shape.layers} layers, {tokens} tokens, fp16, {chips} "
        f"chip{'s' * (chips > 1)}", chip, run, output, as_json,
    )  # fmt: skip


def _positive(text: str) -> bool:
    """Whether ``text`` is a number from 1 to a million, more than any chip takes."""
    return text.isascii() and text.isdecimal() and len(text) < 8 and 1 <= int(text) <= 1_000_000


def _swept(sweep: str) -> range:
    parts = sweep.split(":")
    if len(parts) != 3 or not all(_positive(part) for part in parts):
        raise InputError(f"--sweep {sweep[:60]}: use from:to:step, for instance 1376:3500:118")
    first, last, step = (int(part) for part in parts)
    values = range(first, last + 1, step)
    if not 1 <= len(values) <= _MOST_SWEPT:
        raise InputError(f"--sweep {sweep}: {len(values)} products; use 1 to {_MOST_SWEPT}")
    return values


def _measure(
    build: Callable[[ChipSpec], CompiledWorkload], chip: str, run: bool, output: Path | None
) -> dict[str, Any]:
    """Compile, check, perhaps run and write one workload; what there is to say of it."""
    from chip.spec import load_chip_spec
    from cluster.commands.output import stderr_console, working
    from cluster.runs import check_workload, figures, run_workload
    from programs.artifact import save
    from programs.decoder import join_images

    if output is not None:
        check_writable(output)
    with working("compiling ...", stderr_console()) as tell:
        workload = build(load_chip_spec(chip))
        tell("checking ...")
        check_workload(workload)
        result = {**figures(workload), "checked": True}
        if run:
            tell("running ...")
            result |= run_workload(workload)
        if output is not None:
            tell("writing ...")
            join_images(workload.artifact)
            save(workload.artifact, output)
            result["artifact"] = str(output)
    return result


def _report(
    build: Callable[[ChipSpec], CompiledWorkload], title: str, chip: str, run: bool,
    output: Path | None, as_json: bool,
) -> None:  # fmt: skip
    from cluster.commands.output import print_json, print_table

    result = _measure(build, chip, run, output)
    if as_json:
        print_json(result)
        return
    rows = [
        ("cycles", f"{result['cycles']:,}"),
        ("time at the chip's clock", f"{result['microseconds']:,.1f} us"),
        ("useful multiply-accumulates", f"{result['multiply_accumulates']:,}"),
        ("MXM utilisation", f"{100 * result['mxm_utilisation']:.1f}% of its peak"),
        ("rate", f"{result['tera_operations_per_s']:.1f} T op/s"),
        ("SRAM per chip", f"{result['sram_used_bytes']:,} bytes"),
        ("checked", "legal"),
    ]
    if "layer_cycles" in result:
        rows.insert(1, ("cycles of a layer", f"{result['layer_cycles']:,}"))
    if run:
        rows.append(("run", f"all {result['values']:,} values equal the golden model's"))
    if output is not None:
        rows.append(("file", str(output)))
    print_table(title, rows)
