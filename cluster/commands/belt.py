"""``lpu belt``: several prompts at once on a conveyor belt of pipeline stages."""

from __future__ import annotations

from time import perf_counter

from cluster import option_types
from cluster.commands.settings import takes_settings
from cluster.runs import BeltSettings


@takes_settings
def belt(
    settings: BeltSettings,
    strict_range: option_types.StrictRange = False,
    as_json: option_types.Json = False,
) -> None:
    """Generate for several prompts at once, which are in the stages of a pipeline."""
    started = perf_counter()
    from cluster.commands.output import (
        check_range,
        print_json,
        print_table,
        stderr_console,
        working,
    )
    from cluster.runs import generate_on_belt

    with working("compiling ...", stderr_console()) as tell:
        done = generate_on_belt(settings, tell, started)
    if as_json:
        print_json(done.facts)
    else:
        title = f"{len(done.prompts)} prompts on a belt of {settings.pp} stages"
        print_table(title, done.rows)
    check_range(strict_range, done.saturated)
