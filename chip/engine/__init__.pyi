from .chip import Chip, Status, run_chips, use_interpreter, warm_up
from .native import save_interpreter
from .ring import CAPACITY, Rings, ring_vectors

__all__ = [
    "CAPACITY",
    "Chip",
    "Rings",
    "Status",
    "ring_vectors",
    "run_chips",
    "save_interpreter",
    "use_interpreter",
    "warm_up",
]
