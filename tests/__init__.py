"""Tests by need: unit, machine (compiled programs), cluster (a local Ray), long."""

import os
from pathlib import Path

#: The checkout.
ROOT = Path(__file__).resolve().parent.parent


def examples(number: int) -> int:
    """Drawn examples of a property test: ``number`` with HYPOTHESIS_PROFILE=full, else a tenth."""
    full = os.environ.get("HYPOTHESIS_PROFILE") == "full"
    return number if full else max(10, number // 10)
