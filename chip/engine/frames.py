"""A chip as the compiled loop sees it: addresses and lengths of its arrays in one int64 vector.

One vector per chip lets one compiled call step any number of chips.  Whoever fills a frame keeps
the arrays alive; ``own_memory`` is what the large ones lie in.
"""

from __future__ import annotations

import mmap
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

Frame = NDArray[np.int64]

# Why a chip stopped.
DONE, WAIT_RECEIVE, WAIT_SEND, WINDOW, FAULT, LOCKSTEP, READY = range(7)

# Positions in the state vector, int64 [16].
PC, ELEMENT, WAIT_QUEUE, WAIT_CYCLE, DETAIL, SEEN_CYCLE, SEEN_SEQUENCE, SEEN_LAUNCH = range(8)
# How long to sleep, as the kernel takes it.
SLEEP_SECONDS, SLEEP_NANOSECONDS = 8, 9

# DETAIL of LOCKSTEP: what is wrong with the vector received.
OTHER_LAUNCH, OTHER_VECTOR, OTHER_CYCLE, FORGED = range(4)
INTACT = -1

# Rows of the link state, int64 [4, 16]: ring numbers (-1: unwired) and vectors of this launch.
TX, RX, SENT, RECEIVED = range(4)

# Positions in a frame: an array's address, and its number of rows behind it.
# Of the program:
TABLE, STARTS, ARGUMENTS, WEIGHTS, MAPS = range(0, 10, 2)
# Of the chip: rows of 320 bytes, rows of 320 words, accumulators of all planes, scratch.
ROWS, WORDS, ACCUMULATORS, PRODUCTS, LAID, TILE, EXCESS, FINITE, REPEATS = range(10, 28, 2)
ADDRESSES, STATE, LINK_STATE, SUMS = range(28, 36, 2)
# Numbers; HOP: cycles from Send to Receive, SLICE_WORDS: words of a slice, DATA: 0 is timing only,
# KEY: of the vectors' checksums in the rings of the moment.
CHIP, LAUNCH_NUMBER, HOP, SLICE_WORDS, DATA, KEY = range(36, 42)
# Counters of saturations.
SATURATED = 42
# Of the chip: scratch of fp16 products.
WIDE, TOTALS, DOTS, LIVE = range(44, 52, 2)
LENGTH = 56


def put(frame: Frame, position: int, array: NDArray[Any]) -> None:
    """Enter a C-contiguous array."""
    frame[position] = array.__array_interface__["data"][0]
    frame[position + 1] = len(array)


def own_memory(size_bytes: int, *, large_pages: bool) -> mmap.mmap:
    """``size_bytes`` (at least 1) of zeros, page-aligned; a page costs nothing until touched.

    large_pages: ask for 2 MiB pages, which are faster to reach and taken whole when touched.
    """
    # Shared memory has no large pages on most hosts, so this is private.
    memory = mmap.mmap(-1, max(1, size_bytes), mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    advice = "MADV_HUGEPAGE" if large_pages else "MADV_NOHUGEPAGE"
    if hasattr(mmap, advice):  # Linux
        # A kernel without large pages refuses the advice; it is only about speed.
        with suppress(OSError):
            memory.madvise(getattr(mmap, advice))
    return memory
