"""``lpu plan`` on the command line: the contract's keys, what-ifs, sweeps, refusals."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from chip.engine import Chip
from chip.spec import PRESETS, ChipSpec
from cluster.cli import run
from cluster.experiments.serving.belt import belt_of_plan, host_bytes
from programs.decoder import Host, compile_belt, partition_model
from programs.models import (
    ARCHITECTURES,
    CheckpointError,
    LayerKind,
    ModelConfig,
    config_of,
    random_checkpoint,
)
from programs.plans import batch_plan, bucket_costs, compile_plan, report_plan
from tests import ROOT

KEYS = {
    "chips",
    "tp",
    "pp",
    "cycles_per_token",
    "tokens_per_second_per_user",
    "tokens_per_second_total",
    "sram_used_ratio",
    "bottleneck",
    "checked",
    "wall_seconds",
}


def planned(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert run(["plan", *arguments, "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_a_plan_has_the_contract_s_keys(capsys: pytest.CaptureFixture[str]) -> None:
    row = planned(capsys, "--model", "target", "--chips", "16", "--context", "64")
    assert row.keys() >= KEYS
    assert (row["chips"], row["tp"], row["pp"], row["checked"]) == (16, 8, 2, True)
    assert row["run_cycles"] == row["cycles_per_token"]
    clock = PRESETS["groq-lpu-1"].clock_hz
    assert row["tokens_per_second_per_user"] == clock / row["cycles_per_token"]
    assert row["tokens_per_second_total"] == pytest.approx(row["tokens_per_second_per_user"])
    assert 0 < row["sram_used_ratio"] < 1


@pytest.mark.long
def test_a_row_carries_the_report(capsys: pytest.CaptureFixture[str]) -> None:
    asked = ("--model", "target", "--chips", "16", "--context", "64", "--batch", "3", "--no-run")
    row = planned(capsys, *asked)
    name, config = config_of("target")
    plan = compile_plan(name, config, ChipSpec(), context=64, batch=3, chips=16)
    r = report_plan(plan, batch_plan(plan)[0])
    for key, value in {
        "phases": r.phases,
        "sram_bytes": r.sram,
        "units": r.units,
        "bottleneck": str(r.bottleneck),
        "roofline_cycles": r.roofline_cycles,
        "operations_per_byte": r.operations_per_byte,
        "instruction_bytes": r.instruction_bytes,
        "tokens_per_second_total": r.total,
        "tokens_per_second_per_user": r.per_user,
        "mode": r.mode,
    }.items():
        assert row[key] == value, key


def test_a_batch_rides_the_belt(capsys: pytest.CaptureFixture[str]) -> None:
    row = planned(
        capsys, "--model", "target", "--chips", "16", "--context", "64", "--batch", "2", "--no-run"
    )
    assert row["mode"] == "conveyor belt"
    interval, clock = row["initiation_interval_cycles"], PRESETS["groq-lpu-1"].clock_hz
    assert row["tokens_per_second_total"] == pytest.approx(clock / interval)
    assert row["tokens_per_second_per_user"] == pytest.approx(clock / interval / 2)
    assert "run_cycles" not in row
    energy = row["energy"]
    assert energy["estimate"] and energy["machine_power_w"] == pytest.approx(16 * 185)
    one, every = energy["joules_per_token_of_one_user"], energy["joules_per_token_in_all"]
    assert one == pytest.approx(16 * 185 * row["cycles_per_token"] / clock)
    assert every == pytest.approx(16 * 185 * interval / clock)


def test_no_power_no_energy(capsys: pytest.CaptureFixture[str]) -> None:
    asked = ("--model", "draft", "--chips", "1", "--context", "64", "--no-run")
    assert planned(capsys, *asked, "--chip", "groq-3-lp30")["energy"] is None
    assert planned(capsys, *asked, "--set", "chip.average_power_w=0")["energy"] is None
    assert run(["plan", *asked, "--set", "chip.average_power_w=-1"]) == 2
    assert "average_power_w" in capsys.readouterr().err


ON_VXM = ModelConfig(100, 2, 4, 2, 24, 130, 331)
ON_PLANES = replace(ON_VXM, max_position=4096)
WINDOWS = replace(ON_PLANES, sliding_window=330, layer_kinds=(LayerKind(sliding=True), LayerKind()))


@pytest.mark.parametrize(
    ("config", "bank", "context", "sequences"),
    [
        (ON_VXM, 128, 64, 1),
        (ON_VXM, 128, 256, 1),
        (ON_VXM, 128, 64, 5),
        (ON_PLANES, 4096, 64, 3),
        (ON_PLANES, 4096, 1024, 1),
        (WINDOWS, 4096, 1024, 1),
    ],
)
def test_the_host_moves_every_word_of_the_maps(
    config: ModelConfig, bank: int, context: int, sequences: int
) -> None:
    """A plan and an artifact say what the host then charges: every word of maps and masks."""
    spec = replace(PRESETS["groq-lpu-1"], words_per_bank=bank)
    model = partition_model(random_checkpoint(config, 0), 1, "int8")
    artifact = compile_belt(model, spec, context, 1, sequences=sequences)
    host = Host(artifact, model)
    host.prepare(Chip(spec, 0), 3, 0)
    charged = (host.virtual_io_seconds - spec.pcie_latency_s) * spec.pcie_bytes_per_s
    plan = compile_plan("small", model.checkpoint.config, spec, context=context, batch=sequences)
    assert host_bytes(artifact) == belt_of_plan(plan, bucket_costs(plan, [context])).host_bytes
    assert host_bytes(artifact)[0] == round(charged)


def test_what_ifs_change_the_machine(capsys: pytest.CaptureFixture[str]) -> None:
    asked = ("--model", "draft", "--chips", "8", "--context", "64", "--no-run")
    slow = planned(capsys, *asked)
    fast = planned(capsys, *asked, "--set", "chip.hop_cycles=400", "--set", "chip.clock_hz=8.9e8")
    hops = (slow["cycles_per_token"] - fast["cycles_per_token"]) / 250
    layers = ARCHITECTURES["draft"].layers
    assert hops == 2 * layers  # two all-reduces in each
    assert fast["tokens_per_second_per_user"] == 890_000_000 / fast["cycles_per_token"]


def test_any_clock_is_planned_with_the_spacing_that_follows(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Above 900 MHz a vector takes longer than 24 cycles on a link."""
    asked = ("--model", "draft", "--chips", "8", "--context", "64", "--no-run")
    fast = planned(capsys, *asked, "--set", "chip.clock_hz=1.2e9")
    assert fast["checked"]
    assert fast["changes"] == {
        "clock_hz": [900_000_000, 1_200_000_000],
        "send_spacing_cycles": [24, 32],
    }
    assert run(["plan", *asked, "--set", "chip.clock_hz=1.2e9"]) == 0
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "clock_hz 900,000,000 -> 1,200,000,000; send_spacing_cycles 24 -> 32" in text


