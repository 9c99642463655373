"""What a plan says: cycles by phase, memory by use, units by load, and where the bottleneck is.

Everything is counted from the plan's own blocks and places; nothing is estimated here but the
roofline, which is what the planes' ports alone would allow.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from chip.isa import ALUS, C2C_QUEUE, LINKS, MXM_QUEUE, SLICES, VXM_QUEUE, Op
from chip.program import BlockTable
from programs.decoder import (
    ATTENTION,
    C2C,
    MATMUL,
    NODE,
    SOFTMAX,
    VXM,
    Scheduled,
    ffn_columns,
    ffn_part,
    memory_bytes,
    part_tiles,
    router_columns,
)
from programs.plans.bottleneck import INSTALL, PIPELINE, Bottleneck, bottleneck_of
from programs.plans.floor import Floor, floor_of
from programs.plans.full_belt import FullBelt, full_belt
from programs.plans.plan import Plan, instruction_bytes, system_bytes

BELT, ALONE = "conveyor belt", "one token at a time"
BATCHES = "batches on the conveyor belt"


@dataclass(frozen=True)
class PlanReport:
    """Figures of one plan.

    phases: cycles of one token by phase, adding up to ``cycles_per_token``.  sram: bytes of the
    fullest chip by use.  units: busy share of the slowest stage's time.  roofline_cycles: what
    streaming the weights alone takes.  floor: what no schedule could beat.  instruction_bytes: at
    most, of the longest program.
    """

    cycles_per_token: int
    interval_cycles: int
    mode: str
    per_user: float
    total: float
    phases: dict[str, int]
    sram: dict[str, int]
    units: dict[str, float]
    roofline_cycles: int
    floor: Floor
    operations_per_byte: float
    instruction_bytes: int
    bottleneck: Bottleneck
    belt: FullBelt


def report_plan(plan: Plan, batched: Plan | None = None) -> PlanReport:
    """All figures of ``plan``; batched: the one of ``batch_plan``, where there is one."""
    phases = _phases(plan)
    user_cycles, tokens, mode = _service(plan, batched)
    clock = plan.spec.clock_hz
    floor = plan_floor(plan)
    roofline, intensity = _roofline(plan)
    return PlanReport(
        plan.cycles,
        plan.interval_cycles,
        mode,
        clock / user_cycles,
        tokens * clock,
        phases,
        _sram(plan),
        _units(plan),
        roofline,
        floor,
        intensity,
        instruction_bytes(plan),
        bottleneck_of(phases, floor),
        full_belt(plan, batched if mode == BATCHES else None),
    )


def plan_floor(plan: Plan) -> Floor:
    """The floor of one token of ``plan``."""
    return floor_of(
        plan.config,
        plan.spec,
        tp=plan.layout.tp,
        stages=len(plan.starts),
        dtype=plan.dtype,
        context=plan.context,
        head_parts=max(stage.head_parts for stage in plan.pipeline.stages),
        part_columns=_part_columns(plan),
    )


def _part_columns(plan: Plan) -> dict[int, int]:
    """Columns of the widest part of each split FFN's gate on a chip, without padding, by layer."""
    found: dict[int, int] = {}
    for stage in plan.pipeline.stages:
        for block in stage.blocks:
            if block.parts > 1:
                own = plan.layout.for_ffn(block.of)
                tiles, _ = ffn_part(own.ffn_tiles, own.experts, block.own, block.parts)
                ends = (min(n * own.ffn_width, own.ffn_per_chip) for n in (tiles.start, tiles.stop))
                first, last = ends
                found[block.layer] = max(found.get(block.layer, 0), last - first)
    return found


def _service(plan: Plan, batched: Plan | None) -> tuple[float, float, str]:
    """Cycles between a user's tokens, tokens per cycle of all users, and how they are served."""
    stages = len(plan.starts)
    ways = [(plan.batch * plan.cycles, ALONE)]
    if plan.batch > 1:
        ways.append((max(plan.batch, stages) * plan.interval_cycles, BELT))
    if batched is not None:
        ways.append((batched.pipeline.turns * batched.interval_cycles, BATCHES))
    cycles, mode = min(ways, key=lambda way: way[0])
    return cycles, plan.batch / cycles, mode


