"""Which tokens end a text and how a chat is written, by the files beside the weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from programs.models import Checkpoint, CheckpointError, random_checkpoint, read_config
from programs.models.generation import chat_template_of, end_tokens_of, special_tokens_of
from tests import ROOT

CONFIG = {"eos_token_id": 2}


def directory(path: Path, **files: object) -> Path:
    """JSON files of a checkpoint, by name without ``.json``."""
    for name, value in files.items():
        (path / f"{name}.json").write_text(json.dumps(value), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("generation", "config", "expected"),
    [
        (None, {"eos_token_id": 2}, (2,)),
        (None, {"eos_token_id": [7, 2]}, (7, 2)),
        (None, {}, ()),
        ({"eos_token_id": [2, 45]}, {"eos_token_id": 2}, (2, 45)),
        ({"eos_token_id": 45}, {"eos_token_id": 2}, (45,)),
        ({"eos_token_id": 0}, {"eos_token_id": 2}, (0,)),
        ({"eos_token_id": None}, {"eos_token_id": 2}, (2,)),
        ({"temperature": 0.6}, {"eos_token_id": 2}, (2,)),
        ({"eos_token_id": []}, {"eos_token_id": 2}, (2,)),
        ({"eos_token_id": [5, 5, 6]}, {}, (5, 6)),
    ],
)
def test_generation_config_goes_over_config(
    tmp_path: Path, generation: object, config: object, expected: tuple[int, ...]
) -> None:
    directory(tmp_path, config=config)
    if generation is not None:
        directory(tmp_path, generation_config=generation)
    assert end_tokens_of(tmp_path) == expected


@pytest.mark.parametrize("value", ["2", [2, "45"], True, -1, 2.0, {"id": 2}])
def test_an_end_token_is_a_number(tmp_path: Path, value: object) -> None:
    directory(tmp_path, config=CONFIG, generation_config={"eos_token_id": value})
    with pytest.raises(CheckpointError, match=r"generation_config.json: eos_token_id is .*; use"):
        end_tokens_of(tmp_path)


def test_a_damaged_generation_config_is_told(tmp_path: Path) -> None:
    directory(tmp_path, config=CONFIG)
    (tmp_path / "generation_config.json").write_bytes(b"{")
    with pytest.raises(CheckpointError, match="not JSON"):
        end_tokens_of(tmp_path)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("{{ messages }}", "{{ messages }}"),
        ([{"name": "tool_use", "template": "B"}, {"name": "default", "template": "A"}], "A"),
        ({"default": "A", "rag": "B"}, "A"),
        (None, None),
    ],
)
def test_the_template_of_tokenizer_config(
    tmp_path: Path, value: object, expected: str | None
) -> None:
    directory(tmp_path, tokenizer_config={"chat_template": value})
    assert chat_template_of(tmp_path) == expected


def test_the_template_file_goes_over_tokenizer_config(tmp_path: Path) -> None:
    directory(tmp_path, tokenizer_config={"chat_template": "old"})
    (tmp_path / "chat_template.jinja").write_text("new é", encoding="utf-8")
    assert chat_template_of(tmp_path) == "new é"


def test_no_template_is_none(tmp_path: Path) -> None:
    assert chat_template_of(tmp_path) is None
    assert chat_template_of(directory(tmp_path, tokenizer_config={"eos_token": "x"})) is None


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (5, "neither text nor"),
        ([], "called default"),
        (["a"], "called default"),
        ([{"name": "rag", "template": "B"}], "rag"),
        ([{"name": "default"}], None),
        ([{"name": "default", "template": 3}], "neither text nor"),
        ("x" * (1 << 21), "more than"),
    ],
)
def test_a_template_is_text(tmp_path: Path, value: object, said: str | None) -> None:
    directory(tmp_path, tokenizer_config={"chat_template": value})
    if said is None:
        assert chat_template_of(tmp_path) is None
        return
    with pytest.raises(CheckpointError, match=said) as error:
        chat_template_of(tmp_path)
    assert "\n" not in str(error.value)


def test_a_template_file_is_utf8(tmp_path: Path) -> None:
    (tmp_path / "chat_template.jinja").write_bytes(b"caf\xe9")
    with pytest.raises(CheckpointError, match="not UTF-8"):
        chat_template_of(tmp_path)


def test_special_tokens_by_name(tmp_path: Path) -> None:
    tokens = {
        "bos_token": {"content": "<s>", "lstrip": False},
        "eos_token": "</s>",
        "pad_token": None,
        "add_bos_token": True,
        "model_max_length": 512,
    }
    older = {"bos_token": "old", "unk_token": "<unk>"}
    directory(tmp_path, tokenizer_config=tokens, special_tokens_map=older)
    assert special_tokens_of(tmp_path) == {
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
    }


def test_a_model_in_memory_has_neither() -> None:
    config = read_config(ROOT / "programs" / "checkpoints" / "draft")
    model: Checkpoint = random_checkpoint(config, 1)
    assert (model.end_tokens, model.chat_template, model.special_tokens) == ((), None, {})
