"""The compiler of encoders: one layer scheduled once, relocated for every layer of every chip.

Chips of a node form a pipeline: each has some consecutive layers, receives its input from the chip
before it and sends its output to the next one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from chip import isa
from chip.isa import LANES, Op
from chip.program import BlockTable, Program
from chip.scheduling import (
    CompileError,
    Pass,
    Place,
    Schedule,
    Stream,
    Symbol,
    program_of,
    relocate,
    rename_tags,
    translate_gangs,
)
from chip.spec import ChipSpec
from interconnect.wiring import NODE_SIZES, link_to, node_cables
from programs.artifact import Artifact
from programs.encoder import kernels as k
from programs.encoder.image import encoder_image
from programs.encoder.places import EncoderPlaces, place_encoder, side_of
from programs.encoder.shape import Bits, EncoderLayer, EncoderShape
from programs.kernels import EAST, Finish, RowOperand, Rows, Weights, product
from programs.sram import Image

ENTRY = "encoder"
_PLANE = (0, 2)  # the pair of each hemisphere
_COLUMN = 16


def _both(places: list[Place], tile: int, tiles: int) -> dict[int, Sequence[k.Target]]:
    """fp16 rows of one tile at the west and the east place."""
    return {side: [k.rows_at(place.at(tile), tiles)] for side, place in enumerate(places)}


@dataclass
class _LayerScheduler:
    """Places one layer, its input readable from ``origin`` on."""

    places: EncoderPlaces
    spec: ChipSpec
    schedule: Schedule = field(default_factory=Schedule)
    free: list[int] = field(default_factory=lambda: [0, 0])  # pairs: first row may be read from

    def __post_init__(self) -> None:
        self.passes = k.Passes(self.schedule, self.spec, self.places.shape.tokens)

    def _item(
        self,
        side: int,
        weights: Weights,
        operand: RowOperand,
        ready: int,
        weights_ready: int,
        finish: Finish,
    ) -> int:
        placed = product(
            self.schedule,
            self.spec,
            _PLANE[side],
            weights,
            operand,
            max(ready, self.free[side]),
            weights_ready,
            finish,
        )
        self.free[side] = placed.next_read
        return placed.ready

    def _rows(self, place: Place, tiles: int) -> RowOperand:
        return RowOperand(place, Rows(self.places.shape.tokens, dx=tiles), tuple(range(tiles)))

    def layer(self, origin: int) -> int:
        """Both sublayers; when the output is readable."""
        e, shape = self.places, self.places.shape
        tiles = len(shape.tiles)
        mixed = self._attention(origin)
        sums = []
        for t, weights in enumerate(e.weights["o"]):
            side = side_of(t)
            finish = self._sum("o_bias", t, side, 0)
            operand = self._rows(e.sides[side].mixed, tiles)
            sums.append(self._item(side, weights, operand, mixed, 0, finish))
        ready = self._normalised(sums, 1)
        inner = len(shape.ffn_tiles)
        ups = []
        for u, weights in enumerate(e.weights["up"]):
            side = side_of(u)
            finish = k.add_bias(e.vectors["up_bias"][u], e.inner[u])
            ups.append(
                self._item(side, weights, self._rows(e.sides[side].x[1], tiles), ready, 0, finish)
            )
        done = 0
        for u, up in enumerate(ups):
            targets = _both([own.hidden for own in e.sides], u, inner)
            done = max(done, self.passes.gelu(side_of(u), e.inner[u], targets, up))
        sums = []
        for t, weights in enumerate(e.weights["down"]):
            side = side_of(t)
            finish = self._sum("down_bias", t, side, 1)
            operand = self._rows(e.sides[side].hidden, inner)
            sums.append(self._item(side, weights, operand, done, 0, finish))
        return self._normalised(sums, 2)

    def _sum(self, bias: str, t: int, side: int, sublayer: int) -> Finish:
        """Bias and residual; the sums as fp32 here and as fp16 in both hemispheres."""
        e, tiles = self.places, len(self.places.tiles)
        halves = _both([own.sums for own in e.sides], t, tiles)
        residual = e.sides[side].residual[sublayer].at(t)
        return k.add_residual(e.vectors[bias][t], residual, tiles, e.tiles[t].sum, halves)

    def _attention(self, origin: int) -> int:
        e, shape = self.places, self.places.shape
        tiles, groups = len(shape.tiles), shape.tokens // _COLUMN
        ready: dict[tuple[str, int], int] = {}
        for name in ("k", "q", "v"):
            for t, weights in enumerate(e.weights[name]):
                side, tile = side_of(t), e.tiles[t]
                targets = {
                    "k": k.rows_at(tile.keys, 1),
                    "q": k.columns_at(tile.query, groups, 0),
                    "v": k.columns_at(tile.values, groups, 0),
                }
                bias = e.vectors["q_bias"][t] if name == "q" else None
                operand = self._rows(e.sides[side].x[0], tiles)
                finish = k.halve({side: [targets[name]]}, bias)
                ready[name, t] = self._item(side, weights, operand, origin, 0, finish)
        turned = [self._turn_values(t, ready["v", t]) for t in range(tiles)]
        masked: dict[tuple[int, int], int] = {}
        for t, tile in enumerate(e.tiles):
            for first in range(0, len(tile.heads), 2):
                pair = slice(first, first + 2)
                at = self.passes.mask_keys(
                    side_of(t), tile.keys, tile.masks[pair], tile.heads[pair], ready["k", t]
                )
                masked[t, first] = masked[t, first + 1] = at
        heads = [(t, h) for t, tile in enumerate(e.tiles) for h in range(len(tile.heads))]
        done: dict[tuple[int, int], int] = {}
        rows = Rows(shape.tokens)
        for t, h in heads:
            head, weights = e.tiles[t].heads[h], Weights(e.tiles[t].query, groups)
            done[t, h] = self._item(
                side_of(t),
                weights,
                RowOperand(head.keys, rows, (0,)),
                masked[t, h],
                ready["q", t],
                k.scores(head),
            )
        for step in ("maximum", "exponentials", "inverse", "shares"):
            for t, h in heads:
                kernel = getattr(self.passes, step)
                done[t, h] = kernel(side_of(t), e.tiles[t].heads[h], done[t, h])
        for t, h in heads:
            side, head = side_of(t), e.tiles[t].heads[h]
            operand = RowOperand(e.sides[side].identity, rows, (0,))
            finish = k.halve({side: [k.rows_at(head.rows, 1)]})
            done[t, h] = self._item(
                side, Weights(head.columns, groups), operand, 0, done[t, h], finish
            )
        return max(
            self._mix(t, max(done[t, h] for h in range(len(tile.heads))), turned[t])
            for t, tile in enumerate(e.tiles)
        )

    def _turn_values(self, t: int, ready: int) -> int:
        """Values with tokens on lanes: a product of one-hot rows with the values as weights."""
        e, shape = self.places, self.places.shape
        side, tile = side_of(t), e.tiles[t]
        own, whole = shape.head_size // _COLUMN, tile.lanes // _COLUMN
        low, high = tile.turned
        target = k.columns_at((low.at(whole - own), high.at(whole - own)), own, whole)
        operand = RowOperand(e.sides[side].identity, Rows(tile.lanes), (0,))
        weights = Weights(tile.values, shape.tokens // _COLUMN)
        return self._item(side, weights, operand, 0, ready, k.halve({side: [target]}))

    def _mix(self, t: int, rows_ready: int, values_ready: int) -> int:
        """All heads of a tile: a K step for each, its values in its own columns, zeros beside."""
        e, shape = self.places, self.places.shape
        side, tile, tiles = side_of(t), e.tiles[t], len(shape.tiles)
        own, whole = shape.head_size // _COLUMN, tile.lanes // _COLUMN
        heads = len(tile.heads)
        offsets = tuple((whole - own) + h * (whole - own) for h in range(heads))
        weights = Weights(tile.turned, whole, offsets)
        steps = tuple(h * shape.tokens for h in range(heads))
        operand = RowOperand(tile.heads[0].rows, Rows(shape.tokens), steps)
        targets = _both([own.mixed for own in e.sides], t, tiles)
        return self._item(side, weights, operand, rows_ready, values_ready, k.halve(targets))

    def _normalised(self, sums: list[int], number: int) -> int:
        """Layer normalisation of the sums into the next input; when it is readable."""
        e, shape = self.places, self.places.shape
        tiles, share = len(shape.tiles), float(np.float32(1.0 / shape.hidden))
        averaged = [
            self._over_lanes(side, e.sides[side].sums, max(sums), k.mean(share, own.mean))
            for side, own in enumerate(e.sides)
        ]
        squared = [0]
        for t, tile in enumerate(e.tiles):
            side = side_of(t)
            halves = _both([own.squares for own in e.sides], t, tiles)
            squared.append(
                self.passes.centre(
                    side,
                    tile.sum,
                    e.sides[side].mean,
                    tile.centred,
                    halves,
                    max(averaged[side], sums[t]),
                )
            )
        factors = [
            self._over_lanes(side, own.squares, max(squared), k.inverse_root(share, own.factor))
            for side, own in enumerate(e.sides)
        ]
        ready, into = 0, number % 2
        for t, tile in enumerate(e.tiles):
            side = side_of(t)
            rows: dict[int, Sequence[k.Target]] = {
                s: [k.rows_at(place.at(t), tiles) for place in (own.x[into], own.residual[into])]
                for s, own in enumerate(e.sides)
            }
            gain, shift = (e.vectors[f"{name}{number}"][t] for name in ("gain", "shift"))
            ready = max(
                ready,
                self.passes.normalise(
                    side,
                    tile.centred,
                    e.sides[side].factor,
                    gain,
                    shift,
                    rows,
                    max(factors[side], squared[t + 1]),
                ),
            )
        return ready

    def _over_lanes(self, side: int, rows: Place, ready: int, finish: Finish) -> int:
        """fp16 rows summed over all tiles and lanes, on every lane."""
        e, tiles = self.places, self.places.shape.tiles
        own = e.sides[side]
        words = tuple(e.widths.index(lanes) for lanes in tiles)
        weights = Weights((own.zeros, own.ones), LANES // _COLUMN, words, same=True)
        return self._item(side, weights, self._rows(rows, len(tiles)), ready, 0, finish)


@dataclass
class _Segment:
    """A piece of a program: its blocks from cycle 0 on, and when what it makes is readable."""

    table: BlockTable
    symbols: list[Symbol | None]
    gangs: list[tuple[int, ...]]
    end: int
    moves: int = 0  # cycle of the first SEND or RECEIVE


def _segment(schedule: Schedule, end: int, op: Op | None = None) -> _Segment:
    table, symbols, gangs = schedule.blocks()
    first = int(table["cycle"].min())
    table["cycle"] -= first
    moves = 0 if op is None else int(table["cycle"][table["op"] == op].min())
    return _Segment(table, symbols, gangs, end - first, moves)


def _sender(places: EncoderPlaces, spec: ChipSpec, neighbour: int) -> _Segment:
    """Send the output's words to the chip whose number differs by XOR ``neighbour``."""
    schedule, side = Schedule(), EAST if neighbour >= 4 else 0
    p = Pass(schedule, spec)
    words, spacing = places.shape.tokens * len(places.tiles), spec.send_spacing_cycles
    queue, code = isa.C2C_QUEUE + link_to(neighbour), k.outward(side, 7)
    value = p.load(
        places.sides[side].x[0], code, 60, queue, n=words, dc=2 * spacing, da=1, dsg=0, dcg=spacing
    )
    p.emit(Op.SEND, queue, 60, n=2 * words, dc=spacing, s0=code, w0=1, want0=value.tag)
    start = schedule.place(p, 0, "sender")
    return _segment(schedule, start + p.span(), Op.SEND)


