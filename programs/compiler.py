"""The compiler: a partitioned decoder becomes one cycle-tagged program per context bucket.

partition -> place (programs.decoder) -> schedule one layer and the head (kernels into a
reservation table) -> relocate the layer in time and memory for all layers -> artifact.
Every chip runs the same program; what differs is what its SRAM holds.  A decode program feeds one
token and ends in logits; a prefill program is the same without the head.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from chip.passes import CompileError
from chip.program import BlockTable, Program
from chip.reservation import Place, Schedule, relocate
from chip.reservation import program_of as join_tables
from chip.spec import ChipSpec
from interconnect.collectives import exchange, reduce
from interconnect.node import node_cables
from programs.artifact import Artifact
from programs.attention import append_values, attend, rope
from programs.decoder import DecoderPlaces, LayerMatrices, MatrixPlaces, memory_image, place_decoder
from programs.ffn import swiglu
from programs.matmul import Activations, matmul16_round, matmul_round
from programs.norm import dynamic_factor, halve, norm_factor, quantise
from programs.partition import PartitionedModel

#: Context buckets in positions; a program scores every position of its bucket.
BUCKETS = (64, 128, 256, 512, 1024, 2048)


#: Room before x is read in which a layer's first weights are loaded.
LEAD_CYCLES = 400


@dataclass
class _Numbers:
    """Model constants the kernels need as immediates."""

    inv_h: float
    eps: float
    gain: float


class _Scheduler:
    """Kernels of one decoder step, placed as early as their data and the machine allow."""

    def __init__(self, spec: ChipSpec, places: DecoderPlaces, numbers: _Numbers) -> None:
        self.spec = spec
        self.places = places
        self.numbers = numbers
        self.schedule = Schedule()

    def _normed(self, ready: int) -> int:
        """x normed into the activation words."""
        s, d, layout = self.places, self.schedule, self.places.layout
        int8 = s.dtype == "int8"
        ready = norm_factor(
            d, self.spec, s.x, layout.x_tiles, ready, s.constants, self.numbers.inv_h,
            self.numbers.eps, self.numbers.gain if int8 else None, s.factor,
        )  # fmt: skip
        kernel = quantise if int8 else halve
        return kernel(d, self.spec, s.x, layout.x_tiles, ready, s.factor, s.act)

    def _activated(self, x: Place, tiles: int, ready: int) -> tuple[int, Place | None]:
        """Other inputs of a matmul into the activation words, with their dynamic scale."""
        s, d = self.places, self.schedule
        if s.dtype == "int8":
            ready = dynamic_factor(
                d, self.spec, x, tiles, ready, s.constants, s.factor, s.dynamic
            )
            return quantise(d, self.spec, x, tiles, ready, s.factor, s.act), s.dynamic
        return halve(d, self.spec, x, tiles, ready, None, s.act), None

    def _matmul(
        self, m: MatrixPlaces, k_tiles: int, ready: int, dynamic: Place | None,
        targets: list[Place],
    ) -> list[int]:  # fmt: skip
        """All rounds of a product; when each column block's result is readable."""
        done: list[int] = []
        for number, blocks in enumerate(m.rounds):
            here = targets[len(done) : len(done) + len(blocks)]
            if self.places.dtype == "int8":
                at = matmul_round(
                    self.schedule, self.spec, blocks, k_tiles, self.places.act, ready,
                    m.scales[number], dynamic, here,
                )  # fmt: skip
            else:
                at = matmul16_round(
                    self.schedule, self.spec, blocks, k_tiles, self.places.act, ready, here
                )
            done += [at] * len(blocks)
        return done

    def _append(self, ready_k: int, ready_v: int, v: Place) -> tuple[int, int]:
        """Replicated K and V to the lanes of their query heads, then to the cache."""
        s, d, layout = self.places, self.schedule, self.places.layout
        a, kt = s.attention, layout.kv_tiles
        narrow = Place(s.narrow.queues, s.narrow.address)
        values = [narrow.at(kt + i) for i in range(kt)]
        ready_v = append_values(d, self.spec, v, ready_v, a, values, scatter=False)
        done: list[int] = []
        for first, ready, targets in ((0, ready_k, a.keys), (kt, ready_v, a.values)):
            act = Activations(
                (s.narrow_act.first[0], s.narrow_act.first[1].at(first)),
                (s.narrow_act.second[0], s.narrow_act.second[1].at(first)),
            )
            spread = [s.results.at(i) for i in range(layout.q_tiles)]
            ready = max([ready, *done])  # values take the words that keys have left
            for blocks, word in zip(s.replicate, spread, strict=True):
                ready = matmul16_round(d, self.spec, blocks, kt, act, ready, [word])
            done.append(
                append_values(d, self.spec, spread[0], ready, a, list(targets), scatter=True)
            )
        return done[0], done[1]

    def layer(self, m: LayerMatrices, ready: int) -> int:
        """One decoder layer; x is readable from ``ready``; returns when the new x is."""
        s, d, layout, a = self.places, self.schedule, self.places.layout, self.places.attention
        qt, kt = layout.q_tiles, layout.kv_tiles
        ready = self._normed(ready)
        words = [s.results.at(i) for i in range(qt + 2 * kt)]
        done = self._matmul(m.qkv, layout.x_tiles, ready, None, words)
        v_words = words[qt + kt]
        if layout.replicate:
            narrow = [Place(s.narrow.queues, s.narrow.address + i) for i in range(kt)]
            queries, keys = rope(d, self.spec, words[0], qt, kt, max(done[: qt + kt]), a, narrow,
                                 scatter=False)  # fmt: skip
            keys, values = self._append(max(keys, *done), max(done), v_words)
        else:
            queries, keys = rope(d, self.spec, words[0], qt, kt, max(done[: qt + kt]), a,
                                 list(a.keys), scatter=True)  # fmt: skip
            values = append_values(d, self.spec, v_words, max(done), a, list(a.values),
                                   scatter=True)  # fmt: skip
        attended = 0
        for tile in range(qt):
            attended = attend(
                d, self.spec, tile, layout.heads_per_tile, layout.head_lanes, self.context,
                max(queries, attended), max(keys, attended), max(values, attended), a,
            )  # fmt: skip
        ready, dynamic = self._activated(a.outputs.at(3), qt, attended)
        ready = self._residual(m.o, qt, ready, dynamic)
        ready = self._normed(ready)
        gates = [s.results.at(i) for i in range(layout.ffn_tiles)]
        ups = [s.up.at(i) for i in range(layout.ffn_tiles)]
        done = self._matmul(m.gate_up, layout.x_tiles, ready, None, gates + ups)
        ready = swiglu(d, self.spec, s.results, s.up, layout.ffn_tiles, max(done), s.hidden)
        ready, dynamic = self._activated(s.hidden, layout.ffn_tiles, ready)
        return self._residual(m.down, layout.ffn_tiles, ready, dynamic)

    def _residual(self, m: MatrixPlaces, k_tiles: int, ready: int, dynamic: Place | None) -> int:
        """A row-split product, its all-reduce, and the sum with x."""
        s, d, layout = self.places, self.schedule, self.places.layout
        targets = [s.reduce.partial.at(i) for i in range(layout.x_tiles)]
        ready = max(self._matmul(m, k_tiles, ready, dynamic, targets))
        if layout.tp > 1:
            ready = exchange(d, self.spec, layout.tp, layout.x_tiles, ready, s.reduce)
        return reduce(d, self.spec, layout.tp, layout.x_tiles, ready, s.reduce)

    def head(self, ready: int) -> int:
        """Final norm and logits."""
        s, layout = self.places, self.places.layout
        ready = self._normed(ready)
        targets = [s.logits.at(i) for i in range(layout.vocab_blocks)]
        return max(self._matmul(s.head, layout.x_tiles, ready, None, targets))

    context = 0


