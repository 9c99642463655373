"""The host's words for attention on the planes: masks, where a position goes, and its neighbours.

A launch appends one position: its key is a column of a block, its value a lane, written together
with the values of the fifteen positions beside it, which the chip keeps apart (*recent*).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from chip.engine import Chip
from chip.isa import LANES, LANES_PER_SUPERLANE
from programs.kernels import BLOCK, key_map, recent_map, value_map
from programs.sram import SramPlacement

__all__ = ["launch_words", "restore_recent"]

Rows = NDArray[np.uint8]

_HIDDEN = 255


def launch_words(position: int, blocks: int, lanes: int, window: int) -> dict[str, Rows]:
    """uint8 [slices, words, 320] by input: maps of ``position``, masks of what it sees.

    blocks: that the caches hold; lanes: of a cached tile's values; window: positions that layers
    with a sliding window see, 0 where there is none.
    """
    ages = position - np.arange(blocks * BLOCK).reshape(1, blocks, BLOCK)
    found = {
        "masks": np.where(ages >= 0, 0, _HIDDEN).astype(np.uint8),
        "key_maps": key_map(position, blocks),
        "value_maps": value_map(position, blocks, lanes).swapaxes(0, 1).reshape(4, 1, LANES),
        "recent_maps": np.tile(recent_map(position, lanes), (2, 1, 1)),
    }
    if window:
        seen = (ages >= 0) & (ages < window)
        found["sliding_masks"] = np.where(seen, 0, _HIDDEN).astype(np.uint8)
    return found


def restore_recent(
    chip: Chip, placement: SramPlacement, words: Sequence[Sequence[int]], position: int, lanes: int
) -> int:
    """Write the values beside ``position`` that lie before it to the recent ones; the bytes moved.

    A launch at another position than the last one's next finds the wrong ones there.  words: of
    each cached tile of the chip, see ``DecoderFacts``.
    """
    block, column = divmod(position, BLOCK)
    count = lanes // LANES_PER_SUPERLANE
    group = column // LANES_PER_SUPERLANE * LANES_PER_SUPERLANE
    side = 1 - block % 2
    moved = 0
    for row in words:
        for half in range(2):
            first = row[2 * side + half] + count * (block // 2)
            slices = placement.cached_slices(2 * side + half)
            values = np.stack([chip.read_words(queue, first, count) for queue in slices], axis=-1)
            beside = values[:, group : group + LANES_PER_SUPERLANE]  # [words, position, dimension]
            for number, queue in enumerate(placement.cached_slices(2 + half)):
                rows = np.tile(beside[:, number], (1, LANES // LANES_PER_SUPERLANE))
                chip.write_words(queue, row[4 + half], np.ascontiguousarray(rows))
                moved += rows.size + values[..., number].size
    return moved
