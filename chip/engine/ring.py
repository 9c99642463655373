"""Link rings: one single-writer, single-reader ring per directed link of a node.

The arrays may lie in shared memory.  The sender stores a vector and its meta data and then
publishes the tail; the receiver consumes and then publishes the head.  Both counters count
vectors since the rings were made; each has its own cache line.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from chip.engine.frames import own_memory
from chip.isa import LANES
from chip.spec import ChipSpec

TAIL, HEAD = 0, 8
#: Vectors a ring has room for where nobody says more; see ``ring_vectors``.
CAPACITY = 64
#: Columns of ``meta``; MIX: the sender's second keyed sum over the vector, for the digest.
SENT_CYCLE, SEQUENCE, CHECKSUM, LAUNCH, MIX = range(5)
META = 5


def ring_vectors(spec: ChipSpec) -> int:
    """Room a ring needs so that chips waiting for each other always make progress.

    A sender may be as far ahead as a vector is under way, and half that more because linked blocks
    span up to half of it.
    """
    under_way = -(-3 * spec.send_to_receive_cycles // (2 * spec.send_spacing_cycles))
    return max(CAPACITY, under_way + 2)


class Rings:
    """counts int64 [n, 16], meta int64 [n * capacity, META], data uint32 [n * capacity, 80]."""

    def __init__(
        self,
        counts: NDArray[np.int64],
        meta: NDArray[np.int64],
        data: NDArray[np.uint32],
        key: int = 0,
    ) -> None:
        """key: an int64 that goes into every vector's checksum, on both sides."""
        self.counts = counts
        self.meta = meta
        self.data = data
        self.key = key

    @staticmethod
    def nbytes(n: int, capacity: int = CAPACITY) -> int:
        """Bytes of shared memory that ``n`` rings of ``capacity`` vectors take."""
        return n * (16 * 8 + capacity * (META * 8 + LANES))

    @classmethod
    def allocate(cls, n: int, capacity: int = CAPACITY) -> Rings:
        """Rings in this process's own memory."""
        return cls.attach(own_memory(cls.nbytes(n, capacity), large_pages=True), n, capacity)

    @classmethod
    def attach(cls, buffer: Any, n: int, capacity: int = CAPACITY, key: int = 0) -> Rings:
        """Rings in a writable buffer (zeroed by whoever made it) shared with other processes."""
        counts_end = n * 16 * 8
        meta_end = counts_end + n * capacity * META * 8
        raw = np.frombuffer(buffer, np.uint8, cls.nbytes(n, capacity))
        return cls(
            raw[:counts_end].view(np.int64).reshape(n, 16),
            raw[counts_end:meta_end].view(np.int64).reshape(-1, META),
            raw[meta_end:].view(np.uint32).reshape(-1, LANES // 4),
            key,
        )

    def clear(self) -> None:
        """Forget every vector; only while no chip runs."""
        self.counts[:] = 0
