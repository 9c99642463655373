"""What an artifact says its words are for: written as plain data, read back, refused when wrong."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from chip.spec import ChipSpec
from cluster.library import CompiledModel
from programs.artifact import Artifact, ArtifactError, Bindings, compiled_at, decoder_of, load, save
from programs.decoder import adopt, compile_belt, compile_decoder, partition_model
from programs.models import LayerKind, ModelConfig, random_checkpoint
from programs.running import LpuSession, run_belt
from tests import ROOT

CONFIG = ModelConfig(64, 2, 4, 2, 16, 96, 100)


@pytest.fixture(scope="module")
def decoder() -> Artifact:
    model = partition_model(random_checkpoint(CONFIG, 0), 1)
    return compile_decoder(model, ChipSpec(), 64, weights=False)


@pytest.fixture(scope="module")
def on_planes() -> Artifact:
    """With a window, of two stages and blocks on both sides."""
    kinds = LayerKind(sliding=True), LayerKind()
    config = replace(CONFIG, max_position=4096, sliding_window=330, layer_kinds=kinds)
    model = partition_model(random_checkpoint(config, 0), 1)
    return compile_decoder(model, ChipSpec(), 1024, pp=2, weights=False)


def test_a_sequence_has_no_more_positions_than_the_model_was_made_for() -> None:
    """Programs are for whole buckets; what is compiled refuses positions beyond the model's."""
    config = replace(CONFIG, layers=1, max_position=50)
    checkpoint = random_checkpoint(config, 0)
    model = partition_model(checkpoint, 1)
    artifact = compile_decoder(model, ChipSpec(), 50, weights=False)
    facts = decoder_of(artifact)
    assert (facts.buckets, facts.context) == ((64,), 50)
    assert CompiledModel(artifact).context == 50
    session = LpuSession(artifact, model)
    assert session.context == 50
    session.feed(5, 49)
    refused = "position 50: the artifact was compiled for 50 positions"
    with pytest.raises(ValueError, match=refused):
        session.feed(5, 50)
    with pytest.raises(ValueError, match=refused):
        session.read(range(3), 48)
    assert adopt(artifact, checkpoint, 50)
    with pytest.raises(ArtifactError, match="51 positions asked for, but the artifact was"):
        adopt(artifact, checkpoint, 51)
    before = replace(artifact, bindings={**artifact.bindings, "context": 64})
    assert decoder_of(adopt(before, checkpoint, 50)).context == 50
    with pytest.raises(ArtifactError, match="51 positions asked for, but the artifact was"):
        adopt(before, checkpoint, 51)
    belt = compile_belt(model, ChipSpec(), 50, 1, weights=False)
    assert decoder_of(belt).context == 50 and list(belt.programs) == ["belt-50-0"]
    with pytest.raises(ValueError, match="51 positions: the belt was compiled for 50"):
        run_belt(belt, [[5] * 40], 12, model)


def test_a_decoder_says_the_same_from_its_file(decoder: Artifact, tmp_path: Path) -> None:
    save(decoder, tmp_path / "model.lpu")
    read = load(tmp_path / "model.lpu")
    assert Bindings.of(read) == Bindings.of(decoder)
    facts = decoder_of(read)
    assert (facts.tp, facts.pp, facts.dtype, facts.sequences) == (1, 1, "int8", None)
    assert (facts.buckets, facts.context, facts.checkpoint) == ((64,), 64, "")
    assert set(Bindings.of(read).inputs) == {"x", "cos", "sin", "kv_map", "mask_map"}
    # the names in the file are a contract: files of before are still read
    assert set(read.bindings) == {
        "inputs",
        "outputs",
        "buckets",
        "context",
        "mask_positions",
        "cache_segments",
    }
    assert set(read.model) == {
        "dtype",
        "tp",
        "pp",
        "group_of_stage",
        "checkpoint",
        "sram_used_bytes",
    }


def test_only_a_belt_has_sequences() -> None:
    model = partition_model(random_checkpoint(CONFIG, 0), 1)
    belt = compile_belt(model, ChipSpec(), 64, 2, weights=False, sequences=3)
    assert (decoder_of(belt).sequences, decoder_of(belt).pp) == (3, 2)
    assert belt.model["sequences"] == 3


def test_another_home_changes_nothing_else(decoder: Artifact) -> None:
    moved = compiled_at(decoder, "/elsewhere")
    facts = decoder_of(moved)
    assert facts.checkpoint == "/elsewhere"
    assert replace(facts, checkpoint="") == decoder_of(decoder)
    assert decoder.model["checkpoint"] == ""


def test_a_file_of_before_has_one_segment(decoder: Artifact) -> None:
    bindings = {k: v for k, v in decoder.bindings.items() if k != "cache_segments"}
    assert decoder_of(replace(decoder, bindings=bindings)).cache_segments == ((0, 64),)


