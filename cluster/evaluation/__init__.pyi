from .figures import evaluation_facts, evaluation_json, layer_rows
from .on_prompts import PromptEvaluation
from .on_text import TextEvaluation
from .run import evaluate
from .settings import EvaluateSettings

__all__ = [
    "EvaluateSettings",
    "PromptEvaluation",
    "TextEvaluation",
    "evaluate",
    "evaluation_facts",
    "evaluation_json",
    "layer_rows",
]
