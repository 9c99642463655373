from .rules import ERROR, Finding, check

__all__ = [
    "ERROR",
    "Finding",
    "check",
]
