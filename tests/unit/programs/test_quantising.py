"""Roundings that compensate each other, beside the rule written out element by element."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from chip.errors import LpuWarning
from programs.decoder import Layout, PartitionError, partition_model
from programs.decoder.partition import chip_weights
from programs.evaluation import Float32Forward, GoldenForward, compare_text
from programs.models import (
    ModelConfig,
    load_checkpoint,
    open_model,
    random_checkpoint,
    shipped_model,
)
from programs.quantising import (
    Compensation,
    PlainModel,
    QuantisingError,
    files_beside,
    nearest,
    plain_model,
    rotated,
    round_columns,
    round_model,
    sample_tokens,
    weighted_error,
    write_checkpoint,
)

F64 = NDArray[np.float64]
Index = NDArray[np.int64]
#: Three heads of 16 for one of keys: of two chips the second has one, of eight five have none.
SMALL = ModelConfig(
    hidden_size=48,
    layers=2,
    heads=3,
    kv_heads=1,
    head_dim=16,
    ffn=40,
    vocab=96,
    tied=True,
    max_position=512,
)
TOKENS = np.random.default_rng(5).integers(0, 96, (3, 40))


def correlated(count: int, size: int) -> F64:
    """Activations [count, size] of which a few directions have most, as those of models."""
    drawn = np.random.default_rng(2)
    return drawn.standard_normal((count, 6)) @ drawn.standard_normal((6, size)) + (
        0.2 * drawn.standard_normal((count, size))
    )


def written_out(column: F64, moments: F64, damping: float, slices: list[list[int]]) -> F64:
    """One column, as optimal brain quantisation has it: the inverse is shrunk after each element,
    and no factor of it is known.
    """
    squares = np.diag(moments)
    inverse = np.linalg.inv(moments + damping * squares.mean() * np.eye(len(column)))
    left, whole = column.copy(), np.zeros(len(column))
    for at in sorted(range(len(column)), key=lambda k: -squares[k]):
        own = next(part for part in slices if at in part)
        step = max(abs(column[k]) for k in own) / 127
        whole[at] = min(max(round(left[at] / step), -127), 127)
        if abs(column[at]) == max(abs(column[k]) for k in own):
            whole[at] = 127 if column[at] > 0 else -127
        error = left[at] - whole[at] * step
        left -= error * inverse[at] / inverse[at, at]
        inverse -= np.outer(inverse[:, at], inverse[at]) / inverse[at, at]
        inverse[at, at] = 1.0  # its row and column are zero: no error goes back to it
    return whole


def steps_of(weights: NDArray[np.float32], own: list[int]) -> F64:
    """What the loader's rule makes of columns [N, K]: float64 weights over max / 127."""
    part = weights[:, own].astype(np.float64)
    steps: F64 = part / (np.abs(part).max(axis=1, keepdims=True) / 127)
    return steps


