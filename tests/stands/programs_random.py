"""Random legal programs.

A program is a handful of *scenes*: each scene fetches operands from SRAM, passes them through a
unit and stores the results, with all its cycles relative to each other, so that a scene alone is
legal by construction.  Scenes are laid at random cycles; while the checker objects, the scenes it
names move later, and what still collides at the end is left out.  Scenes meet in SRAM, on
streams, in ALUs and in installed planes.  Every producer is tagged and every operand asks for
its tag, so a value replaced by another scene's is an error too.

Words 0..LAST_WORD of both banks are data; words LOW_MAP and HIGH_MAP of every slice hold offsets
0..7 for GATHER and SCATTER and are never written.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.random import Generator

from chip.checker import ERROR, check
from chip.isa import (
    ALU0,
    IMM,
    LANES,
    MXM_QUEUE,
    SELF,
    SLICES,
    SXM_QUEUE,
    VXM_ARITY,
    VXM_QUEUE,
    AccMode,
    Op,
    alu_stream_groups,
    drive_position,
    sample_position,
    slice_position,
)
from chip.program import Program, expand, new_blocks
from chip.spec import ChipSpec

LAST_WORD, LOW_MAP, HIGH_MAP, WORDS = 39, 60, 61, 64
_VXM_OPS = list(VXM_ARITY)


@dataclass
class Shape:
    """The two repeat levels all blocks of a scene share."""

    n1: int = 1
    dc1: int = 0
    n2: int = 1
    dc2: int = 0

    @property
    def last(self) -> int:
        """Cycle of the last element relative to the first."""
        return max(0, (self.n1 - 1) * self.dc1) + max(0, (self.n2 - 1) * self.dc2)


@dataclass
class Scene:
    """Blocks (column values, cycles relative to the scene) under construction."""

    rng: Generator
    spec: ChipSpec
    tags: int
    blocks: list[dict[str, Any]] = field(default_factory=list)
    used: set[int] = field(default_factory=set)  # slices this scene already reads or writes
    shape: Shape = field(default_factory=Shape)
    plane: tuple[int, bool] = (0, False)  # the plane last installed, and whether as a pair

    def emit(
        self, cycle: int, queue: int, op: Op, shape: Shape | None = None, **columns: Any
    ) -> None:
        """Add a block with the scene's shape (or another)."""
        s = shape or self.shape
        self.blocks.append(
            {
                "cycle": cycle,
                "queue": queue,
                "op": op,
                "n1": s.n1,
                "dc1": s.dc1,
                "n2": s.n2,
                "dc2": s.dc2,
                **columns,
            }
        )

    def tag(self) -> int:
        """A tag no other producer has."""
        self.tags += 1
        return self.tags

    def pick(self, *choices: Any) -> Any:
        """One of ``choices``."""
        return choices[int(self.rng.integers(len(choices)))]

    def slices(self, count: int, good: Callable[[int], bool]) -> list[int]:
        """Distinct unused slices whose position satisfies ``good``."""
        all_slices = [q for q in range(SLICES) if q not in self.used and good(slice_position(q))]
        if len(all_slices) < count:
            raise NoRoomError
        chosen = [int(q) for q in self.rng.choice(all_slices, count, replace=False)]
        self.used.update(chosen)
        return chosen

    def bank(self) -> int:
        """The first word of one of the banks."""
        return int(self.rng.integers(2)) * self.spec.words_per_bank

    def address(self) -> dict[str, int]:
        """Address columns that stay among the data words for the scene's shape."""
        s, bank = self.shape, self.bank()
        da1, da2 = int(self.rng.integers(0, 3)), int(self.rng.integers(0, 3))
        span = (s.n1 - 1) * da1 + (s.n2 - 1) * da2
        if span > LAST_WORD:
            da1 = da2 = span = 0
        first = int(self.rng.integers(0, min(12, LAST_WORD - span) + 1))
        if self.rng.random() < 0.2 and span:  # descending
            return {"a": bank + first + span, "da1": -da1, "da2": -da2}
        return {"a": bank + first, "da1": da1, "da2": da2}

    def fetch(
        self,
        stream: int,
        width: int,
        position: int,
        cycle: int,
        address: dict[str, int] | None = None,
        shape: Shape | None = None,
    ) -> int:
        """READs whose values pass ``position`` at ``cycle`` on ``width`` streams; their tag."""
        east = stream < 32
        queues = self.slices(width, lambda p: p < position if east else p > position)
        tag = self.tag()
        delays = [cycle - self.spec.read_cycles - abs(position - slice_position(q)) for q in queues]
        common = {"tag": tag, "wo": 1, "shape": shape}
        if self.rng.random() < 0.6:
            where = address or self.address()
            self.emit(
                delays[0],
                queues[0],
                Op.READ,
                out=stream,
                dsg=1,
                gang=tuple(queues),
                **where,
                **common,
            )
        else:
            for i, q in enumerate(queues):
                where = address or self.address()
                self.emit(delays[i], q, Op.READ, out=stream + i, **where, **common)
        return tag

    def store(self, stream: int, width: int, position: int, cycle: int, tag: int) -> None:
        """WRITEs of ``width`` streams that are driven at ``position`` in ``cycle``."""
        east = stream < 32
        queues = self.slices(width, lambda p: p > position if east else p < position)
        delays = [cycle + abs(position - slice_position(q)) for q in queues]
        if self.rng.random() < 0.25:
            self.scatter(queues, delays, stream, tag)
        elif self.rng.random() < 0.6:
            self.emit(
                delays[0],
                queues[0],
                Op.WRITE,
                s0=stream,
                w0=1,
                dsg=1,
                want0=tag,
                gang=tuple(queues),
                **self.address(),
            )
        else:
            for i, q in enumerate(queues):
                self.emit(delays[i], q, Op.WRITE, s0=stream + i, w0=1, want0=tag, **self.address())

    def window(self) -> dict[str, int]:
        """A window and base for GATHER and SCATTER (offsets are 0..7)."""
        bank = self.bank()
        base = bank + int(self.rng.integers(0, LAST_WORD - 8))
        lo, hi = base - int(self.rng.integers(0, 3)), base + 7 + int(self.rng.integers(0, 2))
        return {"a": base, "lo": max(lo, bank), "hi": hi}

    def maps(self, stream: int, position: int, cycle: int) -> int:
        """Fetch an offset pair to ``position``; its tag."""
        east = stream < 32
        tag = self.tag()
        low, high = self.slices(2, lambda p: p < position if east else p > position)
        for i, (q, word) in enumerate(((low, LOW_MAP), (high, HIGH_MAP))):
            at = cycle - self.spec.read_cycles - abs(position - slice_position(q))
            word += self.bank()
            self.emit(at, q, Op.READ, out=stream + i, tag=tag, a=word)
        return tag

    def scatter(self, queues: list[int], delays: list[int], stream: int, tag: int) -> None:
        """SCATTERs of a stream group; the map comes along the same or the other way."""
        for i, q in enumerate(queues):
            s1 = self.streams(2)
            want1 = self.maps(s1, slice_position(q), delays[i])
            self.emit(
                delays[i],
                q,
                Op.SCATTER,
                s0=stream + i,
                w0=1,
                s1=s1,
                w1=2,
                want0=tag,
                want1=want1,
                **self.window(),
            )

    def streams(self, width: int, east: bool | None = None) -> int:
        """A stream group of a power-of-two width, aligned."""
        first = int(self.rng.integers(32 // width)) * width
        if east is None:
            east = bool(self.rng.integers(2))
        return first if east else first + 32


class NoRoomError(Exception):
    """The scene found no slices where it needed them."""


def _copy(s: Scene) -> None:
    """SRAM to SRAM on one stream group, sometimes with several readers."""
    width = s.pick(1, 1, 2, 4, 16)
    stream = s.streams(width)
    tag = s.fetch(stream, width, 22, 0)
    for _ in range(s.pick(1, 1, 2)):
        s.store(stream, width, 22, 0, tag)


def _pair(s: Scene) -> None:
    """A slice that reads one bank and writes the other in the same cycles."""
    stream, other = s.streams(1), s.streams(1)
    (q,) = s.slices(1, lambda p: 12 < p < 32)
    position = slice_position(q)
    bank = s.bank()
    other_bank = s.spec.words_per_bank - bank
    tag, back = s.fetch(stream, 1, position, 0), s.tag()
    s.emit(0, q, Op.WRITE, s0=stream, w0=1, want0=tag, a=bank + s.pick(0, 3, 9))
    s.emit(0, q, Op.READ, out=other, wo=1, tag=back, a=other_bank + s.pick(0, 3, 9))
    s.store(other, 1, position, s.spec.read_cycles, back)


def _gather(s: Scene) -> None:
    """A table lookup through a map."""
    stream, s1 = s.streams(1), s.streams(2)
    count = s.pick(1, 1, 3) if (stream < 32) == (s1 < 32) else 1
    queues = s.slices(count, lambda p: 12 < p < 32)
    queues.sort(key=slice_position, reverse=stream >= 32)
    stream = min(stream, (31 if stream < 32 else 63) - count + 1)
    want1, tag = s.maps(s1, slice_position(queues[0]), 0), s.tag()
    s.emit(
        0,
        queues[0],
        Op.GATHER,
        out=stream,
        dsg=1,
        gang=tuple(queues),
        s1=s1,
        w1=2,
        wo=1,
        tag=tag,
        want1=want1,
        **s.window(),
    )
    for i in range(count):
        s.store(stream + i, 1, slice_position(queues[0]), s.spec.gather_cycles, tag)


def _alu_stream(s: Scene, alu: int, width: int, east: bool, avoid: int = -1) -> tuple[int, int]:
    """(stream, SG4 number) that ALU ``alu`` reaches, not in SG4 ``avoid``."""
    group = s.pick(*(g for g in alu_stream_groups(alu) if g != avoid))
    return group * 4 + s.pick(*range(0, 4, width)) + (0 if east else 32), group


def _vxm(s: Scene) -> None:
    """A chain of ALU operations with streams, immediates, earlier results and ``self``."""
    spec, cycle, previous, previous_tag = s.spec, 0, -1, 0
    length = int(s.rng.integers(1, 6))
    alus = [int(k) for k in s.rng.choice(16, length, replace=False)]
    for step, alu in enumerate(alus):
        op = Op(s.pick(*_VXM_OPS))
        columns: dict[str, Any] = {"imm": int(s.rng.integers(-(2**31), 2**31)), "tag": s.tag()}
        avoid = -1
        chained = int(s.rng.integers(VXM_ARITY[op])) if previous >= 0 else -1
        for i in range(VXM_ARITY[op]):
            roll = s.rng.random()
            if i == chained:
                columns[f"s{i}"] = ALU0 + previous
                columns[f"want{i}"] = previous_tag
            elif roll < 0.6 or step == 0:
                width, east = s.pick(1, 2, 4, 4), bool(s.rng.integers(2))
                stream, avoid = _alu_stream(s, alu, width, east, avoid)
                columns[f"s{i}"], columns[f"w{i}"] = stream, width
                position = sample_position(VXM_QUEUE + alu, stream)
                columns[f"want{i}"] = s.fetch(stream, width, position, cycle)
            elif roll < 0.8:
                columns[f"s{i}"] = SELF
                early = cycle - spec.alu_cycles - s.pick(0, 0, 1, 5)
                s.emit(early, VXM_QUEUE + alu, Op.MOV, Shape(), s0=IMM, imm=int(s.rng.integers(99)))
            else:
                columns[f"s{i}"] = IMM
        if step == length - 1 or s.rng.random() < 0.2:
            width, east = s.pick(1, 2, 4, 4), bool(s.rng.integers(2))
            stream, _ = _alu_stream(s, alu, width, east)
            columns |= {"out": stream, "wo": width}
            position = drive_position(VXM_QUEUE + alu, stream)
            due = cycle + spec.alu_entry_cycles + spec.alu_cycles
            s.store(stream, width, position, due, columns["tag"])
        s.emit(cycle, VXM_QUEUE + alu, op, **columns)
        previous, previous_tag, cycle = alu, columns["tag"], cycle + spec.alu_cycles


def _mxm(s: Scene) -> None:
    """Installs on one plane (int8) or a pair (fp16), activations, accumulation, emission."""
    spec, wide = s.spec, bool(s.rng.integers(2))
    plane = int(s.rng.integers(4)) & (2 if wide else 3)
    s.plane = (plane, wide)
    groups = s.pick(1, 1, 2, 3, 4, 20)
    s.shape = Shape()
    cycle, summed = 0, 0
    planes = (plane, plane + 1)[: 1 + wide]
    for _ in range(s.pick(1, 1, 2)):
        _install(s, planes, groups, cycle)
        cycle += groups + 1
        cycle += spec.mxm_install_cycles + s.pick(0, 1, 2, 9)
        rows, step = s.pick(1, 1, 2, 2, 3, 3, 5, 5, 9, 17, 33), s.pick(1, 2, 4) + wide
        planes = s.pick(planes, planes[:1], planes[-1:])  # one of a pair is reloaded alone
        if s.pick(0, 0, 1):  # between activations of one block
            again = spec.mxm_reload_gap_cycles + step
            rows, step = 2, again + groups + 1 + spec.mxm_install_cycles
            _install(s, planes, groups, cycle + again)
        s.shape, first = Shape(rows, step), int(s.rng.integers(0, 6))
        _activate(s, plane, wide, cycle, first, s.pick(0, 1) if rows == summed else 0)
        summed = rows if first == 0 else 0
        cycle += spec.mxm_reload_gap_cycles + rows * step
        s.shape = Shape()


def _install(s: Scene, planes: tuple[int, ...], groups: int, cycle: int) -> None:
    """Load and install ``groups`` on each plane, from ``cycle`` on."""
    load = Shape(groups, 1)
    for p in planes:
        stream = (16 * (p % 2)) + (0 if p >= 2 else 32)
        queue = MXM_QUEUE + 2 * p
        bank = s.pick(0, s.spec.words_per_bank)
        address = {"a": int(s.rng.integers(0, 12)) + bank, "da1": 1}
        tag = s.fetch(stream, 16, sample_position(queue, stream), cycle, address, load)
        s.emit(cycle, queue, Op.LW, load, a=0, da1=1, s0=stream, w0=16, want0=tag)
        s.emit(cycle + groups + s.pick(0, 0, 1), queue, Op.IW, a=groups)


def _activate(s: Scene, plane: int, wide: bool, cycle: int, row: int, add: int) -> None:
    """Activations, their ACC and the stores of what it emits."""
    spec, outward, width = s.spec, plane >= 2, 1 + wide
    queue = MXM_QUEUE + 2 * plane + 1
    stream = s.streams(width, outward)
    tag = s.fetch(stream, width, sample_position(queue, stream), cycle)
    s.emit(cycle, queue, Op.ABC, s0=stream, w0=width, want0=tag)
    cycle += spec.mxm_multiply_cycles
    emit = s.rng.random() < 0.7
    mode, back, out = AccMode((2 if emit else 0) + add), s.tag(), s.streams(4, not outward)
    s.emit(
        cycle,
        queue,
        Op.ACC,
        a=0 if add else row,
        da1=s.pick(0, 1) if not add else 0,
        mode=mode,
        out=out if emit else -1,
        wo=4 if emit else 0,
        tag=back,
    )
    if emit:
        s.store(out, 4, drive_position(queue, out), cycle + spec.mxm_accumulate_cycles, back)


def _mxm_again(s: Scene) -> None:
    """More activations and additions on whatever plane and rows other scenes prepared."""
    plane, wide = s.plane
    s.shape = Shape(s.pick(1, 2), 2)
    _activate(s, plane, wide, 0, int(s.rng.integers(0, 6)), s.pick(0, 1, 1))


def _sxm(s: Scene) -> None:
    """One of the five lane operations."""
    spec, west = s.spec, bool(s.rng.integers(2))
    base = SXM_QUEUE + (0 if west else 8)
    op = s.pick(Op.DISTRIBUTE, Op.TRANSPOSE, Op.PERMUTE, Op.SHIFT, Op.ROTATE)
    columns: dict[str, Any] = {"tag": s.tag()}
    width, width_out = 1, 1
    if op == Op.DISTRIBUTE:
        width = width_out = s.pick(1, 2, 4, 8)
        s0 = s.streams(8, not west) + int(s.rng.integers(0, 9 - width))
        out = s.streams(8, west) + int(s.rng.integers(0, 9 - width))
        queue, delay = base + s0 % 32 // 8, spec.distribute_cycles
        s1 = s.streams(1, not west)
        if s0 <= s1 < s0 + width:
            s1 ^= 16
        columns |= {"s1": s1, "w1": 1}
        low_map = {"a": LOW_MAP}
        columns["want1"] = s.fetch(
            s1, 1, sample_position(queue, s1), 0, low_map if s.rng.random() < 0.7 else None
        )
    elif op == Op.TRANSPOSE:
        width = width_out = 16
        s0, out = s.streams(16, not west), s.streams(16, west)
        queue, delay = base + 4 + s0 % 32 // 16, spec.transpose_cycles
    else:
        s0, out, queue = s.streams(1, not west), s.streams(1, west), base + 6
        delay = spec.permute_cycles if op == Op.PERMUTE else spec.shift_cycles
        columns["imm"] = s.pick(0, 1) if op == Op.PERMUTE else int(s.rng.integers(-330, 331))
        if op == Op.ROTATE:
            n = s.pick(3, 4)
            out = int(s.rng.integers(0, 33 - n * n)) + (0 if west else 32)
            width_out, queue, delay = n * n, base + 7, spec.rotate_cycles
            columns["imm"] = n
    columns["want0"] = s.fetch(s0, width, sample_position(queue, s0), 0)
    s.emit(0, queue, op, s0=s0, w0=width, out=out, wo=width_out, **columns)
    if s.rng.random() < 0.9:
        kept = width_out if width_out <= 8 else s.pick(1, 4, width_out)
        s.store(out, kept, drive_position(queue, out), delay, columns["tag"])


def _send(s: Scene) -> None:
    """Vectors leave through a link; several links may take the same one."""
    s.shape = Shape(s.pick(1, 2, 3), s.spec.send_spacing_cycles + s.pick(0, 0, 5))
    east = bool(s.rng.integers(2))
    stream = s.streams(1, east)
    tag = s.fetch(stream, 1, 45 if east else -1, 0)
    for link in s.rng.choice(8, s.pick(1, 2), replace=False):
        s.emit(0, 128 + int(link) + (8 if east else 0), Op.SEND, s0=stream, w0=1, want0=tag)
    if s.rng.random() < 0.3:
        s.emit(7, 128 + int(s.rng.integers(16)), Op.DESKEW, Shape())


def _barrier(s: Scene) -> None:
    """Queues park; a NOTIFY releases them; one of them reads at once."""
    s.shape = Shape()
    (q,) = s.slices(1, lambda p: 10 < p < 34)
    notify = s.pick(0, 0, 1, 12)
    s.emit(0, q, Op.SYNC)
    for queue in s.rng.choice(np.arange(88, 144), s.pick(0, 1, 3), replace=False):
        s.emit(0, int(queue), Op.SYNC)
    s.emit(notify, 127 if s.rng.random() < 0.5 else 43, Op.NOTIFY)
    after = notify + s.spec.notify_cycles + s.pick(0, 1)
    stream, tag = s.streams(1), s.tag()
    s.emit(after, q, Op.READ, out=stream, wo=1, tag=tag, **s.address())
    s.store(stream, 1, slice_position(q), after + s.spec.read_cycles, tag)


_SCENES = (
    _copy,
    _copy,
    _pair,
    _gather,
    _vxm,
    _vxm,
    _vxm,
    _mxm,
    _mxm,
    _mxm_again,
    _mxm_again,
    _sxm,
    _sxm,
    _send,
    _barrier,
)


def _shape(rng: Generator) -> Shape:
    roll = rng.random()
    if roll < 0.35:
        return Shape()
    n1, dc1 = int(rng.integers(2, 7)), int(rng.integers(1, 5))
    if roll < 0.7:
        return Shape(n1, dc1)
    if roll < 0.85:  # interleaved levels
        return Shape(n1, 2 * dc1, 2, dc1 if dc1 % 2 else 1)
    return Shape(n1, dc1, int(rng.integers(2, 4)), n1 * dc1 + int(rng.integers(0, 9)))


def _scene(rng: Generator, spec: ChipSpec, before: Scene | None) -> Scene:
    while True:
        scene = Scene(rng, spec, 0, shape=_shape(rng))
        if before is not None:
            scene.tags, scene.plane = before.tags, before.plane
        try:
            _SCENES[int(rng.integers(len(_SCENES)))](scene)
        except NoRoomError:
            continue
        first = min(int(b["cycle"]) for b in scene.blocks) - 60  # gangs may start earlier
        for block in scene.blocks:
            block["cycle"] -= first
        return scene


def _assemble(scenes: list[Scene], starts: list[int], maps: list[Any]) -> tuple[Program, list[int]]:
    """The program and the scene number of each block."""
    blocks = [(b, i) for i, s in enumerate(scenes) for b in s.blocks]
    table, gangs = new_blocks(len(blocks)), []
    for row, (block, i) in zip(table, blocks, strict=True):
        for name, value in block.items():
            if name == "gang":
                gangs.append(value)
                value = len(gangs) - 1
            row[name] = value
        row["cycle"] += starts[i]
    return Program(table, gangs, maps), [i for _, i in blocks]


def random_program(rng: Generator, spec: ChipSpec, scenes: int = 12) -> Program:
    """A legal program of fewer than 500 dispatch cycles."""
    maps = [rng.permutation(LANES).astype(np.int16) for _ in range(2)]
    cast: list[Scene] = []
    for _ in range(int(rng.integers(1, scenes + 1))):
        cast.append(_scene(rng, spec, cast[-1] if cast else None))
    starts = [int(rng.integers(-50, 120)) for _ in cast]
    for attempt in range(40):
        program, owner = _assemble(cast, starts, maps)
        guilty = {owner[f.block] for f in check(program, spec) if f.severity == ERROR}
        if not guilty:
            break
        if attempt >= 8:
            guilty = {max(guilty)}
            cast = [s for i, s in enumerate(cast) if i not in guilty]
            starts = [t for i, t in enumerate(starts) if i not in guilty]
        else:
            for i in guilty:
                starts[i] += int(rng.integers(1, 12)) if starts[i] < 250 else -97
    else:
        raise AssertionError("no legal program after 40 attempts")
    if not cast:
        return random_program(rng, spec, scenes)
    order = rng.permutation(len(program.blocks))
    return replace(program, blocks=program.blocks[order], cycles=last_effect(program, spec))


def last_effect(program: Program, spec: ChipSpec) -> int:
    """Cycle at which a legal program's last effect has taken place."""
    after = {
        Op.READ: spec.read_cycles,
        Op.WRITE: spec.write_cycles,
        Op.GATHER: spec.gather_cycles,
        Op.SCATTER: spec.write_cycles,
        Op.IW: spec.mxm_install_cycles,
        Op.ABC: spec.mxm_multiply_cycles,
        Op.DISTRIBUTE: spec.distribute_cycles,
        Op.TRANSPOSE: spec.transpose_cycles,
        Op.PERMUTE: spec.permute_cycles,
        Op.SHIFT: spec.shift_cycles,
        Op.ROTATE: spec.rotate_cycles,
        Op.NOTIFY: spec.notify_cycles,
    }
    last = 0
    for row in expand(program):
        op = Op(int(row["op"]))
        delay = after.get(op, 0)
        if op in VXM_ARITY:
            delay = spec.alu_cycles + (spec.alu_entry_cycles if row["wo"] else 0)
        elif op == Op.ACC and row["mode"] in (AccMode.SET_EMIT, AccMode.ADD_EMIT):
            delay = spec.mxm_accumulate_cycles
        last = max(last, int(row["cycle"]) + delay)
    return last


def fill_words(rng: Generator) -> Any:
    """Contents uint8 [88, 2, WORDS, 320] for words 0..WORDS-1 of both banks."""
    words = rng.integers(0, 256, (SLICES, 2, WORDS, LANES), dtype=np.uint8)
    words[:, :, LOW_MAP, ::16] &= 7
    words[:, :, HIGH_MAP, ::16] = 0
    return words
