"""``lpu quantise``: int8 weights whose roundings compensate each other, as a checkpoint."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cluster import option_types
from cluster.commands.settings import takes_settings
from cluster.quantising import QuantiseSettings

if TYPE_CHECKING:
    from cluster.quantising import Quantised


@takes_settings
def quantise(settings: QuantiseSettings, as_json: option_types.Json = False) -> None:
    """Write a checkpoint whose weights lie on int8's steps, rounded to lose least on a text."""
    from cluster.commands.output import print_json, print_table, stderr_console, working
    from cluster.quantising import quantise_model

    with working("quantising ...", stderr_console()) as tell:
        done = quantise_model(settings, tell)
    facts = _facts(done)
    if as_json:
        print_json(facts)
    else:
        left = facts.pop("error_left")
        rows = [(key.replace("_", " "), str(value)) for key, value in facts.items()]
        rows += [(f"error left of {name}", f"{100 * share:.1f} %") for name, share in left.items()]
        print_table("quantised", rows)


def _facts(done: Quantised) -> dict[str, Any]:
    """Settings, and how much of the error of rounding to nearest is left, by matrix."""
    settings, shares = done.settings, {}
    for name in dict.fromkeys(each.name for each in done.errors):
        own = [each for each in done.errors if each.name == name]
        most = sum(each.nearest for each in own)
        shares[name] = round(sum(each.compensated for each in own) / most, 4) if most else 1.0
    return {
        "model": settings.model or "target",
        "directory": str(settings.to),
        "chips": settings.chips,
        "calibration_tokens": done.tokens,
        "text": "written by the model" if settings.text is None else settings.text.name,
        "seed": settings.seed,
        "error_left": shares,
        "wall_seconds": round(done.wall_seconds, 1),
    }
