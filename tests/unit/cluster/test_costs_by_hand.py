"""Costs of passes, places of samples and what is not said: worked out here, term by term."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any, get_type_hints

import numpy as np
import pytest
from typer.models import OptionInfo

import programs.plans
from chip.scheduling import CompileError
from cluster.experiments.serving import (
    DisaggregatedSettings,
    Lengths,
    LoadSettings,
    LpuChoice,
    RooflineCost,
    Scaling,
    Site,
    Slo,
    lpu_belt,
)
from cluster.experiments.serving import machines as machines_module
from cluster.experiments.serving.split_layers import SplitCost
from cluster.experiments.speculative.sampling_check import SamplingCheck, kolmogorov, place
from cluster.gpu import GPU_PRESETS, LINK_PRESETS, GpuGroup, collective_seconds
from programs.models import architecture

H100 = GPU_PRESETS["h100"]  # 3.35 TB/s, of which 0.8; 989 TFLOP/s, of which 0.7; 3 us per kernel
LLAMA = architecture("llama-2-70b")
LINK = LINK_PRESETS["pcie5-x16"]
MEMORY, COMPUTE = 3.35e12 * 0.8, 989e12 * 0.7
#: Elements of a layer's projections: queries, keys, values and output.
PROJECTIONS = 8192 * (64 * 128 + 2 * 8 * 128) + 64 * 128 * 8192


def split(gpus: int) -> SplitCost:
    return SplitCost(GpuGroup(H100, gpus), LLAMA, LINK, 9_000, 900_000_000, 3_000)


@pytest.mark.parametrize("gpus", [1, 4])
@pytest.mark.parametrize("batch", [1, 3000])
def test_what_is_outside_the_layers_of_a_split_pass(batch: int, gpus: int) -> None:
    """A token's row is negligible; the head's 32,000 x 8,192 weights in 16 bits; three kernels."""
    head = 32_000 * 8192
    bound = max(2 * head / MEMORY, 2 * head * batch / COMPUTE)
    assert (bound > 2 * head / MEMORY) == (batch == 3000)
    assert split(gpus).outer_seconds(batch) == pytest.approx(bound / gpus + 9e-6, rel=1e-12)


@pytest.mark.parametrize("gpus", [1, 4])
@pytest.mark.parametrize("batch", [1, 1000])
def test_attention_of_a_split_layer(batch: int, gpus: int) -> None:
    """Weights and KV cache from memory, or sums; seven of ten kernels; an all-reduce."""
    seen = np.array([0, 1, 5000])
    exchange = min(collective_seconds(H100, "all-reduce", gpus, batch * 8192 * 2).values())
    assert (exchange == 0) == (gpus == 1)
    for positions, seconds in zip(seen, split(gpus).attention_seconds(batch, seen), strict=True):
        memory = (2 * PROJECTIONS + 2 * 2 * 8 * 128 * positions) / (gpus * MEMORY)
        sums = (2 * PROJECTIONS * batch + 4 * 64 * 128 * positions) / (gpus * COMPUTE)
        assert (sums > memory) == (batch == 1000)
        assert seconds == pytest.approx(max(memory, sums) + 21e-6 + exchange, rel=1e-12)


def test_a_split_prefill() -> None:
    """With all weights on the GPUs, the prompt in and a token out; nothing where it is done."""
    cost, group = split(4), GpuGroup(H100, 4)
    host = group.host_seconds(300) + group.host_seconds(1)
    assert host > 20e-6
    assert cost.prefill_ps(300) == round((group.prefill_seconds(LLAMA, 300) + host) * 1e12)
    assert replace(cost, prefilled=True).prefill_ps(300) == 0


# --- what nobody says -----------------------------------------------------------------------------


def told(name: str) -> str:
    """What the help says where an option is left out."""
    hint = get_type_hints(LoadSettings, include_extras=True)[name]
    (option,) = (one for one in hint.__metadata__ if isinstance(one, OptionInfo))
    return str(option.show_default)


def test_what_is_not_said_is_the_same_everywhere() -> None:
    """For people as for programs: 64 requests in a batch, one group, a second to a first token."""
    for settings in (LoadSettings(), DisaggregatedSettings()):
        assert settings.max_batch == 64
        assert Slo() == Slo(settings.slo_ttft, settings.slo_tpot) == Slo(1.0, 0.05)
        lengths = (settings.prompt_tokens, settings.output_tokens, settings.spread)
        assert Lengths() == Lengths(*lengths) == Lengths(64, 32, 0.6, 10**7, 10**7)
        group = GpuGroup(H100, settings.gpu_tp, settings.gpu_dtype)
        assert GpuGroup(H100) == group == GpuGroup(H100, 1, "fp16", 2.0)
        assert (settings.gpu, settings.gpu_groups, settings.burst, settings.arrivals) == (
            "h100",
            1,
            16,
            "poisson",
        )
    belt: Any = lpu_belt("target", LpuChoice(cycles_per_token=900))
    site = Site(LLAMA, GpuGroup(H100), GpuGroup(H100), belt, LINK, 9, "given")
    assert (site.handover, site.groups, site.pipelines, site.max_batch) == ("layers", 1, 1, 64)
    assert DisaggregatedSettings().handover == site.handover
    assert (DisaggregatedSettings().link, DisaggregatedSettings().cpx) == ("pcie5-x16", "rubin-cpx")
    assert RooflineCost(GpuGroup(H100), architecture("qwen3-8b")).max_batch == 64
    assert (split(1).max_batch, split(1).prefilled, split(1).pipelines) == (64, False, 1)
    assert (LoadSettings().requests, LoadSettings().rate) == (1000, 200.0)
    assert (DisaggregatedSettings().requests, DisaggregatedSettings().rate) == (200, 100.0)


def test_help_tells_what_scaling_does_when_nobody_says() -> None:
    rule = Scaling(1, 2)
    shown = [told(f"scale_{name}") for name in ("queue", "wait", "idle", "start")]
    assert shown == ["4", "never", "1", "10"]
    assert (rule.queue, rule.wait_s, rule.idle_s, rule.start_s) == (4, None, 1.0, 10.0)
    assert Scaling(1, 2, idle_s=2e-12, start_s=3.0).idle_ps == 2


# --- what is said is what is compiled -------------------------------------------------------------


@dataclass(frozen=True)
class CostsGiven:
    """What a belt was made of."""

    plan: object
    costs: object
    interval_cycles: int | None
    chunk: int = 1
    chunk_cycles: object = None
    slots: int = 1
    most_places: object = None


def test_choices_of_lpus_reach_the_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    plan = SimpleNamespace(chips=8, starts=[0], batch=1)  # of one stage

    def compile_plan(name: str, config: Any, spec: Any, **options: Any) -> object:
        asked.append((name, config.layers, spec.name, options))
        return plan

    monkeypatch.setattr(programs.plans, "compile_plan", compile_plan)
    monkeypatch.setattr(programs.plans, "check_plan", asked.append)
    monkeypatch.setattr(programs.plans, "bucket_costs", lambda plan: [plan])
    monkeypatch.setattr(programs.plans, "plan_room", lambda plan, slots: (plan, slots))
    monkeypatch.setattr(programs.plans, "chunk_costs", lambda plan, chunk: {"chunk": chunk})
    monkeypatch.setattr(machines_module, "belt_of_plan", CostsGiven)
    belt: Any = lpu_belt("llama-3-8b", LpuChoice(16, "groq-3-lp30", "fp16", 300, None, 77))
    assert belt == CostsGiven(plan, [plan], 77, most_places=(plan, 1))
    said = {"dtype": "fp16", "chips": 16, "context": 300, "batch": 1}
    assert asked == [("llama-3-8b", 32, "groq-3-lp30", said), plan]
    assert lpu_belt("llama-3-8b", LpuChoice(None)) == CostsGiven(plan, [plan], None)
    said = {"dtype": "int8", "chips": None, "context": 2048, "batch": 1}
    assert asked[2:] == [("llama-3-8b", 32, "groq-lpu-1", said), plan]
    chunked = CostsGiven(plan, [plan], None, 4, {"chunk": 4})
    assert lpu_belt("llama-3-8b", LpuChoice(None, chunk=4)) == chunked


def test_requests_in_flight_are_as_many_as_stages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 64 groups of eight chips 9 have a stage; there are caches for 7 requests."""
    asked: list[tuple[int | None, int]] = []

    def compile_plan(*_: Any, chips: int | None, batch: int, **__: Any) -> object:
        asked.append((chips, batch))
        if batch > 7:
            raise CompileError("no room")
        return SimpleNamespace(chips=512, starts=[0] * 9, batch=batch)

    monkeypatch.setattr(programs.plans, "compile_plan", compile_plan)
    monkeypatch.setattr(programs.plans, "check_plan", lambda plan: 0)
    monkeypatch.setattr(programs.plans, "bucket_costs", lambda plan: [])
    monkeypatch.setattr(machines_module, "belt_of_plan", CostsGiven)
    belt: Any = lpu_belt("llama-3-8b", LpuChoice(512))
    assert asked == [(512, 1), (512, 9), (512, 8), (512, 7)]
    assert belt.plan.batch == 7


