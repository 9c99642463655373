"""``lpu experiment``: LPUs and GPUs side by side, in virtual time.

Every verb is one function in a module of its own; it is registered here and nowhere else.
"""

from __future__ import annotations

import typer

from cluster.commands.experiment_agentic import agentic
from cluster.commands.experiment_disaggregated import disaggregated
from cluster.commands.experiment_load import load
from cluster.commands.experiment_speculative import speculative
from cluster.commands.help_pages import Verb

app = typer.Typer(no_args_is_help=True)


@app.callback()
def experiments() -> None:
    """LPUs beside GPUs, in virtual time: seeded, repeatable, each against GPU-only and LPU-only."""


app.command(cls=Verb)(speculative)
app.command(cls=Verb)(disaggregated)
app.command(cls=Verb)(agentic)
app.command(cls=Verb)(load)
