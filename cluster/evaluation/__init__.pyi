from .figures import (
    layer_rows,
    prompts_facts,
    prompts_json,
    text_facts,
    text_json,
)
from .on_prompts import PromptEvaluation, evaluate_prompts
from .on_text import TextEvaluation, evaluate_text
from .settings import EvaluateSettings

__all__ = [
    "EvaluateSettings",
    "PromptEvaluation",
    "TextEvaluation",
    "evaluate_prompts",
    "evaluate_text",
    "layer_rows",
    "prompts_facts",
    "prompts_json",
    "text_facts",
    "text_json",
]
