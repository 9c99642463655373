"""``lpu quantise`` and what ``lpu evaluate --reference`` says of its checkpoint."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from cluster.cli import run
from cluster.errors import InputError
from programs.models import Checkpoint, shipped_model
from programs.quantising import new_directory

PROSE = "def first(items):\n    return items[0]\n" * 8


@pytest.fixture
def prose(tmp_path: Path) -> str:
    file = tmp_path / "prose.txt"
    file.write_text(PROSE)
    return str(file)


@pytest.mark.long
def test_a_checkpoint_that_other_commands_take(
    tmp_path: Path, prose: str, capsys: pytest.CaptureFixture[str]
) -> None:
    to = str(tmp_path / "new")
    small = ["--sequences", "2", "--length", "16", "--chips", "1"]
    assert run(["quantise", "--model", "draft", "--to", to, "--text", prose, *small, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["calibration_tokens"], facts["text"], facts["chips"]) == (32, "prose.txt", 1)
    left = facts["squared_error_left"]
    assert list(left) == ["q", "k", "v", "o", "gate", "up", "down", "head"]
    assert all(0 < share < 1 for share in left.values())
    beside = ["--model", to, "--reference", "draft", "--chips", "1", "--text", prose]
    assert run(["evaluate", *beside, "--tokens", "20", "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["reference"] == "draft"
    assert 1e-4 < figures["relative_rms_logit_error"] < 0.1  # its own float32 is ten times nearer
    assert run(["evaluate", *beside[:2], *beside[4:], "--tokens", "20", "--json"]) == 0
    assert (
        json.loads(capsys.readouterr().out)["relative_rms_logit_error"]
        < figures["relative_rms_logit_error"] / 3
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--length", "513"], "the model reads 512 positions at most; use shorter sequences"),
        (["--text", "PROSE"], "12 sequences of 512 need 6,144; use a longer text, or fewer"),
        (["--text", "nowhere.txt"], "is no text to calibrate on (No such file or directory)"),
        (["--length", "1"], "--length"),
        (["--seed", str(2**63)], "--seed 9223372036854775808: use an integer from 0 to 2^63 - 1"),
        (["--to", "PROSE/new"], "no checkpoint written: Not a directory; name another directory"),
        (["--chips", "3"], "--chips"),
        (["--to", "TAKEN"], "is not empty; name a new directory for the checkpoint"),
    ],
)
def test_refused_before_anything_is_written(
    arguments: list[str],
    words: str,
    tmp_path: Path,
    prose: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    named = {"PROSE": prose, "TAKEN": str(tmp_path)}
    to = tmp_path / "new"
    given = [named.get(word, word.replace("PROSE", prose)) for word in arguments]
    assert run(["quantise", "--model", "draft", "--to", str(to), *given]) == 2
    said = capsys.readouterr().err
    assert words in said and "Traceback" not in said and not to.exists()


def test_a_reference_with_other_tokens_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from dataclasses import replace

    from programs.models import open_model, random_checkpoint
    from programs.quantising import files_beside, plain_model, write_checkpoint

    config = replace(open_model("draft").config, vocab=512)
    other = random_checkpoint(config, 1)
    write_checkpoint(plain_model(other), files_beside(other, 8), tmp_path / "other")
    assert run(["evaluate", "--model", "draft", "--reference", str(tmp_path / "other")]) == 2
    words = "has 512 tokens, the model 1,024; name the model that it was made of"
    assert words in " ".join(capsys.readouterr().err.split())
    file = tmp_path / "other" / "config.json"
    shutil.copytree(shipped_model("draft"), tmp_path / "other", dirs_exist_ok=True)
    file.write_text(json.dumps(json.loads(file.read_text()) | {"max_position_embeddings": 100}))
    assert run(["evaluate", "--model", "draft", "--reference", str(tmp_path / "other")]) == 2
    words = "was made for 100 positions, the evaluation has 512; use a smaller --context, or"
    assert words in " ".join(capsys.readouterr().err.split())


def test_a_reference_is_named_beside_its_figures(capsys: pytest.CaptureFixture[str]) -> None:
    """And shows no layers: a quantised model's residual stream is another's, turned."""
    beside = ["evaluate", "--model", "draft", "--reference", "target", "--chips", "1"]
    assert run([*beside, "--layers"]) == 2
    assert "residual streams of another model are not comparable" in capsys.readouterr().err
    assert run([*beside, "--tokens", "2"]) == 0
    assert "float32 is of target" in " ".join(capsys.readouterr().out.replace("│", " ").split())


def broken(directory: Path, name: str, **changes: object) -> Path:
    """The shipped draft with a file left out, or with fields of it changed."""
    shutil.copytree(shipped_model("draft"), directory)
    file = directory / name
    if changes:
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    else:
        file.unlink()
    return directory


def test_what_others_put_there_stays(tmp_path: Path) -> None:
    """Directories go again that are empty, whoever asks for the checkpoint next."""
    to = tmp_path / "a" / "new"
    for own in (None, to / "tokenizer.json"):
        with pytest.raises(InputError, match="too late"), new_directory(to):
            if own is not None:
                own.write_text("mine")
            raise InputError("too late")
        assert to.exists() == (own is not None) == (tmp_path / "a").exists()
    assert own is not None and own.read_text() == "mine"


@pytest.mark.long
def test_nothing_is_left_where_the_work_fails(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files are missed before the weights are read; the same directory can be named again."""
    to = tmp_path / "new"
    small = ["--to", str(to), "--sequences", "1", "--length", "4", "--chips", "1"]
    lacking = broken(tmp_path / "lacking", "tokenizer.json")
    with monkeypatch.context() as patch:
        patch.setattr(Checkpoint, "tensor", None)
        assert run(["quantise", "--model", str(lacking), *small]) == 2
    assert "tokenizer.json is missing" in capsys.readouterr().err and not to.exists()
    lengthy = broken(tmp_path / "lengthy", "config.json", max_position_embeddings=8)
    with monkeypatch.context() as patch:

        def full(*_: object) -> None:
            (to / "model.safetensors").write_bytes(b"begun")
            raise OSError(28, "No space left on device")

        patch.setattr("programs.quantising.writing._write_tensors", full)
        patch.setattr("programs.quantising.round_model", lambda model, *_: (model, []))
        assert run(["quantise", "--model", str(lengthy), *small[:4], "--chips", "1"]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "no checkpoint written: No space left on device; name another" in said
    assert not to.exists()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["lacking", "lengthy"]
