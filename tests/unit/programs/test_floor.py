"""The machine's floor against figures worked out by hand, and against schedules."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chip.scheduling import Place, Schedule
from chip.spec import ChipSpec
from interconnect.collectives import (
    RECEIVED_QUADS,
    ReducePlaces,
    SharePlaces,
    all_reduce_in_shares,
    exchange_as_made,
    reduce,
)
from programs.models import LatentAttention, LayerKind, ModelConfig, config_of
from programs.plans import Floor, floor_of
from programs.plans.floor import attention_floor, exchange_floor, product_floor, tiles_made
from programs.sram import EAST_QUAD, KV_QUAD

SPEC = ChipSpec()
READY = 400
MAP = Place((4, 5), 7)


def of(name: str, tp: int, stages: int, dtype: str = "int8", context: int = 4096) -> Floor:
    return floor_of(config_of(name)[1], SPEC, tp=tp, stages=stages, dtype=dtype, context=context)


# Worked out on paper: weights, attention, exchange and latency of a layer.
@pytest.mark.parametrize(
    ("name", "stages", "context", "layer"),
    [
        # q, k, v: 24 groups, 7 tiles x (6 + 7); O: 128 groups in 2 rounds of 16 + 7; gate and up:
        # 88 groups in 2 rounds of 7 x (11 + 7); down: 2 rounds of 3 x 23.  13 blocks, 14 installs
        # of 27.  At once: a first tile of 8 groups is made after 2 + 7, 3 x 9 cycles, 27 x 24 for
        # the others, 650 + 42 + 4 x 3, less 46, 138.  12 trips of 88.
        ("tinyllama-1.1b", 1, 4096, (91 + 46 + 252 + 138, 378, 1315 + 1241, 1056)),
        # 13 tiles, of 20 groups but the first, which has 16: all but one made after 2 x (59 + 21),
        # 2 x 80 cycles of 184; O: 7 vectors of each chip, from 2 x 11 on, take until 166.  650 + 50
        # + 9, 650 + 42 + 3 after that.  down: one tile each, seven after 5 x 48, and then 4 vectors
        # over each hop.
        ("llama-2-7b", 7, 4096, (494 + 184 + 13 * 64 + 460, 702, 1386 + 1328, 1056)),
        ("llama-2-7b", 7, 2048, (494 + 184 + 13 * 64 + 460, 378, 1386 + 1328, 1056)),
        ("llama-3-8b", 7, 4096, (247 + 184 + 13 * 77 + 552, 378, 1386 + 1284, 1056)),
        # O: 13 vectors of each chip, its own three whole tiles last: 23 are made in 4 x (113 + 42),
        # 650 + 50 + 9, 650 + 42 + 3 after that, less 4 x 177.
        # down: 18 tiles have all that are dealt; 21 after 12 x (103 + 42), from then on 23 x 24, 54
        # and 650 less 12 x 177.
        ("llama-2-70b", 72, 4096, (702 + 708 + 26 * 154 + 2124, 378, 1316 + 872, 1056)),
    ],
)
def test_terms_of_published_shapes(
    name: str, stages: int, context: int, layer: tuple[int, int, int, int]
) -> None:
    floor, layers = of(name, 8, stages, context=context), config_of(name)[1].layers
    terms = (floor.weights, floor.attention, floor.exchange, floor.latency)
    assert terms == tuple(layers * term for term in layer)
    assert floor.boundaries == 650 * (stages - 1)


def test_the_whole_is_its_parts() -> None:
    """22 layers of 4,517, and a head of 250 groups: 4 rounds, 7 x (63 + 28), and 2 trips."""
    floor = of("tinyllama-1.1b", 8, 1)
    assert floor.head == 637 + 176
    assert floor.cycles == 22 * 4517 + 813
    columns = 7 * (384 + 1408) + 2048 + 3 * 2048  # K tiles times columns of a layer
    assert floor.stream == (22 * columns + 7 * 4000) // 64 + 1


def test_fp16_takes_two_planes_and_no_scales() -> None:
    """Half of the blocks at a time; two vectors an install change nothing where 7 are free."""
    assert product_floor(SPEC, "fp16", 2048, 384) == (84 + 49, 7 * 384 / 32)
    assert product_floor(SPEC, "int8", 2048, 384) == (42 + 49, 7 * 384 / 64)
    narrow, wide = of("tinyllama-1.1b", 8, 1), of("tinyllama-1.1b", 8, 1, "fp16")
    assert wide.latency == narrow.latency * 10 // 12
    assert wide.stream == pytest.approx(2 * narrow.stream, abs=2)


def test_one_chip_exchanges_nothing() -> None:
    assert exchange_floor(SPEC, 1, [0] * 26) == 0
    assert of("tinyllama-1.1b", 1, 1).exchange == 0


def test_an_exchange_goes_the_shorter_way() -> None:
    """26 tiles: 104 vectors at once, or 13 each, a sum and its vectors with a hop more."""

    def at_once(tp: int, tiles: int) -> int:
        return exchange_floor(SPEC, tp, [0] * tiles)

    first, more = 650 + 50, 42 + 3 + 650
    assert at_once(8, 26) == first + 24 * 12 + 9 + more
    assert at_once(4, 16) == first + 24 * 11 + 6 + 24 * 3 + more  # 4 tiles at once
    assert at_once(4, 6) == 24 * 23 + 42 + 9 + 650
    assert at_once(8, 7) == 24 * 27 + 42 + 12 + 650
    assert at_once(2, 1) == 24 * 3 + 42 + 6 + 650
    # a tile in 100 cycles, each sent before the next is there
    slow = [100 * n for n in range(1, 27)]
    assert exchange_floor(SPEC, 8, slow) == 24 * 3 + 42 + 12 + 650


def test_each_chip_may_make_its_own_tiles_last() -> None:
    """24 tiles of 8 chips: three of each chip's own, which no link takes, after the other 21.

    Those are there after 4 x (105 + 42) cycles, three vectors later and a hop; their sums leave in
    50 + 9 and three vectors more, end in 42 + 3 and another hop; all is made in 4 x (120 + 42).
    """
    near = replace(SPEC, hop_cycles=232)
    made = tiles_made(near, "int8", 4 * 320, 24 * 320, 1)
    assert (made[20], made[22], made[23]) == (588, 628, 648)
    sums_leave = 588 + 3 * 24 + 232 + 59 + 3 * 24
    assert exchange_floor(near, 8, made) == sums_leave + 45 + 232 - 648 == 652
    # one tile of each chip's own: all but one of them are others'
    made = tiles_made(near, "int8", 4 * 320, 8 * 320, 1)
    assert (made[6], made[7]) == (196, 216)
    assert exchange_floor(near, 8, made) == 196 + 2 * (3 * 24 + 232) + 59 + 45 - 216


def test_tiles_are_made_as_fast_as_rounds_of_any_width_allow() -> None:
    """The last tile of 4,096 columns has 16 groups of 20: four rounds for 13, two for 8."""
    made = tiles_made(SPEC, "int8", 640, 4096, 1)
    assert len(made) == 13
    assert (made[0], made[3], made[7]) == (2 * (4 + 7), 2 * (19 + 7), 2 * (39 + 14))
    assert made[-1] == product_floor(SPEC, "int8", 640, 4096).cycles == 2 * (64 + 28)
    assert tiles_made(SPEC, "int8", 640, 4096, 1, 3) == [3 * n for n in made]
    # 81 groups: one more than a round holds; a round of one group is half as long as its install
    assert product_floor(SPEC, "int8", 320, 81 * 16).cycles == 21 + 14
    assert product_floor(SPEC, "fp16", 320, 41 * 16, 5).cycles == max(21 + 14, 2 * 13)


#: lpu-1, and others whose hops and links are nearer and farther.
MACHINES = [
    SPEC,
    replace(SPEC, mxm_reload_gap_cycles=1, hop_cycles=232),
    replace(SPEC, send_spacing_cycles=6),
    replace(SPEC, send_spacing_cycles=100),
]


def whole_tiles(spec: ChipSpec, k_tiles: int, columns: int) -> list[int]:
    """When tiles are made in rounds of four, and what of them remains on all planes at once."""
    tiles, at, ready = -(-columns // 320), 0, []
    for _ in range(tiles // 4):
        at += k_tiles * (20 + spec.mxm_reload_gap_cycles)
        ready += 4 * [at]
    if left := -(-columns // 16) - 80 * (tiles // 4):
        wide = -(-left // 4) + spec.mxm_reload_gap_cycles
        at += k_tiles * max(wide, 2 + spec.mxm_install_cycles)
        ready += (tiles % 4) * [at]
    return ready


@pytest.mark.parametrize("tp", [2, 8])
@pytest.mark.parametrize("spec", MACHINES)
def test_no_schedule_of_a_product_and_its_sums_is_below_the_floor(spec: ChipSpec, tp: int) -> None:
    """Of whole tiles, which finish those that are dealt sooner than even rounds; of every share."""
    received = {k: Place(RECEIVED_QUADS[k], 0) for k in range(1, tp)}
    places = ReducePlaces(Place(KV_QUAD, 0), Place(EAST_QUAD, 0), received)
    nearest = 1 << 30
    for columns, k_tiles in [(320, 1), (2048, 2), (4096, 2), (4096, 5), (4112, 1)]:
        given = whole_tiles(spec, k_tiles, columns)
        made = tiles_made(spec, "int8", 320 * k_tiles, columns, 1)
        assert all(floor <= cycles for floor, cycles in zip(made, given, strict=True))
        for ready, floors in ((given, made), ([0] * len(given), [0] * len(given))):
            floor = floors[-1] + exchange_floor(spec, tp, floors)
            for share in range(0, len(ready) // tp + 1, 8 // tp):
                schedule, own = Schedule(), SharePlaces(share, Place(EAST_QUAD, 100), MAP)
                later = [READY + cycles for cycles in ready]
                if share:
                    _, done, _ = all_reduce_in_shares(
                        schedule, spec, tp, later, places, own, places.residual
                    )
                else:
                    there = exchange_as_made(schedule, spec, tp, later, places)
                    done = reduce(schedule, spec, tp, len(ready), there, places)
                assert floor <= done - READY
                nearest = min(nearest, done - READY - floor)
    assert nearest < 30  # and what is at once when all is made is close to it


def test_heads_share_installs_until_their_queries_take_longer() -> None:
    assert attention_floor(SPEC, 1, 8, 320) == 2 * 27
    assert attention_floor(SPEC, 1, 12, 320) == 2 * 27
    assert attention_floor(SPEC, 1, 20, 320) == 2 * 43
    assert attention_floor(SPEC, 2, 4, 4096) == 26 * 27


def test_a_window_bounds_its_layers() -> None:
    config = config_of("tinyllama-1.1b")[1]
    kinds = tuple(LayerKind(sliding=layer % 2 == 0) for layer in range(config.layers))
    sliding = replace(config, sliding_window=640, layer_kinds=kinds)
    asked = {"tp": 8, "stages": 1, "dtype": "int8", "context": 2048}
    assert floor_of(sliding, SPEC, **asked).attention == 11 * 2 * 27 + 11 * 8 * 27


def test_chosen_experts_count_and_a_router_is_a_trip() -> None:
    """Two of eight: the FFN twice, the router's one group a tile, a trip more."""
    config = config_of("mixtral-8x7b")[1]
    dense = replace(config, experts=1, experts_per_token=1)
    asked = {"tp": 8, "stages": 40, "dtype": "int8", "context": 4096}
    sparse, plain = floor_of(config, SPEC, **asked), floor_of(dense, SPEC, **asked)
    ffn = 13 * (56 + 3 * 7)  # gate and up: 224 groups in 3 rounds
    down = 4 * 6 * (16 + 7)  # 256 groups in 4 rounds of 16, 1,792 rows
    assert sparse.weights - plain.weights == 32 * (ffn + down + 13 * (1 + 7))
    assert sparse.latency - plain.latency == 32 * 88
    assert floor_of(replace(config, experts=64), SPEC, **asked).stream > sparse.stream


