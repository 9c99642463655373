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
    """Write a checkpoint whose weights lie on int8's steps, rounded to lose least on a text.

    Models of Llama's plain kind. Memory: the model in float32 three times, and 4 x heads x hidden
    bytes for a token of the text. The files hold float32, the head apart from the embedding.
    """
    from cluster.commands.output import print_json, print_table, stderr_console, working
    from cluster.quantising import quantise_model

    with working("quantising ...", stderr_console()) as tell:
        done = quantise_model(settings, tell)
    facts = _facts(done)
    if as_json:
        print_json(facts)
    else:
        left = facts.pop("squared_error_left")
        rows = [(key.replace("_", " "), str(value)) for key, value in facts.items()]
        rows += [
            (f"squared error left of {name}", f"{100 * share:.1f} %")
            for name, share in left.items()
        ]
        print_table("quantised", rows)


def _facts(done: Quantised) -> dict[str, Any]:
    """Settings, and by matrix how much is left of the sum of squares that rounding changes.

    The whole is what rounding the turned weights to nearest changes.
    """
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
        "squared_error_left": shares,
        "wall_seconds": round(done.wall_seconds, 1),
    }
