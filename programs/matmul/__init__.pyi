from .compiler import compile_matmul, read_matmul
from .golden import golden_grid, golden_matmul
from .grid import GridPlan, compile_grid, read_grid
from .places import GridShape, MatmulShape, peak_multiply_accumulates, plan_matmul

__all__ = [
    "GridPlan",
    "GridShape",
    "MatmulShape",
    "compile_grid",
    "compile_matmul",
    "golden_grid",
    "golden_matmul",
    "peak_multiply_accumulates",
    "plan_matmul",
    "read_grid",
    "read_matmul",
]
