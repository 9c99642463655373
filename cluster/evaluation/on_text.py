"""A text through the emulated model and through float32."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter

from cluster.errors import InputError
from cluster.evaluation.opening import both_forwards, read_text
from cluster.evaluation.settings import WINDOW, EvaluateSettings
from programs.evaluation import Comparison, LayerErrors, compare_text
from programs.models import open_model, shipped_model
from programs.running import Saturations


@dataclass(frozen=True)
class TextEvaluation:
    """context: tokens of a window.  layers: (layer, part, relative rms) where asked for, in order.
    computed_by: what computed the emulated model.
    """

    settings: EvaluateSettings
    model: str
    text: str
    context: int
    figures: Comparison
    layers: list[tuple[int, str, float]]
    saturations: Saturations
    computed_by: str
    wall_seconds: float


def evaluate_text(
    settings: EvaluateSettings, tell: Callable[[str], None] = lambda _: None
) -> TextEvaluation:
    """Measure a model on a text; ``tell`` hears what goes on.

    Raises InputError for a text of less than two tokens, or windows beyond the model's positions.
    """
    began = perf_counter()
    name = settings.model or "target"
    path = settings.text or shipped_model("target").parent / "heldout.txt"
    text = read_text("--text", path)
    tell("opening the model ...")
    checkpoint = open_model(name)
    most = checkpoint.config.max_position
    context = settings.context or min(WINDOW, most)
    if context > most:
        raise InputError(f"--context {context}: the model was made for {most:,} positions")
    tokens = checkpoint.tokenizer.encode(text).ids
    if settings.tokens is not None:
        tokens = tokens[: settings.tokens + 1]
    if len(tokens) < 2:
        raise InputError(f"--text {path}: has less than two tokens; use a longer text")
    reference, emulated = both_forwards(settings, checkpoint, context, tell)
    layers = LayerErrors() if settings.layers else None
    figures = compare_text(
        reference,
        emulated,
        tokens,
        context,
        layers,
        lambda done: tell(f"after {done:,} of {len(tokens) - 1:,} tokens ..."),
    )
    return TextEvaluation(
        settings,
        name,
        path.name,
        context,
        figures,
        [] if layers is None else layers.relative(),
        emulated.saturations,
        emulated.computed_by,
        perf_counter() - began,
    )
