from .compare import Comparison, LayerErrors, compare_text, windows
from .emulated import ChipsForward, GoldenForward
from .float32 import EvaluationError, Float32Forward
from .greedy import GreedyCheck, check_greedy

__all__ = [
    "ChipsForward",
    "Comparison",
    "EvaluationError",
    "Float32Forward",
    "GoldenForward",
    "GreedyCheck",
    "LayerErrors",
    "check_greedy",
    "compare_text",
    "windows",
]
