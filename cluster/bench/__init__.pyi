from .row import Row
from .rows import measure, select

__all__ = [
    "Row",
    "measure",
    "select",
]
