"""Where an encoder lies on a chip.

In each hemisphere the sixteen slices at the edge (``a``) hold the weights of all matrices but the
last, the next sixteen (``b``) the last one and most intermediate values, and the few slices near
the VXM (``r``) activations of both sublayers, biases and row factors.  What differs from layer to
layer has a symbol.  Tile t of the hidden values belongs to one hemisphere (``side_of``).
"""

from __future__ import annotations

from dataclasses import dataclass, field

from chip.isa import LANES, SLICES, SLICES_PER_HEMISPHERE
from chip.scheduling import CompileError, Place, Symbol
from chip.spec import ChipSpec
from programs.encoder.shape import EncoderShape
from programs.kernels import EAST, WEST, Weights

SIDES = (WEST, EAST)
_GROUP = 16


def side_of(tile: int) -> int:
    """The hemisphere that makes and keeps a tile."""
    return EAST if tile % 2 == 0 else WEST


@dataclass
class Head:
    """One head: masked keys, fp32 scores and exponentials, small words, shares in two layouts."""

    keys: Place
    scores: Place
    maxima: Place
    maximum: Place
    exponentials: Place
    sums: Place
    inverse: Place
    columns: tuple[Place, Place]
    rows: Place


@dataclass
class Tile:
    """One tile of the hidden values in its hemisphere."""

    lanes: int
    query: tuple[Place, Place]  # column layout: low and high bytes
    keys: Place
    values: tuple[Place, Place]
    turned: tuple[Place, Place]  # values with tokens on lanes, gaps between heads
    masks: list[Place]
    heads: list[Head]
    sum: Place  # fp32 sublayer output plus residual
    centred: Place


@dataclass
class Side:
    """What a hemisphere holds once; rows are fp16 (two slices), word token * tiles + tile."""

    x: list[Place] = field(default_factory=list)  # inputs of the two sublayers
    residual: list[Place] = field(default_factory=list)  # their copies
    mixed: Place = field(default_factory=lambda: Place((), 0))
    sums: Place = field(default_factory=lambda: Place((), 0))
    squares: Place = field(default_factory=lambda: Place((), 0))
    mean: Place = field(default_factory=lambda: Place((), 0))
    factor: Place = field(default_factory=lambda: Place((), 0))
    hidden: Place = field(default_factory=lambda: Place((), 0))
    identity: Place = field(default_factory=lambda: Place((), 0))
    zeros: Place = field(default_factory=lambda: Place((), 0))
    ones: Place = field(default_factory=lambda: Place((), 0))


@dataclass
class EncoderPlaces:
    """Everything of an encoder on a chip with ``layers`` of its layers.

    weights[name][tile out]; vectors[name][tile] fp32 words; inner: three copies of each tile of
    the inner values.  bases[layer] gives the symbols' addresses.
    """

    shape: EncoderShape
    layers: int
    widths: list[int]  # different tile widths, in the order of the words of ones
    sides: list[Side]
    tiles: list[Tile]
    weights: dict[str, list[Weights]]
    vectors: dict[str, list[Place]]
    inner: list[tuple[Place, Place, Place]]
    bases: list[dict[Symbol, int]]
    used_bytes: int


class _Words:
    """Word allocation on a chip, from word 0 up on every slice."""

    def __init__(self, spec: ChipSpec, layers: int) -> None:
        self.spec = spec
        self.used = [0] * SLICES
        self.bases: list[dict[Symbol, int]] = [{} for _ in range(layers)]
        reserved = (spec.reserved_slices_west, spec.reserved_slices_east)
        self.a: list[tuple[int, ...]] = []
        self.b: list[tuple[int, ...]] = []
        self.r: list[tuple[int, ...]] = []
        for side in SIDES:
            free = [
                side * SLICES_PER_HEMISPHERE + s
                for s in range(SLICES_PER_HEMISPHERE)
                if s not in reserved[side]
            ]
            if len(free) < 2 * _GROUP + 6:
                raise CompileError(f"{len(free)} usable slices in a hemisphere: use 38 or more")
            self.a.append(tuple(free[-_GROUP:]))
            self.b.append(tuple(free[-2 * _GROUP : -_GROUP]))
            self.r.append(tuple(free[: -2 * _GROUP]))

    def take(self, queues: tuple[int, ...], words: int) -> Place:
        """``words`` words at one address on all ``queues``."""
        address = max(self.used[q] for q in queues)
        for q in queues:
            self.used[q] = address + words
        return Place(queues, address)

    def repeated(self, name: str, queues: tuple[int, ...], words: int) -> Place:
        """``words`` words for each layer, named by a symbol."""
        symbol = Symbol(name)
        for bases in self.bases:
            bases[symbol] = self.take(queues, words).address
        return Place(queues, 0, symbol)

    def columns(self, queues: tuple[int, ...], words: int) -> tuple[Place, Place]:
        """Low and high bytes in column layout: a token's two bytes go to different slices."""
        low = self.take(queues, words)
        high = self.take(queues[8:] + queues[:8], words)
        return low, high