def _schedule_step(
    spec: ChipSpec, places: DecoderPlaces, numbers: _Numbers, context: int
) -> dict[str, Program]:
    """The decode and prefill programs of one context bucket."""
    gangs: list[tuple[int, ...]] = []
    origin = LEAD_CYCLES
    scheduled = []
    for matrices in places.variants:
        layer = _Scheduler(spec, places, numbers)
        layer.context = context
        end = layer.layer(matrices, origin)
        table, symbols, own_gangs = layer.schedule.blocks()
        _translate_gangs(table, own_gangs, gangs)
        scheduled.append((table, symbols, end - origin))
    first = int(scheduled[0][0]["cycle"].min())  # the launch begins with its first dispatch
    tables: list[BlockTable] = []
    elapsed = -first
    for number, bases in enumerate(places.bases):
        table, symbols, cycles = scheduled[number % len(scheduled)]
        copy = relocate(table, symbols, bases, elapsed)
        _rename_tags(copy, number * (1 << 16))
        tables.append(copy)
        elapsed += cycles
    head = _Scheduler(spec, places, numbers)
    head_cycles = head.head(origin) - origin
    head_table, head_symbols, head_gangs = head.schedule.blocks()
    _translate_gangs(head_table, head_gangs, gangs)
    moved = relocate(head_table, head_symbols, {}, elapsed)
    _rename_tags(moved, len(places.bases) * (1 << 16))
    end = origin + elapsed
    return {
        f"decode-{context}": join_tables([*tables, moved], gangs, end + head_cycles),
        f"prefill-{context}": join_tables(tables, gangs, end),
    }


