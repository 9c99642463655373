"""Where matrices lie: column blocks in rounds, plane after plane, each at one address on a strip.

What repeats from block to block (weights, scales, caches) is named by a symbol whose base differs;
see ``programs.decoder``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise, permutations

from chip.isa import LANES
from chip.scheduling import CompileError, Place
from programs.decoder import Layout, router_width
from programs.kernels import PAIR_ORDER, PLANE_ORDER, ColumnBlock, Weights
from programs.sram import WEST_QUAD, SramPlacement, Symbols


@dataclass
class MatrixPlaces:
    """Rounds of column blocks of one or more matrices, and the scale words of each round."""

    rounds: list[list[ColumnBlock]]
    scales: list[Place]  # of several experts: copies of those of the one chosen first
    columns: list[tuple[str, int]]  # (matrix, block) of each slot, round after round


Shapes = dict[str, tuple[int, int, int]]


def part_shapes(shapes: Shapes, tiles: int) -> Shapes:
    """The shapes of the matrices of an FFN part of ``tiles`` tiles."""
    (k, _, w), (_, n, v) = shapes["gate"], shapes["down"]
    return shapes | {"gate": (k, tiles, w), "up": (k, tiles, w), "down": (tiles, n, v)}


def matrix_shapes(layout: Layout) -> dict[str, tuple[int, int, int]]:
    """(K tiles, column blocks, column groups of 16 per block) of every matrix, of one expert."""
    t, q = layout.x_tiles, layout.q_width // 16
    x, f, v = layout.x_width // 16, layout.ffn_width // 16, layout.vocab_width // 16
    (of_q, of_kv), (q_width, kv_width) = layout.latent_tiles, layout.latent_widths
    return {
        "q_down": (t, of_q, q_width // 16),
        "kv_down": (t, of_kv, kv_width // 16),
        "k_rope": (t, 1, layout.kv_width // 16),
        "q": (of_q or t, layout.q_tiles, q),
        "k": (of_kv or t, layout.key_tiles, layout.key_width // 16),
        "v": (of_kv or t, layout.value_tiles, layout.value_width // 16),
        "o": (layout.q_tiles, t, x),
        "gate": (t, layout.ffn_tiles, f),
        "up": (t, layout.ffn_tiles, f),
        "down": (layout.ffn_tiles, t, x),
        "head": (t, layout.vocab_blocks, v),
        "router": (t, 1, router_width(layout.routed) // 16),
        "fine": (t, 1, router_width(layout.routed) // 16),
        "share": (t, 1, LANES // 16),
        "share_fine": (t, 1, LANES // 16),
    }


@dataclass
class MatrixPlacer:
    """Places the blocks of matrices plane after plane, for some layers at once."""

    placement: SramPlacement
    symbols: Symbols | None  # None: what is there once, at fixed addresses
    layers: list[int]
    dtype: str
    shapes: dict[str, tuple[int, int, int]]
    parts: int = 1
    """Places that the words of a block of experts are cut to, each in reach of one Gather."""

    def reach(self, matrix: str) -> int:
        """Words of an expert's block in each of its places."""
        tiles, _, groups = self.shapes[matrix]
        return -(-tiles * groups // self.parts)

    def place(
        self,
        name: str,
        matrices: list[str],
        experts: int = 1,
        copies: Place | None = None,
        again: int = 1,
        beside_keys: bool = False,
    ) -> MatrixPlaces:
        """Rounds and scales of ``matrices``, whose column blocks run one after another.

        experts: each block has the words of so many, in reach of one Gather; copies: where the
        scales of the one chosen first are by then.  again: how often an install takes the words of
        ``k``.  beside_keys: what comes last is made while new values pass the east planes.
        """
        order = PLANE_ORDER if self.dtype == "int8" else PAIR_ORDER
        halves = 1 if self.dtype == "int8" else 2
        slots = [(m, b) for m in matrices for b in range(self.shapes[m][1])]
        rounds: list[list[ColumnBlock]] = []
        scales: list[Place] = []
        for first in range(0, len(slots), len(order)):
            chosen = slots[first : first + len(order)]
            sizes = [self.shapes[m][0] * self.shapes[m][2] * experts for m, _ in chosen]
            blocks = []
            west = beside_keys and first > 0 and 2 * len(chosen) <= len(order)
            planes = _level_planes(
                self.placement, order[len(order) // 2 :] if west else order, sizes
            )
            for slot, plane, words in zip(chosen, planes, sizes, strict=True):
                reach = self.reach(slot[0]) if experts > 1 else words
                cuts = range(0, words // experts, reach) if experts > 1 else range(1)
                each = [
                    tuple(
                        self.words(
                            f"{name}{first}.{plane + half}" + (f".{cut}" if cut else ""),
                            self.placement.weight_slices(plane + half),
                            reach * experts if experts > 1 else words,
                            one_bank=experts > 1,
                        )
                        for half in range(halves)
                    )
                    for cut in cuts
                ]
                times = again if slot[0] == "k" else 1
                groups = times * self.shapes[slot[0]][2]
                own = Weights(each[0], groups, experts=experts, copies=times)
                if len(each) > 1:
                    own = replace(own, reach=reach, beyond=tuple(each[1:]))
                blocks.append(ColumnBlock(own, plane))
            rounds.append(blocks)
            if copies is not None:
                scales.append(copies.at(first))
            elif self.dtype == "int8":
                scales.append(self.words(f"{name}{first}.scale", WEST_QUAD, len(blocks)))
        return MatrixPlaces(rounds, scales, slots)

    def check_reach(self, matrix: str, experts: int) -> None:
        """Raise CompileError where a part of a block's words of all experts is more than a bank."""
        bank, each = self.placement.spec.words_per_bank, self.reach(matrix)
        if experts > 1 and each * experts > bank:
            raise CompileError(
                f"the model does not fit: {each} words a slice of each of {experts} "
                f"experts, and a Gather reaches {bank}; use more chips or int8 weights"
            )

    def words(
        self, label: str, queues: tuple[int, ...], words: int, one_bank: bool = False
    ) -> Place:
        """``words`` words that every layer has, at one address on ``queues``."""
        each = {layer: self.placement.bottom(queues, words, one_bank) for layer in self.layers}
        if self.symbols is None:
            return each[self.layers[0]]
        return self.symbols.place(label, each, self.placement.banks(each.values(), words))

    def groups(self, matrices: list[str], again: int = 1) -> list[int]:
        """Column groups of the widest block of each round; again: as of ``place``."""
        each = 4 if self.dtype == "int8" else 2
        wide = [
            self.shapes[m][2] * (again if m == "k" else 1)
            for m in matrices
            for _ in range(self.shapes[m][1])
        ]
        return [max(wide[first : first + each]) for first in range(0, len(wide), each)]


def _level_planes(pm: SramPlacement, order: tuple[int, ...], sizes: list[int]) -> tuple[int, ...]:
    """The plane of each block of a round (east ones first) that fills the slices most evenly.

    Where there are maps, activations lie beside the weights of odd planes and are read in the gaps
    between these: those of the even plane, one cycle behind, would meet the next weights.
    """

    def fullest(planes: tuple[int, ...]) -> tuple[int, ...]:
        filled = {plane: pm.filled(pm.weight_slices(plane)) for plane in order}
        for plane, size in zip(planes, sizes, strict=True):
            filled[plane] += size
        return tuple(sorted(filled.values(), reverse=True))

    candidates = [
        planes
        for planes in permutations(order, len(sizes))
        if all(a // 2 >= b // 2 for a, b in pairwise(planes))
        and not (pm.maps and any((a, b) in ((3, 2), (1, 0)) for a, b in pairwise(planes)))
    ]
    return min(candidates, key=fullest)
