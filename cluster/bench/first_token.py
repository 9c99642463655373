"""The rows of ``lpu bench`` about the wait for a first token: whole commands, start to exit."""

from __future__ import annotations

import subprocess
import sys
from time import perf_counter

from cluster.bench.row import Row
from cluster.errors import RunError

AIM_SECONDS, AIM_SMOLLM2_SECONDS = 30.0, 12.0


def _generate_seconds(*options: str) -> float:
    """Seconds that ``lpu generate`` of one token takes as a process of its own."""
    command = [sys.executable, "-m", "cluster.cli", "generate", "--max-new-tokens", "1", "--json"]
    began = perf_counter()
    done = subprocess.run([*command, *options], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RunError(f"lpu generate failed: {done.stderr.strip()[-200:]}")
    return perf_counter() - began


def first_token_seconds() -> list[Row]:
    """From the command to the first token, process start included."""
    return [
        Row(
            "first_token_seconds",
            _generate_seconds(),
            "s",
            AIM_SECONDS,
            "the aim; the value is a whole lpu generate of one token, start to exit",
        )
    ]


def smollm2_first_token_seconds() -> list[Row]:
    """The same of a published model by eight actors, in the second of two runs."""
    options = ("--model", "smollm2", "--chips-per-actor", "1")
    _generate_seconds(*options)
    return [
        Row(
            "smollm2_first_token_seconds",
            _generate_seconds(*options),
            "s",
            AIM_SMOLLM2_SECONDS,
            "the aim; the second of two whole lpu generate of one token, start to exit",
        )
    ]
