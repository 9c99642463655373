from .chip import ReferenceChip

__all__ = [
    "ReferenceChip",
]
