"""Attention on the planes against its definition, bit by bit, and against float64."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from chip import numerics
from chip.checker import check
from chip.scheduling import Pass, Place, Schedule, Symbol, program_of, relocate
from chip.spec import ChipSpec
from programs.kernels import NewValue, append_key, attend_tiles
from tests import examples
from tests.stands.plane_stand import (
    KEY,
    PLACES,
    SPEC,
    VALUE,
    WITH_SINKS,
    Cache,
    Shape,
    Stand,
    compiled,
    queries_of,
    tiles_of,
)
from tests.unit.programs.test_held_by_kernels import unheld


def same(a: NDArray[np.float32], b: NDArray[np.float32]) -> bool:
    """Bit by bit."""
    return np.array_equal(a.view(np.uint32), b.view(np.uint32))


def seen(shape: Shape, position: int, window: int = 0) -> NDArray[np.bool_]:
    """The positions a token at ``position`` sees."""
    at = np.arange(320 * shape.blocks)
    return (at <= position) & (at > position - window if window else True)


def attended(
    shape: Shape,
    position: int,
    size: float = 1.0,
    seed: int = 0,
    key_size: float = 1.0,
    spec: ChipSpec = SPEC,
) -> tuple[Stand, Cache, NDArray[np.float32], NDArray[np.bool_]]:
    """A stand whose caches hold ``position`` + 1 tokens and whose queries are of ``size``."""
    rng = np.random.default_rng(seed)
    stand, cache = Stand(shape, spec), Cache(shape)
    cache.fill(rng, position + 1, key_size)
    rotated = np.zeros((len(shape.heads), 320), np.float32)
    for tile, heads in enumerate(shape.heads):
        rotated[tile, : heads * shape.head_lanes] = (
            rng.standard_normal(heads * shape.head_lanes) * size
        )
    visible = seen(shape, position)
    stand.put_cache(cache)
    stand.put_token(rotated, visible)
    return stand, cache, rotated, visible


def test_one_block_is_exact() -> None:
    """Two heads on a tile and one on the next, on both executors."""
    shape = Shape((2, 1), 64, 1)
    stand, cache, rotated, visible = attended(shape, 211)
    program = compiled(shape, 320)
    reference = stand.run_reference(program)
    wanted = tiles_of(shape, cache.attended(queries_of(shape, rotated), visible))
    assert same(stand.run(program), wanted)
    assert same(reference, wanted)


def test_blocks_of_both_sides_are_exact() -> None:
    """Eight heads on one key and value head, three blocks: the east has one more."""
    shape = Shape((2, 2, 2, 2), 128, 3)
    stand, cache, rotated, visible = attended(shape, 800)
    wanted = tiles_of(shape, cache.attended(queries_of(shape, rotated), visible))
    assert same(stand.run(compiled(shape, 960)), wanted)


SHAPES = [
    Shape((1,), 16, 1),
    Shape((8,), 16, 2),
    Shape((1,), 304, 3),
    Shape((1, 1, 1, 1, 1, 1, 1, 1), 160, 4),
    Shape((4, 4), 64, 5),
    Shape((4,), 64, 4, shared=False),
    Shape((2,), 128, 2, shared=False),
    Shape((3, 3), 96, 13),
    Shape((2, 1, 2), 144, 7),
]


@pytest.mark.long
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("cap", [0.0, 30.0])
def test_shapes_are_exact(shape: Shape, cap: float) -> None:
    """First, inner and last positions; a bucket shorter than the caches gives the same bits."""
    most = 320 * shape.blocks
    whole = compiled(shape, most, cap)
    for position in (0, most // 2 + 3, most - 1):
        stand, cache, rotated, visible = attended(shape, position, seed=position)
        queries = queries_of(shape, rotated)
        wanted = tiles_of(shape, cache.attended(queries, visible, cap))
        assert same(stand.run(whole), wanted)
        assert same(stand.run(compiled(shape, position + 1, cap)), wanted)
        window = seen(shape, position, 50)
        stand.put_token(rotated, window)
        assert same(stand.run(whole), tiles_of(shape, cache.attended(queries, window, cap)))


@pytest.mark.long
@pytest.mark.parametrize("shape", [SHAPES[1], SHAPES[5]], ids=str)
def test_both_executors_agree(shape: Shape) -> None:
    stand, cache, rotated, visible = attended(shape, 320 * shape.blocks - 5)
    program = compiled(shape, 320 * shape.blocks, 20.0)
    reference = stand.run_reference(program)
    wanted = tiles_of(shape, cache.attended(queries_of(shape, rotated), visible, 20.0))
    assert same(reference, wanted)
    assert same(stand.run(program), wanted)


@pytest.mark.long
@settings(max_examples=examples(12), deadline=None)
@given(
    heads=st.lists(st.integers(1, 4), min_size=1, max_size=4).filter(lambda h: sum(h) <= 8),
    lanes=st.integers(1, 19),
    blocks=st.integers(1, 6),
    shared=st.booleans(),
    size=st.sampled_from([0.1, 1.0, 30.0, 1e4]),
    where=st.floats(0, 1),
    seed=st.integers(0, 1 << 30),
)
def test_any_shape_is_exact(
    heads: list[int], lanes: int, blocks: int, shared: bool, size: float, where: float, seed: int
) -> None:
    """Random tiles, sizes of heads, contexts and positions."""
    head_lanes = min(16 * lanes, 304 // max(heads) // 16 * 16)
    shape = Shape(tuple(heads), head_lanes, blocks, shared)
    position = int(where * (320 * blocks - 1))
    stand, cache, rotated, visible = attended(shape, position, size, seed)
    wanted = tiles_of(shape, cache.attended(queries_of(shape, rotated), visible))
    assert same(stand.run(compiled(shape, 320 * blocks)), wanted)


@pytest.mark.parametrize(
    ("shape", "size"),
    [
        (Shape((2, 1), 64, 1), 1.0),
        (Shape((2, 2, 2, 2), 128, 3), 0.1),
        pytest.param(Shape((1,), 304, 2), 1.0, marks=pytest.mark.long),
        pytest.param(Shape((8,), 16, 5), 30.0, marks=pytest.mark.long),
        pytest.param(Shape((4, 4), 64, 13), 0.1, marks=pytest.mark.long),
    ],
    ids=str,
)
def test_sinks_take_their_share(shape: Shape, size: float) -> None:
    """Sinks below, among and above the scores; against the definition and against float64."""
    most = 320 * shape.blocks
    stand, cache, rotated, visible = attended(shape, most - 9, size)
    heads = sum(shape.heads)
    sinks = np.linspace(-4, 6, heads).astype(np.float32) * np.float32(10 * size)
    queries = queries_of(shape, rotated)
    stand.put_sinks(sinks)
    got = stand.run(compiled(shape, most, places=WITH_SINKS))
    assert same(got, tiles_of(shape, cache.attended(queries, visible, sinks=sinks)))
    keys = numerics.from_f16_bits(cache.keys).astype(np.float64)
    values = numerics.from_f16_bits(cache.values).astype(np.float64)
    scores = numerics.from_f16_bits(queries).astype(np.float64) @ keys[visible].T
    logits = np.concatenate([scores, sinks[:, None].astype(np.float64)], axis=1)
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    weights = (weights / weights.sum(axis=1, keepdims=True))[:, :-1]
    wanted = np.zeros((heads, 320))
    wanted[:, : shape.width] = weights @ values[visible]
    assert np.abs(got - tiles_of(shape, wanted.astype(np.float32))).max() < 2e-3


@pytest.mark.parametrize("size", [1.0, 30.0, 600.0, 1e8])
def test_softmax_is_right(size: float) -> None:
    """Scores about 10, 300, 6,000 and 1e9, some of them equal, against float64."""
    shape = Shape((2, 2), 128, 2)
    own = min(size, 6e4)
    stand, cache, rotated, visible = attended(shape, 500, own, key_size=size / own)
    cache.keys[100:140] = cache.keys[60:100]
    stand.put_cache(cache)
    queries = queries_of(shape, rotated)
    got = stand.run(compiled(shape, 640))
    keys = numerics.from_f16_bits(cache.keys).astype(np.float64)
    values = numerics.from_f16_bits(cache.values).astype(np.float64)
    scores = numerics.from_f16_bits(queries).astype(np.float64) @ keys[visible].T
    weights = np.exp(scores - scores.max(axis=1, keepdims=True))
    weights /= weights.sum(axis=1, keepdims=True)
    wanted = np.zeros((4, 320))
    wanted[:, :256] = weights @ values[visible]
    error = np.abs(got - tiles_of(shape, wanted.astype(np.float32)))
    assert np.abs(scores).max() > 5 * size
    assert error.max() < 2e-3


@pytest.mark.parametrize(
    "shape",
    [
        Shape((2,), 128, 2),
        pytest.param(Shape((4,), 64, 3, shared=False), marks=pytest.mark.long),
        pytest.param(Shape((1,), 304, 5), marks=pytest.mark.long),
    ],
    ids=str,
)
def test_tokens_follow_each_other(shape: Shape) -> None:
    """Each token's key and value are appended and attended to; other positions stay as they are."""
    rng = np.random.default_rng(5)
    stand, cache = Stand(shape), Cache(shape)
    program = compiled(shape, 320 * shape.blocks, append=True)
    starts = [0, 317] if shape.blocks < 3 else [0, 317, 320 * shape.blocks - 2]
    for position in [p for first in starts for p in (first, first + 1)]:
        key, value = cache.draw(rng, ()), cache.draw(rng, ())
        row = np.zeros((2, 320), np.float32)
        row[:, : shape.width] = key, value
        cache.keys[position] = numerics.to_f16_bits(row[0])
        cache.values[position] = numerics.to_f16_bits(value)
        rotated = np.zeros((len(shape.heads), 320), np.float32)
        rotated[:, : shape.width] = rng.standard_normal((len(shape.heads), shape.width))
        visible = seen(shape, position)
        visible &= (cache.keys != 0).any(axis=1)
        stand.put_token(rotated, visible)
        stand.put_new(cache.keys[position], row[1], position)
        wanted = tiles_of(shape, cache.attended(queries_of(shape, rotated), visible))
        assert same(stand.run(program), wanted), position
    found = stand.read_cache()
    written = (cache.keys != 0).any(axis=1)
    assert np.array_equal(found.keys, cache.keys)
    assert np.array_equal(found.values[written], cache.values[written])