@pytest.mark.parametrize("size", [10, 130])
def test_errors_go_where_the_rule_sends_them(size: int) -> None:
    """130 elements are more than are updated at once."""
    seen = correlated(400, size)
    moments = seen.T @ seen
    weights = np.random.default_rng(3).standard_normal((2, size)).astype(np.float32)
    slices = [list(range(size // 3)), list(range(size // 3, size))]
    rounded = round_columns(weights, Compensation.of(moments, 0.01), [np.array(s) for s in slices])
    for row, column in enumerate(weights):
        want = written_out(column.astype(np.float64), moments, 0.01, slices)
        for own in slices:
            # a sum in float32 may tip one that lies between two steps, and what comes after it
            ours = np.rint(steps_of(rounded, own)[row])
            assert np.mean(ours == want[own]) > (0.99 if size == 10 else 0.9)


def test_less_is_lost_than_by_rounding_to_nearest() -> None:
    seen = correlated(400, 64)
    moments = seen.T @ seen
    weights = np.random.default_rng(4).standard_normal((32, 64)).astype(np.float32)
    whole = [np.arange(64)]
    plain = nearest(weights, whole)
    ours = round_columns(weights, Compensation.of(moments, 0.01), whole)
    errors = [
        float(np.sum((seen @ (weights - each).T.astype(np.float64)) ** 2)) for each in (plain, ours)
    ]
    assert errors[1] < 0.3 * errors[0]
    for rounded, error in zip((plain, ours), errors, strict=True):
        assert weighted_error(weights, rounded, moments) == pytest.approx(error, rel=1e-6)


def test_without_correlation_nothing_is_compensated() -> None:
    """Activations that know nothing of each other leave each element its nearest step; an element
    that is never active too, and a column of zeros stays one.
    """
    weights = np.random.default_rng(4).standard_normal((8, 20)).astype(np.float32)
    weights[3] = 0
    for moments in (np.diag(np.arange(20.0)), np.zeros((20, 20))):
        ours = round_columns(weights, Compensation.of(moments, 0.01), [np.arange(20)])
        assert np.array_equal(ours, nearest(weights, [np.arange(20)]))


def same_integers(
    chosen: NDArray[np.float32], values: NDArray[np.generic], k_axis: Index, n_axis: Index
) -> bool:
    """Whether a chip's values [K tiles, N tiles, columns, lanes] are ``chosen`` in its steps."""
    tiles, lanes = np.nonzero(k_axis >= 0)
    for block, axis in enumerate(n_axis):
        columns = np.flatnonzero(axis >= 0)
        if not len(tiles) or not len(columns):
            continue
        part = chosen[axis[columns]].astype(np.float64)[:, k_axis[tiles, lanes]]
        peaks = np.abs(part).max(axis=1, keepdims=True)
        whole = np.rint(part / np.where(peaks > 0, peaks, 1) * 127)
        if not np.array_equal(values[tiles[:, None], block, columns, lanes[:, None]].T, whole):
            return False
    return True


@pytest.mark.parametrize("tp", [2, 8])
def test_a_loaded_checkpoint_has_the_integers_that_were_chosen(tp: int, tmp_path: Path) -> None:
    """Exactly: so the emulated model differs from float32 by its activations alone."""
    model = rotated(plain_model(random_checkpoint(SMALL, 1)), 0)
    rounded, errors = round_model(model, TOKENS, tp, 0.05)
    write_checkpoint(rounded, files_beside(random_checkpoint(SMALL, 1), tp), tmp_path / "new")
    found = load_checkpoint(tmp_path / "new")
    heads, inner = -(-3 // tp) * 16, -(-40 // tp)
    for name, size, part in (
        ("self_attn.o", 48, heads),
        ("mlp.down", 40, inner),
        ("mlp.up", 48, 48),
    ):
        weights = found.tensor(f"model.layers.1.{name}_proj.weight")
        for first in range(0, size, part):
            steps = steps_of(weights, list(range(first, min(first + part, size))))
            assert np.abs(steps - np.rint(steps)).max() < 1e-4
            assert (np.rint(np.abs(steps).max(axis=1)) == 127).all()
    layout = Layout.of(SMALL, tp)
    for chip in range(tp):
        placed = chip_weights(found, layout, "int8", chip)
        x, q, kv = layout.x_axis(), layout.q_axis(chip), layout.kv_axis(chip)
        ffn, layer = layout.ffn_axis(chip), placed.layers[1]
        for name, matrix, k_axis, n_axis in (
            ("q", layer.q, x, q),
            ("k", layer.k, x, kv),
            ("v", layer.v, x, kv),
            ("o", layer.o, q, x),
            ("gate", layer.gate, x, ffn),
            ("up", layer.up, x, ffn),
            ("down", layer.down, ffn, x),
            ("head", placed.head, x, layout.vocab_axis(chip)),
        ):
            chosen = rounded.head if name == "head" else rounded.layers[1][name]
            assert same_integers(chosen, matrix.values, k_axis, n_axis), (chip, name)
    assert {(each.layer, each.name) for each in errors} == {
        *((n, name) for n in range(2) for name in ("q", "k", "v", "o", "gate", "up", "down")),
        (None, "head"),
    }
    assert all(each.compensated < each.nearest for each in errors if each.name == "down")
    text = TOKENS[0].tolist()
    apart = compare_text(
        Float32Forward(found), GoldenForward(partition_model(found, tp), 40), text, 40
    )
    assert apart.relative_rms < 0.001


def test_a_turned_model_is_the_same_model(tmp_path: Path) -> None:
    """But for float32's last bits; weights are others."""
    checkpoint = random_checkpoint(SMALL, 1)
    write_checkpoint(rotated(plain_model(checkpoint), 7), files_beside(checkpoint, 1), tmp_path)
    turned = load_checkpoint(tmp_path)
    name = "model.layers.0.self_attn.o_proj.weight"
    assert np.abs(turned.tensor(name) - checkpoint.tensor(name)).max() > 0.01
    text = TOKENS[0].tolist()
    forwards = Float32Forward(checkpoint), Float32Forward(turned)
    assert compare_text(*forwards, text, 40).relative_rms < 1e-5


def test_sampled_tokens_follow_the_models_probabilities() -> None:
    """The same draws from probabilities of the evaluation's forward."""
    checkpoint = random_checkpoint(SMALL, 1)
    never = list(range(40))
    tokens = sample_tokens(plain_model(checkpoint), 2, 12, 3, never)
    again = sample_tokens(plain_model(checkpoint), 2, 12, 3, never)
    assert np.array_equal(tokens, again) and tokens.min() >= 40
    drawn = np.random.Generator(np.random.Philox(key=np.array([3, 1], np.uint64)))
    assert np.array_equal(drawn.choice(np.arange(40, 96), 2), tokens[:, 0])
    logits = [Float32Forward(checkpoint).block(row.tolist(), 0)[:, 40:] for row in tokens]
    for at in range(11):
        for row, place in enumerate(drawn.random(2)):
            chances = np.exp(logits[row][at].astype(np.float64))
            below = np.concatenate([[0], (chances / chances.sum()).cumsum()])
            own = tokens[row, at + 1] - 40
            assert below[own] - 1e-5 < place < below[own + 1] + 1e-5


def test_what_cannot_be_quantised_is_refused(tmp_path: Path) -> None:
    biased = random_checkpoint(replace(SMALL, qkv_bias=True), 1)
    with pytest.raises(
        QuantisingError, match="Llama's plain kind of model, not for one with qkv_bias"
    ):
        plain_model(biased)
    (tmp_path / "notes.txt").write_text("mine")
    checkpoint = random_checkpoint(SMALL, 1)
    with pytest.raises(QuantisingError, match="is not empty; name a new directory"):
        write_checkpoint(plain_model(checkpoint), files_beside(checkpoint, 1), tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["notes.txt"]


def test_values_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    """In the loader's words; the largest gains that are numbers make activations that are none."""
    checkpoint = random_checkpoint(SMALL, 1)
    model = plain_model(checkpoint)
    up = model.layers[1]["up"].copy()
    up[0, 0] = np.inf
    write_checkpoint(
        replace(model, layers=[model.layers[0], {**model.layers[1], "up": up}]),
        files_beside(checkpoint, 1),
        tmp_path / "inf",
    )
    with pytest.raises(PartitionError, match=r"layers\.1\.mlp\.up_proj\.weight' holds a NaN"):
        plain_model(load_checkpoint(tmp_path / "inf"))
    layers = [{**layer, "gate": layer["gate"] * np.float32(1e38)} for layer in model.layers]
    with pytest.raises(QuantisingError, match="on the calibration text exceed the range of float"):
        round_model(replace(model, layers=layers), TOKENS, 1, 0.05)


def test_what_a_directory_says_of_its_tokens_is_taken_over(tmp_path: Path) -> None:
    """Byte for byte; numbers of special tokens too, which libraries otherwise make up."""
    source = tmp_path / "draft"
    shutil.copytree(shipped_model("draft"), source)
    (source / "generation_config.json").write_text('{"eos_token_id": [0, 7], "top_k": 5}')
    (source / "chat_template.jinja").write_text("{{ messages }}")
    found = files_beside(load_checkpoint(source), 4)
    assert list(found)[-1] == "config.json"
    made = json.loads(found.pop("config.json"))
    assert found == {
        name: (source / name).read_bytes()
        for name in (
            "tokenizer.json",
            "tokenizer_config.json",
            "generation_config.json",
            "chat_template.jinja",
        )
    }
    own = json.loads((source / "config.json").read_text())
    assert {k: own[k] for k in made.keys() & own.keys()} | {
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
        "rounded_for_chips": 4,
    } == made
    assert made["bos_token_id"] == 0 and "pad_token_id" not in made


def test_another_number_of_chips_is_told(tmp_path: Path) -> None:
    checkpoint = random_checkpoint(SMALL, 1)
    write_checkpoint(plain_model(checkpoint), files_beside(checkpoint, 2), tmp_path / "two")
    found = load_checkpoint(tmp_path / "two")
    partition_model(found, 2)
    partition_model(found, 4, "fp16")
    with pytest.warns(LpuWarning, match="rounded for 2 chips that share every matrix; on 4, those"):
        partition_model(found, 4)


@pytest.mark.long
def test_a_trained_model_is_closer_to_itself(tmp_path: Path) -> None:
    """Beside the same turned model rounded to nearest, on text that nothing was chosen by."""
    draft = open_model("draft")
    model = rotated(plain_model(draft), 0)
    tokens = sample_tokens(model, 16, 128, 0, draft.end_tokens)
    rounded = round_model(model, tokens, 1, 0.05)[0]
    layers = [
        {name: nearest(weights, [np.arange(weights.shape[1])]) for name, weights in layer.items()}
        for layer in model.layers
    ]
    head = nearest(model.head, [np.arange(model.head.shape[1])])
    heldout = Path(__file__).parents[3] / "programs" / "checkpoints" / "heldout.txt"
    text = draft.tokenizer.encode(heldout.read_text("utf-8")).ids[:1025]

    def error(other: PlainModel, name: str) -> float:
        write_checkpoint(other, files_beside(draft, 1), tmp_path / name)
        found = load_checkpoint(tmp_path / name)
        assert found.tokenizer.encode("def f(x):").ids == draft.tokenizer.encode("def f(x):").ids
        assert found.end_tokens == draft.end_tokens
        forwards = Float32Forward(draft), Float32Forward(found)
        return compare_text(*forwards, text, 256).relative_rms

    plain = error(replace(model, layers=layers, head=head), "nearest")
    ours = error(rounded, "ours")
    assert ours < 0.9 * plain
