"""The machine's floor against figures worked out by hand, and against schedules."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chip.spec import ChipSpec
from programs.models import LayerKind, ModelConfig, config_of
from programs.plans import Floor, floor_of
from programs.plans.floor import attention_floor, exchange_floor, product_floor

SPEC = ChipSpec()


def of(name: str, tp: int, stages: int, dtype: str = "int8", context: int = 4096) -> Floor:
    return floor_of(config_of(name)[1], SPEC, tp=tp, stages=stages, dtype=dtype, context=context)


# Worked out on paper: weights, attention, exchange and latency of a layer.
@pytest.mark.parametrize(
    ("name", "stages", "context", "layer"),
    [
        # q, k, v: 24 groups, 7 tiles x (6 + 7); O: 128 groups in 2 rounds of 16 + 7; gate and up:
        # 88 groups in 2 rounds of 7 x (11 + 7); down: 2 rounds of 3 x 23.  13 blocks, 14 installs
        # of 27.  650 + 672 - 23 + 30 and 650 + 672 - 69 + 30.  12 trips of 88.
        ("tinyllama-1.1b", 1, 4096, (91 + 46 + 252 + 138, 378, 1329 + 1283, 1056)),
        # 13 tiles: 8 have an owner each, 650 + 96 + 35 + 96 + 650, and are made 5/13 of all rounds
        # but one before the end: of 138 cycles, 345, 414.  26: 10 at once of 624, 56 x 24 - 624 +
        # 650 + 30; 18 or more of 1872, 650 + 96 + 30.
        ("llama-2-7b", 7, 4096, (1996, 702, 1474 + 1395, 1056)),
        ("llama-2-7b", 7, 2048, (1996, 378, 1474 + 1395, 1056)),
        ("llama-3-8b", 7, 4096, (1997, 378, 1474 + 1368, 1056)),
        ("llama-2-70b", 72, 4096, (7670, 378, 1400 + 776, 1056)),
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
    """22 layers of 4,573, and a head of 250 groups: 4 rounds of 7 x (16 + 7), and 2 trips."""
    floor = of("tinyllama-1.1b", 8, 1)
    assert floor.head == 644 + 176
    assert floor.cycles == 22 * 4573 + 820
    columns = 7 * (384 + 1408) + 2048 + 3 * 2048  # K tiles times columns of a layer
    assert floor.stream == (22 * columns + 7 * 4000) // 64 + 1


def test_fp16_takes_two_planes_and_no_scales() -> None:
    """Half of the blocks at a time; two vectors an install change nothing where 7 are free."""
    assert product_floor(SPEC, "fp16", 2048, 384) == (84 + 49, 0, 7 * 384 / 32)
    assert product_floor(SPEC, "int8", 2048, 384) == (42 + 49, 0, 7 * 384 / 64)
    narrow, wide = of("tinyllama-1.1b", 8, 1), of("tinyllama-1.1b", 8, 1, "fp16")
    assert wide.latency == narrow.latency * 10 // 12
    assert wide.stream == pytest.approx(2 * narrow.stream, abs=2)


def test_one_chip_exchanges_nothing() -> None:
    assert exchange_floor(SPEC, 1, 26, 0) == 0
    assert of("tinyllama-1.1b", 1, 1).exchange == 0


def test_an_exchange_goes_the_shorter_way() -> None:
    """26 tiles: 104 vectors at once, or 12, a sum and its 4 with a hop more; hidden but 96 cycles.

    While 24 tiles are made, what they are shared by is hidden too.
    """
    assert exchange_floor(SPEC, 8, 26, 0) == 650 + 24 * 12 + 35 + 650 + 24 * 4  # 2 tiles at once
    assert exchange_floor(SPEC, 8, 26, 600) == 24 * (16 + 40) - 600 + 650 + 30  # 10 at once
    assert exchange_floor(SPEC, 8, 26, 900) == 650 + 96 + 35 + 24 * 4 - 900 * 10 // 26 + 650
    assert exchange_floor(SPEC, 4, 6, 0) == 650 + 24 * 24 + 30
    assert exchange_floor(SPEC, 4, 16, 0) == 650 + 96 * 3 + 35 + 650 + 96  # 4 tiles at once
    assert exchange_floor(SPEC, 8, 7, 0) == 650 + 24 * 28 + 30
    assert exchange_floor(SPEC, 8, 26, 10**6) == 650 + 96 + 30


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
    ffn = 3 * 13 * (19 + 7) * 1  # gate and up: 224 groups in 3 rounds of 19
    down = 4 * 6 * (16 + 7)  # 256 groups in 4 rounds of 16, 1,792 rows
    assert sparse.weights - plain.weights == 32 * (ffn + down + 13 * (1 + 7))
    assert sparse.latency - plain.latency == 32 * 88
    assert floor_of(replace(config, experts=64), SPEC, **asked).stream > sparse.stream


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