@pytest.mark.parametrize(
    "shape",
    [
        Shape((2,), 128, 3, shared=False, cached=2),
        pytest.param(Shape((1, 1), 160, 4, cached=3), marks=pytest.mark.long),
        pytest.param(Shape((3,), 96, 1, shared=False, cached=2), marks=pytest.mark.long),
        pytest.param(Shape((2,), 16, 7, cached=4), marks=pytest.mark.long),
    ],
    ids=str,
)
def test_cached_tiles_share_a_run(shape: Shape) -> None:
    """Several cached tiles, each with query tiles of its own, in one run."""
    rng = np.random.default_rng(7)
    position = 320 * shape.blocks - 20
    stand, visible = Stand(shape), seen(shape, position)
    caches = [Cache(shape) for _ in range(shape.cached)]
    heads = sum(shape.heads) // len(shape.heads) * shape.head_lanes
    rotated = np.zeros((shape.query_tiles, 320), np.float32)
    rotated[:, :heads] = rng.standard_normal((shape.query_tiles, heads))
    wanted = []
    for number, cache in enumerate(caches):
        cache.fill(rng, position + 1)
        stand.put_cache(cache, number)
        own = rotated[len(shape.heads) * number :][: len(shape.heads)]
        wanted.append(tiles_of(shape, cache.attended(queries_of(shape, own), visible)))
    stand.put_token(rotated, visible)
    assert same(stand.run(compiled(shape, position + 1)), np.concatenate(wanted))