def _translate_gangs(
    table: BlockTable, own: list[tuple[int, ...]], shared: list[tuple[int, ...]]
) -> None:
    """Number a table's gangs by ``shared``, adding those it lacks."""
    shared.extend(gang for gang in own if gang not in shared)
    numbers = np.array([shared.index(gang) for gang in own], np.int32)
    ganged = table["gang"] >= 0
    table["gang"][ganged] = numbers[table["gang"][ganged]]


def _rename_tags(table: BlockTable, base: int) -> None:
    """Give a relocated copy tags of its own."""
    for column in ("tag", "want0", "want1"):
        named = table[column] > 0
        table[column][named] += base


def _check_spec(spec: ChipSpec) -> None:
    """The kernels' chains are written for one ALU time and two activations per reload gap."""
    if spec.alu_cycles != 3:
        raise CompileError(
            f"chip.alu_cycles is {spec.alu_cycles}: the decoder's kernels are written for 3"
        )
    least = spec.mxm_install_cycles + 4
    if spec.mxm_reload_gap_cycles < least:
        raise CompileError(
            f"chip.mxm_reload_gap_cycles is {spec.mxm_reload_gap_cycles}: two activations need "
            f"{least} with mxm_install_cycles {spec.mxm_install_cycles}"
        )


def compile_decoder(
    model: PartitionedModel, spec: ChipSpec, max_context: int = 256, *, weights: bool = True
) -> Artifact:
    """Compile a partitioned decoder for one node; raises CompileError when it does not fit.

    ``max_context``: positions the KV cache holds; programs are made for every bucket up to it.
    ``weights=False`` leaves the memory image empty (timing only).
    """
    _check_spec(spec)
    layout = model.layout
    buckets = [b for b in BUCKETS if b < max_context] + [
        next((b for b in BUCKETS if b >= max_context), 0)
    ]
    if not buckets[-1] or max_context < 1:
        raise CompileError(f"context {max_context}: must be 1 to {BUCKETS[-1]} positions")
    places = place_decoder(spec, layout, model.dtype, buckets[-1])
    numbers = _Numbers(float(model.inv_h), float(model.eps), float(model.quant_gain))
    programs: dict[str, list[Program]] = {}
    for context in buckets:
        for entry, program in _schedule_step(spec, places, numbers, context).items():
            programs[entry] = [program]
    a = places.attention
    return Artifact(
        spec=spec,
        topology="single" if layout.tp == 1 else f"node-{layout.tp}",
        chips=layout.tp,
        cables=node_cables(layout.tp),
        programs=programs,
        program_of_chip=[0] * layout.tp,
        memory=[
            memory_image(places, model.chip(c)) if weights else [] for c in range(layout.tp)
        ],
        bindings={
            "inputs": {
                "x": _binding(places.x, layout.x_tiles),
                "cos": _binding(a.cos, 1),
                "sin": _binding(a.sin, 1),
                "kv_map": _binding(a.kv_map, 1),
                "mask_map": _binding(a.mask_map, 1),
            },
            "outputs": {"logits": _binding(places.logits, layout.vocab_blocks)},
            "buckets": buckets,
            "context": places.context,
        },
        model={
            "dtype": model.dtype,
            "tp": layout.tp,
            "checkpoint": "" if model.checkpoint.path is None else str(model.checkpoint.path),
            "sram_used_bytes": places.placement.used_bytes(),
        },
        predicted_cycles={entry: table[0].cycles for entry, table in programs.items()},
    )


def _binding(place: Place, words: int) -> list[list[int]]:
    """[slice, address, words] per byte plane."""
    return [[queue, place.address, words] for queue in place.queues]
