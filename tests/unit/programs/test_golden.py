"""The golden model against an independent float32 forward: logits and held-out perplexity."""

import dataclasses
from itertools import pairwise

import numpy as np
import pytest
from numpy.typing import NDArray

from programs.decoder import GoldenDecoder, Layout, partition_model, random_chip_weights
from programs.decoder.lanes import PartitionError
from programs.decoder.partition import chip_weights
from programs.models import (
    Checkpoint,
    CheckpointError,
    ModelConfig,
    load_checkpoint,
    random_checkpoint,
)
from programs.models.checkpoint import RopeScaling
from tests import ROOT
from tests.oracles.llama_float32 import LlamaFloat32, perplexity, rope_frequencies

CHECKPOINTS = ROOT / "programs" / "checkpoints"
WINDOW = 128
"""Tokens per held-out sequence, the leading end-of-text mark included."""
# Root-mean-square logit error allowed, relative to the spread of the float32 logits.
TOLERANCE = {"int8": 0.02, "fp16": 0.002}
PERPLEXITY = {"int8": 0.02, "fp16": 0.001}

AWKWARD = {
    "one KV head, lanes to spare": ModelConfig(
        hidden_size=100, layers=2, heads=5, kv_heads=1, head_dim=24, ffn=130, vocab=997
    ),
    "two tiles, three KV heads": ModelConfig(
        hidden_size=344, layers=2, heads=9, kv_heads=3, head_dim=40, ffn=700, vocab=997, tied=True
    ),
    "many heads on many tiles": ModelConfig(
        hidden_size=100, layers=1, heads=24, kv_heads=12, head_dim=72, ffn=11, vocab=5
    ),
    "more chips than elements": ModelConfig(
        hidden_size=7, layers=2, heads=3, kv_heads=3, head_dim=2, ffn=5, vocab=3
    ),
    "stretched rope, no grouping": ModelConfig(
        hidden_size=656,
        layers=1,
        heads=8,
        kv_heads=8,
        head_dim=320,
        ffn=333,
        vocab=61,
        rope_theta=500.0,
        rope_scaling=RopeScaling("llama3", 8.0, 1.0, 4.0, 32),
    ),
    "linear rope": ModelConfig(
        hidden_size=64,
        layers=1,
        heads=4,
        kv_heads=2,
        head_dim=16,
        ffn=96,
        vocab=64,
        rope_scaling=RopeScaling("linear", 4.0),
    ),
}


@pytest.fixture(scope="module")
def target() -> Checkpoint:
    """The shipped target model."""
    return load_checkpoint(CHECKPOINTS / "target")


def held_out(checkpoint: Checkpoint, sequences: int, window: int) -> list[list[int]]:
    """Return evenly spaced windows of the held-out text, each behind an end-of-text mark."""
    text = (CHECKPOINTS / "heldout.txt").read_text(encoding="utf-8")
    tokens = checkpoint.tokenizer.encode(text).ids
    starts = np.linspace(0, len(tokens) - window, sequences).astype(int)
    return [[0, *tokens[start : start + window - 1]] for start in starts]


def relative_error(logits: NDArray[np.float32], reference: NDArray[np.float32]) -> float:
    """Return the root-mean-square difference over the standard deviation of `reference`."""
    return float(np.sqrt(np.mean((logits - reference) ** 2)) / reference.std())


@pytest.mark.parametrize("dtype", ["int8", "fp16"])
@pytest.mark.parametrize("tp", [1, 2, 4, 8])
@pytest.mark.cases(1)
def test_target_logits_are_close_to_float32(target: Checkpoint, tp: int, dtype: str) -> None:
    """The shipped model on any number of chips computes what plain float32 does."""
    (tokens,) = held_out(target, 1, 40)
    reference = LlamaFloat32(target).logits(tokens)
    logits = GoldenDecoder(partition_model(target, tp, dtype)).logits_for(tokens)
    assert logits.dtype == np.float32 and logits.shape == (40, target.config.vocab)
    error = relative_error(logits, reference)
    assert error < TOLERANCE[dtype], f"{dtype}, tp {tp}: relative error {error:.5f}"