def test_layers_without_experts_count_their_own_ffn() -> None:
    config = config_of("mixtral-8x7b")[1]
    kinds = tuple(LayerKind(dense=layer < 3) for layer in range(32))
    some = replace(config, dense_ffn=7000, layer_kinds=kinds)
    every = replace(config, ffn=7000, experts=1, experts_per_token=1)
    asked = {"tp": 8, "stages": 40, "dtype": "int8", "context": 4096}
    found, sparse, plain = (floor_of(one, SPEC, **asked) for one in (some, config, every))
    for name in ("weights", "exchange", "latency"):
        of_all, of_none = getattr(sparse, name), getattr(plain, name)
        assert getattr(found, name) == of_all // 32 * 29 + of_none // 32 * 3
    assert found.head == sparse.head and found.attention == sparse.attention
    assert found.stream < sparse.stream


def test_latents_are_products_trips_and_a_cache() -> None:
    """Of x 960 columns, of the latent 512 and of the results 2,048; a sum of squares and a product
    are one trip each.  Two heads of a chip have two tiles of keys and one of values; many attend to
    two tiles of latents and shared keys, and two of latents.
    """
    config = config_of("deepseek-v2-lite")[1]
    asked = {"tp": 8, "stages": 27, "dtype": "int8", "context": 4096}
    found = floor_of(config, SPEC, **asked)
    plain = replace(config, latent=None, head_dim=128)
    usual = floor_of(plain, SPEC, **asked)
    own, other = 7 * (15 + 7) + 2 * (8 + 7), 7 * (12 + 7)
    assert found.weights - usual.weights == 27 * (own - other)
    assert found.latency - usual.latency == 27 * 2 * 88
    assert found.attention == 27 * (13 * 27 + 7 * 27)
    many = replace(config, heads=1024, kv_heads=1024)
    assert floor_of(many, SPEC, **asked).attention == 27 * 2 * 13 * (2 * 128 + 3)
    low = replace(config, latent=LatentAttention(512, 64, 1536, 128))
    queries = floor_of(low, SPEC, **asked).weights - found.weights
    assert queries == 27 * (7 * (33 + 2 * 7) + 5 * (6 + 7) - 7 * (15 + 7))


