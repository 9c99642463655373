from .chip import ReferenceChip
from .looking import look

__all__ = [
    "ReferenceChip",
    "look",
]
