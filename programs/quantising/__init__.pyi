from .calibration import MatrixError, round_model
from .compensation import Compensation, nearest, round_columns, weighted_error
from .plain import PlainLayer, PlainModel, QuantisingError, plain_model, rotated
from .sampling import sample_tokens
from .writing import files_beside, new_directory, write_checkpoint

__all__ = [
    "Compensation",
    "MatrixError",
    "PlainLayer",
    "PlainModel",
    "QuantisingError",
    "files_beside",
    "nearest",
    "new_directory",
    "plain_model",
    "rotated",
    "round_columns",
    "round_model",
    "sample_tokens",
    "weighted_error",
    "write_checkpoint",
]
