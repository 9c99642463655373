"""Pieces of a chip's memory before a launch, and words read after it, by place."""

from __future__ import annotations

import hashlib
import struct

import numpy as np
from numpy.typing import NDArray

from chip.engine import Chip
from chip.isa import LANES
from chip.scheduling import Place

#: (slice, first word, uint8 [words, 320]).
Image = list[tuple[int, int, NDArray[np.uint8]]]


def fp32_rows(values: NDArray[np.float32]) -> NDArray[np.uint8]:
    """fp32 words [n, 320] as byte planes uint8 [4, n, 320]."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint8).reshape(*values.shape, 4)
    return np.ascontiguousarray(np.moveaxis(bits, -1, 0))


def put_fp32(image: Image, place: Place, base: int, values: NDArray[np.float32]) -> None:
    """Add fp32 words [n, 320] at ``place`` to an image."""
    for queue, plane in zip(place.queues, fp32_rows(values), strict=True):
        image.append((queue, base + place.address, plane))


def put_rows(image: Image, place: Place, planes: list[NDArray[np.uint8]]) -> None:
    """Add byte planes [words, 320] at ``place``."""
    for queue, plane in zip(place.queues, planes, strict=True):
        image.append((queue, place.address, plane.reshape(-1, LANES)))


def read_words(chip: Chip, place: Place, words: int) -> NDArray[np.uint8]:
    """The words at ``place``, uint8 [words, 320, slices of the place]."""
    planes = [chip.read_words(queue, place.address, words) for queue in place.queues]
    return np.ascontiguousarray(np.stack(planes, axis=-1))


def image_bytes(image: Image) -> int:
    """Bytes that an image puts into SRAM."""
    return sum(rows.nbytes for _, _, rows in image)


def image_digest(image: Image) -> bytes:
    """sha256 of what an image puts where, however it is cut into pieces that do not overlap."""
    sha = hashlib.sha256()
    ordered = sorted(image, key=lambda piece: piece[:2])
    at = 0
    while at < len(ordered):
        slice_, first, _ = ordered[at]
        end = first
        run = []
        while at < len(ordered) and ordered[at][:2] == (slice_, end):
            run.append(ordered[at][2])
            end += len(run[-1])
            at += 1
        sha.update(struct.pack("<3q", slice_, first, end - first))
        for rows in run:
            sha.update(np.ascontiguousarray(rows).data)
    return sha.digest()
