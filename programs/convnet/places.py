"""Where a network lies on a chip: tensors, weights, scales, and which plane does what.

Every tensor has one copy for each plane, two slices in each hemisphere, so planes never wait for
each other's reads.  A tensor's channels lie on tiles: the column blocks of the layer that made
it.  Tensors take turns on a few pairs of slices; one whose last reader is done gives its place up.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod

from chip.isa import LANES
from chip.scheduling import CompileError, Place
from chip.spec import ChipSpec
from programs.convnet.layers import INPUT, POOL_PAD, POOL_STRIDE, ConvLayer, Network
from programs.kernels import EAST, PLANES, WEST, Affine, Weights, cut, step_cycles
from programs.sram import Strips

GROUP = 16
_MOST_GROUPS = LANES // GROUP
#: Pairs of slices of a hemisphere that tensors take turns on.
_PAIRS = 7
#: Slices that hold what is about to be pooled: by parity of (row, column), one copy for each tap.
POOL_COPIES = {(1, 1): 4, (1, 0): 2, (0, 1): 2, (0, 0): 1}


@dataclass(frozen=True)
class TensorPlaces:
    """A tensor [height + 2 pad, width + 2 pad, tiles] of words, in both hemispheres.

    copies: by hemisphere, the place of two slices: the even plane reads the first, the odd plane
    the second.  tiles: channels on each tile.  parts: where the image is cut by rows so that each
    plane has only its own rows (the number of parts), 1: every plane has all.
    """

    copies: tuple[Place, Place]
    height: int
    width: int
    pad: int
    tiles: tuple[int, ...]
    parts: int = 1

    @property
    def words(self) -> int:
        """Words of the whole tensor."""
        return prod((self.height + 2 * self.pad, self.width + 2 * self.pad, len(self.tiles)))

    def at(self, row: int, column: int) -> int:
        """Offset of the first word of pixel (row, column), which may be in the border."""
        line = self.width + 2 * self.pad
        return ((row + self.pad) * line + column + self.pad) * len(self.tiles)

    def of_plane(self, plane: int) -> Place:
        """The copy that ``plane`` reads."""
        place = self.copies[plane // 2]
        return place.part(plane % 2, plane % 2 + 1)


@dataclass(frozen=True)
class Task:
    """Column block ``block`` of a layer times image rows first..last (exclusive) on ``plane``."""

    plane: int
    block: int
    first: int
    last: int


@dataclass
class LayerPlaces:
    """Weights by (hemisphere, block), scales and biases by block, and the tasks of a layer."""

    blocks: tuple[int, ...]  # column groups
    steps: int
    tasks: list[Task]
    weights: dict[tuple[int, int], Weights]
    affine: list[Affine]
    logits: dict[int, Place]  # by block
    taps: dict[tuple[int, int], Place]  # before pooling: by parity of (row, column)


@dataclass
class NetworkPlaces:
    """Everything of a network on a chip.

    pairs: what passing tensors lie on, in the order in which they come; empty for a bordered one.
    ``LAYER.taps`` is what a layer's pooling reads.
    """

    tensors: dict[str, TensorPlaces]
    layers: dict[str, LayerPlaces]
    pairs: dict[str, list[int]]
    used_bytes: int


def place_network(network: Network, spec: ChipSpec) -> NetworkPlaces:
    """Allocate every word of ``network``; raises CompileError when it does not fit."""
    strips = Strips(spec)
    room = [
        (strips.take(("pair", i), WEST, 2, 0), strips.take(("pair", i), EAST, 2, 0))
        for i in range(_PAIRS)
    ]
    for name in ("scale", "bias"):  # near the VXM, where narrow strips are taken first
        for side in (WEST, EAST):
            strips.take(name, side, 4, 0)
    places = NetworkPlaces({}, {}, {}, 0)
    pairs = _Pairs(network, spec, room)
    tiles = tuple(GROUP * n for n in cut(-(-network.shape[2] // GROUP), _MOST_GROUPS))
    _place_tensor(network, INPUT, tiles, places, pairs, -1)
    for i, layer in enumerate(network.layers):
        groups = -(-layer.channels // GROUP)
        blocks = tuple(cut(groups, _MOST_GROUPS))
        source = places.tensors[layer.source]
        steps = layer.kernel**2 * len(source.tiles)
        tasks = _tasks(network, layer, blocks, steps, source, spec)
        own = LayerPlaces(blocks, steps, tasks, {}, [], {}, {})
        for side, block in sorted({(task.plane // 2, task.block) for task in tasks}):
            own.weights[side, block] = Weights(
                (strips.take("weights", side, GROUP, steps * blocks[block]),), blocks[block]
            )
        for _ in blocks:
            words = [
                (strips.take(name, WEST, 4, 1), strips.take(name, EAST, 4, 1))
                for name in ("scale", "bias")
            ]
            own.affine.append(Affine(words[0], words[1]))
        places.layers[layer.name] = own
        if layer.logits:
            _place_logits(network, layer, own, places, pairs, i)
        if layer.pooled:
            _place_taps(network, layer, own, places, pairs, i)
        if not layer.logits:
            widths = tuple(GROUP * n for n in blocks)
            _place_tensor(network, layer.name, widths, places, pairs, i)
    strips.settle(f"network {network.name}", "use a smaller network or a chip with more SRAM")
    places.used_bytes = strips.used_bytes()
    return places


class _Pairs:
    """Pairs of slices and what lies on them: passing tensors below, bordered ones from the top.

    A tensor with a border keeps its words for good, because the border is there from the start.
    """

    def __init__(self, network: Network, spec: ChipSpec, room: list[tuple[Place, Place]]) -> None:
        self.spec, self.room = spec, room
        self.on: dict[str, list[int]] = {}
        self._low = [0] * len(room)
        self._high = [spec.words_per_slice] * len(room)
        self._last_use = {layer.source: i for i, layer in enumerate(network.layers)}
        for i, layer in enumerate(network.layers):
            if layer.residual is not None:
                self._last_use[layer.residual] = i

    def take(self, name: str, number: int, pairs: int, words: int, bordered: bool) -> list[int]:
        """Pairs for ``name``, made by layer ``number``, on which nothing is still to be read.

        Returns [first word, pair, ...]; a place that is not bordered begins at word 0.
        """
        busy = {
            pair
            for other, on in self.on.items()
            if self._last_use.get(other, -1) >= number or other.startswith(f"{name}.")
            for pair in on
        }
        fits = [
            pair
            for pair in range(len(self.room))
            if pair not in busy and words <= self._high[pair] - (self._low[pair] if bordered else 0)
        ]
        if len(fits) < pairs:
            raise CompileError(
                f"tensor {name}: {words:,} words on each plane's slice find no room beside what "
                "is still to be read; use a smaller image or batch"
            )
        if bordered:
            fits.sort(key=lambda pair: self._low[pair] - self._high[pair])
        else:
            fits.sort(key=lambda pair: -self._low[pair])
        chosen = fits[:pairs]
        address = 0
        for pair in chosen:
            if bordered:
                self._high[pair] -= words
                address = self._high[pair]
            else:
                self._low[pair] = max(self._low[pair], words)
        self.on[name] = chosen
        return [address, *chosen]


def _place_tensor(
    network: Network,
    name: str,
    tiles: tuple[int, ...],
    places: NetworkPlaces,
    pairs: _Pairs,
    number: int,
) -> None:
    """Give a tensor a pair of slices in each hemisphere."""
    height, width, _ = network.shape_of(name)
    readers = [layer for layer in network.layers if layer.source == name]
    pad = max((layer.pad for layer in readers), default=0)
    tensor = TensorPlaces(pairs.room[0], height, width, pad, tiles)
    words, most = tensor.words, pairs.spec.words_per_slice
    if words > most:
        whole = name == INPUT and all(r.kernel == 1 and not r.joined for r in readers)
        tensor = replace(tensor, parts=len(PLANES))
        words = -(-height // len(PLANES)) * width * len(tiles)
        if not whole or words > most:
            raise CompileError(
                f"tensor {name}: {tensor.words:,} words, {tensor.words - most:,} more than a "
                "slice holds; use a smaller image or batch"
            )
    bordered = pad > 0 and name != INPUT
    address, pair = pairs.take(name, number, 1, words, bordered)
    west, east = pairs.room[pair]
    places.tensors[name] = replace(tensor, copies=(west.at(address), east.at(address)))
    places.pairs[name] = [] if bordered else [pair]


def _place_taps(
    network: Network,
    layer: ConvLayer,
    own: LayerPlaces,
    places: NetworkPlaces,
    pairs: _Pairs,
    number: int,
) -> None:
    """Nine east slices for what is about to be pooled, by the parity of its pixels."""
    height, width = network.product_size(layer)
    if len(own.blocks) > 1 or height % POOL_STRIDE or width % POOL_STRIDE:
        raise CompileError(
            f"layer {layer.name}: pooling takes up to 320 channels and even sizes, not "
            f"{layer.channels} channels of {height} x {width}"
        )
    words = (height // 2 + POOL_PAD) * (width // 2 + POOL_PAD)
    needed = -(-sum(POOL_COPIES.values()) // 2)
    name = f"{layer.name}.taps"
    _, *chosen = pairs.take(name, number, needed, words, False)
    places.pairs[name] = chosen
    slices = [queue for pair in chosen for queue in pairs.room[pair][EAST].queues]
    for parity, copies in POOL_COPIES.items():
        own.taps[parity] = Place(tuple(slices[:copies]), 0)
        slices = slices[copies:]


def _place_logits(
    network: Network,
    layer: ConvLayer,
    own: LayerPlaces,
    places: NetworkPlaces,
    pairs: _Pairs,
    number: int,
) -> None:
    """Four slices, in the hemisphere of each block's plane, for float32 outputs."""
    height, width = network.product_size(layer)
    words = height * width * len(own.blocks)
    _, *chosen = pairs.take(layer.name, number, 2, words, False)
    places.pairs[layer.name] = chosen
    for block in range(len(own.blocks)):
        side = next(task.plane // 2 for task in own.tasks if task.block == block)
        quad = tuple(queue for pair in chosen for queue in pairs.room[pair][side].queues)
        own.logits[block] = Place(quad, block * height * width)


def _tasks(
    network: Network,
    layer: ConvLayer,
    blocks: tuple[int, ...],
    steps: int,
    source: TensorPlaces,
    spec: ChipSpec,
) -> list[Task]:
    """The division over planes, by columns and by rows, that takes the fewest cycles."""
    height, width = network.product_size(layer)
    if width > spec.mxm_accumulator_rows:
        raise CompileError(
            f"layer {layer.name}: rows of {width} pixels; at most {spec.mxm_accumulator_rows}"
        )
    best: tuple[int, int, list[Task]] | None = None
    for parts in (1, 2, 4) if source.parts == 1 else (source.parts,):
        if parts > height or (layer.logits and parts > 1):
            continue
        tasks: list[Task] = []
        busy = dict.fromkeys(PLANES, 0)
        for block, groups in enumerate(blocks):
            first = 0
            for part, rows in enumerate(cut(height, -(-height // parts))):
                plane = PLANES[(block * parts + part) % len(PLANES)]
                lines = _line_cuts(layer, rows, spec.mxm_accumulator_rows // width)
                for count in lines:
                    tasks.append(Task(plane, block, first, first + count))
                    first += count
                    busy[plane] += steps * step_cycles(spec, count * width, groups, 1)
        results = height * width * len(blocks)  # each is written to all four copies
        cost = max(*busy.values(), results)
        if best is None or (cost, parts) < best[:2]:
            best = (cost, parts, tasks)
    assert best is not None
    return best[2]


def _line_cuts(layer: ConvLayer, lines: int, most: int) -> list[int]:
    """Image rows cut so that each part has at most ``most``; even ones where pooling follows."""
    if not layer.pooled:
        return cut(lines, most)
    return [2 * n for n in cut(lines // 2, max(1, most // 2))] + [1] * (lines % 2)
