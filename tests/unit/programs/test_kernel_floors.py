"""Kernels beside their own term of the floor: no more than a drain or a sum above it."""

from __future__ import annotations

import pytest

from chip.checker import check
from chip.scheduling import Place, Schedule, program_of
from chip.spec import ChipSpec
from interconnect.collectives import (
    RECEIVED_QUADS,
    ReducePlaces,
    SharePlaces,
    all_reduce_in_shares,
    exchange,
    reduce,
    share_of,
)
from programs.kernels import PLANE_ORDER, Activations, ColumnBlock, Weights, matmul_round
from programs.plans.floor import exchange_floor, product_floor
from programs.sram import EAST_QUAD, KV_QUAD, WEST_QUAD, SramPlacement

SPEC = ChipSpec()
READY = 400


@pytest.mark.parametrize(("rounds", "k_tiles", "groups"), [(1, 7, 20), (3, 12, 19), (6, 4, 10)])
def test_a_product_streams_its_rounds_without_a_gap(rounds: int, k_tiles: int, groups: int) -> None:
    """W and the drain of the last round: 95 cycles from the last weights to a readable result."""
    pm, schedule = SramPlacement(SPEC), Schedule()
    act = [pm.top(pair, k_tiles) for pair in ((5, 6), (50, 51))]
    digits = [(Place(a.queues[i : i + 1], a.address)) for i in range(2) for a in act]
    activations = Activations((digits[0], digits[1]), (digits[2], digits[3]))
    done = 0
    for _ in range(rounds):
        blocks = [
            ColumnBlock(
                Weights((pm.bottom(pm.weight_slices(plane), k_tiles * groups),), groups), plane
            )
            for plane in PLANE_ORDER
        ]
        targets = pm.top(EAST_QUAD, 4)
        scale, dynamic = pm.bottom(WEST_QUAD, 4), pm.top(KV_QUAD, 1)
        words = [targets.at(i) for i in range(4)]
        at = matmul_round(
            schedule, SPEC, blocks, k_tiles, activations, READY, scale, dynamic, words
        )
        done = max(done, at)
    table, _, gangs = schedule.blocks()
    assert check(program_of([table], gangs, done), SPEC) == []
    floor = product_floor(SPEC, "int8", 320 * k_tiles, 64 * groups * rounds)
    period = groups + SPEC.mxm_reload_gap_cycles
    streamed = rounds * k_tiles * period
    assert floor.cycles <= streamed  # less where wider rounds would do with fewer
    assert streamed - period <= done - READY <= streamed + 95  # the first install is before


@pytest.mark.parametrize("tiles", [2, 7, 13, 26])
def test_an_exchange_is_links_hops_and_a_sum(tiles: int) -> None:
    schedule, share = Schedule(), share_of(SPEC, 8, tiles)
    received = {k: Place(RECEIVED_QUADS[k], 0) for k in range(1, 8)}
    places = ReducePlaces(Place(KV_QUAD, 0), Place(EAST_QUAD, 0), received)
    if share:
        shares = SharePlaces(share, Place(EAST_QUAD, 100), Place((4, 5), 7))
        _, done, _ = all_reduce_in_shares(
            schedule, SPEC, 8, [READY] * tiles, places, shares, places.residual
        )
    else:
        there = exchange(schedule, SPEC, 8, tiles, READY, places)
        done = reduce(schedule, SPEC, 8, tiles, there, places)
    above = done - READY - exchange_floor(SPEC, 8, [0] * tiles)
    assert 0 < above < (180 if share else 100)
