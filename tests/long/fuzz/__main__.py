"""``python -m tests.long.fuzz [FORMAT ...] [--inputs N] [--seed S] [--keep DIR]``: bad input."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from .engine import fuzz
from .formats import FORMATS


def main() -> int:
    """Feed the formats named (all by default); 1 if a reader crashed, hung or ate memory."""
    parser = argparse.ArgumentParser(prog="python -m tests.long.fuzz", description=__doc__)
    parser.add_argument("formats", nargs="*", metavar="FORMAT", help=", ".join(FORMATS))
    parser.add_argument("--inputs", type=int, default=10_000, help="inputs per format")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="directory for inputs that crashed a reader")
    given = parser.parse_args()
    for name in given.formats:
        if name not in FORMATS:
            parser.error(f"{name}: the formats are {', '.join(FORMATS)}")
    crashed = False
    for name in given.formats or FORMATS:
        found = fuzz(name, given.inputs, given.seed)
        kinds = {text.strip().splitlines()[-1]: (data, text) for data, text in found.crashes}
        print(
            f"{name}: {given.inputs} inputs, {found.answers['accepted']} accepted, "
            f"{len(found.answers)} kinds of answer, {len(found.crashes)} crashes of "
            f"{len(kinds)} kinds, slowest {found.slowest_seconds:.2f} s, "
            f"memory +{found.grown_bytes / 2**20:.0f} MiB",
            flush=True,
        )
        for number, (last, (data, text)) in enumerate(kinds.items()):
            print(f"  {last}\n{text}")
            if given.keep is not None:
                given.keep.mkdir(parents=True, exist_ok=True)
                (given.keep / f"{name}-{number}").write_bytes(data)
        crashed = crashed or bool(found.crashes)
    return int(crashed)


if __name__ == "__main__":
    sys.exit(main())
