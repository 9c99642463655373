"""Speculative decoding with drawn acceptance: models that are known by their shape only."""

from __future__ import annotations

from dataclasses import replace

import pytest

from chip.scheduling import CompileError
from chip.spec import ChipSpec, load_chip_spec
from cluster.errors import InputError
from cluster.experiments.speculative import SpeculativeSettings, acceptance, run, speculative
from cluster.gpu import GpuGroup, load_gpu_spec
from cluster.report import speculative_run
from programs.models import architecture, config_of
from programs.plans import compile_plan


@pytest.mark.long
def test_alpha_needs_no_models() -> None:
    settings = SpeculativeSettings(alpha=0.8, gamma=4, max_new_tokens=4000, prompt_tokens=100)
    result = run([[1]], settings)
    assert result["lossless"] is None
    assert result["tokens_per_step"] == pytest.approx(acceptance.expected_tokens(0.8, 4), rel=0.03)
    assert result["acceptance"] == pytest.approx(0.8, abs=0.02)
    assert result == run([[1]], settings)
    sure = run([[1]], replace(settings, alpha=1.0, max_new_tokens=101))
    assert sure["tokens_per_step"] == 5.0


def test_lpus_without_models_are_charged_what_running_them_charges() -> None:
    """Launches, transfers and first tokens of a drawn run, counted by hand."""
    chip = load_chip_spec("groq-lpu-1")
    settings = SpeculativeSettings(
        alpha=0.0, gamma=3, max_new_tokens=11, prompt_tokens=7, lpu_cycles_per_token=9_000
    )
    result = run([[1]], settings)
    # Every step drafts three tokens, each with logits, and gives one: ten steps after the first.
    launch = 9_000 / chip.clock_hz  # with transfers, as everywhere
    assert result["draft_seconds"] == pytest.approx(10 * 3 * launch)
    slow = run([[1]], replace(settings, lpu_cycles_per_token=9_000_000))
    reading = 7 * 9_000_000 / chip.clock_hz
    assert slow["start_seconds"] == pytest.approx(reading)
    assert slow["lpu_cycles_per_token"] == 9_000_000


def test_the_shipped_drafts_cycles_grow_with_the_text() -> None:
    """Without models the draft costs its longest program that the text needs."""
    each = [
        run([[1]], settings)["draft_cycles"]
        for settings in (
            SpeculativeSettings(alpha=0.0, max_new_tokens=2, prompt_tokens=n) for n in (16, 300)
        )
    ]
    assert each[1] > 1.5 * each[0]


def test_large_models_by_their_shape() -> None:
    settings = SpeculativeSettings(
        alpha=0.8,
        gpu_model="llama-3-70b",
        draft_model="llama-3-8b",
        gpu_tp=8,
        lpu_cycles_per_token=500_000,
        max_new_tokens=200,
        mode="kv",
        prompt_tokens=8192,
        link="100gbe",
    )
    result = run([[1]], settings)
    assert result["kv_bytes_per_step"] == pytest.approx(327_680 * result["tokens_per_step"])
    assert result["bytes"]["kv_prompt"] == 327_680 * 8192
    assert result["speedup"] > 1
    assert result["compares"].startswith(
        "llama-3-70b on 8 x H100 SXM fp16 with drafts by llama-3-8b on LPUs of 500,000 cycles per "
        "token, against llama-3-70b alone on 8 x H100 SXM fp16"
    )
    # Reading the prompt token by token takes the draft longer than all its proposals gain.
    assert {point["cause"] for point in result["crossover"]["points"]} == {"reading"}
    quick = run([[1]], replace(settings, lpu_cycles_per_token=10_000, max_new_tokens=20))
    assert {case["cause"] for case in quick["crossover"]["slower"]} == {"prompt kv"}
    assert quick["crossover"]["slower"][0]["prompt_kv_bytes"] == 327_680 * 8192
    with pytest.raises(InputError, match="exceeds 1 x H100"):
        run([[1]], replace(settings, gpu_tp=1))


@pytest.mark.long
def test_a_draft_without_weights_costs_its_plan() -> None:
    settings = SpeculativeSettings(
        alpha=0.8,
        gpu_model="llama-2-7b",
        draft_model="smollm2-135m",
        max_new_tokens=20,
        prompt_tokens=64,
        chips=8,
    )
    result = run([[1]], settings)
    name, config = config_of("smollm2-135m")
    plan = compile_plan(name, config, ChipSpec(), context=64 + 20 + 4, chips=8)
    assert f"LPUs of {plan.cycles:,} cycles per token" in result["compares"]
    assert result["draft_cycles"] % plan.cycles == 0
    with pytest.raises(CompileError, match="does not fit 1 chips"):
        run([[1]], replace(settings, draft_model="llama-2-7b", chips=1))


def test_a_draft_on_the_gpu_takes_its_memory() -> None:
    """Each fits alone; beside each other weights and caches do not."""
    settings = SpeculativeSettings(
        alpha=0.8,
        gpu_model="llama-2-13b",
        draft_model="llama-2-7b",
        prompt_tokens=50_000,
        lpu_cycles_per_token=500_000,
        max_new_tokens=20,
    )
    group = GpuGroup(load_gpu_spec("h100"))
    for name in ("llama-2-13b", "llama-2-7b"):
        group.check_fits(architecture(name), 1, 50_024)
    result = run([[1]], settings)
    assert "gpu-draft" not in {row["variant"] for row in result["rows"]}
    assert "llama-2-13b beside llama-2-7b" in result["left_out"]["gpu-draft"]
    with pytest.raises(InputError, match="llama-2-13b beside llama-2-7b in fp16"):
        run([[1]], replace(settings, drafter="gpu"))
    shorter = run([[1]], replace(settings, prompt_tokens=1000, drafter="gpu"))
    assert shorter["variant"] == "gpu-draft" and shorter["left_out"] == {}
    # Several at once have a cache each.
    with pytest.raises(InputError, match="with 40 sequences of 1,024 tokens exceeds"):
        crowd = replace(settings, prompt_tokens=1000, drafter="gpu", concurrent=40)
        run([[1]] * 40, crowd)


def test_a_report_of_a_sweep_shows_its_headline() -> None:
    """Each variant once, at the gamma, the temperature and over the link that were asked for."""
    settings = SpeculativeSettings(
        alpha=0.7, gamma=3, link="100gbe", lpu_cycles_per_token=30_000, max_new_tokens=16
    )
    alone = speculative(settings)
    swept = speculative(replace(settings, sweep=True))
    assert len(swept.report["rows"]) > 50 * len(alone.report["rows"])
    first, second = (speculative_run([], found) for found in (alone, swept))
    assert first["bars"] == second["bars"] and first["belts"] == second["belts"]
    by_name = {row["variant"]: row for row in alone.report["rows"]}
    for bars, key in zip(second["bars"], ("speedup", "tpot_s"), strict=True):
        shown = {bar["name"]: bar["value"] for bar in bars["values"]}
        assert len(shown) == len(bars["values"]) == len(by_name)
        assert shown == {name: row.get(key) for name, row in by_name.items()}
