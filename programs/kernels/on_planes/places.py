"""Where attention on the planes finds its words, and what the words hold that never change.

A *block* is 320 positions; even blocks lie in the east, odd ones in the west.  Sides are numbered
0 (west) and 1 (east), as hemispheres are.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from chip.isa import LANES, LANES_PER_SUPERLANE, SUPERLANES
from chip.scheduling import Place

#: Positions of a block: the columns of a plane.
BLOCK = LANES
_GROUPS = BLOCK // LANES_PER_SUPERLANE
#: Heads that one run through the planes serves.
HEADS = 8
#: The first lane that no head has: the sums of weights arrive there.
ONES_LANE = 304
_ONE = 0x3C  # high byte of an fp16 one

Bytes = tuple[Place, Place]
"""The places of the low and of the high bytes."""


@dataclass(frozen=True)
class CachedTile:
    """Keys and values of one tile, layer and sequence.

    width: lanes of its heads, a multiple of 16, at most 304; columns: of V^T, D = width, or those
    of one head where all heads of the tile have the same keys and values; blocks: that it has room
    for, on both sides together.  keys, values: (west, east), of each the bytes on sixteen slices,
    those of the side's even and odd plane; n blocks of a side take 20 n + 1 and (n + 1) D / 16
    words, each region in one bank.  recent: bytes on sixteen slices each in the east, D / 8 words
    in one bank.
    """

    width: int
    columns: int
    blocks: int
    keys: tuple[Bytes, Bytes]
    values: tuple[Bytes, Bytes]
    recent: Bytes


@dataclass(frozen=True)
class QueryGroup:
    """``heads`` of the query tiles ``tiles`` that attend to one cached tile, side by side.

    tokens: whose tiles they are, as many of each, token by token.
    """

    tiles: tuple[int, ...]
    heads: tuple[int, ...]
    head_lanes: int
    tokens: int = 1


@dataclass(frozen=True)
class HeadRun:
    """Heads ``first`` .. of those that go through the planes together: they attend to ``tile``.

    tokens: as in ``QueryGroup``.
    """

    tile: CachedTile
    first: int
    heads: int
    tokens: int = 1


@dataclass(frozen=True)
class NewValue:
    """A value (a fp32 word in the east) that is not in its cached tile yet; maps: its token's."""

    value: Place
    tile: CachedTile
    maps: PlanePlaces


@dataclass(frozen=True)
class PlanePlaces:
    """Words that attention on the planes uses, the same for every layer.

    Inputs.  rotated: fp32 query tiles, east quad; head_masks: fp32 ones on a head's lanes, a word
    for each head of a tile, west quad; masks: one near slice in the east, word b is block b's, 0 or
    255 a lane, those of further tokens behind all blocks that the caches hold.  key_maps: pair,
    words 0..15 for the west and 16..31 for the east (``key_map``); value_maps: for the (west,
    east), a pair with one word each (``value_map``); recent_maps: two pairs with the same 16 words
    (``recent_map``); all maps near the VXM in the east, two of a kind on different slices.

    Constants.  constants: 4 words on the weight slices of planes 0..3 (``constant_words``);
    lane_maps: 136 words on each slice of a quad of each side (``lane_map_words``); offsets: one
    word on a pair of each side (``offset_words``).

    Temporaries, by (west, east): queries and weights (8, and 8 words a block of the side): pairs
    near the VXM; scores: 8 words a block of the side, near quads; pieces: 20 words that are zero
    before the first launch and belong to nobody else, a pair of each side.  maximum: 8 words, west
    quad, best in another bank than the scores there; sums: 8 words, east quad; row: 20 such words
    as pieces are for each value of a run, a pair in the east; spread: D / 16 words for each, the
    same on two pairs near the VXM in the east, other slices than those of recent_maps.  outputs:
    fp32 tiles, east quad.

    Where heads have sinks: sinks, a word for each head of a run, west quad: its logit on lanes from
    304 on, -2^127 on the others; sink_weights: a temporary of 8 words, west quad.
    """

    rotated: Place
    head_masks: Place
    masks: Place
    key_maps: Place
    value_maps: tuple[Place, Place]
    recent_maps: tuple[Place, Place]
    constants: tuple[Place, Place, Place, Place]
    lane_maps: tuple[Place, Place]
    offsets: tuple[Place, Place]
    queries: tuple[Place, Place]
    weights: tuple[Place, Place]
    scores: tuple[Place, Place]
    pieces: tuple[Place, Place]
    maximum: Place
    sums: Place
    row: Place
    spread: tuple[Place, Place]
    outputs: Place
    sinks: Place | None = None
    sink_weights: Place | None = None