def _receiver(places: EncoderPlaces, spec: ChipSpec, neighbour: int) -> _Segment:
    """Take what the chip before sends, to both hemispheres."""
    schedule, side = Schedule(), EAST if neighbour >= 4 else 0
    p = Pass(schedule, spec)
    words, spacing = places.shape.tokens * len(places.tiles), spec.send_spacing_cycles
    code, tag = k.inward(side, 7), schedule.tag()
    p.emit(
        Op.RECEIVE,
        isa.C2C_QUEUE + link_to(neighbour),
        0,
        n=2 * words,
        dc=spacing,
        out=code,
        wo=1,
        tag=tag,
    )
    edge = isa.EAST_EDGE if side == EAST else isa.WEST_EDGE
    other = isa.WEST_EDGE if side == EAST else isa.EAST_EDGE
    at = spec.receive_cycles
    p.drive(code, 1, isa.diagonal(code, edge, at) + spacing * np.arange(2 * words), edge, other)
    for own in places.sides:
        for target in (own.x[0], own.residual[0]):
            p.store(target, Stream(code, 1, tag), at, edge, n=words, dc=2 * spacing, dcg=spacing)
    start = schedule.place(p, 0, "receiver")
    return _segment(schedule, start + p.ready, Op.RECEIVE)


def layers_of_chips(layers: int, chips: int) -> list[int]:
    """How many consecutive layers each chip has."""
    return [layers // chips + (chip < layers % chips) for chip in range(chips)]


def compile_encoder(
    shape: EncoderShape,
    spec: ChipSpec,
    chips: int = 1,
    layers: list[EncoderLayer] | None = None,
    x: Bits | None = None,
) -> Artifact:
    """Compile an encoder for ``chips`` chips of a node, with its data if given (else timing only).

    Raises CompileError when it does not fit.
    """
    if spec.alu_cycles != 3:
        raise CompileError(f"chip.alu_cycles is {spec.alu_cycles}: these kernels are written for 3")
    if chips not in NODE_SIZES or chips > shape.layers:
        raise CompileError(
            f"{chips} chips for {shape.layers} layers: use 1, 2, 4 or 8, at most one for each layer"
        )
    counts = layers_of_chips(shape.layers, chips)
    places = place_encoder(shape, counts[0], spec)
    scheduler = _LayerScheduler(places, spec)
    end = scheduler.layer(0)
    layer = _segment(scheduler.schedule, end)
    programs: list[Program] = []
    clock = sent = 0
    for chip, count in enumerate(counts):
        gangs: list[tuple[int, ...]] = []
        tables: list[BlockTable] = []

        def add(
            part: _Segment,
            bases: dict[Symbol, int],
            cycle: int,
            tables: list[BlockTable] = tables,
            gangs: list[tuple[int, ...]] = gangs,
        ) -> None:
            copy = relocate(part.table, part.symbols, bases, cycle)
            translate_gangs(copy, part.gangs, gangs)
            rename_tags(copy, len(tables) << 16)
            tables.append(copy)

        if chip:
            receiver = _receiver(places, spec, chip ^ (chip - 1))
            cycle = sent + spec.send_to_receive_cycles - receiver.moves
            add(receiver, {}, cycle)
            clock = cycle + receiver.end
        for number in range(count):
            add(layer, places.bases[number], clock)
            clock += layer.end
        if chip + 1 < chips:
            sender = _sender(places, spec, chip ^ (chip + 1))
            add(sender, {}, clock)
            sent = clock + sender.moves
        programs.append(program_of(tables, gangs, 0))
    for program in programs:
        program.cycles = clock
    memory: list[Image] = [[] for _ in range(chips)]
    if layers is not None and x is not None:
        firsts = np.cumsum([0, *counts])
        memory = [
            encoder_image(places, layers[firsts[chip] : firsts[chip + 1]], x if chip == 0 else None)
            for chip in range(chips)
        ]
    return Artifact(
        spec=spec,
        topology="single" if chips == 1 else f"node-{chips}",
        chips=chips,
        cables=node_cables(chips),
        programs={ENTRY: programs},
        program_of_chip=list(range(chips)),
        memory=memory,
        bindings={"outputs": {}},
        model={
            "workload": "encoder",
            "dtype": "fp16",
            "layers": shape.layers,
            "hidden": shape.hidden,
            "heads": shape.heads,
            "ffn": shape.ffn,
            "tokens": shape.tokens,
            "sram_used_bytes": places.used_bytes,
            "layer_cycles": layer.end,
        },
        predicted_cycles={ENTRY: clock},
    )
