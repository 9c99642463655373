"""``lpu workload``: what it prints and writes, and how it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cluster.cli import run


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("matmul", "--chips", "3"), ("--chips 3", "1, 2, 4 or 8")),
        (("matmul", "--dtype", "fp8"), ("--dtype fp8", "int8 or fp16")),
        (("matmul", "--split", "both"), ("--split both", "columns or rows")),
        (("matmul", "--split", "rows:13,columns:8"), ("--chips 1", "use --chips 104")),
        (("matmul", "--split", "rows:13"), ("use columns or rows, or both, for instance",)),
        (
            ("matmul", "--split", "rows:20,columns:20", "--chips", "400"),
            ("a grid of 20 x 20 chips",),
        ),
        (("matmul", "--n", "0"), ("--n 0",)),
        (("matmul", "--sweep", "5:1:1"), ("--sweep 5:1:1",)),
        (("matmul", "--sweep", "1:5"), ("--sweep 1:5", "from:to:step")),
        (("matmul", "--sweep", "1:5:1", "--run"), ("--sweep", "--run")),
        (("matmul", "--m", "30000", "--n", "30000"), ("does not fit", "bytes too many")),
        (("matmul", "-o", "/no/such/place/x.lpu"), ("/no/such/place",)),
        (("cholesky", "--n", "0"), ("--n 0",)),
        (("cholesky", "--chips", "3"), ("--chips 3", "1, 2, 4 or 8")),
        (("mlp", "--sizes", "10"), ("--sizes 10",)),
        (("mlp", "--sizes", "10,-3"), ("--sizes 10,-3",)),
        (("mlp", "--batch", "20000"), ("more than a slice holds", "smaller image or batch")),
        (("resnet50", "--size", "100"), ("--size 100", "multiple of 32")),
        (("resnet50", "--chip", "groq-lpu-9"), ("groq-lpu-9",)),
        (("resnet50", "--size", "448"), ("more than a slice holds",)),
        (("bert", "--model", "tiny"), ("--model tiny", "base or large")),
        (("bert", "--tokens", "100"), ("100 tokens", "multiple of 16")),
        (("bert", "--layers", "3", "--chips", "8"), ("8 chips for 3 layers",)),
        (("bert", "--model", "large", "--chips", "4"), ("do not fit a chip", "bytes too many")),
    ],
)
def test_wrong_arguments_are_one_line(
    arguments: tuple[str, ...], words: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["workload", *arguments]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("lpu: ") and said.err.count("\n") == 1
    for word in words:
        assert word in said.err


def answer(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    """What a command that must succeed prints with --json."""
    assert run([*arguments, "--json"]) == 0, capsys.readouterr().err
    said: dict[str, Any] = json.loads(capsys.readouterr().out)
    return said


def test_a_factorisation(capsys: pytest.CaptureFixture[str]) -> None:
    said = answer(capsys, "workload", "cholesky", "--n", "20", "--run")
    assert said["equal_to_golden"] and said["values"] == 400
    assert 0 < said["error_against_float64"] < 1e-6
    assert run(["workload", "cholesky", "--n", "20", "--run"]) == 0
    assert "of the largest element" in capsys.readouterr().out


@pytest.mark.long
def test_a_product_over_nodes(capsys: pytest.CaptureFixture[str]) -> None:
    sizes = ("--m", "30", "--k", "900", "--n", "200", "--chips", "10")
    said = answer(capsys, "workload", "matmul", *sizes, "--split", "rows:5,columns:2", "--run")
    assert said["checked"] and said["equal_to_golden"] and said["values"] == 30 * 200
    assert said["product_cycles"] < said["cycles"]
    macs = 30 * 900 * 200
    assert said["mxm_utilisation"] == macs / (10 * 320 * 320 * said["cycles"])  # not of 16 chips


def test_a_workload_is_an_artifact_like_any_other(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(tmp_path / "product.lpu")
    sizes = ("--m", "50", "--k", "400", "--n", "70", "--chips", "2")
    said = answer(capsys, "workload", "matmul", *sizes, "--run", "-o", path)
    assert said["checked"] and said["equal_to_golden"] and said["values"] == 50 * 70
    macs = 50 * 400 * 70
    assert said["mxm_utilisation"] == macs / (said["cycles"] * 2 * 102_400)
    assert said["microseconds"] == pytest.approx(said["cycles"] / 900)
    assert answer(capsys, "check", path)["legal"]
    ran = answer(capsys, "run", path)
    assert ran["cycles"] == said["cycles"] == ran["predicted_cycles"]


@pytest.mark.parametrize("name", ["mlp", "resnet50", "bert"])
@pytest.mark.cases(1)
def test_small_models_run(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = {
        "mlp": ("--batch", "5", "--sizes", "30,20,10"),
        "resnet50": ("--size", "32"),
        "bert": ("--layers", "2", "--tokens", "16", "--chips", "2"),
    }
    path = str(tmp_path / "model.lpu")
    said = answer(capsys, "workload", name, *sizes[name], "--run", "-o", path)
    assert said["checked"] and said["equal_to_golden"]
    assert answer(capsys, "check", path)["legal"]
    assert answer(capsys, "run", path)["cycles"] == said["cycles"]
    assert answer(capsys, "workload", name, *sizes[name])["cycles"] == said["cycles"]


def test_a_sweep_prints_one_row_for_each_product(capsys: pytest.CaptureFixture[str]) -> None:
    sizes = ("--m", "64", "--k", "320", "--sweep", "100:300:100", "--dtype", "int8")
    assert run(["workload", "matmul", *sizes]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [int(line.split()[1]) for line in lines] == [100, 200, 300]
    said = answer(capsys, "workload", "matmul", *sizes)
    assert [row["n"] for row in said["rows"]] == [100, 200, 300]
    assert all(row["checked"] and 0 < row["mxm_utilisation"] < 1 for row in said["rows"])