def place_encoder(shape: EncoderShape, layers: int, spec: ChipSpec) -> EncoderPlaces:
    """Allocate ``layers`` layers on a chip; raises CompileError when they do not fit."""
    w = _Words(spec, layers)
    hidden, inner = shape.tiles, shape.ffn_tiles
    weights: dict[str, list[Weights]] = {}
    outs = {"up": inner}
    ins = {"down": inner}
    for name in ("q", "k", "v", "o", "up", "down"):
        strips = w.b if name == "down" else w.a
        weights[name] = []
        for tile, lanes in enumerate(outs.get(name, hidden)):
            groups = lanes // _GROUP
            words = groups * len(ins.get(name, hidden))
            low, high = (
                w.repeated(f"{name}.{tile}.{half}", strips[side_of(tile)], words)
                for half in ("low", "high")
            )
            weights[name].append(Weights((low, high), groups))
    vectors: dict[str, list[Place]] = {}
    for name in ("q_bias", "o_bias", "up_bias", "down_bias", "gain1", "shift1", "gain2", "shift2"):
        vectors[name] = []
        for tile in range(len(inner if name == "up_bias" else hidden)):
            side = side_of(tile)
            quad = w.r[side][2:6]
            if name.startswith("gain"):
                quad = w.a[side][0:4]
            elif name.startswith("shift"):
                quad = w.a[side][4:8]
            vectors[name].append(w.repeated(f"{name}.{tile}", quad, 1))
    widths = sorted(set(hidden))
    sides = [_place_side(w, shape, side, len(widths)) for side in SIDES]
    tiles = [_place_tile(w, shape, tile) for tile in range(len(hidden))]
    copies = [
        (
            w.take(w.b[side_of(tile)][0:4], shape.tokens),
            w.take(w.b[side_of(tile)][4:8], shape.tokens),
            w.take(w.b[side_of(tile)][8:12], shape.tokens),
        )
        for tile in range(len(inner))
    ]
    over = sum(max(0, used - spec.words_per_slice) for used in w.used)
    if over:
        raise CompileError(
            f"{layers} encoder layers of {shape.hidden} x {shape.ffn} for {shape.tokens} tokens do "
            f"not fit a chip: {over * LANES:,} bytes too many on its fullest slices; use more "
            "chips, fewer layers or fewer tokens"
        )
    return EncoderPlaces(
        shape,
        layers,
        widths,
        sides,
        tiles,
        weights,
        vectors,
        copies,
        w.bases,
        LANES * sum(w.used),
    )


def _place_side(w: _Words, shape: EncoderShape, side: int, widths: int) -> Side:
    a, b, r = w.a[side], w.b[side], w.r[side]
    rows = shape.tokens * len(shape.tiles)
    return Side(
        x=[w.take(r[0:2], rows) for _ in range(2)],
        residual=[w.take(b[2:4], rows) for _ in range(2)],
        mixed=w.take(b[4:6], rows),
        sums=w.take(b[6:8], rows),
        squares=w.take(b[0:2], rows),
        mean=w.take(r[2:6], shape.tokens),
        factor=w.take(r[2:6], shape.tokens),
        hidden=w.take(r[0:2], shape.tokens * len(shape.ffn_tiles)),
        identity=w.take(r[0:2], LANES),
        zeros=w.take(a, widths),
        ones=w.take(a, widths),
    )


def _place_tile(w: _Words, shape: EncoderShape, number: int) -> Tile:
    side, heads = side_of(number), shape.head_tiles[number]
    a, b, r = w.a[side], w.b[side], w.r[side]
    tokens, groups = shape.tokens, shape.tokens // _GROUP
    lanes = shape.tiles[number]
    own, whole = shape.head_size // _GROUP, lanes // _GROUP
    rows = w.take(b[0:2], heads * tokens)
    return Tile(
        lanes=lanes,
        query=w.columns(b, groups),
        keys=w.take(b[0:2], tokens),
        values=w.columns(b, groups),
        turned=w.columns(a, whole - own + heads * whole),
        masks=[w.take(r[2 + head % 2 : 3 + head % 2], 1) for head in range(heads)],
        heads=[
            Head(
                keys=w.take(b[2:4] if head % 2 == 0 else b[4:6], tokens),
                scores=w.take(b[8:12], tokens),
                maxima=w.take(r[2:6], 2),
                maximum=w.take(r[2:6], 1),
                exponentials=w.take(a[12:16], tokens),
                sums=w.take(r[2:6], 3),
                inverse=w.take(r[2:6], 1),
                columns=w.columns(b, groups),
                rows=rows.at(head * tokens),
            )
            for head in range(heads)
        ],
        sum=w.take(b[8:12], tokens),
        centred=w.take(b[12:16], tokens),
    )
