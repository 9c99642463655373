"""The float32 forward against independent ones, and every figure of a comparison by hand."""

from __future__ import annotations

import dataclasses
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from chip.spec import ChipSpec
from programs.decoder import GoldenDecoder, partition_model
from programs.evaluation import (
    ChipsForward,
    Comparison,
    EvaluationError,
    Float32Forward,
    GoldenForward,
    GreedyCheck,
    LayerErrors,
    check_greedy,
    compare_text,
    windows,
)
from programs.evaluation import float32 as forward_file
from programs.models import (
    ModelConfig,
    load_checkpoint,
    random_checkpoint,
    shipped_model,
)
from programs.models.checkpoint import RopeScaling
from tests import families
from tests.oracles.llama_float32 import LlamaFloat32, perplexity

F32 = NDArray[np.float32]

SMALL = ModelConfig(
    hidden_size=100, layers=2, heads=6, kv_heads=2, head_dim=24, ffn=130, vocab=97, eps=1e-4
)
CONFIGS = {
    "llama": SMALL,
    "llama, tied, stretched": dataclasses.replace(
        SMALL, tied=True, rope_theta=500.0, rope_scaling=RopeScaling("llama3", 8.0, 1.0, 4.0, 16)
    ),
    "qwen3": dataclasses.replace(SMALL, head_norms=True),
    "gemma": dataclasses.replace(
        SMALL, activation="gelu_tanh", unit_gain=True, scaled_embedding=True, tied=True
    ),
    "mixtral": dataclasses.replace(SMALL, experts=5, experts_per_token=2),
}
TOKENS = [at * 7 % 97 for at in range(1, 14)]


@pytest.mark.parametrize("name", CONFIGS)
def test_float32_is_the_oracles_float32(name: str) -> None:
    """Written apart, over whole sequences: the same but for the order of sums."""
    checkpoint = random_checkpoint(CONFIGS[name], 5)
    wanted = LlamaFloat32(checkpoint).logits(TOKENS)
    logits = Float32Forward(checkpoint).block(TOKENS, 0)
    assert logits.dtype == np.float32 and logits.shape == (13, 97)
    assert np.abs(logits - wanted).max() < 1e-5 * np.abs(wanted).max()


@pytest.mark.parametrize("name", families.FAMILIES)
def test_float32_is_near_float64(name: str) -> None:
    """Every family of the table."""
    family = families.FAMILIES[name]
    checkpoint = families.checkpoint_of(family)
    wanted = families.exact_logits(family, checkpoint)
    logits = Float32Forward(checkpoint).block(families.TOKENS, 0)
    assert np.abs(logits - wanted).max() < 2e-5 * np.abs(wanted).max()


def test_what_float32_does_not_compute_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forward_file, "COMPUTED", forward_file.COMPUTED - {"unit_gain", "factor"})
    Float32Forward(random_checkpoint(SMALL, 0))
    with pytest.raises(EvaluationError, match="does not compute unit_gain; evaluate a model"):
        Float32Forward(random_checkpoint(CONFIGS["gemma"], 0))
    with pytest.raises(EvaluationError, match="does not compute factor"):
        Float32Forward(random_checkpoint(CONFIGS["llama, tied, stretched"], 0))


@pytest.mark.parametrize("cuts", [(0, 13), tuple(range(14)), (0, 4, 5, 13)])
def test_a_text_may_come_in_blocks(cuts: tuple[int, ...]) -> None:
    forward = Float32Forward(random_checkpoint(CONFIGS["qwen3"], 5))
    whole = forward.block(TOKENS, 0)
    forward.block(TOKENS[::-1], 0)  # another text, written over
    parts = [forward.block(TOKENS[a:b], a) for a, b in pairwise(cuts)]
    assert np.abs(np.concatenate(parts) - whole).max() < 1e-5 * np.abs(whole).max()


@pytest.mark.parametrize(
    ("tokens", "context", "wanted"),
    [
        (9, 4, [range(0, 4), range(4, 8)]),
        (10, 4, [range(0, 4), range(4, 8), range(8, 9)]),
        (2, 512, [range(0, 1)]),
        (1, 512, []),
    ],
)
def test_every_token_but_the_first_is_predicted_once(
    tokens: int, context: int, wanted: list[range]
) -> None:
    assert list(windows(tokens, context)) == wanted