@pytest.mark.parametrize(
    "changed",
    [
        {"mxm_install_cycles": 4, "mxm_multiply_cycles": 11, "mxm_accumulate_cycles": 30},
        {"mxm_install_cycles": 1, "mxm_reload_gap_cycles": 12, "distribute_cycles": 5},
        {"mxm_reload_gap_cycles": 8, "transpose_cycles": 6, "read_cycles": 2, "write_cycles": 3},
        {"mxm_install_cycles": 20, "transpose_cycles": 14},
    ],
    ids=str,
)
def test_other_latencies_give_the_same_bits(changed: dict[str, int]) -> None:
    """Plans ask what a chip with other latencies would take: its schedules are legal as well."""
    shape, spec = Shape((2, 2, 2), 96, 2), replace(SPEC, **changed)
    stand, cache, rotated, visible = attended(shape, 330, spec=spec)
    stand.put_new(cache.keys[330], np.zeros(320, np.float32), 330)
    cache.values[330] = 0
    cache.values[320:336] = 0
    wanted = tiles_of(shape, cache.attended(queries_of(shape, rotated), visible))
    assert same(stand.run(compiled(shape, 640, append=True, spec=spec)), wanted)


@pytest.mark.long
@settings(max_examples=examples(12), deadline=None)
@given(
    shape=st.sampled_from([Shape((2, 2), 96, 2), Shape((8,), 16, 3), Shape((4,), 64, 3, False)]),
    cycles=st.fixed_dictionaries(
        {"mxm_install_cycles": st.sampled_from([1, 3, 12, 20])},
        optional={
            "mxm_multiply_cycles": st.integers(2, 40),
            "mxm_accumulate_cycles": st.integers(1, 40),
            "mxm_reload_gap_cycles": st.integers(1, 30),
            "distribute_cycles": st.integers(1, 20),
            "transpose_cycles": st.integers(1, 60),
            "read_cycles": st.integers(1, 12),
            "write_cycles": st.integers(1, 12),
        },
    ),
)
def test_any_latencies_give_the_same_bits(shape: Shape, cycles: dict[str, int]) -> None:
    spec, position = replace(SPEC, **cycles), 320 * shape.blocks - 310
    stand, cache, rotated, visible = attended(shape, position, spec=spec)
    stand.put_new(cache.keys[position], np.zeros(320, np.float32), position)
    cache.values[position // 16 * 16 : position // 16 * 16 + 16] = 0
    wanted = tiles_of(shape, cache.attended(queries_of(shape, rotated), visible))
    program = compiled(shape, 320 * shape.blocks, append=True, spec=spec)
    assert same(stand.run(program), wanted)


def test_addresses_may_be_symbols() -> None:
    """One schedule serves caches at other addresses: those of another layer or sequence."""
    shape = Shape((2,), 64, 2)
    tile = shape.tile
    symbols = {name: Symbol(name, 1 << bank) for bank, name in enumerate(("keys", "values"))}

    def moved(pair: tuple[Place, Place], name: str, base: int) -> tuple[Place, Place]:
        low, high = (Place(p.queues, p.address - base, symbols[name]) for p in pair)
        return low, high

    named = replace(
        tile,
        keys=(moved(tile.keys[0], "keys", 0), moved(tile.keys[1], "keys", 0)),
        values=(moved(tile.values[0], "values", 4096), moved(tile.values[1], "values", 4096)),
        recent=moved(tile.recent, "values", 4096),
    )
    schedule = Schedule()
    key = append_key(schedule, SPEC, KEY, 0, named, PLACES)
    groups, ready = ((shape.group, named),), (0, key, 0)
    new = [NewValue(VALUE, named, PLACES)]
    end = attend_tiles(schedule, SPEC, groups, 640, ready, PLACES, new_values=new)
    table, used, gangs = schedule.blocks()
    stand, cache, rotated, visible = attended(shape, 400)
    stand.put_new(cache.keys[400], np.zeros(320, np.float32), 400)
    cache.values[400:] = 0
    wanted = tiles_of(shape, cache.attended(queries_of(shape, rotated), visible))
    for keys, values in ((300, 4500), (0, 4096)):
        bases = {symbols["keys"]: keys, symbols["values"]: values}
        program = program_of([relocate(table, used, bases, 0)], gangs, end)
        assert check(program, SPEC) == []
        if keys == 0:
            assert same(stand.run(program), wanted)


def test_alus_with_running_results_are_held(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody else may use an ALU between a result and the operation that takes it up."""
    passes: list[Pass] = []
    place = Schedule.place

    def placed(schedule: Schedule, group: Pass, earliest: int, name: str = "") -> int:
        passes.append(group)
        return place(schedule, group, earliest, name)

    monkeypatch.setattr(Schedule, "place", placed)
    compiled(Shape((3, 2, 1, 1), 96, 3), 960, 50.0, append=True)
    assert len(passes) > 6
    assert [unheld(p) for p in passes if unheld(p)] == []


@pytest.mark.parametrize(
    "shape",
    [
        pytest.param(Shape((2,), 64, 2, shared=False, cached=3), marks=pytest.mark.long),
        Shape((2,), 48, 1, cached=2),
    ],
    ids=str,
)
def test_new_values_share_a_run(shape: Shape) -> None:
    """Keys and values of several tiles are appended in the run that attends to them."""
    rng = np.random.default_rng(11)
    position = 320 * shape.blocks - 30
    stand, visible = Stand(shape), seen(shape, position)
    schedule = Schedule()
    tiles = [shape.tile_of(i) for i in range(shape.cached)]
    key = max(append_key(schedule, SPEC, KEY.at(i), 0, t, PLACES) for i, t in enumerate(tiles))
    groups = tuple((shape.group_of(i), tile) for i, tile in enumerate(tiles))
    values = [NewValue(VALUE.at(i), tile, PLACES) for i, tile in enumerate(tiles)]
    ready = (0, key, 0)
    end = attend_tiles(schedule, SPEC, groups, 320 * shape.blocks, ready, PLACES, 0.0, values)
    table, _, gangs = schedule.blocks()
    program = program_of([table], gangs, end)
    assert check(program, SPEC) == []
    rows = np.zeros((2, shape.cached, 320), np.float32)
    rotated = np.zeros((shape.cached, 320), np.float32)
    rotated[:, : shape.width] = rng.standard_normal((shape.cached, shape.width))
    wanted = []
    for number in range(shape.cached):
        cache = Cache(shape)
        cache.fill(rng, position)
        stand.put_cache(cache, number)
        stand.put_recent(cache, position, number)
        rows[:, number, : shape.width] = [cache.draw(rng, ()) for _ in range(2)]
        cache.keys[position] = numerics.to_f16_bits(rows[0, number])
        cache.values[position] = numerics.to_f16_bits(rows[1, number, : shape.width])
        own = rotated[number : number + 1]
        wanted.append(tiles_of(shape, cache.attended(queries_of(shape, own), visible)))
    stand.put_token(rotated, visible)
    stand.put_new(numerics.to_f16_bits(rows[0, 0]), rows[1, 0], position)
    stand.put_words(KEY, numerics.to_f16_bits(rows[0]).reshape(-1, 320))
    stand.put_words(VALUE, rows[1])
    assert same(stand.run(program), np.concatenate(wanted))


@pytest.mark.parametrize(
    ("heads", "cached", "context", "margin"),
    [
        ((2, 2, 2, 2), 1, 1280, 610),
        ((2, 2, 2, 2), 1, 4096, 610),
        ((2, 2), 1, 1280, 590),
        ((1,), 1, 320, 590),
        ((2,), 2, 4096, 610),
        ((2,), 4, 4096, 630),
    ],
)
def test_cycles_stay_near_the_floor(
    heads: tuple[int, ...], cached: int, context: int, margin: int
) -> None:
    """From rotated queries to readable outputs: the installs of keys and values, and latencies."""
    shape = Shape(heads, 128, -(-context // 320), cached=cached)
    schedule, begin = Schedule(), 100
    groups = tuple((shape.group_of(i), shape.tile_of(i)) for i in range(cached))
    ready = (begin, begin, begin)
    end = attend_tiles(schedule, SPEC, groups, context, ready, PLACES)
    floor = 2 * -(-shape.blocks // 2) * cached * max(27, 2 * sum(heads) + 3)
    assert end - begin <= floor + margin
