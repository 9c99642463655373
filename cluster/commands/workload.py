"""``lpu workload``: products, networks, an encoder, a factorisation on the compiler's path.

Each verb compiles one workload with random (seeded) data, proves its programs legal and says what
it costs; ``--run`` executes it and compares every value with the golden model.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cluster import option_checks, option_types
from cluster.commands.help_pages import Verb
from cluster.commands.settings import takes_settings
from cluster.errors import InputError
from cluster.runs import MatmulSettings, WorkloadSettings, is_size

if TYPE_CHECKING:
    from chip.spec import ChipSpec
    from cluster.runs import CompiledWorkload

app = typer.Typer(help="Matrix products, an MLP, ResNet-50, BERT, Cholesky.", no_args_is_help=True)

#: Layers, hidden values and heads of the published models.
_BERT = {"base": (12, 768, 12), "large": (24, 1024, 16)}


@app.command(cls=Verb)
@takes_settings
def matmul(
    settings: MatmulSettings, job: WorkloadSettings, as_json: option_types.Json = False
) -> None:
    """[M x K] times [K x N] with exact int8 or fp16 products."""
    if settings.sweep is not None and job.with_data:
        raise InputError("--sweep compiles and checks many products: leave out --run and --output")
    m, k, dtype, chips = settings.m, settings.k, settings.dtype, settings.chips
    if settings.sweep is None:
        title = f"[{m} x {k}] x [{k} x {settings.n}] {dtype}, {_chips(chips)}"
        _report(_product(settings, settings.n), title, job, as_json)
        return
    rows = []
    for columns in settings.columns:
        rows.append({"n": columns, **_measure(_product(settings, columns), job)})
        if not as_json:
            row = rows[-1]
            typer.echo(
                f"N {columns:>6}  {row['cycles']:>10,} cycles  {row['microseconds']:>9.1f} us  "
                f"MXM {100 * row['mxm_utilisation']:5.1f}%  "
                f"{row['tera_operations_per_s']:6.1f} T op/s"
            )
    if as_json:
        from cluster.commands.output import print_json

        asked = {"m": m, "k": k, "dtype": dtype, "chips": chips, "split": settings.split}
        print_json({**asked, "rows": rows})


@app.command(cls=Verb)
@takes_settings
def mlp(
    *,
    batch: Annotated[int, typer.Option(help="Inputs at once.")] = 256,
    sizes: Annotated[str, typer.Option(help="Sizes from input to output.")] = "784,2048,2048,10",
    job: WorkloadSettings,
    as_json: option_types.Json = False,
) -> None:
    """An int8 multi-layer perceptron with ReLU, on one chip."""
    option_checks.check_at_least("--batch", batch, 1)
    parts = sizes.split(",")
    if len(parts) < 2 or not all(is_size(part) for part in parts):
        raise InputError(
            f"--sizes {sizes[:60]}: use two or more numbers of 1 to 1,000,000, for instance 784,10"
        )
    from cluster.runs import random_network
    from programs.convnet import mlp as build

    network = build(batch, tuple(int(part) for part in parts))
    _report(
        lambda spec, seed, data: random_network(network, spec, seed, data),
        f"MLP {sizes}, batch {batch}, int8",
        job,
        as_json,
    )


@app.command(cls=Verb)
@takes_settings
def resnet50(
    *,
    size: Annotated[int, typer.Option(help="Height and width of the image.")] = 224,
    job: WorkloadSettings,
    as_json: option_types.Json = False,
) -> None:
    """ResNet-50 in int8, batch 1, on one chip; the host lays out the first layer's patches."""
    if size < 32 or size % 32:
        raise InputError(f"--size {size}: use a multiple of 32")
    from cluster.runs import random_network
    from programs.convnet import resnet50 as build

    network = build(size)
    _report(
        lambda spec, seed, data: random_network(network, spec, seed, data),
        f"ResNet-50, {size} x {size}, int8",
        job,
        as_json,
    )


@app.command(cls=Verb)
@takes_settings
def bert(
    *,
    model: Annotated[str, typer.Option(help="base or large.")] = "base",
    layers: Annotated[int | None, typer.Option(help="Layers.", show_default="the model's")] = None,
    tokens: Annotated[int, typer.Option(help="Tokens of the one sequence.")] = 128,
    chips: option_types.NodeChips = 8,
    job: WorkloadSettings,
    as_json: option_types.Json = False,
) -> None:
    """A BERT encoder in fp16, batch 1; chips are a pipeline of consecutive layers."""
    option_checks.check_choice("--model", model, tuple(_BERT))
    option_checks.check_at_least("--layers", layers, 1)
    stages = option_checks.check_node(chips)
    from cluster.runs import random_encoder
    from programs.encoder import EncoderShape

    depth, hidden, heads = _BERT[model]
    shape = EncoderShape(layers or depth, hidden, heads, 4 * hidden, tokens)
    _report(
        lambda spec, seed, data: random_encoder(shape, spec, stages, seed, data),
        f"BERT {model}, {shape.layers} layers, {tokens} tokens, fp16, {_chips(stages)}",
        job,
        as_json,
    )


@app.command(cls=Verb)
@takes_settings
def cholesky(
    *,
    n: Annotated[int, typer.Option(help="Rows and columns of the matrix.")] = 320,
    chips: option_types.NodeChips = 1,
    job: WorkloadSettings,
    as_json: option_types.Json = False,
) -> None:
    """The factor L of a symmetric positive definite matrix L L^T, fp32, its columns over a node."""
    option_checks.check_at_least("--n", n, 1)
    from cluster.runs import random_cholesky
    from programs.cholesky import CholeskyShape

    shape = CholeskyShape(n, option_checks.check_node(chips))
    _report(
        lambda spec, seed, data: random_cholesky(shape, spec, seed, data),
        f"Cholesky, {n} x {n}, fp32, {_chips(shape.chips)}",
        job,
        as_json,
    )


def _chips(count: int | None) -> str:
    return f"{count} chip{'' if count == 1 else 's'}"


def _product(
    settings: MatmulSettings, columns: int
) -> Callable[[ChipSpec, int, bool], CompiledWorkload]:
    from cluster.runs import random_grid, random_matmul
    from programs.matmul import GridShape, MatmulShape

    if settings.grid is not None:
        grid = GridShape(settings.m, settings.k, columns, settings.dtype, *settings.grid)
        return lambda spec, seed, data: random_grid(grid, spec, seed, data)
    chips = option_checks.check_node(settings.chips)
    shape = MatmulShape(settings.m, settings.k, columns, settings.dtype, chips, settings.split)
    return lambda spec, seed, data: random_matmul(shape, spec, seed, data)


def _measure(
    build: Callable[[ChipSpec, int, bool], CompiledWorkload], job: WorkloadSettings
) -> dict[str, Any]:
    from cluster.commands.output import stderr_console, working
    from cluster.runs import measure_workload

    with working("compiling ...", stderr_console()) as tell:
        return measure_workload(build, job, tell)


def _report(
    build: Callable[[ChipSpec, int, bool], CompiledWorkload],
    title: str,
    job: WorkloadSettings,
    as_json: bool,
) -> None:
    from cluster.commands.output import print_json, print_table
    from cluster.runs import workload_rows

    result = _measure(build, job)
    if as_json:
        print_json(result)
    else:
        print_table(title, workload_rows(result))