def test_two_things_vary(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """A table of 80 columns, a file whose first columns are the axes, JSON in the axes' order."""
    table = tmp_path / "rows.csv"
    asked = ["plan", "--model", "draft", "--chips", "8,7", "--context", "64", "--no-run"]
    varied = ["--sweep", "chip.hop_cycles=650,325", "--csv", str(table)]
    assert run([*asked, *varied, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["axes"] == ["chips", "chip.hop_cycles"]
    points = [(row["chips"], row["chip.hop_cycles"]) for row in found["plans"]]
    assert points == [(8, 650), (8, 325), (7, 650), (7, 325)]
    far, near, *neither = found["plans"]
    saved = far["cycles_per_token"] - near["cycles_per_token"]
    assert saved == 325 * 2 * ARCHITECTURES["draft"].layers
    assert all("use 4 or 8" in row["problem"] for row in neither)
    first = table.read_text(encoding="utf-8").splitlines()
    assert first[0].startswith("chips,chip.hop_cycles,context,batch,tp,pp,cycles_per_token,")
    assert first[1].startswith("8,650,64,1,8,1,")
    assert run([*asked, *varied]) == 0
    lines = capsys.readouterr().out.splitlines()
    table_lines = [
        line.rstrip() for line in lines if not line.startswith(("no plan", "bottleneck"))
    ]
    assert max(map(len, table_lines)) <= 80 and "…" not in "".join(table_lines)
    assert (
        "no plan for chips 7, chip.hop_cycles 325: 7 chips: no wiring has this size; use 4 or 8"
        in lines
    )


@pytest.mark.long
def test_a_sweep_is_a_table_a_file_and_a_picture(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    table, picture = tmp_path / "rows.csv", tmp_path / "rows.svg"
    found = planned(
        capsys,
        "--model",
        "tinyllama-1.1b",
        "--context",
        "64",
        "--sweep",
        "chips=4..16",
        "--no-run",
        "--csv",
        str(table),
        "--plot",
        str(picture),
    )
    rows = list(csv.DictReader(table.read_text(encoding="utf-8").splitlines()))
    assert [int(row["chips"]) for row in rows] == [4, 8, 16]
    problems = [row["problem"] for row in rows]
    assert problems == [plan.get("problem", "") for plan in found["plans"]]
    assert problems[0] and "use --chips" in problems[0] and not problems[-1]
    assert picture.read_text(encoding="utf-8").startswith("<?xml")


@pytest.mark.parametrize("verb", [("plan",), ("experiment", "load")])
def test_a_wrong_model_is_offered_none_that_is_then_refused(
    capsys: pytest.CaptureFixture[str], verb: tuple[str, ...]
) -> None:
    assert run([*verb, "--model", "nobody"]) == 2
    offered = capsys.readouterr().err.partition("one of ")[2].strip()
    names = offered.split(", ")
    assert len(names) > 10
    for name in names:
        config_of(name)
    for name in set(ARCHITECTURES) - set(names):
        with pytest.raises(CheckpointError):
            config_of(name)


@pytest.mark.long
def test_passes_say_what_they_waited_for(capsys: pytest.CaptureFixture[str]) -> None:
    asked = ("--model", "target", "--chips", "2", "--context", "64", "--no-run", "--explain")
    for block, first in (("attention", "norm factor"), ("ffn", "norm factor"), ("head", None)):
        row = planned(capsys, *asked, block)
        passes = row["passes"]
        assert {"name", "wanted", "start", "end", "waits"} == set(passes[0])
        assert first in (None, passes[0]["name"])
        for one in passes:
            assert one["wanted"] <= one["start"] < one["end"]
            assert sum(wait["cycles"] for wait in one["waits"]) == one["start"] - one["wanted"]
    assert "passes" not in planned(capsys, *asked[:-1])
    assert run(["plan", "--chips", "1", *asked[:2], *asked[4:], "ffn"]) == 0
    shown = capsys.readouterr().out
    assert "passes of the ffn, x at cycle 0" in shown and "waited for (who had it)" in shown
    assert " plane " in shown and max(map(len, shown.splitlines())) <= 80


def test_people_get_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["plan", "--model", "draft", "--context", "64", "--chips", "8"]) == 0
    text = capsys.readouterr().out
    for word in ("machine", "weights install", "kv cache", "roofline", "bottleneck", "legal"):
        assert word in text


def test_a_plan_says_how_many_experts_are_computed(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    fields = {
        "model_type": "mixtral",
        "hidden_size": 96,
        "intermediate_size": 200,
        "vocab_size": 61,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "num_hidden_layers": 1,
        "num_local_experts": 4,
    }
    (tmp_path / "config.json").write_text(json.dumps(fields), encoding="utf-8")
    asked = ["plan", "--model", str(tmp_path / "config.json"), "--context", "64", "--chips", "2"]
    assert run([*asked, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["experts"], found["experts_computed"], found["experts_chosen"]) == (4, 2, 2)
    assert found["checked"]
    assert run(asked) == 0
    assert "2 of 4, those that the router chooses" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--model", "tinyllama-1.1b", "--chips", "4"), ("does not fit 4 chips", "use --chips")),
        (
            ("--model", "tinyllama-1.1b", "--context", "140000"),
            ("too many of a tile's keys or values for a bank", "use --context 130560 or less"),
        ),
        (
            ("--model", "mixtral-8x7b", "--context", "140000"),
            ("too many of a tile's keys or values for a bank", "use --context 130560 or less"),
        ),
        (
            ("--model", "mixtral-8x7b", "--context", "4096", "--batch", "60"),
            ("too many on slices", "or less or a smaller batch"),
        ),
        (("--model", "target", "--context", "100000"), ("was made for", "--context")),
        (("--model", "qwen3-235b", "--chips", "8"), ("does not fit 8 chips", "use --chips")),
        (("--model", "opt-66b"), ("an FFN without a gate", "no kernels")),
        (("--model", "nobody"), ("nobody", "does not exist")),
        (("--model", "target", "--chips", "7", "--context", "64"), ("7 chips", "4 or 8")),
        (("--model", "target", "--set", "chip.nothing=3"), ("chip.nothing", "chip.FIELD=VALUE")),
        (("--model", "target", "--set", "chip.hop_cycles=x"), ("'x'", "no whole number")),
        (("--model", "target", "--sweep", "chips=9..3"), ("chips=9..3", "64..1024 or")),
        (("--model", "target", "--chips", "1024", "--context", "64"), ("1024", "1008 or 1080")),
        (("--model", "target", "--batch", "0"), ("--batch 0", "1 or more")),
        (("--model", "target", "--tp", "3"), ("--tp 3", "1, 2, 4 or 8")),
        (("--model", "target", "--explain", "x"), ("--explain x", "attention or ffn or head")),
        (
            ("--model", "target", "--sweep", "chips=1..2", "--explain", "ffn"),
            ("--explain beside several plans", "one plan shows it, ask one"),
        ),
    ],
)
@pytest.mark.cases(3)
def test_refusals_are_one_line(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], words: tuple[str, ...]
) -> None:
    assert run(["plan", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1
    for word in words:
        assert word in captured.err


@pytest.mark.long
def test_cost_and_frontier_of_several_plans(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """By the shipped example: money is the machine's second over the tokens of a second."""
    points, picture = tmp_path / "points.csv", tmp_path / "points.png"
    asked = ["--model", "target", "--chips", "16", "--context", "64", "--batch", "1,2", "--no-run"]
    weighed = ["--prices", str(ROOT / "docs" / "prices.toml")]
    files = ["--frontier", str(points), "--frontier", str(picture)]
    alone, both = planned(capsys, *asked, *weighed, *files)["plans"]
    a_second = alone["cost"]["per_second"]
    for row in (alone, both):
        assert row["cost"]["per_second"] == pytest.approx(a_second)
        assert row["cost"]["per_million_tokens"] == pytest.approx(
            1e6 * a_second / (0.5 * row["tokens_per_second_total"])
        )
        assert row["energy"]["joules_per_token_of_a_full_belt"] == pytest.approx(
            16 * 185 / row["full_belt"]["total"]
        )
    full = both["cost"]["per_million_tokens_of_a_full_belt"]
    assert full == pytest.approx(both["cost"]["per_million_tokens"])
    assert both["full_belt"]["total"] == pytest.approx(both["tokens_per_second_total"])
    first, one, two = csv.reader(points.read_text(encoding="utf-8").splitlines())
    per_kw = first.index("tokens_per_second_per_kw")
    assert float(one[per_kw]) == pytest.approx(alone["tokens_per_second_total"] / (16 * 0.185))
    assert float(two[per_kw]) == pytest.approx(both["tokens_per_second_total"] / (16 * 0.185))
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert run(["plan", *asked, *weighed]) == 0
    assert "cost of" in capsys.readouterr().out