def _offset_pair(offsets: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Offsets of 20 superlanes, [n, 20], as map words [2, n, 320]: low and high bytes."""
    words = np.zeros((2, len(offsets), LANES), np.uint8)
    words[0, :, ::LANES_PER_SUPERLANE] = offsets & 255
    words[1, :, ::LANES_PER_SUPERLANE] = offsets >> 8
    return words


def side_blocks(blocks: int) -> tuple[int, int]:
    """Blocks in the (west, east) of ``blocks``."""
    return blocks // 2, (blocks + 1) // 2


def key_map(position: int, blocks: int) -> NDArray[np.uint8]:
    """Words of ``key_maps`` for a key at ``position``, uint8 [2, 32, 320]."""
    block, column = divmod(position, BLOCK)
    group, own = divmod(column, LANES_PER_SUPERLANE)
    rows = []
    for side, room in enumerate(side_blocks(blocks)):
        for slice_ in range(16):
            here = side == 1 - block % 2 and slice_ == own
            rows.append(_GROUPS * (block // 2) + group if here else _GROUPS * room)
    return _offset_pair(np.repeat(np.array(rows)[:, None], SUPERLANES, axis=1))


def value_map(position: int, blocks: int, columns: int) -> NDArray[np.uint8]:
    """West and east word of ``value_maps`` for a value at ``position``, uint8 [2, 2, 320]: low
    and high bytes of both.
    """
    block, column = divmod(position, BLOCK)
    words = columns // LANES_PER_SUPERLANE
    offsets = np.zeros((2, SUPERLANES), np.int64)
    for side, room in enumerate(side_blocks(blocks)):
        offsets[side] = words * room
        if side == 1 - block % 2:
            offsets[side, column // LANES_PER_SUPERLANE] = words * (block // 2)
    return _offset_pair(offsets)


def recent_map(position: int, columns: int) -> NDArray[np.uint8]:
    """Words of ``recent_maps`` for a value at ``position``, uint8 [2, 16, 320]."""
    offsets = np.full((16, SUPERLANES), columns // LANES_PER_SUPERLANE)
    offsets[position % 16] = 0
    return _offset_pair(offsets)


def constant_words() -> NDArray[np.uint8]:
    """Words of ``constants`` on the sixteen slices of any plane, uint8 [16, 4, 320].

    Zeros, high bytes of fp16 ones, those on lane 304 only, and ones on lanes equal to the slice's
    number modulo 16.
    """
    words = np.zeros((16, 4, LANES), np.uint8)
    words[:, 1] = _ONE
    words[:, 2, ONES_LANE] = _ONE
    for slice_ in range(16):
        words[slice_, 3, slice_::LANES_PER_SUPERLANE] = 1
    return words


def lane_map_words() -> NDArray[np.uint8]:
    """Words of ``lane_maps``, uint8 [136, 320].

    Word 16 h + k brings lane h + k (modulo 16) to lane h of its superlane, and nothing to others;
    word 128 + h brings lane h to every lane.
    """
    words = np.full((HEADS, 16, SUPERLANES, LANES_PER_SUPERLANE), LANES_PER_SUPERLANE, np.uint8)
    for head in range(HEADS):
        words[head, :, :, head] = ((head + np.arange(16)) % 16)[:, None]
    spread = np.repeat(np.arange(HEADS, dtype=np.uint8), LANES).reshape(HEADS, LANES)
    return np.concatenate([words.reshape(-1, LANES), spread])


def offset_words() -> NDArray[np.uint8]:
    """The word of ``offsets``, uint8 [2, 1, 320]: superlane k takes offset k."""
    return _offset_pair(np.arange(SUPERLANES)[None])
