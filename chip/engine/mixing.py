"""The compiled form of the digest: keyed sums over a vector, and one effect added to a chip's sums.

``chip.digest`` says what they mean and has the plain form; they agree bit for bit.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from chip.digest import KEY_A, KEY_B
from chip.jit import jit_inline, keyed_products

Array = NDArray[Any]
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_M1 = np.uint64(0xBF58476D1CE4E5B9)
_M2 = np.uint64(0x94D049BB133111EB)


@jit_inline
def mix64(v: Any) -> Any:
    """The splitmix64 finaliser on uint64."""
    v = (v ^ (v >> np.uint64(30))) * _M1
    v = (v ^ (v >> np.uint64(27))) * _M2
    return v ^ (v >> np.uint64(31))


@jit_inline
def mix_known(
    sums: Array, first: Any, second: Any, base: Any, cycle: int, op: int, queue: int, address: Any
) -> None:
    """Add one effect, of whose bytes both keyed sums are known; ``base`` mixes chip and launch."""
    meta = mix64(base + np.uint64(cycle))
    meta = mix64(meta + np.uint64((op << 16) | queue))
    meta = mix64(meta + np.uint64(address))
    sums[0] += mix64(first + meta)
    sums[1] += mix64(second + meta * _GOLDEN)


@jit_inline
def mix(
    sums: Array, words: Array, base: Any, cycle: int, op: int, queue: int, address: Any
) -> None:
    """Add the effect of one vector uint32 [80] to the two sums."""
    mix_known(
        sums,
        keyed_products(words, KEY_A),
        keyed_products(words, KEY_B),
        base,
        cycle,
        op,
        queue,
        address,
    )