def _phases(plan: Plan) -> dict[str, int]:
    """Cycles by phase; of parts of an FFN or of the head at the same time those of the one that
    takes longest.
    """
    found = dict.fromkeys((INSTALL, MATMUL, VXM, SOFTMAX, C2C, PIPELINE), 0)
    longest: dict[int | None, Scheduled] = {}  # by layer; of the head None
    for number, code in enumerate(plan.pipeline.code):
        parts = list(plan.body(number).parts)
        blocks = plan.pipeline.stages[number].blocks
        ends = (0, number - 1), (len(blocks) - 1, number)
        beside = {at for at, boundary in ends if boundary in plan.pipeline.apart}
        apart: list[tuple[int | None, Scheduled]] = [(blocks[at].layer, parts[at]) for at in beside]
        if plan.pipeline.stages[number].head:
            apart.append((None, code.scheduled(plan.context, None)))
        for of, part in apart:
            longest[of] = max(longest.get(of, part), part, key=lambda own: own.cycles)
        parts = [part for at, part in enumerate(parts[: len(blocks)]) if at not in beside]
        if number == len(plan.starts) - 1:
            parts += longest.values()
        for part in parts:
            for name, cycles in part.phases.items():
                found[name] += cycles
            installs = min(part.phases.get(MATMUL, 0), _plane_cycles(part.table))
            found[INSTALL] += installs
            found[MATMUL] -= installs
    found[VXM] += plan.starts[0]  # what is dispatched before x is read
    found[PIPELINE] = plan.cycles - sum(found.values())
    assert found[PIPELINE] >= 0, found
    return found


def _issued(table: BlockTable, gangs: list[tuple[int, ...]]) -> NDArray[np.int64]:
    """int64 [144]: instructions of every queue."""
    issued = np.zeros(C2C_QUEUE + LINKS, np.int64)
    n = table["n1"].astype(np.int64) * table["n2"]
    alone = table["gang"] < 0
    np.add.at(issued, table["queue"][alone], n[alone])
    for gang in np.unique(table["gang"][~alone]):
        np.add.at(issued, list(gangs[gang]), n[table["gang"] == gang].sum())
    return issued


def _plane_cycles(table: BlockTable) -> int:
    """Cycles in which the busiest plane takes weights."""
    loads = table[table["op"] == Op.LW]
    planes = (loads["queue"] - MXM_QUEUE) // 2
    n = loads["n1"].astype(np.int64) * loads["n2"]
    return max((int(n[planes == plane].sum()) for plane in range(4)), default=0)


def _units(plan: Plan) -> dict[str, float]:
    slowest = int(np.argmax(plan.stage_cycles))
    body, cycles = plan.body(slowest), plan.stage_cycles[slowest]
    table = body.whole()
    issued = _issued(table, plan.pipeline.gangs)
    sends = _issued(table[table["op"] == Op.SEND], plan.pipeline.gangs)[C2C_QUEUE:]
    vector = float(plan.spec.cycles_per_vector)
    return {
        "mem_ports": float(issued[:SLICES].mean() / cycles),
        "vxm_busiest_alu": float(issued[VXM_QUEUE : VXM_QUEUE + ALUS].max() / cycles),
        "mxm_weights": _plane_cycles(table) / cycles,
        "links_busiest": float(sends.max() * vector / cycles),
    }


def _sram(plan: Plan) -> dict[str, int]:
    """Bytes of the fullest chip by use."""
    code = max(plan.pipeline.code, key=lambda c: c.places.placement.used_bytes())
    stage, layout = code.places.stage, plan.layout
    whole = memory_bytes(layout, plan.dtype, plan.context, plan.batch)
    item = 1 if plan.dtype == "int8" else 2
    t, x = layout.x_tiles, layout.x_width
    attention = (layout.qkv_columns + layout.q_tiles * t * x) * 320
    weights, blocks = 0, 0
    if stage.head:
        of_head = part_tiles(layout.vocab_blocks, stage.head_part, stage.head_parts)
        weights = t * len(of_head) * layout.vocab_width * 320
    for block in stage.blocks:
        own = layout.for_ffn(block.of)
        tiles, held = ffn_part(own.ffn_tiles, own.experts, block.own, block.parts)
        router = router_columns(own, plan.dtype)
        ffn = 320 * (ffn_columns(own, len(tiles), len(held)) + router)
        weights += attention if block.kind == ATTENTION else ffn
        blocks += block.kind == ATTENTION
    weights *= item
    cache = whole["cache"] // layout.tp // layout.layers * blocks
    system = system_bytes(plan.spec)
    used = code.places.placement.used_bytes()
    return {
        "weights": weights,
        "kv_cache": cache,
        "activations_and_tables": used - weights - cache,
        "reserved_for_the_system": system,
        "free": plan.spec.sram_bytes - system - used,
    }


def _roofline(plan: Plan) -> tuple[int, float]:
    """Cycles in which the planes could take all weights of a token, and operations per byte."""
    layout = replace(plan.layout, experts=plan.layout.chosen, turns=1)
    need = memory_bytes(layout, plan.dtype, plan.context, 1)["weights"] / layout.tp
    item = 1 if plan.dtype == "int8" else 2
    return round(need / (4 * 16 * 320)), 2.0 / item


def describe_machine(plan: Plan) -> str:
    """How the chips are used, in words."""
    stages, tp = len(plan.starts), plan.layout.tp
    used = stages * tp
    idle = f", {plan.chips - used} idle" if plan.chips > used else ""
    where = "one node" if plan.chips <= NODE else f"{plan.chips // NODE} nodes"
    if plan.pipeline.topology.name == "chain":
        where += " in a row"
    return f"{stages} stages of {tp} chips on {where}{idle}"
