"""The digest of a run: what was written, scattered, sent, received and output, and when.

Every effect contributes a 64-bit mix of its 320 bytes, chip, launch, cycle, opcode, queue and
address (or link) to two independently keyed sums modulo 2^64.  Addition commutes, so the digest
knows nothing of block splitting, execution order, packing or transport.  This is the plain NumPy
form; ``chip.engine.loop`` holds the compiled one, and they agree bit for bit.

Effects: WRITE (address: word address), SCATTER (address: ``scatter_address`` of the 20 word
addresses; bytes: the stream's), SEND and RECEIVE (address: link number), host output (opcode 0,
queue and address: slice and word).
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

HOST_OUTPUT = 0
WORDS = 80
_GOLDEN = 0x9E3779B97F4A7C15
_MASK = (1 << 64) - 1
SCATTER_FACTOR = 1_000_003


def _splitmix(value: int) -> int:
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)


def _keys(seed: int) -> NDArray[np.uint32]:
    values = [_splitmix((seed + i * _GOLDEN) & _MASK) >> 32 for i in range(1, WORDS + 1)]
    return np.array(values, np.uint32)


#: Keys of the two sums, uint32 [80] each.
KEY_A = _keys(0x6C70752D636C7573)
KEY_B = _keys(0x7465722D64696765)


def splitmix64(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The splitmix64 finaliser, element-wise on uint64."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: NDArray[np.uint64] = values ^ (values >> np.uint64(31))
    return mixed


def scatter_address(addresses: NDArray[np.int64]) -> int:
    """One 64-bit number for the 20 word addresses [20] that a SCATTER wrote."""
    value = 0
    for address in addresses:
        value = (value * SCATTER_FACTOR + int(address) + 1) & _MASK
    return value


def _products(words: NDArray[np.uint32], key: NDArray[np.uint32]) -> NDArray[np.uint64]:
    keyed: NDArray[Any] = (words + key).astype(np.uint64)
    pairs = keyed[:, : WORDS // 2] * keyed[:, WORDS // 2 :]
    total: NDArray[np.uint64] = pairs.sum(axis=1, dtype=np.uint64)
    return total


def mix_effect(
    rows: NDArray[np.uint8],
    chip: int,
    launch: int,
    cycle: int | NDArray[np.int64],
    op: int,
    queue: int | NDArray[np.int64],
    address: int | NDArray[np.int64] | NDArray[np.uint64],
) -> NDArray[np.uint64]:
    """The two sums, uint64 [2], of effects with bytes ``rows`` uint8 [n, 320].

    cycle, queue and address are one number for all rows or arrays [n].  Add the result to a
    chip's sums (uint64 arrays wrap).
    """
    rows = np.ascontiguousarray(rows).reshape(-1, 4 * WORDS)
    count = len(rows)
    words = rows.view("<u4")

    def column(value: object) -> NDArray[np.uint64]:
        if isinstance(value, int):
            return np.full(count, value & _MASK, np.uint64)
        return np.broadcast_to(np.asarray(value), count).astype(np.uint64)

    start = splitmix64(column(chip + 1))
    start = splitmix64(start + column(launch))
    meta = splitmix64(start + column(cycle))
    meta = splitmix64(meta + (column(op << 16) | column(queue)))
    meta = splitmix64(meta + column(address))
    sums = np.zeros(2, np.uint64)
    sums[0] = splitmix64(_products(words, KEY_A) + meta).sum(dtype=np.uint64)
    other = meta * np.uint64(_GOLDEN)
    sums[1] = splitmix64(_products(words, KEY_B) + other).sum(dtype=np.uint64)
    return sums


def finish(artifact_hash: bytes, sums: NDArray[np.uint64], retire_cycles: list[int]) -> str:
    """SHA-256 (hex) over the artifact's hash, the sums [..., 2] and every retire cycle."""
    digest = hashlib.sha256(artifact_hash)
    digest.update(np.ascontiguousarray(sums, "<u8").tobytes())
    digest.update(np.array(retire_cycles, "<i8").tobytes())
    return digest.hexdigest()
