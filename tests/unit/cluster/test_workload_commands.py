"""What workloads are built of: sizes as typed, and those of the published models."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import cluster.runs
import programs.convnet
from cluster.cli import run
from cluster.commands import workload
from cluster.experiments.serving.figures import STAGES, ServiceStage, stage_report

BERT = "random_encoder"
MATMUL = "random_matmul"

#: What is typed after ``lpu workload``: the title, what builds it, and its sizes.
TYPED: dict[str, tuple[str, str, tuple[Any, ...]]] = {
    "bert": ("BERT base, 12 layers, 128 tokens, fp16, 8 chips", BERT, (12, 768, 12, 3072, 128, 8)),
    "bert --model large": (
        "BERT large, 24 layers, 128 tokens, fp16, 8 chips",
        BERT,
        (24, 1024, 16, 4096, 128, 8),
    ),
    "bert --layers 1 --tokens 16 --chips 1": (
        "BERT base, 1 layers, 16 tokens, fp16, 1 chip",
        BERT,
        (1, 768, 12, 3072, 16, 1),
    ),
    "cholesky": ("Cholesky, 320 x 320, fp32, 1 chip", "random_cholesky", (320, 1)),
    "cholesky --n 1 --chips 2": ("Cholesky, 1 x 1, fp32, 2 chips", "random_cholesky", (1, 2)),
    "matmul": (
        "[2304 x 4096] x [4096 x 1376] fp16, 1 chip",
        MATMUL,
        (2304, 4096, 1376, "fp16", 1, "columns"),
    ),
    "matmul --m 1 --k 2 --n 3 --dtype int8 --chips 2 --split rows": (
        "[1 x 2] x [2 x 3] int8, 2 chips",
        MATMUL,
        (1, 2, 3, "int8", 2, "rows"),
    ),
    "mlp": (
        "MLP 784,2048,2048,10, batch 256, int8",
        "random_network",
        (256, (784, 2048, 2048, 10)),
    ),
    "mlp --batch 1 --sizes 1,1000000": (
        "MLP 1,1000000, batch 1, int8",
        "random_network",
        (1, (1, 1_000_000)),
    ),
    "resnet50": ("ResNet-50, 224 x 224, int8", "random_network", (224,)),
    "resnet50 --size 32": ("ResNet-50, 32 x 32, int8", "random_network", (32,)),
}


@pytest.mark.parametrize("typed", TYPED)
def test_what_is_built(typed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    title, builder, sizes = TYPED[typed]
    built: list[tuple[Any, ...]] = []
    titles: list[str] = []

    def keep(build: Any, said: str, job: Any, as_json: bool) -> None:
        titles.append(said)
        build("a chip", job.seed, job.with_data)

    monkeypatch.setattr(workload, "_report", keep)
    monkeypatch.setattr(programs.convnet, "mlp", lambda *given: given)
    monkeypatch.setattr(programs.convnet, "resnet50", lambda *given: given)
    monkeypatch.setattr(cluster.runs, builder, lambda *given: built.append(given))
    assert run(["workload", *typed.split(), "--seed", "5", "--run"]) == 0
    shape, chip, *rest = built[0]
    whole = list(shape if isinstance(shape, tuple) else vars(shape).values())
    if builder == BERT:
        whole.append(rest.pop(0))
    assert titles == [title] and tuple(whole) == sizes
    assert (chip, *rest) == ("a chip", 5, True)


@pytest.mark.parametrize(
    ("typed", "says"),
    [
        ("bert --model small", "--model small: use base or large"),
        ("bert --layers 0", "--layers 0: use 1 or more"),
        ("bert --chips 3", "--chips 3: a node has 1, 2, 4 or 8 chips"),
        ("cholesky --n 0", "--n 0: use 1 or more"),
        ("mlp --batch 0", "--batch 0: use 1 or more"),
        ("mlp --sizes 784", "--sizes 784: use two or more numbers of 1 to 1,000,000"),
        ("mlp --sizes 784,0", "--sizes 784,0: use two or more numbers"),
        ("mlp --sizes 784,1000001", "--sizes 784,1000001: use two or more numbers"),
        ("resnet50 --size 31", "--size 31: use a multiple of 32"),
        ("resnet50 --size 0", "--size 0: use a multiple of 32"),
        ("resnet50 --size 33", "--size 33: use a multiple of 32"),
    ],
)
def test_what_is_not_built(typed: str, says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["workload", *typed.split()]) == 2
    out, error = capsys.readouterr()
    assert out == "" and says in error and error.count("\n") == 1


def test_stages_that_a_platform_lacks_are_told_as_such() -> None:
    """Whichever of them: each stage alone, all, and none."""
    some = np.array([0, 4], np.int64)
    stage = ServiceStage("LPUs", 3, 6, some, some + 1)
    lacking = {"machine": None, "servers": 0}
    lacking |= dict.fromkeys(("utilisation", "queue_mean", "queue_peak"))
    for present in ([], *([name] for name in STAGES), list(STAGES)):
        report = stage_report(dict.fromkeys(present, stage), 10)
        assert list(report) == list(STAGES)
        for name in STAGES:
            if name in present:
                assert report[name]["machine"] == "LPUs" and report[name]["servers"] == 3
                assert report[name]["utilisation"] == 6 / (3 * 10)
                assert (report[name]["queue_mean"], report[name]["queue_peak"]) == (0.2, 1)
            else:
                assert report[name] == lacking
