from .findings import ERROR, FINDINGS_PER_RULE, WARNING, Finding
from .rules import check

__all__ = [
    "ERROR",
    "FINDINGS_PER_RULE",
    "WARNING",
    "Finding",
    "check",
]