@pytest.mark.parametrize(
    ("group", "key", "value"),
    [
        ("bindings", "buckets", "64"),
        ("bindings", "buckets", []),
        ("bindings", "buckets", [0]),
        ("bindings", "context", 0),
        ("bindings", "context", True),
        ("bindings", "cache_segments", [[0]]),
        ("bindings", "cache_segments", 7),
        ("bindings", "outputs", {}),
        ("bindings", "inputs", {}),
        ("model", "tp", "1"),
        ("model", "tp", None),
        ("model", "group_of_stage", []),
        ("model", "checkpoint", 3),
        ("model", "dtype", None),
        ("model", "sequences", 0),
    ],
)
def test_damaged_facts_are_no_decoder(decoder: Artifact, group: str, key: str, value: Any) -> None:
    damaged = replace(decoder, **{group: {**getattr(decoder, group), key: value}})
    assert Bindings.of(damaged).decoder is None
    with pytest.raises(ArtifactError, match="no compiled decoder: compile one"):
        decoder_of(damaged)


@pytest.mark.long
def test_a_decoder_on_the_planes_says_the_same_from_its_file(
    on_planes: Artifact, tmp_path: Path
) -> None:
    save(on_planes, tmp_path / "model.lpu")
    read = load(tmp_path / "model.lpu")
    assert Bindings.of(read) == Bindings.of(on_planes)
    facts = decoder_of(read)
    assert (facts.blocks, facts.window, facts.pp) == (4, 330, 2)
    assert len(facts.cached_words) == 2 and facts.cached_words[0]


@pytest.mark.long
@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("cached_words", []),
        ("cached_words", [[[0] * 6]]),
        ("cached_words", [[[0] * 5], [[0] * 6]]),
        ("cached_words", [[[-1] * 6], [[0] * 6]]),
        ("cached_words", [[[8191, 0, 0, 0, 0, 0]], [[0] * 6]]),
        ("cached_words", [[[0] * 6], [[0, 0, 0, 0, 0, 8192]]]),
        ("cached_lanes", 17),
        ("cached_lanes", 320),
        ("blocks", 3),
        ("key_maps", [[48, 0, 32]]),
        ("value_maps", [[48, 0, 1]] * 2),
        ("recent_maps", [[48, 0, 16]] * 2),
        ("masks", [[51, 0, 3]]),
        ("masks", [[51, 0, 4]] * 2),
        ("sliding_masks", [[51, 0, 3]]),
        ("sliding_masks", []),
    ],
)
def test_damaged_facts_of_the_planes_are_no_decoder(
    on_planes: Artifact, key: str, value: Any
) -> None:
    before = on_planes.bindings
    if key in before:
        bindings = {**before, key: value}
    else:
        bindings = {**before, "inputs": {**before["inputs"], key: value}}
    with pytest.raises(ArtifactError, match="no compiled decoder: compile one"):
        decoder_of(replace(on_planes, bindings=bindings))


def test_only_a_belt_on_the_planes_keeps_no_words(on_planes: Artifact) -> None:
    """Its sequences never step back."""
    belt = replace(on_planes, model={**on_planes.model, "sequences": 3})
    with pytest.raises(ArtifactError, match="no compiled decoder: compile one"):
        decoder_of(belt)
    belt = replace(belt, bindings={**on_planes.bindings, "cached_words": []})
    assert decoder_of(belt).cached_words == ()


@pytest.mark.parametrize(
    ("kind", "planes", "words"),
    [
        ("outputs", [[0, 0, 1]] * 3, "is not four places"),
        ("outputs", [[0, 0, 1]] * 3 + [[0, 0, 2]], "is not four places"),
        ("outputs", [[88, 0, 1]] * 4, "is not four places"),
        ("outputs", [[0, 8192, 1]] * 4, "is not four places"),
        ("outputs", 4, "is not four places"),
        ("inputs", [], "is not places"),
        ("inputs", [[0, -1, 1]], "is not places"),
        ("inputs", [[0, 0, 1.0]], "is not places"),
        ("inputs", [["0", 0, 1]], "is not places"),
    ],
)
def test_places_outside_sram_are_refused(
    decoder: Artifact, kind: str, planes: Any, words: str
) -> None:
    damaged = replace(decoder, bindings={kind: {"y": planes}})
    with pytest.raises(ArtifactError, match=f"{kind[:-1]} 'y' {words}") as caught:
        Bindings.of(damaged)
    assert "\n" not in str(caught.value)


def test_an_artifact_without_bindings_has_none(decoder: Artifact) -> None:
    assert Bindings.of(replace(decoder, bindings={}, model={})) == Bindings()


def test_nobody_else_reads_the_header(decoder: Artifact) -> None:
    raw = re.compile(r"\.(bindings|model)(\[|\.get\()")
    for package in ("programs", "cluster"):
        for path in (ROOT / package).rglob("*.py"):
            if path.name not in ("bindings.py", "sources.py"):
                assert not raw.search(path.read_text(encoding="utf-8")), path
