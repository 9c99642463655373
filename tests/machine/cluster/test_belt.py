"""``lpu belt``: every prompt says what it says alone."""

from __future__ import annotations

import json
from typing import Any

import pytest

from cluster.cli import run


def said(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert run([*arguments, "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_sequences_are_as_alone(capsys: pytest.CaptureFixture[str]) -> None:
    texts = ["def main(", "x = [", "import "]
    prompts = [word for text in texts for word in ("--prompt", text)]
    asked = ("--tp", "2", "--pp", "2", "--max-new-tokens", "5")
    belt = said(capsys, "belt", *asked, *prompts)
    assert (belt["chips"], belt["sequences"]) == (4, 3) and belt["retired_as_predicted"]
    for text, tokens in zip(texts, belt["tokens"], strict=True):
        alone = said(capsys, "generate", "--prompt", text, *asked, "--in-process", "--ignore-eos")
        assert alone["tokens"] == tokens
    rate = 900e6 / belt["interval_cycles"]
    assert belt["tokens_per_second_total"] == pytest.approx(rate)
    assert belt["tokens_per_second_per_user"] == pytest.approx(rate / 3)
    assert belt["latency_cycles"] == 2 * belt["interval_cycles"]


@pytest.mark.long
@pytest.mark.parametrize(
    ("model", "tp", "pp", "dtype"), [("target", 2, 2, "int8"), ("draft", 1, 1, "fp16")]
)
def test_batches_are_as_alone(
    capsys: pytest.CaptureFixture[str], model: str, tp: int, pp: int, dtype: str
) -> None:
    """Five prompts of different lengths, two or three of them in a stage at a time."""
    texts = ["def main(", "x", "import ", "    return self.", "#"]
    prompts = [word for text in texts for word in ("--prompt", text)]
    asked = ("--model", model, "--tp", str(tp), "--pp", str(pp), "--dtype", dtype)
    asked += ("--max-new-tokens", "7")
    alone = said(capsys, "belt", *asked, *prompts)
    batch = 3 if pp > 1 else 5
    both = said(capsys, "belt", *asked, *prompts, "--batch", str(batch))
    assert (both["batch"], both["sequences"]) == (batch, batch * pp)
    assert both["tokens"] == alone["tokens"] and both["texts"] == alone["texts"]
    assert both["retired_as_predicted"] and both["beats"] < alone["beats"]
    each = 900e6 / both["interval_cycles"] / pp
    assert both["tokens_per_second_per_user"] == pytest.approx(each)
    assert both["tokens_per_second_total"] == pytest.approx(5 * each)
    assert both["tokens_per_second_total"] > 1.2 * alone["tokens_per_second_total"]
    assert run(["belt", *asked, *prompts, "--batch", str(batch)]) == 0
    assert f"a token of each of {batch} leaves every" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "about"),
    [
        (("--prompt", ""), "--prompt"),
        (("--context", "3", "--prompt", "def main("), "--context is 3"),
        (("--tp", "3"), "--chips"),
        (("--max-new-tokens", "0"), "--max-new-tokens"),
        (("--max-new-tokens", "100000"), "--max-new-tokens"),
        (("--batch", "0"), "--batch 0: use 1 or more"),
        (
            ("--batch", "65"),
            "--batch 65: a stage takes 64 sequences at a time at most; use 1 to 64",
        ),
    ],
)
def test_refusals(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], about: str
) -> None:
    assert run(["belt", *arguments]) == 2
    error = capsys.readouterr().err
    assert about in error and error.count("\n") == 1
