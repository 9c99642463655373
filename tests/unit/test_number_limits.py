"""Numbers that people give: the last good ones at both ends, and the first bad ones beyond."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from chip.errors import LpuError
from cluster import BeltSettings, CollectiveSettings, GenerateSettings, PlanSettings
from cluster.experiments.agentic import AgenticSettings
from cluster.experiments.serving import (
    Belt,
    BeltPlaces,
    DisaggregatedSettings,
    Lengths,
    LoadSettings,
    RooflineCost,
    Scaling,
    Site,
    Slo,
    bursts,
    check_time,
    poisson,
)
from cluster.experiments.speculative import SpeculativeSettings
from cluster.gpu import GPU_PRESETS, LINK_PRESETS, GpuGroup
from cluster.metrics import Exporter
from cluster.runs import ChatSettings, MatmulSettings, WorkloadSettings
from interconnect.clocks import draw_drift, simulate_run
from interconnect.clocks.links import LinkJitter, Links, characterise
from interconnect.fec import error_chances
from interconnect.wiring import link_to, topology_of
from interconnect.wiring.spares import part_of
from programs.faults import FaultPlan, load_fault_plan
from programs.models import ARCHITECTURES, CheckpointError, ModelConfig, Rope, RopeScaling
from programs.models.gguf_metadata import _framing

CABLE = [(0, 0, 1, 0)]
STILL = np.zeros(2, np.int64)
SHAPE = ModelConfig(hidden_size=64, layers=1, heads=2, kv_heads=1, head_dim=32, ffn=96, vocab=64)
SMALL = ARCHITECTURES["qwen3-8b"]
GROUP = GpuGroup(GPU_PRESETS["h100"])
BELT = Belt(10**9, (8, 16), (100, 200), (100, 200), (0, 0), "given")
SITE = Site(SMALL, GROUP, GROUP, BELT, LINK_PRESETS["400gbe"], 10, "given")
NODES = topology_of(24)


def with_cycles(name: str) -> Callable[[int], object]:
    return lambda v: Belt(**{**vars(BELT), name: (min(v, 1), v)})


def framed(token: int) -> None:
    """A text of ten tokens that shall begin with one of them."""
    fields: Any = SimpleNamespace(get=lambda *_: token, refuse=CheckpointError)
    assert _framing(fields, True, False, 10) == {"bos": token}


def with_size(name: str) -> Callable[[Any], object]:
    return lambda v: replace(SHAPE, **{name: v})


#: name: (what takes the number, the least and the greatest; None: there is no such end)
WHOLE: dict[str, tuple[Callable[[int], object], int | None, int | None]] = {
    "generate tokens": (lambda v: GenerateSettings(max_new_tokens=v), 1, None),
    "generate context": (lambda v: GenerateSettings(context=v), 1, None),
    "generate seed": (lambda v: GenerateSettings(seed=v), 0, 2**63 - 1),
    "chat tokens": (lambda v: ChatSettings(max_new_tokens=v), 1, None),
    "belt tokens": (lambda v: BeltSettings(max_new_tokens=v), 1, None),
    "belt context": (lambda v: BeltSettings(context=v), 1, None),
    "collective bytes": (lambda v: CollectiveSettings(nbytes=v), 1, 2**40),
    "collective packing": (lambda v: CollectiveSettings(run=True, chips_per_actor=v), 1, None),
    "plan chips": (lambda v: PlanSettings("target", chips=f"{v}"), 1, None),
    "plan context": (lambda v: PlanSettings("target", context=f"{v}"), 1, None),
    "plan batch": (lambda v: PlanSettings("target", batch=f"{v}"), 1, None),
    "plan sweep": (lambda v: PlanSettings("target", sweep=[f"batch={v}..{v}"]), 1, None),
    "workload seed": (lambda v: WorkloadSettings(seed=v), 0, None),
    "product m": (lambda v: MatmulSettings(m=v), 1, None),
    "product k": (lambda v: MatmulSettings(k=v), 1, None),
    "product n": (lambda v: MatmulSettings(n=v), 1, None),
    "products": (lambda v: MatmulSettings(sweep=f"1:{v}:1"), 1, 10_000),
    "agents' requests": (lambda v: AgenticSettings(requests=v), 1, 10_000),
    "gamma": (lambda v: SpeculativeSettings(gamma=v), 1, 64),
    "speculative tokens": (lambda v: SpeculativeSettings(max_new_tokens=v), 2, 1_000_000),
    "GPU nodes": (lambda v: SpeculativeSettings(gpu_nodes=v), 1, 256),
    "concurrent": (lambda v: SpeculativeSettings(concurrent=v), 1, 4096),
    "speculative GPUs": (lambda v: SpeculativeSettings(gpu_tp=v), 1, 1024),
    "speculative prompt": (lambda v: SpeculativeSettings(prompt_tokens=v), 1, 10_000_000),
    "speculative seed": (lambda v: SpeculativeSettings(seed=v), 0, 2**63 - 1),
    "kill after": (lambda v: SpeculativeSettings(kill_after=v), 0, 2**63 - 1),
    "draft cycles": (
        lambda v: SpeculativeSettings(alpha=0.5, lpu_cycles_per_token=v),
        1,
        2**62,
    ),
    "load limit": (lambda v: LoadSettings(trace=Path("x"), limit=v), 1, None),
    "load chips": (lambda v: LoadSettings(chips=v), 1, None),
    "load context": (lambda v: LoadSettings(context=v), 1, None),
    "load cycles": (lambda v: LoadSettings(lpu_cycles_per_token=v), 1, None),
    "load interval": (lambda v: LoadSettings(lpu_interval_cycles=v), 1, None),
    "network cycles": (lambda v: DisaggregatedSettings(lpu_ffn_cycles=v), 1, None),
    "port": (lambda v: Exporter(v, "", 0.0), 0, 65_535),
    "linger": (lambda v: Exporter(0, "", v), 0, 86_400),
    "requests": (lambda v: poisson(1e6, v, Lengths(), 0), 1, 2_000_000),
    "seed": (lambda v: poisson(1.0, 3, Lengths(), v), 0, 2**63 - 1),
    "burst": (lambda v: bursts(1e6, 3, Lengths(), 0, v), 1, 2_000_000),
    "prompts' median": (lambda v: Lengths(prompt_median=v), 1, 10_000_000),
    "answers' median": (lambda v: Lengths(output_median=v), 1, 10_000_000),
    "longest prompt": (lambda v: Lengths(prompt_most=v), 1, 10_000_000),
    "longest answer": (lambda v: Lengths(output_most=v), 1, 10_000_000),
    "spread": (lambda v: Lengths(spread=v), 0, 3),
    "seconds served": (check_time, None, 6_000_000),
    "groups that stay": (lambda v: Scaling(v, 1024), 1, 1024),
    "groups at most": (lambda v: Scaling(7, v), 7, 1024),
    "queue": (lambda v: Scaling(1, 2, queue=v), 1, 1_000_000),
    "batch": (lambda v: RooflineCost(GROUP, SMALL, v), 1, 4096),
    "site groups": (lambda v: replace(SITE, groups=v), 1, 1024),
    "site pipelines": (lambda v: replace(SITE, pipelines=v), 1, 65_536),
    "site cycles": (lambda v: replace(SITE, ffn_cycles=v), 1, 10**9),
    "site batch": (lambda v: replace(SITE, max_batch=v), 1, 4096),
    "prefill cycles": (with_cycles("prefill_cycles"), 1, 10**9),
    "decode cycles": (with_cycles("decode_cycles"), 1, 10**9),
    "positions": (lambda v: replace(BELT, buckets=(8, v)), None, 2**20),
    # two hundred cycles a turn, 4,096 places of one
    "interval": (lambda v: replace(BELT, interval_cycles=v), 1, 200),
    "pipelines": (lambda v: BeltPlaces(BELT, v), 1, 65_536),
    "pipelines of two": (
        lambda v: BeltPlaces(replace(BELT, interval_cycles=100), v),
        1,
        32_768,
    ),
    "GPUs of a group": (lambda v: GpuGroup(GPU_PRESETS["h100"], v), 1, 1024),
    "neighbour": (link_to, 1, 7),
    "node": (lambda v: part_of(NODES, [v]), 0, 2),
    "exchanges": (lambda v: characterise(Links(np.zeros(0, np.int64)), v), 1, 10_000_000),
    "budget": (lambda v: simulate_run(CABLE, STILL, 1, 0, v, period=252), 0, 125),
    "run": (lambda v: simulate_run(CABLE, STILL, v, 0, 0), 0, 10**12),
    "deskew": (lambda v: simulate_run(CABLE, STILL, 1, v, 0), 0, None),
    "trained": (lambda v: RopeScaling("yarn", 8.0, original_max_position=v), 1, 2**31 - 1),
    "layers": (lambda v: replace(SHAPE, layers=v), 1, 2**14 - 1),
    "factor": (lambda v: RopeScaling("linear", v), 1, None),
    "token before a text": (lambda v: framed(v), 0, 9),
    **{
        name: (with_size(name), 1, 2**31 - 1)
        for name in ("hidden_size", "ffn", "vocab", "max_position")
    },
}


def refused(take: Callable[[Any], object], value: Any) -> bool:
    """Whether the value is refused; in one line for people, not by chance."""
    try:
        take(value)
    except (LpuError, ValueError) as error:
        assert str(error) and "\n" not in str(error)
        return True
    return False


@pytest.mark.parametrize("name", WHOLE)
def test_the_ends_of_whole_numbers(name: str) -> None:
    take, least, most = WHOLE[name]
    for end, beyond in ((least, -1), (most, 1)):
        if end is not None:
            assert not refused(take, end), end
            assert refused(take, end + beyond), end + beyond
    if least is not None and most is None:
        assert not refused(take, least + 1)


#: name: (what takes the number, good ones, bad ones)
REAL: dict[str, tuple[Callable[[float], object], list[float], list[float]]] = {
    "temperature": (lambda v: GenerateSettings(temperature=v), [0.0, 1e300], [-1e-9, math.inf]),
    "speculative temperature": (
        lambda v: SpeculativeSettings(temperature=v),
        [0.0, 1e300],
        [-1e-9, math.inf],
    ),
    "alpha": (lambda v: SpeculativeSettings(alpha=v), [0.0, 1.0], [-1e-9, 1 + 1e-9]),
    "agents' seconds": (lambda v: AgenticSettings(slo=v), [1e-9, 1e300], [0.0, math.inf]),
    "first token": (lambda v: Slo(v, 1.0), [1e-9, 1e300], [0.0, math.inf]),
    "next token": (lambda v: Slo(1.0, v), [1e-9, 1e300], [0.0, math.inf]),
    "rate": (lambda v: poisson(v, 1, Lengths(), 0), [1e-3, 1e300], [0.0, -1.0, math.inf]),
    "wait": (lambda v: Scaling(1, 2, wait_s=v), [1e-12, 4e6], [0.0, 9e-13, 4e6 + 1]),
    "idle": (lambda v: Scaling(1, 2, idle_s=v), [1e-12, 4e6], [0.0, 9e-13, 4e6 + 1]),
    "start": (lambda v: Scaling(1, 2, start_s=v), [1e-12, 4e6], [0.0, 9e-13, 4e6 + 1]),
    "bytes of a KV value": (
        lambda v: GpuGroup(GPU_PRESETS["h100"], kv_bytes_per_value=v),
        [1e-3, 1e3],
        [0.0, math.inf],
    ),
    "achieved": (
        lambda v: replace(GPU_PRESETS["h100"], achieved_hbm_ratio=v),
        [1e-3, 1.0],
        [0.0, 1.001],
    ),
    "watts": (lambda v: replace(GPU_PRESETS["h100"], watts=v), [0.0], [-1e-3, math.inf]),
    "oscillator": (lambda v: draw_drift(2, v, 0), [0.0, 999.999], [-1e-9, 999.9999, 1000.0]),
    "bit errors": (lambda v: error_chances(v, 3), [0.0, 0.999], [-1e-9, 1.0]),
    "mean jitter": (lambda v: LinkJitter("x", 3, v, 7, 1.0), [3.0, 7.0], [2.999, 7.001]),
    "jitter's spread": (lambda v: LinkJitter("x", 3, 5.0, 7, v), [1e-3], [0.0, -1.0]),
    "low factor": (lambda v: RopeScaling("llama3", 8.0, v, 4.0), [1e-3, 4.0], [0.0, 4.001]),
    "high factor": (lambda v: RopeScaling("llama3", 8.0, 1.0, v), [1.0, 1e9], [0.999, math.inf]),
    "slow turns": (
        lambda v: RopeScaling("yarn", 8.0, beta_slow=v),
        [1e-3, 31.999],
        [0.0, 32.0],
    ),
    "second table": (lambda v: Rope(v), [0.0, 1e9], [-1e-9, math.inf]),
    "yarn's table": (lambda v: Rope(v, RopeScaling("yarn", 8.0)), [1.001], [0.0, 1.0]),
    "linear table": (lambda v: Rope(v, RopeScaling("linear", 8.0)), [0.0, 1.0], [-1.0]),
    "size": (lambda v: RopeScaling("yarn", 8.0, size=v), [1e-3, 9.0], [0.0, math.inf]),
}


@pytest.mark.parametrize("name", REAL)
def test_the_ends_of_real_numbers(name: str) -> None:
    take, good, bad = REAL[name]
    assert [value for value in good if refused(take, value)] == []
    assert [value for value in [*bad, math.nan] if not refused(take, value)] == []


#: Tables of a fault file, with a number in place of @: the least and the greatest.
FAULTS: dict[str, tuple[str, int | float, int | float]] = {
    "seed": ("seed = @", 0, 2**55 - 1),
    "links": ("[links]\nbit_error_rate = @", 0.0, 0.5),
    "spare after": ("[links]\nspare_after = @", 1, 1000),
    "cable": ("[[links.cable]]\ncable = @\nbit_error_rate = 0.1", 0, 2**20),
    "cable's rate": ("[[links.cable]]\ncable = 3\nbit_error_rate = @", 0.0, 0.5),
    "cable's launch": (
        "[[links.cable]]\ncable = 3\nbit_error_rate = 0.1\nfrom_launch = @",
        0,
        2**31,
    ),
    "sram": ("[sram]\nbit_error_rate = @", 0.0, 0.5),
    "upset chip": ("[[sram.upset]]\nchip = @\nlaunch = 0", 0, 16_383),
    "upset launch": ("[[sram.upset]]\nchip = 0\nlaunch = @", 0, 2**31),
    "upset bits": ("[[sram.upset]]\nchip = 0\nlaunch = 0\nbits = @", 1, 2),
    "ppm": ("[clocks]\nppm = @", 0.0, 999.0),
    "deskew": ("[clocks]\ndeskew_interval_cycles = @", 0, 10**12),
    "budget": ("[clocks]\nbudget_cycles = @", 0, 125),
    "spares": ("[spares]\nnodes = @", 0, 32),
    "dead node": ("[[dead_node]]\nnode = @", 0, 16_383),
    "dead launch": ("[[dead_node]]\nnode = 0\nlaunch = @", 0, 2**31),
    "dead cycle": ("[[dead_node]]\nnode = 0\ncycle = @", 0, 2**62 - 1),
}


@pytest.mark.parametrize("name", FAULTS)
def test_the_ends_of_numbers_in_a_fault_file(name: str, tmp_path: Path) -> None:
    text, least, most = FAULTS[name]
    path = tmp_path / "faults.toml"

    def take(value: float) -> None:
        path.write_text(text.replace("@", repr(value)), encoding="utf-8")
        assert repr(value) in str(load_fault_plan(path))  # read, and not the default

    step = 1 if isinstance(least, int) else 1e-6
    assert [v for v in (least, most) if refused(take, v)] == []
    assert [v for v in (least - step, most + step) if not refused(take, v)] == []


def test_an_empty_fault_file_is_the_plan_without_faults(tmp_path: Path) -> None:
    path = tmp_path / "faults.toml"
    path.write_text("", encoding="utf-8")
    assert load_fault_plan(path) == FaultPlan()
    for row, read in (
        ("[[sram.upset]]\nchip = 3\nlaunch = 5", "Upset(chip=3, launch=5, bits=1)"),
        ("[[dead_node]]\nnode = 3", "DeadNode(node=3, launch=0, cycle=0)"),
        ("[[links.cable]]\ncable = 3\nbit_error_rate = 0.25", "from_launch=0)"),
    ):
        path.write_text(row, encoding="utf-8")
        assert read in str(load_fault_plan(path))
