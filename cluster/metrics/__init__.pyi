from .board import Board
from .exporter import Exporter, exported
from .reference import metrics_page
from .run_watch import OneEpoch, RunWatch, watched

__all__ = [
    "Board",
    "Exporter",
    "OneEpoch",
    "RunWatch",
    "exported",
    "metrics_page",
    "watched",
]