def check_perplexity(
    checkpoint: Checkpoint, tp: int, dtype: str, sequences: int, window: int
) -> None:
    """Compare the held-out perplexity of the golden model with that of float32."""
    model, golden = LlamaFloat32(checkpoint), GoldenDecoder(partition_model(checkpoint, tp, dtype))
    surprise = np.zeros(2)
    texts = held_out(checkpoint, sequences, window)
    for tokens in texts:
        surprise[0] += np.log(perplexity(model.logits(tokens), tokens))
        surprise[1] += np.log(perplexity(golden.logits_for(tokens), tokens))
    exact, ours = np.exp(surprise / len(texts))
    ratio = ours / exact - 1
    figures = (
        f"{dtype}, tp {tp}, {sequences} x {window} tokens: perplexity {ours:.4f}, "
        f"float32 {exact:.4f}, {100 * ratio:+.4f} %, allowed {100 * PERPLEXITY[dtype]} %"
    )
    print(figures)
    assert abs(ratio) <= PERPLEXITY[dtype], figures


@pytest.mark.parametrize(
    ("tp", "dtype"),
    [
        (1, "int8"),
        pytest.param(8, "int8", marks=pytest.mark.long),
        pytest.param(1, "fp16", marks=pytest.mark.long),
    ],
)
@pytest.mark.long
def test_held_out_perplexity(target: Checkpoint, tp: int, dtype: str) -> None:
    """Quantisation costs at most 2 % of perplexity in int8 and 0.1 % in fp16."""
    check_perplexity(target, tp, dtype, 5, WINDOW)


@pytest.mark.long
def test_draft_held_out_perplexity() -> None:
    """The draft, a smaller and so more sensitive model, keeps the same bound."""
    check_perplexity(load_checkpoint(CHECKPOINTS / "draft"), 1, "int8", 5, WINDOW)


@pytest.mark.long
@pytest.mark.parametrize("dtype", ["int8", "fp16"])
@pytest.mark.parametrize("tp", [1, 2, 4, 8])
def test_held_out_perplexity_at_length(target: Checkpoint, tp: int, dtype: str) -> None:
    """The same over 2,048 tokens in longer windows, on any number of chips."""
    check_perplexity(target, tp, dtype, 8, 256)


@pytest.mark.parametrize("dtype", ["int8", "fp16"])
@pytest.mark.parametrize("tp", [1, 2, 4, 8])
@pytest.mark.parametrize("name", AWKWARD)
@pytest.mark.cases(6)
def test_awkward_shapes_are_close_to_float32(name: str, tp: int, dtype: str) -> None:
    """Padding, null heads, empty slices, replication and several tiles all come out right."""
    checkpoint = random_checkpoint(AWKWARD[name], seed=3)
    tokens = [at * 7 % AWKWARD[name].vocab for at in range(1, 11)]
    reference = LlamaFloat32(checkpoint).logits(tokens)
    logits = GoldenDecoder(partition_model(checkpoint, tp, dtype)).logits_for(tokens)
    error = relative_error(logits, reference)
    limit = 2 * TOLERANCE[dtype]  # random weights average less than trained ones
    assert error < limit, f"{name}, {dtype}, tp {tp}: relative error {error:.5f}"


@pytest.mark.long
@pytest.mark.parametrize(("tp", "dtype"), [(1, "int8"), (4, "int8"), (2, "fp16")])
@pytest.mark.cases(1)
def test_context_bucket_changes_no_bit(target: Checkpoint, tp: int, dtype: str) -> None:
    """A longer bucket adds masked positions only, stale keys and values in them included."""
    golden = GoldenDecoder(partition_model(target, tp, dtype))
    (tokens,) = held_out(target, 1, 64)
    short = golden.logits_for(tokens, 64)
    longer = golden.logits_for(tokens, 128)
    assert short.tobytes() == longer.tobytes()
    # second pass over the same cache: positions beyond the current one hold old values
    again = np.stack([golden.step(token, at, 128) for at, token in enumerate(tokens)])
    assert again.tobytes() == short.tobytes()


def test_growing_bucket_carries_the_cache(target: Checkpoint) -> None:
    """Going over from one bucket to the next one keeps keys and values."""
    golden = GoldenDecoder(partition_model(target, 1, "int8"))
    (tokens,) = held_out(target, 1, 12)
    whole = golden.logits_for(tokens, 16)
    golden.reset()
    grown = np.stack([golden.step(t, at, 6 if at < 6 else 12) for at, t in enumerate(tokens)])
    assert grown.tobytes() == whole.tobytes()
    with pytest.raises(ValueError, match="position 12 is outside a context of 12"):
        golden.step(1, 12, 12)


