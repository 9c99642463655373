"""An evaluation, of a text or of prompts, as its settings say."""

from __future__ import annotations

from collections.abc import Callable

from cluster.evaluation.on_prompts import PromptEvaluation, evaluate_prompts
from cluster.evaluation.on_text import TextEvaluation, evaluate_text
from cluster.evaluation.settings import EvaluateSettings


def evaluate(
    settings: EvaluateSettings, tell: Callable[[str], None] = lambda _: None
) -> TextEvaluation | PromptEvaluation:
    """Compare the emulated model with float32; ``tell`` hears what goes on.

    Raises an LpuError, one line, for what cannot be evaluated.
    """
    if settings.prompts is None:
        return evaluate_text(settings, tell)
    return evaluate_prompts(settings, tell)
