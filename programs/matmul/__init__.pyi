from .compiler import compile_matmul, read_matmul
from .golden import golden_matmul
from .places import MatmulShape, peak_multiply_accumulates, plan_matmul

__all__ = [
    "MatmulShape",
    "compile_matmul",
    "golden_matmul",
    "peak_multiply_accumulates",
    "plan_matmul",
    "read_matmul",
]
