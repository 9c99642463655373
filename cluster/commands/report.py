"""``lpu report``: a saved run as one HTML page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cluster import option_types


def report(
    run: Annotated[Path, typer.Argument(help="A file that --save has written.", metavar="RUN")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Page to write.")] = Path(
        "report.html"
    ),
    as_json: option_types.Json = False,
) -> None:
    """Make one self-contained HTML page of a saved run."""
    from cluster.commands.output import print_json, print_table, stderr_console, working
    from cluster.report import check_page, read_run, write_page

    check_page(output, "--output")
    loaded = read_run(run)
    with working("drawing ...", stderr_console()):
        write_page(loaded, output)
    size = output.stat().st_size
    if as_json:
        print_json(
            {
                "report": str(output),
                "kind": loaded["kind"],
                "file_bytes": size,
                "absent": loaded["absent"],
            }
        )
        return
    print_table(
        str(output), [("run", f"{loaded['kind']}: {loaded['title']}"), ("file", f"{size:,} bytes")]
    )
