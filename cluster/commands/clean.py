"""``lpu clean``: removes what runs that were killed have left."""

from __future__ import annotations

from typing import Annotated

import typer

from cluster import option_types


def clean(
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what would be removed.")
    ] = False,
    as_json: option_types.Json = False,
) -> None:
    """Remove shared memory, snapshots and directories of runs that were killed."""
    from cluster.commands.output import print_json
    from cluster.commands.sweep_tables import size_text
    from cluster.processes import find_leftovers

    found = list(find_leftovers())
    gone = [each for each in found if not dry_run and each.remove()]
    done = found if dry_run else gone
    if as_json:
        print_json(
            {
                "dry_run": dry_run,
                "removed": [{"path": str(each.path), "bytes": each.nbytes} for each in done],
                "kept": [str(each.path) for each in found if each not in done],
            }
        )
        return
    verb = "would remove" if dry_run else "removed"
    for each in found:
        word = verb if each in done else "could not remove"
        typer.echo(f"{word} {each.path} ({size_text(each.nbytes)})")
    typer.echo(f"{verb} {len(done)}, {size_text(sum(each.nbytes for each in done))}")