class Told:
    """A forward that says what it was given, and notes what it was asked."""

    def __init__(self, logits: F32) -> None:
        self.logits, self.asked = logits, list[tuple[int, ...]]()

    def reset(self) -> None:
        """Notes it."""
        self.asked.append(())

    def block(self, tokens: list[int], position: int, watch: object = None) -> F32:
        """The rows of the tokens' numbers."""
        self.asked.append((position, *tokens))
        return self.logits[tokens]


def test_figures_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two tables of logits by token: all figures from float64 formulas of their own."""
    monkeypatch.setattr("programs.evaluation.compare.BLOCK", 3)
    random = np.random.default_rng(3)
    exact = random.normal(size=(7, 7)).astype(np.float32)
    ours = (exact + 0.3 * random.normal(size=(7, 7))).astype(np.float32)
    tokens = [0, 1, 2, 3, 4, 5, 6, 2, 1, 0]
    reference, emulated, heard = Told(exact), Told(ours), list[int]()
    done = compare_text(reference, emulated, tokens, 5, None, heard.append)
    assert reference.asked == emulated.asked
    assert reference.asked == [(), (0, 0, 1, 2), (3, 3, 4), (), (0, 5, 6, 2), (3, 1)]
    assert heard == [0, 3, 5, 8] and done.tokens == 9

    rows = np.array(tokens[:-1])
    for found, table in ((done.perplexity, ours), (done.reference_perplexity, exact)):
        wide = table.astype(np.float64)[rows]
        shares = np.exp(wide) / np.exp(wide).sum(axis=1, keepdims=True)
        assert found == pytest.approx(np.prod(shares[np.arange(9), tokens[1:]]) ** (-1 / 9))
    assert done.perplexity_change == pytest.approx(done.perplexity / done.reference_perplexity - 1)
    same = [int(exact[row].argmax() == ours[row].argmax()) for row in rows]
    assert 0 < sum(same) < 9 and done.agreement == pytest.approx(sum(same) / 9)
    errors = np.abs(ours.astype(np.float64) - exact)[rows]
    assert done.worst == errors.max() and done.worst_at == errors.max(axis=1).argmax()
    spread = np.sqrt(np.mean(exact[rows].astype(np.float64) ** 2))
    assert done.relative_rms == pytest.approx(np.sqrt(np.mean(errors**2)) / spread)


@pytest.mark.parametrize(("wrong", "who"), [(0, "float32"), (1, "emulated")])
def test_logits_that_are_no_numbers_are_refused(wrong: int, who: str) -> None:
    tables = [np.ones((3, 3), np.float32) for _ in range(2)]
    tables[wrong][1, 2] = np.inf
    with pytest.raises(EvaluationError, match=f"{who} logits after token 11 of the text are no"):
        Comparison().add(10, tables[0], tables[1], [0, 1, 2])


@pytest.mark.parametrize("dtype", ["int8", "fp16"])
def test_layer_errors_by_hand(dtype: str) -> None:
    """Streams of the golden model's lanes and of float32, compared apart from the product."""
    checkpoint = random_checkpoint(dataclasses.replace(SMALL, hidden_size=344), 1)
    model = partition_model(checkpoint, 2, dtype)
    layers = LayerErrors()
    compare_text(Float32Forward(checkpoint), GoldenForward(model, 6), TOKENS, 6, layers)
    streams: list[dict[tuple[int, str], list[NDArray[np.float64]]]] = [{}, {}]
    forward, golden = Float32Forward(checkpoint), GoldenDecoder(model)
    axis = model.layout.x_axis()
    for first in (0, 6):
        window = TOKENS[first : first + 6]
        forward.block(
            window,
            0,
            lambda layer, part, x: (
                streams[0].setdefault((layer, part), []).append(x.astype(np.float64))
            ),
        )
        golden.reset()
        golden.block(
            window,
            0,
            6,
            lambda layer, part, x: (
                streams[1]
                .setdefault((layer, part), [])
                .append(
                    np.stack([row[axis >= 0][np.argsort(axis[axis >= 0])] for row in x]).astype(
                        float
                    )
                )
            ),
        )
    found = layers.relative()
    assert [place for *place, _ in found] == [
        [layer, part] for layer in range(2) for part in ("attention", "ffn")
    ]
    for layer, part, error in found:
        exact, ours = (np.concatenate(both[layer, part]) for both in streams)
        assert exact.shape == ours.shape == (12, 344)
        each = np.linalg.norm(ours - exact, axis=1) / np.linalg.norm(exact, axis=1)
        wanted = np.sqrt(np.mean(each**2))
        assert error == pytest.approx(wanted) and 0 < error < {"int8": 0.05, "fp16": 0.005}[dtype]


