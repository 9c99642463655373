"""A test bench around one functional unit: operands come from SRAM, results go back to SRAM."""

from __future__ import annotations

from typing import Any

import numpy as np

from chip.isa import Op, drive_position, is_east, sample_position, slice_position
from chip.program import Program, new_blocks
from chip.reference import ReferenceChip
from chip.reference.chip import ReferenceResult
from chip.spec import ChipSpec

SPEC = ChipSpec()
ALU, WEIGHTS, ACTIVATIONS = 88, 108, 109  # ALU 0 and plane 2, the first of the east hemisphere
EAST_SXM = 120


def vector(seed: int) -> np.ndarray:
    """A random uint8 [320]."""
    return np.random.default_rng(seed).integers(0, 256, 320).astype(np.uint8)


class Bench:
    """Builds a program around one unit: feeds its operands from SRAM, catches its results."""

    def __init__(self) -> None:
        self.chip = ReferenceChip(SPEC)
        self.rows: list[dict[str, Any]] = []
        self.gangs: list[tuple[int, ...]] = []
        self.maps: list[np.ndarray] = []
        self.word = 0
        self.used: set[tuple[str, int, int]] = set()

    def add(self, op: Op, cycle: int, queue: int, **columns: Any) -> None:
        self.rows.append({"op": op, "cycle": cycle, "queue": queue, **columns})

    def _slice(self, kind: str, stream: int, position: int, cycle: int, sign: int) -> int:
        """A free slice up (-1) or down (+1) the stream from ``position``, nearest first."""
        sign = sign if is_east(stream) else -sign
        order = sorted(range(88), key=lambda s: (abs(slice_position(s) - position), s))
        for queue in order:
            hops = (slice_position(queue) - position) * sign
            slot = (kind, queue, cycle + hops if kind == "write" else cycle - hops - 1)
            if hops > 0 and slot not in self.used:
                self.used.add(slot)
                return queue
        raise AssertionError("no free slice")

    def feed(self, queue: int, stream: int, cycle: int, data: np.ndarray, **columns: Any) -> None:
        """Let the unit of ``queue`` meet ``data`` uint8 [n, 320] on n streams at ``cycle``."""
        for i, row in enumerate(np.atleast_2d(data)):
            position = sample_position(queue, stream + i)
            source = self._slice("read", stream + i, position, cycle, -1)
            hops = abs(position - slice_position(source))
            self.chip.sram[source, self.word] = row
            self.add(Op.READ, cycle - hops - 1, source, a=self.word, out=stream + i, **columns)
            self.word += 1

    def catch(self, queue: int, stream: int, cycle: int, n: int = 1) -> list[tuple[int, int]]:
        """Write the n streams that the unit drives at ``cycle`` to SRAM: their (slice, word)."""
        places = []
        for i in range(n):
            position = drive_position(queue, stream + i)
            target = self._slice("write", stream + i, position, cycle, +1)
            hops = abs(position - slice_position(target))
            self.add(Op.WRITE, cycle + hops, target, a=4096 + self.word, s0=stream + i)
            places.append((target, 4096 + self.word))
            self.word += 1
        return places

    def program(self) -> Program:
        blocks = new_blocks(len(self.rows))
        for i, row in enumerate(self.rows):
            for name, value in row.items():
                blocks[name][i] = value
        return Program(blocks, self.gangs, [m.astype(np.int16) for m in self.maps])

    def run(self) -> ReferenceResult:
        return self.chip.run(self.program())

    def got(self, places: list[tuple[int, int]]) -> np.ndarray:
        return np.stack([self.chip.sram[place] for place in places])


def planes(words: np.ndarray) -> np.ndarray:
    """uint32 [320] as four byte streams [4, 320]."""
    return words.astype("<u4").view(np.uint8).reshape(320, 4).T


def words(streams: np.ndarray) -> np.ndarray:
    """Four byte streams [4, 320] as uint32 [320]."""
    return np.ascontiguousarray(streams.T).view("<u4").reshape(320)


def offsets(values: np.ndarray) -> np.ndarray:
    """A map [2, 320]: 16-bit little-endian offsets in lane 0 of each superlane, 0xFF elsewhere."""
    streams = np.full((2, 320), 0xFF, np.uint8)
    streams[0, ::16], streams[1, ::16] = values & 0xFF, values >> 8
    return streams


def load(bench: Bench, plane: int, start: int, matrix: np.ndarray, stream: int = 0) -> int:
    """LW uint8 [16*m columns, 320] from cycle ``start``, then IW; returns the IW's cycle."""
    groups = len(matrix) // 16
    for group in range(groups):
        tile = matrix[16 * group : 16 * group + 16]
        bench.feed(104 + 2 * plane, stream, start + group, tile)
        bench.add(Op.LW, start + group, 104 + 2 * plane, a=group, s0=stream)
    bench.add(Op.IW, start + groups, 104 + 2 * plane, a=groups)
    return start + groups