def test_constants_of_lpus_are_taken_as_given() -> None:
    belt = lpu_belt("target", LpuChoice(cycles_per_token=900, interval_cycles=300))
    assert (belt.clock_hz, belt.context, belt.turn, belt.places) == (900_000_000, 1 << 17, 900, 3)
    fast = lpu_belt("target", LpuChoice(chip="groq-3-lp30", context=64, cycles_per_token=9))
    assert (fast.clock_hz, fast.context, fast.turn, fast.places) == (1_500_000_000, 64, 9, 1)
    assert LpuChoice() == LpuChoice(8, "groq-lpu-1", "int8", None, None, None)


# --- samples --------------------------------------------------------------------------------------


@pytest.mark.parametrize("v", [0.0, 0.25, 0.75])
def test_the_place_of_a_token_is_behind_the_more_likely_ones(v: float) -> None:
    p = np.array([0.125, 0.5, 0.125, 0.25, 0.0])
    starts = {1: 0.0, 3: 0.5, 0: 0.75, 2: 0.875}  # equal ones in their order
    for token, start in starts.items():
        assert place(p, token, v) == start + v * p[token]
    assert place(p, 4, v) == 1.0  # what cannot be is behind everything
    assert place(np.array([1.0]), 0, v) == v


@pytest.mark.parametrize(
    ("u", "distance"),
    [([0.0], 1.0), ([1.0], 1.0), ([0.25, 0.5], 0.5), ([0.5, 0.25, 0.75, 0.75], 0.25)],
)
def test_kolmogorovs_p_value(u: list[float], distance: float) -> None:
    """Stephens (1970): the limit's series at (sqrt(n) + 0.12 + 0.11 / sqrt(n)) D."""
    scaled = (math.sqrt(len(u)) + 0.12 + 0.11 / math.sqrt(len(u))) * distance
    series = sum((-1) ** (k - 1) * math.exp(-2 * (k * scaled) ** 2) for k in range(1, 60))
    assert kolmogorov(np.array(u)) == pytest.approx(2 * series, abs=1e-12)
    even = (np.arange(100) + 0.5) / 100  # as near as can be
    assert kolmogorov(even) == 1.0


def test_a_check_of_samples_says_what_it_found() -> None:
    assert SamplingCheck(1234, 1e-6).fits and not SamplingCheck(1234, 9.9e-7).fits
    fits, not_ = SamplingCheck(1234, 0.25).told, SamplingCheck(5, 1e-9).told
    assert fits.startswith(
        "1,234 sampled tokens fit the target's distributions (Kolmogorov, p = 0.25)"
    )
    assert not_.startswith("5 sampled tokens do not fit the target's distributions")
