from .compiler import compile_cholesky, read_cholesky
from .golden import golden_cholesky
from .places import CholeskyShape

__all__ = ["CholeskyShape", "compile_cholesky", "golden_cholesky", "read_cholesky"]
