"""What a model is dealt out by: cycles estimated by hand, sequences counted one by one.

The columns are those of sixteen words that planes load: of the tiny models below, whose x is one
tile of 112 columns, by their layouts' widths.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from chip.spec import ChipSpec
from programs.decoder import Layout
from programs.decoder.fit import _cost, _most_parts, _size, deal_stages, sequences_that_fit
from programs.decoder.places import StagePlaces
from programs.decoder.stages import FFN, Stage, deal, model_blocks, pack, single_stage, whole_again
from programs.models import LayerKind, ModelConfig, config_of

SPEC = ChipSpec()
LLAMA = ModelConfig(100, 1, 4, 2, 24, 700, 331)
MIXTRAL = ModelConfig(100, 1, 4, 2, 24, 330, 331, experts=3, experts_per_token=2)
LONG = ModelConfig(100, 1, 8, 4, 24, 130, 331, max_position=768)
#: A column of the planes, by their bandwidth; the planes stand still for four tenths.
COLUMN = 1.4 / (4 * 7 / 27 + 4)
EXCHANGE = 786  # of one word between two or four chips, hop and sum


def places(config: ModelConfig, tp: int, context: int) -> StagePlaces:
    return StagePlaces(SPEC, Layout.of(config, tp), "int8", context)


@pytest.mark.parametrize(
    ("own", "attention", "scores", "ffn", "exchange", "head"),
    [
        # (64 + 2 * 32 + 112) / 16; 3 a position; 3 matrices of 2 tiles of 176; 176 / 16
        (places(LLAMA, 2, 16), 15, 3 * 16 + 1500, 66, EXCHANGE, 11),
        # three experts' three matrices of 4 tiles, and a router of 3 columns in two parts
        (places(MIXTRAL, 1, 64), 23, 3 * 64 + 1500, 132 + 0.375, 0, 22),
        # on the planes, by blocks of 320 positions: three
        (places(LONG, 4, 768), 15, 3 * (2 * 7 + 20) + 1200, 9, EXCHANGE, 6),
    ],
    ids=["llama", "mixtral", "on the planes"],
)
def test_cycles_of_a_stage(
    own: StagePlaces, attention: int, scores: int, ffn: float, exchange: int, head: int
) -> None:
    first = COLUMN * attention + scores + exchange + 500
    second = COLUMN * ffn + exchange + 800
    last = COLUMN * head + 300
    blocks = model_blocks(1, 1)
    assert _cost(own, Stage(blocks[:1], False)) == pytest.approx(first, rel=1e-12)
    assert _cost(own, Stage(blocks[1:], False)) == pytest.approx(second, rel=1e-12)
    assert _cost(own, Stage((), True)) == pytest.approx(last, rel=1e-12)
    assert _cost(own, single_stage(1)[0]) == pytest.approx(first + second + last, rel=1e-12)
    half = COLUMN * head / 2 + 300
    assert _cost(own, Stage((), True, 1, 2)) == pytest.approx(half, rel=1e-12)


def test_a_part_of_an_ffn_costs_its_tiles() -> None:
    own = places(LLAMA, 2, 16)
    for part in model_blocks(1, 2)[1:]:
        expected = COLUMN * 33 + EXCHANGE + 800
        assert _cost(own, Stage((part,), False)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("config", "tp", "parts"),
    [
        (LLAMA, 2, 2),  # as many as tiles
        (LLAMA, 1, 3),
        (MIXTRAL, 1, 2),
        (replace(LLAMA, post_norms=True), 1, 1),
        (replace(MIXTRAL, experts=8), 1, 4),  # two experts in each at least
    ],
)
def test_parts_an_ffn_may_be_cut_into(config: ModelConfig, tp: int, parts: int) -> None:
    layout = Layout.of(config, tp)
    assert _most_parts(layout) == parts


FIRST = LayerKind(dense=True)
#: Two layers without experts, with an FFN of three tiles, before two with experts of two each.
MIXED = replace(
    MIXTRAL, layers=4, dense_ffn=700, layer_kinds=(FIRST, FIRST, LayerKind(), LayerKind())
)


def test_a_layer_without_experts_costs_its_own_ffn() -> None:
    own = places(MIXED, 1, 64)
    costs = [_cost(own, Stage((b,), False)) for b in model_blocks(4, 1, MIXED.layer_kinds)]
    assert costs[::2] == costs[:1] * 4
    dense, sparse = COLUMN * 135 + 800, COLUMN * (132 + 0.375) + 800
    assert costs[1::2] == pytest.approx([dense] * 2 + [sparse] * 2, rel=1e-12)
    assert _most_parts(own.layout) == 2 and _most_parts(replace(own.layout, dense_ffn=300)) == 1


def test_stages_are_filled_by_what_their_layers_are() -> None:
    """Where large layers come first, later stages hold more."""
    large = [False] * 3 + [True] * 2 + [False] * 5
    kinds = tuple(LayerKind(dense=one) for one in large)
    blocks = model_blocks(10, 1, kinds)

    def fits(stage: Stage) -> bool:
        ffns = [block for block in stage.blocks if block.kind == FFN]
        return sum(6 if block.of.dense else 2 for block in ffns) + stage.head <= 6

    found = pack(blocks, fits)
    assert found is not None
    assert [[b.layer for b in stage.blocks if b.kind == FFN] for stage in found] == [
        [0, 1, 2],
        [3],
        [4],
        [5, 6, 7],
        [8, 9],
    ]
    assert whole_again(found) == found


@pytest.mark.parametrize("most", [0, 1, 2, 7, 12, 40])
def test_sequences_are_as_many_as_fit_one_by_one(most: int) -> None:
    """Found by doubling and halving; here counted up, on a chip of few words."""
    spec = replace(SPEC, words_per_bank=80)
    layout = Layout.of(LLAMA, 1)
    stages = single_stage(1)

    def held(sequences: int) -> bool:
        own = StagePlaces(spec, layout, "int8", 64, sequences)
        return not any(own.problem(stage, False) for stage in stages)

    count = 0
    while count < most and held(count + 1):
        count += 1
    assert sequences_that_fit(stages, layout, spec, "int8", 64, most) == count
    assert most < 40 or 2 < count < 40


def test_stages_that_spare_the_dearest_nothing_are_not_made() -> None:
    """Four layers on six stages: two of them cannot be divided, so that none need be."""
    blocks = model_blocks(4, 1)

    def cost(stage: Stage) -> float:
        return sum(5 if block.kind == FFN else 4 for block in stage.blocks)

    fewer = deal(blocks, 6, cost, lambda stage: True, fewer=True)
    every = deal(blocks, 6, cost, lambda stage: True)
    assert fewer is not None and every is not None
    assert (len(fewer), len(every)) == (4, 6)
    assert max(map(cost, fewer)) == max(map(cost, every)) == 9
    assert [b for stage in fewer for b in stage.blocks] == [*blocks]


def test_stages_are_one_to_a_block_and_the_head() -> None:
    own = places(replace(LLAMA, layers=2), 2, 16)
    for stages in range(1, 6):
        dealt = deal_stages(own, stages)
        assert len(dealt) == stages and dealt[-1].head
        assert [b for stage in dealt for b in stage.blocks] == [*model_blocks(2, 1)]
    for stages in (0, 6):
        with pytest.raises(ValueError, match=f"{stages} pipeline stages for 2 layers: use 1 to 5,"):
            deal_stages(own, stages)


def test_scales_and_biases_count_where_they_share_a_slice_with_weights() -> None:
    """A layer of gpt-oss-20b on eight chips: 832 words of both beside one plane's weights."""
    config = config_of("gpt-oss-20b")[1]
    own = places(config, 8, 4096)
    assert own.problem(Stage(model_blocks(1, 1, config.layer_kinds), False), False) == ""


def test_sizes_for_people() -> None:
    assert [_size(n) for n in (0, 999.9e6, 1e9, 1234.5e9)] == [
        "0.0 MB",
        "999.9 MB",
        "1.0 GB",
        "1,234.5 GB",
    ]
