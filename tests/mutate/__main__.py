"""The command ``python -m tests.mutate``."""

from __future__ import annotations

import json
import shutil
import signal
import sys
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer

from .baseline import Baselines
from .compiled import CompiledFunctions
from .copies import CheckoutError, checkout_files, copy_checkout, digest
from .equivalents import EquivalentsError, key, read_equivalents
from .imports import Imports
from .mutant import Mutant
from .nearness import Nearness
from .pytest_run import StoppedError
from .sampling import PACKAGES, draw, mutants, product
from .table import as_json, lines, row
from .trial import EQUIVALENT, Bench, Verdict
from .users import Users

HERE = Path(__file__).resolve().parent
WRONG_ARGUMENTS = 2
#: The command line's own complaints (an unknown option, a number that is none).
UsageError: type[Exception] = typer.BadParameter.__mro__[1]

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.command()
def mutate(
    sample: Annotated[int, typer.Option(min=1, help="Mutants to draw.")] = 60,
    seed: Annotated[int, typer.Option(help="Of the draw.")] = 0,
    package: Annotated[
        list[str] | None, typer.Option(help=f"Only these ({', '.join(PACKAGES)}).")
    ] = None,
    place: Annotated[
        list[str] | None, typer.Option(help="FILE:LINE[:COLUMN], every mutant there; no sample.")
    ] = None,
    seconds: Annotated[float, typer.Option(min=1, help="Of tests, per mutant.")] = 240.0,
    jobs: Annotated[int, typer.Option(min=1, help="Mutants at a time, each with a copy.")] = 1,
    equivalent: Annotated[
        Path, typer.Option(help="The list of those judged.", show_default="equivalent.json here")
    ] = HERE / "equivalent.json",
    keep: Annotated[Path | None, typer.Option(help="Keep the copies in this directory.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the verdicts.")] = None,
) -> None:
    """Would the tests notice?  Seeded mutants, one at a time, against the tests nearest to them.

    The docstring of tests/mutate/__init__.py is the manual.
    """
    root = next(folder for folder in HERE.parents if (folder / "pyproject.toml").exists())
    for name in package or ():
        if name not in PACKAGES:
            raise typer.BadParameter(f"--package {name}: one of {', '.join(PACKAGES)}")
    if json_file is not None and not json_file.absolute().parent.is_dir():
        raise typer.BadParameter(f"--json {json_file}: name a file in a directory that exists")
    reasons = read_equivalents(equivalent)
    imports = Imports(root)
    found = mutants(imports, product(imports, package or PACKAGES))
    chosen = at_places(found, place) if place else draw(root, found, sample, seed)
    files = checkout_files(root)
    with nullcontext(str(keep)) if keep else tempfile.TemporaryDirectory() as directory:
        # a longer list of equivalents leaves the kept copy good
        judged = [file for file in files if HERE not in (root / file).parents]
        home = Path(directory).resolve() / digest(root, judged)
        if home.is_relative_to(root):
            raise typer.BadParameter(f"--keep {keep}: name a directory outside the checkout")
        copies = [home / "pristine", *(home / f"worker-{n}" for n in range(min(jobs, len(chosen))))]
        for copy in copies:
            if copy is not copies[0]:
                # a call that was killed leaves its mutant behind
                shutil.rmtree(copy, ignore_errors=True)
            copy_checkout(root, files, copy)
        verdicts = judge(chosen, imports, copies, seconds, {} if place else reasons)
    for line in lines(verdicts):
        typer.echo(line)
    if json_file is not None:
        settings = {"sample": sample, "seed": seed, "package": package, "place": place}
        written = as_json(verdicts, {**settings, "seconds": seconds})
        json_file.write_text(json.dumps(written, indent=1) + "\n", encoding="utf-8")


def at_places(found: list[Mutant], places: list[str]) -> list[Mutant]:
    """The mutants of ``FILE:LINE`` or ``FILE:LINE:COLUMN``; BadParameter where there are none."""
    chosen: list[Mutant] = []
    for place in places:
        here = [m for m in found if place in (m.place, f"{m.file}:{m.line}")]
        if not here:
            raise typer.BadParameter(f"--place {place}: nothing to mutate; name FILE:LINE[:COLUMN]")
        chosen += here
    return chosen


def judge(
    chosen: list[Mutant],
    imports: Imports,
    copies: list[Path],
    seconds: float,
    reasons: dict[Any, str],
) -> list[Verdict]:
    """A verdict per mutant, in their order; those reached before an interrupt (Ctrl-C, SIGTERM)."""
    stop = threading.Event()
    earlier = [
        (number, signal.signal(number, lambda *_: stop.set()))
        for number in (signal.SIGINT, signal.SIGTERM)
    ]
    pristine, *workers = copies
    baselines = Baselines(pristine, seconds, stop)
    idle = [Bench(copy, pristine, baselines, seconds, stop) for copy in workers]
    users = Users(imports)
    nearness, compiled = Nearness(imports, users), CompiledFunctions(imports, users)
    modules = {path.relative_to(imports.root).as_posix(): m for m, path in imports.paths.items()}

    def one(mutant: Mutant) -> Verdict | None:
        if stop.is_set():
            return None
        reason = reasons.get(key(mutant))
        if reason is not None:
            return Verdict(mutant, EQUIVALENT, reason, 0.0)
        module = modules[mutant.file]
        bench = idle.pop()
        try:
            tests = nearness.test_files(module, mutant.line)
            verdict = bench.judge(mutant, tests, compiled.stale(module, mutant.line))
        except StoppedError:
            return None
        finally:
            idle.append(bench)
        typer.echo(row(verdict), err=True)
        return verdict

    try:
        with ThreadPoolExecutor(len(workers)) as pool:
            return [verdict for verdict in pool.map(one, chosen) if verdict is not None]
    finally:
        for number, handler in earlier:
            signal.signal(number, handler)


def main() -> int:
    """The exit code: 0, or 2 with one line if the arguments are wrong."""
    try:
        app(prog_name="python -m tests.mutate", standalone_mode=False)
    except (UsageError, CheckoutError, EquivalentsError) as error:
        said = getattr(error, "format_message", None)
        text = said() if said is not None else str(error)
        typer.echo(f"tests.mutate: {' '.join(text.split())}", err=True)
        return WRONG_ARGUMENTS
    return 0


if __name__ == "__main__":
    sys.exit(main())
