"""What ``--model`` names: one rule, and refusals that offer nothing they would refuse."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

import pytest

from programs.models import (
    ARCHITECTURES,
    CheckpointError,
    Need,
    config_of,
    find_model,
    load_checkpoint,
    open_model,
    shipped_model,
)

NEEDS: tuple[Need, ...] = get_args(Need)


def offered(error: CheckpointError) -> set[str]:
    """The known names in an error's text, but for the one it is about."""
    told = str(error).partition(" use ")[2] or str(error).partition("one of ")[2]
    return {name for name in re.split(r", | or ", told) if name in ARCHITECTURES}


@pytest.mark.parametrize("need", NEEDS)
@pytest.mark.parametrize("name", ["llama-9", "llama-2-70b", "deepseek-v3"])
def test_what_a_refusal_offers_is_not_refused(name: str, need: Need) -> None:
    try:
        find_model(name, need)
    except CheckpointError as error:
        assert "\n" not in str(error)
        names = offered(error)
        assert names
        for other in names:
            assert find_model(other, need).name == other
    else:
        assert name in ARCHITECTURES and need != "weights"


def test_all_of_a_shape_but_not_its_weights_is_had_by_name() -> None:
    name, config = config_of("llama-2-70b")
    assert (name, config.layers) == ("llama-2-70b", 80)
    with pytest.raises(CheckpointError, match="shape without weights; name the directory"):
        open_model("llama-2-70b")


def test_a_name_comes_before_a_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "target").symlink_to(shipped_model("draft"))
    monkeypatch.chdir(tmp_path)
    layers = load_checkpoint(shipped_model("draft")).config.layers
    assert open_model("target").path == shipped_model("target")
    for source in ("./target", Path("target")):
        assert open_model(source).config.layers == layers


def test_a_configuration_alone_is_a_shape() -> None:
    file = shipped_model() / "config.json"
    assert config_of(file) == config_of("target")
    with pytest.raises(CheckpointError, match="shape without weights"):
        open_model(file)
