"""A compiled model runs anywhere from its file alone: tokenizer and embeddings travel with it."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import lpu
from cluster import GenerateSettings, RunError, generate
from cluster.errors import InputError
from cluster.processes import carrying, open_carried
from cluster.runs import ChatSettings, conversation, run_stored
from programs.artifact import Artifact, load, save
from programs.decoder import compile_model
from programs.models import Checkpoint, load_checkpoint, portable_files, shipped_model
from tests import gguf_files

PROMPT, NEW_TOKENS = "def add(a", 4
TEMPLATE = "{% for m in messages %}{{ m['content'] }}\n{% endfor %}def "


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """The shipped draft with all that a directory can say, in three files of weights."""
    home = tmp_path / "my model"
    shutil.copytree(shipped_model("draft"), home)
    tensors = load_file(home / "model.safetensors")
    (home / "model.safetensors").unlink()
    shards: dict[str, dict[str, np.ndarray]] = {f"part-{n}.safetensors": {} for n in range(3)}
    for number, name in enumerate(sorted(tensors)):
        shards[f"part-{number % 3}.safetensors"][name] = tensors[name]
    for file, held in shards.items():
        save_file(held, home / file)
    index = {name: file for file, held in shards.items() for name in held}
    (home / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    (home / "generation_config.json").write_text('{"eos_token_id": [0, 5]}')
    (home / "chat_template.jinja").write_text(TEMPLATE)
    (home / "README.md").write_text("nobody reads this")
    return home


def compiled(checkpoint: Checkpoint) -> Artifact:
    return compile_model(checkpoint, tp=1, dtype="int8", context=64, chip="groq-lpu-1")


def same(found: Checkpoint, expected: Checkpoint) -> None:
    """They say and embed the same."""
    assert found.config == expected.config
    assert found.end_tokens == expected.end_tokens
    assert found.chat_template == expected.chat_template
    assert found.special_tokens == expected.special_tokens
    assert found.tokenizer.to_str() == expected.tokenizer.to_str()
    for token in range(found.config.vocab):
        assert np.array_equal(found.embedding_row(token), expected.embedding_row(token))


def test_a_file_is_enough_anywhere(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = GenerateSettings(
        model=str(checkpoint), prompt=PROMPT, max_new_tokens=NEW_TOKENS, tp=1, in_process=True
    )
    file = tmp_path / "model.lpu"
    monkeypatch.chdir(tmp_path)
    lpu.compile("my model", tp=1, context=64).save(file)
    expected = generate(replace(settings, context=64))
    opened = load_checkpoint(checkpoint)
    says = (opened.config, opened.tokenizer.to_str())
    shutil.rmtree(checkpoint)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)

    stored_only = replace(settings, model=None, artifact=file)
    done = generate(replace(stored_only, chips=1, pp=1, context=64))  # as it was compiled
    for asked, words in (
        ({"tp": 2}, "--tp 2: the artifact was compiled for 1; leave --tp out, or compile another"),
        ({"chips": 1, "tp": None, "pp": 1, "dtype": "fp16"}, "--dtype fp16: the artifact was"),
        ({"context": 65}, "--context 65: the artifact was compiled for 64"),
        ({"chunk": 4}, "--chunk 4: the artifact was compiled for 1; leave --chunk out"),
        ({"chip": "groq-3-lp30"}, "was compiled for groq-lpu-1; leave --chip out"),
    ):
        with pytest.raises(InputError, match=words):
            generate(replace(stored_only, **asked))
    with (
        pytest.raises(InputError, match="--pp 2: the artifact"),
        conversation(ChatSettings(artifact=file, pp=2)),
    ):
        pass
    assert (done.text, done.cycles, done.digest) == (
        expected.text,
        expected.cycles,
        expected.digest,
    )
    assert done.directory.name == "my model" and not done.directory.is_relative_to(tmp_path)
    # One artifact is laid down once; nothing of it is in the files of a run.
    assert generate(replace(settings, model=None, artifact=file)).directory == done.directory
    assert not done.artifact.files and load(file).files
    stored, carried = open_carried(load(file))
    assert (carried.config, carried.tokenizer.to_str()) == says and carried.end_tokens == (0, 5)
    run_stored(load(file), "decode-64")
    assert lpu.load(file).generate(PROMPT, NEW_TOKENS).digest == expected.digest
    with conversation(ChatSettings(artifact=file, max_new_tokens=2, in_process=True)) as talk:
        assert talk.say("add(a, b)").text
    assert list(elsewhere.iterdir()) == [] and stored.model["checkpoint"]


def test_only_what_is_needed_travels(checkpoint: Path) -> None:
    files = portable_files(load_checkpoint(checkpoint))
    assert sorted(files) == [
        f"my model/{name}" for name in sorted(os.listdir(checkpoint)) if name != "README.md"
    ]
    weights = {name: parts for name, (_, parts) in files.items() if "safetensors" in name}
    kept = sum(len(part) for parts in weights.values() for _, part in parts)
    config = load_checkpoint(checkpoint).config
    embedding = config.vocab * config.hidden_size
    assert embedding < kept < 4 * embedding + 20_000
    for name, (size, parts) in files.items():
        whole = (checkpoint.parent / name).read_bytes()
        assert size == len(whole)
        assert all(whole[at : at + len(part)] == part.tobytes() for at, part in parts)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_a_gguf_file_travels_too(kind: str, tmp_path: Path) -> None:
    original = load_checkpoint(gguf_files.write_sample(tmp_path / "tiny.gguf", kind))
    artifact = compiled(original)
    save(carrying(artifact, original), tmp_path / "tiny.lpu")
    moved = load(tmp_path / "tiny.lpu")
    assert list(moved.files) == ["tiny.gguf"]
    _, found = open_carried(moved)
    assert found.path is not None and found.path.name == "tiny.gguf"
    assert found.path.stat().st_size == (tmp_path / "tiny.gguf").stat().st_size
    same(found, original)


def test_a_head_that_is_the_embedding_is_still_compared(checkpoint: Path, tmp_path: Path) -> None:
    """Both are stored, config.json says that they are one: opening compares them."""
    config = json.loads((checkpoint / "config.json").read_text()) | {"tie_word_embeddings": True}
    (checkpoint / "config.json").write_text(json.dumps(config))
    index = json.loads((checkpoint / "model.safetensors.index.json").read_text())["weight_map"]
    embedding = load_file(checkpoint / index["model.embed_tokens.weight"])
    head = {"lm_head.weight": embedding["model.embed_tokens.weight"]}
    save_file(head, checkpoint / "head.safetensors")
    index["lm_head.weight"] = "head.safetensors"
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    original = load_checkpoint(checkpoint)
    assert original.config.tied
    _, found = open_carried(carrying(compiled(original), original))
    same(found, original)


def test_a_file_of_an_older_version(checkpoint: Path) -> None:
    """It has no files: its checkpoint is looked for where it was, or the mend is said."""
    old = compiled(load_checkpoint(checkpoint))
    assert open_carried(old)[1].path == checkpoint
    shutil.rmtree(checkpoint)
    with pytest.raises(InputError, match="does not carry its tokenizer, as an older version"):
        open_carried(old)
    assert open_carried(old, "draft")[1].path == shipped_model("draft")


def test_embeddings_of_another_shape_are_refused(checkpoint: Path) -> None:
    """The larger model has as many tiles and tokens, so chips would take its embeddings."""
    original = load_checkpoint(checkpoint)
    artifact = carrying(compiled(original), original)
    assert open_carried(artifact, "draft")[1].path == shipped_model("draft")
    with pytest.raises(InputError, match="--model target: has layers 4, the compiled model 2; lea"):
        open_carried(artifact, "target")


def test_no_room_to_lay_files_down(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = load_checkpoint(checkpoint)
    made = carrying(Artifact(lpu.ChipSpec(), "single", 1), whole)
    made.files["my model/config.json"] = (1, ((0, np.frombuffer(b"{", np.uint8)),))

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("cluster.processes.one_file._lay_down", full)
    with pytest.raises(RunError, match=r"files cannot be laid down \(No space left on device\)"):
        open_carried(made)


def test_a_model_in_memory_carries_nothing() -> None:
    from programs.models import ModelConfig, random_checkpoint

    config = ModelConfig(64, 1, 4, 2, 16, 96, 32)
    assert portable_files(random_checkpoint(config, 1)) == {}