def test_norms_are_trips_and_a_norm_over_all_heads_an_exchange() -> None:
    config = config_of("mistral-7b")[1]

    def terms(dtype: str, **changed: bool) -> tuple[int, int]:
        floor = floor_of(
            replace(config, **changed), SPEC, tp=8, stages=7, dtype=dtype, context=4096
        )
        return floor.latency // 32, floor.exchange // 32

    before, exchange = terms("int8")
    assert before == 12 * 88
    assert terms("int8", head_norms=True) == (13 * 88, exchange)
    assert terms("int8", post_norms=True) == (14 * 88, exchange)
    assert terms("int8", post_norms=True, pre_norms=False) == (14 * 88, exchange)
    assert terms("fp16", post_norms=True, pre_norms=False)[0] == 10 * 88
    assert terms("int8", wide_norms=True) == (13 * 88, exchange + 650 + 96 + 30)


def test_layers_without_head_norms_have_no_trip_of_them() -> None:
    """Of Llama 4 Scout's 48 layers 12 have plain heads: 36 have 14 trips of 88, a router's too."""
    config = config_of("llama-4-scout")[1]
    floor = floor_of(config, SPEC, tp=8, stages=48, dtype="int8", context=4096)
    assert floor.latency == 36 * 14 * 88 + 12 * 13 * 88


