"""An encoder's data: the memory of its chips before a launch, and the output after it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from chip.engine import Chip
from chip.isa import LANES
from chip.scheduling import Place, Symbol
from programs.encoder.places import SIDES, EncoderPlaces
from programs.encoder.shape import MATRICES, Bits, EncoderLayer, EncoderShape
from programs.kernels import EAST, Weights, put_weights
from programs.sram import Image, put_fp32, put_rows, read_words


def _halves_of(bits: Bits) -> list[NDArray[np.uint8]]:
    return [(bits & 0xFF).astype(np.uint8), (bits >> 8).astype(np.uint8)]


def _by_tiles(values: NDArray[np.generic], tiles: list[int]) -> NDArray[np.generic]:
    """Values [n, sum of tiles or less] on lanes, [n, tiles, 320]."""
    lanes = np.zeros((len(values), len(tiles), LANES), values.dtype)
    first = 0
    for t, width in enumerate(tiles):
        part = values[:, first : first + width]
        lanes[:, t, : part.shape[1]] = part
        first += width
    return lanes


def _at(place: Place, bases: dict[Symbol, int]) -> Place:
    return (
        place if place.symbol is None else Place(place.queues, place.address + bases[place.symbol])
    )


def encoder_image(places: EncoderPlaces, layers: list[EncoderLayer], x: Bits | None) -> Image:
    """A chip's memory before the launch."""
    shape = places.shape
    image: Image = []
    for layer, bases in zip(layers, places.bases, strict=False):
        for name in MATRICES:
            inputs = shape.ffn_tiles if name == "down" else shape.tiles
            columns = shape.ffn_tiles if name == "up" else shape.tiles
            lanes = _by_tiles(layer.matrices[name].T, inputs)  # [out, tiles in, 320]
            first = 0
            for t, width in enumerate(columns):
                own = np.zeros((width, *lanes.shape[1:]), np.uint16)
                part = lanes[first : first + width]
                own[: len(part)] = part
                first += width
                weights = places.weights[name][t]
                low, high = (_at(place, bases) for place in weights.halves)
                steps = np.ascontiguousarray(own.swapaxes(0, 1))
                put_weights(image, Weights((low, high), weights.groups), _halves_of(steps))
        for name, vector in layer.vectors.items():
            tiles = shape.ffn_tiles if name == "up_bias" else shape.tiles
            words = _by_tiles(vector[None], tiles)[0].astype(np.float32)
            for place, word in zip(places.vectors[name], words, strict=True):
                put_fp32(image, _at(place, bases), 0, word[None])
    lane = np.arange(LANES)
    for side in SIDES:
        own_side = places.sides[side]
        identity = np.where(lane[:, None] == lane, 0x3C00, 0).astype(np.uint16)
        put_rows(image, own_side.identity, _halves_of(identity))
        for number, width in enumerate(places.widths):
            ones = np.where(lane < width, 0x3C, 0).astype(np.uint8)[None]
            for queue in own_side.ones.queues:
                image.append((queue, own_side.ones.address + number, ones))
        if x is not None:
            rows = np.asarray(_by_tiles(x, shape.tiles), np.uint16)
            for place in (own_side.x[0], own_side.residual[0]):
                put_rows(image, place, _halves_of(rows))
    for tile in places.tiles:
        for h, place in enumerate(tile.masks):
            mask = (lane // shape.head_size == h).astype(np.uint8)[None]
            image.append((place.queues[0], place.address, mask))
    return image


def read_encoder(shape: EncoderShape, places: EncoderPlaces, chip: Chip) -> Bits:
    """The output's fp16 bits [tokens, hidden] on the last chip."""
    tiles = len(shape.tiles)
    words = read_words(chip, places.sides[EAST].x[0], shape.tokens * tiles).view(np.uint16)[..., 0]
    rows = words.reshape(shape.tokens, tiles, LANES)
    return np.concatenate([rows[:, t, :lanes] for t, lanes in enumerate(shape.tiles)], axis=1)
