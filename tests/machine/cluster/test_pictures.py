"""Pictures of experiments: whole files of the asked format, the same bytes for the same data."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from cluster.cli import run
from cluster.errors import InputError
from cluster.experiments.serving import Latencies
from cluster.plots import draw_disaggregated, draw_load
from cluster.whole_files import check_writable, replace_file

SWEEP = ("speculative", "--sweep", "--alpha", "0.7", "--lpu-cycles-per-token", "30000")
LOAD = ("load", "--requests", "50", "--lpu-cycles-per-token", "30000")
SPLIT = ("disaggregated", "--requests", "20", "--lpu-cycles-per-token", "30000")


@pytest.mark.long
@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        (SWEEP, ("temperature 0.5", "nvlink-c2c", "lpu-kv over a link", "draft on GPU")),
        (LOAD, ("to the first token", "per further token", "gpu: p50", "lpu: p50")),
        ((*LOAD, "--pool", "lpu"), ("lpu: p50",)),
        (SPLIT, ("gpu-only", "cpx+lpu+gpu", "second after first")),
    ],
)
@pytest.mark.cases(1)
def test_every_experiment_draws(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    arguments: tuple[str, ...],
    shown: tuple[str, ...],
) -> None:
    one, two, dots = tmp_path / "one.svg", tmp_path / "two.svg", tmp_path / "dots.png"
    results = []
    for path in (one, two, dots):
        assert run(["experiment", *arguments, "--plot", str(path), "--json"]) == 0
        results.append(json.loads(capsys.readouterr().out))
    assert results[0] == results[1] == results[2]
    assert run(["experiment", *arguments, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == results[0]
    drawn = one.read_text(encoding="utf-8")
    assert drawn.startswith("<?xml") and one.read_bytes() == two.read_bytes()
    for text in shown:  # glyphs are paths; each text is kept as a comment beside them
        assert f"<!-- {text}" in drawn
    assert dots.read_bytes().startswith(b"\x89PNG")
    assert sorted(tmp_path.iterdir()) == sorted([one, two, dots])


@pytest.mark.parametrize("experiment", [SWEEP, LOAD, SPLIT])
@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("picture.gif", ".png or .svg"),
        ("picture", ".png or .svg"),
        ("/nowhere/at/all.png", "not written: No such file"),
        ("/proc/picture.svg", "not written"),
        (f"{'x' * 300}.png", "not written: File name too long"),
    ],
)
def test_a_path_that_cannot_be_written_is_one_line(
    capsys: pytest.CaptureFixture[str], experiment: tuple[str, ...], path: str, says: str
) -> None:
    assert run(["experiment", *experiment, "--plot", path]) == 2
    captured = capsys.readouterr()
    assert says in captured.err and captured.err.count("\n") == 1 and captured.out == ""


def test_only_a_sweep_has_a_picture(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["experiment", "speculative", "--plot", "a.png"]) == 2
    assert "add --sweep" in capsys.readouterr().err


def test_nothing_served_and_equal_times_draw(tmp_path: Path) -> None:
    nothing = Latencies(np.zeros(0, np.int64), np.zeros(0))
    draw_load({"gpu": nothing}, tmp_path / "a.png")
    same = Latencies(np.full(3, 5, np.int64), np.zeros(0))
    draw_load({"gpu": nothing, "lpu": same}, tmp_path / "b.png")
    report = {
        "model": "m",
        "prompt_tokens": 1,
        "output_tokens": 1,
        "platforms": {"gpu-only": {}},
        "ttft_s": {"gpu-only": None},
        "second_token_s": {"gpu-only": None},
        "tpot_s": {"gpu-only": None},
    }
    draw_disaggregated(report, tmp_path / "c.png")
    assert all((tmp_path / f"{name}.png").stat().st_size for name in "abc")


def test_an_old_file_stays_until_the_new_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "old.txt"
    path.write_text("old")

    def fail(target: Path) -> None:
        target.write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(InputError, match="No space left"):
        replace_file(path, fail)
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
    replace_file(path, lambda target: None)
    assert path.read_text() == ""
    with pytest.raises(InputError, match="a directory"):
        check_writable(tmp_path)
    assert list(tmp_path.iterdir()) == [path]
