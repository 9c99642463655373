"""Experts that the chip chooses by itself: ranks, shares, maps and gathered weights, with data."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from chip.checker import check
from chip.engine import Chip, Rings, run_chips
from chip.linking import link
from chip.scheduling import Place, Schedule, program_of
from chip.spec import ChipSpec
from programs.decoder import Layout
from programs.decoder.image import _put_choice
from programs.decoder.places import place_choice
from programs.kernels import (
    Activations,
    ChoicePlaces,
    ColumnBlock,
    Constants,
    MapPlaces,
    Slot,
    Weights,
    choose_experts,
    copy_chosen,
    matmul16_round,
    matmul_round,
)
from programs.models import ModelConfig
from programs.sram import (
    EAST_QUAD,
    KV_QUAD,
    WEST_QUAD,
    Image,
    SramPlacement,
    fp32_rows,
    read_words,
)

F32 = NDArray[np.float32]
SPEC = ChipSpec()
_EAST_2, _WEST_2, _WEST_3 = (52, 53, 54, 55), (8, 9, 10, 11), (12, 13, 14, 15)


def choice_places(
    pm: SramPlacement, experts: int, chosen: int, fine: bool, strides: list[int]
) -> ChoicePlaces:
    maps = tuple(
        MapPlaces(pm.top(pm.map_slices(0), chosen), pm.top(pm.map_slices(1), chosen), stride)
        for stride in strides
    )
    return ChoicePlaces(
        experts=experts,
        chosen=chosen,
        coarse=pm.top(EAST_QUAD, 1),
        fine=pm.top(_EAST_2, 1) if fine else None,
        pieces=pm.top(EAST_QUAD, 3),
        exact=pm.top(WEST_QUAD, 1),
        one_hot=pm.top(_WEST_2[:1], experts),
        later=pm.top(_WEST_2[1:2], experts),
        ranks=pm.top(_WEST_3, 1),
        indices=pm.top(EAST_QUAD, chosen),
        logits=pm.top(_EAST_2, chosen),
        best=pm.top(KV_QUAD, 1),
        weights=pm.top(EAST_QUAD, chosen),
        inverse=pm.top(_EAST_2, 1),
        shares=pm.top(KV_QUAD, chosen),
        maps=maps,
        own=pm.top(EAST_QUAD, chosen),
    )


def fill(chip: Chip, place: Place, values: F32) -> None:
    for queue, plane in zip(place.queues, fp32_rows(values), strict=True):
        chip.write_words(queue, place.address, plane)


def tables(chip: Chip, places: ChoicePlaces, constants: Constants) -> None:
    for place, byte in ((constants.zero, 0), (constants.one_high, 0x3C)):
        for queue in place.queues:
            chip.write_words(queue, place.address, np.full((1, 320), byte, np.uint8))
    lane, number = np.arange(320), np.arange(places.experts)[:, None]
    chip.write_words(
        places.one_hot.queues[0], places.one_hot.address, (lane == number).astype(np.uint8)
    )
    chip.write_words(places.later.queues[0], places.later.address, (lane > number).astype(np.uint8))
    index = np.where(lane < places.experts, lane, 0).astype(np.float16).view(np.uint16)
    fill(chip, places.pieces, index.astype(np.uint32).view(np.float32)[None])


def launch(schedule: Schedule, end: int, chip: Chip) -> None:
    table, _, gangs = schedule.blocks()
    program = program_of([table], gangs, end + 1)
    assert [str(f) for f in check(program, SPEC)] == []
    chip.begin(link(program, SPEC), 0)
    run_chips([chip], Rings.allocate(1))


@settings(max_examples=8, deadline=None, derandomize=True)
@given(
    experts=st.sampled_from([2, 3, 8, 19, 32, 128, 256]),
    chosen=st.integers(1, 8),
    levels=st.integers(1, 300),
    fine=st.booleans(),
    partly=st.booleans(),
    seed=st.integers(0, 1 << 20),
)
def test_any_choice_of_any_logits(
    experts: int, chosen: int, levels: int, fine: bool, partly: bool, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    chosen = min(experts, chosen)
    values = np.append(rng.standard_normal(levels) * 4, [0.0, -0.0])
    logits = rng.choice(values, experts).astype(np.float16).astype(np.float32)
    logits[rng.random(experts) < 0.5] *= np.float32(1.0 + 2.0**-9)  # needs the second piece
    pm = SramPlacement(SPEC, maps=True)
    constants = Constants(pm.top(pm.weight_slices(2), 1), pm.top(pm.weight_slices(3), 1))
    held = range(experts // 3, experts // 3 + max(1, experts // 2)) if partly else range(experts)
    places = choice_places(pm, experts, chosen, fine, [31, 7])
    places = replace(places, held=held if partly else None)
    schedule = Schedule()
    mapped, shared = choose_experts(schedule, SPEC, 0, places, constants)
    chip = Chip(SPEC, 0)
    tables(chip, places, constants)
    rows = np.zeros((1, 320), np.float32)
    rows[0, :experts] = logits
    if places.fine is None:
        fill(chip, places.coarse, rows)
    else:
        fill(chip, places.coarse, rows * np.float32(3))
        fill(chip, places.fine, rows * np.float32(-2))
    launch(schedule, max(*mapped, shared), chip)
    best = sorted(range(experts), key=lambda e: (-float(logits[e]), e))[:chosen]
    exact = np.exp(logits[best].astype(np.float64) - float(logits.max()))
    shares = read_words(chip, places.shares, chosen).view(np.float32)[..., 0]
    assert (shares == shares[:, :1]).all()
    here = np.array([e in held for e in best])
    np.testing.assert_allclose(shares[:, 0], exact / exact.sum() * here, rtol=1e-6)
    numbers = np.where(here, np.array(best) - held.start, 0)
    for maps in places.maps:
        for side in (0, 1):
            for which in (0, 1):
                found = [read_words(chip, maps.pair(side, which, i), 1) for i in range(chosen)]
                offsets = np.concatenate(found).view(np.uint16)[..., 0]
                assert (offsets == numbers[:, None] * maps.stride).all()


@pytest.mark.long
@settings(max_examples=6, deadline=None, derandomize=True)
@given(
    form=st.sampled_from([(2, 2, 1), (4, 5, 2), (5, 3, 3), (8, 32, 4), (16, 16, 15)]),
    levels=st.integers(1, 60),
    scored=st.booleans(),
    seed=st.integers(0, 1 << 20),
)
@example(form=(8, 32, 4), levels=60, scored=True, seed=1)
@example(form=(4, 5, 2), levels=2, scored=False, seed=2)
def test_any_choice_within_the_best_groups(
    form: tuple[int, int, int], levels: int, scored: bool, seed: int
) -> None:
    """Groups by their greatest, or by the sum of two sigmoids with biases; equal ones in order."""
    rng = np.random.default_rng(seed)
    groups, size, kept = form
    experts, chosen = groups * size, min(8, kept * size)
    config = ModelConfig(
        64,
        1,
        1,
        1,
        16,
        16,
        16,
        experts=experts,
        experts_per_token=chosen,
        expert_groups=groups,
        chosen_groups=kept,
        sigmoid_scores=scored,
    )
    pm = SramPlacement(SPEC, maps=True)
    constants = Constants(pm.top(pm.weight_slices(2), 1), pm.top(pm.weight_slices(3), 1))
    places = place_choice(pm, Layout.of(config, 1), "fp16")
    assert places is not None and places.groups is not None
    places = replace(places, bias=pm.top(WEST_QUAD, 1) if scored else None)
    chip = Chip(SPEC, 0)
    for place, byte in ((constants.zero, 0), (constants.one_high, 0x3C)):
        for queue in place.queues:
            chip.write_words(queue, place.address, np.full((1, 320), byte, np.uint8))
    image: Image = []
    _put_choice(image, places)
    for queue, address, rows in image:
        chip.write_words(queue, address, rows)
    logits = rng.choice(rng.standard_normal(levels) * 3, experts).astype(np.float32)
    bias = rng.choice(rng.standard_normal(levels), experts).astype(np.float32)
    for word, values in ((places.coarse, logits), (places.bias, bias)):
        if word is not None:
            row = np.zeros((1, 320), np.float32)
            row[0, :experts] = values
            fill(chip, word, row)
    schedule = Schedule()
    mapped, shared = choose_experts(schedule, SPEC, 0, places, constants)
    launch(schedule, max(*mapped, shared), chip)
    exact = logits.astype(np.float64)
    score, counted = exact, 1
    if scored:
        exact = 1 / (1 + np.exp(-exact))
        score, counted = exact + bias, 2
    members = np.arange(experts).reshape(groups, size)
    worth = [np.sort(score[own])[-counted:].sum() for own in members]
    best_groups = sorted(range(groups), key=lambda g: (-worth[g], g))[:kept]
    of = [int(e) for g in sorted(best_groups) for e in members[g]]
    best = sorted(of, key=lambda e: (-score[e], e))[:chosen]
    weights = exact[best] if scored else np.exp(exact[best] - exact.max())
    numbers = read_words(chip, places.indices, chosen).view(np.float32)[:, 0, 0]
    assert numbers.tolist() == best
    shares = read_words(chip, places.shares, chosen).view(np.float32)[..., 0]
    np.testing.assert_allclose(shares[:, 0], weights / weights.sum(), rtol=2e-5)


@pytest.mark.parametrize(("dtype", "groups"), [("int8", 20), ("int8", 3), ("fp16", 20)])
def test_rounds_take_the_weights_of_the_experts_meant_and_add_their_results(
    dtype: str, groups: int
) -> None:
    """Two slots of different experts: what the second round gives is added to the first's."""
    rng = np.random.default_rng(groups)
    experts, steps, order = 5, 3, (3, 0)
    int8 = dtype == "int8"
    planes = (2, 3, 0, 1) if int8 else (2, 0)
    pm = SramPlacement(SPEC, maps=True)
    chip = Chip(SPEC, 0)
    blocks, matrices = [], []
    for plane in planes:
        halves = tuple(
            pm.bottom(pm.weight_slices(plane + half), experts * steps * groups, one_bank=True)
            for half in range(1 if int8 else 2)
        )
        blocks.append(ColumnBlock(Weights(halves, groups, experts=experts), plane))
        shape = (experts, steps, groups, 16, 320)
        if int8:
            drawn = rng.integers(-127, 128, shape).astype(np.int8)
            rows = [drawn.view(np.uint8)]
        else:
            drawn = rng.standard_normal(shape).astype(np.float16)
            rows = [(drawn.view(np.uint16) >> shift).astype(np.uint8) for shift in (0, 8)]
        matrices.append(drawn.astype(np.float64).reshape(experts, steps, 16 * groups, 320))
        for place, of in zip(halves, rows, strict=True):
            for column, queue in enumerate(place.queues):
                words = np.ascontiguousarray(of[..., column, :].reshape(-1, 320))
                chip.write_words(queue, place.address, words)
    maps = MapPlaces(
        pm.top(pm.map_slices(0), 2), pm.top(pm.map_slices(1), 2), stride=steps * groups
    )
    for place in (maps.west, maps.east):
        for i, queue in enumerate(place.queues):
            offset = np.array(order) * maps.stride
            rows = np.repeat((offset >> (8 * (i % 2)) & 255).astype(np.uint8)[:, None], 320, axis=1)
            chip.write_words(queue, place.address, rows)
    digits = [pm.top((5, 6), 2 * 2 * steps), pm.top((50, 51), 2 * 2 * steps)]
    pairs = [Place(d.queues[i : i + 1], d.address) for d in digits for i in (0, 1)]
    act = Activations((pairs[0], pairs[2]), (pairs[1], pairs[3]))
    if int8:
        high = rng.integers(-127, 128, (2, 2 * steps, 320))
        first, second = high.astype(np.int8).view(np.uint8)
        x = high[0] * 128.0 + high[1]
    else:
        bits = rng.standard_normal((2 * steps, 2, 320)).astype(np.float16)
        x = bits[:, 0].astype(np.float64) * 2.0**12 + bits[:, 1]
        words = bits.view(np.uint16).reshape(-1, 320)
        first, second = (words & 255).astype(np.uint8), (words >> 8).astype(np.uint8)
    for places, rows in ((act.first, first), (act.second, second)):
        for place in places:
            chip.write_words(place.queues[0], place.address, np.ascontiguousarray(rows))
    n = len(planes)
    sums = pm.top(EAST_QUAD, n)
    scales, copies = pm.bottom(WEST_QUAD, experts * n), pm.top(WEST_QUAD, 2 * n)
    scale = rng.uniform(0.5, 2.0, (experts, n, 320)).astype(np.float32)
    dynamic = pm.top(KV_QUAD, 1)
    fill(chip, scales, scale.reshape(-1, 320))
    fill(chip, dynamic, np.full((1, 320), 0.5, np.float32))
    table = MapPlaces(pm.top(pm.map_slices(0), 2), pm.top(pm.map_slices(1), 2), stride=n)
    for i, queue in enumerate(table.west.queues):
        of = np.array(order) * n >> (8 * (i % 2)) & 255
        rows = np.repeat(of.astype(np.uint8)[:, None], 320, axis=1)
        chip.write_words(queue, table.west.address, rows)
    schedule = Schedule()
    copied = copy_chosen(schedule, SPEC, 0, scales, experts, 2, table, copies)
    ready, starts = copied, []
    for i in range(2):
        slot = Slot((maps.pair(0, i, i), maps.pair(1, i, i)), 0, i, added=ready if i else None)
        targets = [sums.at(j) for j in range(n)]
        each = steps if int8 else 2 * steps
        own = Activations(
            (act.first[0].at(i * each), act.first[1].at(i * each)),
            (act.second[0].at(i * each), act.second[1].at(i * each)),
        )
        if int8:
            ready = matmul_round(
                schedule, SPEC, blocks, steps, own, copied, copies.at(i * n), dynamic, targets, slot
            )
        else:
            ready = matmul16_round(schedule, SPEC, blocks, steps, own, copied, targets, 2, slot)
        starts.append(ready)
    launch(schedule, ready, chip)
    found = read_words(chip, sums, n).view(np.float32)[..., 0]
    for j in range(n):
        want = np.zeros(320)
        for i, e in enumerate(order):
            mine = np.einsum("kcl,kl->c", matrices[j][e], x[i * steps : (i + 1) * steps])
            mine = np.pad(mine, (0, 320 - len(mine)))
            want += mine * scale[e, j] * 0.5 if int8 else mine
        tolerance = 1e-6 if int8 else 1e-5
        np.testing.assert_allclose(found[j], want, rtol=0, atol=tolerance * np.abs(want).max())
    # the second round's weights begin before the first one's results are there
    assert starts[1] - starts[0] <= steps * (groups + 7) + 60