def test_chips_and_golden_model_give_the_same_figures() -> None:
    checkpoint = random_checkpoint(SMALL, 2)
    model = partition_model(checkpoint, 2, "int8")
    golden, chips = GoldenForward(model, 5), ChipsForward(model, 5, ChipSpec())
    reference = Float32Forward(checkpoint)
    figures = [compare_text(reference, each, TOKENS, 5) for each in (golden, chips)]
    assert [dataclasses.astuple(each)[:6] for each in figures] == [
        dataclasses.astuple(figures[0])[:6]
    ] * 2
    assert golden.saturations == chips.saturations == {}


@pytest.mark.long
def test_perplexity_of_the_shipped_model_is_the_oracles() -> None:
    checkpoint = load_checkpoint(shipped_model("draft"))
    text = (Path(shipped_model("draft")).parent / "heldout.txt").read_text()[:900]
    tokens = checkpoint.tokenizer.encode(text).ids
    golden = GoldenForward(partition_model(checkpoint, 1, "fp16"), len(tokens))
    done = compare_text(Float32Forward(checkpoint), golden, tokens, len(tokens))
    wanted = perplexity(LlamaFloat32(checkpoint).logits(tokens), tokens)
    assert done.tokens == len(tokens) - 1
    assert done.reference_perplexity == pytest.approx(wanted, rel=1e-5)
    assert abs(done.perplexity_change) < 1e-3


class Greedy:
    """A forward over a table of logits by token."""

    def __init__(self, table: F32) -> None:
        self.table = table

    def reset(self) -> None:
        """Nothing to forget."""

    def block(self, tokens: list[int], position: int, watch: object = None) -> F32:
        """A row for every token."""
        return self.table[tokens]


def test_greedy_texts_differ_at_the_first_token_that_does() -> None:
    exact = np.eye(6, dtype=np.float32)[[1, 2, 3, 4, 5, 0]]  # after n comes n + 1
    ours = exact.copy()
    same = check_greedy(Greedy(exact), Greedy(ours), [0], 4)
    assert same == GreedyCheck((1, 2, 3, 4))
    assert check_greedy(Greedy(exact), Greedy(ours), [5, 0], 9, ends=(3,)).tokens == (1, 2, 3)
    exact[2, 5] = 0.75
    ours[2, 5], ours[4, 1] = 1.5, 7
    differing = check_greedy(Greedy(exact), Greedy(ours), [0], 5)
    assert differing == GreedyCheck((1, 2, 3, 4, 5), 2, 5, 0.25, 0.5)


@pytest.mark.parametrize("dtype", ["int8", "fp16"])
def test_a_greedy_check_is_what_generation_gives(dtype: str) -> None:
    """Both greedy texts made one by one agree up to the difference that is told."""
    checkpoint = random_checkpoint(SMALL, 6)
    reference = LlamaFloat32(checkpoint)
    model = partition_model(checkpoint, 2, dtype)
    texts: list[list[int]] = []
    for logits_of in (reference.logits, GoldenDecoder(model).logits_for):
        text = [3, 1]
        while len(text) < 32:
            text.append(int(logits_of(text)[-1].argmax()))
        texts.append(text[2:])
    found = check_greedy(Float32Forward(checkpoint), GoldenForward(model, 32), [3, 1], 30)
    assert list(found.tokens) == texts[0]
    where = [at for at in range(30) if texts[0][at] != texts[1][at]]
    assert found.first == (where[0] if where else None)
    if where:
        assert found.instead == texts[1][where[0]]
        assert found.float32_gap is not None and found.float32_gap >= 0
        assert found.emulated_gap is not None and found.emulated_gap >= 0