FAMILIES = {
    "llama": AWKWARD["two tiles, three KV heads"],
    "qwen3": dataclasses.replace(AWKWARD["one KV head, lanes to spare"], head_norms=True),
    "gemma": dataclasses.replace(
        AWKWARD["more chips than elements"],
        activation="gelu_tanh",
        unit_gain=True,
        scaled_embedding=True,
    ),
    "mixtral": dataclasses.replace(AWKWARD["linear rope"], experts=3, experts_per_token=2),
}


@pytest.mark.parametrize("dtype", ["int8", "fp16"])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_block_of_positions_is_as_steps(
    name: str, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Logits, residual streams and saturations do not depend on how a text is cut."""
    monkeypatch.setattr("programs.decoder.golden.MOST_POSITIONS", 5)
    checkpoint = Checkpoint(FAMILIES[name], _Loud(random_checkpoint(FAMILIES[name], 4)))
    tokens = [at * 5 % checkpoint.config.vocab for at in range(1, 13)]
    seen: list[dict[tuple[int, str], list[NDArray[np.float32]]]] = []
    found = []
    for cuts in (range(13), (0, 12), (0, 1, 8, 12)):
        model = partition_model(checkpoint, 2, dtype)
        model.split = {0: (1, 1)} if model.layout.ffn_tiles > 1 else {}
        golden = GoldenDecoder(model)
        streams: dict[tuple[int, str], list[NDArray[np.float32]]] = {}
        seen.append(streams)

        def watch(
            layer: int,
            part: str,
            x: NDArray[np.float32],
            streams: dict[tuple[int, str], list[NDArray[np.float32]]] = streams,
        ) -> None:
            streams.setdefault((layer, part), []).append(x)

        blocks = [golden.block(tokens[a:b], a, 16, watch) for a, b in pairwise(cuts)]
        counts = {place: n.tolist() for place, n in golden.tally.counts.items()}
        found.append((np.concatenate(blocks).tobytes(), counts))
    assert found[0] == found[1] == found[2] and found[0][1]
    assert len(seen[0]) == 2 * checkpoint.config.layers
    for other in seen[1:]:
        for place, streams_there in seen[0].items():
            whole = np.concatenate(streams_there)
            assert whole.shape[:2] == (12, model.layout.x_tiles)
            assert whole.tobytes() == np.concatenate(other[place]).tobytes()


def test_layout_of_a_grouped_model() -> None:
    """TinyLlama on eight chips, by hand."""
    layout = Layout.of(ModelConfig(2048, 22, 32, 4, 64, 5632, 32000), 8)
    assert (layout.x_tiles, layout.x_width) == (7, 304)
    assert (layout.query_heads, layout.q_tiles, layout.heads_per_tile) == (4, 1, 4)
    assert (layout.kv_heads, layout.kv_tiles, layout.kv_heads_per_tile) == (1, 1, 1)
    assert layout.replicate and layout.kv_slots(3) == [0, 0, 0, 0]
    assert (layout.ffn_per_chip, layout.ffn_tiles, layout.ffn_width) == (704, 3, 240)
    assert (layout.vocab_per_chip, layout.vocab_blocks, layout.vocab_width) == (4000, 13, 320)
    axis = layout.q_axis(7)
    assert axis[0, 64 + 16] == 29 * 64 + 8  # second head of the chip, half index 8
    assert axis[0, 64 + 24] == 29 * 64 + 40  # its partner
    assert (axis[0, 256:] == -1).all()


@pytest.mark.parametrize(
    ("shape", "copies", "tiles", "columns"),
    [
        ((2048, 22, 32, 4, 64, 5632, 32000), 4, 1 + 1 + 1, 256 + 64 + 64),  # TinyLlama
        ((4096, 32, 32, 8, 128, 14336, 128256), 2, 2 + 1 + 1, 512 + 128 + 128),  # Llama 3 8B
        ((576, 30, 9, 3, 64, 1536, 49152), 1, 1 + 1 + 1, 128 + 128 + 128),  # SmolLM2: 2 KV heads
        ((8192, 80, 64, 8, 128, 28672, 32000), 0, 4 + 1 + 1, 1024 + 128 + 128),  # a round more
    ],
)
def test_keys_at_their_query_heads(
    shape: tuple[int, ...], copies: int, tiles: int, columns: int
) -> None:
    """K is made for every query head where that takes no round, and no word, more."""
    layout = Layout.of(ModelConfig(*shape, max_position=4096), 8)
    assert layout.replicate and layout.wide_keys == (copies > 0)
    assert layout.key_copies == max(copies, 1)
    assert (layout.projected_tiles, layout.qkv_columns) == (tiles, columns * layout.x_tiles)
    assert layout.wide_values == (copies == 1)
    assert layout.key_width * layout.key_copies == (layout.q_width if copies else layout.kv_width)


@pytest.mark.parametrize("name", AWKWARD)
@pytest.mark.parametrize("tp", [1, 2, 4, 8])
def test_every_element_has_one_place(name: str, tp: int) -> None:
    """Over all chips each query row, feed-forward element and token occurs exactly once."""
    config = AWKWARD[name]
    layout = Layout.of(config, tp)
    for axis, count, width in (
        (layout.q_axis, config.heads * config.head_dim, layout.q_width),
        (layout.ffn_axis, config.ffn, layout.ffn_width),
        (layout.vocab_axis, config.vocab, layout.vocab_width),
    ):
        tables = np.stack([axis(chip) for chip in range(tp)])
        assert sorted(tables[tables >= 0]) == list(range(count))
        assert width <= 320 and width % 16 == 0 and (tables[..., width:] == -1).all()
    for chip in range(tp):
        kv, slots = layout.kv_axis(chip), layout.kv_slots(chip)
        for head, slot in enumerate(slots):
            tile, at = divmod(slot, layout.kv_heads_per_tile)
            first = kv[tile, at * layout.head_lanes] // config.head_dim
            group = config.heads // config.kv_heads
            assert first == (chip * layout.query_heads + head) // group


@pytest.mark.parametrize("dtype", ["int8", "fp16"])
def test_random_chip_weights_have_the_real_shapes(dtype: str) -> None:
    """Benchmark weights match built ones in shape and number type, and in where they are zero."""
    config = dataclasses.replace(
        AWKWARD["two tiles, three KV heads"],
        head_norms=True,
        qkv_bias=True,
        o_bias=True,
        experts=3,
        experts_per_token=2,
        sinks=True,
        expert_bias=True,
        activation="clamped_silu",
    )
    layout = Layout.of(config, 2)
    drawn = random_chip_weights(layout, dtype, 1, 1)
    built = chip_weights(random_checkpoint(config, 1), layout, dtype, 1)
    pairs = [(drawn.head, built.head)]
    for a, b in zip(drawn.layers, built.layers, strict=True):
        other = ("head_gains", "key_shares", "post_gains", "bias", "o_bias", "factors")
        other += ("router_bias", "expert_biases", "sinks", "share_gate", "latent")
        names = [f.name for f in dataclasses.fields(a) if f.name not in other]
        pairs += [(getattr(a, name), getattr(b, name)) for name in names]
        assert a.head_gains is not None and b.head_gains is not None
        assert ((a.head_gains != 0) <= (b.head_gains != 0)).all()
        assert a.expert_biases is not None and b.expert_biases is not None
        biases = [*zip(a.expert_biases, b.expert_biases, strict=True)]
        biases += [(a.sinks, b.sinks), (a.router_bias, b.router_bias)]
        for ours, theirs in [(a.bias, b.bias), (a.o_bias, b.o_bias), *biases]:
            assert ours is not None and theirs is not None
            np.testing.assert_array_equal(ours == 0, theirs == 0)
        for ours, theirs in zip(
            (*a.factors, drawn.factors), (*b.factors, built.factors), strict=True
        ):
            assert (ours is None) == (theirs is None) == (dtype == "fp16")
            if ours is not None and theirs is not None:
                np.testing.assert_array_equal(ours == 0, theirs == 0)
        assert a.key_shares is None and a.post_gains == b.post_gains == (None, None)
    for mine, real in pairs:
        assert mine.values.shape == real.values.shape and mine.values.dtype == real.values.dtype
        used = (real.values != 0).any(axis=(1, 2))  # [k_tiles, 320]: the lanes with an element
        assert ((mine.values != 0).any(axis=(1, 2)) == used).all()
        assert (mine.scale is None) == (real.scale is None)
        if mine.scale is not None and real.scale is not None:
            np.testing.assert_array_equal(mine.scale == 0, real.scale == 0)
    assert drawn.replicate is not None and built.replicate is not None
    sharing = dataclasses.replace(AWKWARD["two tiles, three KV heads"], experts=3)
    sharing = dataclasses.replace(sharing, shared_experts=2, shared_gate=True)
    layout = Layout.of(sharing, 2)
    gates = [
        made.layers[0].share_gate
        for made in (
            random_chip_weights(layout, dtype, 1, 1),
            chip_weights(random_checkpoint(sharing, 1), layout, dtype, 1),
        )
    ]
    assert gates[0] is not None and gates[1] is not None
    np.testing.assert_array_equal(gates[0].values.shape, gates[1].values.shape)
    after = dataclasses.replace(config, head_norms=False, wide_norms=True, post_norms=True)
    layout = Layout.of(after, 2)
    drawn = random_chip_weights(layout, dtype, 1, 1)
    built = chip_weights(random_checkpoint(after, 1), layout, dtype, 1)
    for a, b in zip(drawn.layers, built.layers, strict=True):
        for mine, real in [
            *zip(a.post_gains, b.post_gains, strict=True),
            (a.head_gains, b.head_gains),
            (a.key_shares, b.key_shares),
        ]:
            assert mine is not None and real is not None and mine.dtype == real.dtype
            np.testing.assert_array_equal(mine == 0, real == 0)
    np.testing.assert_array_equal(drawn.replicate, built.replicate)
    other = random_chip_weights(layout, dtype, 2, 1)
    assert not np.array_equal(other.head.values, drawn.head.values)


def test_rope_rows_match_library_sines(target: Checkpoint) -> None:
    """Rows agree with the library's sine and cosine, near the last bit, at any position."""
    for checkpoint in (target, random_checkpoint(AWKWARD["stretched rope, no grouping"], 0)):
        model = partition_model(checkpoint, 1)
        lanes = model.layout.half_lanes
        for position in (0, 1, 63, 4095, 131071):
            ((cos, sin),) = model.rope_rows(position)
            angle = position * rope_frequencies(checkpoint.config)
            np.testing.assert_allclose(cos[lanes], np.cos(angle), atol=1e-7)
            np.testing.assert_allclose(sin[lanes + 8], np.sin(angle), atol=1e-7)
            np.testing.assert_array_equal(sin[lanes], -sin[lanes + 8])


def test_impossible_layouts_are_one_line() -> None:
    """Wrong tp, dtype, chip, oversized heads and weights that are no numbers."""
    config = AWKWARD["linear rope"]
    checkpoint = random_checkpoint(config, 0)
    with pytest.raises(PartitionError, match="tp is 3; tensor parallelism must be 1, 2, 4 or 8"):
        partition_model(checkpoint, 3)
    with pytest.raises(PartitionError, match="number type is 'int4'; it must be int8 or fp16"):
        partition_model(checkpoint, 1, "int4")
    with pytest.raises(PartitionError, match=r"chip is 2; this layout has chips 0\.\.1"):
        partition_model(checkpoint, 2).chip(2)
    with pytest.raises(PartitionError, match="head_dim is 322; a head must fit"):
        Layout.of(dataclasses.replace(config, head_dim=322), 1)
    with pytest.raises(CheckpointError, match="token 64 is outside"):
        partition_model(checkpoint, 1).embedding(64)
    broken = Checkpoint(config, _BrokenHead(checkpoint))
    with pytest.raises(PartitionError, match=r"'lm_head\.weight' holds a NaN or infinity"):
        partition_model(broken, 1).chip(0)
    loud = Checkpoint(config, _BrokenHead(checkpoint, 1e7))
    with pytest.raises(PartitionError, match=r"'lm_head\.weight' holds .* beyond fp16's 65,504"):
        partition_model(loud, 1, "fp16").chip(0)
    partition_model(loud, 1, "int8").chip(0)


class _Loud:
    """A model's tensors, but for values of attention so large that they saturate."""

    def __init__(self, whole: Checkpoint) -> None:
        self._whole = whole

    def read(
        self, name: str, rows: NDArray[np.int64] | None, columns: NDArray[np.int64] | None
    ) -> NDArray[np.float32]:
        """Read as the whole model does."""
        values = self._whole.source.read(name, rows, columns)
        return values * np.float32(7e4) if name.endswith("v_proj.weight") else values


class _BrokenHead:
    """A model's tensors, but for an output head times ``factor``, all NaN for a NaN."""

    def __init__(self, whole: Checkpoint, factor: float = np.nan) -> None:
        self._whole, self._factor = whole, factor

    def read(
        self, name: str, rows: NDArray[np.int64] | None, columns: NDArray[np.int64] | None
    ) -> NDArray[np.float32]:
        """Read as the whole model does."""
        values = self._whole.source.read(name, rows, columns)
        return values * np.float32(self._factor) if name == "lm_head.weight" else values
