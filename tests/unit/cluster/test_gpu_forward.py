"""The GPU side's forward pass: near the plain yardstick, and the same bits in any batching."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.errors import InputError
from cluster.gpu import GpuModel
from cluster.gpu._forward_kernels import project
from cluster.gpu.forward import KvCache
from programs.models import ModelConfig, load_checkpoint, random_checkpoint
from programs.models.checkpoint import RopeScaling
from tests import ROOT
from tests.oracles.llama_float32 import LlamaFloat32

SHIPPED = ROOT / "programs" / "checkpoints"
#: Nothing is a multiple of four or of a vector: heads of 6, an FFN of 43, a vocabulary of 71.
ODD = ModelConfig(
    hidden_size=30, layers=2, heads=6, kv_heads=2, head_dim=6, ffn=43, vocab=71, tied=False
)
ROPES = (None, RopeScaling("linear", 4.0), RopeScaling("llama3", 8.0, 1.0, 4.0, 32))


TARGET = GpuModel(load_checkpoint(SHIPPED / "target"))


def text(seed: int, length: int, vocab: int = 1024) -> list[int]:
    return [int(t) for t in np.random.default_rng(seed).integers(0, vocab, length)]


def in_pieces(model: GpuModel, tokens: list[int], sizes: list[int]) -> Any:
    """Logits of ``tokens`` fed in pieces of these sizes, repeated as long as needed."""
    cache, pieces, at = model.new_cache(), [], 0
    while at < len(tokens):
        size = sizes[len(pieces) % len(sizes)]
        pieces.append(model.forward(tokens[at : at + size], cache))
        at += size
    assert cache.length == len(tokens)
    return np.concatenate(pieces)


def same_bits(one: Any, other: Any) -> bool:
    return np.array_equal(one.view(np.uint32), other.view(np.uint32))


@pytest.mark.parametrize("name", ["target", "draft"])
def test_numbers_are_those_of_the_plain_forward(name: str) -> None:
    checkpoint = load_checkpoint(SHIPPED / name)
    tokens = text(3, 200)
    plain = LlamaFloat32(checkpoint).logits(tokens)
    model = GpuModel(checkpoint)
    ours = model.forward(tokens, model.new_cache())
    assert ours.dtype == np.float32 and ours.shape == (200, 1024)
    np.testing.assert_allclose(ours, plain, rtol=1e-5, atol=1e-4)
    assert np.array_equal(ours.argmax(axis=1), plain.argmax(axis=1))


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("rope", ROPES)
def test_odd_shapes_and_stretched_rope(rope: RopeScaling | None, tied: bool) -> None:
    checkpoint = random_checkpoint(replace(ODD, rope_scaling=rope, tied=tied), 5)
    tokens = text(5, 90, ODD.vocab)
    model = GpuModel(checkpoint)
    ours = in_pieces(model, tokens, [7])
    np.testing.assert_allclose(ours, LlamaFloat32(checkpoint).logits(tokens), rtol=1e-4, atol=1e-4)
    assert same_bits(ours, model.forward(tokens, model.new_cache()))


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**32 - 1), st.lists(st.integers(1, 40), min_size=1, max_size=20))
@pytest.mark.long
def test_every_batching_gives_the_same_bits(seed: int, sizes: list[int]) -> None:
    tokens = text(seed, 150)
    assert same_bits(in_pieces(TARGET, tokens, sizes), in_pieces(TARGET, tokens, [1]))


@pytest.mark.long
def test_the_whole_context_gives_the_same_bits() -> None:
    tokens = text(11, TARGET.config.max_position)
    whole = TARGET.forward(tokens, TARGET.new_cache())
    assert same_bits(in_pieces(TARGET, tokens, [1]), whole)
    assert same_bits(in_pieces(TARGET, tokens, [5, 1, 13]), whole)


@settings(deadline=None, max_examples=40)
@given(st.data())
@pytest.mark.long
def test_a_cut_cache_is_as_one_that_never_held_more(data: st.DataObject) -> None:
    """Drafts are appended and cut off again; what follows has the bits of the plain text."""
    tokens = text(data.draw(st.integers(0, 1000)), 80)
    cache, kept = TARGET.new_cache(), 0
    expected = TARGET.forward(tokens, TARGET.new_cache())
    while kept < len(tokens):
        step = data.draw(st.integers(1, min(12, len(tokens) - kept)))
        wrong = text(kept, data.draw(st.integers(0, 5)))
        logits = TARGET.forward(tokens[kept : kept + step] + wrong, cache)
        assert same_bits(logits[:step], expected[kept : kept + step])
        kept += step
        cache.truncate(kept)
    assert cache.length == len(tokens)


def test_sequences_do_not_touch_each_other() -> None:
    one, two = TARGET.new_cache(), TARGET.new_cache()
    a, b = text(1, 40), text(2, 40)
    alternating = [
        (TARGET.forward([x], one), TARGET.forward([y], two)) for x, y in zip(a, b, strict=True)
    ]
    ours = np.concatenate([x for x, _ in alternating])
    assert same_bits(ours, TARGET.forward(a, TARGET.new_cache()))


def test_the_cache_weighs_what_it_holds() -> None:
    cache = TARGET.new_cache()
    TARGET.forward(text(0, 100), cache)
    assert cache.nbytes == 100 * 2 * 4 * 4 * 4 * 32  # K and V, 4 bytes, layers, heads, head_dim
    cache.truncate(0)
    assert (cache.length, cache.nbytes) == (0, 0)


def test_wrong_arguments_leave_the_cache_alone() -> None:
    cache = TARGET.new_cache()
    TARGET.forward([1, 2, 3], cache)
    for tokens, words in (
        ([5, 1024], "token 1024 is outside"),
        ([-1], "token -1 is outside"),
        ([1] * 510, "3 positions and 510 more exceed the model's context of 512"),
    ):
        with pytest.raises(InputError, match=words):
            TARGET.forward(tokens, cache)
    for length in (-1, 4):
        with pytest.raises(InputError, match="the cache has 3 positions"):
            cache.truncate(length)
    assert cache.length == 3
    assert TARGET.forward([], cache).shape == (0, 1024)
    assert isinstance(cache, KvCache)


@given(st.integers(1, 6), st.integers(1, 30), st.sampled_from([1, 9, 1023, 1025, 2100]))
def test_a_product_is_summed_upwards(positions: int, inputs: int, columns: int) -> None:
    """Each addition and product rounded by itself, in order of the inputs, as the rule says."""
    random = np.random.default_rng(inputs)
    x = random.standard_normal((positions, inputs), dtype=np.float32)
    weights = random.standard_normal((inputs, columns), dtype=np.float32)
    out = np.full((positions, columns), np.nan, dtype=np.float32)
    project(x, weights, out)
    expected = np.zeros_like(out)
    for k in range(inputs):
        expected = expected + x[:, k : k + 1] * weights[k]
    assert same_bits(out, expected)


def test_other_families_are_refused_in_one_line() -> None:
    """The GPU's forward computes Llama alone; it says so before it reads a tensor."""
    for change in ({"head_norms": True}, {"experts": 4, "experts_per_token": 2}):
        config = replace(ODD, **change)
        with pytest.raises(InputError, match="use a LlamaForCausalLM model") as caught:
            GpuModel(random_checkpoint(config, 0))
        assert "\n" not in str(caught.value)