@given(
    hidden=st.integers(1, 64).map(lambda n: 64 * n),
    ffn=st.integers(1, 64).map(lambda n: 64 * n),
    tp=st.sampled_from([1, 2, 4, 8]),
    dtype=st.sampled_from(["int8", "fp16"]),
    context=st.integers(1, 8192),
)
def test_more_work_never_takes_less(
    hidden: int, ffn: int, tp: int, dtype: str, context: int
) -> None:
    config = ModelConfig(
        hidden_size=hidden, layers=2, heads=8, kv_heads=4, head_dim=64, ffn=ffn, vocab=4000
    )
    asked = {"tp": tp, "stages": 1, "dtype": dtype, "context": context}
    floor = floor_of(config, SPEC, **asked)
    assert floor.cycles == sum(
        (floor.weights, floor.attention, floor.exchange, floor.latency, floor.head)
    )
    assert floor.stream <= floor.weights + floor.head
    for more in (
        replace(config, layers=3),
        replace(config, ffn=2 * ffn),
        replace(config, vocab=9000),
    ):
        assert floor_of(more, SPEC, **asked).cycles >= floor.cycles
        assert floor_of(more, SPEC, **asked).stream >= floor.stream
    assert floor_of(config, SPEC, **{**asked, "context": 2 * context}).cycles >= floor.cycles
    parted = floor_of(config, SPEC, **asked, head_parts=2)
    assert parted.head <= floor.head and parted.weights == floor.weights
    columns = -(-ffn // tp)
    assert floor_of(config, SPEC, **asked, part_columns={1: columns}) == floor
    halved = floor_of(config, SPEC, **asked, part_columns={1: -(-columns // 2)})
    both = floor_of(config, SPEC, **asked, part_columns={0: -(-columns // 2), 1: -(-columns // 2)})
    assert both.weights - halved.weights == halved.weights - floor.weights <= 0
