from .chip import Chip, Status, run_chips, warm_up
from .ring import CAPACITY, Rings, ring_vectors

__all__ = [
    "CAPACITY",
    "Chip",
    "Rings",
    "Status",
    "ring_vectors",
    "run_chips",
    "warm_up",
]
