from .board import Board
from .exporter import Exporter, exported
from .run_watch import OneEpoch, RunWatch, watched

__all__ = [
    "Board",
    "Exporter",
    "OneEpoch",
    "RunWatch",
    "exported",
    "watched",
]
