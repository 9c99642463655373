"""Neighbours that send each other at the same cycles: a link never has two things to do at once."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from chip.checker import check
from chip.isa import C2C_QUEUE
from chip.program import Program, expand
from chip.spec import ChipSpec
from interconnect.collectives.node import compile_collective, link_pace
from interconnect.vectors import check_fabric
from interconnect.wiring import node_cables
from programs.models import ModelConfig
from programs.plans import check_plan, compile_plan, run_timing, timing_programs

SPEC = ChipSpec()
#: 26 tiles of x, as a 70B model has: 104 vectors an exchange.
WIDE = ModelConfig(8192, 1, 64, 8, 128, 2560, 640)
CABLES = np.array(node_cables(8), np.int32)


def legal(spec: ChipSpec, words: int, operation: str) -> int:
    """Cycles of a node's collective, after everything was checked."""
    done = compile_collective(operation, 8, words, spec)
    for program in {id(p): p for p in done.programs}.values():
        assert [str(f) for f in check(program, spec)] == []
        assert once(program)
    assert check_fabric(done.programs, range(8), CABLES, spec) == []
    return done.cycles


def once(program: Program) -> bool:
    """Whether every link has one instruction a cycle at most, counted one by one."""
    rows = expand(program)
    links = rows[rows["queue"] >= C2C_QUEUE]
    used = Counter(zip(links["queue"].tolist(), links["cycle"].tolist(), strict=True))
    return max(used.values()) == 1


@pytest.mark.parametrize("hop", range(300, 326))
def test_every_hop_has_an_exchange(hop: int) -> None:
    """All residues of the link's spacing, among them 301 and 325: 12 and 13 vectors' time."""
    spec = replace(SPEC, hop_cycles=hop)
    assert legal(spec, 26, "all-reduce") - hop in range(2500, 2800)


@pytest.mark.parametrize("seed", range(3))
def test_any_link_has_an_exchange(seed: int) -> None:
    """Random hops, spacings, latencies of memory and edge, and lengths."""
    draw = np.random.default_rng(seed)
    for operation in ("all-reduce", "reduce-scatter", "all-gather", "broadcast"):
        spec = replace(
            SPEC,
            send_spacing_cycles=int(draw.integers(6, 60)),
            link_bytes_per_s=150 * 10**9,
            hop_cycles=int(draw.integers(231, 2000)),
            read_cycles=int(draw.integers(1, 6)),
            write_cycles=int(draw.integers(1, 6)),
            receive_cycles=int(draw.integers(1, 10)),
        )
        legal(spec, int(draw.integers(1, 60)), operation)


def test_a_run_is_slower_only_where_it_must_be() -> None:
    """312 cycles from Send to Receive are 13 vectors of 24: the 14th leaves as the first comes."""
    meeting = replace(SPEC, hop_cycles=325)
    assert meeting.send_to_receive_cycles == 13 * 24
    assert [link_pace(meeting, n) for n in (1, 13, 14, 104)] == [24, 24, 25, 25]
    assert link_pace(replace(SPEC, hop_cycles=326), 104) == 24
    both = replace(SPEC, hop_cycles=613)  # 600 is a multiple of 24 and of 25
    assert link_pace(both, 104) == 26


@pytest.mark.parametrize(
    "hop", [325, *(pytest.param(hop, marks=pytest.mark.long) for hop in (301, 349, 637))]
)
def test_a_model_is_planned_where_sends_would_meet_receives(hop: int) -> None:
    """Exchanges, and handovers between nodes that spread 16 vectors a chip."""
    plan = compile_plan("wide", WIDE, replace(SPEC, hop_cycles=hop), context=64, chips=16)
    assert check_plan(plan) > 2 and plan.checked


@pytest.mark.parametrize("tp", [8, pytest.param(4, marks=pytest.mark.long)])
def test_a_chain_hands_over_by_every_chip(tp: int) -> None:
    """Three nodes: all chips of a group are carriers where the usual wiring has fewer cables."""
    tall = replace(WIDE, hidden_size=4096, layers=3, heads=32)
    plans = {
        wiring: compile_plan("tall", tall, SPEC, context=64, chips=72, tp=tp, wiring=wiring)
        for wiring in ("usual", "chain")
    }
    carriers = {
        wiring: [len(handover.carriers) for handover in plan.pipeline.handovers]
        for wiring, plan in plans.items()
    }
    chain = plans["chain"]
    assert check_plan(chain) > 2
    assert chain.pipeline.topology.name == "chain"
    assert min(carriers["chain"]) >= min(tp, 7)  # seven shares of 13 words
    assert min(carriers["usual"]) < min(carriers["chain"])
    assert chain.cycles < plans["usual"].cycles
    programs = timing_programs(chain)
    done = run_timing(chain, programs)
    ran = [number for number, program in enumerate(programs) if program is not None]
    assert set(done.retired[ran].tolist()) == {chain.cycles}
