"""Words that go on to the next group one by one: all of them, at once when they are there."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from chip.checker import check
from chip.engine import Chip, Rings, Status
from chip.faults import ProgramFault
from chip.linking import link
from chip.program import Program
from chip.scheduling import Place, Schedule, program_of, shifted
from chip.spec import ChipSpec
from interconnect.collectives import (
    RECEIVED_QUADS,
    Handover,
    HandoverPlaces,
    deal_words,
    plan_handover,
    send_onward,
    take_onward,
)
from interconnect.vectors import check_fabric
from interconnect.wiring import topology_of, wire
from programs.models import ModelConfig
from programs.plans import check_plan, compile_plan, run_timing, timing_programs

SPEC = ChipSpec()
X, TO, INBOX = Place((44, 45, 46, 47), 30), Place((44, 45, 46, 47), 200), Place((52, 53, 54, 55), 9)
PLACES = HandoverPlaces(TO, INBOX, {k: Place(quad, 50) for k, quad in RECEIVED_QUADS.items()})
WORD = 4 * SPEC.send_spacing_cycles


def handed_over(
    tp: int, chips: int, ready: list[int], pace: int
) -> tuple[Handover, list[Program], int]:
    """Programs of all chips of a machine whose first group hands its words to the second."""
    plan = plan_handover(topology_of(chips), tp, 0, 1, len(ready), SPEC)
    own = [Schedule() for _ in range(tp)]
    departures = []
    for carrier, words in zip(plan.carriers, deal_words(plan, ready), strict=True):
        departures.append(send_onward(own[carrier.sender], SPEC, carrier, X, ready, words, pace))
    taken, end = take_onward(SPEC, tp, plan, departures, PLACES)
    programs = []
    for schedule in [*own, *taken, *(Schedule() for _ in range(chips - 2 * tp))]:
        table, _, gangs = schedule.blocks()
        programs.append(program_of([table], gangs, end))
    return plan, programs, end


@pytest.mark.parametrize(("tp", "chips", "words"), [(4, 8, 13), (2, 8, 3), (1, 2, 5), (8, 16, 6)])
def test_every_word_is_where_it_belongs(tp: int, chips: int, words: int) -> None:
    """Shares that are spread, all words on every cable, one chip after another, two nodes."""
    rng = np.random.default_rng(words)
    ready = rng.choice([40, 300, 301, 700], words).tolist()
    plan, programs, end = handed_over(tp, chips, ready, 27)
    for program in programs:
        assert [str(f) for f in check(program, SPEC)] == []
    cables = topology_of(chips).cables
    assert check_fabric(programs, range(chips), cables, SPEC) == []
    bytes_of_x = rng.integers(0, 256, (4, words, 320)).astype(np.uint8)
    rings, machines = Rings.allocate(2 * len(cables)), [Chip(SPEC, c) for c in range(chips)]
    for chip, program in zip(machines, programs, strict=True):
        wire(chip, [(a, x, b, y) for a, x, b, y in cables.tolist()])
        for queue, plane in zip(X.queues, bytes_of_x, strict=True):
            if chip.chip_id < tp:
                chip.write_words(queue, X.address, plane)
        chip.begin(link(program, SPEC), 0)
    pending = machines
    for _ in range(1000):
        pending = [chip for chip in pending if chip.run(rings) != Status.DONE]
    assert not pending
    for chip in machines[tp : 2 * tp]:
        for queue, plane in zip(TO.queues, bytes_of_x, strict=True):
            assert np.array_equal(chip.read_words(queue, TO.address, words), plane)
    hops = 2 if plan.spread else 1
    share = -(-words // len(plan.carriers)) if plan.spread else words
    soonest = max(ready) + hops * SPEC.hop_cycles + WORD
    assert soonest < end < min(ready) + 660 + hops * (SPEC.hop_cycles + 110) + share * WORD


def test_words_leave_in_the_order_in_which_they_are_readable() -> None:
    ready = [900, 0, 500, 0, 500, 0]
    plan = replace(plan_handover(topology_of(8), 4, 0, 1, 24, SPEC), words=6)
    assert plan.spread and len(plan.carriers) == 4
    assert deal_words(plan, ready) == [[1, 4], [3, 0], [5], [2]]
    alone = plan_handover(topology_of(8), 2, 0, 1, 2, SPEC)
    assert not alone.spread
    assert deal_words(alone, ready) == [[1, 3, 5, 2, 4, 0]] * 2


@pytest.mark.long
def test_a_stage_hands_on_while_it_sums(monkeypatch: pytest.MonkeyPatch) -> None:
    """26 tiles over the cables between two nodes: the first leave before the last are made."""
    config = ModelConfig(8192, 2, 64, 8, 128, 2560, 640)
    plan = compile_plan("wide", config, SPEC, context=64, chips=16)
    pipeline = plan.pipeline
    block, _ = pipeline.code[0].last_block(64)
    crossing = pipeline.crossing(0, 64)
    carriers = len(pipeline.handovers[0].carriers)
    assert crossing.begins < block.cycles < crossing.cycles
    assert crossing.cycles - block.cycles < 2 * 750 + -(-26 // carriers) * WORD
    assert check_plan(plan) > 2
    done = run_timing(plan, timing_programs(plan))
    assert set(done.retired.tolist()) == {plan.cycles}
    # sent before it is there
    early = {
        chip: replace(piece, table=shifted(piece.table, -100))
        for chip, piece in crossing.sent.items()
    }
    monkeypatch.setattr(pipeline, "crossing", lambda *_: replace(crossing, sent=early))
    pipeline._courses.clear()
    with pytest.raises(ProgramFault):
        check_plan(plan)
