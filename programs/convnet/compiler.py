"""The compiler of int8 networks: every layer's products placed as early as their rows are there.

A convolution needs no im2col copy: for every tap of the kernel the same SRAM words are read again
from another address, two-dimensional reads making rows of pixels, and the accumulators add the
taps.  A task begins when the image rows it reads are written, so layers overlap; nothing waits for
a whole layer.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from chip.engine import Chip
from chip.isa import LANES
from chip.scheduling import CompileError, Place, Schedule, program_of
from chip.spec import ChipSpec
from programs.artifact import Artifact, Planes, planes_of
from programs.convnet.layers import INPUT, POOL_PAD, POOL_STRIDE, ConvLayer, Network
from programs.convnet.places import (
    GROUP,
    POOL_COPIES,
    LayerPlaces,
    NetworkPlaces,
    Task,
    TensorPlaces,
    place_network,
)
from programs.kernels import (
    EAST,
    PLANES,
    WEST,
    Finish,
    RowOperand,
    Rows,
    cut,
    logits,
    maximum_of_nine,
    product,
    put_weights,
    requantise_rows,
    unsigned_rows,
)
from programs.sram import Image, put_fp32, put_rows, read_words

ENTRY = "network"
#: Image rows of pooled output made in one pass.
_POOLED_ROWS = 4


@dataclass
class _State:
    """Cycles while layers are placed one after another."""

    plane: dict[int, int] = field(default_factory=lambda: dict.fromkeys(PLANES, 0))
    results: list[int] = field(default_factory=lambda: [0, 0])  # VXM halves: free from
    rows: dict[str, list[int]] = field(default_factory=dict)  # tensor: each image row readable
    read: dict[str, int] = field(default_factory=dict)  # tensor: last read so far


class _Scheduler:
    """Places the layers of a network on one chip."""

    def __init__(self, network: Network, places: NetworkPlaces, spec: ChipSpec) -> None:
        self.network, self.places, self.spec = network, places, spec
        self.schedule = Schedule()
        self.state = _State()
        self.ends: dict[str, int] = {}
        self.state.rows[INPUT] = [0] * network.shape[0]

    def layer(self, layer: ConvLayer) -> None:
        """Place every task of ``layer``."""
        own, state = self.places.layers[layer.name], self.state
        height, width = self.network.product_size(layer)
        made = [0] * height
        free = self._free(f"{layer.name}.taps" if layer.pooled else layer.name)
        for task in _in_turn(own.tasks):
            finish = self._finish(layer, own, task, width)
            operand, reads = self._operand(layer, task, width)
            ready = max((state.rows[layer.source][row] for row in reads), default=0)
            if layer.residual is not None:
                ready = max(ready, *state.rows[layer.residual][task.first : task.last])
            side = task.plane // 2
            placed = product(
                self.schedule,
                self.spec,
                task.plane,
                own.weights[side, task.block],
                operand,
                max(ready, state.plane[task.plane]),
                0,
                finish,
                max(state.results[side], free),
            )
            state.plane[task.plane] = placed.next_read
            state.results[side] = placed.last_result + 1
            for row in range(task.first, task.last):
                made[row] = max(made[row], placed.ready)
            self._note_read(layer.source, placed.last_read)
            if layer.residual is not None:
                self._note_read(layer.residual, placed.last_result)
        if layer.pooled:
            made = self._pool(layer, own, made)
        state.rows[layer.name] = made
        self.ends[layer.name] = max(made)

    def _free(self, name: str) -> int:
        """The cycle from which ``name`` may be written: its words' last readers are done."""
        own = self.places.pairs[name]
        cycle = 0
        for other, on in self.places.pairs.items():
            if other == name:
                break
            if set(on) & set(own):
                cycle = max(cycle, self.state.read.get(other, 0))
        return cycle

    def _note_read(self, name: str, cycle: int) -> None:
        self.state.read[name] = max(self.state.read.get(name, 0), cycle)

    def _operand(self, layer: ConvLayer, task: Task, width: int) -> tuple[RowOperand, range]:
        """What a task streams, and the image rows of the source it reads."""
        source = self.places.tensors[layer.source]
        tiles, line = len(source.tiles), source.width + 2 * source.pad
        place = source.of_plane(task.plane)
        if layer.joined:
            rows = Rows(source.width, source.height, tiles, line * tiles)
            offsets = tuple(source.at(0, 0) + tile for tile in range(tiles))
            return RowOperand(place, rows, offsets, joined=True), range(source.height)
        top = task.first * layer.stride - layer.pad
        bottom = (task.last - 1) * layer.stride - layer.pad + layer.kernel
        begin = self._part_begin(source, task.plane)
        offsets = tuple(
            source.at(top + ky - begin, kx - layer.pad) + tile
            for ky in range(layer.kernel)
            for kx in range(layer.kernel)
            for tile in range(tiles)
        )
        step = layer.stride * tiles
        rows = Rows(width, task.last - task.first, step, step * line)
        return RowOperand(place, rows, offsets), range(max(top, 0), min(bottom, source.height))

    def _part_begin(self, source: TensorPlaces, plane: int) -> int:
        """First image row that a plane's copy of a tensor cut by rows holds."""
        if source.parts == 1:
            return 0
        return sum(part_rows(source)[: PLANES.index(plane)])

    def _finish(self, layer: ConvLayer, own: LayerPlaces, task: Task, width: int) -> Finish:
        affine, count = own.affine[task.block], task.last - task.first
        if layer.logits:
            target = own.logits[task.block].at(task.first * width)
            return logits(affine, target, Rows(width * count))
        if layer.pooled:
            return unsigned_rows(affine, self._tap_rows(own, task, width))
        output = self.places.tensors[layer.name]
        targets, pattern = _pixels(output, task.first, count, task.block)
        if layer.residual is None:
            return requantise_rows(affine, targets, pattern)
        other = self.places.tensors[layer.residual]
        sources, source_pattern = _pixels(other, task.first, count, task.block)
        one = {
            side: Place(place.queues[task.plane % 2 :][:1], place.address)
            for side, place in sources.items()
        }
        return requantise_rows(affine, targets, pattern, (one, source_pattern))

    def _tap_rows(self, own: LayerPlaces, task: Task, width: int) -> list[tuple[Place, int, Rows]]:
        """Where the pixels of a task go before pooling: every other one to another slice."""
        line = width // 2 + POOL_PAD
        targets = []
        for row in range(task.first, task.last):
            for parity in (0, 1):
                place = own.taps[row % 2, parity]
                word = (row // 2 + row % 2) * line + parity  # odd ones lie behind a border
                first = (row - task.first) * width + parity
                targets.append((place.at(word), first, Rows(width // 2)))
        return targets

    def _pool(self, layer: ConvLayer, own: LayerPlaces, made: list[int]) -> list[int]:
        """The maxima of a layer's results; when each row of them is readable."""
        output = self.places.tensors[layer.name]
        line = self.network.product_size(layer)[1] // 2 + POOL_PAD
        done: list[int] = []
        for first in range(0, output.height, _POOLED_ROWS):
            count = min(_POOLED_ROWS, output.height - first)
            terms = []
            for (odd_row, odd_column), copies in POOL_COPIES.items():
                place = own.taps[odd_row, odd_column]
                for copy in range(copies):
                    down, right = divmod(copy, 2) if odd_row and odd_column else (copy, copy)
                    word = (first + down * odd_row) * line + right * odd_column
                    one = Place(place.queues[copy : copy + 1], word)
                    terms.append((one, Rows(output.width, count, 1, line)))
            targets, pattern = _pixels(output, first, count, 0)
            above = POOL_STRIDE * first - POOL_PAD
            ready = max(made[max(above, 0) : above + POOL_STRIDE * count + POOL_PAD])
            free = self._free(layer.name)
            last, readable = maximum_of_nine(
                self.schedule, self.spec, terms, targets, pattern, max(ready, free)
            )
            self._note_read(f"{layer.name}.taps", last)
            done += [readable] * count
        return done


def _in_turn(tasks: list[Task]) -> list[Task]:
    """The planes' first tasks, then their second ones: results leave in about this order."""
    number: dict[int, int] = {}
    order: list[tuple[int, Task]] = []
    for task in sorted(tasks, key=lambda task: (task.first, task.block)):
        number[task.plane] = number.get(task.plane, 0) + 1
        order.append((number[task.plane], task))
    return [task for _, task in sorted(order, key=lambda pair: pair[0])]


def part_rows(tensor: TensorPlaces) -> list[int]:
    """Image rows of each part of a tensor that is cut by rows, in the order of planes."""
    return cut(tensor.height, -(-tensor.height // tensor.parts))


def _pixels(
    tensor: TensorPlaces, first: int, count: int, tile: int
) -> tuple[dict[int, Place], Rows]:
    """One tile of image rows first..first + count of a tensor, by hemisphere, as rows of words."""
    tiles, line = len(tensor.tiles), tensor.width + 2 * tensor.pad
    word = tensor.at(first, 0) + tile
    places = {side: tensor.copies[side].at(word) for side in (WEST, EAST)}
    return places, Rows(tensor.width, count, tiles, line * tiles)


def compile_network(
    network: Network, spec: ChipSpec, image: NDArray[np.int8] | None = None
) -> Artifact:
    """Compile ``network`` for one chip, its input ``image`` [height, width, channels] in place.

    Without ``image`` there is no memory image (timing only).  Raises CompileError for what does
    not fit.
    """
    if spec.alu_cycles != 3:
        raise CompileError(f"chip.alu_cycles is {spec.alu_cycles}: these kernels are written for 3")
    places = place_network(network, spec)
    scheduler = _Scheduler(network, places, spec)
    for layer in network.layers:
        scheduler.layer(layer)
    table, _, gangs = scheduler.schedule.blocks()
    first = int(table["cycle"].min())
    table["cycle"] -= first
    end = max(scheduler.ends.values()) - first
    return Artifact(
        spec=spec,
        topology="single",
        chips=1,
        programs={ENTRY: [program_of([table], gangs, end)]},
        program_of_chip=[0],
        memory=[[] if image is None else _image(network, places, image)],
        bindings={"outputs": _outputs(network, places)},
        model={
            "workload": network.name,
            "dtype": "int8",
            "sram_used_bytes": places.used_bytes,
            "layer_ends": {name: end - first for name, end in scheduler.ends.items()},
        },
        predicted_cycles={ENTRY: end},
    )


def _outputs(network: Network, places: NetworkPlaces) -> dict[str, Planes]:
    last = network.layers[-1]
    height, width = network.product_size(last)
    return {
        f"logits.{block}": planes_of(place, height * width)
        for block, place in places.layers[last.name].logits.items()
    }


def read_logits(network: Network, places: NetworkPlaces, chip: Chip) -> NDArray[np.float32]:
    """The last layer's float32 output [height, width, channels] after a launch."""
    last = network.layers[-1]
    own = places.layers[last.name]
    height, width = network.product_size(last)
    parts = [
        read_words(chip, own.logits[block], height * width).view(np.float32)[..., 0][:, : GROUP * n]
        for block, n in enumerate(own.blocks)
    ]
    return np.concatenate(parts, axis=1)[:, : last.channels].reshape(height, width, -1)


def read_tensor(network: Network, places: NetworkPlaces, chip: Chip, name: str) -> NDArray[np.int8]:
    """A layer's int8 output [height, width, channels], if nothing has taken its place since."""
    tensor = places.tensors[name]
    place = tensor.copies[EAST]
    words = chip.read_words(place.queues[0], place.address, tensor.words).view(np.int8)
    size = (tensor.height + 2 * tensor.pad, tensor.width + 2 * tensor.pad, len(tensor.tiles), LANES)
    inner = words.reshape(size)[tensor.pad :, tensor.pad :][: tensor.height, : tensor.width]
    parts = [inner[..., tile, :lanes] for tile, lanes in enumerate(tensor.tiles)]
    return np.concatenate(parts, axis=-1)[..., : network.shape_of(name)[2]]


def _image(network: Network, places: NetworkPlaces, values: NDArray[np.int8]) -> Image:
    """The chip's memory before the launch: input, borders, weights, scales, biases."""
    image: Image = []
    if values.shape != network.shape or values.dtype != np.int8:
        raise ValueError(f"the input is {values.dtype} {values.shape}: use int8 {network.shape}")
    _put_input(image, places.tensors[INPUT], values)
    for layer in network.layers:
        parameters, own = network.parameters[layer.name], places.layers[layer.name]
        source = places.tensors[layer.source]
        if source.pad and layer.source != INPUT:
            _put_border(image, source, network.zero_of(layer.source))
        taps = _by_tiles(parameters.weights, source.tiles)
        starts = GROUP * np.cumsum([0, *own.blocks])
        for (_, block), weights in own.weights.items():
            columns = np.zeros((GROUP * own.blocks[block], *taps.shape[1:]), np.int8)
            part = taps[starts[block] : starts[block + 1]]
            columns[: len(part)] = part
            put_weights(image, weights, [columns.swapaxes(0, 1).view(np.uint8)])
        for block, affine in enumerate(own.affine):
            for words, numbers in (
                (affine.scale, parameters.scale),
                (affine.bias, parameters.bias),
            ):
                row = np.zeros((1, LANES), np.float32)
                own_numbers = numbers[starts[block] : starts[block + 1]]
                row[0, : len(own_numbers)] = own_numbers
                for place in words:
                    put_fp32(image, place, 0, row)
    return image


def _by_tiles(weights: NDArray[np.int8], tiles: tuple[int, ...]) -> NDArray[np.int8]:
    """Weights [out, taps, channels] as [out, taps * tiles, 320], channels on their tiles' lanes."""
    out, taps, channels = weights.shape
    lanes = np.zeros((out, taps, len(tiles), LANES), np.int8)
    first = 0
    for tile, width in enumerate(tiles):
        part = weights[..., first : min(first + width, channels)]
        lanes[:, :, tile, : part.shape[-1]] = part
        first += width
    return lanes.reshape(out, taps * len(tiles), LANES)


def _put_border(image: Image, tensor: TensorPlaces, zero: int) -> None:
    """The border of a tensor in all copies: words of its zero point."""
    tiles, line = len(tensor.tiles), tensor.width + 2 * tensor.pad
    inner = range(tensor.height)
    gap = 2 * tensor.pad * tiles  # the end of a line and the begin of the next
    runs = [(0, (line + 1) * tensor.pad * tiles)]
    runs += [(tensor.at(row, tensor.width), gap) for row in inner[:-1]]
    runs.append((tensor.at(tensor.height - 1, tensor.width), (line + 1) * tensor.pad * tiles))
    for copy in tensor.copies:
        for queue in copy.queues:
            for word, words in runs:
                rows = np.full((words, LANES), zero & 0xFF, np.uint8)
                image.append((queue, copy.address + word, rows))


def _put_input(image: Image, tensor: TensorPlaces, values: NDArray[np.int8]) -> None:
    height, width, _ = values.shape
    lanes = _by_tiles(values, tensor.tiles).reshape(height, width, len(tensor.tiles), LANES)
    border = ((tensor.pad, tensor.pad), (tensor.pad, tensor.pad), (0, 0), (0, 0))
    rows = np.pad(lanes, border).view(np.uint8)
    firsts = np.cumsum([0, *part_rows(tensor)])
    for number, plane in enumerate(PLANES):
        own = rows if tensor.parts == 1 else rows[firsts[number] : firsts[number + 1]]
        put_rows(image, tensor.of_plane(plane), [own])
